"""Coefficients in a form that is short to read and to compute."""

# sympy annotates most results as Basic.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

from dataclasses import replace

import sympy
from sympy import Expr

from declarative.symbolic.functions import stable
from declarative.symbolic.terms import Term


def simplified(term: Term) -> Term:
    """Common factors out of sums, stable functions."""
    coefficient = stable(sympy.factor_terms(term.coefficient, sign=False))
    return replace(term, coefficient=_signed(coefficient))


def _signed(e: Expr) -> Expr:
    """Each difference in one of its two signs, everywhere the same, so that x − u is not computed beside u − x."""
    sign, factors = 1, []
    for factor in sympy.Mul.make_args(e):
        if isinstance(factor, sympy.Add) and factor.could_extract_minus_sign() and len(sympy.Mul.make_args(e)) > 1:
            sign, factor = -sign, -factor
        factors.append(factor)
    return sympy.Mul(sign, *factors)
