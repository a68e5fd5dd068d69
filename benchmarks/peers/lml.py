"""The limited multi-label projection by bracketing, as its authors describe it, written anew.

σ(x + ν) sums to k at one ν. The bracket of ν is cut into ten pieces at a time, on all of which the sum is evaluated, until it is narrower than a
tolerance; the derivative is that of u = σ(x + ν) with Σu = k. Source: Amos, Koltun & Kolter, "The limited multi-label projection layer", 2019.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PIECES, MOST, MARGIN = 10, 100, 7.0


def lml(x: Tensor, k: int, tolerance: float) -> Tensor:
    """(b, n) -> (b, n), differentiable once."""
    return _LML.apply(x, k, tolerance)  # pyright: ignore[reportReturnType]


class _LML(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int, tolerance: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = x.detach()
        ordered = x.sort(1, descending=True).values
        low, high = -ordered[:, k - 1] - MARGIN, -ordered[:, k] + MARGIN
        fractions = torch.linspace(0, 1, PIECES, dtype=x.dtype, device=x.device)
        for _ in range(MOST):
            width = high - low
            if bool((width <= tolerance).all()):
                break
            shifts = low.unsqueeze(1) + width.unsqueeze(1) * fractions
            below = (x.unsqueeze(1) + shifts.unsqueeze(2)).sigmoid().sum(2) < k
            last = (below.sum(1) - 1).clamp(0, PIECES - 2).unsqueeze(1)
            low, high = shifts.gather(1, last).squeeze(1), shifts.gather(1, last + 1).squeeze(1)
        u = (x + 0.5 * (low + high).unsqueeze(1)).sigmoid()
        ctx.save_for_backward(u)
        return u

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (u,) = ctx.saved_tensors
        density = u * (1 - u)
        mean = (density * cotangent).sum(1, keepdim=True) / density.sum(1, keepdim=True)
        return density * (cotangent - mean), None, None
