"""The linear system behind every derivative of a transport plan, and behind Newton's step on the dual.

    K = [diag(P1)  P; Pᵀ  diag(Pᵀ1)],   singular along (1, −1) and positive semidefinite.

The larger diagonal block is eliminated. What is left is the Laplacian of a weighted graph on the smaller side,

    S = diag(Pᵀ1) − Pᵀ diag(P1)⁻¹ P,   S1 = 0,   weights W_jk = Σ_i P_ij P_ik / (P1)_i ≥ 0,

and S + κ11ᵀ with κ = Σc/n² is positive definite and solves alike, as right-hand sides add up to zero: one Cholesky factor.
Where the plan is nearly a permutation S is nearly zero and its diagonal is lost to rounding, but its weights are not: elimination that
never subtracts (Grassmann, Taksar & Heyman, Operations Research 1985) keeps full relative accuracy there. For large plans conjugate
gradients on S are faster where they converge fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from declarative.structure.base import Operator

_LARGE = 192  # from here on conjugate gradients are tried before a factorisation
_TOLERANCES = {torch.float32: 2e-6}  # of iterations, relative to the right-hand side; 1e-12 in float64


def _worth(n: int) -> int:
    """How many steps of conjugate gradients cost as much as one factor: measured, not counted, since they wait for memory."""
    return int(min(n * n / 4000, n / 7))


def _safe(sums: Tensor) -> Tensor:
    """Sums to divide by: 1 in place of 0, where nothing is sent."""
    return sums.masked_fill(sums <= 0, 1.0)


def schur_complement(plan: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """S + κ11ᵀ, (b, n, n), with the rows eliminated; 1 is added to the diagonal of columns that are empty.

    Args:
        plan: P (b, m, n), n ≤ m for the least work.
        rows, columns: its sums P1 (b, m) and Pᵀ1 (b, n).
    """
    return _schur(plan, _safe(rows).reciprocal_().unsqueeze(2), columns)


def _schur(plan: Tensor, inverse: Tensor, columns: Tensor) -> Tensor:
    shift = columns.sum(1).div_(columns.shape[1] ** 2).view(-1, 1, 1)
    schur = torch.baddbmm(shift, (plan * inverse).mT, plan, alpha=-1)
    schur.diagonal(dim1=1, dim2=2).add_(_safe(columns))
    return schur


def factorise(schur: Tensor) -> tuple[Tensor, Tensor]:
    """The lower Cholesky factor and (b,) whether rounding has left it any meaning."""
    factor, info = torch.linalg.cholesky_ex(schur)
    pivots = factor.diagonal(dim1=1, dim2=2)
    left = (pivots.square() / schur.diagonal(dim1=1, dim2=2)).amin(1)
    return factor, (left > 64 * schur.shape[1] * torch.finfo(schur.dtype).eps).logical_and_(info == 0)


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
    inverse = _safe(rows).reciprocal().unsqueeze(2)
    diagonal = columns.unsqueeze(2)
    goal = tolerance * torch.linalg.vector_norm(side, dim=1, keepdim=True)
    x, residual = torch.zeros_like(side), side
    z = precondition(residual)
    direction, product = z, (residual * z).sum(1, keepdim=True)
    done = torch.linalg.vector_norm(residual, dim=1, keepdim=True) <= goal
    for k in range(1, steps + 1):
        image = torch.baddbmm(diagonal * direction, plan.mT, inverse * (plan @ direction), alpha=-1)
        curvature = (direction * image).sum(1, keepdim=True)
        length = torch.where(curvature > 0, product / curvature, 0.0)
        x = torch.addcmul(x, length, direction)
        residual = torch.addcmul(residual, length, image, value=-1)
        size = torch.linalg.vector_norm(residual, dim=1, keepdim=True)
        done = size <= goal
        if bool(done.all()):
            return Iterated(x, done.all(2).squeeze(1), k)
        if k == steps // 3 and bool((torch.log(size / goal) * k > torch.log(torch.linalg.vector_norm(side, dim=1, keepdim=True) / size) * (steps - k)).any()):
            return Iterated(x, done.all(2).squeeze(1), k)
        z = precondition(residual)
        following = (residual * z).sum(1, keepdim=True)
        direction = torch.addcmul(z, torch.where(product > 0, following / product, 0.0), direction)
        product = following
    return Iterated(x, done.all(2).squeeze(1), steps)


def _refined(plan: Tensor, inverse: Tensor, columns: Tensor, side: Tensor, factor: Tensor) -> Tensor | None:
    """S⁻¹ · side by the factor of a matrix near S, and iterative refinement; None where that does not converge fast."""
    diagonal = columns.unsqueeze(2)
    solution = torch.cholesky_solve(side, factor)
    goal = _TOLERANCES.get(side.dtype, 1e-12) * float(torch.linalg.vector_norm(side))
    for _ in range(4):
        residual = torch.baddbmm(side, plan.mT, (plan @ solution).mul_(inverse)).addcmul_(diagonal, solution, value=-1)
        if float(torch.linalg.vector_norm(residual)) <= goal:
            return solution
        solution = solution.add_(torch.cholesky_solve(residual, factor))
    return None


def _solve_schur(plan: Tensor, rows: Tensor, inverse: Tensor, columns: Tensor, side: Tensor, factor: Tensor | None) -> Tensor:
    """S⁻¹ · side for right-hand sides (b, n, k) without a sum, in numbers, by whatever is fastest and accurate."""
    if factor is not None:
        solution = _refined(plan, inverse, columns, side, factor)
        if solution is not None:
            return solution
    n = plan.shape[2]
    if n >= _LARGE:
        diagonal = _safe(columns - (plan * plan * inverse).sum(1)).unsqueeze(2)
        tolerance = _TOLERANCES.get(side.dtype, 1e-12)
        tried = conjugate_gradients(plan, rows, columns, side, lambda r: r / diagonal, tolerance, _worth(n))
        if bool(tried.converged.all()):
            return tried.solution
    found, good = factorise(_schur(plan, inverse, columns))
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
    inverse = _safe(rows).reciprocal_().unsqueeze(2)
    scaled = side_rows * inverse
    w_columns = _solve_schur(plan, rows, inverse, columns, torch.baddbmm(side_columns, plan.mT, scaled, alpha=-1), factor)
    return torch.addcmul(scaled, inverse, plan @ w_columns, value=-1), w_columns
