"""Expressions in the user's letters: as a line of unicode, and in LaTeX."""

# sympy annotates most results as Basic.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIncompatibleMethodOverride=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
from sympy import Add, Expr, KroneckerDelta, Mul, Product, Sum, Symbol
from sympy.printing.latex import LatexPrinter
from sympy.printing.precedence import PRECEDENCE
from sympy.printing.pretty.pretty_symbology import pretty_symbol
from sympy.printing.str import StrPrinter

from declarative.symbolic.functions import Cases

_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


@dataclass(frozen=True)
class Style:
    """How one symbol is written; {} is where its indices go."""

    text: str
    latex: str


class _Plain:
    """What both printers share: how a product is laid out, and the names of symbols.

    Args:
        styles: of symbols that are no user's.
        natural: the limits of an index letter that need not be said.
    """

    styles: Mapping[Symbol, Style]
    natural: Mapping[str, tuple[Expr, Expr]]

    @staticmethod
    def factors(e: Expr) -> tuple[bool, list[Expr], list[Expr], list[Expr]]:
        """(negative, numerator, denominator, sums): numbers, then symbols, then functions, then sums; deltas last."""
        coefficient, rest = e.as_coeff_Mul()
        above, below, sums = [], [], []
        if coefficient.is_Rational:
            above += [sympy.Integer(abs(coefficient.p))] if abs(coefficient.p) != 1 else []
            below += [sympy.Integer(coefficient.q)] if coefficient.q != 1 else []
        elif coefficient != 1:
            above.append(abs(coefficient))
        for factor in Mul.make_args(rest):
            base, exponent = factor.as_base_exp()
            if factor == 1:
                continue
            if exponent.is_Rational and exponent.is_negative:
                below.append(base**-exponent)
            elif isinstance(factor, Sum | Product | Cases):
                sums.append(factor)
            else:
                above.append(factor)
        key = lambda x: (_rank(x), _sorted_as(x))  # noqa: E731
        return bool(coefficient.is_negative), sorted(above, key=key), sorted(below, key=key), sorted(sums, key=key)


def _sorted_as(x: Expr) -> str:
    """Without primes first."""
    return str(x).replace("'", "~")


def _rank(x: Expr) -> int:
    if isinstance(x, KroneckerDelta):
        return 5
    base = x.as_base_exp()[0]
    if base.is_number:
        return 0
    if base.is_Symbol:
        return 1
    return 2 if base.is_Indexed else 3 if base.is_Function else 4


def ordered_terms(e: Add) -> list[Expr]:
    """A term with a plus sign first, sums last."""
    found = sorted(Add.make_args(e), key=lambda x: (x.has(Sum), x.has(Cases), x.could_extract_minus_sign(), x.is_number and not x.has(Sum), _sorted_as(x)))
    first = next((x for x in found if not x.could_extract_minus_sign()), found[0])
    return [first, *(x for x in found if x is not first)]


