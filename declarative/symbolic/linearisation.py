"""The symbolic engine: the KKT system of a batch at one point, from the closed form. The contract is engines/base.py."""

# sympy annotates most results as Basic.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod

import torch
from sympy import Symbol
from torch import Tensor

from declarative.engines.autodiff import autodiff
from declarative.problem import Problem
from declarative.structure.banded import BandedOperator
from declarative.structure.base import Operator
from declarative.structure.blocks import BlockDiagonalOperator
from declarative.structure.elementary import DenseOperator, DiagonalOperator, InverseDiagonalOperator
from declarative.structure.low_rank import LowRankUpdateOperator
from declarative.structure.reordered import ReorderedOperator, RepeatedOperator
from declarative.symbolic.closed_form import ClosedForm
from declarative.symbolic.operators import IndexedJacobian, dense_hessian, dense_jacobian
from declarative.symbolic.shapes import Shapes, Values
from declarative.symbolic.source import Code
from declarative.typing import Directions, EqualityMultipliers, Hessians, InequalityMultipliers, Jacobians, Products, Rows, Variables


class SymbolicLinearisation:
    """The blocks from formulas. Differentiable as torch is; nothing is computed before it is asked for.

    Args:
        form: the closed form.
        problem: the batch.
        places: for each input and constant its position among the problem's tensors; None: the node holds it where no gradient is asked for.
        given: the tensors of inputs and constants, by label.
        shapes: of y and the constraints.
        y: the point.
        multipliers: (ν, μ); those that are None count as zero.
        wanted: positions of the tensors for which `pull_back` will be asked, if that is known.
    """

    def __init__(
        self,
        form: ClosedForm,
        problem: Problem,
        places: Sequence[int | None],
        given: Mapping[Symbol, Tensor],
        shapes: Shapes,
        y: Tensor,
        multipliers: tuple[Tensor | None, Tensor | None],
        wanted: Sequence[int] = (),
    ) -> None:
        self._form, self._problem, self._places, self._shapes, self._given = form, problem, places, shapes, given
        self._y, self._wanted = y, wanted
        self._point = dict(zip((v.label for v in form.statement.variables), shapes.split(y), strict=True))
        self._set_multipliers(*multipliers)

    def _set_multipliers(self, equality: Tensor | None, inequality: Tensor | None) -> None:
        self.multipliers, self._handed = (equality, inequality), None
        p, k = self.equalities, self._shapes.count
        came = sum(0 if flat is None else flat.shape[1] for flat in self.multipliers)
        if equality is not None and inequality is not None and came != k:
            raise ValueError(
                f"{self._problem.name}: its blocks are those of {p} equality and {k - p} inequality constraints, it has {came} in all"
                + ("; the last of the column sums is left out, because it follows from the others" if self._shapes.dropped is not None else "")
            )
        later = {c.multipliers.label: partial(self._multipliers, j) for j, c in enumerate(self._form.statement.constraints)}
        self._values = Values({**self._given, **self._point}, later)

    def _multipliers(self, family: int) -> Tensor:
        """ν or μ of one family."""
        p, k, like = self.equalities, self._shapes.count, self._y
        equality, inequality = (like.new_zeros(like.shape[0], n) if flat is None else flat for flat, n in zip(self.multipliers, (p, k - p), strict=True))
        return self._shapes.split_rows(torch.cat([equality, inequality], 1) if p and k > p else equality if p else inequality)[family]

    def with_multipliers(self, equality: EqualityMultipliers, inequality: InequalityMultipliers) -> SymbolicLinearisation:
        other = copy.copy(self)
        other._set_multipliers(equality, inequality)
        return other

    @property
    def objective(self) -> Tensor:
        """f (b,)"""
        return self._form.objective()(self._values)[0].expand(self._y.shape[0])

    @property
    def constraints(self) -> Rows:
        """a (b, k)"""
        if not self._shapes.families:
            return self._y.new_zeros(self._y.shape[0], 0)
        return self._shapes.join_rows(self._form.constraints()(self._values))

    def families(self) -> tuple[Tensor, ...]:
        """The values of each family of constraints, (b, *shape), with that which is left out."""
        results = self._form.constraints()(self._values)
        return tuple(r.expand(self._y.shape[0], *s) for r, s in zip(results, self._shapes.families, strict=True))

    @property
    def equalities(self) -> int:
        """p"""
        families = zip(self._form.statement.constraints, self._shapes.family_sizes, strict=True)
        return sum(size for c, size in families if c.equality) - (self._shapes.dropped is not None)

    @property
    def gradient(self) -> Variables:
        """∇_y L (b, m)"""
        return self._shapes.join(self._form.gradient()(self._values))

    # H and A

    def _evaluated(self, code: Code) -> tuple[Tensor, ...]:
        """The results of a function of H; what the pull-back needs besides is kept for it."""
        chosen = self._positions(self._wanted)[0]
        if not chosen:
            return code(self._values)
        code = self._form.with_input_gradients(code, chosen)[0]
        results = code(self._values)
        count = len(results) - len(code.shared)
        for array, value in zip(code.shared, results[count:], strict=True):
            self._values[array.label] = value
        self._handed = code.name
        return results[:count]

    def hessian(self) -> Hessians:
        results = self._evaluated(self._form.hessian()) if self._form.structure.kind != "zero" else ()
        return dense_hessian(self._form, results, self._y, self._shapes)

    def jacobian(self) -> Jacobians:
        return dense_jacobian(self._form, self._values, self._shapes)

    def hessian_operator(self) -> Operator:
        """H by its structure."""
        structure, form = self._form.structure, self._form
        if structure.is_diagonal:
            return self._diagonal() if form.inverse is None else InverseDiagonalOperator(self._shapes.join(form.inverse_diagonal()(self._values)))
        made: Mapping[str, Callable[[], Operator]] = {
            "banded": self._banded,
            "block diagonal": self._blocks,
            "Kronecker": self._blocks,
            "diagonal + low rank": self._low_rank,
        }
        return made[structure.kind]() if structure.kind in made else DenseOperator(self.hessian())

    def _diagonal(self) -> DiagonalOperator:
        """The diagonal part of H."""
        return DiagonalOperator(self._shapes.join(self._form.hessian_diagonal()(self._values)))

    def _low_rank(self) -> Operator:
        form, m = self._form, self._y.shape[1]
        ranks = [prod(form.lengths(f.bound, self._values)) for f in form.structure.factors]
        # Woodbury's formula needs products and a factor of the rank: from half of m on, H itself is cheaper.
        if not form.structure.diagonal or 2 * sum(ranks) > m:
            return DenseOperator(self.hessian())
        results = self._evaluated(form.hessian_factors())
        sides = [
            [self._matrix(results[2 * k + side], f.bound, m, r) for k, (f, r) in enumerate(zip(form.structure.factors, ranks, strict=True))] for side in (0, 1)
        ]
        left, right = (torch.cat(parts, 2) if len(parts) > 1 else parts[0] for parts in sides)
        return LowRankUpdateOperator(self._diagonal(), left, None, right)

    def _matrix(self, result: Tensor, bound: Sequence[Symbol], m: int, rank: int) -> Tensor:
        """(b, m, rank) from (…, *shape of y, *bound)."""
        lengths, b = self._form.lengths(bound, self._values), self._y.shape[0]
        return result.expand(b, *self._shapes.variables[0], *lengths).reshape(b, m, rank)

    def _blocks(self) -> Operator:
        form, shape = self._form, self._shapes.variables[0]
        apart = form.structure.axes
        inner = tuple(k for k in range(len(shape)) if k not in apart)
        count, size = (prod(shape[k] for k in axes) for axes in (apart, inner))
        b = self._y.shape[0]
        sides = (*(shape[k] for k in inner), *(shape[k] for k in inner))
        (result,) = form.hessian_blocks()(self._values)
        if form.structure.kind == "Kronecker":
            operator: Operator = RepeatedOperator(DenseOperator(result.expand(b, *sides).reshape(b, size, size)), count)
        else:
            operator = BlockDiagonalOperator(result.expand(b, *(shape[k] for k in apart), *sides).reshape(b, count, size, size))
        return operator if (*apart, *inner) == tuple(range(len(shape))) else ReorderedOperator(operator, shape, (*apart, *inner))

    def _banded(self) -> Operator:
        reach, n = self._form.structure.offset, self._y.shape[1]
        bands = [band.expand(self._y.shape[0], n) for band in self._form.hessian_bands()(self._values)]
        return BandedOperator(torch.stack(bands, 1), reach, reach)

    def jacobian_operator(self) -> IndexedJacobian | None:
        """A by its products; None without constraints."""
        if not self._shapes.families:
            return None
        return IndexedJacobian(self._form, self._values, self._shapes)

    def magnitudes(self) -> IndexedJacobian | None:
        """|A|, by its products."""
        operator = self.jacobian_operator()
        return None if operator is None else operator.magnitudes()

    def row_sizes(self) -> Rows:
        """Σ_j |A_ij| (b, k)"""
        return self._shapes.join_rows(self._form.row_sizes()(self._values)) if self._shapes.families else self.constraints

    # Products

    def _lead(self, flat: Tensor) -> tuple[int, ...]:
        """Of the result for (b, n), or for (c, 1, n): c directions that the batch shares."""
        return (self._y.shape[0],) if flat.ndim == 2 else (flat.shape[0], self._y.shape[0])

    def _along(self, flat: Tensor) -> Values:
        return self._values.having(self._form.directions, self._shapes.split(flat))

    def hessian_product(self, direction: Variables) -> Variables:
        return self._shapes.join(self._form.hessian_product()(self._along(direction)), self._lead(direction))

    def hessian_products(self, directions: Directions) -> Products:
        return self.hessian_product(directions.unsqueeze(1)).transpose(0, 1)

    def jacobian_product(self, direction: Variables) -> Rows:
        operator = self.jacobian_operator()
        return self.constraints if operator is None else operator.product(direction, self._lead(direction))

    def jacobian_transposed_product(self, rows: Rows) -> Variables:
        operator = self.jacobian_operator()
        if operator is None:
            return self._y.new_zeros(*self._lead(rows), self._y.shape[1])
        return operator.transpose().product(rows, self._lead(rows))

    def jacobian_products(self, cotangents: Directions) -> Products:
        return self.jacobian_transposed_product(cotangents.unsqueeze(1)).transpose(0, 1)

    # B and C

    def _positions(self, wanted: Sequence[int]) -> tuple[tuple[int, ...], list[int]]:
        """(places among inputs and constants, positions that the closed form does not know)."""
        known = {position: k for k, position in enumerate(self._places) if position is not None}
        return tuple(known[k] for k in wanted if k in known), [k for k in wanted if k not in known]

    def pull_back(self, u: Variables, w: Rows, wanted: Sequence[int]) -> list[Tensor]:
        return self.input_gradients(-u, -w, wanted)

    def input_gradients(self, u: Variables, w: Rows, wanted: Sequence[int]) -> list[Tensor]:
        chosen, unknown = self._positions(wanted)
        found: dict[int, Tensor] = {}
        if chosen:
            code, values = self._form.input_gradients(chosen), self._along(u)
            if self._handed is not None and chosen == self._positions(self._wanted)[0]:
                code = self._form.with_input_gradients(self._form.named(self._handed), chosen)[1]
            if self._shapes.families and any(row in code.arguments for row in self._form.rows):
                values = values.having(self._form.rows, self._shapes.split_rows(w))
            for k, result in zip(chosen, code(values), strict=True):
                position = self._places[k]
                if position is not None:
                    found[position] = self._gathered(position, result)
        if unknown:
            # What a node has beside its closed form: by autodiff.
            rest = autodiff(self._problem, self._y, *self.multipliers, unknown).input_gradients(u, w, unknown)
            found |= dict(zip(unknown, rest, strict=True))
        return [found[k] for k in wanted]

    def _gathered(self, position: int, result: Tensor) -> Tensor:
        tensor, dim, batch = self._problem.tensors[position], self._problem.in_dims[position], self._y.shape[0]
        shape = tensor.shape[1:] if dim == 0 else tensor.shape
        whole = result if result.ndim > len(shape) and result.shape[0] == batch else result.expand(batch, *shape)
        return whole if dim == 0 else whole.sum(0)

    def push_forward(self, tangents: dict[int, Tensor]) -> tuple[Variables, Rows]:
        chosen, unknown = self._positions(list(tangents))
        dy, rows = torch.zeros_like(self._y), self._y.new_zeros(self._y.shape[0], self._shapes.count)
        if chosen:
            moving = self._values.having([self._form.tangents[k] for k in chosen], [tangents[self._places[k]] for k in chosen])
            results = self._form.push_forward(chosen)(moving)
            count = len(self._shapes.variables)
            dy = self._shapes.join(results[:count])
            rows = self._shapes.join_rows(results[count:]) if self._shapes.families else rows
        if unknown:
            more = autodiff(self._problem, self._y, *self.multipliers, unknown).push_forward({k: tangents[k] for k in unknown})
            dy, rows = dy + more[0], rows + more[1]
        return dy, rows
