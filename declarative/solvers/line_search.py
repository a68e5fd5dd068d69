"""Armijo backtracking for a batch, each sample with a step length of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from declarative.typing import Rows, SampleMask, Values, Variables


@dataclass(frozen=True)
class LineSearch:
    """From `y` along `step`; `slope` is the merit function's directional derivative there, `merit` its value, and
    `noise` a change in it that rounding alone can cause.
    """

    y: Variables
    step: Variables
    slope: Values
    merit: Values
    noise: Values
    halvings: int = 40

    def run(
        self, merit_at: Callable[[Variables], Values], correction: Callable[[Variables], Variables] | None, exempt: SampleMask, start: Values | None = None
    ) -> tuple[Values, Variables]:
        """(step length, new point); length 0 and the old point where no length was accepted.

        Args:
            correction: a second-order correction of a full step. Along a curved constraint a full Newton step can raise
                ‖h‖ and be refused next to the solution (Maratos effect).
            exempt: samples that take the whole step unexamined.
            start: the first length to try, 1 by default.
        """
        length = torch.ones_like(self.merit) if start is None else start
        candidate = self.y + length.unsqueeze(1) * self.step
        ok = self._accepts(merit_at(candidate), length) | exempt
        if correction is not None and not bool(ok.all()):
            corrected = candidate + correction(candidate)
            better = ~ok & self._accepts(merit_at(corrected), length)
            candidate = torch.where(better.unsqueeze(1), corrected, candidate)
            ok = ok | better
        for _ in range(self.halvings):
            if bool(ok.all()):
                break
            length = torch.where(ok, length, 0.5 * length)
            candidate = torch.where(ok.unsqueeze(1), candidate, self.y + length.unsqueeze(1) * self.step)
            ok = ok | self._accepts(merit_at(candidate), length)
        return torch.where(ok, length, 0.0), torch.where(ok.unsqueeze(1), candidate, self.y)

    def _accepts(self, value: Tensor, length: Tensor) -> Tensor:
        return torch.isfinite(value) & (value <= self.merit + 1e-4 * length * self.slope + self.noise)


def exact_penalty(previous: Values, multipliers: Rows, slope: Values, curvature: Values, infeasibility: Values, noise: Values) -> Values:
    """ρ above the multipliers, and large enough that a step descends on f + ρθ: Dφ·d − ρθ ≤ −ρθ/10 − ½ dᵀHd.

    It may fall again, by half a step: one wild step must not make all later ones follow the constraints' curves. (Waltz, Morales,
    Nocedal & Orban, 2006.)

    Args:
        multipliers: as the step leaves them.
        slope: Dφ·d of the objective alone.
        curvature: dᵀHd where positive.
        infeasibility: θ, which d reduces to zero to first order; below `noise` it counts as zero.
    """
    tiny = torch.finfo(slope.dtype).tiny
    needed = torch.where(infeasibility > noise, (slope + 0.5 * curvature) / (0.9 * infeasibility.clamp_min(tiny)), 0.0).clamp_min(0.0)
    largest = 1.1 * multipliers.abs().amax(1) if multipliers.shape[1] else needed
    return torch.maximum(torch.maximum(needed, largest), 0.5 * previous)
