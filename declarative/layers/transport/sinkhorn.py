"""Sinkhorn's iteration: over-relaxed by its own rate, with a growing γ where that is large."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from declarative.layers.transport.extrapolation import Extrapolated
from declarative.layers.transport.kernel import Kernel, kernel_of, spread
from declarative.layers.transport.methods import Goal, Method, Potentials
from declarative.layers.transport.results import Results, host
from declarative.layers.transport.statement import Found, Transport

_START = 50.0  # γ · range(M) from which γ grows
_LEVEL = 0.01  # the marginal error at which γ may grow
_STAY = 200  # iterations at one γ at most, before the last
_FULL = 1.98  # the most that is over-relaxed


@dataclass(frozen=True, kw_only=True)
class Sinkhorn(Method):
    """Sinkhorn's iteration, in scalings that are absorbed into the potentials before they overflow: any γ, in float32 too.

    Args:
        over_relaxation: None: the plain iteration, but what it converges to is extrapolated again and again, which is fastest. A number
            ω in (0, 2): the power to which each correction is taken; 1 is the plain iteration. "auto": the plain iteration until its
            rate shows, then the ω that is best for that rate, corrected as it goes on.
        scaling: γ starts at 50/range(M) and grows by this factor up to its value; None or 1: it does not.

    Raises:
        TypeError, ValueError: options of a wrong kind or out of range.

    Example:
        >>> M = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> OptimalTransport(1.0, method=Sinkhorn())(M)
        tensor([[0.3655, 0.1345],
                [0.1345, 0.3655]])

    Source: Sinkhorn & Knopp 1967; Thibault, Chizat, Dossal & Papadakis, "Overrelaxed Sinkhorn–Knopp", Algorithms 14, 2021; Lehmann,
    von Renesse, Sambale & Uschmajew, Optim. Letters 16, 2022; the running estimate of ω: Hageman & Young, Applied Iterative Methods.
    """

    over_relaxation: float | str | None = None
    scaling: float | None = 4.0

    def __post_init__(self) -> None:
        omega, scaling = self.over_relaxation, self.scaling
        if omega is not None and omega != "auto" and (not isinstance(omega, int | float) or isinstance(omega, bool)):
            raise TypeError(f'Sinkhorn(over_relaxation=...) must be a number, "auto" or None, got {omega!r}')
        if isinstance(omega, int | float) and not 0 < omega < 2:
            raise ValueError(f"Sinkhorn(over_relaxation=...) must be between 0 and 2, got {omega!r}")
        if scaling is not None and (not isinstance(scaling, int | float) or isinstance(scaling, bool)):
            raise TypeError(f"Sinkhorn(scaling=...) must be a number or None, got {scaling!r}")
        if scaling is not None and not 1 <= scaling < math.inf:
            raise ValueError(f"Sinkhorn(scaling=...) must be at least 1, got {scaling!r}")

    def run(self, problem: Transport, init: Potentials | None, goal: Goal) -> Found:
        results = Results(problem, goal, "Sinkhorn's iteration")
        scaling = self.scaling if init is None and self.scaling is not None else 1.0
        kernel = kernel_of(problem, None if init is None else init[1], start(problem, scaling))
        pace = Extrapolated(kernel, results) if self.over_relaxation is None else _Relaxed(kernel, self.over_relaxation)
        way, count = Way(kernel, results, scaling), 0
        while True:
            error = results.error(kernel.residual())
            done = (~(error > results.inner) & way.arrived) | ~np.isfinite(error)
            if count >= goal.max_iterations:
                done = np.ones_like(done)
            if done.any():
                way.arrive(done)
                keep = results.finish(kernel, done, count, None)
                if keep is None:
                    return results.found()
                kernel, error = kernel.select(keep), error[~done]
                way.select(kernel, keep)
                pace.select(kernel, keep)
            goal.report(count, error)
            changed = way.advance(error < _LEVEL, count)
            pace.forget(changed)
            count = min(count + pace.cycle(error, min(pace.length, goal.max_iterations - count)), goal.max_iterations)


def start(problem: Transport, scaling: float) -> Tensor:
    """The γ (b, 1, 1) to begin with."""
    target = problem.gamma[:, None, None]
    return target if scaling <= 1 else torch.minimum(target, _START / spread(problem.cost))


class Way:
    """The samples' γ, which grows by a factor where they are ready for that, or have stayed too long."""

    def __init__(self, kernel: Kernel, results: Results, scaling: float) -> None:
        self.kernel, self.scaling = kernel, scaling
        self.now, self.target = host(kernel.gamma).ravel(), host(results.target)
        self.since = np.zeros_like(self.now)

    @property
    def arrived(self) -> np.ndarray:
        """(b,)"""
        return self.now >= self.target

    def select(self, kernel: Kernel, index: Tensor) -> None:
        """Go on with these samples, whose kernel this is."""
        keep = index.cpu().numpy()
        self.kernel, self.now, self.target, self.since = kernel, self.now[keep], self.target[keep], self.since[keep]

    def arrive(self, which: np.ndarray) -> None:
        """These samples go to their last γ."""
        self._grow(np.where(which, self.target, self.now))

    def advance(self, ready: np.ndarray, count: int) -> np.ndarray:
        """The samples (b,) that have another γ now."""
        grown = (self.now < self.target) & (ready | (count - self.since >= _STAY))
        self._grow(np.where(grown, np.minimum(self.now * self.scaling, self.target), self.now))
        self.since = np.where(grown, count, self.since)
        return grown

    def _grow(self, gamma: np.ndarray) -> None:
        changed = gamma != self.now
        if changed.any():
            self.now = gamma
            self.kernel.grow(changed, torch.from_numpy(gamma).to(self.kernel.c).view(-1, 1, 1))


