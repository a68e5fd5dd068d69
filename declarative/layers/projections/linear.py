"""Onto a half-space and onto an affine subspace."""

from __future__ import annotations

import torch
from torch import Tensor

from declarative.differentiation.base import Differentiation
from declarative.errors import SolverError, name_samples
from declarative.layers.closed_form import Answer, reject
from declarative.layers.judged import numbers, physical
from declarative.layers.projections.base import ProjectionLayer, rounding
from declarative.layers.rank import deficient


class HalfSpaceProjection(ProjectionLayer):
    """y = argmin ½‖y − x‖²  s.t.  aᵀy ≤ b: points outside move along a.

    Args:
        a, b: tensors or `torch.nn.Parameter`s, b also a number; or None, to be passed in each call.
        differentiation: `Implicit(weakly_active=...)` chooses the side for points on the boundary.

    Shapes:
        x (…, n), a (…, n), b (…) -> y (…, n); leading dimensions broadcast. `.solution(x)`: inequality_multipliers (…, 1).

    Raises:
        ValueError, TypeError: a that is zero, numbers that are not finite, shapes that do not fit.

    Example:
        >>> HalfSpaceProjection()(torch.tensor([[3.0, 1.0], [0.0, 0.0]]), torch.tensor([1.0, 1.0]), 2.0)
        tensor([[2., 0.],
                [0., 0.]])

    Source: Parikh & Boyd, "Proximal algorithms", Found. Trends Optim. 1(3), 2014.
    """

    arguments = ("x", "a", "b")
    ranks = (1, 1, 0)

    def __init__(self, a: Tensor | None = None, b: float | Tensor | None = None, *, differentiation: Differentiation | None = None) -> None:
        super().__init__(differentiation=differentiation)
        self._keep("a", a)
        self._keep("b", b)

    def _check_sizes(self, tensors: tuple[Tensor, ...]) -> None:
        x, a, _ = tensors
        if a.shape[1] != x.shape[1]:
            raise ValueError(f"{type(self).__name__}: a must have as many entries as x, {x.shape[1]}, got {a.shape[1]}")

    def _inequalities(self, x: Tensor, a: Tensor, b: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return ((a * y).sum(1) - b).unsqueeze(1)

    def _answer(self, x: Tensor, a: Tensor, b: Tensor) -> Answer:
        self._check_finite(x, a, b)
        reject(type(self).__name__, ~(a != 0).any(1), "a must not be zero: it is the normal of the half-space")
        excess = ((a * x).sum(1) - b).unsqueeze(1)
        weakly = excess.detach().abs() <= rounding((a * x).abs().sum(1, keepdim=True), b.unsqueeze(1))
        active = (excess.detach() > 0) & ~weakly
        mu = excess / a.square().sum(1, keepdim=True)
        y = torch.where(self._held(active, weakly), x - mu * a, x)
        return Answer(y, None, torch.where(active, mu, 0.0), active, weakly)


class AffineProjection(ProjectionLayer):
    """y = argmin ½‖y − x‖²  s.t.  A y = b: x less its part in the rows of A, and A⁺b in its place.

    By the QR factorisation of Aᵀ; where rows of A depend on each other, by the pseudo-inverse.

    Args:
        A, b: tensors or `torch.nn.Parameter`s; or None, to be passed in each call.
        differentiation: where rows of A depend on each other, y is unique (if there is a point at all) but its derivative is not:
            `Implicit(irregular=...)` says what it is to be. "min_norm" is right for constraints that are redundant, and stay so.

    Shapes:
        x (…, n), A (…, p, n), b (…, p) -> y (…, n); leading dimensions broadcast. `.solution(x)`: equality_multipliers ν (…, p).

    Raises:
        ValueError, TypeError: numbers that are not finite, shapes that do not fit.
        SolverError: samples without any y that satisfies A y = b.
        IrregularPointError: samples whose A has dependent rows are differentiated, with irregular="raise".

    Example:
        >>> AffineProjection(torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([2.0]))(torch.tensor([[1.0, 2.0, 4.0]]))
        tensor([[-0.6667,  0.3333,  2.3333]])

    Source: Golub & Van Loan, "Matrix computations", 4th ed., 2013, section 5.6.
    """

    arguments = ("x", "A", "b")
    ranks = (1, 2, 1)

    def __init__(self, A: Tensor | None = None, b: Tensor | None = None, *, differentiation: Differentiation | None = None) -> None:
        super().__init__(differentiation=differentiation)
        self._keep("A", A)
        self._keep("b", b)

    def _check_sizes(self, tensors: tuple[Tensor, ...]) -> None:
        x, A, b = tensors
        if A.shape[2] != x.shape[1] or b.shape[1] != A.shape[1]:
            sizes = f"x of {x.shape[1]}, A of {A.shape[1]} × {A.shape[2]}, b of {b.shape[1]} entries"
            raise ValueError(f"{type(self).__name__}: x (…, n), A (…, p, n) and b (…, p) must fit together, got {sizes}")

    def _equalities(self, x: Tensor, A: Tensor, b: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return (A @ y.unsqueeze(2)).squeeze(2) - b

    def _answer(self, x: Tensor, A: Tensor, b: Tensor) -> Answer:
        self._check_finite(x, A, b)
        marked = numbers(deficient, A.mT)
        ours, rhs = x.unsqueeze(2), b.unsqueeze(2)
        if not bool(physical(marked).any()):
            Q, R = torch.linalg.qr(A.mT)  # A = RᵀQᵀ
            inside = torch.linalg.solve_triangular(R.mT, rhs, upper=False)
            gap = Q.mT @ ours - inside
            y, nu = ours - Q @ gap, torch.linalg.solve_triangular(R, gap, upper=True)
            return Answer(y.squeeze(2), nu.squeeze(2))
        inverse = torch.linalg.pinv(A)
        gap = A @ ours - rhs
        y = (ours - inverse @ gap).squeeze(2)
        left = (gap - A @ (inverse @ gap)).detach().abs().amax((1, 2))
        size = (A.detach().abs().amax((1, 2)) * y.detach().abs().amax(1)) + b.detach().abs().amax(1) + torch.finfo(y.dtype).tiny
        apart = physical(left > torch.finfo(y.dtype).eps ** 0.5 * size).reshape(-1)
        if bool(apart.any()):
            named = name_samples(apart.nonzero().squeeze(1).tolist(), apart.numel())
            raise SolverError(f"{type(self).__name__}: rows of A depend on each other and contradict each other in b: no point satisfies A y = b in {named}")
        nu = (inverse.mT @ (inverse @ gap)).squeeze(2)
        marked = marked.expand(y.shape[0])
        return Answer(y, nu, irregular=marked, cause="rows of A depend on each other (redundant constraints)")
