"""The scaling domain: P = diag(u) K diag(v) with K = exp(γ(φ + ψ − M)), computed once and for all while u and v stay moderate.

An iteration is a few products with K; exponentials are needed only when scalings leave the range in which K loses nothing, or γ
changes. Then log v goes into ψ ("absorption": Schmitzer, SIAM J. Sci. Comput. 41(3), 2019), and φ follows as the hard minimum, so each row
of K has the greatest entry 1. Here φ and ψ carry the weights, P_ij = exp(γ(φ_i + ψ_j − M_ij)); `potentials` takes them out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from declarative.layers.transport.statement import Transport, soft_minimum

_LOG2E = math.log2(math.e)
_CORRECTIONS = 3


def reach(dtype: torch.dtype) -> float:
    """The |log v| up to which K loses nothing that counts."""
    return 100.0 if dtype == torch.float64 else 20.0


@dataclass(eq=False)
class Kernel:
    """Samples of a batch in the scaling domain. Vectors are rows: batched products of a row with a matrix are several times as fast.

    Args:
        cost: (b, m, n), +inf where nothing may be sent, thus all along rows and columns without mass.
        r, c: (b, 1, m), (b, 1, n); 1 where there is no mass.
        row_floor, column_floor: what is added to sums: 1 where nothing can be sent, else nothing that counts. None: sums cannot vanish.
        log_columns: log c (b, 1, n), 0 where there is no mass: what weights add to γψ.
        gamma: (b, 1, 1) of this kernel; on the way to a large γ smaller than that of the problem.
        phi, psi: (b, 1, m), (b, 1, n) the potentials that K contains; log u / γ and log v / γ come on top.
        k: K (b, m, n); (1, m, n) while all samples share it.
        u, v: (b, 1, m), (b, 1, n)
        sums: u K (b, 1, n)
        calm: (b,) whether the next correction is within reach: if not, K may have to change after each.
        whole: False where something is empty that no floor takes care of.
    """

    cost: Tensor
    r: Tensor
    c: Tensor
    row_floor: Tensor | None
    column_floor: Tensor | None
    log_columns: Tensor
    gamma: Tensor
    phi: Tensor
    psi: Tensor
    k: Tensor
    u: Tensor
    v: Tensor
    sums: Tensor
    calm: np.ndarray
    whole: bool = True

    def row_sums(self, v: Tensor) -> Tensor:
        """K v."""
        return _product(v, self.k.mT, self.row_floor)

    def column_sums(self, u: Tensor) -> Tensor:
        """u K."""
        return _product(u, self.k, self.column_floor)

    def sweep(self, times: int) -> list[Tensor]:
        """Sinkhorn's iteration; afterwards rows are met exactly. Returns v after each, or nothing where K had to change meanwhile."""
        iterates = []
        if not self.calm.all():
            for _ in range(times):
                self.v = self.c / self.sums
                self.settle()
                self.keep_within_reach(0.5)
            return iterates
        if self.row_floor is None and self.k.shape[0] == self.c.shape[0]:
            r, c, u, sums, k, kt = self.r, self.c, self.u, self.sums, self.k, self.k.mT
            for _ in range(times):
                v = c / sums
                u = r / torch.bmm(v, kt)
                sums = torch.bmm(u, k)
                iterates.append(v)
            self.u, self.sums = u, sums
        else:
            for _ in range(times):
                self.v = self.c / self.sums
                self.settle()
                iterates.append(self.v)
        if iterates:
            self.v = iterates[-1]
        return iterates

    def settle(self) -> None:
        """u and the sums that belong to v."""
        self.u = self.r / self.row_sums(self.v)
        self.sums = self.column_sums(self.u)

    def residual(self) -> Tensor:
        """c − Pᵀ1 (b, 1, n): the gradient of the dual in log v."""
        return torch.addcmul(self.c, self.v, self.sums, value=-1)

    def plan(self) -> Tensor:
        """P (b, m, n)."""
        return (self.k * self.v).mul_(self.u.mT)

    def full_psi(self) -> Tensor:
        """ψ with log v in it (b, 1, n)."""
        return torch.addcdiv(self.psi, self.v.log(), self.gamma)

    def keep_within_reach(self, share: float = 1.0) -> None:
        """Absorb where K would soon no longer hold all that counts."""
        strays = torch.linalg.vector_norm(self.v.log(), math.inf, (1, 2)) > share * reach(self.v.dtype)
        if bool(strays.any()):
            self.absorb_some(strays.cpu().numpy(), self.full_psi(), self.gamma)

    def grow(self, which: np.ndarray, gamma: Tensor) -> None:
        """The same potentials of the problem at another γ (b, 1, 1), for the samples of a mask."""
        self.absorb_some(which, self.full_psi() + self.log_columns * (1 / gamma - 1 / self.gamma), gamma)

    def absorb(self, psi: Tensor, gamma: Tensor) -> None:
        """K anew at this ψ (b, 1, n) and γ (b, 1, 1).

        Columns whose next correction would be out of reach get it at once: they are nowhere near the solution.
        """
        self.gamma, self.v = gamma, torch.ones_like(self.c)
        for _ in range(_CORRECTIONS):
            self._exponentiate(self.cost, psi, gamma)
            self.settle()
            if self._look().all():
                return
            # Sums that have underflowed say nothing; the largest exponent does.
            logs = (self.c / self.sums).log_()
            logs = torch.where(torch.isinf(logs), -gamma * self.slack().amax(1, keepdim=True), logs)
            self.whole = bool(torch.isfinite(logs).all())
            if not self.whole:
                return
            psi = self.psi + torch.where(logs.abs() > 0.5 * reach(psi.dtype), logs / gamma, 0.0)

    def _look(self) -> np.ndarray:
        """Whether the next correction is within reach."""
        size = torch.linalg.vector_norm((self.c / self.sums).log_(), math.inf, (1, 2))
        self.calm = (size <= 0.5 * reach(size.dtype)).cpu().numpy()
        return self.calm

    def absorb_some(self, which: np.ndarray, psi: Tensor, gamma: Tensor) -> None:
        """`absorb` for the samples of a mask (b,); the others, whose psi and gamma do not count, keep their K to the last bit."""
        if which.all():
            self.absorb(psi, gamma)
        elif which.any():
            index = torch.from_numpy(which.nonzero()[0]).to(psi.device)
            part = self.select(index)
            part.absorb(psi[index], gamma[index])
            if self.k.shape[0] != which.shape[0]:
                self.k, self.phi, self.psi = (x.repeat(which.shape[0], 1, 1) for x in (self.k, self.phi, self.psi))
            self.k[index] = part.k
            self.calm = self.calm.copy()
            self.calm[which] = part.calm
            for name in ("gamma", "phi", "psi", "u", "v", "sums"):
                setattr(self, name, getattr(self, name).index_copy(0, index, getattr(part, name)))

    def slack(self) -> Tensor:
        """φ + ψ − M (b, m, n): the exponents over γ."""
        return self.phi.mT - (self.cost - self.psi)

    def _exponentiate(self, cost: Tensor, psi: Tensor, gamma: Tensor) -> None:
        away = cost - psi
        phi = away.amin(2, keepdim=True)
        if self.row_floor is not None:
            phi = torch.where(torch.isfinite(phi), phi, 0.0)
        # A power of two takes a fraction of the time of exp, above all where it underflows.
        self.k = torch.sub(phi, away, out=away).mul_(gamma * _LOG2E).exp2_()
        self.phi, self.psi = phi.mT, psi

    def share(self) -> None:
        """One K for all samples, which have one cost and one γ: at ψ = 0."""
        gamma = self.gamma[:1]
        self._exponentiate(self.cost[:1], torch.zeros_like(self.c[:1]), gamma)
        self.v = torch.exp(self.log_columns)
        self.settle()
        self._look()

    def potentials(self, problem: Transport) -> tuple[Tensor, Tensor]:
        """φ (b, m) and ψ (b, n) of the problem, finite everywhere: the soft minimum where there is no mass."""
        phi = torch.addcdiv(self.phi, (self.u / self.r).log_(), self.gamma).squeeze(1)
        psi = torch.addcdiv(self.psi, (self.v / self.c).log_(), self.gamma).squeeze(1)
        if self.row_floor is None:
            return phi, psi
        gamma, empty_r, empty_c = self.gamma.flatten(), problem.rows <= 0, problem.columns <= 0
        psi = psi.masked_fill(empty_c, 0.0)
        phi = torch.where(empty_r, soft_minimum(problem.cost, problem.columns, psi, gamma), phi)
        return phi, torch.where(empty_c, soft_minimum(problem.cost.mT, problem.rows, phi, gamma), psi)

    def select(self, index: Tensor) -> Kernel:
        """These samples."""
        b = self.c.shape[0]

        def chosen(x: Any) -> Any:
            if isinstance(x, np.ndarray):
                return x[index.cpu().numpy()]
            if not isinstance(x, Tensor) or (x.shape[0] == 1 and b > 1):
                return x
            return x[: index.shape[0]] if x.stride(0) == 0 else x[index]

        return Kernel(**{field.name: chosen(getattr(self, field.name)) for field in fields(self)})


