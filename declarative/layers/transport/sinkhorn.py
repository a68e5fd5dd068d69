"""Sinkhorn's iteration: over-relaxed by its own rate, with a growing γ where that is large."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from declarative.layers.transport.kernel import Kernel, kernel_of, spread
from declarative.layers.transport.methods import Goal, Method, Potentials
from declarative.layers.transport.results import Results
from declarative.layers.transport.statement import Found, Transport

BLOCK = 10  # iterations between two looks at the error
_START = 50.0  # γ · range(M) from which γ grows
_LEVEL = 0.01  # the marginal error at which γ may grow
_STAY = 200  # iterations at one γ at most, before the last
_FULL = 1.98  # the most that is over-relaxed


@dataclass(frozen=True, kw_only=True)
class Sinkhorn(Method):
    """Sinkhorn's iteration, in scalings that are absorbed into the potentials before they overflow: any γ, in float32 too.

    Args:
        over_relaxation: ω in (0, 2), the power to which each correction is taken; 1 is the plain iteration. "auto": the plain iteration
            until its rate shows, then the ω that is best for that rate, corrected as it goes on.
        scaling: γ starts at 50/range(M) and grows by this factor up to its value; None or 1: it does not.

    Raises:
        TypeError, ValueError: options of a wrong kind or out of range.

    Example:
        >>> problem = Transport(torch.eye(2)[None], torch.tensor([[0.5, 0.5]]), torch.tensor([[0.5, 0.5]]), torch.tensor([1.0]))
        >>> Sinkhorn().solve(problem, None, tolerance=1e-5, max_iterations=100).plan
        tensor([[[0.3655, 0.1345],
                 [0.1345, 0.3655]]])

    Source: Sinkhorn & Knopp 1967; Thibault, Chizat, Dossal & Papadakis, "Overrelaxed Sinkhorn–Knopp", Algorithms 14, 2021; Lehmann,
    von Renesse, Sambale & Uschmajew, Optim. Letters 16, 2022; the running estimate of ω: Hageman & Young, Applied Iterative Methods.
    """

    over_relaxation: float | str = "auto"
    scaling: float | None = 4.0

    def __post_init__(self) -> None:
        omega, scaling = self.over_relaxation, self.scaling
        if omega != "auto" and (not isinstance(omega, int | float) or isinstance(omega, bool)):
            raise TypeError(f'Sinkhorn(over_relaxation=...) must be a number or "auto", got {omega!r}')
        if isinstance(omega, int | float) and not 0 < omega < 2:
            raise ValueError(f"Sinkhorn(over_relaxation=...) must be between 0 and 2, got {omega!r}")
        if scaling is not None and (not isinstance(scaling, int | float) or isinstance(scaling, bool)):
            raise TypeError(f"Sinkhorn(scaling=...) must be a number or None, got {scaling!r}")
        if scaling is not None and not 1 <= scaling < math.inf:
            raise ValueError(f"Sinkhorn(scaling=...) must be at least 1, got {scaling!r}")

    def run(self, problem: Transport, init: Potentials | None, goal: Goal) -> Found:
        results = Results(problem, goal, "Sinkhorn's iteration")
        target = problem.gamma[:, None, None]
        gamma = target
        if init is None and self.scaling is not None and self.scaling > 1:
            gamma = torch.minimum(target, _START / spread(problem.cost))
        kernel = kernel_of(problem, None if init is None else init[1], gamma)
        pace = _Pace(target, self.over_relaxation)
        count = stayed = 0
        while True:
            error = results.error(kernel)
            if count:
                goal.report(count, error)
            arrived = (kernel.gamma >= target).flatten()
            done = (error <= results.inner) & arrived | ~torch.isfinite(error)
            if count >= goal.max_iterations:
                done = torch.ones_like(done)
            if bool(done.any()):
                if not bool(arrived[done].all()):
                    kernel.grow(torch.where(done[:, None, None], target, kernel.gamma))
                keep = results.finish(kernel, done, count, None)
                if keep is None:
                    return results.found()
                kernel, target, error, arrived = kernel.select(keep), target[keep], error[keep], arrived[keep]
                pace.select(keep)
            ready = ~arrived & ((error < _LEVEL) | torch.tensor(stayed >= _STAY))
            if bool(ready.any()):
                kernel.grow(torch.where(ready[:, None, None], torch.minimum(kernel.gamma * (self.scaling or 1.0), target), kernel.gamma))
                pace.reset(ready)
                stayed = 0
            elif not kernel.within_reach():
                kernel.absorb(kernel.full_psi(), kernel.gamma)
            pace.observe(error, ready)
            times = min(BLOCK, goal.max_iterations - count)
            pace.sweep(kernel, times)
            count, stayed = count + times, stayed + times


class _Pace:
    """The ω of each sample: from the rate λ of its error, by which the plain iteration's is (λ + ω − 1)² / (λ ω²)."""

    def __init__(self, like: Tensor, over_relaxation: float | str) -> None:
        self.fixed = over_relaxation != "auto"
        self.omega = torch.full_like(like, float(over_relaxation) if self.fixed else 1.0)
        self.before = torch.full_like(like.flatten(), torch.nan)

    def select(self, index: Tensor) -> None:
        self.omega, self.before = self.omega[index], self.before[index]

    def reset(self, changed: Tensor) -> None:
        """Samples whose γ has changed begin anew."""
        if not self.fixed:
            self.omega = torch.where(changed[:, None, None], 1.0, self.omega)

    def observe(self, error: Tensor, changed: Tensor) -> None:
        """What the errors before and after a block say."""
        if not self.fixed:
            rate = (error / self.before).pow(1 / BLOCK)[:, None, None]
            plain = (rate + self.omega - 1).square() / (rate * self.omega.square())
            wanted = 2 / (1 + (1 - plain.clamp(0.0, 1.0)).sqrt())
            # Faster than ω − 1 nothing can be; slower, the estimate is of use; growth means that it was not, or came too early.
            usable = (rate > self.omega - 1) & (rate < 1) & (error < 0.3)[:, None, None]
            self.omega = torch.where(usable, torch.maximum(self.omega, wanted).clamp(max=_FULL), self.omega)
            self.omega = torch.where(rate > 1.0, 1 + 0.5 * (self.omega - 1), self.omega)
        self.before = torch.where(changed, torch.nan, error)

    def sweep(self, kernel: Kernel, times: int) -> None:
        """Iterations, the last one plain in u, so that rows are met and the error can be seen."""
        if not self.fixed and bool((self.omega == 1).all()):
            kernel.sweep(times)
            return
        u, v, sums = kernel.u, kernel.v, kernel.sums
        for k in range(times):
            v = v * (kernel.c / (v * sums)).pow(self.omega)
            rows = kernel.row_sums(v)
            u = u * (kernel.r / (u * rows)).pow(self.omega) if k + 1 < times else kernel.r / rows
            sums = kernel.column_sums(u)
        kernel.u, kernel.v, kernel.sums = u, v, sums
