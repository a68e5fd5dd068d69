"""Sums of terms Σ coefficient · δ …, and their derivatives by an indexed variable.

A derivative is taken occurrence by occurrence: wherever the variable stands, with whatever indices, it counts as a scalar of its own
(sympy differentiates by that), and a Kronecker delta records where it stands. A delta that holds a summation index is resolved at once,
index for index: Σ_i c(i) δ(i, p) = c(p). Those that are left tie free indices together, and they are the structure.
"""

# sympy annotates most results as Basic.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import sympy
from sympy import Dummy, Expr, Indexed, KroneckerDelta, Product, Sum, Symbol

from declarative.symbolic.functions import Cases, logsumexp
from declarative.symbolic.indices import Indices, Range


@dataclass(frozen=True)
class Term:
    """Σ over `bound` of coefficient · Π δ(a, b), where each guarded index lies in its range, and zero elsewhere.

    Args:
        coefficient: may hold sums of its own.
        bound: summation indices, each a symbol that occurs nowhere else.
        deltas: pairs of index expressions.
        guards: free indices and the part of their range where the term is not zero.
    """

    coefficient: Expr
    bound: tuple[Symbol, ...] = ()
    deltas: tuple[tuple[Expr, Expr], ...] = ()
    guards: tuple[tuple[Symbol, Range], ...] = ()

    def expression(self, indices: Indices) -> Expr:
        """The same for people."""
        inner = self.coefficient
        for symbol in self.bound:
            inner = Sum(inner, (symbol, indices.ranges[symbol].lower, indices.ranges[symbol].upper))
        for a, b in self.deltas:
            inner = inner * KroneckerDelta(a, b)
        for symbol, over in self.guards:
            inner = Cases((inner, sympy.And(symbol >= over.lower, symbol <= over.upper)), (0, True))
        return inner

    def renamed(self, names: dict[Symbol, Expr]) -> Term:
        """Other symbols in place of free indices."""
        guards = tuple((names.get(s, s), over) for s, over in self.guards)
        return Term(self.coefficient.xreplace(names), self.bound, tuple((a.xreplace(names), b.xreplace(names)) for a, b in self.deltas), guards)  # pyright: ignore[reportArgumentType]


Terms = list[Term]


def negative(term: Term) -> Term:
    """−term"""
    return replace(term, coefficient=-term.coefficient)


def on_diagonal(term: Term, columns: Sequence[Symbol]) -> Term:
    """The term where its deltas with these columns are 1, without their indices."""
    names: dict[Symbol, Expr] = {}
    others = []
    for a, b in term.deltas:
        found = next(((s, one, other) for one, other in ((a, b), (b, a)) for s in one.free_symbols if s in columns), None)
        if found is None:
            others.append((a, b))
        else:
            symbol, one, other = found
            names[symbol] = other - (one - symbol)
    return replace(term, coefficient=term.coefficient.xreplace(names), deltas=tuple(others))


def differentiate(terms: Iterable[Term], variable: Symbol, target: Sequence[Symbol], indices: Indices) -> Terms:
    """The derivative by variable[target], or by a variable without indices."""
    found = []
    for term in terms:
        for inner in _derivative(term.coefficient, variable, target, indices):
            whole = Term(inner.coefficient, (*term.bound, *inner.bound), (*term.deltas, *inner.deltas), term.guards)
            found.append(collapse(whole, indices))
    return merge(found, indices)


def depends(expression: sympy.Basic, variable: Symbol) -> bool:
    """Whether the variable occurs."""
    return variable in expression.free_symbols


def as_numbers(expression: sympy.Basic) -> dict[sympy.Basic, Dummy]:
    """What counts as one number, and a symbol for it: entries, symbols, and sums and products, through which a derivative goes.

    All of them are real, which sympy must know of |z| and √z².
    """
    found: dict[sympy.Basic, Dummy] = {}

    def look(e: sympy.Basic) -> None:
        if isinstance(e, (Indexed, Symbol, Sum, Product, logsumexp)):
            found.setdefault(e, Dummy(f"a{len(found)}", real=True))
            return
        for part in e.args:
            look(part)

    look(expression)
    return found


def _derivative(expression: Expr, variable: Symbol, target: Sequence[Symbol], indices: Indices) -> Terms:
    if not depends(expression, variable):
        return []
    scalars = {atom: z for atom, z in as_numbers(expression).items() if not indices.is_index(atom)}
    plain, back = expression.xreplace(scalars), {z: atom for atom, z in scalars.items()}
    terms = []
    for atom, z in scalars.items():
        if not depends(atom, variable):
            continue
        # What is left of a kink that has passed as smooth (smoothness.py): a delta function where its factor vanishes.
        slope = sympy.diff(plain, z).replace(lambda e: isinstance(e, sympy.DiracDelta), lambda e: sympy.S.Zero).xreplace(back)  # noqa: ARG005
        if slope == 0:
            continue
        inner = _derivative_of_atom(atom, variable, target, indices)
        terms += [replace(t, coefficient=slope * t.coefficient) for t in inner]
    return terms


