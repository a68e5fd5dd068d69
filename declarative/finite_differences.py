"""Finite differences of solved problems: central or one-sided, with the step and the trust that the noise of the solves allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[[Sequence[Tensor]], Tensor]  # leaves -> values (r,), each differentiated by itself


@dataclass(frozen=True)
class Direction:
    """Move leaf `position` along `vector`."""

    position: int
    vector: Tensor

    def moved(self, leaves: Sequence[Tensor], t: float) -> list[Tensor]:
        """The leaves, t further along."""
        return [leaf + t * self.vector if k == self.position else leaf for k, leaf in enumerate(leaves)]


def noise_and_step(function: Function, leaves: Sequence[Tensor], direction: Direction) -> tuple[Tensor, float]:
    """(r,) the noise of the values, and the step length that suits it.

    Over a move of 1e-7 a smooth function has a second difference below rounding; what there is of it is noise. A formula of
    fourth order is best at a step of noise^(1/5), in units of the leaf.
    """
    leaf = leaves[direction.position]
    largest = float(direction.vector.abs().max().clamp_min(1e-30)) if direction.vector.numel() else 1.0
    size = (1 + float(leaf.abs().max() if leaf.numel() else 0.0)) / largest
    near = [function(direction.moved(leaves, t * 1e-7 * size)).detach() for t in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    rounding = torch.finfo(near[0].dtype).eps * near[2].abs().clamp_min(1)
    noise = torch.maximum(torch.maximum((near[0] - 2 * near[2] + near[4]).abs(), (near[1] - 2 * near[2] + near[3]).abs()), rounding)
    relative = float((noise / near[2].abs().clamp_min(1)).nan_to_num(0.0).max()) if noise.numel() else 0.0
    return noise, min(max(relative**0.2, 2e-4), 1e-2) * size


def differentiate(
    function: Function, leaves: Sequence[Tensor], direction: Direction, noise: Tensor, step: float, sides: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(r,) derivatives along a direction, and how far each can be trusted.

    Two step lengths, combined by Richardson's rule; the trust is what separates the two, less what their order of accuracy
    explains, and the noise over the step. A kink within reach shows as a large difference.

    Args:
        sides: (r,) 0 for a central difference, 1 or -1 for one that looks to that side only.
    """

    def at(t: float) -> Tensor:
        return function(direction.moved(leaves, t * step)).detach()

    ahead, behind, half_ahead, half_behind = at(1.0), at(-1.0), at(0.5), at(-0.5)
    coarse, fine = (ahead - behind) / (2 * step), (half_ahead - half_behind) / step
    if sides is not None and bool((sides != 0).any()):
        here, centre = at(0.0), sides == 0
        for side, whole, half, twice in ((1, ahead, half_ahead, at(2.0)), (-1, behind, half_behind, at(-2.0))):
            mine = (sides == side) & ~centre
            coarse = torch.where(mine, side * (4 * whole - twice - 3 * here) / (2 * step), coarse)
            fine = torch.where(mine, side * (4 * half - whole - 3 * here) / step, fine)
    value = fine + (fine - coarse) / 3
    apart = (fine - coarse).abs()
    return value, torch.minimum(apart * apart / value.abs().clamp_min(1e-30), apart) + 10 * noise / step
