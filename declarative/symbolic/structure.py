"""What the terms of H, A and S say about their structure, and which of them prevents more."""

# sympy annotates most results as Basic.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import sympy
from sympy import Expr, Symbol

from declarative.symbolic.blocks import Blocks
from declarative.symbolic.indices import Indices
from declarative.symbolic.terms import Term, Terms, on_diagonal


@dataclass(frozen=True)
class Factor:
    """One low-rank part Σ_b left(p, b) right(q, b); its rank is the number of values of b."""

    left: Expr
    right: Expr
    bound: tuple[Symbol, ...]


@dataclass(frozen=True)
class Structure:
    """What H is.

    Args:
        kind: "zero", "identity", "scaled identity", "diagonal", "banded", "block diagonal", "Kronecker", "diagonal + low rank" or "dense".
        words: the same with its sizes, for people.
        diagonal: the terms with a delta for every index, of p alone.
        factors: the low-rank parts.
        axes: the axes of y that blocks do not couple.
        offset: how far the band reaches.
        constant: H depends neither on y nor on an input.
        obstacle: the term that prevents structure, where H is dense.
    """

    kind: str
    words: str
    diagonal: Terms = field(default_factory=list)
    factors: tuple[Factor, ...] = ()
    axes: tuple[int, ...] = ()
    offset: int = 0
    constant: bool = False
    obstacle: str = ""

    @property
    def is_diagonal(self) -> bool:
        """Diagonal, of whatever kind."""
        return self.kind in ("identity", "scaled identity", "diagonal")


def _dense(obstacle: str, constant: bool = False) -> Structure:
    return Structure("dense", "dense", constant=constant, obstacle=obstacle)


def pairing(term: Term, rows: Sequence[Symbol], columns: Sequence[Symbol], indices: Indices) -> dict[int, int] | None:
    """axis -> offset for each delta(p_k + offset, q_k); None if there is any other delta."""
    found: dict[int, int] = {}
    for a, b in term.deltas:
        (first, x), (second, y) = indices.split(a), indices.split(b)
        if first in columns and second in rows:
            first, x, second, y = second, y, first, x
        if first not in rows or second not in columns or rows.index(first) != columns.index(second):
            return None
        offset = x - y
        if not offset.is_Integer or rows.index(first) in found:
            return None
        found[rows.index(first)] = int(offset)
    return found


def hessian_structure(blocks: Blocks) -> Structure:
    """H's, of all variables."""
    if len(blocks.statement.variables) > 1:
        return _of_parts(blocks)
    terms, rows, columns = blocks.hessian[0, 0], blocks.rows[0], blocks.columns[0]
    return _structure(terms, rows, columns, blocks)


def _of_parts(blocks: Blocks) -> Structure:
    variables = blocks.statement.variables
    for (a, b), terms in blocks.hessian.items():
        if a != b and terms:
            return _dense(f"{_shown(terms[0], blocks)} couples {variables[a].label} and {variables[b].label}")
    parts = [_structure(blocks.hessian[k, k], blocks.rows[k], blocks.columns[k], blocks) for k in range(len(variables))]
    if all(part.kind == "zero" for part in parts):
        return parts[0]
    worst = next((k for k, part in enumerate(parts) if part.kind != "zero" and not part.is_diagonal), None)
    if worst is None:
        return Structure("diagonal", "diagonal", constant=all(part.constant for part in parts))
    return _dense(f"y has several parts, and that of {variables[worst].label} is {parts[worst].words}")


def _structure(terms: Terms, rows: tuple[Symbol, ...], columns: tuple[Symbol, ...], blocks: Blocks) -> Structure:
    indices = blocks.statement.indices
    if not terms:
        return Structure("zero", "zero", constant=True)
    constant = not any(set(blocks.statement.arrays) & t.coefficient.free_symbols for t in terms)
    pairs = [pairing(t, rows, columns, indices) for t in terms]
    odd = next((t for t, p in zip(terms, pairs, strict=True) if p is None), None)
    if odd is not None:
        return _dense(_shown(odd, blocks), constant)
    known = [p for p in pairs if p is not None]
    every = len(rows)
    if all(len(p) == every for p in known):
        return _diagonal_or_banded(terms, known, rows, constant, indices, blocks)
    if any(offset for p in known for offset in p.values()):
        shifted = next(t for t, p in zip(terms, known, strict=True) if any(p.values()) or len(p) < every)
        return _dense(_shown(shifted, blocks), constant)
    common = tuple(k for k in range(every) if all(k in p for p in known))
    if common:
        return _blocks(terms, common, rows, columns, constant, blocks)
    return _low_rank(terms, known, rows, columns, constant, blocks)


