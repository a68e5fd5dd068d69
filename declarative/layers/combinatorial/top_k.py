"""Exactly k ones at the largest logits."""

from __future__ import annotations

import torch
from torch import Tensor

from declarative.layers.combinatorial.solvers import Combinatorial
from declarative.layers.topk.reading import K, check_finite, check_k, counted, for_batch, largest

TIES = ("first", "random")


class TopK(Combinatorial):
    """y has ones at the k largest weights (in the sense "min" the smallest), zeros elsewhere: always exactly k.

    Args:
        k: an int, or an integer tensor that broadcasts with the leading dimensions.
        ties: which of equal weights are taken where not all can be: the "first", or "random" ones (by torch's global generator).

    Example:
        >>> IdentitySolver(TopK(2), projection="standardise")(torch.tensor([0.3, 0.9, 0.1, 0.9]))
        tensor([0., 1., 0., 1.])
    """

    def __init__(self, k: K, ties: str = "first") -> None:
        if ties not in TIES:
            raise ValueError(f"ties must be one of {TIES}, got {ties!r}")
        check_k(k)
        self.k, self.ties = k, ties

    def check(self, shape: tuple[int, ...], sense: str) -> None:  # noqa: ARG002
        """k ≤ n; a tensor waits for the leading dimensions."""
        if not isinstance(self.k, Tensor) and self.k > shape[0]:
            raise ValueError(f"k must be between 0 and the number of entries, {shape[0]}, got {self.k}")

    def spread(self, weights: Tensor, lead: tuple[int, ...]) -> TopK:
        """With one k for each sample."""
        return TopK(counted(self.k, lead, weights.shape[1], weights), self.ties) if isinstance(self.k, Tensor) else self

    def solve(self, weights: Tensor, sense: str) -> Tensor:
        scores = weights if sense == "max" else -weights
        return top_k(scores, self.k, self.ties)


def top_k(scores: Tensor, k: K, ties: str, generator: torch.Generator | None = None) -> Tensor:
    """(b, n) with exactly k ones in each row. The order in which `torch.topk` takes equal values is its own affair: rows with a tie at the
    boundary are sorted.
    """
    batch, n = scores.shape
    k = k if isinstance(k, int) else for_batch(k, batch)
    most = largest(k)
    result = torch.zeros_like(scores)
    if not batch:
        return result
    values, places = scores.topk(min(most + 1, n), dim=1)
    if not bool(torch.isfinite(values[:, 0] - scores.amin(1)).all()):  # cheaper than a look at all of them
        check_finite(scores)
    if not most:
        return result
    if isinstance(k, int):
        result.scatter_(1, places[:, :k], 1.0)
        tied = values[:, k - 1] == values[:, k] if k < n else torch.zeros(batch, dtype=torch.bool, device=scores.device)
    else:
        ranks = torch.arange(values.shape[1], device=scores.device)
        result.scatter_(1, places, (ranks < k.unsqueeze(1)).to(scores.dtype))
        last = (k - 1).clamp_min(0).unsqueeze(1)
        tied = (values.gather(1, last) == values.gather(1, (last + 1).clamp_max(values.shape[1] - 1))).squeeze(1) & (k > 0) & (k < n)
    if bool(tied.any()):
        rows = tied.nonzero().squeeze(1)
        result[rows] = _sorted(scores[rows], k if isinstance(k, int) else k[rows], ties, generator)
    return result


def _sorted(scores: Tensor, k: K, ties: str, generator: torch.Generator | None) -> Tensor:
    if ties == "random":
        shuffled = torch.rand(scores.shape, device=scores.device, generator=generator).argsort(dim=1)
        order = shuffled.gather(1, scores.gather(1, shuffled).argsort(dim=1, descending=True, stable=True))
    else:
        order = scores.argsort(dim=1, descending=True, stable=True)
    counts = k if isinstance(k, int) else k.unsqueeze(1)
    chosen = (torch.arange(scores.shape[1], device=scores.device).expand(scores.shape) < counts).to(scores.dtype)
    return torch.zeros_like(scores).scatter_(1, order, chosen)
