"""Banded matrices: linear cost in everything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from declarative.structure.base import Operator


@dataclass(frozen=True, eq=False)
class BandedOperator(Operator):
    """Square matrices (b, n, n) with entries A[i, j] only where −lower ≤ j − i ≤ upper.

    Args:
        bands: (b, lower + upper + 1, n): bands[:, d, i] is A[i, i + d − lower]. Places outside the matrix are ignored.
        lower, upper: diagonals below and above the main one.

    Example:
        >>> BandedOperator(torch.tensor([[[0.0, 1, 1], [4, 4, 4], [1, 1, 0]]]), 1, 1).to_dense()[0]
        tensor([[4., 1., 0.],
                [1., 4., 1.],
                [0., 1., 4.]])
    """

    bands: Tensor
    lower: int
    upper: int

    def __post_init__(self) -> None:
        if self.lower < 0 or self.upper < 0:
            raise ValueError(f"BandedOperator expects lower and upper of 0 or more, got {self.lower} and {self.upper}")
        if self.bands.ndim != 3 or self.bands.shape[1] != self.lower + self.upper + 1:
            raise ValueError(f"BandedOperator expects bands (b, {self.lower + self.upper + 1}, n), got {tuple(self.bands.shape)}")

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.bands,)

    def with_tensors(self, tensors: Sequence[Tensor]) -> BandedOperator:
        (bands,) = tensors
        return BandedOperator(bands, self.lower, self.upper)

    @property
    def shape(self) -> tuple[int, int, int]:
        b, _, n = self.bands.shape
        return b, n, n

    def _offsets(self) -> range:
        """The diagonals that the matrix is large enough to have."""
        n = self.bands.shape[2]
        return range(max(-self.lower, 1 - n), min(self.upper, n - 1) + 1)

    def _diagonal_at(self, offset: int) -> Tensor:
        """(b, n − |offset|)"""
        n = self.bands.shape[2]
        return self.bands[:, offset + self.lower, max(0, -offset) : n - max(0, offset)]

    def matmul_columns(self, columns: Tensor) -> Tensor:
        n = self.bands.shape[2]
        total = torch.zeros_like(columns)
        for offset in self._offsets():
            start, end = max(0, offset), n - max(0, -offset)
            product = self._diagonal_at(offset).unsqueeze(-1) * columns[:, start:end]
            total = total + torch.nn.functional.pad(product, (0, 0, max(0, -offset), max(0, offset)))
        return total

    def transpose(self) -> BandedOperator:
        n = self.bands.shape[2]
        offsets = self._offsets()
        rows = [
            torch.nn.functional.pad(self._diagonal_at(-d), (max(0, -d), max(0, d))) if -d in offsets else self.bands.new_zeros(self.bands.shape[0], n)
            for d in range(-self.upper, self.lower + 1)
        ]
        return BandedOperator(torch.stack(rows, 1), self.upper, self.lower)

    def diagonal(self) -> Tensor:
        return self.bands[:, self.lower]

    def is_positive_definite(self) -> Tensor:
        stored = self._scipy_bands(self.upper)[:, : self.upper + 1]  # the upper half alone: the operator is symmetric
        found = [True] * len(stored) if _is_definite(_end_to_end(stored)) else [_is_definite(bands) for bands in stored]
        return torch.tensor(found, dtype=torch.bool, device=self.bands.device).reshape(self.bands.shape[0])

    def _scipy_bands(self, upper: int) -> np.ndarray:
        """(b, bands, n) in LAPACK's order: entry A[i, j] at row upper + i − j, column j."""
        b, count, n = self.bands.shape
        bands = self.bands.detach().cpu().numpy()
        stored = np.zeros((b, count, n), bands.dtype)
        for offset in self._offsets():
            stored[:, upper - offset, max(0, offset) : n - max(0, -offset)] = self._diagonal_at(offset).detach().cpu().numpy()
        return stored

    def solve_columns(self, columns: Tensor) -> Tensor:
        sides, stored = columns.detach().cpu().numpy(), self._scipy_bands(self.upper)
        solutions = np.full(sides.shape, np.nan, sides.dtype)
        good = np.isfinite(stored).all((1, 2)) & np.isfinite(sides).all((1, 2))
        if columns.shape[2] and good.any():
            solutions[good] = self._solved(stored[good], sides[good])
        return torch.as_tensor(solutions, dtype=columns.dtype, device=columns.device)

    def _solved(self, stored: np.ndarray, sides: np.ndarray) -> np.ndarray:
        """All samples by one call of LAPACK, end to end as one matrix; one by one where one of them is singular or overflows."""
        extent = (self.lower, self.upper)
        try:
            whole = scipy.linalg.solve_banded(extent, _end_to_end(stored), sides.reshape(-1, sides.shape[2]), check_finite=False)
        except np.linalg.LinAlgError:  # exactly singular
            whole = np.full((sides.shape[0] * sides.shape[1], sides.shape[2]), np.inf, sides.dtype)
        # Blocks are coupled by zeros, and 0 · inf is NaN: one that is not finite spoils its neighbours.
        if len(stored) == 1 or np.isfinite(whole).all():
            return whole.reshape(sides.shape)
        return np.concatenate([self._solved(stored[i : i + 1], sides[i : i + 1]) for i in range(len(stored))])


def _end_to_end(stored: np.ndarray) -> np.ndarray:
    """(b, bands, n) in LAPACK's order -> (bands, b n): the block diagonal matrix, whose blocks nothing couples."""
    return np.ascontiguousarray(stored.transpose(1, 0, 2).reshape(stored.shape[1], -1))


def _is_definite(bands: np.ndarray) -> bool:
    try:
        return bool(np.isfinite(scipy.linalg.cholesky_banded(bands, check_finite=False)).all())
    except np.linalg.LinAlgError:
        return False
