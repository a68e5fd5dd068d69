"""L, ∇_y L, H, A, B and C of a statement as sums of terms, each derived once, for every size."""

# sympy annotates most results as Basic.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import sympy
from sympy import Expr, Sum, Symbol

from declarative.symbolic.arrays import Array
from declarative.symbolic.simplify import simplified
from declarative.symbolic.statement import Constraint, Statement
from declarative.symbolic.terms import Term, Terms, differentiate, product


@dataclass
class Blocks:
    """The derivatives of a statement. Symbols as in docs/architecture.md.

    Args:
        statement: what is derived.
    """

    statement: Statement
    _mixed: dict[tuple[int, int], Terms] = field(default_factory=dict)
    _constraint: dict[tuple[int, int], Terms] = field(default_factory=dict)

    def __post_init__(self) -> None:
        indices = self.statement.indices
        self.rows = tuple(indices.copies(v.indices) if k else v.indices for k, v in enumerate(self.statement.variables))
        """p: the indices of ∇_y L and of H's rows, for each variable."""
        self.columns = tuple(indices.copies(v.indices) for v in self.statement.variables)
        """q: those of H's and A's columns."""
        self.given = tuple(indices.copies(a.indices) for a in self.wanted)
        """s: those of B's and C's columns, for each input and constant."""

    @property
    def wanted(self) -> tuple[Array, ...]:
        """What may need a gradient: inputs, then constants."""
        return (*self.statement.inputs, *self.statement.constants)

    @cached_property
    def lagrangian(self) -> Expr:
        """f + νᵀh + μᵀg"""
        total = self.statement.objective
        for c in self.statement.constraints:
            total = total + self._weighted(c)
        return total

    def _weighted(self, c: Constraint) -> Expr:
        indices = self.statement.indices
        names = dict(zip(c.free, indices.copies(c.free), strict=True))
        inner = c.multipliers.at(tuple(names.values())) * c.expression.xreplace(names)
        return Sum(inner, *((s, indices.ranges[s].lower, indices.ranges[s].upper) for s in names.values())) if names else inner

    def _derived(self, terms: Terms, array: Array, target: Sequence[Symbol]) -> Terms:
        return [simplified(t) for t in differentiate(terms, array.label, target, self.statement.indices)]

    @cached_property
    def gradient(self) -> tuple[Terms, ...]:
        """∇_y L, for each variable, of its rows' indices."""
        return tuple(self._derived([Term(self.lagrangian)], v, p) for v, p in zip(self.statement.variables, self.rows, strict=True))

    @cached_property
    def hessian(self) -> dict[tuple[int, int], Terms]:
        """H, for each pair of variables."""
        variables = self.statement.variables
        return {(a, b): self._derived(self.gradient[a], v, self.columns[b]) for a in range(len(variables)) for b, v in enumerate(variables)}

    @cached_property
    def jacobian(self) -> dict[tuple[int, int], Terms]:
        """A, for each constraint and variable."""
        variables = self.statement.variables
        return {
            (k, b): self._derived([Term(c.expression)], v, self.columns[b]) for k, c in enumerate(self.statement.constraints) for b, v in enumerate(variables)
        }

    def mixed(self, a: int, k: int) -> Terms:
        """B, for a variable and what may need a gradient."""
        if (a, k) not in self._mixed:
            self._mixed[a, k] = self._derived(self.gradient[a], self.wanted[k], self.given[k])
        return self._mixed[a, k]

    def constraint(self, c: int, k: int) -> Terms:
        """C, likewise."""
        if (c, k) not in self._constraint:
            self._constraint[c, k] = self._derived([Term(self.statement.constraints[c].expression)], self.wanted[k], self.given[k])
        return self._constraint[c, k]

    # Products with vectors, of terms again.

    def hessian_product(self, a: int, directions: Sequence[Array]) -> Terms:
        """H d."""
        indices = self.statement.indices
        found = [product(self.hessian[a, b], [Term(d.at(q))], q, indices) for b, (d, q) in enumerate(zip(directions, self.columns, strict=True))]
        return [t for terms in found for t in terms]

    def magnitudes(self, c: int, b: int) -> Terms:
        """|A|, or more where several terms meet."""
        return [replace(t, coefficient=sympy.Abs(t.coefficient)) for t in self.jacobian[c, b]]

    def jacobian_product(self, c: int, directions: Sequence[Array], absolute: bool = False) -> Terms:
        """A d, or |A| d."""
        indices, block = self.statement.indices, self.magnitudes if absolute else self._of_jacobian
        found = [product(block(c, b), [Term(d.at(q))], q, indices) for b, (d, q) in enumerate(zip(directions, self.columns, strict=True))]
        return [t for terms in found for t in terms]

    def _of_jacobian(self, c: int, b: int) -> Terms:
        return self.jacobian[c, b]

    def jacobian_transposed_product(self, b: int, rows: Sequence[Array], absolute: bool = False) -> Terms:
        """Aᵀw, or |A|ᵀw."""
        indices, constraints, block = self.statement.indices, self.statement.constraints, self.magnitudes if absolute else self._of_jacobian
        found = [product(block(k, b), [Term(w.at(c.free))], c.free, indices) for k, (c, w) in enumerate(zip(constraints, rows, strict=True))]
        return [t for terms in found for t in terms]

    def pull_back(self, k: int, directions: Sequence[Array], rows: Sequence[Array]) -> Terms:
        """Bᵀu + Cᵀw."""
        indices, constraints = self.statement.indices, self.statement.constraints
        found = [product(self.mixed(a, k), [Term(u.at(p))], p, indices) for a, (u, p) in enumerate(zip(directions, self.rows, strict=True))]
        found += [product(self.constraint(c, k), [Term(w.at(x.free))], x.free, indices) for c, (x, w) in enumerate(zip(constraints, rows, strict=True))]
        return [t for terms in found for t in terms]

    def push_forward(self, part: int, constraint: bool, tangents: dict[int, Array]) -> Terms:
        """B dx of a variable, or C dx of a constraint."""
        block = self.constraint if constraint else self.mixed
        found = [product(block(part, k), [Term(t.at(self.given[k]))], self.given[k], self.statement.indices) for k, t in tangents.items()]
        return [t for terms in found for t in terms]


def expression(terms: Terms, blocks: Blocks) -> Expr:
    """For people."""
    return sympy.Add(*(t.expression(blocks.statement.indices) for t in terms))
