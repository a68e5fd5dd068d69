"""What is done to batches of vectors and matrices everywhere."""

from __future__ import annotations

import torch
from torch import Tensor


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """(b, r, c), (b, c) -> (b, r): one operation where `@` takes five."""
    return torch.bmm(matrix, vector.unsqueeze(-1)).squeeze(-1)


def joined(first: Tensor, second: Tensor) -> Tensor:
    """(b, r), (b, s) -> (b, r + s): no operation where one of the two has no columns."""
    if not first.shape[1]:
        return second
    return torch.cat([first, second], 1) if second.shape[1] else first


def rank_tolerance(size: int, dtype: torch.dtype) -> float:
    """What a singular value may be, relative to the largest, and still be rounding: errors of the entries of a (size, size) matrix do not add up,
    so that their norm is about √size of them.
    """
    return 10 * max(size, 1) ** 0.5 * torch.finfo(dtype).eps


def golden_turns(like: Tensor) -> Tensor:
    """(n,) numbers in (−1, 1) for the last dimension of `like`: cosines of multiples of the golden angle.

    A direction to try a statement in: no pattern that one is likely to have (sums, differences) is blind to it.
    """
    return (2.399963 * torch.arange(like.shape[-1], dtype=like.dtype, device=like.device)).cos()
