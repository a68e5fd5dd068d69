"""What a method of entropic transport is, and what all of them share: orientation, results, progress."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from declarative.layers.transport.statement import Found, Transport
from declarative.solvers.iterative import Progress

Potentials = tuple[Tensor, Tensor]
Report = Callable[[Progress], object] | None


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Finds the plan of a batch of problems: numbers only, each sample stopped by itself."""

    @abstractmethod
    def run(self, problem: Transport, init: Potentials | None, goal: Goal) -> Found:
        """Solve a problem with n ≤ m."""

    def solve(self, problem: Transport, init: Potentials | None, *, tolerance: float, max_iterations: int, progress: Report = None) -> Found:
        """Solve the batch.

        Args:
            problem: a batch of b problems with rows and columns of the same mass.
            init: potentials φ (b, m) and ψ (b, n) to start from; None: a cold start.
            tolerance: of `Transport.marginal_error`.
            max_iterations: steps at most, for each sample.
            progress: called with a `declarative.solvers.Progress` now and then.

        Returns:
            What was found, in the problem's own orientation. A problem that no plan fits ends unconverged, in finite numbers.
        """
        if problem.cost.shape[0] == 0:
            none = torch.zeros_like(problem.gamma)
            return Found(problem.cost, problem.rows, problem.columns, none, none.long(), none.bool())
        goal = Goal(type(self).__name__, tolerance, max_iterations, progress, problem.cost.shape[0])
        with torch.no_grad():
            if problem.cost.shape[1] >= problem.cost.shape[2]:
                return self.run(problem, init, goal)
            found = self.run(problem.transposed, init and (init[1], init[0]), goal)
        return replace(found, plan=found.plan.mT, rows=found.columns, columns=found.rows)


@dataclass(frozen=True)
class Goal:
    """When to stop and whom to tell."""

    name: str
    tolerance: float
    max_iterations: int
    progress: Report
    total: int

    def report(self, iteration: int, error: np.ndarray) -> None:
        """`error`: (s,) of the running samples."""
        if self.progress is not None and iteration:
            self.progress(Progress(self.name, iteration, error.shape[0], self.total, float(error.max())))
