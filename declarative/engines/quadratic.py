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

from declarative.engines.autodiff import GraphLinearisation
from declarative.engines.base import Linearisation
from declarative.problem import Problem
from declarative.typing import EqualityMultipliers, Hessians, InequalityMultipliers, Jacobians, Rows, SampleMask, Values, Variables


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
        """(b,) whether the statement has these values at y, to rounding."""
        root = torch.finfo(y.dtype).eps ** 0.5
        step = (y - self.origin).abs()
        reach_f = self.objective.abs() + ((self.slope.abs() + times(self.hessian.abs(), step)) * step).sum(1)
        reach_a = self.constraints.abs() + times(self.jacobian.abs(), step)
        value, h, g = (mine - theirs for mine, theirs in zip(self.evaluate(y, p), problem.evaluate(y), strict=True))
        return (value.abs() <= root * reach_f) & (torch.cat([h, g], 1).abs() <= root * reach_a).all(1)

    def gradient(self, y: Variables) -> Variables:
        """∇f at y."""
        return self.slope + times(self.hessian, y - self.origin)


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """(b, r, c), (b, c) -> (b, r)."""
    return torch.bmm(matrix, vector.unsqueeze(-1)).squeeze(-1)
