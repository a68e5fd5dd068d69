"""A symmetric matrix with a diagonal block, which is eliminated: what is left is as small as the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from declarative.structure.base import Operator


@dataclass(frozen=True, eq=False)
class EliminatedOperator(Operator):
    """S = [D E; Eᵀ F] with D diagonal, its rows and columns at the places `first`; solved by F − EᵀD⁻¹E.

    Args:
        diagonal: D (b, k₁)
        border: E (b, k₁, k₂)
        corner: F (b, k₂, k₂)
        first, second: where the rows of D and of F stand.
    """

    diagonal_block: Tensor
    border: Tensor
    corner: Tensor
    first: Tensor
    second: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.diagonal_block, self.border, self.corner

    def with_tensors(self, tensors: Sequence[Tensor]) -> EliminatedOperator:
        diagonal, border, corner = tensors
        return EliminatedOperator(diagonal, border, corner, self.first, self.second)

    @property
    def shape(self) -> tuple[int, int, int]:
        b, first, second = self.border.shape
        return b, first + second, first + second

    def transpose(self) -> EliminatedOperator:
        return self

    def _joined(self, above: Tensor, below: Tensor) -> Tensor:
        place = torch.cat([self.first, self.second]).argsort()
        return torch.cat([above, below], 1).index_select(1, place)

    def matmul_columns(self, columns: Tensor) -> Tensor:
        x, z = columns.index_select(1, self.first), columns.index_select(1, self.second)
        return self._joined(self.diagonal_block.unsqueeze(2) * x + self.border @ z, self.border.mT @ x + self.corner @ z)

    def solve_columns(self, columns: Tensor) -> Tensor:
        x, z = columns.index_select(1, self.first), columns.index_select(1, self.second)
        scaled = self.border / self.diagonal_block.unsqueeze(2)
        rest = self.corner - scaled.mT @ self.border
        # Brought to a unit diagonal, as the rows may have units of their own.
        scale = rest.diagonal(dim1=1, dim2=2).abs().clamp_min(torch.finfo(rest.dtype).tiny).rsqrt().unsqueeze(2)
        # One sample that is not finite would fail the batched factorisation.
        bad = ~torch.isfinite(rest).flatten(1).all(1)[:, None, None]
        eye = torch.eye(rest.shape[1], dtype=rest.dtype, device=rest.device)
        below = scale * torch.linalg.solve_ex(torch.where(bad, eye, scale * rest * scale.mT), scale * (z - scaled.mT @ x)).result
        return self._joined(x / self.diagonal_block.unsqueeze(2) - scaled @ below, below)
