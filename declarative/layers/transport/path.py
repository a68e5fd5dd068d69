"""The path of growing γ that Newton's method on the dual follows, for the running samples of a batch, each at a γ of its own.

With φ eliminated the dual is concave in log v; its gradient is c − Pᵀ1 and its curvature the S of system.py. A step that would change
log v by dozens tells that links are still missing which the plan needs: they are cheap to make at a smaller γ. So a sample either
follows the path, takes a step at its γ, or goes back. As a function of 1/γ the potentials are nearly straight lines, and the factor of
Newton's step gives their tangent for one more right-hand side.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from declarative.layers.transport.direction import Direction
from declarative.layers.transport.kernel import Kernel, reach

NEAR = 0.1  # a marginal error from which Newton's steps converge fast
_CENTRED = 3.0  # a change of log v up to which γ may change too
_HOPELESS = 30.0  # a change of log v that is worth going back to a smaller γ
_OVERSHOT, _TIMID = -0.1, 0.3  # the slopes between which a step may end, relative to that at its start
_TRIALS = 20
_PATIENCE = 30  # steps without an error that is 10 % smaller


@dataclass(eq=False)
class Levels:
    """Where the samples are on their way; all (b, 1, 1) but the potentials.

    Args:
        target, least: the γ to reach, and the least that helps.
        ratio: how much larger γ may become in one step.
        base, limit, gamma: the last point of the path: ψ (b, n, 1), where its tangent arrives as γ → ∞, and its γ; 0: there is none.
        best, waited: the least error (b,) so far at this γ, and for how many steps it has been so.
    """

    target: Tensor
    least: Tensor
    ratio: Tensor
    base: Tensor
    limit: Tensor
    gamma: Tensor
    best: Tensor
    waited: Tensor
    reached: Tensor

    def select(self, index: Tensor) -> Levels:
        """These samples."""
        return Levels(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


class Path:
    """The running samples on their way to their γ."""

    def __init__(self, kernel: Kernel, target: Tensor, least: Tensor, mass: Tensor, tolerance: float) -> None:
        self.kernel, self.mass = kernel, mass
        none = torch.zeros_like(target)
        flat = none.flatten()
        self.levels = Levels(target, least, torch.full_like(none, 4.0), kernel.psi, kernel.psi, none, flat + torch.inf, flat, none)
        self.direction = Direction(tolerance)

    def select(self, index: Tensor) -> None:
        """Go on with these samples."""
        self.kernel, self.levels, self.mass = self.kernel.select(index), self.levels.select(index), self.mass[index]
        self.direction.select(index)

    @property
    def arrived(self) -> Tensor:
        """(b,)"""
        return (self.kernel.gamma >= self.levels.target).flatten()

    def stalled(self, error: Tensor) -> Tensor:
        """Samples whose error no longer falls."""
        levels = self.levels
        better = (error < 0.9 * levels.best) | (self.kernel.gamma != levels.reached).flatten()
        levels.best = torch.where(better, error, levels.best)
        levels.waited = torch.where(better, 0.0, levels.waited + 1)
        levels.reached = self.kernel.gamma
        return (levels.waited > _PATIENCE) | ~torch.isfinite(error)

    def arrive(self, done: Tensor) -> None:
        """Samples that are given up on their way are judged at their target all the same."""
        away = done & ~self.arrived
        if bool(away.any()):
            self.kernel.absorb(self.kernel.full_psi(), torch.where(away[:, None, None], self.levels.target, self.kernel.gamma))

    def advance(self, residual: Tensor, error: Tensor) -> None:
        """One step, in γ or at this γ."""
        kernel, levels = self.kernel, self.levels
        away = kernel.gamma < levels.target
        near = (error < NEAR)[:, None, None]
        onward = away & near
        if bool(onward.any()):
            delta, side = self.direction.with_tangent(kernel, residual)
        else:
            delta, side = self.direction.newton(kernel, residual, error), None
        largest = delta.abs().amax(1, keepdim=True)
        hopeless = largest > _HOPELESS
        onward = onward & (largest < _CENTRED)
        if bool(hopeless.any()):
            back = hopeless & (levels.gamma > 0)
            cold = hopeless & ~near & ~back & (kernel.gamma > levels.least)
        else:
            back = cold = torch.zeros_like(hopeless)
        if not bool((onward | back | cold).any()):
            self._search(delta, largest, residual)
            return
        psi = kernel.full_psi()
        if side is not None:
            better = psi + delta / kernel.gamma
            levels.limit = torch.where(onward, kernel.psi - side, levels.limit)
            levels.base = torch.where(onward, better, levels.base)
            levels.gamma = torch.where(onward, kernel.gamma, levels.gamma)
        levels.ratio = torch.where(back, levels.ratio.sqrt(), levels.ratio)
        self._move(delta, largest, residual, onward | back, cold, psi)

    def _move(self, delta: Tensor, largest: Tensor, residual: Tensor, moving: Tensor, cold: Tensor, psi: Tensor) -> None:
        """Along the tangent as far as it stays near the path; `cold` samples start again; the others take their step."""
        kernel, levels = self.kernel, self.levels
        still = ~moving & ~cold
        if bool(still.any()):
            self._search(torch.where(still, delta, 0.0), torch.where(still, largest, 0.0), residual)
            psi = torch.where(still, kernel.full_psi(), psi)
        gamma = torch.where(cold, torch.maximum(kernel.gamma / 10, levels.least), kernel.gamma)
        psi = torch.where(cold, kernel.log_columns / gamma, psi)
        stuck = moving & (levels.ratio < 1.3)
        for _ in range(_TRIALS):
            # Where not even a small step stays near, Newton's step at the last point has to do.
            moving = moving & ~stuck
            psi, gamma = torch.where(stuck, levels.base, psi), torch.where(stuck, levels.gamma, gamma)
            levels.gamma = torch.where(stuck, 0.0, levels.gamma)
            levels.ratio = torch.where(stuck, 2.0, levels.ratio)
            following = torch.minimum(levels.gamma * levels.ratio, levels.target)
            tangent = levels.limit + (levels.gamma / following) * (levels.base - levels.limit)
            kernel.absorb(torch.where(moving, tangent, psi), torch.where(moving, following, gamma))
            error = kernel.residual().abs().sum(1, keepdim=True) / self.mass[:, None, None]
            wanted = moving & ~(error < NEAR)
            if not bool(wanted.any()):
                break
            levels.ratio = torch.where(wanted, levels.ratio.sqrt(), levels.ratio)
            stuck = wanted & (levels.ratio < 1.3)
        grown = torch.where(error < 0.3 * NEAR, levels.ratio**1.5, levels.ratio).clamp(max=64.0)
        levels.ratio = torch.where(moving, grown, levels.ratio)

    def _search(self, delta: Tensor, largest: Tensor, residual: Tensor) -> None:
        """Take the step, as far as the dual rises: its slope along it, which falls all the way, ends between two bounds."""
        kernel = self.kernel
        cap = reach(delta.dtype)
        slope = (residual * delta).sum(1, keepdim=True)
        logs = kernel.v.log()
        length = torch.ones_like(slope) if bool((largest <= cap).all()) else torch.where(largest > cap, cap / largest, 1.0)
        base = kernel.full_psi()
        anew = bool((logs.abs().amax() + (length * largest).amax()) > cap)
        low, low_slope = torch.zeros_like(length), slope
        high, high_slope = torch.full_like(length, torch.inf), slope
        for _ in range(_TRIALS):
            if anew:
                kernel.absorb(base + length * delta / kernel.gamma, kernel.gamma)
            else:
                kernel.v = (logs + length * delta).exp()
                kernel.settle()
            inclined = (kernel.residual() * delta).sum(1, keepdim=True)
            over, timid = inclined < _OVERSHOT * slope, inclined > _TIMID * slope
            if not bool((over | timid).any()):
                break
            low, low_slope = torch.where(timid, length, low), torch.where(timid, inclined, low_slope)
            high, high_slope = torch.where(over, length, high), torch.where(over, inclined, high_slope)
            between = low + (high - low) * (low_slope / (low_slope - high_slope)).clamp(0.1, 0.9)
            following = torch.where(torch.isfinite(high), between, 2 * length)
            length = torch.where(over | timid, following, length)
            anew = anew or bool((logs.abs().amax() + (length * largest).amax()) > cap)
