"""The method that is chosen by itself: Sinkhorn's iteration where it is fast, else Newton's method."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from declarative.layers.transport.direction import LARGE
from declarative.layers.transport.dual_newton import newton
from declarative.layers.transport.kernel import kernel_of
from declarative.layers.transport.methods import Goal, Method, Potentials
from declarative.layers.transport.results import Results
from declarative.layers.transport.statement import Found, Transport

_BLOCK = 4  # sweeps between two looks at the error, at first
_LONG = 16  # and at most


@dataclass(frozen=True, kw_only=True)
class Auto(Method):
    """Sinkhorn's iteration as long as its own rate says that it ends sooner than Newton's method would; then Newton's method.

    Example:
        >>> problem = Transport(torch.eye(2)[None], torch.tensor([[0.5, 0.5]]), torch.tensor([[0.5, 0.5]]), torch.tensor([1.0]))
        >>> Auto().solve(problem, None, tolerance=1e-5, max_iterations=100).plan
        tensor([[[0.3655, 0.1345],
                 [0.1345, 0.3655]]])
    """

    def run(self, problem: Transport, init: Potentials | None, goal: Goal) -> Found:
        results = Results(problem, goal, "Sinkhorn's iteration")
        kernel = kernel_of(problem, None if init is None else init[1], problem.gamma[:, None, None])
        n = problem.cost.shape[2]
        error, sweeps, times = results.error(kernel.residual()), 0, _BLOCK
        before = np.full_like(error, np.nan)
        while True:
            running = error > results.inner
            if not running.all():
                keep = results.finish(kernel, ~running, sweeps, None)
                if keep is None:
                    return results.found()
                kernel, error, before = kernel.select(keep), error[running], before[running]
            goal.report(sweeps, error)
            left = _left(before, error, times, results.inner, n) if sweeps else _BLOCK
            if left == 0 or sweeps + left > goal.max_iterations:
                break
            if sweeps and not kernel.within_reach():
                kernel.absorb(kernel.full_psi(), kernel.gamma)
            times = min(max(left, _BLOCK), _LONG)
            kernel.sweep(times)
            sweeps += times
            before, error = error, results.error(kernel.residual())
        results.method = "Sinkhorn's iteration, then Newton's method on the dual"
        return newton(kernel, results, sweeps)


def _left(before: np.ndarray, error: np.ndarray, times: int, goal: float, n: int) -> int:
    """How many more sweeps the rate of the last block promises; 0 where Newton's method ends sooner."""
    slowest, worst = int((error / before).argmax()), float(error.max())
    rate = float(error[slowest] / before[slowest]) ** (1 / times)
    if not rate < 1:
        return 0
    digits = math.log(goal / worst)
    left = digits / math.log(rate)
    # Newton's steps, each of which squares a small error, measured in sweeps; by conjugate gradients if these are faster.
    steps = 1 + math.log2(max(1.0, math.log(goal) / math.log(min(0.5, worst))))
    newton = steps * max(12, n // 8)
    if n >= LARGE:
        newton = min(newton, 6 * steps - 0.7 * digits / math.sqrt(1 - rate))
    return 1 + int(left) if left <= newton else 0
