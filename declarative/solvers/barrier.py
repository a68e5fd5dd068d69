"""One barrier system of the interior point method: the perturbed optimality conditions of a batch at (y, ν, μ, s), factorised."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from declarative.engines.autodiff import linearise
from declarative.engines.base import Linearisation
from declarative.engines.blocks import hessian_operator, jacobian_operator, read_solution
from declarative.problem import Problem
from declarative.solvers.condensed import condensed
from declarative.solvers.iterative import State, runs_off
from declarative.solvers.line_search import LineSearch, exact_penalty
from declarative.solvers.optimality import coordinate_sizes, gradient_sizes
from declarative.solvers.step import ReducedModel
from declarative.solvers.structured_step import StructuredModel, is_definite
from declarative.structure.base import Operator
from declarative.structure.elementary import DenseOperator
from declarative.typing import InequalityMultipliers, Jacobians, SampleMask, Values, Variables
from declarative.vectors import times


class Barrier:
    """∇f + Aᵀλ = 0, h = 0, g + s = 0, s ∘ μ = target at a state."""

    def __init__(self, problem: Problem, state: State) -> None:
        self.problem, self._state = problem, state
        y, nu, mu, s = (state[name] for name in ("y", "equality", "inequality", "slack"))
        self._p = nu.shape[1]
        self._multipliers = torch.cat([nu, mu], 1)
        at = linearise(problem, y, nu, mu)
        point = read_solution(problem, y, nu, mu, torch.ones_like(mu, dtype=torch.bool))
        self._hessian: Operator = hessian_operator(problem, at, point)
        self.jacobian = at.jacobian() if problem.node.constraint_structure is None else _dense(jacobian_operator(problem, at, point), at)
        self.objective, rows, self._gradient = at.objective, at.constraints, at.gradient
        self._f_gradient = at.gradient - _transposed(self.jacobian, self._multipliers)
        self.h, self.violation = rows[:, : self._p], rows[:, self._p :] + s
        self._a_g = self.jacobian[:, self._p :]
        self.gap: Values = (s * mu).mean(1)
        self.infeasibility: Values = self.h.abs().sum(1) + self.violation.abs().sum(1)
        self._measure(y)
        self.finite: SampleMask = torch.isfinite(self.objective) & torch.isfinite(self._gradient).all(1) & torch.isfinite(rows).all(1)
        self._weights = mu / s

    @cached_property
    def model(self) -> ReducedModel | StructuredModel:
        """H + A_gᵀ diag(μ/s) A_g on the null space of the equalities, factorised when it is first asked for."""
        a_h = self.jacobian[:, : self._p]
        if not isinstance(self._hessian, DenseOperator):
            structured = condensed(self._hessian, self._a_g, self._weights)
            if structured is not None and is_definite(structured):
                return StructuredModel(self.problem, structured, DenseOperator(a_h) if self._p else None)
        dense = torch.baddbmm(self._hessian.to_dense(), self._a_g.mT * self._weights.unsqueeze(1), self._a_g)
        pull = self._gradient + _transposed(self._a_g, self._weights * self.violation)
        return ReducedModel(dense, a_h, pull, self._state["radius"])

    def _measure(self, y: Tensor) -> None:
        """What is left, relative to the size of the terms."""
        size, tiny = coordinate_sizes(y), torch.finfo(y.dtype).tiny
        magnitudes, curvatures = self.jacobian.abs(), self._hessian.with_tensors([t.abs() for t in self._hessian.tensors])
        steepest = torch.maximum(self._f_gradient.abs(), curvatures.matmul(size))
        scale_f = gradient_sizes(steepest, magnitudes, size, self._multipliers, self._p)
        self._grown = scale_f.amax(1) > 1e4 * self._f_gradient.abs().amax(1)
        self.scale_rows = times(magnitudes, size) + tiny
        self.scale_gap: Values = (scale_f * size).amax(1) + tiny
        self.infeasible_by: Values = (torch.cat([self.h, self.violation], 1).abs() / self.scale_rows).amax(1)
        stationary_by = (self._gradient.abs() / scale_f).amax(1)
        self.remaining: Values = torch.maximum(torch.maximum(stationary_by, self.infeasible_by), self.gap / self.scale_gap)

    def direction(self, target: Tensor, second_order: Tensor) -> State:
        """Newton's step towards s ∘ μ = target, with Δs ∘ Δμ ≈ second_order accounted for."""
        s, mu = self._state["slack"], self._state["inequality"]
        push = (target - second_order) / s - mu + self._weights * self.violation
        dy, d_nu = self.model.solve(self._gradient + _transposed(self._a_g, push), -self.h)
        d_s = -self.violation - times(self._a_g, dy)
        return {"y": dy, "slack": d_s, "equality": d_nu, "inequality": (target - second_order) / s - mu - self._weights * d_s}

    def search(self, step: State, barrier: Values, longest: Values) -> tuple[Values, Variables, InequalityMultipliers, Values]:
        """(length, y, s, ρ) on the merit function f − τ Σ log s + ρ(‖h‖₁ + ‖g + s‖₁), τ the complementarity aimed at."""
        y, s = self._state["y"], self._state["slack"]
        m, eps = y.shape[1], torch.finfo(y.dtype).eps
        slope = (self._f_gradient * step["y"]).sum(1) - barrier * (step["slack"] / s).sum(1)
        rounding = 10 * eps * self.scale_rows.sum(1)
        curvature = (step["y"] * self._hessian.matmul(step["y"])).sum(1) + (self._weights * step["slack"].square()).sum(1)
        after = self._multipliers + torch.cat([step["equality"], step["inequality"]], 1)
        penalty = exact_penalty(self._state["penalty"], after, slope, curvature.clamp_min(0.0), self.infeasibility, rounding)
        logs = s.log()
        merit = self.objective - barrier * logs.sum(1) + penalty * self.infeasibility
        noise = 10 * eps * (self.objective.abs() + barrier * logs.abs().sum(1)) + penalty * (10 * eps * self.infeasibility + rounding)

        def parts(joint: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            value, h, g = self.problem.evaluate(joint[:, :m])
            slack = torch.maximum(joint[:, m:], -g)  # a slack smaller than −g only costs
            return value, h, g + slack, slack

        def merit_at(joint: Tensor) -> Tensor:
            value, h, rest, slack = parts(joint)
            return value - barrier * slack.log().sum(1) + penalty * (h.abs().sum(1) + rest.abs().sum(1))

        def correction(joint: Tensor) -> Tensor:
            """Back towards curved constraints, and no nearer to the boundary than a tenth of the way."""
            _, h, rest, slack = parts(joint)
            dy, _ = self.model.solve(_transposed(self._a_g, self._weights * rest), -h)
            d_s = -rest - times(self._a_g, dy)
            return torch.cat([dy, torch.maximum(d_s, 0.1 * joint[:, m:] - slack) + slack - joint[:, m:]], 1)

        line = LineSearch(torch.cat([y, s], 1), torch.cat([step["y"], step["slack"]], 1), slope - penalty * self.infeasibility, merit, noise, halvings=14)
        length, joint = line.run(merit_at, correction, torch.zeros_like(longest, dtype=torch.bool), longest)
        return length, joint[:, :m], torch.where((length > 0).unsqueeze(1), parts(joint)[3], s), penalty

    def contradictory(self) -> SampleMask:
        """Multipliers that have grown large, cancel in Aᵀλ and leave a violation: what Farkas' lemma says of infeasibility."""
        if not bool(self._grown.any()):
            return self._grown
        largest = (self._multipliers.abs() * torch.linalg.vector_norm(self.jacobian, dim=2)).amax(1)
        grown = largest > 1e4 * self._f_gradient.abs().amax(1)
        cancelling = _transposed(self.jacobian, self._multipliers).abs().amax(1) <= 1e-3 * largest
        value = torch.cat([self.h, self.violation - self._state["slack"]], 1)
        separating = (self._multipliers * value).sum(1) > 1e-3 * (self._multipliers.abs() * value.abs()).amax(1)
        return grown & cancelling & separating & (self.infeasible_by > torch.finfo(largest.dtype).eps ** 0.5)

    def unbounded(self, step: Variables) -> SampleMask:
        """The iterate is far out, nearly feasible, and goes on to where f is lower still."""
        far = runs_off(self._state, self.objective, self._state["y"], step)
        return far & ((self._f_gradient * step).sum(1) < 0) & (self.infeasible_by <= 1e-3)


def _dense(operator: Operator | None, at: Linearisation) -> Jacobians:
    return at.jacobian() if operator is None else operator.to_dense()


def _transposed(jacobian: Tensor, rows: Tensor) -> Tensor:
    """Aᵀ w."""
    return times(jacobian.mT, rows)
