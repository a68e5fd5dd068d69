"""Terms as people write them: the user's letters for indices, constants in front of sums, names for what comes again and again.

A derivation's indices are symbols of its own (indices.py). Here each gets the letter that the user gave to the axis where it stands, with
primes where that letter is in use already.
"""

# sympy's annotations say Basic where only an Expr can be.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportIndexIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false, reportIncompatibleMethodOverride=false
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import sympy
from sympy import Add, Expr, Indexed, IndexedBase, Mul, Product, Sum, Symbol
from sympy.logic.boolalg import Boolean

from declarative.symbolic.arrays import Array
from declarative.symbolic.functions import Cases
from declarative.symbolic.indices import Indices
from declarative.symbolic.terms import Term

_FALLBACK = "klpqstabcdefgh"
_ABBREVIATIONS = ("z", "s", "e", "q", "h", "g", "t", "k", "xi", "zeta", "eta", "omega")


def total(terms: Iterable[Term], indices: Indices) -> Expr:
    """The sum of terms, constants in front of their sums."""
    return Add(*(_written(term, indices) for term in terms))


def _written(term: Term, indices: Indices) -> Expr:
    limits = tuple((s, indices.ranges[s].lower, indices.ranges[s].upper) for s in term.bound)
    inner = pulled(signed(tidy(term.coefficient)), limits) * Mul(*(sympy.KroneckerDelta(a, b) for a, b in term.deltas))
    conditions = []
    for symbol, over in term.guards:
        whole = indices.ranges[symbol]
        conditions += [symbol >= over.lower] if over.lower != whole.lower else []
        conditions += [symbol <= over.upper] if over.upper != whole.upper else []
    if not conditions:
        return inner
    sign = -1 if inner.could_extract_minus_sign() else 1
    return sign * Cases((sign * inner, sympy.And(*conditions)), (0, True))


def signed(e: Expr) -> Expr:
    """y (1 − y) for −y (y − 1)."""
    if e.is_Mul and e.as_coeff_Mul()[0].is_negative:
        for factor in e.args:
            if isinstance(factor, Add) and any(a.is_number and a.is_negative for a in factor.args):
                return (-e / factor) * (-factor)
    return e


def pulled(body: Expr, limits: Sequence[tuple[Symbol, Expr, Expr]]) -> Expr:
    """Σ body, with the factors that do not depend on an index in front of its sum."""
    if not limits:
        return body
    over = {s for s, *_ in limits}
    outside, inside = body.as_independent(*over, as_Add=False)
    idle = [limit for limit in limits if limit[0] not in inside.free_symbols]
    count = Mul(*(upper - lower + 1 for _, lower, upper in idle))
    used = [limit for limit in limits if limit not in idle]
    return outside * count * (Sum(inside, *used) if used else inside)


def tidy(e: Expr) -> Expr:
    """The shorter of e and of e over one denominator, where differences such as y[i+1] − y[i] count as one symbol."""
    names: dict[Expr, Symbol] = {}

    def named(x: Expr) -> Expr:
        if x.could_extract_minus_sign():
            return -named(-x)
        return names.setdefault(x, sympy.Dummy(positive=None, real=True))

    flat = e.replace(lambda x: isinstance(x, Add) and all(isinstance(a, Indexed) or isinstance(-a, Indexed) for a in x.args), named)
    if not names or flat.has(Sum, sympy.Piecewise, Cases):
        return e
    short = sympy.factor(sympy.together(flat)).xreplace({s: x for x, s in names.items()})
    return short if sympy.count_ops(short) < sympy.count_ops(e) else e


def canonical(e: Expr, indices: Indices) -> tuple[Expr, tuple[Symbol, ...]]:
    """The expression with indices numbered by where they stand, and the indices: equal for two that differ only by their names."""
    order: dict[Symbol, Symbol] = {}
    blank = dict.fromkeys(indices.ranges, Symbol("_", integer=True))

    def visit(x: sympy.Basic) -> None:
        if x in indices.ranges:
            order.setdefault(x, Symbol(f"_{len(order)}", integer=True))
        for part in sorted(x.args, key=lambda a: sympy.srepr(a.xreplace(blank))) if isinstance(x, Add | Mul) else x.args:
            visit(part)

    visit(e)
    return e.xreplace(order), tuple(order)


class Rewriting:
    """Replaces expressions that are equal up to the names of indices.

    Args:
        indices: of the statement.
    """

    def __init__(self, indices: Indices) -> None:
        self._indices = indices
        self._known: dict[Expr, tuple[tuple[Symbol, ...], Expr]] = {}

    def add(self, pattern: Expr, value: Expr) -> None:
        """`value` in place of `pattern`."""
        key, symbols = canonical(pattern, self._indices)
        self._known[key] = (symbols, value)

    def __call__(self, e: Expr) -> Expr:
        """Outermost matches are replaced."""
        for sign in (1, -1):
            if isinstance(e, Sum | Add):
                key, symbols = canonical(sign * e, self._indices)
                own, value = self._known.get(key, ((), sympy.S.Zero))
                ranges = self._indices.ranges
                if key in self._known and all(ranges[a].covers(ranges[b]) for a, b in zip(own, symbols, strict=True)):
                    return sign * value.xreplace(dict(zip(own, symbols, strict=True)))
        if not e.args or isinstance(e, Indexed):
            return e
        parts = [self(a) if isinstance(a, Expr) else self._in_pair(a) for a in e.args]
        return e.func(*parts) if any(a is not b for a, b in zip(parts, e.args, strict=True)) else e

    def _in_pair(self, a: sympy.Basic) -> sympy.Basic:
        """A branch of `Cases`."""
        if isinstance(a, sympy.Tuple) and len(a) == 2 and isinstance(a[1], Boolean):
            return sympy.Tuple(self(a[0]), a[1])
        return a


