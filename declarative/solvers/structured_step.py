"""The Newton step by the structure of H that a node declares; dense where that does not serve (step.py)."""

from __future__ import annotations

import torch

from declarative.engines.base import Linearisation
from declarative.engines.blocks import hessian_operator, is_structured, jacobian_operator, read_solution
from declarative.kkt.bordered import IrregularPolicy
from declarative.kkt.schur import SchurKKT
from declarative.problem import Problem
from declarative.solvers.step import ReducedModel
from declarative.structure.base import Operator
from declarative.transforms import without_graph
from declarative.typing import Rows, SampleMask, Values, Variables


class StructuredModel:
    """A convex quadratic model with H and A as operators; the same calls as `ReducedModel`."""

    def __init__(self, problem: Problem, hessian: Operator, jacobian: Operator | None) -> None:
        policy = IrregularPolicy("min_norm", hessian.shape[1], problem.batch, problem.name)
        self._kkt = SchurKKT(policy, hessian, jacobian, None)
        self._size = hessian.shape[1]
        self.downhill: Variables | None = None
        self.convex: SampleMask = torch.ones(problem.batch, dtype=torch.bool, device=problem.like.device)

    def solve(self, gradient: Variables, change: Rows) -> tuple[Variables, Rows]:
        """The step d for `gradient` g and A d = `change`, and the multipliers ν of  H d + g + Aᵀν = 0."""
        if self._kkt.jacobian is None:
            return self._kkt.solve(-gradient), change
        step, multipliers = self._kkt.solve(torch.cat([-gradient, change], 1)).split([self._size, change.shape[1]], 1)
        return step, multipliers


def model_at(problem: Problem, at: Linearisation, y: Variables, equality: Rows, radius: Values) -> ReducedModel | StructuredModel:
    """The quadratic model of the Lagrangian at a point, with steps no longer than `radius` where it is not convex."""
    if is_structured(problem.node):
        solution = read_solution(problem, y, equality, equality.new_zeros(equality.shape[0], 0), equality.new_zeros(equality.shape[0], 0, dtype=torch.bool))
        hessian = hessian_operator(problem, at, solution)
        # Where H is not positive definite the reduced model knows what to do: it is, perhaps, on the null space of A.
        if is_definite(hessian):
            return StructuredModel(problem, hessian, jacobian_operator(problem, at, solution))
        return ReducedModel(hessian.to_dense(), at.jacobian(), at.gradient, radius)
    return ReducedModel(at.hessian(), at.jacobian(), at.gradient, radius)


def is_definite(operator: Operator) -> bool:
    """Whether it is positive definite in every sample."""
    return bool(without_graph(lambda *numbers: (operator.with_tensors(numbers).is_positive_definite(),), *operator.tensors)[0].all())
