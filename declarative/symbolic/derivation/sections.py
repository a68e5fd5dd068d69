"""What a derivation says, section by section; every formula comes from the terms of the blocks."""

# sympy's annotations say Basic where only an Expr can be.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportIndexIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false, reportIncompatibleMethodOverride=false
from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import sympy
from sympy import Add, Expr, Indexed, Sum, Symbol
from sympy.printing.pretty.pretty_symbology import pretty_symbol

from declarative.symbolic.arrays import Array
from declarative.symbolic.closed_form import ClosedForm
from declarative.symbolic.derivation.display import Abbreviations, Rewriting, signed, total
from declarative.symbolic.derivation.notation import Notation
from declarative.symbolic.derivation.rendering import Formula, Part, Text
from declarative.symbolic.indices import Range
from declarative.symbolic.statement import Constraint
from declarative.symbolic.terms import Terms, on_diagonal

Lines = list[Text | Formula]


class StatementWriter:
    """The problem and its blocks; keeps every block by its name.

    Args:
        form: the closed form.
    """

    def __init__(self, form: ClosedForm) -> None:
        self.form, self.statement, self.b = form, form.statement, form.blocks
        self.indices = form.statement.indices
        self.notation = Notation(form)
        self.names = self.notation.names
        self.blocks: dict[str, Expr] = {}
        self.axes: dict[str, tuple[tuple[Symbol, ...], tuple[Symbol, ...]]] = {}
        self.by_constraints, self.by_directions = Rewriting(self.indices), Rewriting(self.indices)
        self._learn_constraints()

    # Letters

    def _letters(self, array: Array) -> list[str]:
        return [s.name for s in array.indices]

    def _free(self, c: Constraint) -> list[str]:
        return self._letters(c.multipliers)

    def _named(self, *groups: tuple[Sequence[Symbol], Sequence[str]]) -> tuple[dict[Symbol, Symbol], list[list[Symbol]]]:
        names = self.names.named(groups)
        return names, [[names[s] for s in symbols] for symbols, _ in groups]

    def _range(self, symbols: Sequence[Symbol], names: dict[Symbol, Symbol], lead: str = "for ") -> tuple[Part, ...]:
        parts: list[Part] = []
        for s in symbols:
            over: Range = self.indices.ranges[s]
            parts += [", " if parts else lead, names[s], " = ", over.lower, " … ", over.upper]
        return tuple(parts)

    def _keep(self, key: str, e: Expr, names: dict[Symbol, Symbol], groups: Sequence[Sequence[Symbol]]) -> None:
        self.blocks[key] = self.names.shown(e, names)
        rows, columns = (tuple(groups[k]) if k < len(groups) else () for k in (0, 1))
        self.axes[key] = rows, columns

    def _show(self, e: Expr, names: dict[Symbol, Symbol]) -> Expr:
        return self.names.shown(self.abbreviations(e), names)

    @cached_property
    def abbreviations(self) -> Abbreviations:
        """Names for sums that come again and again."""
        blocks: list[Terms] = [*self.b.gradient, *self.b.hessian.values()]
        blocks += [self.b.mixed(a, k) for a in range(len(self.b.rows)) for k in range(len(self.b.given))]
        blocks += [self.b.constraint(c, k) for c in range(len(self.statement.constraints)) for k in range(len(self.b.given))]
        taken = self.notation.taken | {s.name for a in self.statement.arrays.values() for s in a.indices}
        return Abbreviations([t.coefficient for terms in blocks for t in terms], self.names, self.indices, taken)

    def _learn_constraints(self) -> None:
        """Σ … = rest, of every equation that is one sum of the variable; Σ … u = 0, likewise."""
        variables = {v.label for v in self.statement.variables}
        for k, c in enumerate(self.statement.constraints):
            if not c.equality:
                continue
            inside = [t for t in Add.make_args(c.expression) if t.free_symbols & variables]
            rest = c.expression - Add(*inside)
            factor, whole = inside[0].as_coeff_Mul()
            if len(inside) == 1 and isinstance(whole, Sum):
                self.by_constraints.add(whole, -rest / factor)
            rows = self.b.jacobian_product(k, self.form.directions)
            if len(rows) == 1 and rows[0].bound and not rows[0].guards:
                e = total(rows, self.indices).as_coeff_Mul()[1]
                if isinstance(e, Sum):
                    self.by_directions.add(e, sympy.S.Zero)

    # The statement

    def problem(self) -> Lines:
        """f, the constraints, shapes and constants."""
        s, n = self.statement, self.notation
        variables = ", ".join(str(v.label) for v in s.variables)
        tex = ", ".join(sympy.latex(v.label) for v in s.variables)
        lines: Lines = [Formula((n.special(f"minimise over {variables}", rf"\min_{{{tex}}}"), self.names.shown(s.objective, {})), relation="")]
        if s.constraints:
            lines.append(Text(("such that",)))
        for k, c in enumerate(s.constraints):
            names, _ = self._named((c.free, self._free(c)))
            left, right = self._sides(c.expression)
            note = (*self._range(c.free, names), *((f" ({k + 1})" if c.free else f"({k + 1})",) if n.several[1] else ()))
            lines.append(Formula((self.names.shown(left, names), self.names.shown(right, names)), note, "=" if c.equality else "≤"))
        lines.append(Text(("Variable: ", *self._shapes(s.variables), ". Inputs: ", *self._shapes(s.inputs), ".", *self._constants())))
        return lines

    def _sides(self, e: Expr) -> tuple[Expr, Expr]:
        variables = {v.label for v in self.statement.variables}
        left = [t for t in Add.make_args(e) if t.free_symbols & variables]
        return Add(*left), Add(*left) - e

    def _shapes(self, arrays: Iterable[Array]) -> list[Part]:
        parts: list[Part] = []
        for a in arrays:
            parts += [*([", "] if parts else []), a.label, *([" of shape ("] if a.axes else [" (a number)"])]
            for k, axis in enumerate(a.axes):
                parts += [", " if k else "", axis.size]
            parts += [",)" if len(a.axes) == 1 else ")"] if a.axes else []
        return parts

    def _constants(self) -> list[Part]:
        parts: list[Part] = []
        for label, value in self.statement.numbers.items():
            parts += [", " if parts else " Constants: ", label, " = ", sympy.Float(value) if value != int(value) else sympy.Integer(int(value))]
        if self.statement.constants:
            parts += [*([", "] if parts else [" Constants: "]), *self._shapes(self.statement.constants)]
        return [*parts, "."] if parts else []

    def lagrangian(self) -> Lines:
        """f + νᵀh + μᵀg"""
        self._keep("L", self.b.lagrangian, {}, ())
        if not self.statement.constraints:
            return []
        lines: Lines = [Formula((self._lagrangian_name, self.blocks["L"]))]
        parts: list[Part] = []
        for k, c in enumerate(self.statement.constraints):
            names, _ = self._named((c.free, self._free(c)))
            multiplier = self.names.shown(c.multipliers.at(c.free), names)
            parts += [
                ", " if parts else "With ",
                multiplier,
                *([] if c.equality else [" ", self.notation.said("≥ 0")]),
                f" for ({k + 1})" if self.notation.several[1] else " for the constraint",
            ]
        return [*lines, Text((*parts, "."))]

    @property
    def _lagrangian_name(self) -> Expr:
        return self.notation.special("ℒ", r"\mathcal{L}") if self.statement.constraints else self.notation.special("f", "f")

    def gradient(self) -> Lines:
        """∇_y L"""
        lines: Lines = []
        letter = "ℒ" if self.statement.constraints else "f"
        tex = r"\mathcal{L}" if self.statement.constraints else "f"
        for k, (v, p) in enumerate(zip(self.statement.variables, self.b.rows, strict=True)):
            names, groups = self._named((p, self._letters(v)))
            e = total(self.b.gradient[k], self.indices)
            self._keep(named_block("∇L", *self.notation.of_variable(k)), e, names, groups)
            left = self.notation.special(f"∂{letter}/∂{plain_name(v)}{{}}", rf"\frac{{\partial {tex}}}{{\partial {tex_name(v)}{{}}}}", groups)
            lines.append(Formula((left, self._show(e, names), sympy.S.Zero)))
        defined: Lines = []
        for name, e in self.abbreviations.defined:
            symbols = name.indices if isinstance(name, Indexed) else ()
            letters = self.names.letters.get(name.base.label, ()) if isinstance(name, Indexed) else ()
            names, _ = self._named((symbols, letters))
            defined.append(Formula((self.names.shown(name, names), self.names.shown(e, names)), ("for short",)))
        return [*lines, *defined]

    # H

    def hessian(self) -> Lines:
        """H, its structure, W and the low-rank factors."""
        s, structure = self.statement, self.form.structure
        formulas: Lines = []
        zero: list[Part] = []
        for (a, q), terms in self.b.hessian.items():
            names, groups = self._named((self.b.rows[a], self._letters(s.variables[a])), (self.b.columns[q], self._letters(s.variables[q])))
            labels = (*self.notation.of_variable(a), *self.notation.of_variable(q))
            e = total(terms, self.indices)
            self._keep(named_block("H", *labels), e, names, groups)
            if terms:
                formulas.append(Formula((self.notation.block("H", groups, labels=labels), self._show(e, names))))
            else:
                zero += [", " if zero else "Zero: ", self.notation.block("H", (), labels=labels)]
        letter = self.notation.said("H")
        single = len(s.variables) == 1 and not s.variables[0].axes
        if structure.kind == "dense":
            lines: Lines = [Text((letter, " is dense: ", *self._obstacle(), *([] if self._couples else [" prevents more structure"]), "."))]
        elif structure.kind == "zero":
            return [Text((letter, " is zero: nothing here is of second order in the variable."))]
        elif single:
            lines = [Text((letter, " is one number."))]
        else:
            lines = [Text((letter, f" is {structure.words}{', and constant' if structure.constant and structure.kind != 'identity' else ''}."))]
        lines += formulas
        if zero:
            lines.append(Text((*zero, ".")))
        if any(t.deltas for terms in self.b.hessian.values() for t in terms):
            lines.append(
                Text(
                    (
                        "Rows have the letters of the variable, columns the same with a prime; ",
                        self.notation.said("δ"),
                        " is 1 where its two indices are equal, and 0 elsewhere.",
                    )
                )
            )
        return lines + self._inverse() + self._factors()

    @property
    def _couples(self) -> bool:
        return " couples " in self.form.structure.obstacle or not self.form.structure.obstacle.startswith("the term")

    def _obstacle(self) -> list[Part]:
        """The term that prevents structure, in the user's letters."""
        told = self.form.structure.obstacle
        for (a, q), terms in self.b.hessian.items():
            for t in terms:
                text = sympy.sstr(t.expression(self.indices))
                if f"the term {text}" in told:
                    names, _ = self._named(
                        (self.b.rows[a], self._letters(self.statement.variables[a])), (self.b.columns[q], self._letters(self.statement.variables[q]))
                    )
                    before, after = told.split(text, 1)
                    return [before, self._show(total([t], self.indices), names), after]
        return [told]

    @property
    def is_diagonal(self) -> bool:
        """Whether H is."""
        return self.form.structure.kind in ("diagonal", "identity", "scaled identity")

    def _weight(self, k: int) -> Expr:
        """W of a variable, of its rows' indices."""
        if self.form.inverse is not None:
            return signed(self.form.inverse[k][0].coefficient)
        if len(self.statement.variables) == 1:
            return 1 / total(self.form.structure.diagonal, self.indices)
        return 1 / total([on_diagonal(t, self.b.columns[k]) for t in self.b.hessian[k, k]], self.indices)

    def _inverse(self) -> Lines:
        if not self.is_diagonal:
            return []
        lines: Lines = []
        for k, v in enumerate(self.statement.variables):
            names, groups = self._named((self.b.rows[k], self._letters(v)))
            e = self._weight(k)
            self._keep(named_block("W", *self.notation.of_variable(k)), e, names, groups)
            if self.form.structure.kind != "identity":
                lines.append(Formula((self.names.shown(self.notation.weights[k].at(self.b.rows[k]), names), self._show(e, names)), ("its inverse",)))
        return lines

    def _factor_names(self, k: int, bound: Sequence[Symbol]) -> tuple[dict[Symbol, Symbol], list[list[Symbol]]]:
        letters = [self.names.wanted(s, self.form.structure.factors[k].left * self.form.structure.factors[k].right)[0] for s in bound]
        return self._named((self.b.rows[0], self._letters(self.statement.variables[0])), (bound, letters))

    def _factors(self) -> Lines:
        structure, lines = self.form.structure, []
        if structure.kind != "diagonal + low rank":
            return []
        rows, columns = self.b.rows[0], self.b.columns[0]
        several = len(structure.factors) > 1
        names, groups = self._named((rows, self._letters(self.statement.variables[0])))
        parts: list[str] = []
        if structure.diagonal:
            lines.append(Formula((self.notation.block("D", groups), self._show(total(structure.diagonal, self.indices), names))))
            parts.append("diag(D)")
        for k, f in enumerate(structure.factors):
            names, groups = self._factor_names(k, f.bound)
            right = f.right.xreplace(dict(zip(columns, rows, strict=True)))
            labels = (str(k + 1),) if several else ()
            for role, e in (("E", f.left), ("F", right)):
                lines.append(Formula((self.notation.block(role, groups, labels=labels), self._show(e, names))))
            mark = f"_{k + 1}" if several else ""
            parts.append(f"E{mark} F{mark}ᵀ")
        return [Text((self.notation.said(f"H = {' + '.join(parts)}"), " with")), *lines]

    # A, B and C

    def jacobian(self) -> Lines:
        """A of every family."""
        lines: Lines = []
        for (k, q), terms in self.b.jacobian.items():
            c, v = self.statement.constraints[k], self.statement.variables[q]
            names, groups = self._named((c.free, self._free(c)), (self.b.columns[q], self._letters(v)))
            labels = self.notation.of_variable(q)
            e = total(terms, self.indices)
            self._keep(named_block(f"A[{k}", *labels, closed=True), e, names, groups)
            left = self.notation.block("A", groups, k, labels)
            lines.append(Formula((left, self._show(e, names)), tuple(self._words(terms, groups, names, self.b.columns[q]))))
        if self.form.dropped is not None:
            c = self.statement.constraints[self.form.dropped]
            names, _ = self._named((c.free, self._free(c)))
            where: list[Part] = [p for s in c.free for p in (", ", names[s], " = ", self.indices.ranges[s].upper)]
            told = f"The sum of all of (1) is the sum of all of (2): the last equation of ({self.form.dropped + 1})"
            lines.append(Text((told, *where, ", follows from the others and is left out.")))
        if any(not c.equality for c in self.statement.constraints):
            lines.append(Text(("Rows of inequalities that are not active (where the constraint is less than 0) are left out.",)))
        return lines

    def _words(self, terms: Terms, groups: Sequence[Sequence[Symbol]], names: dict[Symbol, Symbol], columns: Sequence[Symbol]) -> list[Part]:
        """Identity, incidence, constant: what a block is."""
        if not terms:
            return ["zero"]
        rows = {s for s in names if names[s] in groups[0]}
        used = {s for t in terms for s in t.coefficient.free_symbols}
        arrays, variables = set(self.statement.arrays), {v.label for v in self.statement.variables}
        if len(terms) == 1 and terms[0].coefficient in (1, -1) and not terms[0].bound and not terms[0].guards:
            sign = "" if terms[0].coefficient == 1 else "minus "
            pairs = {frozenset(d) for d in terms[0].deltas}
            paired = {s for s in columns if any(frozenset((s, r)) in pairs for r in rows)}
            if len(pairs) == len(paired) == len(rows):
                rest = [s for s in columns if s not in paired]
                if not rest:
                    return [f"{sign}the identity"] if columns else []
                return [f"{sign}an incidence matrix" if rows else f"a row of {'ones' if not sign else 'minus ones'}"]
        if not used & arrays:
            return ["constant"]
        return ["does not depend on the variable"] if not used & variables else []

    def mixed(self) -> Lines:
        """B and C for inputs and constants."""
        lines: Lines = []
        zero: list[Part] = []
        families = self.statement.constraints
        for a, v in enumerate(self.statement.variables):
            for k, x in enumerate(self.b.wanted):
                self._pair("B", None, self.notation.of_variable(a), self.b.mixed(a, k), (self.b.rows[a], self._letters(v)), k, x, lines, zero)
        for c, family in enumerate(families):
            for k, x in enumerate(self.b.wanted):
                self._pair("C", c, (), self.b.constraint(c, k), (family.free, self._free(family)), k, x, lines, zero)
        if zero:
            lines.append(Text((*zero, ".")))
        return lines

    def _pair(
        self,
        role: str,
        family: int | None,
        owner: tuple[str, ...],
        terms: Terms,
        rows: tuple[Sequence[Symbol], Sequence[str]],
        k: int,
        x: Array,
        lines: Lines,
        zero: list[Part],
    ) -> None:
        names, groups = self._named(rows, (self.b.given[k], self._letters(x)))
        labels = (*owner, str(x.label))
        first = (str(family),) if family is not None and self.notation.several[1] else ()
        e = total(terms, self.indices)
        self._keep(named_block(role, *first, *labels), e, names, groups)
        left = self.notation.block(role, groups, family, labels)
        if terms:
            lines.append(Formula((left, self._show(e, names)), tuple(self._words(terms, groups, names, self.b.given[k]))))
        else:
            zero += [", " if zero else "Zero: ", left.base.label if isinstance(left, Indexed) else left]


def named_block(name: str, *labels: str, closed: bool = False) -> str:
    """H[w, b]: the name of a block in `Derivation.blocks`; closed: the name has its bracket already."""
    if closed:
        return ", ".join([name, *labels]) + "]"
    return f"{name}[{', '.join(labels)}]" if labels else name


def plain_name(a: Array) -> str:
    """γ for gamma."""
    return pretty_symbol(str(a.label))


def tex_name(a: Array) -> str:
    """The same in LaTeX, so that an index may follow."""
    name = sympy.latex(a.label)
    return f"{{{name}}}" if a.axes and ("_" in name or "^" in name) else name
