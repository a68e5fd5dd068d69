"""Two things that are done to batches of vectors everywhere."""

from __future__ import annotations

import torch
from torch import Tensor


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """(b, r, c), (b, c) -> (b, r): one operation where `@` takes five."""
    return torch.bmm(matrix, vector.unsqueeze(-1)).squeeze(-1)


def golden_turns(like: Tensor) -> Tensor:
    """(n,) numbers in (−1, 1) for the last dimension of `like`: cosines of multiples of the golden angle.

    A direction to try a statement in: no pattern that one is likely to have (sums, differences) is blind to it.
    """
    return (2.399963 * torch.arange(like.shape[-1], dtype=like.dtype, device=like.device)).cos()
