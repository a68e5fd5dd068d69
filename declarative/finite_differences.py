"""Finite differences of solved problems: central or one-sided, with the step and the trust that the noise of the solves allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_HALVINGS = 10
_CLOSE_ENOUGH = 1e-9

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
    """(r,) the noise of the values, and the step length to begin with.

    Over a move of 1e-7 a smooth function has third and fourth differences below rounding; what there is of them is noise. A
    formula of fourth order is best at a step of noise^(1/5), in units of the leaf.
    """
    leaf = leaves[direction.position]
    largest = float(direction.vector.abs().max().clamp_min(1e-30)) if direction.vector.numel() else 1.0
    size = (1 + float(leaf.abs().max() if leaf.numel() else 0.0)) / largest
    far_behind, behind, here, ahead, far_ahead = (function(direction.moved(leaves, t * 1e-7 * size)).detach() for t in (-1.0, -0.5, 0.0, 0.5, 1.0))
    third = far_ahead - far_behind - 2 * (ahead - behind)
    fourth = far_ahead + far_behind - 4 * (ahead + behind) + 6 * here
    rounding = torch.finfo(here.dtype).eps * here.abs().clamp_min(1)
    noise = torch.maximum(torch.maximum(third.abs(), fourth.abs()) / 4, rounding)
    relative = float((noise / here.abs().clamp_min(1)).nan_to_num(0.0).max()) if noise.numel() else 0.0
    return noise, min(max(relative**0.2, 2e-4), 1e-2) * size


def differentiate(
    function: Function, leaves: Sequence[Tensor], direction: Direction, noise: Tensor, step: float, sides: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(r,) derivatives along a direction, and how far each can be trusted.

    Differences at halved steps, combined by Richardson's rule, as long as that brings them closer together (Ridders, 1982):
    each value has its own best step, whatever the scale on which the function bends. The trust is what separates the best
    from the one before it, and the noise over the step. A kink within reach shows as a large difference.

    Args:
        sides: (r,) 0 for a central difference, 1 or -1 for one that looks to that side only.
    """

    def at(t: float) -> Tensor:
        return function(direction.moved(leaves, t)).detach()

    one_sided = sides is not None and bool((sides != 0).any())
    here = at(0.0) if one_sided else None
    twice = (at(2 * step), at(-2 * step)) if one_sided else None

    def difference(h: float, ahead: Tensor, behind: Tensor) -> Tensor:
        central = (ahead - behind) / (2 * h)
        if sides is None or here is None or twice is None:
            return central
        forward, backward = (4 * ahead - twice[0] - 3 * here) / (2 * h), -(4 * behind - twice[1] - 3 * here) / (2 * h)
        return torch.where(sides == 0, central, torch.where(sides > 0, forward, backward))

    ahead, behind = at(step), at(-step)
    coarse = difference(step, ahead, behind)
    value, trust = coarse, torch.full_like(coarse, torch.inf)
    previous: Tensor | None = None
    for count in range(1, _HALVINGS + 1):
        h, twice = step / 2**count, (ahead, behind)
        ahead, behind = at(h), at(-h)
        fine = difference(h, ahead, behind)
        extrapolated = fine + (fine - coarse) / 3
        apart = (fine - coarse).abs() if previous is None else (extrapolated - previous).abs()
        error = apart + 10 * noise / h
        better = error < trust
        value, trust = torch.where(better, extrapolated, value), torch.where(better, error, trust)
        coarse, previous = fine, extrapolated
        # Noise grows with 1/h and a jump within reach does too, until h is shorter than the way to it: only the first is a reason to stop.
        if count > 1 and not bool((trust > torch.maximum(_CLOSE_ENOUGH * value.abs(), 20 * noise / h)).any()):
            break
    return value, trust
