"""Where the samples of a batch end, one after another."""

from __future__ import annotations

import torch
from torch import Tensor

from declarative.layers.transport.kernel import Kernel
from declarative.layers.transport.methods import Goal
from declarative.layers.transport.statement import Found, Transport


class Results:
    """Collects what is found of each sample; `alive` (s,) are those that still run."""

    def __init__(self, problem: Transport, goal: Goal, method: str) -> None:
        self.problem, self.goal, self.method = problem, goal, method
        self.alive = torch.arange(problem.cost.shape[0], device=problem.cost.device)
        self.partial = False
        self.mass = problem.mass
        self.inner = 0.9 * goal.tolerance
        self._parts: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]] = []

    def error(self, kernel: Kernel) -> Tensor:
        """(s,): the marginal error of the running samples, whose rows are met."""
        return kernel.residual().abs().sum((1, 2)) / self.mass

    def finish(self, kernel: Kernel, done: Tensor, iterations: int, factor: Tensor | None) -> Tensor | None:
        """Keep what the samples `done` (s,) have come to.

        Returns:
            the indices of the others among the running samples; None: there is none left.
        """
        everything = bool(done.all())
        if everything:
            indices, problem = self.alive, self.problem if not self.partial else self.problem.select(self.alive)
        else:
            chosen = done.nonzero().squeeze(1)
            indices, kernel = self.alive[chosen], kernel.select(chosen)
            problem, factor = self.problem.select(indices), None if factor is None else factor[chosen]
        counts = torch.full_like(indices, iterations)
        self._parts.append((indices, kernel.plan(), *kernel.potentials(problem), counts, factor))
        if everything:
            return None
        keep = (~done).nonzero().squeeze(1)
        self.alive, self.mass, self.partial = self.alive[keep], self.mass[keep], True
        return keep

    def found(self) -> Found:
        """All of it, in order."""
        if len(self._parts) == 1:
            _, plan, rows, columns, counts, factor = self._parts[0]
        else:
            order = torch.cat([part[0] for part in self._parts]).argsort()
            plan, rows, columns, counts = (torch.cat([part[i] for part in self._parts])[order] for i in (1, 2, 3, 4))  # type: ignore[arg-type]
            factors = [part[5] for part in self._parts]
            factor = None if any(f is None for f in factors) else torch.cat([f for f in factors if f is not None])[order]
        error = self.problem.marginal_error(plan)
        return Found(plan, rows, columns, error, counts, error <= self.goal.tolerance, factor, self.method)