def _derivative_of_atom(atom: sympy.Basic, variable: Symbol, target: Sequence[Symbol], indices: Indices) -> Terms:
    if atom == variable:
        return [Term(sympy.S.One)]
    if isinstance(atom, Indexed):
        return [Term(sympy.S.One, (), tuple(zip(atom.indices, target, strict=True)))]
    around = sympy.S.One
    inner = atom
    if isinstance(atom, logsumexp):
        inner = atom.args[0]
    if not isinstance(inner, Sum | Product):
        raise TypeError(f"cannot differentiate {atom}")
    own = {s: indices.fresh(s, indices.ranges[s]) for s, *_ in inner.limits}
    body = inner.function.xreplace(own)
    if isinstance(atom, logsumexp):
        around = sympy.exp(body - atom)
    elif isinstance(inner, Product):
        # The product of the OTHER factors, so that a factor of zero is no division by zero.
        others = {s: indices.fresh(s, indices.ranges[s]) for s, *_ in inner.limits}
        same = sympy.And(*(sympy.Eq(others[s], own[s]) for s, *_ in inner.limits))
        factor = Cases((1, same), (inner.function.xreplace(others), True))
        around = Product(factor, *((others[s], low, high) for s, low, high in inner.limits))
    return [replace(t, coefficient=around * t.coefficient, bound=(*own.values(), *t.bound)) for t in _derivative(body, variable, target, indices)]


def collapse(term: Term, indices: Indices) -> Term:
    """Resolve the deltas that hold a summation index. A term that vanishes has the coefficient 0."""
    bound, deltas, guards, coefficient = list(term.bound), list(term.deltas), list(term.guards), term.coefficient
    kept: list[tuple[Expr, Expr]] = []
    while deltas:
        a, b = deltas.pop(0)
        if (a - b).is_number:
            if a != b:
                return Term(sympy.S.Zero)
            continue
        solved = _solved(a, b, bound, indices) or _solved(b, a, bound, indices)
        if solved is None:
            kept.append((a, b))
            continue
        symbol, value = solved
        bound.remove(symbol)
        over = indices.ranges[symbol]
        at = {symbol: value}
        coefficient = coefficient.xreplace(at)
        deltas = [(x.xreplace(at), y.xreplace(at)) for x, y in (*deltas, *kept)]
        kept = []
        restrictions = [over, *(r for s, r in guards if s == symbol)]
        guards = [(s, r) for s, r in guards if s != symbol]
        for restriction in restrictions:
            guard = _guard(value, restriction, guards, indices)
            if guard is None:
                return Term(sympy.S.Zero)
            guards = guard
    # A summation index that is kept in part of its range only.
    narrowed = {symbol: indices.fresh(symbol, over) for symbol, over in guards if symbol in bound}
    guards = tuple(sorted(((s, r) for s, r in guards if s not in narrowed), key=str))
    return Term(coefficient.xreplace(narrowed), tuple(narrowed.get(s, s) for s in bound), tuple(sorted(kept, key=str)), guards)


def _solved(a: Expr, b: Expr, bound: list[Symbol], indices: Indices) -> tuple[Symbol, Expr] | None:
    """(i, b − c) where a = i + c with a summation index i."""
    symbol, offset = indices.split(a)
    return (symbol, b - offset) if symbol is not None and symbol in bound else None


def _guard(value: Expr, over: Range, guards: list[tuple[Symbol, Range]], indices: Indices) -> list[tuple[Symbol, Range]] | None:
    """The guards, with `value` restricted to a range as well; None where that is impossible."""
    symbol, offset = indices.split(value)
    if symbol is None:
        inside = over.covers(Range(value, value))
        if inside is None:
            raise ValueError(f"whether the index {value} lies in {over} depends on sizes that are not known")
        return guards if inside else None
    wanted = over.shifted(-offset)
    present = next((r for s, r in guards if s == symbol), indices.ranges[symbol])
    if wanted.covers(present):
        return guards
    narrow = Range(_larger(wanted.lower, present.lower), _smaller(wanted.upper, present.upper))
    return [*((s, r) for s, r in guards if s != symbol), (symbol, narrow)]


def _larger(a: Expr, b: Expr) -> Expr:
    if (a - b).is_nonnegative:
        return a
    if (b - a).is_nonnegative:
        return b
    raise ValueError(f"which of {a} and {b} is larger depends on the sizes: give the indices that meet here ranges that can be compared")


def _smaller(a: Expr, b: Expr) -> Expr:
    return b if _larger(a, b) == a else a


def merge(terms: Iterable[Term], indices: Indices) -> Terms:
    """Terms with the same deltas and ranges as one."""
    merged: dict[object, Term] = {}
    for term in terms:
        if term.coefficient == 0:
            continue
        ranges = tuple(sorted((indices.ranges[s] for s in term.bound), key=str))
        key = (term.deltas, term.guards, ranges)
        if key not in merged:
            merged[key] = term
            continue
        first = merged[key]
        names = dict(zip(_ordered(term.bound, indices), _ordered(first.bound, indices), strict=True))
        merged[key] = replace(first, coefficient=first.coefficient + term.coefficient.xreplace(names))
    return [t for t in merged.values() if t.coefficient != 0]


def _ordered(bound: Iterable[Symbol], indices: Indices) -> list[Symbol]:
    return sorted(bound, key=lambda s: str(indices.ranges[s]))


def product(left: Terms, right: Terms, summed: Sequence[Symbol], indices: Indices) -> Terms:
    """Σ over `summed` of left · right. Their summation indices must be different symbols."""
    found = []
    for a in left:
        for b in right:
            names = dict(zip(b.bound, indices.copies(b.bound), strict=True))
            other = Term(b.coefficient.xreplace(names), tuple(names.values()), b.deltas, b.guards)
            whole = Term(a.coefficient * other.coefficient, (*summed, *a.bound, *other.bound), (*a.deltas, *other.deltas), _both(a.guards, other.guards))
            found.append(collapse(whole, indices))
    return merge(found, indices)


def _both(first: tuple[tuple[Symbol, Range], ...], second: tuple[tuple[Symbol, Range], ...]) -> tuple[tuple[Symbol, Range], ...]:
    guards = dict(first)
    for symbol, over in second:
        known = guards.get(symbol)
        guards[symbol] = over if known is None else Range(_larger(over.lower, known.lower), _smaller(over.upper, known.upper))
    return tuple(guards.items())
