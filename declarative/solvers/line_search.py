"""Armijo backtracking for a batch, each sample with a step length of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from declarative.typing import SampleMask, Values, Variables


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
