"""The dense backward pass of the direct ancestor (ddn), from its published formulas.

At a solution of min f(x, y) s.t. h(x, y) = 0 with L = f + νᵀh, H = ∇²_yy L, B = ∇²_yx L, A = ∂h/∂y, C = ∂h/∂x, and for a
cotangent v of y:

    S = A H⁻¹ Aᵀ,   w = S⁻¹ A H⁻¹ v,   u = H⁻¹ (v − Aᵀ w),   x̄ = −(Bᵀ u + Cᵀ w)

The statement is batched by its author, and a matrix is filled row by row: for each output one call of torch.autograd.grad
with a cotangent that selects this output in every sample. The ancestor forms B and C that way as well, and the Hessian of
each constraint by itself (`form_blocks=True`); without, the loops stop at H and A and one more call pulls (u, w) back,
which is the stronger opponent.

Source: Gould, Hartley & Campbell, "Deep declarative networks", IEEE TPAMI 44(8), 2022, propositions 4.4 and 4.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Statement(Protocol):
    """Functions that take a batch: x (b, n), y (b, m)."""

    def objective(self, x: Tensor, y: Tensor, /) -> Tensor:
        """f (b,)."""
        ...

    def equality_constraints(self, x: Tensor, y: Tensor, /) -> Tensor | None:
        """h (b, p), or None."""
        ...


@dataclass(frozen=True)
class Solved:
    """What the forward pass leaves: inputs x (b, n), solution y (b, m) and multipliers ν (b, p)."""

    x: Tensor
    y: Tensor
    multipliers: Tensor


def rows_by_loop(output: Tensor, variable: Tensor, *, create_graph: bool = False) -> Tensor:
    """∂output/∂variable, (b, k, m), one call for each of the k outputs."""
    batch, count = output.shape
    matrix = output.new_zeros(batch, count, variable.shape[1])
    for i in range(count):
        cotangent = torch.zeros_like(output)
        cotangent[:, i] = 1
        (row,) = torch.autograd.grad(output, variable, cotangent, retain_graph=True, create_graph=create_graph, allow_unused=True)
        if row is None:  # then all are
            return matrix
        matrix[:, i] = row
    return matrix


def solve_positive(matrix: Tensor, side: Tensor) -> Tensor:
    """By Cholesky where all samples allow it, else by LU."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return torch.linalg.solve(matrix, side) if bool(failed.any()) else torch.cholesky_solve(side, factor)


def backward(statement: Statement, solved: Solved, cotangent: Tensor, *, form_blocks: bool = False) -> Tensor:
    """x̄ (b, n) for the cotangent v (b, m) of y."""
    x, y = (t.detach().requires_grad_() for t in (solved.x, solved.y))
    with torch.enable_grad():
        objective, h = statement.objective(x, y).sum(), statement.equality_constraints(x, y)
        if h is None:
            h = y.new_zeros(y.shape[0], 0)
        return _formed(objective, h, x, y, solved, cotangent) if form_blocks else _pulled(objective, h, x, y, solved, cotangent)


def _pulled(objective: Tensor, h: Tensor, x: Tensor, y: Tensor, solved: Solved, cotangent: Tensor) -> Tensor:
    total = objective + (solved.multipliers * h).sum() if h.shape[1] else objective
    (gradient,) = torch.autograd.grad(total, y, create_graph=True)
    u, w = _solve_kkt(rows_by_loop(gradient, y), rows_by_loop(h, y), cotangent)
    outputs, cotangents = ([gradient, h], [u, w]) if h.requires_grad else ([gradient], [u])
    return -torch.autograd.grad(outputs, x, cotangents, materialize_grads=True)[0]


def _formed(objective: Tensor, h: Tensor, x: Tensor, y: Tensor, solved: Solved, cotangent: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(objective, y, create_graph=True)
    H, B = rows_by_loop(gradient, y), rows_by_loop(gradient, x)
    A, C = rows_by_loop(h, y, create_graph=True), rows_by_loop(h, x)
    for i in range(h.shape[1]):
        if A.requires_grad:
            weight = solved.multipliers[:, i, None, None]
            H, B = H + weight * rows_by_loop(A[:, i], y), B + weight * rows_by_loop(A[:, i], x)
    u, w = _solve_kkt(H, A.detach(), cotangent)
    return -(torch.einsum("bmn,bm->bn", B, u) + torch.einsum("bpn,bp->bn", C, w))


def _solve_kkt(hessian: Tensor, jacobian: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """(u, w) by the Schur complement."""
    H, A, v = 0.5 * (hessian + hessian.mT), jacobian, cotangent.unsqueeze(-1)
    if not A.shape[1]:
        return solve_positive(H, v).squeeze(-1), cotangent.new_zeros(A.shape[:2])
    through = solve_positive(H, torch.cat([v, A.mT], -1))
    u, t = through[..., :1], through[..., 1:]
    w = solve_positive(A @ t, A @ u)
    return (u - t @ w).squeeze(-1), w.squeeze(-1)
