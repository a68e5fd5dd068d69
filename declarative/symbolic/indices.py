"""Indices and what they run over. Every index of a derivation is a symbol of its own, so that no name is ever captured."""

# sympy annotates most results as Basic.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import sympy
from sympy import Expr, Symbol

_LETTERS = "ijklpqstabcdefgh"


@dataclass(frozen=True)
class Range:
    """lower … upper, both included; expressions in sizes."""

    lower: Expr
    upper: Expr

    @property
    def size(self) -> Expr:
        """How many values."""
        return self.upper - self.lower + 1

    def shifted(self, offset: Expr) -> Range:
        """lower + offset … upper + offset"""
        return Range(self.lower + offset, self.upper + offset)

    def covers(self, other: Range) -> bool | None:
        """Whether the other lies within this one for all sizes; None where that cannot be told."""
        below, above = other.lower - self.lower, self.upper - other.upper
        if below.is_nonnegative and above.is_nonnegative:
            return True
        return False if below.is_negative or above.is_negative else None

    def __str__(self) -> str:
        return f"{self.lower} … {self.upper}"


@dataclass
class Indices:
    """The index symbols of one statement.

    Args:
        ranges: what each runs over.
        taken: names that no new symbol may have.
        original: what the user calls each.
    """

    ranges: dict[Symbol, Range] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    original: dict[Symbol, str] = field(default_factory=dict)

    def fresh(self, like: Symbol | str, over: Range) -> Symbol:
        """A new symbol: the name that was asked for if it is free, else another letter."""
        wanted = str(like)
        letter = wanted.rstrip("0123456789")
        candidates = [wanted, *_LETTERS, *(f"{letter}{n}" for n in range(1, len(self.taken) + 2))]
        symbol = Symbol(next(name for name in candidates if name not in self.taken), integer=True)
        self.taken.add(symbol.name)
        self.ranges[symbol] = over
        self.original[symbol] = self.original.get(like, wanted) if isinstance(like, Symbol) else wanted
        return symbol

    def copies(self, symbols: Iterable[Symbol]) -> tuple[Symbol, ...]:
        """New symbols over the same ranges."""
        return tuple(self.fresh(s, self.ranges[s]) for s in symbols)

    def is_index(self, symbol: object) -> bool:
        """Whether it is one of these."""
        return symbol in self.ranges

    def of(self, expression: sympy.Basic) -> set[Symbol]:
        """The indices that an expression is a function of."""
        return {s for s in expression.free_symbols if s in self.ranges}  # pyright: ignore[reportReturnType]

    def split(self, index: Expr) -> tuple[Symbol | None, Expr]:
        """(i, c) of i + c; (None, c) of a constant.

        Raises:
            ValueError: anything else.
        """
        found = self.of(index)
        if not found:
            return None, index
        symbol = found.pop()
        offset = index - symbol
        if found or self.of(offset):
            raise ValueError(f"an index must be a symbol, a symbol plus a constant, or a constant, got {index}")
        return symbol, offset
