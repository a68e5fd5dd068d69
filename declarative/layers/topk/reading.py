"""Logits and k: shapes, ranges and the selected dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from declarative.errors import name_samples
from declarative.node import HALF

K = int | Tensor


@dataclass(frozen=True, eq=False)
class Read:
    """The arguments of one call.

    Args:
        x: logits (b, n), a differentiable function of what the caller passed.
        k: (b,) integers, or one for all.
        lead: the dimensions that b stands for.
        dim: where the n entries stood.
        dtype: what the caller works in; half precisions are computed in float32.
    """

    x: Tensor
    k: K
    lead: tuple[int, ...]
    dim: int
    dtype: torch.dtype

    def counts(self) -> Tensor:
        """k as numbers (b,)."""
        return numbers_of(self.k, self.x)

    def shaped(self, values: Tensor) -> Tensor:
        """(b, n) in the caller's shape and precision."""
        whole = values.to(self.dtype).reshape((*self.lead, values.shape[1]))
        return whole if self.dim in (-1, len(self.lead)) else whole.movedim(-1, self.dim)

    def for_each(self, values: Tensor) -> Tensor:
        """(b, …) with the leading dimensions."""
        return (values.to(self.dtype) if values.is_floating_point() else values).reshape((*self.lead, *values.shape[1:]))


def read(x: Any, k: Any, dim: int) -> Read:
    """Check kinds and shapes, bring the selected dimension last."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"logits must be a floating tensor (…, n), got {x.dtype if isinstance(x, Tensor) else type(x).__name__}")
    if isinstance(dim, bool) or not isinstance(dim, int) or not -x.ndim <= dim < x.ndim:
        raise ValueError(f"dim={dim} is no dimension of logits of shape {tuple(x.shape)}")
    dtype = x.dtype
    moved = (x.float() if dtype in HALF else x).movedim(dim, -1)
    lead, n = tuple(moved.shape[:-1]), moved.shape[-1]
    if not n:
        raise ValueError(f"logits of shape {tuple(x.shape)} have no entries along dim={dim}")
    flat = moved.reshape(int(torch.Size(lead).numel()), n)
    if isinstance(k, Tensor):
        return Read(flat, counted(k, lead, n, flat), lead, dim, dtype)
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k must be an int or an integer tensor, got {k!r}")
    if not 0 <= k <= n:
        raise ValueError(f"k must be between 0 and the number of entries, {n}, got {k}")
    return Read(flat, k, lead, dim, dtype)


def check_k(k: Any) -> None:
    """What can be said about k before the logits are there."""
    if isinstance(k, Tensor):
        if k.is_floating_point() or k.dtype == torch.bool or k.is_complex():
            raise TypeError(f"k must be an integer tensor, got {k.dtype}")
    elif isinstance(k, bool) or not isinstance(k, int) or k < 0:
        raise ValueError(f"k must be an int, 0 or more, or an integer tensor, got {k!r}")


def counted(k: Tensor, lead: tuple[int, ...], n: int, like: Tensor) -> Tensor:
    """k (b,) for samples with these leading dimensions, in range."""
    check_k(k)
    try:
        # int64: n does not fit into the small kinds, and torch compares in the tensor's own
        counts = k.to(like.device, torch.int64).expand(lead).reshape(-1)
    except RuntimeError as error:
        raise ValueError(f"k must broadcast to {lead}, one for each sample, got {tuple(k.shape)}") from error
    if bool(((counts < 0) | (counts > n)).any()):
        bad = ((counts < 0) | (counts > n)).nonzero().squeeze(1).tolist()
        raise ValueError(f"k must be between 0 and the number of entries, {n}: {name_samples(bad, counts.shape[0])}, {int(counts[bad[0]])} in the first")
    return counts


def largest(k: K) -> int:
    """The largest k of a batch."""
    return k if isinstance(k, int) else int(k.max()) if k.numel() else 0


def numbers_of(k: K, like: Tensor) -> Tensor:
    """k as numbers (b,), for logits (b, n)."""
    return torch.full_like(like[:, 0], k) if isinstance(k, int) else k.to(like.dtype)


def for_batch(values: Tensor, batch: int) -> Tensor:
    """One value for each sample (b,), for a batch in which the samples come several times: several of each, or folded by vmap."""
    return values if values.numel() == batch else values.reshape(-1).repeat(batch // max(1, values.numel()))


def check_finite(x: Tensor, name: str = "logits") -> None:
    """A ValueError that names samples with NaN or inf."""
    bad = ~torch.isfinite(x.sum(1))
    if bool(bad.any()):
        bad = ~torch.isfinite(x).all(1)  # a sum may overflow
        if bool(bad.any()):
            raise ValueError(f"{name} must be finite: NaN or inf in {name_samples(bad.nonzero().squeeze(1).tolist(), x.shape[0])}")


def reference_of(x: Tensor, k: K) -> Tensor:
    """The kth largest of each row (b, 1)."""
    values = x.topk(max(1, largest(k)), dim=1).values
    return values[:, -1:] if isinstance(k, int) else values.gather(1, (k - 1).clamp_min(0).unsqueeze(1))


def positive(temperature: Any) -> float:
    """A temperature that is a number, checked."""
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature!r}")
    return float(temperature)


def temperature_like(temperature: Any, logits: Any) -> Tensor | None:
    """The temperature of one call; a number counts as a tensor like the logits."""
    if temperature is None or isinstance(temperature, Tensor) or not isinstance(logits, Tensor):
        return temperature
    dtype = torch.float32 if logits.dtype in HALF else logits.dtype  # a number need not fit into half precision
    return torch.full((), positive(temperature), dtype=dtype, device=logits.device)
