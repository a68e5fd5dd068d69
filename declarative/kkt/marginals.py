"""The linear system of sums over rows and over columns: behind every derivative of a transport plan, and behind Newton's step on the dual.

    K = [diag(P1)  P; Pᵀ  diag(Pᵀ1)],   singular along (1, −1) and positive semidefinite.

The larger diagonal block is eliminated. What is left is the Laplacian of a weighted graph on the smaller side,

    S = diag(Pᵀ1) − Pᵀ diag(P1)⁻¹ P,   S1 = 0,   weights W_jk = Σ_i P_ij P_ik / (P1)_i ≥ 0,

and S + ccᵀ/Σc with c = Pᵀ1 is positive definite and solves alike, as right-hand sides add up to zero: one Cholesky factor, accurate for
columns of tiny mass, too, since all of it scales with c.
Where the plan is nearly a permutation S is nearly zero and its diagonal is lost to rounding, but its weights are not: elimination that
never subtracts (Grassmann, Taksar & Heyman, Operations Research 1985) keeps full relative accuracy there. For large plans conjugate
gradients on S are faster where they converge fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from declarative.solution import DerivativeReport
from declarative.structure.base import Operator

_LARGE = 192  # from here on conjugate gradients are tried before a factorisation
_TOLERANCES = {torch.float32: 2e-6}  # of iterations, relative to the right-hand side; 1e-12 in float64

APART = "the plan falls apart to rounding: the gradients in r and c are known up to a constant for each part"


def _worth(n: int) -> int:
    """How many steps of conjugate gradients cost as much as one factor: measured, not counted, since they wait for memory."""
    return int(min(n * n / 4000, n / 7))


def _safe(sums: Tensor) -> Tensor:
    """Sums to divide by: 1 in place of 0, where nothing is sent."""
    return sums.masked_fill(sums <= 0, 1.0)


def schur_complement(plan: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """S + ccᵀ/Σc, (b, n, n), with the rows eliminated; 1 is added to the diagonal of columns that are empty.

    Args:
        plan: P (b, m, n), n ≤ m for the least work.
        rows, columns: its sums P1 (b, m) and Pᵀ1 (b, n).
    """
    return _schur(plan, _safe(rows).reciprocal_().unsqueeze(2), columns)


def _schur(plan: Tensor, inverse: Tensor, columns: Tensor) -> Tensor:
    schur = columns.unsqueeze(2) * (columns / _safe(columns.sum(1, keepdim=True))).unsqueeze(1)
    schur.baddbmm_((plan * inverse).mT, plan, alpha=-1)
    schur.diagonal(dim1=1, dim2=2).add_(_safe(columns))
    return schur


def factorise(schur: Tensor) -> tuple[Tensor, Tensor]:
    """The lower Cholesky factor and (b,) whether rounding has left it any meaning."""
    factor, info = torch.linalg.cholesky_ex(schur)
    pivots = factor.diagonal(dim1=1, dim2=2)
    left = (pivots.square() / schur.diagonal(dim1=1, dim2=2)).amin(1)
    return factor, (left > 64 * schur.shape[1] * torch.finfo(schur.dtype).eps).logical_and_(info == 0)


def eliminate(plan: Tensor, rows: Tensor, columns: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
    """S⁻¹ · side without a subtraction, (b, n, k), and (b,) whether the graph falls apart.

    A part of it whose links are lost in the rounding of its mass is cut off: its constant is free, and taken as zero.
    """
    weights = (plan / _safe(rows).unsqueeze(2)).mT @ plan
    side, n = side.clone(), plan.shape[2]
    lost = columns * (n * torch.finfo(plan.dtype).eps)
    apart = torch.zeros_like(columns, dtype=torch.bool)
    pivots = torch.ones_like(columns)
    for k in range(n - 1, 0, -1):
        link = weights[:, k, :k]
        total = link.sum(1)
        apart[:, k] = total <= lost[:, k]
        pivots[:, k] = torch.where(apart[:, k], torch.inf, total)
        share = link / pivots[:, k, None]
        weights[:, :k, :k] += weights[:, :k, k].unsqueeze(2) * share.unsqueeze(1)
        side[:, :k] += share.unsqueeze(2) * side[:, k].unsqueeze(1)
    solution = torch.zeros_like(side)
    for k in range(1, n):
        solution[:, k] = (side[:, k] + (weights[:, k, :k].unsqueeze(1) @ solution[:, :k]).squeeze(1)) / pivots[:, k, None]
    return solution, (apart & (columns > 0)).any(1)


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


def _refined(plan: Tensor, inverse: Tensor, columns: Tensor, side: Tensor, factor: Tensor) -> Tensor | None:
    """S⁻¹ · side by the factor of a matrix near S, and iterative refinement; None where that does not converge fast."""
    diagonal = columns.unsqueeze(2)
    solution = torch.cholesky_solve(side, factor)
    goal = _TOLERANCES.get(side.dtype, 1e-12) * torch.linalg.vector_norm(side)
    for step in range(4):
        residual = torch.baddbmm(side, plan.mT, (plan @ solution).mul_(inverse)).addcmul_(diagonal, solution, value=-1)
        # A factor of an earlier plan never does without a correction: the first look comes after one.
        if step and bool(torch.linalg.vector_norm(residual) <= goal):
            return solution
        solution = solution.add_(torch.cholesky_solve(residual, factor))
    return None


def _solve_schur(plan: Tensor, rows: Tensor, inverse: Tensor, columns: Tensor, side: Tensor, factor: Tensor | None, report: DerivativeReport | None) -> Tensor:
    """S⁻¹ · side for right-hand sides (b, n, k) without a sum, in numbers, by whatever is fastest and accurate."""
    if factor is not None:
        solution = _refined(plan, inverse, columns, side, factor)
        if solution is not None:
            return solution
    n = plan.shape[2]
    if n >= _LARGE:
        diagonal = _safe(columns - plan.square().mul_(inverse).sum(1)).unsqueeze(2)
        tolerance = _TOLERANCES.get(side.dtype, 1e-12)
        tried = conjugate_gradients(plan, rows, columns, side, lambda r: r / diagonal, tolerance, _worth(n))
        if bool(tried.converged.all()):
            return tried.solution
    found, good = factorise(_schur(plan, inverse, columns))
    solution = torch.cholesky_solve(side, found)
    if bool(good.all()):
        return solution
    bad = (~good).nonzero().squeeze(1)
    exact, apart = eliminate(plan[bad], rows[bad], columns[bad], side[bad])
    if report is not None:
        report.irregular.update(dict.fromkeys(bad[apart].tolist(), APART))
    return solution.index_copy(0, bad, exact)


@dataclass(frozen=True, eq=False)
class Marginals(Operator):
    """K + vvᵀ with v = (P1, −Pᵀ1)/√(2ΣP): regular on the rows and columns that are not empty.

    For right-hand sides with equal sums, all that occur, its solutions are those of K with ⟨w_r, P1⟩ = ⟨w_c, Pᵀ1⟩. What rounding leaves of
    the difference of the sums is shared out by mass: rows and columns of tiny mass keep their digits.

    Where r_i = 0 the equation of row i is divided by its mass before that vanishes: w_i + Σ_j Π_ij w_j, with Π the row's share for one
    unit of mass; likewise for columns. So K = [R  E; Fᵀ  C], with 1 in R and C for what is empty.

    Args:
        plan: P (b, m, n)
        top, bottom: E and F (b, m, n): P, but Π in the empty rows of E, and in the empty columns of F; None: nothing is empty, or what is
            plays no part.
        factor: of a Schur complement near that of P, as a preconditioner.
        report: is told of samples whose plan falls apart.
    """

    plan: Tensor
    top: Tensor | None = None
    bottom: Tensor | None = None
    factor: Tensor | None = None
    report: DerivativeReport | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.plan,) if self.top is None or self.bottom is None else (self.plan, self.top, self.bottom)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Marginals:
        plan, top, bottom = (*tensors, *([None] * (3 - len(tensors))))
        if plan is None:
            raise ValueError("a plan is needed")
        return Marginals(plan, top, bottom, self.factor if plan.shape == self.plan.shape else None, self.report)

    @property
    def shape(self) -> tuple[int, int, int]:
        b, m, n = self.plan.shape
        return b, m + n, m + n

    def transpose(self) -> Marginals:
        return Marginals(self.plan, self.bottom, self.top, self.factor, self.report)

    def matmul_columns(self, columns: Tensor) -> Tensor:
        rows, sums = self.plan.sum(2), self.plan.sum(1)
        w_rows, w_columns = columns.split([rows.shape[1], sums.shape[1]], 1)
        above = self.plan if self.top is None else self.top
        below = self.plan if self.bottom is None else self.bottom
        product = torch.cat(
            [_safe(rows).unsqueeze(2) * w_rows + above @ w_columns, below.mT @ w_rows + _safe(sums).unsqueeze(2) * w_columns],
            1,
        )
        v = self._gauge(rows, sums)
        return product + v * (v * columns).sum(1, keepdim=True)

    def solve_columns(self, columns: Tensor) -> Tensor:
        rows, sums = self.plan.sum(2), self.plan.sum(1)
        sizes = [rows.shape[1], sums.shape[1]]
        if self.top is None or self.bottom is None:
            return self._filled(rows, sums, columns)
        # What is empty takes its right-hand side, acts on the others, and then follows from them; one of the two does nothing.
        empty = torch.cat([rows, sums], 1).unsqueeze(2) <= 0
        own_rows, own_columns = torch.where(empty, columns, 0.0).split(sizes, 1)
        others = torch.where(empty, 0.0, columns - torch.cat([self.top @ own_columns, self.bottom.mT @ own_rows], 1))
        found = self._filled(rows, sums, others)
        w_rows, w_columns = found.split(sizes, 1)
        return torch.where(empty, columns - torch.cat([self.top @ w_columns, self.bottom.mT @ w_rows], 1), found)

    def _filled(self, rows: Tensor, sums: Tensor, columns: Tensor) -> Tensor:
        """The solution for the rows and columns that are not empty; right-hand sides are zero where they are."""
        v, null = self._gauge(rows, sums), self._null(rows, sums)
        across = (null * v).sum(1, keepdim=True)
        along = (null * columns).sum(1, keepdim=True) / across
        side_rows, side_columns = (columns - v * along).split([rows.shape[1], sums.shape[1]], 1)
        found = torch.cat(self._numbers(rows, sums, side_rows, side_columns), 1)
        return found + null * ((along - (v * found).sum(1, keepdim=True)) / across)

    def solve_pair(self, side_rows: Tensor, side_columns: Tensor) -> tuple[Tensor, Tensor]:
        """(w_r, w_c) of K for one right-hand side with equal sums, in numbers; free by (t, −t)."""
        w_rows, w_columns = self._numbers(self.plan.sum(2), self.plan.sum(1), side_rows.unsqueeze(2), side_columns.unsqueeze(2))
        return w_rows.squeeze(2), w_columns.squeeze(2)

    @staticmethod
    def _null(rows: Tensor, columns: Tensor) -> Tensor:
        """(1, −1) on what is not empty."""
        return torch.cat([(rows > 0).to(rows.dtype), -(columns > 0).to(rows.dtype)], 1).unsqueeze(2)

    @staticmethod
    def _gauge(rows: Tensor, columns: Tensor) -> Tensor:
        both = torch.cat([rows, -columns], 1).unsqueeze(2)
        return both / _safe(both.abs().sum(1, keepdim=True)).sqrt()

    def _numbers(self, rows: Tensor, columns: Tensor, side_rows: Tensor, side_columns: Tensor) -> tuple[Tensor, Tensor]:
        return _by_elimination(self.plan, rows, columns, side_rows, side_columns, partial(_solve_schur, factor=self.factor, report=self.report))


@dataclass(frozen=True, eq=False)
class MarginalsComplement(Operator):
    """S = A W Aᵀ, where A takes the sums of the rows and of the columns of a matrix, each with a sign, but that of the last column.

    That one follows from the others: m + n − 1 rows, of full rank.

    Args:
        weights: W (b, m, n)
        signs: those of the rows and of the columns, 1 or −1.
    """

    weights: Tensor
    signs: tuple[int, int]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.weights,)

    def with_tensors(self, tensors: Sequence[Tensor]) -> MarginalsComplement:
        (weights,) = tensors
        return MarginalsComplement(weights, self.signs)

    @property
    def shape(self) -> tuple[int, int, int]:
        b, m, n = self.weights.shape
        return b, m + n - 1, m + n - 1

    def transpose(self) -> MarginalsComplement:
        return self

    def _apart(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The parts of the rows and of the columns, without their signs."""
        m, n = self.weights.shape[1:]
        rows, sums = columns.split([m, n - 1], 1)
        return self._signed(rows, sums)

    def _signed(self, rows: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.signs
        return -rows if first < 0 else rows, -sums if second < 0 else sums

    def _together(self, rows: Tensor, sums: Tensor) -> Tensor:
        return torch.cat(self._signed(rows, sums[:, :-1]), 1)

    def matmul_columns(self, columns: Tensor) -> Tensor:
        rows, sums = self._apart(columns)
        sums = torch.nn.functional.pad(sums, (0, 0, 0, 1))
        above = self.weights.sum(2).unsqueeze(2) * rows + self.weights @ sums
        return self._together(above, self.weights.mT @ rows + self.weights.sum(1).unsqueeze(2) * sums)

    def solve_columns(self, columns: Tensor) -> Tensor:
        return self._solved(columns, partial(_solve_schur, factor=None, report=None))

    def attempt_columns(self, columns: Tensor) -> tuple[Tensor, Tensor | None]:
        if min(self.weights.shape[1:]) >= _LARGE:
            return super().attempt_columns(columns)
        marks: list[Tensor] = []

        def solve(plan: Tensor, rows: Tensor, inverse: Tensor, columns: Tensor, side: Tensor) -> Tensor:  # noqa: ARG001
            factor, good = factorise(_schur(plan, inverse, columns))
            marks.append(good)
            return torch.cholesky_solve(side, factor)

        return self._solved(columns, solve), marks[0]

    def _solved(self, columns: Tensor, solve: _SolveSchur) -> Tensor:
        rows, sums = self._apart(columns)
        last = rows.sum(1, keepdim=True) - sums.sum(1, keepdim=True)
        w_rows, w_columns = _by_elimination(self.weights, self.weights.sum(2), self.weights.sum(1), rows, torch.cat([sums, last], 1), solve)
        shift = w_columns[:, -1:]
        return self._together(w_rows + shift, w_columns - shift)


# (plan, rows, inverse of the rows, columns, side) -> S⁻¹ · side
_SolveSchur = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def _by_elimination(plan: Tensor, rows: Tensor, columns: Tensor, side_rows: Tensor, side_columns: Tensor, solve: _SolveSchur) -> tuple[Tensor, Tensor]:
    """The larger side eliminated, the rest solved for."""
    if plan.shape[1] < plan.shape[2]:
        w_columns, w_rows = _by_elimination(plan.mT, columns, rows, side_columns, side_rows, solve)
        return w_rows, w_columns
    inverse = _safe(rows).reciprocal_().unsqueeze(2)
    scaled = side_rows * inverse
    w_columns = solve(plan, rows, inverse, columns, torch.baddbmm(side_columns, plan.mT, scaled, alpha=-1))
    return torch.addcmul(scaled, inverse, plan @ w_columns, value=-1), w_columns
