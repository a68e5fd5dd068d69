"""Central differences with an estimate of their own error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Direction:
    """Move leaf `position` along `vector`."""

    position: int
    vector: Tensor


def central_difference(function: Callable[[Sequence[Tensor]], Tensor], leaves: Sequence[Tensor], direction: Direction) -> tuple[float, float]:
    """The derivative of a scalar function along a direction, and how far it can be trusted.

    Two step lengths, combined by Richardson's rule; the estimate is what separates the two, less what their order of
    accuracy explains. A kink within reach, or a noisy function, shows as a large estimate.
    """
    leaf = leaves[direction.position]
    largest = float(direction.vector.abs().max().clamp_min(1e-30))
    size = (1 + float(leaf.abs().max() if leaf.numel() else 0.0)) / largest
    coarse, fine = (_difference(function, leaves, direction, step * size) for step in (2e-4, 1e-4))
    value = fine + (fine - coarse) / 3
    # Rounding in the values, over the step.
    noise = 1e-15 * (1 + float(function(leaves).detach().abs())) / (1e-4 * size)
    return value, min(abs(fine - coarse) ** 2 / max(abs(value), 1e-30), abs(fine - coarse)) + 10 * noise


def _difference(function: Callable[[Sequence[Tensor]], Tensor], leaves: Sequence[Tensor], direction: Direction, step: float) -> float:
    def at(t: float) -> float:
        moved = [leaf + t * direction.vector if k == direction.position else leaf for k, leaf in enumerate(leaves)]
        return float(function(moved).detach())

    return (at(step) - at(-step)) / (2 * step)
