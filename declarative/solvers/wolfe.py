"""A line search for the strong Wolfe conditions, for a batch, each sample with a bracket and a length of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from declarative.typing import SampleMask, Values, Variables

_DECREASE, _CURVATURE = 1e-4, 0.9


@dataclass(frozen=True)
class WolfeSearch:
    """From `y` along `step`, on values and gradients.

    Accepts f(t) ≤ f(0) + 10⁻⁴ t f'(0) with |f'(t)| ≤ 0.9 |f'(0)|; and, since differences of f drown in rounding long before those
    of ∇f do, also f(t) ≤ f(0) + noise with slopes that a decrease on a parabola would have. So the search sees as far as ∇f does.

    Args:
        value, slope: f and its directional derivative at y.
        noise: a change in f that rounding alone can cause.
        trials: at most this many evaluations of the batch.

    Source: Nocedal & Wright, ch. 3; the second test is that of Hager & Zhang, SIAM J. Optim. 16(1), 2005.
    """

    y: Variables
    step: Variables
    value: Values
    slope: Values
    noise: Values
    trials: int = 40

    def run(self, evaluate: Callable[[Variables, SampleMask], tuple[Values, Variables]], exempt: SampleMask) -> tuple[Values, Values, Variables]:
        """(length, f, ∇f) of the accepted points; where no length lowers f it is 0, and f and ∇f mean nothing.

        Args:
            evaluate: f and ∇f, of the samples of a mask; the others may be anything.
            exempt: samples that do not move: their length is 0.
        """
        length = torch.ones_like(self.value)
        value, gradient = evaluate(self.y + self.step, ~exempt)
        slope = (gradient * self.step).sum(1)
        low = _End(torch.zeros_like(length), self.value, self.slope)
        high = _End(torch.full_like(length, torch.inf), torch.full_like(length, torch.nan), torch.full_like(length, torch.nan))
        best, best_gradient = low, torch.zeros_like(gradient)
        searching = ~exempt
        for trial in range(self.trials):
            here = _End(length, value, slope)
            lowered, accepted = self._accepts(here)
            # The best point that lowers f: what remains if the trials run out.
            better = searching & (accepted | (lowered & (value < best.value)))
            best = here.where(better, best)
            best_gradient = torch.where(better.unsqueeze(1), gradient, best_gradient)
            searching = searching & ~accepted
            if trial + 1 == self.trials or not bool(searching.any()):
                break
            rises = ~lowered | (slope >= 0)
            low, high = here.where(searching & ~rises, low), here.where(searching & rises, high)
            # An interval of rounding's width holds nothing more.
            closed = torch.isfinite(high.length) & (high.length - low.length <= 4 * torch.finfo(length.dtype).eps * high.length)
            searching = searching & ~closed
            length = torch.where(searching, _next(low, high), length)
            value_new, gradient_new = evaluate(self.y + length.unsqueeze(1) * self.step, searching)
            value = torch.where(searching, value_new, value)
            gradient = torch.where(searching.unsqueeze(1), gradient_new, gradient)
            slope = torch.where(searching, (gradient * self.step).sum(1), slope)
        return torch.where(exempt, 0.0, best.length), best.value, best_gradient

    def _accepts(self, here: _End) -> tuple[Tensor, Tensor]:
        """(f is lowered, both conditions hold)."""
        finite = torch.isfinite(here.value) & torch.isfinite(here.slope)
        change = here.value - self.value
        decreased = finite & (change <= _DECREASE * here.length * self.slope)
        level = finite & (change <= self.noise) & (here.slope <= (2 * _DECREASE - 1) * self.slope)
        flattened = here.slope.abs() <= -_CURVATURE * self.slope
        return decreased | level, (decreased | level) & flattened


@dataclass(frozen=True)
class _End:
    """A point of the line: length, f, slope, each (b,)."""

    length: Tensor
    value: Tensor
    slope: Tensor

    def where(self, mask: Tensor, other: _End) -> _End:
        return _End(*(torch.where(mask, getattr(self, name), getattr(other, name)) for name in ("length", "value", "slope")))


def _next(low: _End, high: _End) -> Tensor:
    """The next length: between the ends where there are two, else beyond."""
    width = high.length - low.length
    # Slopes of both signs: their secant, which needs no f. Else the parabola through f, f' below and f above.
    secant = -low.slope / (high.slope - low.slope)
    parabola = -0.5 * low.slope * width / (high.value - low.value - low.slope * width)
    inside = torch.where(high.slope > 0, secant, parabola)
    inside = torch.where(torch.isfinite(inside), inside, 0.1).clamp(0.1, 0.9)
    return torch.where(torch.isfinite(high.length), low.length + inside * width, 4 * low.length)
