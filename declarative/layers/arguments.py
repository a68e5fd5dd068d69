"""What all layers do with their arguments, before they look at the numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from declarative.node import InDims

HALF = (torch.float16, torch.bfloat16)
"""Precisions that are computed in float32."""


def fits(value: Tensor, dtype: torch.dtype, computed: torch.dtype) -> bool:
    """Whether a further argument's dtype is the caller's, or that in which half precisions are computed (parameters under autocast)."""
    return value.dtype in (dtype, computed)


def to_front(inputs: tuple[Tensor | None, ...], in_dims: InDims) -> tuple[Tensor | None, ...]:
    """The inputs with the dimension that `in_dims` calls the batch first; None for inputs that are not given."""
    dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(inputs)
    given = sum(x is not None for x in inputs)
    if len(dims) < given:
        raise ValueError(f"in_dims has {len(dims)} entries for {given} inputs; give one int or None for each")
    return tuple(x if not dim or x is None or not x.ndim else x.movedim(dim, 0) for x, dim in zip(inputs, (*dims, *([0] * len(inputs))), strict=False))


def present(inputs: tuple[Tensor | None, ...], names: tuple[str, ...]) -> tuple[Tensor, ...]:
    """For the generic engine, which knows inputs by position: those up to the last that is given."""
    given = [x for x in inputs if x is not None]
    missing = [name for name, x in zip(names, inputs[: len(given)], strict=False) if x is None]
    if missing:
        raise TypeError(f"without its structure the layer needs {' and '.join(missing)} where the inputs after are given")
    return tuple(given)
