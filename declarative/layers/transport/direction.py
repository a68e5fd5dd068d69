"""Newton's direction on the dual: solutions of S x = side, by a Cholesky factor that is kept or by conjugate gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from declarative.kkt.marginals import conjugate_gradients
from declarative.layers.transport.kernel import Kernel

LARGE = 200  # columns from which conjugate gradients may be faster than a factor
_STEPS = 1 / 10  # how many of their steps cost as much as a factor, for each column
_RENEWED = 12  # steps that an old factor may take as their preconditioner
_BLOCK = 64  # columns of S at a time, where only its lower triangle is formed: 0.6 of the work


class Direction:
    """Solves with S + τ diag(Pᵀ1).

    What a cut of the plan's graph lacks is less than the links across it, so links weaker than τ need no care: τ is far below any
    marginal error that counts, and keeps rounding out of the directions in which S is numerically zero.

    Args:
        tolerance: the marginal error that is wanted in the end.
        mass: (b, 1, 1)
    """

    def __init__(self, tolerance: float, mass: Tensor) -> None:
        self.tolerance = tolerance
        self.factor: Tensor | None = None
        self._scale = mass.rsqrt()
        self._gamma: Tensor | None = None  # at which the factor was made
        self._pays = True  # whether conjugate gradients without a factor have been fast enough so far

    def select(self, index: Tensor) -> None:
        """Go on with these samples."""
        self._scale = self._scale[index]
        if self.factor is not None and self._gamma is not None:
            self.factor, self._gamma = self.factor[index], self._gamma[index]

    def newton(self, kernel: Kernel, residual: Tensor, largest: float, least: float) -> Tensor:
        """The change of log v (b, 1, n), as exact as Newton's own convergence from errors between `least` and `largest` can use."""
        exactness = min(0.1, max(0.3 * largest, 0.2 * self.tolerance / max(least, self.tolerance)))
        return self._solve(kernel, kernel.plan(), residual, residual.mT, exactness).mT

    def with_tangent(self, kernel: Kernel, residual: Tensor) -> tuple[Tensor, Tensor]:
        """That, and by how much the potential in K exceeds the limit of its tangent in 1/γ (b, 1, n)."""
        plan = kernel.plan()
        moved = kernel.slack().mul_(plan)
        rows = moved.sum(2).unsqueeze(1)
        if not bool(torch.isfinite(rows).all()):  # where nothing may be sent the slack is infinite
            moved = moved.nan_to_num_(0.0)
            rows = moved.sum(2).unsqueeze(1)
        rows = rows / kernel.r
        side = torch.baddbmm(moved.sum(1, keepdim=True), rows, plan, alpha=-1)
        solution = self._solve(kernel, plan, residual, torch.cat((residual, side), 1).mT, 0.03).mT
        return solution[:, :1], solution[:, 1:]

    def _solve(self, kernel: Kernel, plan: Tensor, residual: Tensor, side: Tensor, exactness: float) -> Tensor:
        columns = kernel.c - residual
        if plan.shape[2] >= LARGE:
            tried = self._iterate(kernel, plan, columns, side, exactness)
            if tried is not None:
                return tried
        self.factor, self._gamma = self._factorise(kernel, plan, columns), kernel.gamma
        return torch.cholesky_solve(side, self.factor)

    def _iterate(self, kernel: Kernel, plan: Tensor, columns: Tensor, side: Tensor, exactness: float) -> Tensor | None:
        """By conjugate gradients, where they are faster."""
        rows, sums, factor = kernel.r.squeeze(1), columns.squeeze(1), self.factor
        if factor is not None and self._gamma is not None and bool((self._gamma == kernel.gamma).all()):
            tried = conjugate_gradients(plan, rows, sums, side, lambda r: torch.cholesky_solve(r, factor), exactness, _RENEWED)
            if bool(tried.converged.all()):
                return tried.solution
        if not self._pays:
            return None
        diagonal = (columns - (plan * plan).mul_(1 / kernel.r.mT).sum(1, keepdim=True)).clamp_min_(torch.finfo(plan.dtype).tiny).mT
        tried = conjugate_gradients(plan, rows, sums, side, lambda r: r / diagonal, exactness, int(plan.shape[2] * _STEPS))
        self._pays = bool(tried.converged.all())
        return tried.solution if self._pays else None

    def _factorise(self, kernel: Kernel, plan: Tensor, columns: Tensor) -> Tensor:
        """The factor of what `system.schur_complement` forms, damped."""
        gauge = columns * self._scale
        if kernel.column_floor is not None:
            gauge = torch.where(kernel.column_floor < 1, gauge, 0.0)
        scaled, n = (plan / kernel.r.mT).mT, plan.shape[2]
        schur = gauge.mT * gauge
        if n < 4 * _BLOCK or schur.device.type != "cpu":
            schur.baddbmm_(scaled, plan, alpha=-1)
        else:
            for low in range(0, n, _BLOCK):
                high = min(low + _BLOCK, n)
                schur[:, low:high, :high].baddbmm_(scaled[:, low:high], plan[:, :, :high], alpha=-1)
        damping = 1e-12 if plan.dtype == torch.float64 else 1e-6
        diagonal, sums = schur.diagonal(dim1=1, dim2=2), columns.squeeze(1)
        diagonal.add_(sums, alpha=1 + damping)
        factor, info = torch.linalg.cholesky_ex(schur)
        while bool(info.any()) and damping < 1:
            damping = max(1e-8, 100 * damping)
            diagonal.add_(torch.where(info > 0, damping, 0.0).unsqueeze(1) * sums)
            factor, info = torch.linalg.cholesky_ex(schur)
        return factor
