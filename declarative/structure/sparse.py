"""Sparse matrices of one pattern, such as the Jacobian of many small constraints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from declarative.structure.base import RowsOperator
from declarative.transforms import is_wrapped


@dataclass(frozen=True, eq=False)
class SparsePattern:
    """Where entries may be: rows[e], columns[e] for e = 1 … nnz, in a matrix of r x c.

    Args:
        rows, columns: (nnz,) int64, each pair at most once.
        shape: (r, c).
    """

    rows: Tensor
    columns: Tensor
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        if self.rows.ndim != 1 or self.rows.shape != self.columns.shape:
            raise ValueError(f"SparsePattern expects rows and columns of one length, got {tuple(self.rows.shape)} and {tuple(self.columns.shape)}")

    @classmethod
    def from_dense(cls, mask: Tensor) -> SparsePattern:
        """The places where a (r, c) mask is true."""
        if mask.ndim != 2:
            raise ValueError(f"SparsePattern.from_dense expects a mask (r, c), got shape {tuple(mask.shape)}")
        rows, columns = mask.bool().nonzero(as_tuple=True)
        return cls(rows, columns, (mask.shape[0], mask.shape[1]))

    @cached_property
    def transposed(self) -> SparsePattern:
        """The pattern of the transpose, entries in the same order."""
        return SparsePattern(self.columns, self.rows, (self.shape[1], self.shape[0]))

    @cached_property
    def padded(self) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """The entries of each row side by side, rows filled up: (width, r) entries, their columns, and which are real (None: all).

        A gather and a sum are five times as fast as a scattered addition. None where rows are too uneven for it.
        """
        counts = torch.bincount(self.rows, minlength=self.shape[0])
        width = int(counts.max()) if counts.numel() else 0
        if width * self.shape[0] > 3 * len(self.rows):
            return None
        order = torch.argsort(self.rows, stable=True)
        place = torch.arange(len(order), device=order.device) - (torch.cumsum(counts, 0) - counts)[self.rows[order]]
        entries = torch.zeros(self.shape[0], width, dtype=torch.int64, device=order.device)
        mask = torch.zeros(self.shape[0], width, dtype=torch.bool, device=order.device)
        entries[self.rows[order], place] = order
        mask[self.rows[order], place] = True
        entries, mask = entries.T.contiguous(), mask.T.contiguous()
        return entries, self.columns[entries], None if bool(mask.all()) else mask

    @cached_property
    def pairs(self) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Entries e, f that share a column, that column, and the place rows[e]·r + rows[f]. None where a dense product is cheaper."""
        counts = torch.bincount(self.columns, minlength=self.shape[1])
        if int((counts * counts).sum()) > self.shape[0] * self.shape[1]:
            return None
        order = torch.argsort(self.columns)
        starts = torch.cumsum(counts, 0) - counts
        # Each entry meets all entries of its column.
        meets = counts[self.columns[order]]
        first = torch.repeat_interleave(order, meets)
        within = torch.arange(len(first), device=first.device) - torch.repeat_interleave(torch.cumsum(meets, 0) - meets, meets)
        second = order[torch.repeat_interleave(starts[self.columns[order]], meets) + within]
        return first, second, self.columns[first], self.rows[first] * self.shape[0] + self.rows[second]


# One product of BLAS with a matrix of this many entries, zeros and all, is faster than a gather for each sample.
_SMALL = 200_000


@dataclass(frozen=True, eq=False)
class SparseOperator(RowsOperator):
    """Matrices (b, r, c) of one pattern.

    Args:
        values: (b, nnz), in the pattern's order.
        pattern: where they stand.
        shared: (r, c), the one dense matrix that the whole batch repeats; None where there is none, or it is too large to form.
    """

    values: Tensor
    pattern: SparsePattern
    shared: Tensor | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != self.pattern.rows.shape[0]:
            raise ValueError(f"SparseOperator expects values (b, {self.pattern.rows.shape[0]}), got {tuple(self.values.shape)}")

    @classmethod
    def from_dense(cls, matrix: Tensor) -> SparseOperator:
        """(b, r, c), with the pattern of what is not zero in any of them."""
        pattern = SparsePattern.from_dense((matrix != 0).any(0))
        return cls(matrix[:, pattern.rows, pattern.columns], pattern)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.values,)

    def with_tensors(self, tensors: Sequence[Tensor]) -> SparseOperator:
        (values,) = tensors
        plain = self.shared is not None and not values.requires_grad and not is_wrapped(values) and not is_wrapped(self.values)
        same = plain and values.data_ptr() == self.values.data_ptr()
        return SparseOperator(values, self.pattern, self.shared if same else None)

    def repeated(self, batch: int) -> SparseOperator:
        """One matrix, (1, r, c), for each sample of a batch."""
        small = self.pattern.shape[0] * self.pattern.shape[1] <= _SMALL
        return SparseOperator(self.values.expand(batch, -1), self.pattern, self.to_dense()[0] if small and self.shared is None else self.shared)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.values.shape[0], *self.pattern.shape

    def matmul_columns(self, columns: Tensor) -> Tensor:
        if self.shared is not None:
            return self.shared @ columns
        padded = self.pattern.padded
        if padded is not None:
            entries, places, mask = padded
            # A masked place must not bring in what is not finite there.
            # index_select is twice as fast as indexing.
            values = self.values.index_select(1, entries.flatten()).unflatten(1, entries.shape)
            taken = columns.index_select(1, places.flatten()).unflatten(1, places.shape)
            if mask is not None:
                values, taken = torch.where(mask, values, 0.0), torch.where(mask.unsqueeze(-1), taken, 0.0)
            return (values.unsqueeze(-1) * taken).sum(1)  # over the first dimension: the others stay contiguous
        terms = self.values.unsqueeze(-1) * columns[:, self.pattern.columns]
        return columns.new_zeros(columns.shape[0], self.pattern.shape[0], columns.shape[2]).index_add(1, self.pattern.rows, terms)

    def transpose(self) -> SparseOperator:
        return SparseOperator(self.values, self.pattern.transposed, None if self.shared is None else self.shared.mT)

    def to_dense(self) -> Tensor:
        b, r, c = self.shape
        place = self.pattern.rows * c + self.pattern.columns
        return self.values.new_zeros(b, r * c).index_add(1, place, self.values).unflatten(1, (r, c))

    def magnitudes(self) -> SparseOperator:
        return SparseOperator(self.values.abs(), self.pattern)

    def gram(self, weights: Tensor) -> Tensor:
        """A diag(weights) Aᵀ (b, r, r), for weights (b, c)."""
        pairs, r = self.pattern.pairs, self.pattern.shape[0]
        if pairs is None:
            dense = self.to_dense()
            return (dense * weights.unsqueeze(1)) @ dense.mT
        first, second, column, place = pairs
        terms = self.values.index_select(1, first) * self.values.index_select(1, second) * weights.index_select(1, column)
        return terms.new_zeros(terms.shape[0], r * r).index_add(1, place, terms).unflatten(1, (r, r))
