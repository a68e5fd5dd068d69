"""Entropic transport in plain tensors: a batch of problems, and what a method returns for it.

min_P ⟨P, M⟩ + (1/γ) Σ_ij P_ij log(P_ij / r_i c_j)   s.t.   P1 = r,  Pᵀ1 = c
P_ij = r_i c_j exp(γ(φ_i + ψ_j − M_ij));   the potentials (φ, ψ) are fixed up to (φ + t, ψ − t)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Transport:
    """A batch of b problems.

    Args:
        cost: M (b, m, n); +inf where nothing may be sent. May be expanded: one M for the batch.
        rows, columns: r (b, m) and c (b, n), nonnegative and of the same mass; zeros are allowed.
        gamma: (b,)
    """

    cost: Tensor
    rows: Tensor
    columns: Tensor
    gamma: Tensor

    @property
    def mass(self) -> Tensor:
        """(b,)"""
        return self.rows.sum(1)

    def exponents(self, rows: Tensor, columns: Tensor) -> Tensor:
        """γ(φ_i + ψ_j − M_ij), (b, m, n): −inf where nothing may be sent."""
        return (rows.unsqueeze(2) + columns.unsqueeze(1) - self.cost).mul_(self.gamma[:, None, None])

    def plan(self, rows: Tensor, columns: Tensor) -> Tensor:
        """P of these potentials, (b, m, n)."""
        return self.exponents(rows, columns).exp_().mul_(self.rows.unsqueeze(2)).mul_(self.columns.unsqueeze(1))

    def marginal_error(self, plan: Tensor) -> Tensor:
        """(b,): (‖P1 − r‖₁ + ‖Pᵀ1 − c‖₁) / mass."""
        norm = torch.linalg.vector_norm
        return (norm(plan.sum(2) - self.rows, 1, 1) + norm(plan.sum(1) - self.columns, 1, 1)) / self.mass

    def select(self, index: Tensor) -> Transport:
        """The sub-batch of these samples."""
        return Transport(self.cost[index], self.rows[index], self.columns[index], self.gamma[index])

    @property
    def transposed(self) -> Transport:
        """The problem of Pᵀ."""
        return Transport(self.cost.mT, self.columns, self.rows, self.gamma)


@dataclass(frozen=True, eq=False)
class Found:
    """What a method returns: numbers only, without a graph.

    Args:
        plan: P (b, m, n). Its marginals are the best that the dtype allows: computed from scalings where γM exceeds what potentials can
            resolve, so it may differ from `Transport.plan(rows, columns)` by rounding of γφ.
        rows, columns: φ (b, m) and ψ (b, n): finite everywhere, also where r or c is zero.
        error: (b,) `Transport.marginal_error` of this very plan.
        iterations: (b,) int64.
        converged: (b,) bool: error is at most the tolerance.
        factor: (b, k, k) the lower Cholesky factor of `system.schur_complement` near the solution, k = min(m, n), where the method has
            one (Newton's last step); None: there is none. It need not be exact: the backward pass refines.
        method: in words, for `Solution.report`.
    """

    plan: Tensor
    rows: Tensor
    columns: Tensor
    error: Tensor
    iterations: Tensor
    converged: Tensor
    factor: Tensor | None = None
    method: str = ""


def no_iterations(problem: Transport) -> Tensor:
    """(b,) zeros."""
    return torch.zeros(problem.cost.shape[0], dtype=torch.int64, device=problem.cost.device)


def soft_minimum(cost: Tensor, weights: Tensor, psi: Tensor, gamma: Tensor) -> Tensor:
    """−(1/γ) log Σ_j c_j exp(γ(ψ_j − M_ij)): what the potential of an empty row is."""
    scale = gamma[:, None, None]
    log = torch.where(weights > 0, torch.where(weights > 0, weights, 1.0).log(), -torch.inf)
    blocked = torch.isinf(cost).all(2)
    terms = torch.where(blocked.unsqueeze(2), 0.0, log.unsqueeze(1) + scale * (psi.unsqueeze(1) - cost))
    return torch.where(blocked, 0.0, -torch.logsumexp(terms, 2) / gamma.unsqueeze(1))
