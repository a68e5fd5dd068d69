"""Roots of increasing functions of one number, one for each sample: Newton's method inside a bracket."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def increasing_root(evaluate: Evaluate, low: Tensor, high: Tensor, start: Tensor, max_iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where the functions vanish.

    Args:
        evaluate: t (b,) -> (value, slope, done), each (b,); done says that the value is as good as zero.
        low, high: brackets (b,): the value is not positive at low and not negative at high.
        start: (b,), inside.
        max_iterations: a sample that is not done then is not converged.

    Returns:
        t, whether it is converged, and the iterations, each (b,). A step out of the bracket, or one along a slope of zero, halves the bracket.
    """
    t, result = start, start
    left = torch.ones_like(start, dtype=torch.bool)
    iterations = torch.zeros(start.shape, dtype=torch.int64, device=start.device)
    for _ in range(max_iterations):
        value, slope, done = evaluate(t)
        # A bracket that has shrunk to neighbouring numbers cannot be told from its root.
        middle = 0.5 * (low + high)
        done = done | (middle <= low) | (middle >= high)
        result = torch.where(left, t, result)
        left = left & ~done
        if not bool(left.any()):
            break
        iterations = iterations + left
        low, high = torch.where(value < 0, t, low), torch.where(value > 0, t, high)
        middle, step = 0.5 * (low + high), t - value / slope
        t = torch.where((step > low) & (step < high), step, middle)  # NaN is in no bracket
    return result, ~left, iterations
