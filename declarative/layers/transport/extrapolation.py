"""Sinkhorn's iteration in cycles, each of which may begin with an extrapolation to what the last iterates converge to.

Near the solution log v follows x_{k+1} = A x_k + b. The combination Σ g_i x_i with Σ g_i = 1 whose increments nearly cancel,
min_g ‖Σ g_i (x_{i+1} − x_i)‖, is where such a sequence would end (reduced rank extrapolation: Mešina 1977; Sidi, "Vector extrapolation
methods", SIAM 2017): restarted, it has the speed of conjugate gradients with the cost of Sinkhorn's iteration.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from declarative.layers.transport.kernel import Kernel, reach
from declarative.layers.transport.results import Results, host

CYCLE = 6  # iterations between two extrapolations


class Extrapolated:
    """The cycles of a kernel's running samples."""

    length = CYCLE

    def __init__(self, kernel: Kernel, results: Results) -> None:
        self.kernel, self._results = kernel, results
        self._iterates: list[Tensor] = []

    def select(self, kernel: Kernel, index: Tensor) -> None:
        """Go on with these samples, whose kernel this is."""
        self.kernel = kernel
        self._iterates = [x[index] for x in self._iterates]

    def forget(self, changed: np.ndarray) -> None:
        """These samples have another γ, so all of them have another K."""
        if changed.any():
            self._iterates = []

    def cycle(self, error: np.ndarray, times: int = CYCLE, *, extrapolate: bool = True) -> int:
        """Extrapolate the last cycle, but for samples whose error has grown in it, and iterate unless that was enough.

        Returns:
            how many iterations there were; rows are met after them.
        """
        kernel, spent = self.kernel, 0
        if extrapolate and len(self._iterates) == CYCLE:
            spent = 1
            if (self._extrapolate(error) <= self._results.inner).all():
                return spent
        elif self._iterates:
            kernel.keep_within_reach()
        self._iterates = kernel.sweep(times)
        return spent + times

    def _extrapolate(self, error: np.ndarray) -> np.ndarray:
        """The error afterwards; samples for which it would be larger stay where they are."""
        kernel = self.kernel
        logs = torch.cat(self._iterates, 1).log_()
        latest = logs[:, 1:]
        increments = (latest - logs[:, :-1]).mul_(kernel.c.sqrt())
        gram = host(torch.bmm(increments, increments.mT)).astype(float)
        order = gram.shape[1]
        size = gram.trace(axis1=1, axis2=2) + 1e-200
        gram += 10 * torch.finfo(logs.dtype).eps * size[:, None, None] * np.eye(order)
        weights = np.linalg.solve(gram, np.ones((size.shape[0], order, 1)))[:, :, 0]
        weights /= weights.sum(1, keepdims=True)
        weights = np.where(np.isfinite(weights).all(1, keepdims=True), weights, np.eye(order)[-1])
        found = torch.bmm(torch.from_numpy(weights).to(logs).unsqueeze(1), latest)
        psi, nowhere = kernel.psi, np.zeros(size.shape, dtype=bool)
        moved = self._go(psi, found, nowhere)
        after = self._results.error(kernel.residual())
        worse = ~(after <= error)
        if worse.any():
            stay = torch.from_numpy(worse).to(found.device).view(-1, 1, 1)
            self._go(psi, torch.where(stay, latest[:, -1:], found), moved)
            after = self._results.error(kernel.residual())
        return after

    def _go(self, psi: Tensor, logs: Tensor, moved: np.ndarray) -> np.ndarray:
        """To these log v on top of ψ; where K does not reach so far, or has `moved` from ψ already, it is computed anew. Returns where."""
        kernel = self.kernel
        anew = moved | ~(host(torch.linalg.vector_norm(logs, math.inf, (1, 2))) <= reach(logs.dtype))
        if not anew.all():
            kernel.v = logs.exp()
            kernel.settle()
        kernel.absorb_some(anew, torch.addcdiv(psi, logs, kernel.gamma), kernel.gamma)
        return anew
