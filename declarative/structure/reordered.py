"""An operator in another order of its rows and columns, and the same block many times over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from declarative.structure.base import Operator


@dataclass(frozen=True, eq=False)
class ReorderedOperator(Operator):
    """The operator of y's axes in another order: `base` sees them permuted.

    Args:
        base: square, (b, m, m)
        shape_of_y: the axes of y.
        order: the order in which the base has them.
    """

    base: Operator
    shape_of_y: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.base.tensors

    def with_tensors(self, tensors: Sequence[Tensor]) -> ReorderedOperator:
        return ReorderedOperator(self.base.with_tensors(tensors), self.shape_of_y, self.order)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.base.shape

    def _there(self, columns: Tensor) -> Tensor:
        b, _, k = columns.shape
        return columns.reshape(b, *self.shape_of_y, k).permute(0, *(1 + a for a in self.order), len(self.order) + 1).reshape(columns.shape)

    def _back(self, columns: Tensor) -> Tensor:
        b, _, k = columns.shape
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return columns.reshape(b, *(self.shape_of_y[a] for a in self.order), k).permute(0, *(1 + a for a in back), len(back) + 1).reshape(columns.shape)

    def matmul_columns(self, columns: Tensor) -> Tensor:
        return self._back(self.base.matmul_columns(self._there(columns)))

    def solve_columns(self, columns: Tensor) -> Tensor:
        return self._back(self.base.solve_columns(self._there(columns)))

    def transpose(self) -> ReorderedOperator:
        return ReorderedOperator(self.base.transpose(), self.shape_of_y, self.order)

    def diagonal(self) -> Tensor:
        return self._back(self.base.diagonal().unsqueeze(-1)).squeeze(-1)

    def is_positive_definite(self) -> Tensor:
        return self.base.is_positive_definite()


@dataclass(frozen=True, eq=False)
class RepeatedOperator(Operator):
    """I ⊗ B: the same block for each of `count` groups. (b, count·s, count·s)

    Args:
        block: B (b, s, s)
        count: how many times.
    """

    block: Operator
    count: int

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.block.tensors

    def with_tensors(self, tensors: Sequence[Tensor]) -> RepeatedOperator:
        return RepeatedOperator(self.block.with_tensors(tensors), self.count)

    @property
    def shape(self) -> tuple[int, int, int]:
        b, s, _ = self.block.shape
        return b, s * self.count, s * self.count

    def _apart(self, columns: Tensor) -> Tensor:
        """(b, count·s, k) -> (b, s, count·k): groups are columns of one product."""
        (b, _, k), s = columns.shape, self.block.shape[1]
        return columns.reshape(b, self.count, s, k).transpose(1, 2).reshape(b, s, self.count * k)

    def _together(self, columns: Tensor) -> Tensor:
        b, s, width = columns.shape
        return columns.reshape(b, s, self.count, width // self.count).transpose(1, 2).reshape(b, s * self.count, width // self.count)

    def matmul_columns(self, columns: Tensor) -> Tensor:
        return self._together(self.block.matmul_columns(self._apart(columns)))

    def solve_columns(self, columns: Tensor) -> Tensor:
        return self._together(self.block.solve_columns(self._apart(columns)))

    def transpose(self) -> RepeatedOperator:
        return RepeatedOperator(self.block.transpose(), self.count)

    def diagonal(self) -> Tensor:
        return self.block.diagonal().repeat(1, self.count)

    def is_positive_definite(self) -> Tensor:
        return self.block.is_positive_definite()
