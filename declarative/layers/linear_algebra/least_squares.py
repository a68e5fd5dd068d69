"""`LeastSquares`: weighted, regularised, differentiable in everything."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from declarative.differentiation.base import Differentiation
from declarative.errors import IrregularPointError, name_samples
from declarative.layers.closed_form import Answer, ClosedFormLayer, reject
from declarative.layers.judged import numbers, physical
from declarative.layers.linear_algebra.gram import GramOperator, stacked
from declarative.layers.natural import as_number, matrix, read
from declarative.layers.natural_layer import Call
from declarative.layers.rank import deficient
from declarative.structure.base import invert
from declarative.transforms import transforms_active


class LeastSquares(ClosedFormLayer):
    """y = argmin ½ Σ_i w_i (A y − b)_i² + ½ Σ_j λ_j y_j².

    By the QR factorisation of [√W A; √Λ], made once where all samples share A, w and λ. Differentiable to any order, in reverse and forward mode and under
    torch.func, in A, b, w and λ; the backward pass uses the same factor.

    Args:
        ridge: λ ≥ 0: a number, a tensor that broadcasts with (…, n), a `torch.nn.Parameter`. Also an argument of the call.
        columns: whether b has several columns, (…, m, k), and y (…, n, k) with it.
        differentiation: where columns of [√W A; √Λ] depend on each other, y is not unique. With `Implicit()` that is an error;
            `Implicit(irregular="min_norm")` gives the shortest y and its derivative for matrices of that rank; "nan" and "zero" the same y, without.

    Shapes:
        A (…, m, n), b (…, m) or (…, m, k), weights (…, m), ridge (…, n) or a number -> y (…, n) or (…, n, k); leading dimensions broadcast. One λ for
        each sample is (…, 1).

    Raises:
        ValueError, TypeError: weights or ridges that are negative, numbers that are not finite, shapes that do not fit.
        IrregularPointError: samples whose y is not unique.

    Example:
        >>> A = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
        >>> LeastSquares()(A, torch.tensor([1.0, 2.0, 4.0]))  # a line through three points
        tensor([0.8333, 1.5000])

    Source: Björck, "Numerical methods for least squares problems", SIAM, 1996.
    """

    arguments = ("A", "b", "weights", "ridge")

    def __init__(self, ridge: float | Tensor = 0.0, *, columns: bool = False, differentiation: Differentiation | None = None) -> None:
        super().__init__(differentiation=differentiation)
        self._keep("ridge", ridge)
        self.columns = columns
        self.ranks = (2, 2 if columns else 1, 1, 1)

    def _read(self, inputs: tuple[Any, ...]) -> Call:
        owner, (A, b, weights, ridge) = type(self).__name__, inputs
        m, n = matrix(owner, "A", A, "m", "n").shape[-2:]
        named: dict[str, tuple[Any, int]] = {"A": (A, 2), "b": (b, 2 if self.columns else 1)}
        named["weights"] = (A.new_ones(m) if weights is None else weights, 1)
        penalty = as_number(self.ridge if ridge is None else ridge, A)
        if isinstance(penalty, Tensor):
            if penalty.ndim and penalty.shape[-1] not in (1, n):
                raise ValueError(f"{owner}: ridge must be a number or (…, n), n = {n}, got shape {tuple(penalty.shape)}; one for each sample is (…, 1)")
            penalty = penalty.expand(*penalty.shape[:-1], n)
        named["ridge"] = (penalty, 1)
        lead, tensors = read(owner, named)
        for name, position, wanted in (("b", 1, "(…, m, k)" if self.columns else "(…, m)"), ("weights", 2, "(…, m)")):
            if tensors[position].shape[1] != m:
                hint = "; pass columns=True for several right-hand sides (…, m, k)" if name == "b" and not self.columns else ""
                raise ValueError(f"{owner}: {name} must be {wanted} with m = {m}, the rows of A, got shape {tuple(named[name][0].shape)}{hint}")
        return Call(lead, tuple(tensors))

    def _objective(self, A: Tensor, b: Tensor, weights: Tensor, ridge: Tensor, y: Tensor) -> Tensor:
        y, b = (y, b) if self.columns else (y.unsqueeze(2), b.unsqueeze(2))
        misfit = weights.unsqueeze(2) * (A @ y - b).square()
        return 0.5 * misfit.sum((1, 2)) + 0.5 * (ridge.unsqueeze(2) * y.square()).sum((1, 2))

    def _answer(self, A: Tensor, b: Tensor, weights: Tensor, ridge: Tensor) -> Answer:
        owner = type(self).__name__
        self._check_finite(A, b, weights, ridge)
        reject(owner, (weights < 0).any(1), "weights must be 0 or more")
        reject(owner, (ridge < 0).any(1), "ridge must be 0 or more; learn its logarithm if it may not stay so")
        b = b if self.columns else b.unsqueeze(2)
        sizes = {t.shape[0] for t in (A, weights, ridge)}
        batch, k = next((size for size in (*sizes, b.shape[0]) if size != 1), 1), b.shape[2]
        # One matrix for all samples: their right-hand sides are columns of one system.
        shared = sizes == {1} and batch != 1
        if shared:
            b = b.movedim(0, 1).reshape(1, A.shape[1], batch * k)
        else:
            A, b, weights, ridge = (t.expand(batch, *t.shape[1:]) for t in (A, b, weights, ridge))
        marked = numbers(lambda A, weights, ridge: deficient(stacked(A, weights, ridge)), A, weights, ridge)
        y, marked = self._solved(A, b, weights, ridge, marked)
        if shared:
            y = y.reshape(A.shape[2], batch, k).movedim(1, 0)
            marked = None if marked is None else marked.expand(batch)
        return Answer(y if self.columns else y.squeeze(2), irregular=marked, cause="columns of [√W A; √Λ] depend on each other: y is not unique")

    def _solved(self, A: Tensor, b: Tensor, weights: Tensor, ridge: Tensor, marked: Tensor) -> tuple[Tensor, Tensor | None]:
        some = bool(physical(marked).any())
        if not some:
            return _regular(A, b, weights, ridge), None
        if self._policies.irregular == "raise":
            samples = physical(marked).reshape(-1)
            raise IrregularPointError(
                f"{type(self).__name__}: columns of A (with weights and ridge) depend on each other, so that y is not unique, at "
                f"{name_samples(samples.nonzero().squeeze(1).tolist(), samples.numel())}. "
                'Pass a ridge > 0, or differentiation=Implicit(irregular="min_norm") for the shortest y'
            )
        gram = A.mT @ (weights.unsqueeze(2) * A) + torch.diag_embed(ridge)
        cutoff = 16 * max(A.shape[1:]) * torch.finfo(A.dtype).eps
        shortest = torch.linalg.pinv(gram, rtol=cutoff, hermitian=True) @ (A.mT @ (weights.unsqueeze(2) * b))
        column = marked[:, None, None]
        return torch.where(column, shortest, _regular(A, b, weights, ridge + marked.to(A.dtype).unsqueeze(1))), marked


def _regular(A: Tensor, b: Tensor, weights: Tensor, ridge: Tensor) -> Tensor:
    """y (b, n, k), for matrices of full rank."""

    def orthogonal(A: Tensor, b: Tensor, weights: Tensor, ridge: Tensor) -> tuple[Tensor, Tensor]:
        matrix = stacked(A, weights, ridge)
        Q, R = torch.linalg.qr(matrix)
        side = Q[:, : A.shape[1]].mT @ (weights.sqrt().unsqueeze(2) * b)
        return torch.linalg.solve_triangular(R, side, upper=True), R

    # A Newton step from the numbers that are known is exact, so that its derivatives are those of y; it is formed without products of A with itself.
    y, factor = numbers(orthogonal, A, b, weights, ridge)
    slope = A.mT @ (weights.unsqueeze(2) * (b - A @ y)) - ridge.unsqueeze(2) * y
    return y + invert(GramOperator(A, weights, ridge, None if transforms_active() else factor), slope)