class Names:
    """The user's letters.

    Args:
        indices: of the statement.
        arrays: everything that has axes; their letters are wanted where an index stands at one of them.
    """

    def __init__(self, indices: Indices, arrays: Iterable[Array]) -> None:
        self._indices = indices
        self.letters: dict[Symbol, tuple[str, ...]] = {}
        self.natural: dict[str, tuple[Expr, Expr]] = {}
        """The range of a letter where nothing else is said."""
        for a in arrays:
            self.letters[a.label] = tuple(s.name for s in a.indices)
            for s, over in zip(a.indices, a.axes, strict=True):
                self.natural.setdefault(s.name, (over.lower, over.upper))

    def wanted(self, symbol: Symbol, e: Expr) -> list[str]:
        """Letters for an index, best first."""
        found: list[str] = []
        for entry in sorted(e.atoms(Indexed), key=str):
            for letter, index in zip(self.letters.get(entry.base.label, ()), entry.indices, strict=False):
                if index.has(symbol):
                    found.append(letter)
        over = self._indices.ranges[symbol]
        found += [letter for letter, limits in self.natural.items() if limits == (over.lower, over.upper)]
        return [*dict.fromkeys(found)] or [letter for letter in _FALLBACK if letter not in self.natural]

    def named(self, groups: Iterable[tuple[Sequence[Symbol], Sequence[str]]]) -> dict[Symbol, Symbol]:
        """Rows, then columns: each with the letters it wants."""
        names: dict[Symbol, Symbol] = {}
        for symbols, letters in groups:
            for symbol, letter in zip(symbols, letters, strict=True):
                names[symbol] = self._free([letter], names.values())
        return names

    @staticmethod
    def _free(letters: Sequence[str], used: Iterable[Symbol]) -> Symbol:
        taken = {s.name for s in used}
        for primes in ("", "'", "''", "'''", "''''", "'''''"):
            for letter in letters:
                if letter + primes not in taken:
                    return Symbol(letter + primes, integer=True)
        raise ValueError(f"no name is left for an index like {letters[0]}")

    def shown(self, e: Expr, names: Mapping[Symbol, Symbol]) -> Expr:
        """The expression in the user's letters.

        Args:
            names: those of its free indices.
        """
        return self._shown(e, dict(names), set(names.values()))

    def _shown(self, e: sympy.Basic, names: dict[Symbol, Symbol], used: set[Symbol]) -> sympy.Basic:
        if e in names:
            return names[e]
        if isinstance(e, Sum | Product):
            inner, body, limits = dict(names), e.function, []
            for symbol, low, high in e.limits:
                inner[symbol] = self._free(self.wanted(symbol, body), used | set(inner.values()))
                limits.append((inner[symbol], low, high))
            return e.func(self._shown(body, inner, used | set(inner.values())), *sorted(limits, key=lambda x: x[0].name))
        if isinstance(e, Indexed):
            return IndexedBase(e.base.label)[tuple(i.xreplace(names) for i in e.indices)]
        return e.func(*(self._shown(a, names, used) for a in e.args)) if e.args else e


class Abbreviations:
    """Names for the sums inside terms that come more than once, z[i] = Σ_j …

    Args:
        expressions: where they occur.
        names: the user's letters.
        taken: labels that are in use.
    """

    def __init__(self, expressions: Sequence[Expr], names: Names, indices: Indices, taken: set[str]) -> None:
        self._rewriting = Rewriting(indices)
        self.defined: list[tuple[Expr, Expr]] = []
        """(name, what it stands for), in the statement's symbols."""
        free = iter(label for label in _ABBREVIATIONS if label not in taken)
        for kind in (Add, Sum):
            counts: dict[Expr, list[tuple[Expr, tuple[Symbol, ...]]]] = {}
            for whole in expressions:
                for e in sorted(self._rewriting(whole).atoms(kind), key=str):
                    if kind is Sum or any(isinstance(f, Sum) for a in e.args for f in Mul.make_args(a)):
                        e = -e if kind is Add and e.could_extract_minus_sign() else e
                        key, symbols = canonical(e, indices)
                        counts.setdefault(key, []).append((e, symbols))
            for found in counts.values():
                e, symbols = found[0]
                own = tuple(s for s in symbols if s in e.free_symbols)
                label = next(free, None) if len(found) > 1 and len(own) <= 2 else None
                if label is not None:
                    ordered = sorted(own, key=lambda s: names.wanted(s, e)[0])
                    name = IndexedBase(Symbol(label))[tuple(ordered)] if ordered else Symbol(label)
                    names.letters[Symbol(label)] = tuple(names.wanted(s, e)[0] for s in ordered)
                    self._rewriting.add(e, name)
                    self.defined.append((name, e))

    def __call__(self, e: Expr) -> Expr:
        return self._rewriting(e)
