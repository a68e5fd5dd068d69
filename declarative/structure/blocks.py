"""Block diagonal matrices with blocks of one size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from declarative.structure.base import Operator


@dataclass(frozen=True, eq=False)
class BlockDiagonalOperator(Operator):
    """Square matrices (b, n·s, n·s) of n blocks.

    Args:
        blocks: (b, n, s, s).
    """

    blocks: Tensor

    def __post_init__(self) -> None:
        if self.blocks.ndim != 4 or self.blocks.shape[2] != self.blocks.shape[3]:
            raise ValueError(f"BlockDiagonalOperator expects square blocks (b, n, s, s), got shape {tuple(self.blocks.shape)}")

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.blocks,)

    def with_tensors(self, tensors: Sequence[Tensor]) -> BlockDiagonalOperator:
        return BlockDiagonalOperator(*tensors)

    @property
    def shape(self) -> tuple[int, int, int]:
        b, n, s, _ = self.blocks.shape
        return b, n * s, n * s

    def _in_blocks(self, columns: Tensor) -> Tensor:
        b, n, s, _ = self.blocks.shape
        return columns.reshape(b, n, s, columns.shape[2])

    def matmul_columns(self, columns: Tensor) -> Tensor:
        return (self.blocks @ self._in_blocks(columns)).reshape(columns.shape)

    def transpose(self) -> BlockDiagonalOperator:
        return BlockDiagonalOperator(self.blocks.mT)

    def diagonal(self) -> Tensor:
        return self.blocks.diagonal(dim1=-2, dim2=-1).flatten(1)

    def is_positive_definite(self) -> Tensor:
        return (torch.linalg.cholesky_ex(self.blocks).info == 0).all(1)

    def solve_columns(self, columns: Tensor) -> Tensor:
        # A block that is not finite would fail the whole batch on CPU.
        bad = ~torch.isfinite(self.blocks).flatten(1).all(1)
        eye = torch.eye(self.blocks.shape[2], dtype=self.blocks.dtype, device=self.blocks.device)
        factor, pivots, _ = torch.linalg.lu_factor_ex(torch.where(bad[:, None, None, None], eye, self.blocks))
        singular = bad | (factor.diagonal(dim1=-2, dim2=-1) == 0).flatten(1).any(1)
        factor = torch.where(singular[:, None, None, None], eye, factor)
        solution = torch.linalg.lu_solve(factor, pivots, self._in_blocks(columns)).reshape(columns.shape)
        return torch.where(singular[:, None, None], torch.nan, solution)
