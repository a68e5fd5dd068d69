"""Onto a box."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from declarative.differentiation.base import Differentiation
from declarative.layers.closed_form import Answer, reject
from declarative.layers.natural import as_number, read
from declarative.layers.natural_layer import Call
from declarative.layers.projections.base import ProjectionLayer, rounding
from declarative.structure import Constant, Sparse


def clipped(x: Tensor, lower: Tensor, upper: Tensor, hold: Callable[[Tensor, Tensor], Tensor]) -> Answer:
    """x (b, n) between bounds that broadcast with it; `hold` says which constraints the derivative counts as equations."""
    lower, upper = lower.expand_as(x), upper.expand_as(x)
    below, above = lower - x, x - upper
    fixed = lower.detach() == upper.detach()
    weakly_low, weakly_high = ((gap.detach().abs() <= rounding(x, bound)) & ~fixed for gap, bound in ((below, lower), (above, upper)))
    low, high = (below.detach() > 0) & ~weakly_low, (above.detach() > 0) & ~weakly_high
    held_low, held_high = hold(low, weakly_low), hold(high, weakly_high)
    y = torch.where(held_low, lower, torch.where(held_high, upper, x))
    # Where the bounds meet, either of them is the entry, whichever side x is on: both move it by half.
    y = torch.where(fixed, 0.5 * (lower + upper), y)
    mu = torch.cat([torch.where(low, below, 0.0), torch.where(high, above, 0.0)], 1)
    return Answer(y, None, mu, torch.cat([low, high], 1), torch.cat([weakly_low, weakly_high], 1))


class BoxProjection(ProjectionLayer):
    """y = argmin ½‖y − x‖²  s.t.  lower ≤ y ≤ upper: every entry is clipped.

    Where lower = upper the entry is fixed, and its derivative is shared between the two by halves.

    Args:
        lower, upper: numbers, tensors that broadcast with x, or `torch.nn.Parameter`s; −inf and inf for no bound. Also arguments of the call.
        differentiation: `Implicit(weakly_active=...)` chooses the side for entries that are just on a bound.

    Shapes:
        x, lower, upper (…, n) -> y (…, n). `.solution(x)`: inequality_multipliers (…, 2n) of lower − y ≤ 0, then of y − upper ≤ 0.

    Raises:
        ValueError, TypeError: lower above upper, NaN, shapes that do not fit.

    Example:
        >>> BoxProjection(0.0, torch.tensor([1.0, 2.0]))(torch.tensor([[3.0, 3.0], [-1.0, 0.5]]))
        tensor([[1.0000, 2.0000],
                [0.0000, 0.5000]])

    Source: Parikh & Boyd, "Proximal algorithms", Found. Trends Optim. 1(3), 2014.
    """

    arguments = ("x", "lower", "upper")
    ranks = (1, 1, 1)
    constraint_structure = Constant(Sparse())

    def __init__(self, lower: float | Tensor | None = None, upper: float | Tensor | None = None, *, differentiation: Differentiation | None = None) -> None:
        super().__init__(differentiation=differentiation)
        self._keep("lower", lower)
        self._keep("upper", upper)

    def _read(self, inputs: tuple[Any, ...]) -> Call:
        owner, x = type(self).__name__, inputs[0]
        if not isinstance(x, Tensor) or not x.ndim:
            raise TypeError(f"{owner}: x must be a tensor (…, n), got {'a number' if isinstance(x, Tensor) else type(x).__name__}")
        named: dict[str, tuple[Any, int]] = {"x": (x, 1)}
        for name, value, free in zip(("lower", "upper"), inputs[1:], (-torch.inf, torch.inf), strict=True):
            given = getattr(self, name) if value is None else value
            bound = as_number(free if given is None else given, x)
            if isinstance(bound, Tensor):
                if bound.ndim and bound.shape[-1] not in (1, x.shape[-1]):
                    raise ValueError(f"{owner}: {name} of shape {tuple(bound.shape)} does not broadcast with x of shape {tuple(x.shape)}")
                bound = bound.expand(*bound.shape[:-1], x.shape[-1])
            named[name] = (bound, 1)
        lead, tensors = read(owner, named)
        return Call(lead, (tensors[0].expand(lead.batch, -1), *tensors[1:]))

    def _inequalities(self, x: Tensor, lower: Tensor, upper: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        gaps = ((lower - y, lower), (y - upper, upper))
        return torch.cat([torch.where(bound.isinf(), -1.0, gap) for gap, bound in gaps], 1)

    def _answer(self, x: Tensor, lower: Tensor, upper: Tensor) -> Answer:
        self._check_finite(x)
        reject(type(self).__name__, ~(lower <= upper).all(1), "lower must not exceed upper, and neither may be NaN")
        reject(type(self).__name__, (lower == torch.inf).any(1) | (upper == -torch.inf).any(1), "lower must be below inf, and upper above −inf")
        return clipped(x, lower, upper, self._held)
