"""The path of growing γ that Newton's method on the dual follows, for the running samples of a batch, each at a γ of its own.

With φ eliminated the dual is concave in log v; its gradient is c − Pᵀ1 and its curvature the S of system.py. A step that would change
log v by dozens tells that links are still missing which the plan needs: they are cheap to make at a smaller γ. So a sample either
follows the path, takes a step at its γ, or goes back. As a function of 1/γ the potentials are nearly straight lines, and the factor of
Newton's step gives their tangent for one more right-hand side.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from declarative.layers.transport.direction import Direction
from declarative.layers.transport.kernel import Kernel, reach
from declarative.layers.transport.results import Results, host

NEAR = 0.1  # a marginal error from which Newton's steps converge fast
_CENTRED = 3.0  # a change of log v up to which γ may change too
_HOPELESS = 30.0  # a change of log v that is worth going back to a smaller γ, if the error is not small
_SMALL = 0.01
_SHORT = 1.3  # a growth of γ that is no longer worth while
_OVERSHOT, _TIMID = -0.3, 0.3  # the slopes between which a step may end, relative to that at its start
_QUARTER = 0.25  # of the error at the start: a step that leaves so little is good whatever the slope
_TRIALS = 20
_PATIENCE = 30  # steps in which the error falls by 10 %, or γ grows


class Path:
    """The running samples on their way to their γ. What is decided by is on the host, one number for each sample.

    Args:
        kernel: where they are.
        least: the least γ that helps, (b,) on the host.
        results: what they are to reach.

    Attributes:
        now, target, ratio: γ, the γ to reach, how much larger it may become in one step.
        last, base, limit: the last point of the path: its γ (0: there is none), its ψ (b, 1, n), and where the tangent arrives as γ → ∞.
    """

    def __init__(self, kernel: Kernel, least: np.ndarray, results: Results) -> None:
        self.kernel, self.results, self.least = kernel, results, least
        self.now, self.target = host(kernel.gamma).ravel().astype(float), host(results.target).astype(float)
        self.away = bool((self.now < self.target).any())
        self.ratio, self.last = np.full_like(self.now, 4.0), np.zeros_like(self.now)
        self.base = self.limit = kernel.psi.expand_as(kernel.c)
        self.best = self.before = np.full_like(self.now, np.inf)
        self.reached = self.now
        mass = kernel.r.new_tensor(results.mass).view(-1, 1, 1)
        self.direction = Direction(results.goal.tolerance, mass)

    def select(self, index: Tensor) -> None:
        """Go on with these samples."""
        self.kernel, self.base, self.limit = self.kernel.select(index), self.base[index], self.limit[index]
        keep = index.cpu().numpy()
        for name in ("least", "now", "target", "ratio", "last", "best", "before", "reached"):
            setattr(self, name, getattr(self, name)[keep])
        self.direction.select(index)

    def done(self, error: np.ndarray, step: int) -> np.ndarray:
        """Samples that have converged, or whose error no longer falls."""
        ended = ~(error > self.results.inner)
        if self.away:
            ended &= (self.now >= self.target) | np.isnan(error)
        # At the level of rounding nothing is gained by waiting.
        rounding = error < 30 * torch.finfo(self.kernel.c.dtype).eps
        if rounding.any():
            ended |= rounding & (error > 0.5 * self.before) & (self.now >= self.target)
        self.before = error
        if step % _PATIENCE == 0:
            ended |= (error > 0.9 * self.best) & (self.now <= self.reached)
            self.best, self.reached = error, self.now
        return ended

    def arrive(self, ended: np.ndarray) -> None:
        """Samples that are given up on their way are judged at their target all the same."""
        if self.away and (self.now < self.target)[ended].any():
            self._absorb(ended & (self.now < self.target), self.kernel.full_psi(), self.target)

    def advance(self, residual: Tensor, error: np.ndarray) -> None:
        """One step, in γ or at this γ."""
        kernel = self.kernel
        onward = (self.now < self.target) & (error < NEAR) if self.away else None
        if onward is not None and onward.any():
            delta, side = self.direction.with_tangent(kernel, residual)
        else:
            delta, side = self.direction.newton(kernel, residual, float(error.max()), float(error.min())), None
        logs = kernel.v.log()
        largest, slope, drift = _sizes(delta, residual, logs)
        if not math.isfinite(largest.sum() + slope.sum()):
            bad = ~np.isfinite(largest + slope)
            delta = torch.where(self._device(bad), 0.0, delta)
            largest, slope = np.where(bad, 0.0, largest), np.where(bad, 0.0, slope)
        hopeless = largest > _HOPELESS
        if side is None and not hopeless.any():
            self._search(delta, logs, error, (largest, slope, drift))
            return
        back = hopeless & (self.last > 0) & (error >= _SMALL)
        cold = hopeless & (error >= NEAR) & ~back & (self.now > self.least)
        if onward is not None and side is not None:
            onward &= largest < _CENTRED
            mask, psi = self._device(onward), kernel.full_psi()
            self.limit = torch.where(mask, kernel.psi - side, self.limit)
            self.base = torch.where(mask, torch.addcdiv(psi, delta, kernel.gamma), self.base)
            self.last = np.where(onward, self.now, self.last)
        else:
            onward = np.zeros_like(back)
        self.ratio = np.where(back, np.sqrt(self.ratio), self.ratio)
        still = ~(onward | back | cold)
        if still.any():
            delta = torch.where(self._device(still), delta, 0.0)
            self._search(delta, logs, error, (np.where(still, largest, 0.0), np.where(still, slope, 0.0), drift))
        if not still.all():
            self._move(onward | back, cold)

    def _move(self, moving: np.ndarray, cold: np.ndarray) -> None:
        """Along the tangent as far as it stays near the path; `cold` samples start again at a smaller γ; the others stay."""
        gamma = np.where(cold, np.maximum(self.now / 10, self.least), self.now)
        psi = torch.where(self._device(cold), self.kernel.log_columns / self._device(gamma), self.kernel.full_psi())
        changed, stuck, error = moving | cold, moving & (self.ratio < _SHORT), np.zeros_like(gamma)
        for _ in range(_TRIALS):
            if stuck.any():  # not even a small step stays near: Newton's step at the last point has to do
                moving = moving & ~stuck
                psi, gamma = torch.where(self._device(stuck), self.base, psi), np.where(stuck, self.last, gamma)
                self.last, self.ratio = np.where(stuck, 0.0, self.last), np.where(stuck, 2.0, self.ratio)
            following = np.where(moving, np.minimum(self.last * self.ratio, self.target), gamma)
            share = self._device(np.where(moving, self.last / following, 1.0))
            tangent = torch.lerp(self.limit, self.base, share)
            self._absorb(changed, torch.where(self._device(moving), tangent, psi), following)
            error = self.results.error(self.kernel.residual())
            far = moving & ~(error < NEAR)
            if not far.any():
                break
            self.ratio = np.where(far, np.sqrt(self.ratio), self.ratio)
            changed, stuck = far, far & (self.ratio < _SHORT)
        self.ratio = np.where(moving & (error < 0.3 * NEAR), np.minimum(self.ratio**1.5, 64.0), self.ratio)

    def _search(self, delta: Tensor, logs: Tensor, error: np.ndarray, sizes: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        """Take the step, as far as the dual rises: its slope along it, which falls all the way, ends between two bounds."""
        kernel, cap = self.kernel, reach(delta.dtype)
        largest, slope, drift = sizes
        base, length = torch.addcdiv(kernel.psi, logs, kernel.gamma), np.ones_like(slope)
        # Where K does not reach it is computed anew.
        anew = drift + largest > cap
        if anew.any():
            length = np.where(largest > cap, cap / np.maximum(largest, cap), length)
        low, high, low_slope, high_slope = np.zeros_like(slope), np.full_like(slope, np.inf), slope, slope
        for trial in range(_TRIALS):
            step = delta if trial == 0 and not anew.any() else delta * self._device(length)
            if not anew.all():
                kernel.v = (logs + step).exp_()
                kernel.settle()
            kernel.absorb_some(anew, torch.addcdiv(base, step, kernel.gamma), kernel.gamma)
            inclined = host(torch.bmm(kernel.residual(), delta.mT)).ravel()
            over, timid = inclined < _OVERSHOT * slope, inclined > _TIMID * slope
            wrong = over | timid
            if not wrong.any():
                return
            # Where the plan falls apart the slope is rounding; the error is not.
            wrong &= ~(self.results.error(kernel.residual()) <= _QUARTER * error)
            if not wrong.any():
                return
            low, low_slope = np.where(timid, length, low), np.where(timid, inclined, low_slope)
            high, high_slope = np.where(over, length, high), np.where(over, inclined, high_slope)
            with np.errstate(invalid="ignore", divide="ignore"):
                between = low + (high - low) * np.clip(low_slope / (low_slope - high_slope), 0.1, 0.9)
            length = np.where(wrong, np.where(np.isfinite(high), between, 2 * length), length)
            anew |= drift + length * largest > cap

    def _absorb(self, which: np.ndarray, psi: Tensor, gamma: np.ndarray) -> None:
        self.kernel.absorb_some(which, psi, self._device(gamma))
        self.now = np.where(which, gamma, self.now)
        self.away = bool((self.now < self.target).any())

    def _device(self, x: np.ndarray) -> Tensor:
        """One number for each sample as (b, 1, 1)."""
        like = self.kernel.c
        return torch.from_numpy(x).to(like.device, torch.bool if x.dtype == np.bool_ else like.dtype).view(-1, 1, 1)


def _sizes(delta: Tensor, residual: Tensor, logs: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """‖δ‖∞, the dual's slope along δ, and ‖log v‖∞."""
    norm = torch.linalg.vector_norm
    sizes = host(torch.cat((norm(delta, math.inf, 2), torch.bmm(residual, delta.mT).squeeze(2), norm(logs, math.inf, 2)), 1))
    return sizes[:, 0], sizes[:, 1], sizes[:, 2]
