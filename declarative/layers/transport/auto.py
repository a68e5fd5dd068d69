"""The method that is chosen by itself: Sinkhorn's iteration where it is fast, else Newton's method."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from declarative.layers.transport.dual_newton import newton
from declarative.layers.transport.kernel import kernel_of
from declarative.layers.transport.methods import Goal, Method, Potentials
from declarative.layers.transport.results import Results
from declarative.layers.transport.statement import Found, Transport

_BLOCK = 4  # sweeps between two looks at the error


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
        worth = max(12.0, problem.cost.shape[2] / 8)  # sweeps that cost as much as a step of Newton's
        error, sweeps = results.error(kernel.residual()), 0
        before = np.full_like(error, np.nan)
        while True:
            running = error > results.inner
            if not running.all():
                keep = results.finish(kernel, ~running, sweeps, None)
                if keep is None:
                    return results.found()
                kernel, error, before = kernel.select(keep), error[running], before[running]
            goal.report(sweeps, error)
            if sweeps + _BLOCK > goal.max_iterations or (sweeps and not _worthwhile(before, error, results.inner, worth)):
                break
            if sweeps and not kernel.within_reach():
                kernel.absorb(kernel.full_psi(), kernel.gamma)
            kernel.sweep(_BLOCK)
            sweeps += _BLOCK
            before, error = error, results.error(kernel.residual())
        results.method = "Sinkhorn's iteration, then Newton's method on the dual"
        return newton(kernel, results, sweeps)


def _worthwhile(before: np.ndarray, error: np.ndarray, goal: float, worth: float) -> bool:
    """Whether the rate of the last block promises an end sooner than Newton's steps, each of which squares a small error."""
    slowest = int((error / before).argmax())
    rate = float(error[slowest] / before[slowest]) ** (1 / _BLOCK)
    if not rate < 1:
        return False
    left = math.log(goal / float(error.max())) / math.log(rate)
    steps = 1 + math.log2(max(1.0, math.log(goal) / math.log(min(0.5, float(error.max())))))
    return left <= worth * steps