class UnicodePrinter(_Plain, StrPrinter):
    """M_ij P_ij, Σ_j P_ij, δ_ij: on one line."""

    printmethod = "_text"  # what sympy's classes say of themselves is not wanted

    def __init__(self, styles: Mapping[Symbol, Style], natural: Mapping[str, tuple[Expr, Expr]]) -> None:
        super().__init__()
        self.styles, self.natural = styles, natural

    def text(self, e: Expr) -> str:
        """One expression."""
        return self.doprint(e).replace("-", "−").replace("'", "′")

    def _lower(self, indices: Sequence[Expr]) -> str:
        names = [self._print(i) for i in indices]
        plain = all(len(name.rstrip("'")) == 1 for name in names)
        joined = "".join(names) if plain else ",".join(names).replace(",,,", ";").replace(" ", "")
        return f"_{joined}" if plain else f"_{{{joined}}}"

    def _print_Symbol(self, e: Symbol) -> str:  # noqa: N802
        return self.styles[e].text.replace("{}", "") if e in self.styles else pretty_symbol(e.name) if "'" not in e.name else e.name

    def _print_Indexed(self, e: Any) -> str:  # noqa: N802
        label = e.base.label
        return self.styles[label].text.replace("{}", self._lower(e.indices)) if label in self.styles else self._print(label) + self._lower(e.indices)

    def _print_Add(self, expr: Any, order: Any = None) -> str:  # noqa: ARG002, N802
        text = ""
        for term in ordered_terms(expr):
            part = self._print(term)
            text += part if not text else f" - {part[1:]}" if part.startswith("-") else f" + {part}"
        return text

    def _print_Mul(self, expr: Any) -> str:  # noqa: N802
        negative, above, below, sums = self.factors(expr)
        tight = len(above) + len(sums) > 1 or below or negative
        parts = [self.parenthesize(x, PRECEDENCE["Mul"], strict=True) if tight else self._print(x) for x in above]
        last = [f"({self._print(x)})" if below or k + 1 < len(sums) else self._print(x) for k, x in enumerate(sums)]
        top = " ".join([*parts, *last]) or "1"
        if below:
            bottom = " ".join(self._factor(x) for x in below)
            top += f"/{bottom}" if len(below) == 1 else f"/({bottom})"
        return f"-{top}" if negative else top

    def _factor(self, x: Expr) -> str:
        """In parentheses where something may follow or go before."""
        return f"({self._print(x)})" if isinstance(x, Sum | Product) else self.parenthesize(x, PRECEDENCE["Mul"], strict=True)

    def _print_Pow(self, expr: Any, rational: bool = False) -> str:  # noqa: ARG002, N802
        base, exponent = expr.as_base_exp()
        if exponent.is_Rational and exponent.is_negative:
            return f"1/{self._factor(base**-exponent)}"
        if exponent == sympy.Rational(1, 2):
            return f"√{self._print(base)}" if base.is_Atom or base.is_Indexed else f"√({self._print(base)})"
        inner = self._print(base) if base.is_Atom or base.is_Function or base.is_Indexed else f"({self._print(base)})"
        return f"{inner}{str(exponent).translate(_RAISED)}" if exponent.is_Integer else f"{inner}^({self._print(exponent)})"

    def _over(self, sign: str, e: Any) -> str:
        usual = all(self.natural.get(s.name.rstrip("'")) == (low, high) for s, low, high in e.limits)
        if usual:
            lower = self._lower([s for s, *_ in e.limits])
        else:
            lower = "_{" + ", ".join(f"{self._print(s)}={self._print(a)}…{self._print(b)}".replace(" ", "") for s, a, b in e.limits) + "}"
        return f"{sign}{lower} {self.parenthesize(e.function, PRECEDENCE['Mul'], strict=True)}"

    def _print_Sum(self, expr: Any) -> str:  # noqa: N802
        return self._over("Σ", expr)

    def _print_Product(self, expr: Any) -> str:  # noqa: N802
        return self._over("Π", expr)

    def _print_KroneckerDelta(self, expr: Any) -> str:  # noqa: N802
        return "δ" + self._lower(expr.args)

    def _print_Abs(self, expr: Any) -> str:  # noqa: N802
        return f"|{self._print(expr.args[0])}|"

    def _print_logistic(self, expr: Any) -> str:
        return f"σ({self._print(expr.args[0])})"

    def _print_softplus(self, expr: Any) -> str:
        return f"log(1 + exp({self._print(expr.args[0])}))"

    def _print_logsumexp(self, expr: Any) -> str:
        inner = expr.args[0]
        return f"log({self._print(Sum(sympy.exp(inner.function), *inner.limits))})"

    def _print_Relational(self, expr: Any) -> str:  # noqa: N802
        signs = {"<=": "≤", ">=": "≥", "!=": "≠", "==": "="}
        return f"{self._print(expr.lhs)} {signs.get(expr.rel_op, expr.rel_op)} {self._print(expr.rhs)}"

    def _print_And(self, expr: Any, order: Any = None) -> str:  # noqa: ARG002, N802
        return " and ".join(self._print(a) for a in sorted(expr.args, key=str))

    def _print_Cases(self, expr: Any) -> str:  # noqa: N802
        return self._print(expr.as_piecewise())

    def _print_Piecewise(self, expr: Any) -> str:  # noqa: N802
        pairs = expr.args
        if len(pairs) == 2 and pairs[1] == (0, True):
            return f"[{self._print(pairs[0].cond)}] {self.parenthesize(pairs[0].expr, PRECEDENCE['Mul'], strict=True)}"
        return "{" + "; ".join(f"{self._print(p.expr)} {'otherwise' if p.cond == True else f'if {self._print(p.cond)}'}" for p in pairs) + "}"  # noqa: E712


