"""The linear system behind every derivative of a transport plan, and behind Newton's step on the dual.

    K = [diag(P1)  P; Pᵀ  diag(Pᵀ1)],   singular along (1, −1) and positive semidefinite.

The larger diagonal block is eliminated. What is left is the Laplacian of a weighted graph on the smaller side,

    S = diag(Pᵀ1) − Pᵀ diag(P1)⁻¹ P,   S1 = 0,   weights W_jk = Σ_i P_ij P_ik / (P1)_i ≥ 0,

and S + ccᵀ/Σc with c = Pᵀ1 is positive definite: one Cholesky factor. Where the plan is nearly a permutation S is nearly zero and its
diagonal is lost to rounding, but its weights are not: elimination that never subtracts (Grassmann, Taksar & Heyman, Operations
Research 1985) keeps full relative accuracy there. For large plans conjugate gradients on S are faster where they converge fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from declarative.structure.base import Operator

_LARGE = 256  # from here on conjugate gradients are tried before a factorisation
_STEPS_PER_COLUMN = 1 / 24  # how many of their steps cost as much as one factorisation, for each row of S


def _safe(sums: Tensor) -> Tensor:
    """Sums to divide by: 1 in place of 0, where nothing is sent."""
    return sums.masked_fill(sums <= 0, 1.0)


def schur_complement(plan: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """S + ccᵀ/Σc, (b, n, n), with the rows eliminated; the identity on columns that are empty.

    Args:
        plan: P (b, m, n), n ≤ m for the least work.
        rows, columns: its sums P1 (b, m) and Pᵀ1 (b, n).
    """
    scaled = plan / _safe(rows).unsqueeze(2)
    gauge = columns / columns.sum(1, keepdim=True).sqrt()
    schur = torch.baddbmm(gauge.unsqueeze(2) * gauge.unsqueeze(1), scaled.mT, plan, alpha=-1)
    schur.diagonal(dim1=1, dim2=2).add_(_safe(columns))
    return schur


def factorise(schur: Tensor) -> tuple[Tensor, Tensor]:
    """The lower Cholesky factor and (b,) whether rounding has left it any meaning."""
    factor, info = torch.linalg.cholesky_ex(schur)
    pivots, diagonal = factor.diagonal(dim1=1, dim2=2), schur.diagonal(dim1=1, dim2=2)
    floor = 64 * schur.shape[1] * torch.finfo(schur.dtype).eps
    return factor, (info == 0) & (pivots * pivots > floor * diagonal).all(1)


def eliminate(plan: Tensor, rows: Tensor, side: Tensor) -> Tensor:
    """S⁻¹ · side without a subtraction, (b, n, k); zero where a part of the graph is cut off."""
    weights = (plan / _safe(rows).unsqueeze(2)).mT @ plan
    side, n = side.clone(), plan.shape[2]
    pivots = torch.empty_like(weights[:, 0])
    for k in range(n - 1, 0, -1):
        link = weights[:, k, :k]
        pivots[:, k] = link.sum(1)
        share = link / _safe(pivots[:, k]).unsqueeze(1)
        weights[:, :k, :k] += weights[:, :k, k].unsqueeze(2) * share.unsqueeze(1)
        side[:, :k] += share.unsqueeze(2) * side[:, k].unsqueeze(1)
    solution = torch.zeros_like(side)
    for k in range(1, n):
        pivot = pivots[:, k, None]
        known = side[:, k] + (weights[:, k, :k].unsqueeze(1) @ solution[:, :k]).squeeze(1)
        solution[:, k] = torch.where(pivot > 0, known / _safe(pivot), 0.0)
    return solution


@dataclass(frozen=True)
class Iterated:
    """Where conjugate gradients ended: the solution (b, n, k), whether each sample converged (b,), their steps."""

    solution: Tensor
    converged: Tensor
    steps: int


def conjugate_gradients(
    plan: Tensor, rows: Tensor, columns: Tensor, side: Tensor, precondition: Callable[[Tensor], Tensor], tolerance: float, steps: int
) -> Iterated:
    """Conjugate gradients on S for k right-hand sides at once; they give up where their rate says that `steps` will not do."""
    # Rows of a batch are several times as fast to multiply with as columns.
    inverse, diagonal, side = _safe(rows).reciprocal().unsqueeze(1), columns.unsqueeze(1), side.mT
    start = torch.linalg.vector_norm(side, dim=2, keepdim=True)
    goal = tolerance * start
    x, residual = torch.zeros_like(side), side
    z = precondition(residual.mT).mT
    direction, product = z, (residual * z).sum(2, keepdim=True)
    size = start
    for k in range(1, steps + 1):
        image = torch.baddbmm(diagonal * direction, torch.matmul(direction, plan.mT).mul_(inverse), plan, alpha=-1)
        curvature = (direction * image).sum(2, keepdim=True)
        length = torch.where(curvature > 0, product / curvature, 0.0)
        x = torch.addcmul(x, length, direction)
        residual = torch.addcmul(residual, length, image, value=-1)
        size = torch.linalg.vector_norm(residual, dim=2, keepdim=True)
        if bool((size <= goal).all()):
            return Iterated(x.mT, (size <= goal).all(1).squeeze(1), k)
        if k == steps // 3 and bool((torch.log(size / goal) * k > torch.log(start / size) * (steps - k)).any()):
            return Iterated(x.mT, (size <= goal).all(1).squeeze(1), k)
        z = precondition(residual.mT).mT
        following = (residual * z).sum(2, keepdim=True)
        direction = torch.addcmul(z, torch.where(product > 0, following / product, 0.0), direction)
        product = following
    return Iterated(x.mT, (size <= goal).all(1).squeeze(1), steps)


def refined(plan: Tensor, rows: Tensor, columns: Tensor, side: Tensor, factor: Tensor, tolerance: float) -> Tensor | None:
    """S⁻¹ · side by the factor of a matrix near S, and iterative refinement; None where that does not converge fast."""
    inverse, diagonal = _safe(rows).reciprocal_().unsqueeze(2), columns.unsqueeze(2)
    solution = torch.cholesky_solve(side, factor)
    goal = tolerance * float(torch.linalg.vector_norm(side))
    for _ in range(4):
        residual = torch.baddbmm(side, plan.mT, inverse * (plan @ solution)).addcmul_(diagonal, solution, value=-1)
        if float(torch.linalg.vector_norm(residual)) <= goal:
            return solution
        solution = solution + torch.cholesky_solve(residual, factor)
    return None


def solve_schur(plan: Tensor, rows: Tensor, columns: Tensor, side: Tensor, factor: Tensor | None = None) -> Tensor:
    """S⁻¹ · side for consistent right-hand sides (b, n, k), in numbers, by whatever is fastest and accurate."""
    n, eps = plan.shape[2], torch.finfo(plan.dtype).eps
    tolerance = eps**0.85
    if factor is not None:
        solution = refined(plan, rows, columns, side, factor, tolerance)
        if solution is not None:
            return solution
    if n >= _LARGE:
        diagonal = _safe(columns - (plan * plan / _safe(rows).unsqueeze(2)).sum(1)).unsqueeze(2)
        tried = conjugate_gradients(plan, rows, columns, side, lambda r: r / diagonal, tolerance, int(n * _STEPS_PER_COLUMN))
        if bool(tried.converged.all()):
            return tried.solution
    found, good = factorise(schur_complement(plan, rows, columns))
    solution = torch.cholesky_solve(side, found)
    if bool(good.all()):
        return solution
    bad = (~good).nonzero().squeeze(1)
    return solution.index_copy(0, bad, eliminate(plan[bad], rows[bad], side[bad]))


@dataclass(frozen=True, eq=False)
class Marginals(Operator):
    """K + vvᵀ with v = (1, −1)/√(m + n) on the rows and columns that are not empty, and the identity on those that are: regular.

    For right-hand sides with equal sums, all that occur, its solutions are those of K with Σw_r = Σw_c.

    Args:
        plan: P (b, m, n)
        factor: of a Schur complement near that of P, as a preconditioner.
    """

    plan: Tensor
    factor: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.plan,)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Marginals:
        (plan,) = tensors
        return replace(self, plan=plan, factor=self.factor if plan.shape == self.plan.shape else None)

    @property
    def shape(self) -> tuple[int, int, int]:
        b, m, n = self.plan.shape
        return b, m + n, m + n

    def transpose(self) -> Marginals:
        return self

    def matmul_columns(self, columns: Tensor) -> Tensor:
        rows, sums = self.plan.sum(2), self.plan.sum(1)
        top, bottom = columns.split([rows.shape[1], sums.shape[1]], 1)
        product = torch.cat(
            [_safe(rows).unsqueeze(2) * top + self.plan @ bottom, self.plan.mT @ top + _safe(sums).unsqueeze(2) * bottom],
            1,
        )
        null = self._null(rows, sums)
        return product + null * (null * columns).sum(1, keepdim=True)

    def solve_columns(self, columns: Tensor) -> Tensor:
        rows, sums = self.plan.sum(2), self.plan.sum(1)
        null = self._null(rows, sums)
        along = null * (null * columns).sum(1, keepdim=True)
        top, bottom = (columns - along).split([rows.shape[1], sums.shape[1]], 1)
        found = torch.cat(self._numbers(rows, sums, top, bottom), 1)
        return found - null * (null * found).sum(1, keepdim=True) + along

    def solve_pair(self, side_rows: Tensor, side_columns: Tensor) -> tuple[Tensor, Tensor]:
        """(w_r, w_c) of K for one right-hand side with equal sums, in numbers; free by (t, −t)."""
        w_rows, w_columns = self._numbers(self.plan.sum(2), self.plan.sum(1), side_rows.unsqueeze(2), side_columns.unsqueeze(2))
        return w_rows.squeeze(2), w_columns.squeeze(2)

    @staticmethod
    def _null(rows: Tensor, columns: Tensor) -> Tensor:
        kept = torch.cat([(rows > 0).to(rows.dtype), -(columns > 0).to(rows.dtype)], 1).unsqueeze(2)
        return kept / torch.linalg.vector_norm(kept, dim=1, keepdim=True).clamp_min(1)

    def _numbers(self, rows: Tensor, columns: Tensor, side_rows: Tensor, side_columns: Tensor) -> tuple[Tensor, Tensor]:
        if self.plan.shape[1] < self.plan.shape[2]:
            w_columns, w_rows = _by_elimination(self.plan.mT, columns, rows, side_columns, side_rows, self.factor)
            return w_rows, w_columns
        return _by_elimination(self.plan, rows, columns, side_rows, side_columns, self.factor)


def _by_elimination(plan: Tensor, rows: Tensor, columns: Tensor, side_rows: Tensor, side_columns: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor]:
    """The rows eliminated, the rest solved for."""
    inverse = _safe(rows).reciprocal().unsqueeze(2)
    scaled = side_rows * inverse
    w_columns = solve_schur(plan, rows, columns, torch.baddbmm(side_columns, plan.mT, scaled, alpha=-1), factor)
    return torch.addcmul(scaled, inverse, plan @ w_columns, value=-1), w_columns
