"""How the Newton step of step.py is differentiated: as the solution of a linear system, not through its factorisations.

The step solves K [d; ν] = [−g; c] with K = [[M, Aᵀ], [A, 0]], so the rule of structure/base.py gives its derivatives to any order
from products with K. The derivatives of the decompositions inside (of an SVD, of eigenvectors) do not exist where singular
values or eigenvalues repeat, as they do for bounds and for separable objectives; those of K's solution do.

M is H where the model is convex. Elsewhere it is H with the absolute values of its eigenvalues on null(A), as step.py has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from declarative.structure.base import Operator
from declarative.transforms import alive
from declarative.typing import Hessians, Jacobians, Rows, SampleMask, Values, Variables


class Factorised(Protocol):
    """A model that solves."""

    def solve(self, gradient: Variables, change: Rows) -> tuple[Variables, Rows]:
        """The step and the multipliers."""
        ...


@dataclass(frozen=True, eq=False)
class StepOperator(Operator):
    """K of n = m + p rows, from M (b, m, m), positive definite on null(A), and A (b, p, m).

    Args:
        factorise: the numbers (M, A) to a model that solves with them.
    """

    hessian: Tensor
    jacobian: Tensor
    factorise: Callable[[Hessians, Jacobians], Factorised]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.hessian, self.jacobian

    def with_tensors(self, tensors: Sequence[Tensor]) -> StepOperator:
        hessian, jacobian = tensors
        return replace(self, hessian=hessian, jacobian=jacobian)

    @property
    def shape(self) -> tuple[int, int, int]:
        b, p, m = self.jacobian.shape
        return b, m + p, m + p

    def transpose(self) -> StepOperator:
        return self

    def matmul_columns(self, columns: Tensor) -> Tensor:
        m = self.hessian.shape[1]
        u, w = columns[:, :m], columns[:, m:]
        return torch.cat([self.hessian @ u + self.jacobian.mT @ w, self.jacobian @ u], 1)

    def solve_columns(self, columns: Tensor) -> Tensor:
        m = self.hessian.shape[1]
        model = self.factorise(self.hessian, self.jacobian)
        solved = [torch.cat(model.solve(-column[:, :m], column[:, m:]), 1) for column in columns.unbind(-1)]
        return torch.stack(solved, -1) if solved else torch.zeros_like(columns)

    def step(self, gradient: Variables, change: Rows) -> tuple[Variables, Rows]:
        """What `ReducedModel.solve` returns, differentiable."""
        u, w = self.solve(torch.cat([-gradient, change], 1)).split([gradient.shape[1], change.shape[1]], 1)
        return u, w if change.shape[1] else change


def convexified(hessian: Hessians, jacobian: Jacobians, convex: SampleMask, floor: Values | None = None) -> Hessians:
    """M: H where `convex`, else H + P(F(PHP) − PHP)P with F(λ) = max(|λ|, floor) and P the projection onto null(A)."""
    finite = torch.isfinite(hessian).flatten(1).all(1) & torch.isfinite(jacobian).flatten(1).all(1)
    index = (~convex & finite).nonzero().squeeze(1)
    if not index.numel():
        return hessian
    own, rows = hessian[index], jacobian[index]
    eye = torch.eye(own.shape[1], dtype=own.dtype, device=own.device)
    projection = eye.expand_as(own)
    if rows.shape[1]:
        rtol = 10 * max(rows.shape[1:]) * torch.finfo(rows.dtype).eps
        projection = eye - torch.linalg.pinv(rows, rtol=rtol) @ rows
    reduced = projection @ (0.5 * (own + own.mT)) @ projection
    wanted = _Absolute.apply(reduced)
    if floor is not None:
        # max(a, c) = (a + c + |a − c|) / 2
        level = floor[index, None, None] * eye
        wanted = 0.5 * (wanted + level + _Absolute.apply(wanted - level))
    return hessian.index_copy(0, index, own + projection @ (wanted - reduced) @ projection)


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.mT)


class _Absolute(torch.autograd.Function):
    """|S| = Q|Λ|Qᵀ of symmetric matrices. With X = d|S|:  |S| X + X |S| = S dS + dS S, whatever the gaps of Λ."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, vectors = torch.linalg.eigh(matrix)
        return (vectors * values.abs().unsqueeze(-2)) @ vectors.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        matrix, absolute = (alive(t) for t in ctx.saved_tensors)
        adjoint = _Lyapunov.apply(absolute, _symmetric(cotangent))
        return adjoint @ matrix + matrix @ adjoint


class _Lyapunov(torch.autograd.Function):
    """The symmetric Y with S Y + Y S = G, for S ≥ 0; zero in the null space of S, where |·| has a kink."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor, side: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, vectors = torch.linalg.eigh(matrix)
        sums = values.unsqueeze(-1) + values.unsqueeze(-2)
        cutoff = 10 * matrix.shape[-1] * torch.finfo(matrix.dtype).eps * values.abs().amax(-1)[..., None, None]
        inner = vectors.mT @ side @ vectors
        return vectors @ torch.where(sums > cutoff, inner / torch.where(sums > cutoff, sums, 1.0), 0.0) @ vectors.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        matrix, solution = (alive(t) for t in ctx.saved_tensors)
        adjoint = _Lyapunov.apply(matrix, _symmetric(cotangent))
        return -(adjoint @ solution + solution @ adjoint), adjoint