class _Relaxed:
    """Over-relaxed iterations, the ω of each sample from the rate λ of its error: the plain iteration's is (λ + ω − 1)² / (λ ω²)."""

    length = 10

    def __init__(self, kernel: Kernel, over_relaxation: float | str) -> None:
        b = kernel.c.shape[0]
        self.kernel, self.auto = kernel, over_relaxation == "auto"
        self.omega = np.full(b, 1.0 if isinstance(over_relaxation, str) else float(over_relaxation))
        self.before = np.full(b, np.nan)

    def select(self, kernel: Kernel, index: Tensor) -> None:
        """Go on with these samples, whose kernel this is."""
        keep = index.cpu().numpy()
        self.kernel, self.omega, self.before = kernel, self.omega[keep], self.before[keep]

    def forget(self, changed: np.ndarray) -> None:
        """These samples have another γ."""
        self.before = np.where(changed, np.nan, self.before)
        if self.auto:
            self.omega = np.where(changed, 1.0, self.omega)

    def cycle(self, error: np.ndarray, times: int) -> int:
        """Iterations, the last one plain in u, so that rows are met and the error can be seen. Returns how many."""
        kernel = self.kernel
        kernel.keep_within_reach()
        if self.auto:
            self._observe(error)
        self.before = error
        if (self.omega == 1).all():
            kernel.sweep(times)
            return times
        omega = torch.from_numpy(self.omega).to(kernel.c).view(-1, 1, 1)
        u, v, sums = kernel.u, kernel.v, kernel.sums
        for k in range(times):
            v = v * (kernel.c / (v * sums)).pow_(omega)
            rows = kernel.row_sums(v)
            u = u * (kernel.r / (u * rows)).pow_(omega) if k + 1 < times else kernel.r / rows
            sums = kernel.column_sums(u)
        kernel.u, kernel.v, kernel.sums = u, v, sums
        return times

    def _observe(self, error: np.ndarray) -> None:
        """What the errors before and after a cycle say."""
        with np.errstate(invalid="ignore", divide="ignore"):
            rate = (error / self.before) ** (1 / self.length)
            plain = (rate + self.omega - 1) ** 2 / (rate * self.omega**2)
            wanted = 2 / (1 + np.sqrt(1 - np.clip(plain, 0.0, 1.0)))
        # Faster than ω − 1 nothing can be; slower, the estimate is of use; growth means that it was not, or came too early.
        usable = (rate > self.omega - 1) & (rate < 1) & (error < 0.3)
        self.omega = np.where(usable, np.minimum(np.maximum(self.omega, wanted), _FULL), self.omega)
        self.omega = np.where(rate > 1, 1 + 0.5 * (self.omega - 1), self.omega)
