"""A statement that has been read: what is minimised, over what, given what, subject to what."""

# sympy annotates most results as Basic.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

from dataclasses import dataclass, field

import sympy
from sympy import Expr, Symbol

from declarative.symbolic.arrays import Array
from declarative.symbolic.indices import Indices


@dataclass(frozen=True)
class Constraint:
    """One expression for each value of its free indices.

    Args:
        expression: h (= 0) or g (≤ 0).
        free: its indices, in the order of the multipliers' axes.
        multipliers: ν or μ, an array with these axes.
        equality: h rather than g.
    """

    expression: Expr
    free: tuple[Symbol, ...]
    multipliers: Array
    equality: bool


@dataclass
class Statement:
    """What the user stated.

    Args:
        indices: of all expressions.
        variables: y, or its parts where it is a tuple.
        is_tuple: whether the user gave a tuple.
        inputs: in call order.
        constants: arrays that the node holds.
        numbers, number_codes: constants that are Python numbers, and their names in code.
        objective: f
        constraints: equalities first.
        title: the name of the class, for messages.
    """

    title: str
    indices: Indices
    variables: tuple[Array, ...] = ()
    is_tuple: bool = False
    inputs: tuple[Array, ...] = ()
    constants: tuple[Array, ...] = ()
    numbers: dict[Symbol, float] = field(default_factory=dict)
    number_codes: dict[Symbol, str] = field(default_factory=dict)
    objective: Expr = sympy.S.Zero
    constraints: tuple[Constraint, ...] = ()

    @property
    def arrays(self) -> dict[Symbol, Array]:
        """All by label."""
        everything = (*self.inputs, *self.constants, *self.variables, *(c.multipliers for c in self.constraints))
        return {a.label: a for a in everything}

    @property
    def sizes(self) -> set[Symbol]:
        """The symbols that ranges are made of."""
        return {s for over in self.indices.ranges.values() for s in (over.upper - over.lower).free_symbols | over.lower.free_symbols}  # pyright: ignore[reportReturnType]
