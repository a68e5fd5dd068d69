"""The plainest operators: dense, and diagonal, by its entries or by their reciprocals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from declarative.structure.base import Operator


@dataclass(frozen=True, eq=False)
class DenseOperator(Operator):
    """Any matrices (b, r, c)."""

    matrix: Tensor

    def __post_init__(self) -> None:
        if self.matrix.ndim != 3:
            raise ValueError(f"DenseOperator expects matrices (b, r, c), got shape {tuple(self.matrix.shape)}")

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.matrix,)

    def with_tensors(self, tensors: Sequence[Tensor]) -> DenseOperator:
        return DenseOperator(*tensors)

    @property
    def shape(self) -> tuple[int, int, int]:
        b, r, c = self.matrix.shape
        return b, r, c

    def matmul_columns(self, columns: Tensor) -> Tensor:
        return self.matrix @ columns

    def transpose(self) -> DenseOperator:
        return DenseOperator(self.matrix.mT)

    def to_dense(self) -> Tensor:
        return self.matrix


@dataclass(frozen=True, eq=False)
class DiagonalOperator(Operator):
    """Diagonal matrices from their diagonals (b, *shape), which count as flat."""

    values: Tensor

    def __post_init__(self) -> None:
        if self.values.ndim == 0:
            raise ValueError("DiagonalOperator expects diagonals (b, *shape), got a scalar tensor")
        if self.values.ndim != 2:
            object.__setattr__(self, "values", self.values.reshape(self.values.shape[0], self.values[:1].numel() if len(self.values) else -1))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.values,)

    def with_tensors(self, tensors: Sequence[Tensor]) -> DiagonalOperator:
        return DiagonalOperator(*tensors)

    @property
    def shape(self) -> tuple[int, int, int]:
        b, n = self.values.shape
        return b, n, n

    def matmul_columns(self, columns: Tensor) -> Tensor:
        return self.values.unsqueeze(-1) * columns

    def solve_columns(self, columns: Tensor) -> Tensor:
        return columns / self.values.unsqueeze(-1)

    def transpose(self) -> DiagonalOperator:
        return self

    def to_dense(self) -> Tensor:
        return torch.diag_embed(self.values)

    def diagonal(self) -> Tensor:
        return self.values

    def is_positive_definite(self) -> Tensor:
        return (self.values > 0).all(1)


@dataclass(frozen=True, eq=False)
class InverseDiagonalOperator(Operator):
    """Diagonal matrices from the reciprocals (b, *shape) of their diagonals: what a solve multiplies with. 0 stands for an infinite entry."""

    inverse: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.inverse,)

    def with_tensors(self, tensors: Sequence[Tensor]) -> InverseDiagonalOperator:
        return InverseDiagonalOperator(*tensors)

    @property
    def shape(self) -> tuple[int, int, int]:
        b, n = self.inverse.shape
        return b, n, n

    def matmul_columns(self, columns: Tensor) -> Tensor:
        return columns / self.inverse.unsqueeze(-1)

    def solve_columns(self, columns: Tensor) -> Tensor:
        return columns * self.inverse.unsqueeze(-1)

    def transpose(self) -> InverseDiagonalOperator:
        return self

    def diagonal(self) -> Tensor:
        return self.inverse.reciprocal()

    def is_positive_definite(self) -> Tensor:
        return (self.inverse > 0).all(1)
