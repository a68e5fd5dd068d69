"""vmap with little overhead: the batching that every evaluation of a statement goes through.

torch.func.vmap spends 60–100 µs a call on pytrees and argument checks; the level that it opens costs 10 µs. At m = 10
that was half of a whole backward pass. Here arguments and results are plain tuples of tensors, so the level is opened
directly, as torch.func.vmap itself does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_levels: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]


def batched(
    function: Callable[..., tuple[Tensor, ...]], in_dims: Sequence[int | None], size: int, arguments: Sequence[Tensor], above: int = 0
) -> tuple[Tensor, ...]:
    """Map a function over slices of its arguments, results stacked in front: torch.func.vmap(function, in_dims)(*arguments).

    Args:
        in_dims: for each argument its batch dimension, of length `size`, or None.
        above: the level gets a number larger than this. A tensor that a closure still holds from a level of that number would
            otherwise pass for one of this batch, silently.
    """
    level = _levels._vmap_increment_nesting(size, "error")
    if level <= above:
        try:
            return batched(function, in_dims, size, arguments, above)
        finally:
            _levels._vmap_decrement_nesting()
    try:
        inside = [a if dim is None else _levels._add_batch_dim(a, dim, level) for a, dim in zip(arguments, in_dims, strict=True)]
        return tuple(_levels._remove_batch_dim(result, level, size, 0) for result in function(*inside))
    finally:
        _levels._vmap_decrement_nesting()
