"""The arithmetic of a backward pass and nothing else: no checks, no shapes but these, no choices, no transforms. What is measured against this
is what the package adds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.peers.loop import Solved, Statement


def dense_backward(statement: Statement, solved: Solved, v: Tensor) -> Callable[[], Tensor]:
    """x̄ (b, n) of a dense node: H and A by one batched call each over a graph that is built beforehand, one factorisation, one pull-back."""
    x, y = (t.detach().requires_grad_() for t in (solved.x, solved.y))
    with torch.enable_grad():
        h = statement.equality_constraints(x, y)
        total = statement.objective(x, y).sum()
        if h is not None:
            total = total + (solved.multipliers * h).sum()
        (gradient,) = torch.autograd.grad(total, y, create_graph=True)
    batch, m = y.shape
    directions = torch.eye(m, dtype=y.dtype, device=y.device).unsqueeze(1).expand(m, batch, m)

    def unconstrained() -> Tensor:
        (H,) = torch.autograd.grad(gradient, y, directions, is_grads_batched=True, retain_graph=True)
        u = torch.cholesky_solve(v.unsqueeze(2), torch.linalg.cholesky_ex(H.transpose(0, 1))[0]).squeeze(2)
        return -torch.autograd.grad(gradient, x, u, retain_graph=True)[0]

    if h is None:
        return unconstrained
    p = h.shape[1]
    rows = torch.eye(p, dtype=y.dtype, device=y.device).unsqueeze(1).expand(p, batch, p)

    def constrained() -> Tensor:
        (H,) = torch.autograd.grad(gradient, y, directions, is_grads_batched=True, retain_graph=True)
        (A,) = torch.autograd.grad(h, y, rows, is_grads_batched=True, retain_graph=True)
        K = v.new_zeros(batch, m + p, m + p)
        K[:, :m, :m], K[:, m:, :m], K[:, :m, m:] = H.transpose(0, 1), A.transpose(0, 1), A.permute(1, 2, 0)
        factor, pivots, _ = torch.linalg.lu_factor_ex(K)
        solution = torch.linalg.lu_solve(factor, pivots, torch.cat([v, v.new_zeros(batch, p)], 1).unsqueeze(2)).squeeze(2)
        return -torch.autograd.grad([gradient, h], x, [solution[:, :m], solution[:, m:]], retain_graph=True)[0]

    return constrained


def diagonal_backward(statement: Statement, solved: Solved, v: Tensor) -> Callable[[], Tensor]:
    """x̄ of an unconstrained node with a diagonal H: one product, one division, one pull-back."""
    x, y = (t.detach().requires_grad_() for t in (solved.x, solved.y))
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(statement.objective(x, y).sum(), y, create_graph=True)
    ones = torch.ones_like(y)

    def run() -> Tensor:
        (diagonal,) = torch.autograd.grad(gradient, y, ones, retain_graph=True)
        return -torch.autograd.grad(gradient, x, v / diagonal, retain_graph=True)[0]

    return run


def pooling_backward(x: Tensor, u: Tensor, v: Tensor) -> Callable[[], Tensor]:
    """x̄ (b, C, N) of pseudo-Huber pooling with α = 1 at its minimum u (b, C): the weights, H = Σ κ₁ I + κ₂ d dᵀ, one Cholesky, one pass to write."""

    def run() -> Tensor:
        d = u.unsqueeze(2) - x
        kappa1 = (1 + d.square().sum(1)).rsqrt()
        kappa2 = -(kappa1**3)
        H = torch.diag_embed(kappa1.sum(1, keepdim=True).expand_as(u)) + (d * kappa2.unsqueeze(1)) @ d.mT
        w = torch.cholesky_solve(v.unsqueeze(2), torch.linalg.cholesky_ex(H)[0])
        return kappa1.unsqueeze(1) * w + d * (kappa2.unsqueeze(1) * (w.mT @ d))

    return run


def diagonal_with_sum(u: Tensor, v: Tensor) -> Callable[[], Tensor]:
    """x̄ (b, n) of entropic top-k at temperature 1 and its solution u (b, n): H⁻¹ = diag(u (1 − u)), one row of ones."""

    def run() -> Tensor:
        slope = u * (1 - u)
        weighted = slope * v
        return weighted - slope * (weighted.sum(1, keepdim=True) / slope.sum(1, keepdim=True))

    return run


def transport_with_factor(P: Tensor, V: Tensor, gamma: float, kept: bool) -> Callable[[], Tensor]:
    """−γ P∘(V − w_r 1ᵀ − 1 w_cᵀ) of a plan P (…, m, n), by one Cholesky of the Schur complement; `kept`: by a factor that is there already."""

    def factorised() -> tuple[Tensor, Tensor, Tensor]:
        r, Q = P.sum(-1), P[..., 1:]
        schur = torch.diag_embed(Q.sum(-2)) - Q.mT @ (Q / r.unsqueeze(-1))
        return r, Q, torch.linalg.cholesky_ex(schur)[0]

    before = factorised() if kept else None

    def run() -> Tensor:
        r, Q, factor = before if before is not None else factorised()
        weighted = P * V
        rows = weighted.sum(-1)
        side = weighted.sum(-2)[..., 1:] - (Q.mT @ (rows / r).unsqueeze(-1)).squeeze(-1)
        w_c = torch.cholesky_solve(side.unsqueeze(-1), factor).squeeze(-1)
        w_r = (rows - (Q @ w_c.unsqueeze(-1)).squeeze(-1)) / r
        return -gamma * P * (V - w_r.unsqueeze(-1) - torch.nn.functional.pad(w_c, (1, 0)).unsqueeze(-2))

    return run
