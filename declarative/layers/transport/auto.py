"""The method that is chosen by itself: Sinkhorn's iteration where it is fast, else Newton's method."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from declarative.layers.transport.dual_newton import newton
from declarative.layers.transport.kernel import kernel_of
from declarative.layers.transport.methods import Goal, Method, Potentials
from declarative.layers.transport.results import Results
from declarative.layers.transport.statement import Found, Transport

_BLOCK = 4  # sweeps between two looks at the error


@dataclass(frozen=True, kw_only=True)
class Auto(Method):
    """Sinkhorn's iteration as long as its own rate says that it ends sooner than Newton's method would; then Newton's method."""

    def run(self, problem: Transport, init: Potentials | None, goal: Goal) -> Found:
        results = Results(problem, goal, "Sinkhorn's iteration")
        kernel = kernel_of(problem, None if init is None else init[1], problem.gamma[:, None, None])
        n = problem.cost.shape[2]
        worth = max(10.0, n / 8)  # sweeps that cost as much as a step of Newton's
        error, before = results.error(kernel), None
        sweeps = 0
        while True:
            done = error <= results.inner
            if sweeps:
                goal.report(sweeps, error)
            if bool(done.any()):
                keep = results.finish(kernel, done, sweeps, None)
                if keep is None:
                    return results.found()
                kernel, error = kernel.select(keep), error[keep]
                before = None if before is None else before[keep]
            if before is not None:
                # What the rate of the last block predicts, against Newton's steps: each squares the error once it is small.
                rate = torch.log(before / error) / _BLOCK
                left = (torch.log(error / results.inner) / rate).clamp(min=0.0)
                steps = 1 + torch.log2((math.log(results.inner) / torch.log(error.clamp(max=0.5))).clamp(min=1.0))
                if not float(left.amax()) <= worth * float(steps.amax()) or sweeps + _BLOCK > goal.max_iterations:
                    break
            if not kernel.within_reach():
                kernel.absorb(kernel.full_psi(), kernel.gamma)
            kernel.sweep(_BLOCK)
            sweeps += _BLOCK
            before, error = error, results.error(kernel)
        results.method = "Sinkhorn's iteration, then Newton on the dual"
        return newton(problem, kernel, results, sweeps)
