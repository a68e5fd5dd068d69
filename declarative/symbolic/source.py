"""Functions of torch code: one for each block, compiled when it is first asked for."""

# sympy annotates most results as Basic.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

import linecache
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy
import torch
from sympy import Dummy, Expr, Symbol
from torch import Tensor

from declarative.symbolic.arrays import Array
from declarative.symbolic.lines import Lines
from declarative.symbolic.lowering import Lowering
from declarative.symbolic.statement import Statement
from declarative.symbolic.terms import Terms

Output = tuple[Terms | Expr, Sequence[Symbol]]
"""A result: its terms (or an expression without indices), and the indices of its axes."""


@dataclass(frozen=True)
class Wanted:
    """A function to be written.

    Args:
        name: of the function.
        outputs: what it returns.
        note: the formulas, for people.
        extra: arrays that it takes besides the statement's.
    """

    name: str
    outputs: Sequence[Output]
    note: str
    extra: Sequence[Array] = ()


@dataclass(frozen=True)
class Code:
    """One function.

    Args:
        name: of the function.
        arguments: the arrays that it takes, in order.
        text: its source.
        shared: values that it returns besides its results, for the function that follows it.
    """

    name: str
    arguments: tuple[Array, ...]
    text: str
    shared: tuple[Array, ...] = ()

    @cached_property
    def function(self) -> Callable[..., Any]:
        """Compiled."""
        filename = f"<declarative.symbolic {self.name} {id(self)}>"
        # So that a traceback shows the line.
        linecache.cache[filename] = (len(self.text), None, self.text.splitlines(keepends=True), filename)
        scope: dict[str, Any] = {"torch": torch}
        exec(compile(self.text, filename, "exec"), scope)
        return scope[self.name]

    def __getstate__(self) -> dict[str, Any]:
        """Without the compiled function, which is made anew."""
        return {name: value for name, value in vars(self).items() if name != "function"}

    def __call__(self, values: Mapping[Symbol, Tensor]) -> tuple[Tensor, ...]:
        """The results, one for each output."""
        results = self.function(*[values[a.label] for a in self.arguments])
        return results if isinstance(results, tuple) else (results,)


def write(statement: Statement, wanted: Wanted) -> Code:
    """The function."""
    arrays = statement.arrays | {a.label: a for a in wanted.extra}
    lines = Lines()
    results = _lower(statement, wanted, arrays, lines)
    return _function(statement, wanted, arrays, lines.needed(results), results)


def write_two(statement: Statement, first: Wanted, second: Wanted) -> tuple[Code, Code]:
    """Two functions, called one after the other: what both compute, the first computes and hands on."""
    arrays = statement.arrays | {a.label: a for a in (*first.extra, *second.extra)}
    lines = Lines()
    results = _lower(statement, first, arrays, lines)
    count = len(lines.written)
    later = _lower(statement, second, arrays, lines)
    names = {line.split(" = ", 1)[0] for line in lines.written[:count]}
    rest = [line for line in lines.needed(later) if line.split(" = ", 1)[0] not in names]
    handed = sorted(names & _words([*rest, *later]), key=lambda name: int(name[1:]))
    shared = tuple(Array(Dummy(name), (), name) for name in handed)
    one = _function(statement, first, arrays, Lines(lines.written[:count]).needed([*results, *handed]), [*results, *handed], shared)
    other = _function(statement, second, arrays | {a.label: a for a in shared}, rest, later)
    return one, other


def _lower(statement: Statement, wanted: Wanted, arrays: Mapping[Symbol, Array], lines: Lines) -> list[str]:
    results, like = [], statement.variables[0].code
    for terms, axes in wanted.outputs:
        lowering = Lowering(dict(arrays), statement.indices, lines, like, axes, numbers=statement.number_codes)
        results.append(lowering.terms(terms, axes) if isinstance(terms, list) else lowering.scalar(terms))
    return results


def _words(lines: Iterable[str]) -> set[str]:
    return set(re.findall(r"\w+", "\n".join(lines)))


def _function(
    statement: Statement, wanted: Wanted, arrays: Mapping[Symbol, Array], lines: Sequence[str], results: Sequence[str], shared: tuple[Array, ...] = ()
) -> Code:
    body = [*lines, f"return {', '.join(results)}"]
    words, like = _words(body), statement.variables[0]
    used = [a for a in arrays.values() if a.label not in statement.numbers and (a.code in words or a is like)]
    sizes, used = size_lines(words, used, arrays, statement)
    numbers = [f"{code} = {statement.numbers[s]!r}" for s, code in statement.number_codes.items() if code in words]
    note = wanted.note.replace("\\", "\\\\")
    doc = '    """' + note.replace("\n", "\n    ") + '\n    """' if "\n" in note else f'    """{note}"""'
    signature = f"def {wanted.name}({', '.join(a.code for a in used)}):"
    text = "\n".join([signature, doc, *(f"    {line}" for line in (*sizes, *numbers, *body))]) + "\n"
    return Code(wanted.name, tuple(used), text, shared)


def size_lines(words: set[str], used: list[Array], arrays: Mapping[Symbol, Array], statement: Statement) -> tuple[list[str], list[Array]]:
    """Lines that read the sizes off the arguments, and the arguments with those added that show what the others do not."""
    lines = []
    for symbol in [s for s in sorted(statement.sizes, key=str) if str(s) in words]:
        found = next(((a, k) for a in (*used, *arrays.values()) for k, axis in enumerate(a.axes) if (axis.size - symbol).is_Integer), None)
        if found is None:
            raise ValueError(f"no array shows how large {symbol} is")
        array, k = found
        if array not in used:
            used = [*used, array]
        offset = array.axes[k].size - symbol
        lines.append(f"{symbol} = {array.code}.shape[{k - len(array.axes)}]{'' if offset == 0 else f' - ({sympy.sstr(offset)})'}")
    return lines, used
