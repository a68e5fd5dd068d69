"""The scaling domain: P = u K v with K = exp(γ(φ + ψ − M)) computed once and for all while u and v stay moderate.

An iteration is a few products with K; exponentials are needed only when scalings leave the range in which K loses nothing, or γ
changes. Then log v goes into ψ ("absorption": Schmitzer, SIAM J. Sci. Comput. 41(3), 2019), and φ follows as the hard minimum, so each row
of K has the greatest entry 1. Here φ and ψ carry the weights, P_ij = exp(γ(φ_i + ψ_j − M_ij)): `potentials` takes them out.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from declarative.layers.transport.statement import Transport


def reach(dtype: torch.dtype) -> float:
    """The |log v| up to which K loses nothing that counts."""
    return 100.0 if dtype == torch.float64 else 20.0


@dataclass(eq=False)
class Kernel:
    """Samples of a batch in the scaling domain; vectors are columns, so that products are `bmm`s.

    Args:
        cost: (b, m, n), +inf where nothing may be sent, thus all along rows and columns without mass.
        r, c: (b, m, 1), (b, n, 1); 1 where there is no mass.
        row_floor, column_floor: what is added to sums: 1 where nothing can be sent, else nothing that counts. None: sums cannot vanish.
        log_columns: log c (b, n, 1), 0 where there is no mass: what weights add to γψ.
        gamma: (b, 1, 1) of this kernel; on the way to a large γ smaller than that of the problem.
        phi, psi: (b, m, 1), (b, n, 1) the potentials that K contains; log u / γ and log v / γ come on top.
        slack: φ + ψ − M (b, m, n), the exponents over γ.
        k: K (b, m, n); (1, m, n) while all samples share it.
        u, v: (b, m, 1), (b, n, 1)
        sums: Kᵀu (b, n, 1)
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
    slack: Tensor
    k: Tensor
    u: Tensor
    v: Tensor
    sums: Tensor

    def row_sums(self, v: Tensor) -> Tensor:
        """K v."""
        return _product(self.k, v, self.row_floor)

    def column_sums(self, u: Tensor) -> Tensor:
        """Kᵀ u."""
        return _product(self.k.mT, u, self.column_floor)

    def sweep(self, times: int) -> None:
        """Sinkhorn's iteration; afterwards rows are met exactly."""
        for _ in range(times):
            self.v = self.c / self.sums
            self.u = self.r / self.row_sums(self.v)
            self.sums = self.column_sums(self.u)

    def settle(self) -> None:
        """u and the sums that belong to v."""
        self.u = self.r / self.row_sums(self.v)
        self.sums = self.column_sums(self.u)

    def residual(self) -> Tensor:
        """c − Pᵀ1 (b, n, 1): the gradient of the dual in log v."""
        return torch.addcmul(self.c, self.v, self.sums, value=-1)

    def value(self) -> tuple[Tensor, Tensor]:
        """γ times the dual's value (b, 1, 1), up to a constant, and what rounding can make of it."""
        phi = torch.addcdiv(self.phi, self.u.log(), self.gamma)
        rows, columns = self.r * phi, self.c * self.full_psi()
        value = (rows.sum(1, keepdim=True) + columns.sum(1, keepdim=True)) * self.gamma
        size = (rows.abs().sum(1, keepdim=True) + columns.abs().sum(1, keepdim=True)) * self.gamma
        return value, 4 * torch.finfo(size.dtype).eps * size

    def plan(self) -> Tensor:
        """P (b, m, n)."""
        return (self.k * self.u).mul_(self.v.mT)

    def full_psi(self) -> Tensor:
        """ψ with log v in it (b, n, 1)."""
        return torch.addcdiv(self.psi, self.v.log(), self.gamma)

    def within_reach(self) -> bool:
        """Whether K still holds all that counts; else it is time to absorb."""
        return bool(self.v.log().abs().amax() <= reach(self.v.dtype))

    def grow(self, gamma: Tensor) -> None:
        """The same potentials of the problem at another γ (b, 1, 1)."""
        shift = self.log_columns * (1 / gamma - 1 / self.gamma)
        self.absorb(self.full_psi() + shift, gamma)

    def absorb(self, psi: Tensor, gamma: Tensor) -> None:
        """K anew at this ψ (b, n, 1) and γ (b, 1, 1)."""
        away = torch.sub(self.cost, psi.mT)
        phi = away.amin(2, keepdim=True)
        if self.row_floor is not None:
            phi = torch.where(torch.isfinite(phi), phi, 0.0)
        slack = torch.sub(phi, away, out=away) if away.shape[0] == phi.shape[0] else phi - away
        k = (slack * gamma).exp_()
        least = -reach(k.dtype)
        top = k.amax(1).unsqueeze(2)
        low = top < torch.tensor(least).exp().item()
        if bool(low.any()):  # no row's favourite: the column is raised until it is one
            gap = slack.amax(1).unsqueeze(2)
            gap = torch.where(low & torch.isfinite(gap), gap, 0.0)
            psi, slack = psi - gap, slack - gap.mT
            k = (slack * gamma).exp_()
        self.phi, self.psi, self.gamma, self.slack, self.k = phi, psi, gamma, slack, k
        self.v = torch.ones_like(self.c)
        self.settle()

    def potentials(self, problem: Transport) -> tuple[Tensor, Tensor]:
        """φ (b, m) and ψ (b, n) of the problem, finite everywhere: the soft minimum where there is no mass."""
        gamma = self.gamma.squeeze(2)
        phi = (self.phi + (self.u / self.r).log() / self.gamma).squeeze(2)
        psi = (self.psi + (self.v / self.c).log() / self.gamma).squeeze(2)
        if self.row_floor is None:
            return phi, psi
        empty_r, empty_c = problem.rows <= 0, problem.columns <= 0
        log_r, log_c = problem.rows.log(), problem.columns.log()
        psi = psi.masked_fill(empty_c, 0.0)
        soft = -torch.logsumexp(log_c.unsqueeze(1) + (psi.unsqueeze(1) - problem.cost) * self.gamma, 2) / gamma
        phi = torch.where(empty_r, torch.where(torch.isfinite(soft), soft, 0.0), phi)
        soft = -torch.logsumexp(log_r.unsqueeze(2) + (phi.unsqueeze(2) - problem.cost) * self.gamma, 1) / gamma
        return phi, torch.where(empty_c, torch.where(torch.isfinite(soft), soft, 0.0), psi)

    def select(self, index: Tensor) -> Kernel:
        """These samples."""
        chosen = {field.name: getattr(self, field.name) for field in fields(self)}
        return Kernel(**{name: x if x is None or (x.shape[0] == 1 and self.c.shape[0] > 1) else x[index] for name, x in chosen.items()})


