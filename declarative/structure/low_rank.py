"""A matrix that is easy to solve with, plus one of low rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from declarative.structure.base import Operator


@dataclass(frozen=True, eq=False)
class LowRankUpdateOperator(Operator):
    """base + L C Rᵀ, solved by the Sherman–Morrison–Woodbury formula in the form that needs no C⁻¹:

    z = B⁻¹(r − L s)  with  (I + C Rᵀ B⁻¹ L) s = C Rᵀ B⁻¹ r.

    Args:
        base: a square operator B (b, n, n).
        left: L (b, n, k).
        core: C (b, k, k); None: the identity.
        right: R (b, n, k); None: L.
    """

    base: Operator
    left: Tensor
    core: Tensor | None = None
    right: Tensor | None = None

    def __post_init__(self) -> None:
        b, n, columns = self.base.shape
        if n != columns:
            raise ValueError(f"LowRankUpdateOperator expects a square base, got {n} x {columns}")
        if self.left.ndim != 3 or self.left.shape[:2] != (b, n):
            raise ValueError(f"LowRankUpdateOperator expects left ({b}, {n}, k), got {tuple(self.left.shape)}")
        k = self.left.shape[2]
        if self.core is not None and self.core.shape != (b, k, k):
            raise ValueError(f"LowRankUpdateOperator expects core ({b}, {k}, {k}), got {tuple(self.core.shape)}")
        if self.right is not None and self.right.shape != self.left.shape:
            raise ValueError(f"LowRankUpdateOperator expects right of left's shape {tuple(self.left.shape)}, got {tuple(self.right.shape)}")

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.base.tensors, *(t for t in (self.left, self.core, self.right) if t is not None))

    def with_tensors(self, tensors: Sequence[Tensor]) -> LowRankUpdateOperator:
        count = len(self.base.tensors)
        rest = iter(tensors[count:])
        left, core, right = (None if t is None else next(rest) for t in (self.left, self.core, self.right))
        if left is None:
            raise RuntimeError("left is always there")
        return LowRankUpdateOperator(self.base.with_tensors(tensors[:count]), left, core, right)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.base.shape

    def _inner(self, columns: Tensor) -> Tensor:
        """C Rᵀ x"""
        product = (self.left if self.right is None else self.right).mT @ columns
        return product if self.core is None else self.core @ product

    def matmul_columns(self, columns: Tensor) -> Tensor:
        return self.base.matmul_columns(columns) + self.left @ self._inner(columns)

    def transpose(self) -> LowRankUpdateOperator:
        core = None if self.core is None else self.core.mT
        swapped = (self.left, None) if self.right is None else (self.right, self.left)
        return LowRankUpdateOperator(self.base.transpose(), swapped[0], core, swapped[1])

    def diagonal(self) -> Tensor:
        right = self.left if self.right is None else self.right
        scaled = self.left if self.core is None else self.left @ self.core
        return self.base.diagonal() + (scaled * right).sum(-1)

    def solve_columns(self, columns: Tensor) -> Tensor:
        k = self.left.shape[2]
        both = self.base.solve_columns(torch.cat([columns, self.left], 2))
        through, spread = both[:, :, : columns.shape[2]], both[:, :, columns.shape[2] :]
        eye = torch.eye(k, dtype=self.left.dtype, device=self.left.device)
        inner = eye + self._inner(spread)
        bad = ~torch.isfinite(inner).flatten(1).all(1)
        solved = torch.linalg.solve_ex(torch.where(bad[:, None, None], eye, inner), torch.where(bad[:, None, None], 0.0, self._inner(through)))
        failed = bad | (solved.info != 0)
        solution = through - spread @ solved.result
        return torch.where(failed[:, None, None], torch.nan, solution)
