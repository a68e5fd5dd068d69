"""The Newton step of an equality-constrained quadratic model, made a descent step where the model is not convex.

min_d ½dᵀHd + gᵀd  s.t.  A d = c. With P the orthogonal projection onto null(A), the step is d = A⁺c + z with z in
null(A), and  (P H P + σ(I − P)) z = −P (g + H A⁺c). The matrix on the left is block diagonal over null(A) and its
complement, so one Cholesky both solves and tells whether H is positive definite ON null(A), which is all that a minimiser
needs: H itself may be singular. A may have dependent rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative.kkt.null_space import row_space
from declarative.solvers.step_rule import StepOperator, convexified
from declarative.transforms import is_recorded
from declarative.typing import Hessians, Jacobians, Rows, SampleMask, Variables


class ReducedModel:
    """The factorised model; `solve` it for several right-hand sides."""

    def __init__(self, hessian: Hessians, jacobian: Jacobians) -> None:
        given, recorded = (hessian, jacobian), is_recorded(hessian, jacobian)
        hessian, jacobian = hessian.detach(), jacobian.detach()
        self._hessian, self._jacobian = hessian, jacobian
        self._constrained = jacobian.shape[1] > 0
        reduced = hessian
        if self._constrained:
            self._basis, self._pinv = row_space(jacobian)
            scale = hessian.diagonal(dim1=-2, dim2=-1).abs().mean(-1).clamp_min(torch.finfo(hessian.dtype).tiny)
            half = hessian - (hessian @ self._basis) @ self._basis.mT
            reduced = half - self._basis @ (self._basis.mT @ half) + scale[:, None, None] * (self._basis @ self._basis.mT)
        reduced = 0.5 * (reduced + reduced.mT)
        self._factor, info = torch.linalg.cholesky_ex(reduced)
        self.convex: SampleMask = info == 0
        """(b,) where the model was convex as it stood."""
        if not bool(self.convex.all()):
            self._convexify(reduced)
        self._rule = StepOperator(convexified(*given, self.convex), given[1], ReducedModel) if recorded else None

    def _convexify(self, reduced: Tensor) -> None:
        """Replace eigenvalues by their absolute values, away from zero, in the samples that need it."""
        index = (~self.convex & torch.isfinite(reduced).flatten(1).all(1)).nonzero().squeeze(1)
        if index.numel():
            values, vectors = torch.linalg.eigh(reduced[index])
            n, eps = reduced.shape[-1], torch.finfo(reduced.dtype).eps
            magnitudes = values.abs()
            floor = (10 * n * eps * magnitudes.amax(-1, keepdim=True)).clamp_min(torch.finfo(reduced.dtype).tiny ** 0.5)
            roots = torch.maximum(magnitudes, floor).sqrt()
            # Q|Λ|Qᵀ = (Q√|Λ|)(Q√|Λ|)ᵀ; its Cholesky factor comes from a QR and cannot fail.
            triangle = torch.linalg.qr(roots.unsqueeze(-1) * vectors.mT, mode="r").R.mT
            self._factor = self._factor.index_copy(0, index, triangle)
        rest = (~torch.isfinite(reduced).flatten(1).all(1)).nonzero().squeeze(1)
        if rest.numel():
            self._factor = self._factor.index_fill(0, rest, torch.nan)

    def solve(self, gradient: Variables, change: Rows) -> tuple[Variables, Rows]:
        """The step d for `gradient` g and A d = `change`, and the multipliers ν of  H d + g + Aᵀν = 0."""
        if self._rule is not None:
            return self._rule.step(gradient, change)
        if not self._constrained:
            return -self._inverse(gradient), change
        particular = _apply(self._pinv, change)
        slope = gradient + _apply(self._hessian, particular)
        tangential = self._project(-self._inverse(self._project(slope)))
        step = particular + tangential
        residual = gradient + _apply(self._hessian, step)
        return step, -_apply(self._pinv.mT, residual)

    def _inverse(self, vector: Tensor) -> Tensor:
        return torch.cholesky_solve(vector.unsqueeze(-1), self._factor).squeeze(-1)

    def _project(self, vector: Tensor) -> Tensor:
        return vector - _apply(self._basis, _apply(self._basis.mT, vector))


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
