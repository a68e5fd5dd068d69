"""Newton's direction on the dual: solutions of S x = side, by a Cholesky factor that is kept or by conjugate gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from declarative.layers.transport.kernel import Kernel
from declarative.layers.transport.system import conjugate_gradients, schur_complement

_LARGE = 200  # columns from which conjugate gradients may be faster than a factor
_STEPS = 1 / 10  # how many of their steps cost as much as a factor, for each column
_RENEWED = 12  # steps that an old factor may take as their preconditioner


class Direction:
    """Solves with S + τ diag(Pᵀ1).

    What a cut of the plan's graph lacks is less than the links across it, so links weaker than τ need no care: τ is far below any
    marginal error that counts, and keeps rounding out of the directions in which S is numerically zero.
    """

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.factor: Tensor | None = None
        self._gamma: Tensor | None = None  # at which the factor was made
        self._pays = True  # whether conjugate gradients without a factor have been fast enough so far

    def select(self, index: Tensor) -> None:
        """Go on with these samples."""
        if self.factor is not None and self._gamma is not None:
            self.factor, self._gamma = self.factor[index], self._gamma[index]

    def newton(self, kernel: Kernel, residual: Tensor, error: Tensor) -> Tensor:
        """The change of log v (b, n, 1)."""
        plan = kernel.plan()
        # As exact as Newton's own convergence can use.
        exactness = min(0.1, max(0.3 * float(error.max()), 0.2 * self.tolerance / max(float(error.min()), self.tolerance)))
        return self._solve(kernel, plan, residual, residual, exactness)

    def with_tangent(self, kernel: Kernel, residual: Tensor) -> tuple[Tensor, Tensor]:
        """That, and by how much the potential in K exceeds the limit of its tangent in 1/γ (b, n, 1)."""
        plan = kernel.plan()
        slack = kernel.slack if kernel.row_floor is None else kernel.slack.masked_fill(torch.isinf(kernel.slack), 0.0)
        moved = plan * slack
        side = torch.baddbmm(moved.sum(1).unsqueeze(2), plan.mT, moved.sum(2, keepdim=True) / kernel.r, alpha=-1)
        solution = self._solve(kernel, plan, residual, torch.cat((residual, side), 2), 0.03)
        return solution[:, :, :1], solution[:, :, 1:]

    def _solve(self, kernel: Kernel, plan: Tensor, residual: Tensor, side: Tensor, exactness: float) -> Tensor:
        columns = kernel.c - residual
        n = plan.shape[2]
        if n >= _LARGE:
            tried = self._iterate(kernel, plan, columns, side, exactness)
            if tried is not None:
                return tried
        self._factorise(kernel, plan, columns)
        assert self.factor is not None
        return torch.cholesky_solve(side, self.factor)

    def _iterate(self, kernel: Kernel, plan: Tensor, columns: Tensor, side: Tensor, exactness: float) -> Tensor | None:
        """By conjugate gradients, where they are faster."""
        rows, sums = kernel.r.squeeze(2), columns.squeeze(2)
        factor = self.factor
        if factor is not None and self._gamma is not None and bool((self._gamma == kernel.gamma).all()):
            tried = conjugate_gradients(plan, rows, sums, side, lambda r: torch.cholesky_solve(r, factor), exactness, _RENEWED)
            if bool(tried.converged.all()):
                return tried.solution
        if not self._pays:
            return None
        diagonal = (columns - (plan * plan / kernel.r).sum(1).unsqueeze(2)).clamp_min(torch.finfo(plan.dtype).tiny)
        tried = conjugate_gradients(plan, rows, sums, side, lambda r: r / diagonal, exactness, int(plan.shape[2] * _STEPS))
        self._pays = bool(tried.converged.all())
        return tried.solution if self._pays else None

    def _factorise(self, kernel: Kernel, plan: Tensor, columns: Tensor) -> None:
        schur = schur_complement(plan, kernel.r.squeeze(2), columns.squeeze(2))
        damping = 1e-12 if plan.dtype == torch.float64 else 1e-6
        diagonal = schur.diagonal(dim1=1, dim2=2)
        diagonal.add_(columns.squeeze(2), alpha=damping)
        self.factor, info = torch.linalg.cholesky_ex(schur)
        while bool(info.any()):
            damping = max(1e-8, 100 * damping)
            diagonal.add_(torch.where(info > 0, damping, 0.0).unsqueeze(1) * columns.squeeze(2))
            self.factor, info = torch.linalg.cholesky_ex(schur)
        self._gamma = kernel.gamma
