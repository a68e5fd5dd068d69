"""`Eigenvector`: one eigenvector of a symmetric matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from declarative.differentiation.base import Differentiation
from declarative.layers.arguments import positive_int
from declarative.layers.closed_form import Answer, ClosedFormLayer
from declarative.layers.formula import Formula, solved
from declarative.layers.natural import matrix, read
from declarative.layers.natural_layer import Call


class Eigenvector(ClosedFormLayer):
    """y = the unit eigenvector of the kth largest, or smallest, eigenvalue of X, with its largest entry (in size, the first of these) positive.

    For the largest, y = argmin −½ yᵀXy s.t. ‖y‖ = 1, for the smallest that of ½ yᵀXy; the multiplier is the eigenvalue, and its negative. For those
    between, with σ that eigenvalue, held constant: y = argmin ½ ‖(X − σI)y‖² s.t. ‖y‖ = 1. The derivative is dy = (λI − X)⁺ dX y. Other eigenvalues may
    coincide. Of X only the symmetric part counts.

    Args:
        k: 1 for the largest.
        largest: False counts from the smallest.
        differentiation: where the eigenvalue is repeated, y is any unit vector of its eigenspace: `Implicit(irregular=...)` says what the derivative is
            to be; "min_norm" leaves out that space.

    Shapes:
        X (…, n, n) -> y (…, n). The eigenvalue is yᵀXy.

    Raises:
        ValueError, TypeError: matrices that are not square or not finite, a k that is not between 1 and n.
        IrregularPointError: a repeated eigenvalue is differentiated, with irregular="raise".

    Example:
        >>> Eigenvector()(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
        tensor([0.7071, 0.7071])

    Source: Magnus, "On differentiating eigenvalues and eigenvectors", Econometric Theory 1(2), 1985.
    """

    arguments = ("X",)
    ranks = (2,)

    def __init__(self, k: int = 1, *, largest: bool = True, differentiation: Differentiation | None = None) -> None:
        super().__init__(differentiation=differentiation)
        self.k, self.largest = positive_int(f"{type(self).__name__}: k", k), largest

    def _read(self, inputs: tuple[Any, ...]) -> Call:
        (X,) = inputs
        owner = type(self).__name__
        X = matrix(owner, "X", X, "n", "n")
        if self.k > X.shape[-1]:
            raise ValueError(f"{owner}: k must be between 1 and n = {X.shape[-1]}, got {self.k}")
        lead, tensors = read(owner, {"X": (X, 2)})
        return Call(lead, (0.5 * (tensors[0] + tensors[0].mT).expand(lead.batch, -1, -1),))

    def _position(self, n: int) -> int:
        """Where the eigenvalue stands among all in ascending order."""
        return n - self.k if self.largest else self.k - 1

    def _objective(self, X: Tensor, y: Tensor) -> Tensor:
        at, n = self._position(X.shape[-1]), X.shape[-1]
        image = (X @ y.unsqueeze(2)).squeeze(2)
        if at in (0, n - 1):
            return (0.5 if at == 0 else -0.5) * (y * image).sum(1)
        sigma = torch.linalg.eigvalsh(X.detach())[:, at : at + 1]
        return 0.5 * (image - sigma * y).square().sum(1)

    def _equalities(self, X: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return 0.5 * (y.square().sum(1) - 1).unsqueeze(1)

    def _answer(self, X: Tensor) -> Answer:
        self._check_finite(X)
        n = X.shape[1]
        at = self._position(n)
        y, eigenvalue, gap = solved(_Pair(at), X)
        sign = -1.0 if at == 0 and n > 1 else 1.0 if at == n - 1 else 0.0
        nu = (sign * eigenvalue).unsqueeze(1)
        return Answer(y, nu, irregular=gap.detach() == 0, cause="the eigenvalue is repeated, and y one of many eigenvectors")


@dataclass(frozen=True, eq=False)
class _Pair(Formula):
    """X (b, n, n), symmetric -> y (b, n), λ (b,) and the distance to the nearest other eigenvalue, 0 where rounding hides it.

    dλ = yᵀdX y and dy = (λI − X)⁺ dX y =: z, of which the bordered system is [λI − X, y; yᵀ, 0] [z; ·] = [dX y; 0]; its matrix is symmetric, so that
    the pull-back solves the same. Where λ is repeated, its pseudo-inverse stands for the inverse. The distance counts as constant.
    """

    at: int
    live = 3

    def fresh(self) -> _Pair:
        return self

    def solve(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        (X,) = tensors
        values, vectors = torch.linalg.eigh(X)
        y, here = vectors[:, :, self.at], values[:, self.at]
        turn = torch.gather(y, 1, y.abs().argmax(1, keepdim=True)).sign()
        others = torch.cat([values[:, : self.at], values[:, self.at + 1 :]], 1)
        gap = (others - here.unsqueeze(1)).abs().amin(1) if others.shape[1] else torch.ones_like(here)
        size = values.abs().amax(1)
        return y * turn, here.clone(), torch.where(gap <= 8 * X.shape[1] * torch.finfo(X.dtype).eps * size, 0.0, gap)

    @staticmethod
    def _resolvent(operands: Sequence[Tensor], v: Tensor) -> Tensor:
        """(λI − X)⁺ v"""
        X, y, eigenvalue, gap = operands
        n = X.shape[1]
        column, marked = y.unsqueeze(2), (gap == 0)[:, None, None]
        eye = torch.eye(n + 1, dtype=X.dtype, device=X.device)
        shifted = eigenvalue[:, None, None] * eye[:n, :n] - X
        K = torch.cat([torch.cat([shifted, column], 2), torch.cat([column.mT, torch.zeros_like(column[:, :1])], 2)], 1)
        side = torch.cat([v, torch.zeros_like(v[:, :1])], 1).unsqueeze(2)
        z = torch.linalg.solve(torch.where(marked, eye, K), side)
        # In units of its largest entry; what is left of repeated eigenvalues is rounding.
        shortest = torch.linalg.pinv(torch.where(marked, K, eye), rtol=16 * n * torch.finfo(X.dtype).eps, hermitian=True) @ side
        return torch.where(marked, shortest, z)[:, :n, 0]

    def pull_back(self, operands: Sequence[Tensor], cotangents: Sequence[Tensor | None], wanted: Sequence[bool]) -> Sequence[Tensor | None]:
        y, (v, value, _) = operands[1], cotangents
        if not wanted[0]:
            return [None]
        left = torch.zeros_like(y) if v is None else self._resolvent(operands, v)
        if value is not None:
            left = left + value.unsqueeze(1) * y
        outer = left.unsqueeze(2) * y.unsqueeze(1)
        return [0.5 * (outer + outer.mT)]

    def push_forward(self, operands: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        _, y, eigenvalue, gap = operands
        dX = tangents[0]
        if dX is None:
            return torch.zeros_like(y), torch.zeros_like(eigenvalue), torch.zeros_like(gap)
        moved = (0.5 * (dX + dX.mT) @ y.unsqueeze(2)).squeeze(2)
        return self._resolvent(operands, moved), (y * moved).sum(1), torch.zeros_like(gap)
