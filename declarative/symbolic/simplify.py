"""Coefficients in a form that is short to read and to compute."""

# sympy annotates most results as Basic.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

from dataclasses import replace

import sympy
from sympy import Dummy, Expr, Product, Sum

from declarative.symbolic.functions import Cases, logsumexp, stable
from declarative.symbolic.terms import Term


def simplified(term: Term) -> Term:
    """Common factors out of sums, stable functions."""
    # What is inside of a sum or of cases stays as it is: a factor may be taken out of neither.
    opaque: dict[sympy.Basic, Dummy] = {}
    _hide(term.coefficient, opaque)
    coefficient = sympy.factor_terms(term.coefficient.xreplace(opaque), sign=False).xreplace({z: e for e, z in opaque.items()})
    coefficient = stable(coefficient)
    return replace(term, coefficient=_signed(coefficient))


def _signed(e: Expr) -> Expr:
    """Each difference in one of its two signs, everywhere the same, so that x − u is not computed beside u − x."""
    sign, factors = 1, []
    for factor in sympy.Mul.make_args(e):
        if isinstance(factor, sympy.Add) and factor.could_extract_minus_sign() and len(sympy.Mul.make_args(e)) > 1:
            sign, factor = -sign, -factor
        factors.append(factor)
    return sympy.Mul(sign, *factors)


def _hide(e: sympy.Basic, opaque: dict[sympy.Basic, Dummy]) -> None:
    if isinstance(e, Sum | Product | logsumexp | Cases):
        opaque.setdefault(e, Dummy())
        return
    for part in e.args:
        _hide(part, opaque)
