"""Functions that must not be written with what they are made of: log(1 + exp z) and its derivative overflow if they are."""

# sympy annotates most results as Basic.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
from __future__ import annotations

from typing import Any

import sympy
from sympy import Add, Expr, Function, Mul, Pow, Sum


class logistic(Function):  # noqa: N801
    """1 / (1 + exp(−z))"""

    def fdiff(self, argindex: int = 1) -> Expr:  # noqa: ARG002
        z = self.args[0]
        return logistic(z) * logistic(-z)

    def _latex(self, printer: Any, exp: Any = None) -> str:
        text = rf"\sigma\left({printer._print(self.args[0])}\right)"
        return text if exp is None else f"{text}^{{{exp}}}"


class softplus(Function):  # noqa: N801
    """log(1 + exp z)"""

    def fdiff(self, argindex: int = 1) -> Expr:  # noqa: ARG002
        return logistic(self.args[0])

    def _latex(self, printer: Any, exp: Any = None) -> str:
        text = rf"\log\left(1 + e^{{{printer._print(self.args[0])}}}\right)"
        return text if exp is None else rf"\left({text}\right)^{{{exp}}}"


class logsumexp(Function):  # noqa: N801
    """log Σ exp z, for the one argument Σ z: the sum says what z is and what is summed over."""

    def _latex(self, printer: Any, exp: Any = None) -> str:
        total = self.args[0]
        text = rf"\log {printer._print(Sum(sympy.exp(total.function), *total.limits))}"
        return text if exp is None else rf"\left({text}\right)^{{{exp}}}"

    def _sympystr(self, printer: Any) -> str:
        total = self.args[0]
        return f"log({printer._print(Sum(sympy.exp(total.function), *total.limits))})"

    def _pretty(self, printer: Any) -> Any:
        total = self.args[0]
        return printer._print(sympy.log(Sum(sympy.exp(total.function), *total.limits)))


class Cases(Expr):
    """Cases((e₁, c₁), (e₂, c₂), …): the first e whose condition holds; sympy's `Piecewise`, but left where it is written.

    sympy moves a Piecewise out of the sums around it, and an index of an inner sum with it. So a Piecewise inside two sums may not be what was
    written; Cases is.
    """

    def __new__(cls, *pairs: Any) -> Any:
        kept: list[tuple[Any, Any]] = []
        for e, condition in pairs:
            if condition == False:  # noqa: E712
                continue
            kept.append((sympy.sympify(e), sympy.sympify(condition)))
            if condition == True:  # noqa: E712
                break
        if kept and (kept[0][1] == True or (kept[-1][1] == True and all(e == kept[0][0] for e, _ in kept))):  # noqa: E712
            return kept[0][0]
        if not kept or kept[-1][1] != True:  # noqa: E712
            kept.append((sympy.nan, sympy.true))
        return super().__new__(cls, *(sympy.Tuple(e, c) for e, c in kept))

    is_commutative = True

    @property
    def pairs(self) -> list[tuple[Expr, Any]]:
        """(expression, condition) of each branch; the last condition is true."""
        return [(pair[0], pair[1]) for pair in self.args]

    def mapped(self, function: Any) -> Expr:
        """With the function of every branch."""
        return Cases(*((function(e), c) for e, c in self.pairs))

    def _eval_derivative(self, s: Any) -> Expr:
        return self.mapped(lambda e: sympy.diff(e, s))

    def as_piecewise(self) -> Any:
        """What sympy itself calls it."""
        return sympy.Piecewise(*((e, c) for e, c in self.pairs if e is not sympy.nan), evaluate=False)

    def _latex(self, printer: Any, exp: Any = None) -> str:
        text = printer._print(self.as_piecewise())
        return text if exp is None else rf"\left({text}\right)^{{{exp}}}"

    def _sympystr(self, printer: Any) -> str:
        return printer._print(self.as_piecewise())

    def _pretty(self, printer: Any) -> Any:
        return printer._print(self.as_piecewise())


def escaped(e: sympy.Basic) -> sympy.Basic | None:
    """A Piecewise whose condition holds an index that its own branches sum over: sympy has moved it out of that sum."""
    for piece in e.atoms(sympy.Piecewise):
        bound = {limit[0] for total in piece.atoms(Sum, sympy.Product) for limit in total.limits}
        if any(bound & condition.free_symbols for _, condition in piece.args):
            return piece
    return None


def _one_plus_exp(e: Expr) -> Expr | None:
    """z of 1 + exp z."""
    if isinstance(e, Add) and len(e.args) == 2 and sympy.S.One in e.args:
        other = next(a for a in e.args if a != 1)
        if isinstance(other, sympy.exp):
            return other.args[0]
    return None


def stable(e: Expr) -> Expr:
    """The same with log(1 + exp z) and 1 / (1 + exp z) as the functions that they are."""

    def logs(x: sympy.log) -> Expr:
        inner = x.args[0]
        if isinstance(inner, Sum) and isinstance(inner.function, sympy.exp):
            return logsumexp(Sum(inner.function.args[0], *inner.limits))
        z = _one_plus_exp(inner)
        return x if z is None else softplus(z)

    def powers(x: Pow) -> Expr:
        z = _one_plus_exp(x.base)
        return x if z is None else logistic(-z) ** (-x.exp)

    def products(x: Mul) -> Expr:
        # exp(z) / (1 + exp(z)) = σ(z)
        factors = list(x.args)
        for factor in [f for f in factors if isinstance(f, logistic)]:
            partner = sympy.exp(-factor.args[0])
            if partner in factors:
                factors.remove(factor)
                factors.remove(partner)
                factors.append(logistic(-factor.args[0]))
        return Mul(*factors)

    e = e.replace(lambda x: isinstance(x, sympy.log), logs)
    e = e.replace(lambda x: isinstance(x, Pow) and x.exp.is_negative, powers)
    return e.replace(lambda x: isinstance(x, Mul), products)
