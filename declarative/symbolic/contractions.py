"""Sums of products: contractions by einsum, one summation index after the other."""

# sympy annotates most results as Basic.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Sequence

import sympy
from sympy import Expr, Sum, Symbol

from declarative.symbolic.elementwise import Elementwise, Value


class Contractions(Elementwise):
    """Writes lines that sum."""

    def _reduced(self, body: Value, limits: Sequence[sympy.Tuple], method: str) -> Value:
        """The whole body, then one reduction."""
        bound = [s for s, *_ in limits]
        body = self._tensor(body)
        missing = tuple(s for s in bound if s not in body.axes)
        if missing:
            axes = (*body.axes, *missing)
            body = Value(self._expanded(body, axes), axes)
        kept = tuple(s for s in body.axes if s not in bound)
        dims = [body.axes.index(s) - len(body.axes) for s in bound]
        if method == "prod":
            code, axes = body.code, list(body.axes)
            for symbol in bound:
                code = self._lines.name(f"{code}.prod({axes.index(symbol) - len(axes)})")
                axes.remove(symbol)
            return Value(code, kept)
        return Value(self._lines.name(f"{body.code}.{method}({dims[0] if len(dims) == 1 else tuple(sorted(dims))})"), kept)

    def _contraction(self, e: Sum) -> Value:
        bound = [s for s, *_ in e.limits]
        body = e.function
        while isinstance(body, Sum):
            bound, body = [*bound, *(s for s, *_ in body.limits)], body.function
        body = sympy.expand_power_base(body) if isinstance(body, sympy.Pow) else body
        if isinstance(body, sympy.Add) and any(self._pays(part, bound) for part in body.args):
            parts = [Sum(part, *((s, self._range(s).lower, self._range(s).upper) for s in bound)) for part in body.args]
            return self._sum_of([self.value(p) for p in parts], [False] * len(parts))
        used = self._indices.of(body)
        repeats = [self._range(s).size for s in bound if s not in used]
        bound = [s for s in bound if s in used]
        factors = list(sympy.Mul.make_args(body))
        outside = [f for f in factors if not self._indices.of(f) & set(bound)]
        inside = [f for f in factors if f not in outside]
        outer = sympy.Mul(*outside, *repeats)
        if not inside:
            return self.value(outer) if outer != 1 else Value("1", number=True)
        inner = self._summed(inside, bound)
        coefficient, rest = outer.as_coeff_Mul()
        return inner if outer == 1 else self._times(coefficient, [inner], [f for f in sympy.Mul.make_args(rest) if f != 1])

    def _pays(self, part: Expr, bound: Sequence[Symbol]) -> bool:
        """Whether the sum of a product is a contraction: no factor has all of its indices."""
        factors = [self._indices.of(f) for f in sympy.Mul.make_args(part)]
        inside = [f for f in factors if f & set(bound)]
        return len(inside) > 1 and max(len(f) for f in inside) < len(set().union(*inside))

    def _summed(self, factors: list[Expr], bound: list[Symbol]) -> Value:
        """Indices are summed one after the other, first those whose sum leaves the fewest axes."""
        groups: dict[frozenset[Symbol], list[Expr]] = {}
        for factor in factors:
            groups.setdefault(frozenset(self._indices.of(factor)), []).append(factor)
        operands = [(own, self.value(sympy.Mul(*members))) for own, members in groups.items()]
        left = list(bound)
        while left:

            def cost(symbol: Symbol, operands: list[tuple[frozenset[Symbol], Value]] = operands) -> tuple[int, int]:
                touched = [own for own, _ in operands if symbol in own]
                return len(frozenset().union(*touched)), len(touched)

            first = min(left, key=cost)
            touched = [o for o in operands if first in o[0]]
            together = [s for s in left if [o for o in operands if s in o[0]] == touched]
            result = self._summed_over([v for _, v in touched], together)
            operands = [*(o for o in operands if first not in o[0]), (frozenset(result.axes), result)]
            left = [s for s in left if s not in together]
        return operands[0][1] if len(operands) == 1 else self._product([v for _, v in operands])

    def _summed_over(self, values: list[Value], bound: list[Symbol]) -> Value:
        """A sum of a product. A factor whose axes are all another's is multiplied into the smallest such, until two are left."""
        values = sorted(values, key=lambda v: (len(v.axes), v.code))
        k = 0
        while len(values) > 2 and k < len(values):
            target = next((j for j, v in enumerate(values) if j != k and set(values[k].axes) <= set(v.axes)), None)
            if target is None:
                k += 1
                continue
            joined = self._product([values[k], values[target]])
            values = sorted([*(v for j, v in enumerate(values) if j not in (k, target)), joined], key=lambda v: (len(v.axes), v.code))
            k = 0
        if len(values) == 2 and set(values[0].axes) == set(values[1].axes):
            values = [self._product(values)]
        if len(values) == 1:
            return self._reduced(values[0], [sympy.Tuple(s) for s in bound], "sum")
        return self._einsum(values, bound)

    def _einsum(self, values: list[Value], bound: list[Symbol]) -> Value:
        values = sorted(values, key=lambda v: (-len(v.axes), v.code))
        letters: dict[Symbol, str] = {}
        for symbol in (s for v in values for s in v.axes):
            letters.setdefault(symbol, "ijklpqstuvwxyzabcdefgh"[len(letters)])
        kept = self._kept(values, bound)
        operands = ",".join("..." + "".join(letters[s] for s in v.axes) for v in values)
        code = f"torch.einsum('{operands}->...{''.join(letters[s] for s in kept)}', {', '.join(v.code for v in values)})"
        return Value(self._lines.name(code), kept)

    def _kept(self, values: Sequence[Value], bound: Sequence[Symbol]) -> tuple[Symbol, ...]:
        return tuple(sorted({s for v in values for s in v.axes} - set(bound), key=self._rank))
