"""From the caller's shapes to point sets (b, C, N), and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from declarative.layers.arguments import fits
from declarative.layers.pooling.cloud import Cloud
from declarative.layers.pooling.penalty import Penalty, Value
from declarative.node import HALF

Dims = int | tuple[int, ...] | None


@dataclass(frozen=True, eq=False)
class Read:
    """The arguments of one call.

    Args:
        cloud: the problem, a differentiable function of what the caller passed.
        kept: the sizes of the dimensions that stay: (…, C).
        pooled: those that are pooled.
        places: where they stood.
        scalar: whether each channel is a problem of its own.
        dtype: what the caller works in.
    """

    cloud: Cloud
    kept: tuple[int, ...]
    pooled: tuple[int, ...]
    places: tuple[int, ...]
    scalar: bool
    dtype: torch.dtype

    @property
    def lead(self) -> tuple[int, ...]:
        """The shape of one number for each problem."""
        return self.kept if self.scalar else self.kept[:-1]

    def shaped(self, u: Tensor, keepdim: bool = False) -> Tensor:
        """u (b, C) as (…, C), in the caller's precision; pooled dimensions of size 1 where they stood if `keepdim`."""
        sizes = list(self.kept)
        if keepdim:
            for place in sorted(self.places):
                sizes.insert(place, 1)
        return u.to(self.dtype).reshape(sizes)

    def for_each(self, value: Tensor) -> Tensor:
        """(b,) or (b, N) with the leading dimensions of the problems."""
        value = value.to(self.dtype) if value.is_floating_point() else value
        return value.reshape((*self.lead, *value.shape[1:]))

    def flat(self, name: str, u: Any) -> Tensor:
        """A start (…, C) as (b, C)."""
        if not isinstance(u, Tensor):
            raise TypeError(f"{name} must be a tensor {self.kept} or a Solution of this layer, got {type(u).__name__}")
        shapes = (self.kept, tuple(self.shaped(self.cloud.x[:, :, 0].detach(), keepdim=True).shape))
        if tuple(u.shape) not in shapes:
            raise ValueError(f"{name} must have shape {self.kept}, got {tuple(u.shape)}")
        return u.detach().to(self.cloud.x).reshape(self.cloud.x.shape[:2])


