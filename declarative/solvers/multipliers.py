"""Multipliers from y alone: ν and μ ≥ 0 that make ∇f + A_hᵀν + A_gᵀμ smallest over the constraints that hold with equality."""

from __future__ import annotations

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from declarative.solvers.optimality import Optimality
from declarative.vectors import times


def recover(optimality: Optimality, nearness: float, equality: Tensor | None, inequality: Tensor | None) -> tuple[Tensor, Tensor]:
    """(ν, μ), keeping what is known.

    Args:
        nearness: relative distance within which a constraint may count as holding with equality. It may be generous:
            one that does not push gets a multiplier of zero.
    """
    p, jacobian, gradient = optimality.p, optimality.jacobian, optimality.gradient
    if equality is not None and inequality is not None:
        return equality, inequality
    if not jacobian.shape[1]:
        return optimality.values, optimality.values  # (b, 0)
    zero = torch.zeros_like(optimality.values)
    scales = optimality.scales(zero[:, :p], zero[:, p:])
    near = optimality.relative_slack(scales) <= nearness
    sought = torch.cat([torch.ones_like(optimality.values[:, :p], dtype=torch.bool), near], 1)
    known = torch.zeros_like(optimality.values)
    if equality is not None:
        known[:, :p], sought[:, :p] = equality, False
    if inequality is not None:
        known[:, p:], sought[:, p:] = inequality, False
    target = gradient + times(jacobian.mT, known)
    found = _least_squares(jacobian * sought.unsqueeze(-1), sought, target)
    negative = (found[:, p:] < 0) & sought[:, p:]
    for i in negative.any(1).nonzero().squeeze(1).tolist():
        found[i, sought[i]] = _non_negative(jacobian[i, sought[i]], target[i], int(sought[i, :p].sum()))
    found = found + known
    return found[:, :p], found[:, p:]


def _least_squares(masked: Tensor, sought: Tensor, target: Tensor) -> Tensor:
    """Minimise ‖Aᵀλ + target‖ with λ = 0 at rows that are not sought, by Cholesky of the scaled Gram matrix where it exists."""
    norms = torch.linalg.vector_norm(masked, dim=2)
    unit = masked / torch.where(norms > 0, norms, 1.0).unsqueeze(-1)
    gram = unit @ unit.mT + torch.diag_embed((~sought | (norms == 0)).to(masked.dtype))
    factor, info = torch.linalg.cholesky_ex(gram)
    side = -(unit @ target.unsqueeze(-1))
    good = (info == 0) & (factor.diagonal(dim1=-2, dim2=-1).amin(-1) > torch.finfo(masked.dtype).eps ** 0.4)
    found = torch.cholesky_solve(side, factor).squeeze(-1)
    bad = (~good & torch.isfinite(unit).flatten(1).all(1)).nonzero().squeeze(1)
    if bad.numel():
        inverse = torch.linalg.pinv(unit[bad].mT, rtol=1e2 * torch.finfo(masked.dtype).eps)
        found = found.index_copy(0, bad, -times(inverse, target[bad]))
    return torch.where(sought, found / torch.where(norms > 0, norms, 1.0), 0.0)


def _non_negative(rows: Tensor, target: Tensor, free: int) -> Tensor:
    """One sample with multipliers that must not be negative (all but the first `free`): Lawson–Hanson."""
    transposed = rows.double().cpu().numpy().T
    side = -target.double().cpu().numpy()
    if not (np.isfinite(transposed).all() and np.isfinite(side).all()):
        return rows.new_zeros(rows.shape[0])
    # A free variable is the difference of two that are not negative.
    solution, _ = scipy.optimize.nnls(np.hstack([transposed, -transposed[:, :free]]), side)
    count = rows.shape[0]
    solution[:free] -= solution[count:]
    return torch.as_tensor(solution[:count], dtype=rows.dtype, device=rows.device)
