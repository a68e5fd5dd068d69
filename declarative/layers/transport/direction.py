"""Newton's direction on the dual: solutions of S x = side, with the Cholesky factor kept."""

from __future__ import annotations

import torch
from torch import Tensor

from declarative.layers.transport.kernel import Kernel
from declarative.layers.transport.system import schur_complement


class Direction:
    """Solves with S + τ diag(Pᵀ1).

    What a cut of the plan's graph lacks is less than the links across it, so links weaker than τ need no care: τ is far below any
    marginal error that counts, and keeps rounding out of the directions in which S is numerically zero.
    """

    def __init__(self) -> None:
        self.factor: Tensor | None = None

    def select(self, index: Tensor) -> None:
        """Go on with these samples."""
        self.factor = None if self.factor is None else self.factor[index]

    def newton(self, kernel: Kernel, residual: Tensor) -> Tensor:
        """The change of log v (b, n, 1)."""
        self._factorise(kernel, kernel.plan(), kernel.c - residual)
        return torch.cholesky_solve(residual, self.factor)

    def with_tangent(self, kernel: Kernel, residual: Tensor) -> tuple[Tensor, Tensor]:
        """That, and by how much the potential in K exceeds the limit of its tangent in 1/γ (b, n, 1)."""
        plan = kernel.plan()
        slack = kernel.slack if kernel.row_floor is None else kernel.slack.masked_fill(torch.isinf(kernel.slack), 0.0)
        moved = plan * slack
        side = torch.baddbmm(moved.sum(1).unsqueeze(2), plan.mT, moved.sum(2, keepdim=True) / kernel.r, alpha=-1)
        self._factorise(kernel, plan, kernel.c - residual)
        solution = torch.cholesky_solve(torch.cat((residual, side), 2), self.factor)
        return solution[:, :, :1], solution[:, :, 1:]

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