class FormulaPrinter(_Plain, LatexPrinter):
    """The same in LaTeX."""

    def __init__(self, styles: Mapping[Symbol, Style], natural: Mapping[str, tuple[Expr, Expr]]) -> None:
        super().__init__()
        self.styles, self.natural = styles, natural

    def text(self, e: Expr) -> str:
        """One expression."""
        return self.doprint(e)

    def _lower(self, indices: Sequence[Expr]) -> str:
        names = [self._print(i) for i in indices]
        plain = all(len(name.rstrip("'")) == 1 for name in names)
        return "_{" + ("".join(names) if plain else ", ".join(names).replace(", ,, ", "; ")) + "}"

    def _print_Symbol(self, expr: Symbol, style: str = "plain") -> str:  # noqa: N802
        if expr in self.styles:
            return self.styles[expr].latex.replace("{}", "")
        return expr.name if "'" in expr.name else super()._print_Symbol(expr, style)

    def _print_Indexed(self, expr: Any) -> str:  # noqa: N802
        label, lower = expr.base.label, self._lower(expr.indices)
        if label in self.styles:
            return self.styles[label].latex.replace("{}", lower)
        name = self._print(label)
        return (f"{{{name}}}" if "_" in name or "^" in name else name) + lower

    def _print_Add(self, expr: Any, order: Any = None) -> str:  # noqa: ARG002, N802
        return "".join(self.terms(expr))

    def terms(self, e: Expr) -> list[str]:
        """Each term with its sign."""
        found: list[str] = []
        for term in ordered_terms(e) if isinstance(e, Add) else [e]:
            part = self._print(term)
            found.append(part if not found else f" - {part[1:].lstrip()}" if part.startswith("-") else f" + {part}")
        return found

    def _print_Mul(self, expr: Any) -> str:  # noqa: N802
        negative, above, below, sums = self.factors(expr)
        deltas = [x for x in above if isinstance(x, KroneckerDelta)]
        above = [x for x in above if x not in deltas]
        several = len(above) + len(sums) + len(deltas) > 1 or negative

        def joined(factors: list[Expr], tight: bool) -> str:
            return r" \, ".join(self.parenthesize(x, PRECEDENCE["Mul"], strict=True) if tight else self._print(x) for x in factors)

        text = rf"\frac{{{joined(above, len(above) > 1) or '1'}}}{{{joined(below, len(below) > 1)}}}" if below else joined(above, several)
        tail = [self._print(x) for x in deltas]
        tail += [rf"\left({self._print(x)}\right)" if k + 1 < len(sums) else self._print(x) for k, x in enumerate(sums)]
        whole = r" \, ".join([*([text] if text else []), *tail])
        return f"- {whole}" if negative else whole

    def _print_Pow(self, expr: Any) -> str:  # noqa: N802
        base, exponent = expr.as_base_exp()
        if exponent.is_Rational and exponent.is_negative:
            return rf"\frac{{1}}{{{self._print(base**-exponent)}}}"
        if exponent == sympy.Rational(1, 2):
            return rf"\sqrt{{{self._print(base)}}}"
        if base.is_Indexed or (exponent.is_Rational and not exponent.is_Integer):
            inner = self._print(base) if base.is_Atom or base.is_Indexed else rf"\left({self._print(base)}\right)"
            power = f"{exponent.p}/{exponent.q}" if exponent.is_Rational and not exponent.is_Integer else self._print(exponent)
            return f"{inner}^{{{power}}}"
        return super()._print_Pow(expr)

    def _print_Sum(self, expr: Any) -> str:  # noqa: N802
        return self._totalled(r"\sum", expr)

    def _print_Product(self, expr: Any) -> str:  # noqa: N802
        return self._totalled(r"\prod", expr)

    def _totalled(self, sign: str, e: Any) -> str:
        over = " ".join(f"{sign}_{{{self._print(s)}={self._print(a)}}}^{{{self._print(b)}}}" for s, a, b in e.limits)
        return f"{over} {self.parenthesize(e.function, PRECEDENCE['Mul'], strict=True)}"

    def _print_KroneckerDelta(self, expr: Any, exp: Any = None) -> str:  # noqa: ARG002, N802
        return r"\delta" + self._lower(expr.args)