def read(x: Any, weights: Any, mask: Any, penalty: Penalty, values: tuple[Value, ...], dims: Dims, scalar: bool) -> Read:
    """Check kinds and shapes, bring the pooled dimensions last, make masks weights, broadcast parameters."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x must be a floating tensor (…, C, N…), got {x.dtype if isinstance(x, Tensor) else type(x).__name__}")
    dtype = x.dtype
    places = _places(x, dims, scalar)
    stays = tuple(d for d in range(x.ndim) if d not in places)
    kept, pooled = tuple(x.shape[d] for d in stays), tuple(x.shape[d] for d in places)
    channel = stays[-1] if stays else None
    count, points = _product(kept if scalar else kept[:-1]), _product(pooled)
    channels = 1 if scalar else kept[-1]
    if not points or not channels:
        raise ValueError(f"x of shape {tuple(x.shape)} has no {'points' if channels else 'channels'} to pool")
    if dtype in HALF:
        x = x.float()
    per_point = None if weights is None else _per_point("weights", _same_kind("weights", weights, x, dtype), x, channel, scalar)
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(f"mask must be a bool tensor, True where there is a point, got {mask.dtype if isinstance(mask, Tensor) else type(mask).__name__}")
        there = _per_point("mask", mask, x, channel, scalar)
        x = torch.where(there if channel is None or there.shape == x.shape else there.unsqueeze(channel), x, 0.0)
        per_point = there.to(x.dtype) if per_point is None else torch.where(there, per_point, 0.0)
    order = (*stays, *places)
    flat = (x if order == tuple(range(x.ndim)) else x.permute(order)).reshape(count, channels, points)
    if per_point is not None:
        per_point = _flat_weights(per_point, x, channel, scalar, order).reshape(count, points)
    lead = kept if scalar else kept[:-1]
    numbers = tuple(_value(name, v, flat, dtype, lead, count, penalty.own_shapes) for name, v in _named(penalty, values))
    return Read(Cloud(flat, per_point, penalty, numbers), kept, pooled, places, scalar, dtype)


def check(cloud: Cloud) -> None:
    """What only the numbers tell."""
    if cloud.weights is not None and not bool((torch.isfinite(cloud.weights) & (cloud.weights >= 0)).all()):
        raise ValueError(f"weights must be finite and not negative, got {float(cloud.weights.nan_to_num(-torch.inf).min()):g} among them")
    cloud.penalty.check(**dict(_named(cloud.penalty, cloud.values)))


def _named(penalty: Penalty, values: tuple[Value, ...]) -> list[tuple[str, Value]]:
    names = penalty.names or tuple(f"parameter {k}" for k in range(len(values)))
    return list(zip(names, values, strict=True))


def _places(x: Tensor, dims: Dims, scalar: bool) -> tuple[int, ...]:
    if dims is None:
        if x.ndim < 2:
            raise ValueError(f"x must have shape (C, N) or (b, C, N…), got {tuple(x.shape)}; dims says what to pool otherwise")
        return tuple(range(min(2, x.ndim - 1), x.ndim))
    chosen = (dims,) if isinstance(dims, int) else dims
    for d in chosen:
        if not -x.ndim <= d < x.ndim:
            raise ValueError(f"dims={dims} is to pool dimension {d} of x, which has shape {tuple(x.shape)}")
    places = tuple(sorted({d % x.ndim for d in chosen}))
    if len(places) != len(chosen):
        raise ValueError(f"dims={dims} names a dimension of x {tuple(x.shape)} twice")
    if len(places) == x.ndim and not scalar:
        raise ValueError(f"dims={dims} leaves no channels of x {tuple(x.shape)}; use scalar=True to pool numbers")
    return places


def _product(sizes: tuple[int, ...]) -> int:
    return int(torch.Size(sizes).numel())


def _same_kind(name: str, value: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if not fits(value, dtype, x.dtype):
        raise TypeError(f"{name} has dtype {value.dtype}, x has {dtype}; convert one of them")
    if value.device != x.device:
        raise ValueError(f"{name} is on {value.device}, x on {x.device}; move one of them")
    return value.to(x.dtype)


def _per_point(name: str, value: Tensor, x: Tensor, channel: int | None, scalar: bool) -> Tensor:
    """Expanded to x's shape without the channels, or, where each channel is on its own and the value has as many dimensions, with them."""
    whole = tuple(x.shape)
    without = whole if channel is None else (*whole[:channel], *whole[channel + 1 :])
    shape = whole if scalar and value.ndim == x.ndim else without
    try:
        return value.expand(shape)
    except RuntimeError as error:
        raise ValueError(f"{name} must broadcast to {shape}, one for each point of x {whole}, got {tuple(value.shape)}") from error


def _flat_weights(value: Tensor, x: Tensor, channel: int | None, scalar: bool, order: tuple[int, ...]) -> Tensor:
    """With the dimensions in the order of the flattened x."""
    if channel is not None and value.ndim < x.ndim:
        value = value.unsqueeze(channel)
        if scalar:
            value = value.expand(x.shape)
    return value.permute(order)


def _value(name: str, value: Value, x: Tensor, dtype: torch.dtype, lead: tuple[int, ...], count: int, own_shapes: bool) -> Value:
    if not isinstance(value, Tensor):
        return value
    value = _same_kind(f"the penalty's {name}", value, x, dtype)
    if own_shapes:
        return value
    try:
        return value.expand(lead).reshape(count, 1)
    except RuntimeError as error:
        raise ValueError(f"the penalty's {name} must broadcast to {lead}, one for each pooled point, got {tuple(value.shape)}") from error
