"""Sizes from the shapes of tensors, checked against every axis; what does not fit is said in the user's symbols."""

# sympy annotates most results as Basic.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Sequence

import sympy
from sympy import Expr, Symbol

from declarative.symbolic.arrays import Array
from declarative.symbolic.statement import Statement


def read_sizes(statement: Statement, given: Sequence[tuple[Array, tuple[int, ...]]]) -> dict[Symbol, int]:
    """Every size.

    Args:
        given: arrays and the shapes of one instance.

    Raises:
        ValueError: a wrong number of dimensions, sizes that contradict each other, or that are empty.
    """
    known: dict[Symbol, int] = {}
    shown: dict[Symbol, str] = {}
    for array, shape in given:
        if len(shape) != len(array.axes):
            raise ValueError(f"{statement.title}: {array} has {_dimensions(len(array.axes))} for one instance, {array.shape}, got shape {shape}")
    for array, shape in given:
        for axis, length in zip(array.axes, shape, strict=True):
            unknown = [s for s in axis.size.free_symbols if s not in known]
            if len(unknown) == 1:
                symbol = unknown[0]
                solutions = sympy.solve(axis.size.xreplace({s: sympy.Integer(n) for s, n in known.items()}) - length, symbol)
                value = next((s for s in solutions if s.is_Integer and s >= 0), None)
                if value is None:
                    raise ValueError(f"{statement.title}: {array} has shape {shape}, but no {symbol} makes {axis.size} = {length}")
                known[symbol], shown[symbol] = int(value), f"{array} has shape {shape}"
    for array, shape in given:
        for k, (axis, length) in enumerate(zip(array.axes, shape, strict=True)):
            expected = evaluate(axis.size, known)
            if expected != length:
                why = "; ".join(f"{s} = {known[s]} because {shown[s]}" for s in sorted(axis.size.free_symbols, key=str))  # pyright: ignore[reportArgumentType]
                raise ValueError(
                    f"{statement.title}: {array} must have shape {array.shape}, so axis {k} must be {expected}, got shape {shape}{'; ' if why else ''}{why}"
                )
    return known


def evaluate(size: Expr, known: dict[Symbol, int]) -> int:
    """A size as a number."""
    value = size.xreplace({s: sympy.Integer(n) for s, n in known.items()})
    if not value.is_Integer or value < 0:
        raise ValueError(f"the size {size} comes out as {value}: it must be a whole number, 0 or more")
    return int(value)


def _dimensions(count: int) -> str:
    return {0: "no dimension", 1: "1 dimension"}.get(count, f"{count} dimensions")
