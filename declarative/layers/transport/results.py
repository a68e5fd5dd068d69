"""Where the samples of a batch end, one after another."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from declarative.layers.transport.kernel import Kernel
from declarative.layers.transport.methods import Goal
from declarative.layers.transport.statement import Found, Transport


def host(x: Tensor) -> np.ndarray:
    """Numbers to decide by: for a batch that is cheaper where they need no kernel launches."""
    return x.cpu().numpy()


class Results:
    """Collects what is found of each sample; `alive` (s,) are those that still run, None while all do.

    Args:
        method: in words, for `Found.method`.
    """

    def __init__(self, problem: Transport, goal: Goal, method: str) -> None:
        self.problem, self.goal, self.method = problem, goal, method
        self.alive: Tensor | None = None
        self.running = problem.cost.shape[0]
        self.mass = host(problem.mass)
        # Rounding of the plan itself must not turn a sample that has converged into one that has not.
        self.inner = 0.9 * goal.tolerance
        self._parts: list[tuple[Tensor | None, Tensor, Tensor, Tensor, int, Tensor | None]] = []

    def error(self, residual: Tensor) -> np.ndarray:
        """(s,): the marginal error of the running samples, whose rows are met."""
        return host(torch.linalg.vector_norm(residual, 1, (1, 2))) / self.mass

    @property
    def target(self) -> Tensor:
        """The γ of the running samples, (s,)."""
        return self.problem.gamma if self.alive is None else self.problem.gamma[self.alive]

    def finish(self, kernel: Kernel, done: np.ndarray, iterations: int, factor: Tensor | None) -> Tensor | None:
        """Keep what the samples `done` (s,) have come to.

        Returns:
            the indices of the others among the running samples; None: there is none left.
        """
        if done.all():
            problem = self.problem if self.alive is None else self.problem.select(self.alive)
            self._parts.append((self.alive, kernel.plan(), *kernel.potentials(problem), iterations, factor))
            return None
        device = kernel.k.device
        chosen, keep = (torch.from_numpy(mask.nonzero()[0]).to(device) for mask in (done, ~done))
        alive = torch.arange(self.running, device=device) if self.alive is None else self.alive
        indices, ended = alive[chosen], kernel.select(chosen)
        factor = None if factor is None else factor[chosen]
        self._parts.append((indices, ended.plan(), *ended.potentials(self.problem.select(indices)), iterations, factor))
        self.alive, self.mass, self.running = alive[keep], self.mass[~done], keep.shape[0]
        return keep

    def found(self) -> Found:
        """All of it, in order."""
        if len(self._parts) == 1:
            _, plan, rows, columns, iterations, factor = self._parts[0]
            counts = torch.full(plan.shape[:1], iterations, device=plan.device)
        else:
            order = torch.cat([part[0] for part in self._parts if part[0] is not None]).argsort()
            plan, rows, columns = (torch.cat([part[i] for part in self._parts])[order] for i in (1, 2, 3))  # pyright: ignore[reportArgumentType]
            counts = torch.cat([torch.full(part[1].shape[:1], part[4], device=plan.device) for part in self._parts])[order]
            factors = [part[5] for part in self._parts if part[5] is not None]
            factor = torch.cat(factors)[order] if len(factors) == len(self._parts) else None
        error = self.problem.marginal_error(plan)
        return Found(plan, rows, columns, error, counts, error <= self.goal.tolerance, factor, self.method)
