"""Sections of text and formulas as Markdown, LaTeX and unicode text."""

# sympy's annotations say Basic where only an Expr can be.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportIndexIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false, reportIncompatibleMethodOverride=false
from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sympy import Expr, Symbol

from declarative.symbolic.derivation.printers import FormulaPrinter, Style, UnicodePrinter

Part = str | Expr
_WIDTH = 100


@dataclass(frozen=True)
class Text:
    """A sentence, with expressions in it."""

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Formula:
    """left = right = … , and what is to be said of it.

    Args:
        sides: the expressions.
        note: for which indices, or why.
        relation: "=", "≤", or "" where the sides only stand side by side.
    """

    sides: tuple[Expr, ...]
    note: tuple[Part, ...] = ()
    relation: str = "="


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    lines: tuple[Text | Formula, ...]


_RELATIONS = {"=": "=", "≤": r"\leq", "≥": r"\geq", "": r"\quad"}


@dataclass(frozen=True)
class Document:
    """The renderers.

    Args:
        sections: what is said.
        styles, natural: as for the printers.
    """

    sections: Sequence[Section]
    styles: Mapping[Symbol, Style]
    natural: Mapping[str, tuple[Expr, Expr]]

    def text(self) -> str:
        """Unicode, 100 columns."""
        write = UnicodePrinter(self.styles, self.natural).text
        lines: list[str] = []
        for section in self.sections:
            lines += ["", section.title] if lines else [section.title]
            for line in section.lines:
                if isinstance(line, Text):
                    sentence = "".join(p if isinstance(p, str) else write(p) for p in line.parts)
                    lines += textwrap.wrap(sentence, _WIDTH, initial_indent="  ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
                    continue
                body = (f" {line.relation} " if line.relation else "   ").join(write(e) for e in line.sides)
                lines += _wrapped(body, "".join(p if isinstance(p, str) else write(p) for p in line.note))
        return "\n".join(lines)

    def latex(self) -> str:
        """Headings, sentences and align* environments."""
        return self._marked("\\subsection*{{{}}}", "\\begin{{align*}}\n{}\n\\end{{align*}}")

    def markdown(self) -> str:
        """With formulas between dollars."""
        return self._marked("## {}", "$$\n\\begin{{aligned}}\n{}\n\\end{{aligned}}\n$$")

    def _marked(self, heading: str, block: str) -> str:
        printer = FormulaPrinter(self.styles, self.natural)
        inline = lambda parts: "".join(p if isinstance(p, str) else f"${printer.text(p)}$" for p in parts)  # noqa: E731
        pieces: list[str] = []
        for section in self.sections:
            pieces.append(heading.format(section.title))
            rows: list[str] = []
            for line in (*section.lines, None):
                if isinstance(line, Formula):
                    rows.append(_row(line, printer))
                    continue
                if rows:
                    pieces.append(block.format(" \\\\\n".join(rows)))
                    rows = []
                if line is not None:
                    pieces.append(inline(line.parts))
        return "\n\n".join(pieces) + "\n"


def _wrapped(formula: str, note: str) -> list[str]:
    """Broken before signs; elsewhere only where there is no other way."""
    fixed, text, depth = "\N{NO-BREAK SPACE}", "", 0
    for k, c in enumerate(formula):
        depth += (c in "([{") - (c in ")]}")
        text += fixed if c == " " and (depth or formula[k + 1] not in "+−=≤") else c
    if note:
        text += f"{fixed * 2} {note.replace(' ', fixed)}"

    def broken(line: str, indent: str) -> list[str]:
        return textwrap.wrap(line, _WIDTH, break_long_words=False, break_on_hyphens=False, initial_indent=indent, subsequent_indent=" " * 12)

    found: list[str] = []
    for line in broken(text, " " * 6):
        plain = line.replace(fixed, " ")
        found += [plain] if len(plain) <= _WIDTH else broken(plain.strip(), " " * (len(plain) - len(plain.lstrip())))
    return found


def _row(line: Formula, printer: FormulaPrinter) -> str:
    note = "".join(rf"\text{{{p}}}" if isinstance(p, str) else printer.text(p) for p in line.note)
    first, *others = line.sides
    text = f"{printer.text(first)} &" if others else "& " + _broken(first, printer, r" \\" + "\n& \\quad")
    for k, e in enumerate(others):
        text += (" \\\\\n&" if k and len(text) > 200 else "") + f" {_RELATIONS[line.relation]} " + _broken(e, printer, " \\\\\n& \\quad")
    return text + (rf" \qquad {note}" if note else "")


def _broken(e: Expr, printer: FormulaPrinter, mark: str) -> str:
    """A long sum on several lines."""
    lines: list[str] = [""]
    for term in printer.terms(e):
        if lines[-1] and len(lines[-1]) + len(term) > 180:
            lines.append("")
        lines[-1] += term
    return mark.join(lines)
