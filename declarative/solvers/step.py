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
from declarative.kkt.symmetric import definite_factor
from declarative.solvers.step_rule import StepOperator, convexified
from declarative.transforms import is_recorded
from declarative.typing import Hessians, Jacobians, Rows, SampleMask, Values, Variables
from declarative.vectors import times


class ReducedModel:
    """The factorised model; `solve` it for several right-hand sides."""

    def __init__(self, hessian: Hessians, jacobian: Jacobians, gradient: Variables, radius: Values, space: tuple[Tensor, Tensor] | None = None) -> None:
        """Factorise.

        Args:
            gradient, radius: where the model is not convex, its steps along null(A) are to be no longer than `radius` for this
                gradient.
            space: what `row_space` says of A, where that is known already.
        """
        given, recorded = (hessian, jacobian, gradient, radius), is_recorded(hessian, jacobian, gradient)
        hessian, jacobian, gradient, radius = (t.detach() for t in given)
        self._hessian, self._jacobian = hessian, jacobian
        self._constrained = jacobian.shape[1] > 0
        reduced = hessian
        if self._constrained:
            self._basis, self._pinv = row_space(jacobian) if space is None else space
            scale = hessian.diagonal(dim1=-2, dim2=-1).abs().mean(-1)
            scale = torch.where(scale > 0, scale, 1.0)
            half = torch.baddbmm(hessian, torch.bmm(hessian, self._basis), self._basis.mT, alpha=-1)
            rows = torch.bmm(self._basis.mT, half) - scale[:, None, None] * self._basis.mT
            reduced = torch.baddbmm(half, self._basis, rows, alpha=-1)  # symmetric to rounding; what follows reads one triangle
        self.convex: SampleMask
        """(b,) where the model was convex as it stood."""
        # Where H vanishes on null(A), the products with P leave several roundoffs of σ there.
        self._factor, self.convex = definite_factor(reduced, 10.0) if self._constrained else definite_factor(reduced)
        self.downhill: Variables | None = None
        """Unit vectors in null(A) of most negative curvature; zero where there is none. None: nowhere."""
        if not bool(self.convex.all()):
            pull = self._project(gradient) if self._constrained else gradient
            self._convexify(reduced, torch.linalg.vector_norm(pull, dim=1) / radius)
        self._rule = self._recorded(*given) if recorded else None

    def _recorded(self, hessian: Hessians, jacobian: Jacobians, gradient: Variables, radius: Values) -> StepOperator:
        """The same step, differentiable."""
        floor = None
        if not bool(self.convex.all()):
            pull = gradient - times(torch.linalg.pinv(jacobian) @ jacobian, gradient) if self._constrained else gradient
            floor = torch.linalg.vector_norm(pull, dim=1) / radius
        space = (self._basis, self._pinv) if self._constrained else None

        def factorise(hessian: Hessians, jacobian: Jacobians) -> ReducedModel:
            return ReducedModel(hessian, jacobian, torch.zeros_like(gradient), torch.ones_like(radius), space)

        return StepOperator(convexified(hessian, jacobian, self.convex, floor), jacobian, factorise)

    def _convexify(self, reduced: Tensor, least: Tensor) -> None:
        """Replace eigenvalues by their absolute values, `least` at least, in the samples that need it.

        With eigenvalues of ‖g‖ / radius or more no component of the step is longer than the radius, and flat directions do not
        crowd out the others, as they would if the step were cut afterwards.
        """
        index = (~self.convex & torch.isfinite(reduced).flatten(1).all(1)).nonzero().squeeze(1)
        if index.numel():
            values, vectors = torch.linalg.eigh(reduced[index])
            bent = values[:, 0] < -(torch.finfo(reduced.dtype).eps ** 0.5) * values.abs().amax(1)
            steepest = torch.where(bent.unsqueeze(1), vectors[:, :, 0], 0.0)
            self.downhill = torch.zeros_like(reduced[:, 0]).index_copy(0, index, steepest)
            n, eps = reduced.shape[-1], torch.finfo(reduced.dtype).eps
            magnitudes = values.abs()
            floor = (10 * n * eps * magnitudes.amax(-1, keepdim=True)).clamp_min(torch.finfo(reduced.dtype).tiny ** 0.5)
            roots = torch.maximum(magnitudes, torch.maximum(floor, least[index].unsqueeze(1))).sqrt()
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
        particular = times(self._pinv, change)
        slope = gradient + times(self._hessian, particular)
        tangential = self._project(-self._inverse(self._project(slope)))
        step = particular + tangential
        residual = gradient + times(self._hessian, step)
        return step, -times(self._pinv.mT, residual)

    def _inverse(self, vector: Tensor) -> Tensor:
        return torch.cholesky_solve(vector.unsqueeze(-1), self._factor).squeeze(-1)

    def _project(self, vector: Tensor) -> Tensor:
        return vector - times(self._basis, times(self._basis.mT, vector))