def _product(matrix: Tensor, vector: Tensor, floor: Tensor | None) -> Tensor:
    if matrix.shape[0] != vector.shape[0]:  # one K for the batch: one gemm
        product = torch.mm(matrix[0], vector.squeeze(2).mT).mT.unsqueeze(2)
        return product if floor is None else product + floor
    return torch.bmm(matrix, vector) if floor is None else torch.baddbmm(floor, matrix, vector)


def spread(cost: Tensor) -> Tensor:
    """The range of the finite costs, (b, 1, 1)."""
    least, most = cost.amin((1, 2), keepdim=True), cost.amax((1, 2), keepdim=True)
    if bool(torch.isinf(most).any()):
        most = torch.where(torch.isinf(cost), least, cost).amax((1, 2), keepdim=True)
    wide = most - least
    return torch.where(torch.isfinite(wide), wide, 0.0)


def kernel_of(problem: Transport, psi: Tensor | None, gamma: Tensor) -> Kernel:
    """The kernel at the potential ψ (b, n) of the problem, without weights; None: zero. gamma: (b, 1, 1)"""
    cost, r, c = problem.cost, problem.rows.unsqueeze(2), problem.columns.unsqueeze(2)
    row_floor = column_floor = None
    weights = c.log()
    least = 1e-200 if cost.dtype == torch.float64 else 1e-30
    if bool((r.amin() < least**0.5) | (c.amin() < least**0.5) | (cost.amax() == torch.inf)):
        empty_r, empty_c = r <= 0, c <= 0
        cost = torch.where(empty_r | empty_c.mT, torch.inf, cost)
        allowed = cost < torch.inf
        dead_r, dead_c = ~allowed.any(2).unsqueeze(2), ~allowed.any(1).unsqueeze(2)
        row_floor, column_floor = torch.where(dead_r, 1.0, least), torch.where(dead_c, 1.0, least)
        row_floor, column_floor = row_floor.to(cost.dtype), column_floor.to(cost.dtype)
        r, c = torch.where(dead_r, 1.0, r), torch.where(dead_c, 1.0, c)
        weights = torch.where(dead_c, 0.0, c.log())
    start = weights / gamma if psi is None else psi.unsqueeze(2) + weights / gamma
    kernel = Kernel(cost, r, c, row_floor, column_floor, weights, gamma, r, start, cost, cost, r, c, c)
    kernel.absorb(start, gamma)
    return kernel
