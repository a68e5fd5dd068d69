"""The derivation of a node's gradient, as one would put it into a paper's appendix."""

# sympy annotates most results as Basic.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

from functools import cached_property
from pathlib import Path

from sympy import Expr, Symbol

from declarative.symbolic.closed_form import ClosedForm
from declarative.symbolic.derivation.gradient import Writer
from declarative.symbolic.derivation.rendering import Document, Section


class Derivation:
    """Problem, Lagrangian, ∇L, H, A, B, C, S and the gradient, in the user's symbols and for every size.

    `print` shows it as text, a notebook as formulas.

    Args:
        form: the closed form of a node, `node.form`.

    Example:
        >>> import sympy
        >>> from declarative.symbolic import SymbolicNode
        >>> x, y = sympy.symbols("x y")
        >>> node = SymbolicNode(objective=y**4 / 4 + y**2 / 2 - x * y, variable=y, inputs=(x,))
        >>> node.derivation().blocks["H"]
        3*y**2 + 1

    Source: math.md §2, §3.
    """

    def __init__(self, form: ClosedForm) -> None:
        self.form = form

    @cached_property
    def _writer(self) -> tuple[Writer, list[Section]]:
        writer = Writer(self.form)
        return writer, writer.sections()

    @property
    def sections(self) -> list[Section]:
        """What is said: headings, sentences and formulas."""
        return self._writer[1]

    @property
    def blocks(self) -> dict[str, Expr]:
        """Every block by its name: "L", "∇L", "H", "W" (where H is diagonal), "A[0]" (a family), "B[M]", "C[r]" ("C[0, r]" where there are several
        families), "S[0, 0]", "u" (where it is explicit), "gradient[M]". Where y has several parts these are named first: "H[w, b]", "A[0, w]", "B[w, x]".
        """
        return self._writer[0].blocks

    @property
    def indices(self) -> dict[str, tuple[tuple[Symbol, ...], tuple[Symbol, ...]]]:
        """The indices of rows and columns of each of the blocks."""
        return self._writer[0].axes

    @cached_property
    def _document(self) -> Document:
        writer, sections = self._writer
        return Document(sections, writer.notation.styles, writer.names.natural)

    def __str__(self) -> str:
        return self._document.text()

    def __repr__(self) -> str:
        return str(self)

    def latex(self) -> str:
        """A LaTeX body: headings, sentences and align* environments; needs amsmath."""
        return self._document.latex()

    def markdown(self) -> str:
        """Markdown with formulas between dollars, as notebooks show it."""
        return self._document.markdown()

    def _repr_markdown_(self) -> str:
        return self.markdown()

    def save(self, path: str | Path) -> Path:
        """Write Markdown (.md), LaTeX (.tex) or text (.txt), in UTF-8.

        Raises:
            ValueError: another suffix.
        """
        path = Path(path)
        writers = {".md": self.markdown, ".tex": self.latex, ".txt": lambda: str(self) + "\n"}
        if path.suffix not in writers:
            raise ValueError(f"a derivation is saved as {', '.join(writers)}, got {path.name!r}")
        path.write_text(writers[path.suffix](), encoding="utf-8")
        return path
