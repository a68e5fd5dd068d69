"""Gradients to rounding, for the error columns: the KKT system of each sample, formed by torch.func and refined in extended precision.

Nothing here comes from the package but the user's statement, so that it can judge both sides.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, hessian, jacrev, vmap

_STEPS = 3
COUNT = 4
"""Samples that a reference is computed for: enough to tell, and few enough for the largest batches."""


def solve_refined(matrix: Tensor, side: Tensor) -> Tensor:
    """K⁻¹ r for K (b, n, n), r (b, n), with residuals in extended precision (64 bits of mantissa where the processor has them)."""
    # One by one: torch factorises a batch of large matrices concurrently, and MKL's threads then collide (pytorch/pytorch#142815).
    factor, pivots = (torch.stack(parts) for parts in zip(*map(torch.linalg.lu_factor, matrix), strict=True))
    wide, target = matrix.numpy().astype(np.longdouble), side.numpy().astype(np.longdouble)
    found = np.zeros_like(target)
    for _ in range(_STEPS):
        left = torch.from_numpy((target - np.einsum("bij,bj->bi", wide, found)).astype(np.float64))
        found = found + torch.linalg.lu_solve(factor, pivots, left.unsqueeze(-1)).squeeze(-1).numpy()
    return torch.from_numpy(found.astype(np.float64))


def gradient(node: Any, x: Tensor, y: Tensor, nu: Tensor, v: Tensor) -> Tensor:
    """⟨v, y⟩ differentiated by x, for the first `COUNT` samples of x (b, n), y (b, m), ν (b, p), v (b, m).

    With L = f + νᵀh, K = [H Aᵀ; A 0] and K (u, w) = (v, 0):  x̄ = −(Bᵀ u + Cᵀ w); (y, ν) is first brought to rounding by Newton's method.
    """
    x, y, nu, v = (t.detach()[:COUNT].double().cpu() for t in (x, y, nu, v))
    m = y.shape[1]

    def constraints(x: Tensor, y: Tensor) -> Tensor:
        found = node.equality_constraints(x, y) if nu.shape[1] else None
        return y.new_zeros(0) if found is None else found

    def lagrangian(x: Tensor, y: Tensor, nu: Tensor) -> Tensor:
        return node.objective(x, y) + nu @ constraints(x, y)

    def system() -> Tensor:
        H = vmap(hessian(lagrangian, 1))(x, y, nu)
        if not nu.shape[1]:
            return H
        A = vmap(jacrev(constraints, 1))(x, y)
        return torch.cat([torch.cat([H, A.mT], 2), torch.cat([A, A.new_zeros(len(A), nu.shape[1], nu.shape[1])], 2)], 1)

    for _ in range(_STEPS):
        residual = torch.cat([vmap(grad(lagrangian, 1))(x, y, nu), vmap(constraints)(x, y)], 1)
        step = solve_refined(system(), -residual)
        y, nu = y + step[:, :m], nu + step[:, m:]
    solved = solve_refined(system(), torch.cat([v, torch.zeros_like(nu)], 1))
    u, w = solved[:, :m], solved[:, m:]

    def paired(x: Tensor, y: Tensor, nu: Tensor, u: Tensor, w: Tensor) -> Tensor:
        return grad(lagrangian, 1)(x, y, nu) @ u + constraints(x, y) @ w

    return -vmap(grad(paired))(x, y, nu, u, w)
