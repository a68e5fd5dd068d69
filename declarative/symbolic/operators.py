"""H and A of a closed form: as operators, and dense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from declarative.kkt.elimination import EliminatedOperator
from declarative.kkt.marginals import MarginalsComplement
from declarative.structure.base import Operator, RowsOperator
from declarative.structure.elementary import DenseOperator, DiagonalOperator
from declarative.symbolic.closed_form import ClosedForm
from declarative.symbolic.complement import Complement
from declarative.symbolic.shapes import Shapes, Values


@dataclass(frozen=True, eq=False)
class IndexedJacobian(RowsOperator):
    """A (b, k, m), by products that are written out.

    Args:
        form: the closed form.
        values: what its coefficients need.
        shapes: of the problem.
        transposed: it is Aᵀ.
        absolute: of |A|.
    """

    form: ClosedForm
    values: Values
    shapes: Shapes
    transposed: bool = False
    absolute: bool = False

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        found = []
        for label in self.form.jacobian_labels:
            tensor, rank = self.values[label], len(self.form.arrays[label].axes)
            found.append(tensor if tensor.ndim == rank + 1 else tensor.expand(self.shapes.batch, *tensor.shape))
        return tuple(found)

    def with_tensors(self, tensors: Sequence[Tensor]) -> IndexedJacobian:
        labels = self.form.jacobian_labels
        if not labels:
            return self
        # What the coefficients do not depend on serves as a model of dtype and sizes: any one sample does.
        model = {label: t[:1] if t.ndim > len(self.form.arrays[label].axes) else t for label, t in self.values.items()}
        values = Values({**model, **dict(zip(labels, tensors, strict=True))})
        return replace(self, values=values, shapes=replace(self.shapes, batch=tensors[0].shape[0]))

    @property
    def shape(self) -> tuple[int, int, int]:
        k, m = self.shapes.count, self.shapes.size
        return (self.shapes.batch, m, k) if self.transposed else (self.shapes.batch, k, m)

    @cached_property
    def _other(self) -> IndexedJacobian:
        return IndexedJacobian(self.form, self.values, self.shapes, not self.transposed, self.absolute)

    def transpose(self) -> IndexedJacobian:
        return self._other

    def product(self, flat: Tensor, lead: tuple[int, ...]) -> Tensor:
        """(…, c) -> (*lead, r): of vectors whose leading dimensions broadcast with the batch."""
        form, shapes = self.form, self.shapes
        if self.transposed:
            code = form.magnitude_transposed_product() if self.absolute else form.jacobian_transposed_product()
            return shapes.join(code(self.values.having(form.rows, shapes.split_rows(flat))), lead)
        code = form.magnitude_product() if self.absolute else form.jacobian_product()
        return shapes.join_rows(code(self.values.having(form.directions, shapes.split(flat))), lead)

    def matmul(self, x: Tensor) -> Tensor:
        return self.product(x, (x.shape[0],)) if x.ndim == 2 else super().matmul(x)

    def matmul_columns(self, columns: Tensor) -> Tensor:
        batch, _, count = columns.shape
        if count == 1:
            return self.product(columns.squeeze(-1), (batch,)).unsqueeze(-1)
        return self.product(columns.permute(2, 0, 1), (count, batch)).permute(1, 2, 0)

    def to_dense(self) -> Tensor:
        matrix = dense_jacobian(self.form, self.values, self.shapes)
        return matrix.mT if self.transposed else matrix

    def magnitudes(self) -> IndexedJacobian:
        return replace(self, absolute=True)

    # S = A W Aᵀ

    def gram(self, weights: Tensor) -> Tensor:
        """S (b, k, k)"""
        if self.form.complement is None:
            dense = self.to_dense()
            return (dense * weights.unsqueeze(1)) @ dense.mT
        blocks, count = self._blocks(weights), len(self.shapes.families)
        whole = torch.cat([torch.cat([self._block(blocks, k, j) for j in range(count)], 2) for k in range(count)], 1)
        return self.shapes.without_dropped(self.shapes.without_dropped(whole, 1), 2)

    @property
    def _complement(self) -> Complement:
        if self.form.complement is None:
            raise RuntimeError("there is no Schur complement of a diagonal H")
        return self.form.complement

    def _blocks(self, weights: Tensor) -> dict[tuple[int, int], Tensor]:
        """Those of the upper triangle, (b, k, k') or the diagonal (b, k)."""
        found, shapes = self._complement, self.shapes
        results = iter(self.form.complement_code()(self.values.having(found.weights, shapes.split(weights))))
        batch, blocks, sizes = weights.shape[0], {}, shapes.family_sizes
        for k, first in enumerate(shapes.families):
            for j in range(k, len(shapes.families)):
                if k == j and k in found.diagonal:
                    blocks[k, k] = next(results).expand(batch, *first).reshape(batch, sizes[k])
                else:
                    blocks[k, j] = next(results).expand(batch, *first, *shapes.families[j]).reshape(batch, sizes[k], sizes[j])
        return blocks

    def _block(self, blocks: dict[tuple[int, int], Tensor], k: int, j: int) -> Tensor:
        block = blocks[k, j] if k <= j else blocks[j, k].mT
        return torch.diag_embed(block) if block.ndim == 2 else block

    @property
    def knows_complement(self) -> bool:
        return self.form.complement is not None and not self.transposed

    def complement(self, weights: Tensor) -> Operator:
        found, shapes = self._complement, self.shapes
        if found.kind == "marginals":
            shape = shapes.variables[0]
            first, second = found.axes, tuple(k for k in range(len(shape)) if k not in found.axes)
            matrix = weights
            if (*first, *second) != tuple(range(len(shape))):
                matrix = weights.reshape(-1, *shape).permute(0, *(1 + k for k in (*first, *second)))
            sizes = [prod(shape[k] for k in axes) for axes in (first, second)]
            return MarginalsComplement(matrix.reshape(-1, *sizes), (found.signs[0], found.signs[1]))
        if found.kind == "diagonal":
            return DiagonalOperator(self._blocks(weights)[0, 0])
        sizes = shapes.family_sizes
        largest = max(found.diagonal, key=sizes.__getitem__, default=None)
        if largest is None or len(sizes) == 1 or 4 * sizes[largest] < sum(sizes):
            return DenseOperator(self.gram(weights))
        blocks, others = self._blocks(weights), [k for k in range(len(sizes)) if k != largest]
        border = torch.cat([self._block(blocks, largest, k) for k in others], 2)
        corner = torch.cat([torch.cat([self._block(blocks, k, j) for j in others], 2) for k in others], 1)
        places = torch.arange(sum(sizes), device=weights.device).split(sizes)
        return EliminatedOperator(blocks[largest, largest], border, corner, places[largest], torch.cat([places[k] for k in others]))


def dense_jacobian(form: ClosedForm, values: Values, shapes: Shapes) -> Tensor:
    """A (b, k, m)."""
    keys, like = [key for key, terms in form.blocks.jacobian.items() if terms], values[form.statement.variables[0].label]
    sides = (shapes.families, shapes.family_sizes), (shapes.variables, shapes.variable_sizes)
    return shapes.without_dropped(_assembled(form.jacobian()(values) if keys else (), keys, *sides, shapes.batch, like), 1)


def dense_hessian(form: ClosedForm, results: tuple[Tensor, ...], like: Tensor, shapes: Shapes) -> Tensor:
    """H (b, m, m) from its blocks that are not zero."""
    side = shapes.variables, shapes.variable_sizes
    return _assembled(results, [key for key, terms in form.blocks.hessian.items() if terms], side, side, shapes.batch, like)


_Side = tuple[tuple[tuple[int, ...], ...], list[int]]


def _assembled(results: tuple[Tensor, ...], keys: list[tuple[int, int]], rows: _Side, columns: _Side, batch: int, like: Tensor) -> Tensor:
    parts: Mapping[tuple[int, int], Tensor] = dict(zip(keys, results, strict=True))
    lines = []
    for k, (row, height) in enumerate(zip(*rows, strict=True)):
        line = []
        for j, (column, width) in enumerate(zip(*columns, strict=True)):
            if (k, j) in parts:
                line.append(parts[k, j].expand(batch, *row, *column).reshape(batch, height, width))
            else:
                line.append(like.new_zeros(batch, height, width))
        lines.append(line[0] if len(line) == 1 else torch.cat(line, 2))
    if not lines:
        return like.new_zeros(batch, 0, sum(columns[1]))
    return lines[0] if len(lines) == 1 else torch.cat(lines, 1)
