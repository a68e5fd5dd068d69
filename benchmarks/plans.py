"""Entropic transport for the transport suite: random problems, the error of a plan, and the gradient that a plan should have.

Nothing here comes from the package, so that it can judge both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.timing import Prepare, Side

# The relative marginal error that every solver is asked for.
WANTED = 1e-8
_NEWTON_STEPS = 10


@dataclass(frozen=True)
class Problem:
    """M (…, m, n), r (…, m), c (…, n), and γ."""

    M: Tensor
    r: Tensor
    c: Tensor
    gamma: float


@dataclass(frozen=True)
class Found:
    """A peer's plan as its own kind of array, its iterations, and whether it gave up before what it was asked for.

    Args:
        seconds: how long it took, where the peer keeps its own clock.
    """

    P: Any
    iterations: int
    exhausted: bool = False
    seconds: float | None = None


@dataclass(frozen=True)
class Way:
    """One way of a peer to solve one problem.

    Args:
        settings: from loose to tight, in the peer's own measure (a tolerance, or a number of steps where it has no other): the first
            that leads to the error wanted is the one that is timed, so that no peer pays for accuracy that it was not asked for.
        solve: what is timed, unless there is a side.
        side: what is timed instead, of a peer that runs in another process.
        weigh: whether its memory is that of tensors, and can be counted.
    """

    name: str
    settings: Sequence[float]
    solve: Callable[[float], Found]
    side: Callable[[float], Side] | None = None
    weigh: bool = False

    def at(self, setting: float) -> Prepare | Side:
        """What is timed at this setting."""
        return (lambda: lambda: self.solve(setting)) if self.side is None else self.side(setting)


def points(n: int, gamma: float, batch: int | None = None, dtype: torch.dtype = torch.float64) -> Problem:
    """Squared distances of uniform random points in the unit square, scaled to a largest entry of 1; uniform marginals."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(batch or 1, n, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    M = torch.cdist(x, y).square()
    M = machine.here((M / M.amax((-2, -1), keepdim=True)).to(dtype))
    uniform = M.new_full((n,), 1 / n)
    return Problem(M if batch else M[0], uniform, uniform, gamma)


def as_tensor(P: Any) -> Tensor:
    """A copy in float64, on the CPU, of whatever a solver returned."""
    return P.detach().double().cpu() if isinstance(P, Tensor) else torch.from_numpy(np.array(P, dtype=np.float64))


def marginal_error(P: Any, problem: Problem) -> float:
    """(‖P1 − r‖₁ + ‖Pᵀ1 − c‖₁) / Σr, the largest over the batch, in float64; NaN where P has any."""
    P, r, c = (as_tensor(t) for t in (P, problem.r, problem.c))
    return float((((P.sum(-1) - r).abs().sum(-1) + (P.sum(-2) - c).abs().sum(-1)) / r.sum(-1)).max())


def polished(P: Tensor, problem: Problem) -> Tensor:
    """The plan that P is close to, to rounding in float64, by Newton's method on the dual."""
    P, r, c = (t.detach().double() for t in (P, problem.r, problem.c))
    for _ in range(_NEWTON_STEPS):
        rows, columns = _least_norm(P, r - P.sum(-1), c - P.sum(-2))
        P = P * (rows.unsqueeze(-1) + columns.unsqueeze(-2)).exp()
    return P


def gradient(P: Tensor, V: Tensor, gamma: float) -> Tensor:
    """⟨V, P⟩ differentiated by M, in float64: −γ P∘(V − w_r 1ᵀ − 1 w_cᵀ), w from the whole system of both marginals."""
    P, V = P.detach().double(), V.double()
    weighted = P * V
    rows, columns = _least_norm(P, weighted.sum(-1), weighted.sum(-2))
    return -gamma * P * (V - rows.unsqueeze(-1) - columns.unsqueeze(-2))


def _least_norm(P: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The solution of least norm of [diag(P1) P; Pᵀ diag(Pᵀ1)] w = (rows, columns), solved again for what is left of it.

    z = (1, −1) spans the kernel; with z zᵀ (scaled) added the matrix is positive definite and the solution the one orthogonal to z.
    """
    m, n = P.shape[-2:]
    kernel = torch.cat([P.new_ones(m), -P.new_ones(n)]) / (m + n) ** 0.5
    system = torch.cat([torch.cat([torch.diag_embed(P.sum(-1)), P], -1), torch.cat([P.mT, torch.diag_embed(P.sum(-2))], -1)], -2)
    factor = torch.linalg.cholesky(system + P.sum((-2, -1))[..., None, None] / (m + n) * torch.outer(kernel, kernel))
    side = torch.cat([rows, columns], -1).unsqueeze(-1)
    w = torch.zeros_like(side)
    for _ in range(3):
        w = w + torch.cholesky_solve(side - system @ w, factor)
    w = w.squeeze(-1)
    return w[..., :m], w[..., m:]
