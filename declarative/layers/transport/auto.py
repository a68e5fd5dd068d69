"""The method that is chosen by itself: Sinkhorn's iteration, extrapolated, where it is fast; else Newton's method."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from declarative.layers.transport.dual_newton import newton
from declarative.layers.transport.extrapolation import CYCLE, Extrapolated
from declarative.layers.transport.kernel import Kernel, kernel_of
from declarative.layers.transport.methods import Goal, Method, Potentials
from declarative.layers.transport.results import Results
from declarative.layers.transport.statement import Found, Transport

_FIRST = 4  # sweeps before the first look at their rate
_MANY = 60  # more extrapolated ones than this are not worth a promise
_HOPEFUL = 1.4  # times what the rate promises: at first it is better than in the end


@dataclass(frozen=True, kw_only=True)
class Auto(Method):
    """Sinkhorn's iteration, extrapolated, as long as its rate says that it ends sooner than Newton's method would; then Newton's method.

    Example:
        >>> M = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> OptimalTransport(1.0, method=Auto())(M)
        tensor([[0.3655, 0.1345],
                [0.1345, 0.3655]])
    """

    def run(self, problem: Transport, init: Potentials | None, goal: Goal) -> Found:
        results = Results(problem, goal, "Sinkhorn's iteration")
        kernel = kernel_of(problem, None if init is None else init[1], problem.gamma[:, None, None])
        cycles, choice, sweeps = Extrapolated(kernel, results), _Choice(kernel, results.inner), 0
        error = results.error(kernel.residual())
        while True:
            running = error > results.inner
            if not running.all():
                keep = results.finish(kernel, ~running, sweeps, None)
                if keep is None:
                    return results.found()
                kernel, error = kernel.select(keep), error[running]
                cycles.select(kernel, keep)
                choice.select(running)
            goal.report(sweeps, error)
            times = choice.sweeps(error)
            if times == 0 or sweeps + times >= goal.max_iterations:
                break
            sweeps += cycles.cycle(error, times, extrapolate=choice.extrapolate)
            error = results.error(kernel.residual())
        results.method = "Sinkhorn's iteration, then Newton's method on the dual"
        return newton(kernel, results, sweeps)


class _Choice:
    """What promises to end soonest, by the error's own rate and a rough model of costs in microseconds: it is their ratios that count."""

    def __init__(self, kernel: Kernel, goal: float) -> None:
        b, m, n = kernel.c.shape[0], kernel.r.shape[2], kernel.c.shape[2]
        self.goal, self.extrapolate = goal, False
        self._sweep = 6 + 2e-4 * b * m * n
        self._extrapolation = (75 + 0.06 * b * n) / CYCLE
        self._step = 110 + b * n * n * (2.4e-5 * m + 1.2e-5 * n)
        self._before: np.ndarray | None = None
        self._times = 0

    def select(self, mask: np.ndarray) -> None:
        if self._before is not None:
            self._before = self._before[mask]

    def sweeps(self, error: np.ndarray) -> int:
        """How many to make before the next look, with an extrapolation before them or not; 0: Newton's method is to go on."""
        before, self._before = self._before, error
        if before is None:
            self._times = _FIRST
            return _FIRST
        ratios = error / before
        worst, rate = float(error.max()), float(ratios.max()) ** (1 / self._times)
        if not rate < 1:
            return 0
        digits = math.log(self.goal / worst)
        steps = 0.6 + math.log2(max(1.0, math.log(self.goal) / math.log(min(0.5, worst))))
        cost, left = steps * self._step, 0
        if not self.extrapolate:
            plain = _HOPEFUL * digits / math.log(rate)
            if plain * self._sweep <= cost:
                cost, left = plain * self._sweep, min(max(1 + int(plain), 4), CYCLE)
            root = math.sqrt(1 - rate)
            rate = ((1 - root) / (1 + root)) ** 0.7
        fast = _HOPEFUL * digits / math.log(rate)
        if fast <= _MANY and fast * (self._sweep + self._extrapolation) <= cost:
            left, self.extrapolate = CYCLE, True
        self._times = left
        return left