def _product(row: Tensor, matrix: Tensor, floor: Tensor | None) -> Tensor:
    if matrix.shape[0] != row.shape[0]:  # one K for the batch: one gemm
        product = torch.mm(row.squeeze(1), matrix[0]).unsqueeze(1)
        return product if floor is None else product + floor
    return torch.bmm(row, matrix) if floor is None else torch.baddbmm(floor, row, matrix)


def spread(cost: Tensor) -> Tensor:
    """The range of the finite costs, (b, 1, 1)."""
    least, most = cost.amin((1, 2), keepdim=True), cost.amax((1, 2), keepdim=True)
    if bool(torch.isinf(most).any()):
        most = torch.where(torch.isinf(cost), least, cost).amax((1, 2), keepdim=True)
    wide = most - least
    return torch.where(torch.isfinite(wide), wide, 0.0)


def kernel_of(problem: Transport, psi: Tensor | None, gamma: Tensor) -> Kernel:
    """The kernel at the potential ψ (b, n) of the problem, without weights; None: zero. gamma: (b, 1, 1)"""
    cost, r, c = problem.cost, problem.rows.unsqueeze(1), problem.columns.unsqueeze(1)
    b, rough, least = cost.shape[0], np.zeros(cost.shape[0], dtype=bool), 1e-200 if cost.dtype == torch.float64 else 1e-30
    if float(r.amin()) >= least**0.5:
        weights = c.log()
        kernel = Kernel(cost, r, c, None, None, weights, gamma, r, c, cost, r, c, c, rough)
        if psi is None and b > 1 and cost.stride(0) == 0 and bool((gamma == gamma[0]).all()) and float(weights.amin()) > -reach(cost.dtype):
            kernel.share()
        if not kernel.calm.all():
            kernel.absorb(weights / gamma if psi is None else psi.unsqueeze(1) + weights / gamma, gamma)
        if kernel.whole:
            return kernel
    # Rows or columns without mass, or with nowhere to go.
    cost = torch.where((r <= 0).mT | (c <= 0), torch.inf, cost)
    allowed = cost < torch.inf
    dead_r, dead_c = ~allowed.any(2).unsqueeze(1), ~allowed.any(1).unsqueeze(1)
    row_floor, column_floor = torch.where(dead_r, 1.0, least).to(cost.dtype), torch.where(dead_c, 1.0, least).to(cost.dtype)
    r, c = torch.where(dead_r, 1.0, r), torch.where(dead_c, 1.0, c)
    weights = c.log()
    kernel = Kernel(cost, r, c, row_floor, column_floor, weights, gamma, r, c, cost, r, c, c, rough)
    kernel.absorb(weights / gamma if psi is None else psi.unsqueeze(1) + weights / gamma, gamma)
    return kernel
