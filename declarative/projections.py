"""Nearest points of simple sets, in closed form: what `Projected` keeps y in.

Each object maps y (b, m) to the nearest point of its set, sample by sample, exactly and differentiably.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from declarative.typing import Variables


@runtime_checkable
class Projection(Protocol):
    """A closed convex set, known by the nearest points in it. Any object with this method serves `Projected`.

    Shapes:
        y (b, m), flat, in and out: same dtype, same device.

    Example:
        >>> class Mean:  # all entries equal
        ...     def project(self, y): return y.mean(1, keepdim=True).expand_as(y)
        >>> isinstance(Mean(), Projection)
        True
    """

    def project(self, y: Variables) -> Variables:
        """(b, m) -> (b, m): the nearest point of the set, for each sample."""
        ...


@dataclass(frozen=True)
class NonNegative:
    """y ≥ 0: negative entries become zero.

    Shapes:
        y (b, m) -> (b, m).

    Example:
        >>> NonNegative().project(torch.tensor([[-1.0, 2.0]]))
        tensor([[0., 2.]])

    Source: Parikh & Boyd, "Proximal algorithms", Found. Trends Optim. 1(3), 2014.
    """

    def project(self, y: Variables) -> Variables:
        return y.clamp_min(0)


@dataclass(frozen=True, eq=False)
class Box:
    """lower ≤ y ≤ upper: each entry is clipped.

    Args:
        lower, upper: in the units of y: numbers, or tensors (m,) or (1, m) that all samples share; −inf and inf for no bound.

    Shapes:
        y (b, m) -> (b, m).

    Raises:
        TypeError, ValueError: bounds that are not numbers or tensors of that shape, that are NaN, or that leave nothing between them.

    Example:
        >>> Box(-1.0, 1.0).project(torch.tensor([[-3.0, 0.5]]))
        tensor([[-1.0000,  0.5000]])

    Source: Parikh & Boyd, "Proximal algorithms", Found. Trends Optim. 1(3), 2014.
    """

    lower: float | Tensor
    upper: float | Tensor

    def __post_init__(self) -> None:
        for name in ("lower", "upper"):
            value = getattr(self, name)
            if not isinstance(value, int | float | Tensor):
                raise TypeError(f"Box({name}=...) must be a number or a tensor (m,), got {value!r}")
            if isinstance(value, Tensor) and (value.ndim > 2 or (value.ndim == 2 and value.shape[0] != 1)):
                raise ValueError(f"Box({name}=...) must be a number or a tensor (m,) shared by the batch, got shape {tuple(value.shape)}")
        lower, upper = torch.as_tensor(self.lower), torch.as_tensor(self.upper)
        if not bool((lower <= upper).all()):
            raise ValueError(f"Box(lower, upper) is empty or has a NaN: lower must not exceed upper, got {self.lower!r} and {self.upper!r}")

    def project(self, y: Variables) -> Variables:
        return torch.minimum(torch.maximum(y, _like(y, self.lower)), _like(y, self.upper))


@dataclass(frozen=True)
class Simplex:
    """y ≥ 0 with Σ y = total.

    Args:
        total: in the units of y, positive and finite.

    Shapes:
        y (b, m) -> (b, m).

    Raises:
        TypeError, ValueError: a total that is no number, or not positive and finite.

    Example:
        >>> Simplex().project(torch.tensor([[1.0, 0.0, 0.5]]))
        tensor([[0.7500, 0.0000, 0.2500]])

    Source: Held, Wolfe & Crowder, "Validation of subgradient optimization", Math. Programming 6, 1974: sort, and subtract the
    one threshold under which the positive parts sum to the total.
    """

    total: float = 1.0

    def __post_init__(self) -> None:
        _positive("Simplex", "total", self.total)

    def project(self, y: Variables) -> Variables:
        # Less the largest first: what is summed is then of the size of `total`, whatever the size of y.
        shifted = y - y.amax(1, keepdim=True)
        ordered = shifted.sort(1, descending=True).values
        counts = torch.arange(1, y.shape[1] + 1, dtype=y.dtype, device=y.device)
        thresholds = (ordered.cumsum(1) - self.total) / counts
        # At least one, or NaN would have none.
        support = (ordered > thresholds).sum(1, keepdim=True).clamp_min(1)
        return (shifted - thresholds.gather(1, support - 1)).clamp_min(0)


@dataclass(frozen=True, eq=False)
class Ball:
    """‖y − center‖ ≤ radius, in the Euclidean norm: points outside are pulled straight to the centre.

    Args:
        radius: in the units of y, positive and finite.
        center: a number or a tensor (m,) that all samples share.

    Shapes:
        y (b, m) -> (b, m).

    Raises:
        TypeError, ValueError: a radius that is no positive finite number, a centre that is no number or tensor (m,).

    Example:
        >>> Ball(5.0).project(torch.tensor([[6.0, 8.0], [1.0, 1.0]]))
        tensor([[3., 4.],
                [1., 1.]])

    Source: Parikh & Boyd, "Proximal algorithms", Found. Trends Optim. 1(3), 2014.
    """

    radius: float = 1.0
    center: float | Tensor = 0.0

    def __post_init__(self) -> None:
        _positive("Ball", "radius", self.radius)
        if not isinstance(self.center, int | float | Tensor):
            raise TypeError(f"Ball(center=...) must be a number or a tensor (m,), got {self.center!r}")
        if isinstance(self.center, Tensor) and self.center.ndim > 1:
            raise ValueError(f"Ball(center=...) must be a number or a tensor (m,) shared by the batch, got shape {tuple(self.center.shape)}")

    def project(self, y: Variables) -> Variables:
        center = _like(y, self.center)
        away = y - center
        distance = torch.linalg.vector_norm(away, dim=1, keepdim=True)
        outside = distance > self.radius
        # The distance of points inside is not divided by: at the centre its derivative is NaN.
        scale = self.radius / torch.where(outside, distance, 1.0)
        return torch.where(outside, center + scale * away, y)


def _like(y: Tensor, value: float | Tensor) -> Tensor:
    """A number is rounded once, to the dtype of y; by way of torch's default dtype it would be rounded to single precision."""
    return torch.as_tensor(value, dtype=y.dtype, device=y.device)


def _positive(name: str, argument: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name}({argument}=...) must be a number, got {value!r}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name}({argument}=...) must be positive and finite, got {value!r}")
