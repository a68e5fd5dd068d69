"""Natural shapes: arguments with any leading dimensions, which broadcast, as one flat batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from declarative.layers.arguments import fits
from declarative.node import HALF


@dataclass(frozen=True)
class Lead:
    """What all arguments of one call have in common.

    Args:
        shape: the leading dimensions, after broadcasting.
        dtype: what the caller works in; half precisions are computed in float32.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def batch(self) -> int:
        """b, the samples that the leading dimensions stand for."""
        return math.prod(self.shape)

    def shaped(self, values: Tensor) -> Tensor:
        """(b, …) with the leading dimensions, numbers in the caller's precision."""
        values = values.to(self.dtype) if values.is_floating_point() else values
        return values.reshape((*self.shape, *values.shape[1:]))

    def flat(self, value: Tensor, rank: int) -> Tensor:
        """(…, *instance of this rank) as (b, *instance); (1, *instance) where all samples share it."""
        value = value.float() if value.dtype in HALF else value
        own, instance = value.shape[: value.ndim - rank], value.shape[value.ndim - rank :]
        if math.prod(own) == 1 and self.shape:
            return value.reshape(1, *instance)
        return value.expand((*self.shape, *instance)).reshape(self.batch, *instance)


def as_number(value: Any, like: Tensor) -> Any:
    """A Python number as a tensor that goes with `like`; it need not fit into half precision."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return torch.full((), value, dtype=torch.float32 if like.dtype in HALF else like.dtype, device=like.device)


def matrix(owner: str, name: str, value: Any, rows: str, columns: str) -> Tensor:
    """The argument, a matrix (…, rows, columns) for each sample; square where both have one name."""
    if not isinstance(value, Tensor) or value.ndim < 2 or (rows == columns and value.shape[-2] != value.shape[-1]):
        came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{owner}: {name} must be a tensor (…, {rows}, {columns}), got {came}")
    return value


def read(owner: str, named: dict[str, tuple[Any, int]]) -> tuple[Lead, list[Tensor]]:
    """Check kinds, dtypes and devices, broadcast leading dimensions.

    Args:
        owner: the layer, for messages.
        named: name -> (argument, the number of dimensions of one instance of it). The first argument decides dtype and device.
    """
    first = next(iter(named.values()))[0]
    for name, (value, rank) in named.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            came = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{owner}: {name} must be a tensor with a floating dtype, got {came}; convert it, for example with .float()")
        if value.ndim < rank:
            wanted = ("a number", "a vector (…, n)", "a matrix (…, m, n)")[rank]
            raise ValueError(f"{owner}: {name} must be {wanted} for each sample, got shape {tuple(value.shape)}")
        if value.device != first.device or not fits(value, first.dtype, torch.float32 if first.dtype in HALF else first.dtype):
            raise TypeError(f"{owner}: {name} is {value.dtype} on {value.device}, {next(iter(named))} is {first.dtype} on {first.device}; convert one of them")
    shape: tuple[int, ...] = ()
    for name, (value, rank) in named.items():
        own = tuple(value.shape[: value.ndim - rank])
        try:
            shape = tuple(torch.broadcast_shapes(shape, own))
        except RuntimeError as error:
            raise ValueError(
                f"{owner}: {name} of shape {tuple(value.shape)} has leading dimensions {own}, which do not broadcast with {shape}, those of the "
                "arguments before it; insert dimensions of size 1, or leave them out where all samples share it"
            ) from error
    lead = Lead(shape, first.dtype)
    return lead, [lead.flat(value, rank) for value, rank in named.values()]
