"""The letters of a derivation: H, A, B, C, S, W, u, v, w, unless the user's own symbols have taken them."""

# sympy's annotations say Basic where only an Expr can be.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportIndexIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false, reportIncompatibleMethodOverride=false
from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from sympy import Expr, IndexedBase, Symbol, latex
from sympy.printing.pretty.pretty_symbology import pretty_symbol

from declarative.symbolic.arrays import Array
from declarative.symbolic.closed_form import ClosedForm
from declarative.symbolic.derivation.display import Names
from declarative.symbolic.derivation.printers import Style

_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_OTHERS = {"u": "sph", "v": "gce", "w": "qzk", "t": "τθ"}
_LATEX = {
    "ν": r"\nu",
    "μ": r"\mu",
    "τ": r"\tau",
    "θ": r"\theta",
    "δ": r"\delta",
    "diag": r"\operatorname{diag}",
    "⁻¹": "^{-1}",
    "ᵀ": r"^{\top} ",
    "−": "-",
    "≥": r"\geq",
}


class Notation:
    """Names of blocks and vectors, and how they are written.

    Args:
        form: the closed form.
    """

    def __init__(self, form: ClosedForm) -> None:
        statement = form.statement
        self._form = form
        self.styles: dict[Symbol, Style] = {}
        everything = (*statement.inputs, *statement.constants, *statement.variables)
        self.taken = {str(a.label) for a in everything} | {str(s) for s in statement.numbers} | {str(s) for s in statement.sizes}
        self.taken |= {s.name for a in (*everything, *(c.multipliers for c in statement.constraints)) for s in a.indices}
        self._letters: dict[str, str] = {}
        self.taken |= {self.letter(role) for role in "uvwt"}
        self.several = len(statement.variables) > 1, len(statement.constraints) > 1
        self.cotangents = tuple(self._vector("v", v) for v in statement.variables)
        """v, an array for each variable."""
        complement = form.complement
        weights = complement.weights if complement else tuple(self._vector("W", v) for v in statement.variables)
        self.weights: tuple[Array, ...] = weights
        """W, likewise."""
        self.names = Names(statement.indices, (*everything, *(c.multipliers for c in statement.constraints)))
        for a in (*form.directions, *form.rows, *self.cotangents, *self.weights):
            self.names.letters[a.label] = tuple(s.name for s in a.indices)
        for k, v in enumerate(statement.variables):
            for letter, array in (("u", form.directions[k]), ("v", self.cotangents[k]), ("W", weights[k])):
                self.styles[array.label] = self._style(letter, None, (str(v.label),) if self.several[0] else ())
        for k, c in enumerate(statement.constraints):
            self.styles[c.multipliers.label] = self._style("ν" if c.equality else "μ", k, ())
            self.styles[form.rows[k].label] = self._style("w", k, ())

    def _vector(self, letter: str, like: Array) -> Array:
        label = f"{self.letter(letter)}_{like.label}" if self.several[0] else self.letter(letter)
        return Array(Symbol(label), like.axes, letter, like.indices)

    def letter(self, role: str) -> str:
        """The letter for a role, or one that stands for it."""
        if role not in self._letters:
            found = role
            if role in self.taken:
                others = chr(ord("𝐀") + ord(role) - ord("A")) if role.isupper() else _OTHERS.get(role, "")
                found = next((other for other in others if other not in self.taken), f"{role}*")
            self._letters[role] = found
        return self._letters[role]

    def _style(self, role: str, family: int | str | None, labels: Sequence[str]) -> Style:
        letter = self.letter(role)
        plain = _LATEX.get(letter, letter)
        tex = rf"\mathbf{{{role}}}" if "𝐀" <= letter[0] <= "𝐙" else plain
        number = family if isinstance(family, str) else "" if family is None or not self.several[1] else str(family + 1)
        text = letter + (f"⁽{number.translate(_RAISED)}⁾" if number else "") + (f"[{','.join(str(pretty_symbol(x)) for x in labels)}]" if labels else "")
        above = ",".join([*([f"({number})"] if number else []), *(latex(Symbol(x)) for x in labels)])
        return Style(text + "{}", f"{tex}^{{{above}}}{{}}" if above else f"{tex}{{}}")

    def said(self, formula: str) -> Expr:
        """A formula of whole matrices and vectors, `S w = A W v`, in the letters that they have here."""
        text, tex = "", ""
        for part in re.findall(r"diag|⁻¹|.", formula):
            letter = self.letter(part) if len(part) == 1 and part.isascii() and part.isalpha() else part
            text += letter
            tex += _LATEX.get(part) or (self._style(part, None, ()).latex.replace("{}", "") if letter != part else part)
        return self.special(text, tex.strip())

    def block(self, role: str, groups: Iterable[Sequence[Expr]], family: int | str | None = None, labels: Sequence[str] = ()) -> Expr:
        """H[i, j; k, l] and the like: a name with indices of rows and of columns."""
        symbol = Symbol(f"{role}|{family}|{','.join(labels)}|")
        self.styles[symbol] = self._style(role, family, labels)
        return self._at(symbol, groups)

    def special(self, text: str, tex: str, groups: Iterable[Sequence[Expr]] = ()) -> Expr:
        """Any other left-hand side; {} stands for the indices."""
        symbol = Symbol(f"{text}|")
        self.styles[symbol] = Style(text, tex)
        return self._at(symbol, groups)

    @staticmethod
    def _at(symbol: Symbol, groups: Iterable[Sequence[Expr]]) -> Expr:
        indices: list[Expr] = []
        for group in groups:
            indices += [Symbol(",")] if indices and group else []
            indices += group
        return IndexedBase(symbol)[tuple(indices)] if indices else symbol

    def of_variable(self, k: int) -> tuple[str, ...]:
        """Its name in brackets, where there are several."""
        return (str(self._form.statement.variables[k].label),) if self.several[0] else ()
