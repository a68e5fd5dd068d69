"""AᵀWA + Λ as an operator: solved by the QR factorisation of what it is the product of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from declarative.structure.base import Operator


@dataclass(frozen=True, eq=False)
class GramOperator(Operator):
    """H = AᵀWA + Λ, the Hessian of weighted and regularised least squares.

    Args:
        matrix: A (b, m, n)
        weights: the diagonal of W (b, m)
        ridge: the diagonal of Λ (b, n)
        factor: R (b, n, n) with RᵀR = H, where it is known already, of the very numbers above.
    """

    matrix: Tensor
    weights: Tensor
    ridge: Tensor
    factor: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.matrix, self.weights, self.ridge

    def with_tensors(self, tensors: Sequence[Tensor]) -> GramOperator:
        # Whoever calls this hands over the same numbers, or folds a dimension of vmap into their batch.
        matrix, weights, ridge = tensors
        kept = self.factor if self.factor is not None and self.factor.shape[0] == matrix.shape[0] else None
        return replace(self, matrix=matrix, weights=weights, ridge=ridge, factor=kept)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.matrix.shape[0], self.matrix.shape[2], self.matrix.shape[2]

    def matmul_columns(self, columns: Tensor) -> Tensor:
        return self.matrix.mT @ (self.weights.unsqueeze(2) * (self.matrix @ columns)) + self.ridge.unsqueeze(2) * columns

    def transpose(self) -> GramOperator:
        return self

    def solve_columns(self, columns: Tensor) -> Tensor:
        R = torch.linalg.qr(stacked(self.matrix, self.weights, self.ridge), mode="r")[1] if self.factor is None else self.factor

        def once(side: Tensor) -> Tensor:
            return torch.linalg.solve_triangular(R, torch.linalg.solve_triangular(R.mT, side, upper=False), upper=True)

        solution = once(columns)
        return solution + once(columns - self.matmul_columns(solution))


def stacked(matrix: Tensor, weights: Tensor, ridge: Tensor) -> Tensor:
    """[√W A; √Λ] (b, m + n, n), in numbers; without the lower part where Λ = 0."""
    upper = weights.sqrt().unsqueeze(2) * matrix
    return torch.cat([upper, torch.diag_embed(ridge.sqrt())], 1) if bool((ridge != 0).any()) else upper
