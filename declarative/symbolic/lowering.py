"""From indexed expressions to lines of torch: broadcasting, contractions by einsum, and every value computed once.

A value is a tensor (…, *axes): batch dimensions in front, one dimension for each index behind. A line of code names tensors, not indices;
so two expressions that differ by the names of their indices give the same line, and a line that is already there is not written again.
That is all of common subexpression elimination.
"""

# sympy annotates most results as Basic.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import sympy
from sympy import Expr, Indexed, KroneckerDelta, Product, Sum, Symbol

from declarative.symbolic.cases import Choices
from declarative.symbolic.elementwise import Value
from declarative.symbolic.functions import Cases, logistic, logsumexp, softplus
from declarative.symbolic.terms import Term

_METHODS: dict[type, str] = {
    sympy.exp: "exp",
    sympy.log: "log",
    sympy.sin: "sin",
    sympy.cos: "cos",
    sympy.tan: "tan",
    sympy.sinh: "sinh",
    sympy.cosh: "cosh",
    sympy.tanh: "tanh",
    sympy.asin: "asin",
    sympy.acos: "acos",
    sympy.atan: "atan",
    sympy.asinh: "asinh",
    sympy.acosh: "acosh",
    sympy.atanh: "atanh",
    sympy.erf: "erf",
    sympy.erfc: "erfc",
    sympy.loggamma: "lgamma",
    sympy.Abs: "abs",
    sympy.sign: "sign",
    logistic: "sigmoid",
}
SUPPORTED = (*_METHODS, softplus, sympy.Max, sympy.Min, sympy.Piecewise, Cases, sympy.polygamma, sympy.atan2, KroneckerDelta, sympy.Heaviside)


