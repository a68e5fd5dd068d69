"""What all layers do with their arguments, before they look at the numbers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from declarative.node import InDims
from declarative.node import to_front as brought_to_front


def fits(value: Tensor, dtype: torch.dtype, computed: torch.dtype) -> bool:
    """Whether a further argument's dtype is the caller's, or that in which half precisions are computed (parameters under autocast)."""
    return value.dtype in (dtype, computed)


def to_front(inputs: tuple[Tensor | None, ...], in_dims: InDims) -> tuple[Tensor | None, ...]:
    """The inputs with the dimension that `in_dims` calls the batch first; None for inputs that are not given. Single numbers have no batch dimension."""
    dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(inputs)
    given = sum(x is not None for x in inputs)
    if len(dims) < given:
        raise ValueError(f"in_dims has {len(dims)} entries for {given} inputs; give one int or None for each")
    moved = enumerate(zip(inputs, (*dims, *([0] * len(inputs))), strict=False))
    return tuple(brought_to_front(f"input {i}", x, dim) if isinstance(x, Tensor) and x.ndim else x for i, (x, dim) in moved)


def mask_to_front(mask: Any, in_dims: InDims) -> Any:
    """A mask as the first input, which it belongs to."""
    first = in_dims[0] if isinstance(in_dims, tuple) and in_dims else in_dims
    return brought_to_front("mask", mask, first) if isinstance(mask, Tensor) and not isinstance(first, tuple) else mask


def present(inputs: tuple[Tensor | None, ...], names: tuple[str, ...]) -> tuple[Tensor, ...]:
    """For the generic engine, which knows inputs by position: those up to the last that is given."""
    given = [x for x in inputs if x is not None]
    missing = [name for name, x in zip(names, inputs[: len(given)], strict=False) if x is None]
    if missing:
        raise TypeError(f"without its structure the layer needs {' and '.join(missing)} where the inputs after are given")
    return tuple(given)


def positive_int(name: str, value: Any) -> int:
    """An int, 1 or more, or an error."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive int, got {value!r}")
    return value


def positive_number(name: str, value: Any) -> float:
    """A number between 0 and ∞, or an error."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return float(value)


def tolerance_or_none(owner: str, value: Any) -> float | None:
    """A tolerance, None for the default, or an error."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1):
        raise ValueError(f"{owner}: tolerance must be a number between 0 and 1, got {value!r}")
    return value
