"""Quadratic objectives with linear constraints, recognised by their graphs, and then evaluated by their constants.

The derivative of H and A is a graph of autograd like any other: where it does not lead back to y, H and A are the same on the
whole piece of the statement that y lies on, whatever the numbers are. Nothing is probed or guessed; a statement that hides its being
quadratic is merely evaluated anew, and one that has several pieces (torch.where, a mask) shows it at the solution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from declarative.engines.autodiff import GraphLinearisation, linearise
from declarative.engines.base import Linearisation
from declarative.problem import Problem
from declarative.typing import EqualityMultipliers, Hessians, InequalityMultipliers, Jacobians, Rows, SampleMask, Values, Variables
from declarative.vectors import golden_turns, times


def is_quadratic(at: Linearisation) -> bool:
    """Whether the graphs of H and A lead neither to y nor to the multipliers.

    Choices by comparison or detached numbers leave no trace there: `Quadratic.agrees` tells whether any was met.
    """
    if not isinstance(at, GraphLinearisation):
        return False
    return not any(_leads_to(d.grad_fn, at.leaves[0]) for d in at.derivatives() if d is not None)


def _leads_to(root: Any, leaf: Tensor) -> bool:
    seen, queue = set(), [root]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node is leaf.grad_fn or getattr(node, "variable", None) is leaf:
            return True
        # The second derivative of y² is 2 y⁰: formally a function of y.
        if node.name() == "PowBackward0" and node._saved_exponent == 0:
            continue
        queue.extend(following for following, _ in node.next_functions)
    return False


@dataclass(frozen=True)
class Quadratic:
    """f and a around y₀: f = f₀ + ∇f₀ᵀd + ½ dᵀHd, a = a₀ + A d, d = y − y₀. Tensors (b, …)."""

    origin: Variables
    objective: Values
    slope: Variables
    constraints: Rows
    hessian: Hessians
    jacobian: Jacobians

    def evaluate(self, y: Variables, p: int) -> tuple[Values, EqualityMultipliers, InequalityMultipliers]:
        """f, h, g at y."""
        step = y - self.origin
        value = self.objective + ((self.slope + 0.5 * times(self.hessian, step)) * step).sum(1)
        rows = self.constraints + times(self.jacobian, step)
        return value, rows[:, :p], rows[:, p:]

    def agrees(self, problem: Problem, y: Variables, p: int) -> SampleMask:
        """(b,) whether the statement has these values and first and second derivatives at y, to rounding."""
        root = torch.finfo(y.dtype).eps ** 0.5
        with torch.no_grad():
            at = linearise(problem, y)
        size = y.abs() + self.origin.abs()
        probe, weights = golden_turns(y).expand_as(y), golden_turns(at.constraints).expand_as(at.constraints)
        curvatures, magnitudes = self.hessian.abs(), self.jacobian.abs()
        reach = self.slope.abs() + times(curvatures, size)
        pairs = (
            (self.gradient(y), at.gradient, reach),
            (torch.cat(self.evaluate(y, p)[1:], 1), at.constraints, self.constraints.abs() + times(magnitudes, size)),
            (times(self.hessian, probe), at.hessian_product(probe), times(curvatures, probe.abs())),
            (times(self.jacobian.mT, weights), at.jacobian_transposed_product(weights), times(magnitudes.mT, weights.abs())),
        )
        # Entries that are zero by cancellation are compared with the others.
        limits = ((mine - theirs, root * (terms + terms.mean(1, keepdim=True))) for mine, theirs, terms in pairs if terms.shape[1])
        return torch.stack([(difference.abs() <= limit).all(1) for difference, limit in limits]).all(0)

    def gradient(self, y: Variables) -> Variables:
        """∇f at y."""
        return self.slope + times(self.hessian, y - self.origin)