class Lowering(Choices):
    """Writes the lines that compute expressions and sums of terms."""

    def terms(self, terms: Sequence[Term], axes: Sequence[Symbol]) -> str:
        """The sum of terms as a tensor of these axes."""
        negative = [len(terms) > 1 and t.coefficient.as_coeff_Mul()[0].is_negative is True for t in terms]
        values = [self._term(replace(t, coefficient=-t.coefficient) if n else t, axes) for t, n in zip(terms, negative, strict=True)]
        if not values:
            return self._lines.name(self._full("0.0", axes))
        return self._expanded(self._sum_of(values, negative), axes)

    def _term(self, term: Term, axes: Sequence[Symbol]) -> Value:
        lowering = self
        if term.guards:
            lowering = copy.copy(self)
            lowering._ranges, lowering._memo = {**self._ranges, **dict(term.guards)}, {}
        inner = term.coefficient
        for symbol in term.bound:
            over = self._indices.ranges[symbol]
            inner = Sum(inner, (symbol, over.lower, over.upper))
        value = lowering._with_deltas(inner, term.deltas)
        if not term.guards:
            return value
        code = lowering._expanded(value, axes)
        for symbol, over in term.guards:
            whole, behind = self._range(symbol), len(axes) - 1 - list(axes).index(symbol)
            padding = [*["0"] * (2 * behind), self._size(over.lower - whole.lower), self._size(whole.upper - over.upper)]
            code = self._lines.name(f"torch.nn.functional.pad({code}, ({', '.join(padding)}))")
        return Value(code, tuple(axes))

    def _with_deltas(self, coefficient: Expr, deltas: Sequence[tuple[Expr, Expr]]) -> Value:
        if coefficient == 1 and deltas:
            return self._product([self.value(KroneckerDelta(a, b)) for a, b in deltas])
        value = self.value(coefficient)
        if len(deltas) == 1 and len(value.axes) == 1:
            (a, b), own = deltas[0], value.axes[0]
            if own in (a, b) and self._indices.is_index(a) and self._indices.is_index(b) and self._range(a) == self._range(b):
                return Value(self._lines.name(f"torch.diag_embed({value.code})"), (own, b if own == a else a))
        return self._product([value, *(self.value(KroneckerDelta(a, b)) for a, b in deltas)]) if deltas else value

    def scalar(self, expression: Expr) -> str:
        """A value without axes, as a tensor."""
        return self._expanded(self.value(expression), ())

    def _lowered(self, e: Expr) -> Value:
        if isinstance(e, Symbol) and self._indices.is_index(e):
            over = self._range(e)
            span = f"{self._size(over.lower)}, {self._size(over.upper + 1)}"
            return Value(self._lines.name(f"torch.arange({span}, dtype={self._like}.dtype, device={self._like}.device)"), (e,))
        if isinstance(e, Symbol) and e in self._arrays:
            return Value(self._arrays[e].code)
        if isinstance(e, Indexed):
            return self._read(e)
        if not any(s in self._arrays or self._indices.is_index(s) for s in e.free_symbols) and not e.has(Sum, Product):
            return self._number(e)
        return self._composite(e)

    def _composite(self, e: Expr) -> Value:
        if isinstance(e, sympy.Add):
            negative = [part.as_coeff_Mul()[0].is_negative is True for part in e.args]
            return self._sum_of([self.value(-part if n else part) for part, n in zip(e.args, negative, strict=True)], negative)
        if isinstance(e, sympy.Mul):
            return self._mul(e)
        if isinstance(e, sympy.Pow):
            return self._pow(e)
        if isinstance(e, Sum):
            return self._contraction(e)
        if isinstance(e, Product):
            return self._reduced(self.value(e.function), e.limits, "prod")
        if isinstance(e, logsumexp):
            inner = e.args[0]
            return self._reduced(self.value(inner.function), inner.limits, "logsumexp")
        return self._function(e)

    def _number(self, e: Expr) -> Value:
        """Of numbers and sizes alone: a Python number where its operations are Python's own, else a tensor."""
        e = e.xreplace(self._numbers).replace(lambda x: x.is_number and not x.is_Rational, lambda x: x.evalf(17))
        if e.is_Rational:
            return Value(str(e) if e.is_Integer else f"({e.p} / {e.q})" if e.q & (e.q - 1) else repr(float(e)), number=True)
        if e.is_number:
            return Value(repr(float(e)), number=True)
        if e.is_rational_function():
            return Value(sympy.sstr(e) if isinstance(e, Symbol) else f"({sympy.sstr(e)})", number=True)
        return self._composite(e)

    def _read(self, e: Indexed) -> Value:
        array = self._arrays[e.base.label]
        code, axes, rank = array.code, [], len(array.axes)
        for k, (index, axis) in enumerate(zip(e.indices, array.axes, strict=True)):
            symbol, offset = self._indices.split(index)
            axes.append(symbol)
            if symbol is None:
                code = self._lines.name(f"{code}.select({k - rank}, {self._size(offset - axis.lower)})")
                continue
            over = self._range(symbol).shifted(offset)
            if over != axis and (sympy.expand(over.lower - axis.lower) != 0 or sympy.expand(over.upper - axis.upper) != 0):
                code = self._lines.name(f"{code}.narrow({k - rank}, {self._size(over.lower - axis.lower)}, {self._size(over.size)})")
        return self._without_repeats(code, axes)

    def _without_repeats(self, code: str, axes: list[Symbol | None]) -> Value:
        kept = [s for s in axes if s is not None]
        repeated = next((s for s in kept if kept.count(s) > 1), None)
        while repeated is not None:
            first, second = [k for k, s in enumerate(kept) if s == repeated][:2]
            code = self._lines.name(f"{code}.diagonal(0, {first - len(kept)}, {second - len(kept)})")
            kept = [s for k, s in enumerate(kept) if k not in (first, second)] + [repeated]
            repeated = next((s for s in kept if kept.count(s) > 1), None)
        return Value(code, tuple(kept))

    def _mul(self, e: Expr) -> Value:
        coefficient, rest = e.as_coeff_Mul()
        factors = list(sympy.Mul.make_args(rest))
        # x log x is zero at zero.
        for log in [f for f in factors if isinstance(f, sympy.log)]:
            inside = sympy.Mul.make_args(log.args[0])
            partner = next((f for f in factors if f in inside and f is not log), None)
            if partner is not None:
                factors.remove(log)
                factors.remove(partner)
                a, b = self.value(partner), self.value(log.args[0])
                axes = self._union([a, b])
                joined = Value(self._lines.name(f"torch.special.xlogy({self._aligned(a, axes)}, {self._aligned(b, axes)})"), axes)
                return self._times(coefficient, [joined], factors)
        return self._times(coefficient, [], factors)

    def _times(self, coefficient: Expr, values: list[Value], factors: list[Expr]) -> Value:
        if coefficient == -1:
            # −a (b − 1) = a (1 − b): no operation more. A difference of tensors stays as it is, since it may be elsewhere, too.
            flipped = next((f for f in factors if isinstance(f, sympy.Add) and f.args[0].is_Number), None)
            if flipped is not None:
                return self._times(sympy.S.One, values, [-flipped if f is flipped else f for f in factors])
        above, below = list(values), []
        for factor in factors:
            base, exponent = factor.as_base_exp() if isinstance(factor, sympy.Pow) else (factor, sympy.S.One)
            if exponent.could_extract_minus_sign() and exponent.is_number:
                below.append(self.value(base if exponent == -1 else base**-exponent))
            else:
                above.append(self.value(factor))
        if coefficient == -1:
            found = self._product(above, below)
            return Value(f"(-{found.code})", number=True) if found.number else Value(self._lines.name(f"-{found.code}"), found.axes)
        if coefficient.is_Rational and coefficient.p in (1, -1) and coefficient.q != 1:
            below.append(self._number(sympy.Integer(coefficient.p * coefficient.q)))
        elif coefficient != 1:
            above.append(self._number(coefficient))
        return self._product(above, below)

    def _pow(self, e: Expr) -> Value:
        base, exponent = e.as_base_exp()
        inner = self.value(base)
        if inner.number:
            inner = Value(self._lines.name(f"{self._like}.new_tensor({inner.code})"))
        if not exponent.is_number:
            other = self.value(exponent)
            axes = self._union([inner, other])
            return Value(self._lines.name(f"{self._aligned(inner, axes)} ** {self._aligned(other, axes)}"), axes)
        if exponent.is_negative or not exponent.is_integer:
            inner = self._guarded(inner)
        if exponent < -1:
            return self._product([], [self.value(base**-exponent)])
        half = exponent - sympy.Rational(1, 2)
        if half.is_Integer and exponent > 1:  # x^(k + ½): torch has no fast way for it, and the root may be there already
            root = Value(self._lines.name(f"{inner.code}.sqrt()"), inner.axes)
            whole = inner if half == 1 else Value(self._lines.name(f"{inner.code}.pow({half})"), inner.axes)
            return Value(self._lines.name(f"{root.code} * {whole.code}"), inner.axes)
        names = {2: "square()", sympy.Rational(1, 2): "sqrt()", -sympy.Rational(1, 2): "rsqrt()", -1: "reciprocal()"}
        method = names.get(exponent) or f"pow({exponent if exponent.is_Integer else self._number(exponent).code})"  # pyright: ignore[reportArgumentType]
        return Value(self._lines.name(f"{inner.code}.{method}"), inner.axes)

    def _function(self, e: Expr) -> Value:
        kind = type(e)
        if kind in _METHODS:
            inner = self.value(e.args[0])
            if inner.number:
                inner = Value(self._lines.name(f"{self._like}.new_tensor(float({inner.code}))"))
            if kind is sympy.log:
                inner = self._guarded(inner)
            return Value(self._lines.name(f"{inner.code}.{_METHODS[kind]}()"), inner.axes)
        if kind is softplus:
            inner = self.value(e.args[0])
            return Value(self._lines.name(f"torch.logaddexp({inner.code}, {inner.code}.new_zeros(()))"), inner.axes)
        if isinstance(e, sympy.Max | sympy.Min):
            return self._fold("maximum" if isinstance(e, sympy.Max) else "minimum", [self.value(a) for a in e.args])
        if isinstance(e, Cases):
            return self._cases(e)
        return self._special(e)

    def _special(self, e: Expr) -> Value:
        kind = type(e)
        if isinstance(e, KroneckerDelta):
            a, b = e.args
            if self._indices.is_index(a) and self._indices.is_index(b) and self._range(a) == self._range(b):
                axes = tuple(sorted((a, b), key=self._rank))
                size = self._size(self._range(a).size)
                return Value(self._lines.name(f"torch.eye({size}, dtype={self._like}.dtype, device={self._like}.device)"), axes)
            condition = self._condition(sympy.Eq(a, b, evaluate=False))
            return Value(self._lines.name(f"{condition.code}.to({self._like}.dtype)"), condition.axes)
        if isinstance(e, sympy.Heaviside):
            inner = self.value(e.args[0])
            return Value(self._lines.name(f"0.5 * ({inner.code}.sign() + 1)"), inner.axes)
        if isinstance(e, sympy.polygamma):
            inner = self.value(e.args[1])
            return Value(self._lines.name(f"torch.special.polygamma({e.args[0]}, {inner.code})"), inner.axes)
        if isinstance(e, sympy.atan2):
            return self._fold("atan2", [self.value(a) for a in e.args])
        raise NotImplementedError(f"{kind.__name__} in {e} has no counterpart in torch")
