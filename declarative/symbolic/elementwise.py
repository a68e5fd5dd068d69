"""Elementwise arithmetic in lines of code: which axes a result has, how operands are aligned, in which order they are combined."""

# sympy annotates most results as Basic.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sympy
from sympy import Expr, Symbol

from declarative.symbolic.arrays import Array
from declarative.symbolic.indices import Indices, Range
from declarative.symbolic.lines import Lines


@dataclass(frozen=True)
class Value:
    """A name or a number in the code, and the indices of its trailing dimensions.

    Args:
        code: a variable, or a Python expression of numbers and sizes.
        axes: one index for each dimension behind the batch.
        number: it is a Python number.
    """

    code: str
    axes: tuple[Symbol, ...] = ()
    number: bool = False


class Elementwise(ABC):
    """Writes lines that combine values.

    Args:
        arrays: what each label stands for.
        indices: the statement's indices.
        lines: where the code goes.
        like: a tensor variable of the right dtype and device.
        priority: free indices in the order of the result's dimensions.
        ranges: where an index runs over less than its own range.
        numbers: names of the constants that are Python numbers.
    """

    def __init__(
        self,
        arrays: dict[Symbol, Array],
        indices: Indices,
        lines: Lines,
        like: str,
        priority: Sequence[Symbol] = (),
        ranges: dict[Symbol, Range] | None = None,
        numbers: dict[Symbol, str] | None = None,
    ) -> None:
        self._arrays, self._indices, self._lines, self._like = arrays, indices, lines, like
        self._numbers = {s: Symbol(code) for s, code in (numbers or {}).items()}
        self._priority = {s: k for k, s in enumerate(priority)}
        self._ranges = ranges or {}
        self._only: Value | None = None
        self._memo: dict[tuple[Expr, Value | None], Value] = {}

    @abstractmethod
    def _lowered(self, e: Expr) -> Value:
        """The value of an expression that is met for the first time."""

    def value(self, expression: Expr) -> Value:
        """The value of an expression."""
        key = expression, self._only
        if key not in self._memo:
            self._memo[key] = self._lowered(expression)
        return self._memo[key]

    def _full(self, number: str, axes: Sequence[Symbol]) -> str:
        sizes = ", ".join(self._size(self._range(s).size) for s in axes)
        return f"{self._like}.new_full(({sizes}{',' if len(axes) == 1 else ''}), {number})"

    def _expanded(self, value: Value, axes: Sequence[Symbol]) -> str:
        """The value with exactly these axes, repeated along those that it does not depend on."""
        if value.number:
            return self._lines.name(self._full(value.code, axes))
        code = self._aligned(value, axes)
        if len(value.axes) == len(axes):
            return self._lines.name(code)
        sizes = ", ".join(self._size(self._range(s).size) if s not in value.axes else "-1" for s in axes)
        code = self._lines.name(code)
        return self._lines.name(f"{code}.expand(*{code}.shape[:{code}.ndim - {len(axes)}], {sizes})")

    def _range(self, symbol: Symbol) -> Range:
        return self._ranges.get(symbol, self._indices.ranges[symbol])

    def _size(self, size: Expr) -> str:
        return str(sympy.expand(size))

    def _rank(self, symbol: Symbol) -> tuple[int, int, str]:
        known = symbol in self._priority
        return (0, self._priority[symbol], "") if known else (1, 0, symbol.name)

    def _union(self, values: Sequence[Value]) -> tuple[Symbol, ...]:
        """The axes of an elementwise result: in the order of the operand that has all of them, if there is one."""
        every = {s for v in values for s in v.axes}
        whole = next((v.axes for v in sorted(values, key=lambda v: v.code) if len(v.axes) == len(every)), None)
        return whole if whole is not None else tuple(sorted(every, key=self._rank))

    def _aligned(self, value: Value, axes: Sequence[Symbol]) -> str:
        """Code with one dimension for each of the axes, of length 1 where the value does not depend on it."""
        if value.number or tuple(value.axes) == tuple(axes):
            return value.code
        code, present = value.code, [s for s in axes if s in value.axes]
        if tuple(present) != value.axes:
            if len(present) == 2:
                code = f"{code}.mT"
            else:
                order = ", ".join(str(value.axes.index(s) - len(present)) for s in present)
                code = f"{code}.movedim(({order}), ({', '.join(str(k - len(present)) for k in range(len(present)))}))"
        for k, symbol in reversed(list(enumerate(axes))):
            if symbol not in value.axes:
                behind = len(axes) - 1 - k
                code = f"{code}.unsqueeze({-1 - behind})"
        return code

    def _grouped(self, values: Iterable[tuple[Value, bool]]) -> list[list[tuple[Value, bool]]]:
        """By their axes, few axes first, so that small tensors are combined before they meet large ones."""
        groups: dict[frozenset[Symbol], list[tuple[Value, bool]]] = {}
        for value, flag in values:
            groups.setdefault(frozenset(value.axes), []).append((value, flag))
        ordered = sorted(groups.values(), key=lambda g: (len(g[0][0].axes), min(v.code for v, _ in g)))
        return [sorted(g, key=lambda pair: (pair[1], pair[0].number, pair[0].code)) for g in ordered]

    def _sum_of(self, values: Sequence[Value], negative: Sequence[bool]) -> Value:
        numbers = [(v, n) for v, n in zip(values, negative, strict=True) if v.number]
        if len(numbers) == len(values):
            return Value("(" + "".join(f" {'-' if n else '+'} {v.code}" for v, n in numbers).strip(" +") + ")", number=True)
        groups = self._grouped([(v, n) for v, n in zip(values, negative, strict=True) if not v.number])
        if numbers:
            groups[0] = [*groups[0], *numbers]
        partial: list[tuple[Value, bool]] = []
        for k, group in enumerate(groups):
            part = sorted([*partial, *group], key=lambda pair: (pair[1], pair[0].number, pair[0].code))
            axes = self._union([v for v, _ in part])
            flip = all(n for _, n in part) and k < len(groups) - 1
            fused = self._fused(part, axes)
            if fused is not None:
                partial = [(Value(self._lines.name(fused), axes), False)]
                continue
            code = "".join((" - " if n != flip else " + ") + self._aligned(v, axes) for v, n in part)
            code = code[3:] if code.startswith(" + ") else f"-{code[3:]}"
            partial = [(Value(self._lines.name(code) if len(part) > 1 or part[0][1] != flip else part[0][0].code, axes), flip)]
        return partial[0][0]

    def _fused(self, part: Sequence[tuple[Value, bool]], axes: Sequence[Symbol]) -> str | None:
        """x ± y z in one pass, where y z is large."""
        if len(part) != 2 or len(axes) < 2 or any(v.number for v, _ in part):
            return None
        for (one, negative), (other, minus) in (part, part[::-1]):
            if other.code in self._lines.products and tuple(other.axes) == tuple(axes) and not negative:
                first, second = self._lines.products[other.code]
                return f"torch.addcmul({self._aligned(one, axes)}, {first}, {second}{', value=-1' if minus else ''})"
        return None

    def _product(self, values: Sequence[Value], divisors: Sequence[Value] = ()) -> Value:
        pairs = [*((v, False) for v in values), *((v, True) for v in divisors)]
        numbers = [pair for pair in pairs if pair[0].number]
        groups = self._grouped([pair for pair in pairs if not pair[0].number])
        if not groups:
            return Value("(" + " * ".join([v.code for v, d in numbers if not d] or ["1"]) + "".join(f" / {v.code}" for v, d in numbers if d) + ")", number=True)
        groups[0] = [*numbers, *groups[0]]
        partial: list[tuple[Value, bool]] = []
        for group in groups:
            part = [*partial, *group]
            axes = self._union([v for v, _ in part])
            above = [self._aligned(v, axes) for v, d in part if not d]
            below = [self._aligned(v, axes) for v, d in part if d]
            if not above and len(below) == 1:
                code = f"{below[0]}.reciprocal()"
            else:
                code = " * ".join(above or ["1"]) + (f" / {below[0]}" if len(below) == 1 else f" / ({' * '.join(below)})" if below else "")
            partial = [(Value(self._lines.name(code), axes), False)]
            if len(above) == 2 and not below and not any(v.number for v, _ in part):
                self._lines.products[partial[0][0].code] = (above[0], above[1])
        return partial[0][0]

    def _tensor(self, value: Value) -> Value:
        return Value(self._lines.name(f"{self._like}.new_tensor(float({value.code}))")) if value.number else value

    def _fold(self, name: str, values: Sequence[Value]) -> Value:
        total = self._tensor(values[0])
        for value in map(self._tensor, values[1:]):
            axes = self._union([total, value])
            total = Value(self._lines.name(f"torch.{name}({self._aligned(total, axes)}, {self._aligned(value, axes)})"), axes)
        return total
