"""What a name of the statement stands for at run time: a tensor with one axis for each of its indices."""

# sympy annotates most results as Basic.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
from __future__ import annotations

from dataclasses import dataclass

import sympy
from sympy import Expr, IndexedBase, Symbol

from declarative.symbolic.indices import Range


@dataclass(frozen=True)
class Array:
    """A tensor (…, *sizes).

    Args:
        label: the symbol that stands for it; `label[i, j]` where it has axes.
        axes: what each of its indices runs over.
        code: its name in generated code.
        indices: the names of its indices as the user wrote them.
    """

    label: Symbol
    axes: tuple[Range, ...]
    code: str
    indices: tuple[Symbol, ...] = ()

    def at(self, indices: tuple[Symbol, ...]) -> Expr:
        """The entry at these indices."""
        return IndexedBase(self.label)[indices] if self.axes else self.label

    @property
    def shape(self) -> str:
        """In the user's sizes."""
        sizes = [sympy.sstr(axis.size) for axis in self.axes]
        return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"

    def __str__(self) -> str:
        return f"{self.label}[{', '.join(map(str, self.indices))}]" if self.axes else str(self.label)
