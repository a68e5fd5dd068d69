"""The rotation next to a matrix (the orthogonal Procrustes problem with det R = 1, Wahba's problem).

    min ½‖R − M‖²   s.t.   RᵀR = I                                                     M, R: 3×3

on the component det R = 1, where the start is. M = U S Vᵀ gives R = U diag(1, 1, ±1) Vᵀ, and dR = R Ω with P Ω + Ω P = RᵀdM − dMᵀR, P = RᵀM: regular where the
two smallest singular values, the last with the sign of det M, do not add up to zero. RᵀR is symmetric: the six entries on and above its diagonal are
independent.

Source: Kabsch, "A solution for the best rotation to relate two sets of vectors", Acta Cryst. A32, 1976; Umeyama, IEEE TPAMI 13(4), 1991.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal, uniform

SIZE = 3


class Rotation(DeclarativeNode):
    """M (3, 3) -> R (3, 3)."""

    def objective(self, M: Tensor, R: Tensor) -> Tensor:
        return 0.5 * (R - M).square().sum()

    def equality_constraints(self, M: Tensor, R: Tensor) -> Tensor:  # noqa: ARG002
        rows, columns = torch.triu_indices(SIZE, SIZE)
        return (R.mT @ R - torch.eye(SIZE, dtype=R.dtype))[rows, columns]

    def initial_guess(self, M: Tensor) -> Tensor:
        return torch.eye(SIZE, dtype=M.dtype).expand_as(M)


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Drawn from the answer: R not far from I, M = R P with singular values clearly apart, and det M < 0 in every other sample."""
    skew = 0.2 * normal(generator, batch, SIZE, SIZE)
    R = torch.linalg.matrix_exp(skew - skew.mT)
    basis = torch.linalg.qr(normal(generator, batch, SIZE, SIZE)).Q
    values = torch.tensor([2.0, 1.3, 0.5], dtype=torch.float64) + uniform(generator, 0.0, 0.3, batch, SIZE)
    values[1::2, 2] *= -1
    return cast(dtype, R @ (basis * values.unsqueeze(1)) @ basis.mT)


def closed_form(M: Tensor) -> Tensor:
    """By the singular value decomposition."""
    U, _, Vh = torch.linalg.svd(M)
    turn = torch.ones_like(M[:, 0])
    turn[:, -1] = torch.linalg.det((U @ Vh).detach()).sign()
    return (U * turn.unsqueeze(1)) @ Vh


def jacobian(M: Tensor) -> Tensor:
    """R Ω for each entry of M, by the eigenvalues of P."""
    R = closed_form(M)
    P = R.mT @ M
    values, V = torch.linalg.eigh(0.5 * (P + P.mT))
    sums = values.unsqueeze(2) + values.unsqueeze(1) + torch.eye(SIZE, dtype=M.dtype)  # the diagonal of a skew matrix is zero
    units = torch.eye(SIZE * SIZE, dtype=M.dtype).reshape(1, SIZE * SIZE, SIZE, SIZE)
    inner = R.mT.unsqueeze(1) @ units
    V, sums = V.unsqueeze(1), sums.unsqueeze(1)
    omega = V @ ((V.mT @ (inner - inner.mT) @ V) / sums) @ V.mT
    return (R.unsqueeze(1) @ omega).permute(0, 2, 3, 1).unflatten(3, (SIZE, SIZE))


PROBLEM = Problem("rotation", Rotation, sample, (0,), closed_form, jacobian, "y is a matrix; equalities that are quadratic; two components")