def _diagonal_or_banded(terms: Terms, pairs: list[dict[int, int]], rows: tuple[Symbol, ...], constant: bool, indices: Indices, blocks: Blocks) -> Structure:
    reach = [max((abs(offset) for offset in p.values()), default=0) for p in pairs]
    if max(reach, default=0):
        if len(rows) > 1:
            return _dense(_shown(terms[reach.index(max(reach))], blocks), constant)
        return Structure("banded", f"banded, {2 * max(reach) + 1} diagonals", offset=max(reach), constant=constant)
    plain = [on_diagonal(t, blocks.columns[0]) for t in terms]
    if any(t.guards or indices.of(t.coefficient) & set(rows) for t in terms):
        return Structure("diagonal", "diagonal", plain, constant=constant)
    if len(plain) == 1 and plain[0].coefficient == 1 and not plain[0].bound:
        return Structure("identity", "the identity", plain, constant=True)
    return Structure("scaled identity", "a multiple of the identity", plain, constant=constant)


def _blocks(terms: Terms, common: tuple[int, ...], rows: tuple[Symbol, ...], columns: tuple[Symbol, ...], constant: bool, blocks: Blocks) -> Structure:
    indices, variable = blocks.statement.indices, blocks.statement.variables[0]
    apart = {rows[k] for k in common} | {columns[k] for k in common}
    inner = [sympy.sstr(axis.size) for k, axis in enumerate(variable.axes) if k not in common]
    count = " · ".join(sympy.sstr(variable.axes[k].size) for k in common)
    size = "·".join(inner)
    if not any(t.guards or indices.of(t.coefficient) & apart for t in terms):
        return Structure(
            "Kronecker", f"one {size} x {size} block, repeated {count} times (a Kronecker product with the identity)", axes=common, constant=constant
        )
    return Structure("block diagonal", f"{count} blocks of {size} x {size}", axes=common, constant=constant)


def _low_rank(terms: Terms, pairs: list[dict[int, int]], rows: tuple[Symbol, ...], columns: tuple[Symbol, ...], constant: bool, blocks: Blocks) -> Structure:
    indices, every = blocks.statement.indices, len(rows)
    diagonal = [on_diagonal(t, columns) for t, p in zip(terms, pairs, strict=True) if len(p) == every]
    factors: list[Factor] = []
    for term, p in zip(terms, pairs, strict=True):
        if len(p) == every:
            continue
        found = None if p or term.guards else _factors(term, rows, columns, indices)
        if found is None:
            return _dense(_shown(term, blocks), constant)
        factors += found
    ranks = [sympy.Mul(*(indices.ranges[s].size for s in f.bound)) for f in factors]
    rank = sympy.sstr(sympy.Add(*ranks))
    base = "a multiple of the identity" if not any(indices.of(t.coefficient) & set(rows) or t.guards for t in diagonal) else "a diagonal"
    words = f"{base} plus rank {rank}" if diagonal else f"rank {rank}"
    return Structure("diagonal + low rank", words, diagonal, tuple(factors), constant=constant)


def _factors(term: Term, rows: tuple[Symbol, ...], columns: tuple[Symbol, ...], indices: Indices) -> list[Factor] | None:
    """The term as products of a function of p and one of q."""
    whole = _split(term.coefficient, rows, columns, indices)
    if whole is not None:
        return [Factor(*whole, term.bound)]
    parts = sympy.Add.make_args(sympy.expand(term.coefficient))
    if len(parts) == 1 or len(parts) > 8:
        return None
    found = [_split(part, rows, columns, indices) for part in parts]
    return None if any(f is None for f in found) else [Factor(*f, term.bound) for f in found if f is not None]


def _split(coefficient: Expr, rows: tuple[Symbol, ...], columns: tuple[Symbol, ...], indices: Indices) -> tuple[Expr, Expr] | None:
    left, right = sympy.S.One, sympy.S.One
    factors = list(sympy.Mul.make_args(sympy.expand_power_base(coefficient, force=True)))
    while factors:
        factor = factors.pop(0)
        own = indices.of(factor)
        if own & set(columns) and own & set(rows) and isinstance(factor, sympy.exp) and isinstance(factor.args[0], sympy.Add):
            # Of a sum of functions of p and of q; no further, or its parts would overflow.
            parts = [part for part in factor.args[0].args if indices.of(part) & set(columns)]
            factors = [sympy.exp(sympy.Add(*parts)), sympy.exp(factor.args[0] - sympy.Add(*parts)), *factors]
            if parts and sympy.Add(*parts) != factor.args[0]:
                continue
            return None
        if own & set(columns):
            if own & set(rows):
                return None
            right = right * factor
        else:
            left = left * factor
    return left, right


def _shown(term: Term, blocks: Blocks) -> str:
    return f"the term {sympy.sstr(term.expression(blocks.statement.indices))}"
