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
from declarative.typing import Hessians, Jacobians, Rows, SampleMask, Variables
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
    """f and a around y₀: f = f(y₀) + ∇f₀ᵀd + ½ dᵀHd, a = a₀ + A d, d = y − y₀. Tensors (b, …)."""

    origin: Variables
    slope: Variables
    constraints: Rows
    hessian: Hessians
    jacobian: Jacobians

    def agrees(self, at: Linearisation, y: Variables) -> SampleMask:
        """(b,) whether the statement, linearised at y, has these values and first and second derivatives there, to rounding.

        Relative to terms by one product each: passes over |H| and |A| cost as much as all the rest, and a sample that is suspected
        wrongly, because its terms cancel, is merely solved once more.
        """
        root = torch.finfo(y.dtype).eps ** 0.5
        step, size, probe = y - self.origin, y.abs() + self.origin.abs(), golden_turns(y).expand_as(y)
        weights = golden_turns(at.constraints).expand_as(at.constraints)
        bent, reach, curved = torch.bmm(self.hessian, torch.stack([step, size, probe], 2)).unbind(2)
        moved, span = torch.bmm(self.jacobian, torch.stack([step, size], 2)).unbind(2)
        pulled = times(self.jacobian.mT, weights)
        pairs = (
            (self.slope + bent, at.gradient, self.slope.abs() + bent.abs() + reach.abs()),
            (self.constraints + moved, at.constraints, self.constraints.abs() + moved.abs() + span.abs()),
            (curved, at.hessian_product(probe), curved.abs()),
            (pulled, at.jacobian_transposed_product(weights), pulled.abs()),
        )
        # Entries that are zero by cancellation are compared with the others.
        checked = [(mine - theirs).abs_() <= torch.add(terms, terms.mean(1, keepdim=True)).mul_(root) for mine, theirs, terms in pairs if terms.shape[1]]
        return torch.cat(checked, 1).all(1)

    def gradient(self, y: Variables) -> Variables:
        """∇f at y."""
        return self.slope + times(self.hessian, y - self.origin)
