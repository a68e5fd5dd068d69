"""Cases: torch.where, with the branches that are not taken kept from spoiling derivatives."""

# sympy annotates most results as Basic.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
from __future__ import annotations

import sympy

from declarative.symbolic.contractions import Contractions
from declarative.symbolic.elementwise import Value
from declarative.symbolic.functions import Cases

_COMPARISONS = {sympy.Lt: "<", sympy.Le: "<=", sympy.Gt: ">", sympy.Ge: ">=", sympy.Eq: "==", sympy.Ne: "!="}


class Choices(Contractions):
    """Writes lines that choose."""

    def _guarded(self, inner: Value) -> Value:
        """1 where the branch that is being written is not taken: what is infinite there would spoil the derivative of the other."""
        if self._only is None:
            return inner
        axes = self._union([self._only, inner])
        return Value(self._lines.name(f"torch.where({self._aligned(self._only, axes)}, {self._aligned(inner, axes)}, 1.0)"), axes)

    def _cases(self, e: Cases) -> Value:
        outer, before, branches = self._only, None, []
        for expression, condition in e.pairs:
            here = None if condition == True else self._condition(condition)  # noqa: E712
            taken = here if before is None else self._without(before) if here is None else self._both(here, self._without(before))
            self._only = taken if outer is None else outer if taken is None else self._both(outer, taken)
            branches.append((here, self.value(expression)))
            self._only = outer
            if here is None:
                break
            before = here if before is None else self._either(before, here)
        total = branches[-1][1]
        for condition, value in reversed(branches[:-1]):
            if condition is None:
                continue
            if value.number and total.number:
                total = self._tensor(total)  # of two numbers torch.where would choose the dtype itself
            axes = self._union([v for v in (condition, value, total) if not v.number])
            codes = ", ".join(self._aligned(v, axes) for v in (condition, value, total))
            total = Value(self._lines.name(f"torch.where({codes})"), axes)
        return self._tensor(total)

    def _condition(self, condition: sympy.Basic) -> Value:
        kind = type(condition)
        if kind in _COMPARISONS:
            outer, self._only = self._only, None
            left, right = self.value(condition.args[0]), self.value(condition.args[1])  # pyright: ignore[reportArgumentType]
            self._only = outer
            if left.number:
                left = self._tensor(left)
            axes = self._union([v for v in (left, right) if not v.number])
            return Value(self._lines.name(f"{self._aligned(left, axes)} {_COMPARISONS[kind]} {self._aligned(right, axes)}"), axes)
        if isinstance(condition, sympy.And | sympy.Or):
            parts = [self._condition(c) for c in condition.args]
            total = parts[0]
            for part in parts[1:]:
                total = self._both(total, part) if isinstance(condition, sympy.And) else self._either(total, part)
            return total
        if isinstance(condition, sympy.Not):
            return self._without(self._condition(condition.args[0]))
        raise NotImplementedError(f"the condition {condition} has no counterpart in torch")

    def _both(self, a: Value, b: Value, sign: str = "&") -> Value:
        axes = self._union([a, b])
        return Value(self._lines.name(f"{self._aligned(a, axes)} {sign} {self._aligned(b, axes)}"), axes)

    def _either(self, a: Value, b: Value) -> Value:
        return self._both(a, b, "|")

    def _without(self, a: Value) -> Value:
        return Value(self._lines.name(f"~{a.code}"), a.axes)
