"""The Schur complement of H and the gradient, section by section."""

# sympy's annotations say Basic where only an Expr can be.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportReturnType=false, reportIndexIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false, reportIncompatibleMethodOverride=false
from __future__ import annotations

from collections.abc import Sequence

import sympy
from sympy import Add, Expr, Indexed, Mul, Sum, Symbol

from declarative.symbolic.arrays import Array
from declarative.symbolic.derivation.display import total
from declarative.symbolic.derivation.rendering import Formula, Part, Section, Text
from declarative.symbolic.derivation.sections import Lines, StatementWriter, named_block, plain_name, tex_name
from declarative.symbolic.indices import Indices
from declarative.symbolic.terms import Term, Terms, on_diagonal, product

_DIAG = sympy.Function("diag")


class Writer(StatementWriter):
    """All sections of a derivation.

    Args:
        form: the closed form.
    """

    def sections(self) -> list[Section]:
        """All of them, numbered."""
        lagrangian = "the Lagrangian" if self.statement.constraints else "the objective"
        parts: list[tuple[str, Lines]] = [
            ("Problem", self.problem()),
            ("Lagrangian", self.lagrangian()),
            ("Stationarity", self.gradient()),
            (f"The second derivative of {lagrangian} by the variable", self.hessian()),
            ("The derivative of the constraints by the variable", self.jacobian()),
            (f"The derivatives of stationarity{' and constraints' if self.statement.constraints else ''} by the inputs", self.mixed()),
            ("The Schur complement", self.complement()),
            ("The gradient", self.system() + self.pull_back()),
        ]
        return [Section(f"{k + 1}. {title}", tuple(lines)) for k, (title, lines) in enumerate(p for p in parts if p[1])]

    def _unweighted(self, e: Expr) -> Expr:
        """With W written out."""
        for k, w in enumerate(self.notation.weights):
            value, rows = self._weight(k), self.b.rows[k]
            if not w.axes:
                e = e.xreplace({w.label: value})
                continue
            e = e.replace(
                lambda x, w=w: isinstance(x, Indexed) and x.base.label == w.label,
                lambda x, value=value, rows=rows: value.xreplace(dict(zip(rows, x.indices, strict=True))),
            )
        return e

    def _written_out(self, terms: Terms) -> tuple[Expr, Expr, Expr]:
        """(with W, W written out, by the constraints)."""
        first = total(terms, self.indices)
        second = total([Term(self._unweighted(t.coefficient), t.bound, t.deltas, t.guards) for t in terms], self.indices)
        return first, second, self.by_constraints(second)

    def complement(self) -> Lines:
        """S, block by block."""
        found, families = self.form.complement, self.statement.constraints
        if found is None:
            return []
        said = self.notation.said
        transposed: list[Part] = []
        lines: Lines = [Text((said("S = A H⁻¹ Aᵀ"), " with the diagonal ", said("H⁻¹ = diag(W)"), ":"))]
        for k, c in enumerate(families):
            for j, other in enumerate(families):
                names, groups = self._named((c.free, self._free(c)), (found.columns[j], self._free(other)))
                sides = self._written_out(found.blocks[k, j])
                self._keep(f"S[{k}, {j}]", sides[2], names, groups)
                label = f"{k + 1}{j + 1}" if self.notation.several[1] else None
                if j < k:
                    first, second = (self.notation.block("S", (), family=f) for f in (label, f"{j + 1}{k + 1}"))
                    transposed += ["; " if transposed else "", first, " is the transpose of ", second]
                elif j == k and k in found.diagonal and c.free:
                    plain = self._written_out([on_diagonal(t, found.columns[k]) for t in found.blocks[k, k]])
                    lines.append(self._chain(self.notation.block("S", (), family=label), [_DIAG(self._show(e, names)) for e in plain], plain))
                else:
                    lines.append(self._chain(self.notation.block("S", groups, family=label), [self._show(e, names) for e in sides], sides))
        return [*lines, *([Text((*transposed, "."))] if transposed else [])]

    def _chain(self, left: Expr, shown: Sequence[Expr], sides: Sequence[Expr]) -> Formula:
        note = ("by the constraints",) if sides[2] != sides[1] else ()
        if self.form.inverse is None:
            # W has no short form: it stays a name.
            shown = shown[:1]
            note = ()
        return Formula((left, *dict.fromkeys(shown)), note)

    # The gradient

    def _applied(self, terms: Terms, array: Array, symbols: Sequence[Symbol]) -> Terms:
        return product(terms, [Term(array.at(tuple(symbols)))], symbols, self.indices)

    def system(self) -> Lines:
        """The equations of u and w, by the structure of H."""
        loss = self.notation.special("ℓ", r"\ell")
        parts: list[Part] = ["Let ", loss, " be the loss, and "]
        for k, v in enumerate(self.statement.variables):
            names, groups = self._named((self.b.rows[k], self._letters(v)))
            left = self.notation.special(f"∂ℓ/∂{plain_name(v)}{{}}", rf"\partial \ell / \partial {tex_name(v)}{{}}", groups)
            parts += [", " if k else "", self.names.shown(self.notation.cotangents[k].at(self.b.rows[k]), names), " = ", left]
        kind = self.form.structure.kind
        if self.form.complement is not None:
            lines = self._by_complement()
        elif self.is_diagonal:
            lines = self._direction(())
        elif kind == "diagonal + low rank" and self.form.structure.diagonal and not self.statement.constraints:
            lines = self._by_woodbury()
        else:
            lines = self._bordered()
        return [Text((*parts, ".")), *lines]

    def _by_complement(self) -> Lines:
        found, families = self.form.complement, self.statement.constraints
        if found is None:
            return []
        told = "w = S⁻¹ A W v, u = W (v − Aᵀw)" if found.kind == "diagonal" else "S w = A W v, u = W (v − Aᵀw)"
        lines: Lines = [Text((self.notation.said(told), ":"))]
        for k, c in enumerate(families):
            left = [t for j in range(len(families)) for t in self._applied(found.blocks[k, j], self.form.rows[j], found.columns[j])]
            right: Terms = []
            for q, w in enumerate(self.notation.weights):
                columns = self.b.columns[q]
                weighted = [Term(t.coefficient * w.at(columns), t.bound, t.deltas, t.guards) for t in self.b.jacobian[k, q]]
                right += self._applied(weighted, self.notation.cotangents[q], columns)
            choice = 2 if self.form.inverse is not None else 0
            first, second = _without_common(self._written_out(left)[choice], self._written_out(right)[choice], self.indices)
            names, _ = self._named((c.free, self._free(c)))
            if found.kind == "diagonal":
                plain = self._written_out([on_diagonal(t, found.columns[k]) for t in found.blocks[k, k]])[choice]
                below, above = _without_common(plain, self._written_out(right)[choice], self.indices)
                own = self.names.shown(self.form.rows[k].at(c.free), names)
                lines.append(Formula((own, self._show(above / below, names)), self._where(k, names)))
            else:
                lines.append(Formula((self._show(first, names), self._show(second, names)), self._where(k, names)))
        return [*lines, *self._left_out(), *self._direction(self.form.rows)]

    def _where(self, k: int, names: dict[Symbol, Symbol]) -> tuple[Part, ...]:
        """For which indices of a family."""
        c = self.statement.constraints[k]
        active = () if c.equality else (f"{' ' if c.free else ''}where {f'({k + 1})' if self.notation.several[1] else 'the constraint'} is active",)
        return (*self._range(c.free, names), *active)

    def _left_out(self) -> Lines:
        lines: Lines = []
        if self.form.dropped is not None:
            c = self.statement.constraints[self.form.dropped]
            names = {s: self.indices.ranges[s].upper for s in c.free}
            entry = self.form.rows[self.form.dropped].at(tuple(names.values()))
            lines.append(Text(("The equation that is left out stands with its multiplier: ", entry, " = 0.")))
        inactive = [k for k, c in enumerate(self.statement.constraints) if not c.equality]
        if inactive:
            parts: list[Part] = []
            for k in inactive:
                c = self.statement.constraints[k]
                names, _ = self._named((c.free, self._free(c)))
                parts += [", " if parts else "", self.names.shown(self.form.rows[k].at(c.free), names)]
            lines.append(Text((*parts, " = 0 where the constraint is not active.")))
        return lines

    def _direction(self, rows: Sequence[Array]) -> Lines:
        """u = W (v − Aᵀw)"""
        lines: Lines = []
        for k, v in enumerate(self.statement.variables):
            names, groups = self._named((self.b.rows[k], self._letters(v)))
            e = self.notation.cotangents[k].at(self.b.rows[k])
            if rows:
                moved = [t.renamed(dict(zip(self.b.columns[k], self.b.rows[k], strict=True))) for t in self.b.jacobian_transposed_product(k, rows)]
                e = e - total(moved, self.indices)
            weight = self.notation.weights[k].at(self.b.rows[k]) if self.form.inverse is None else self._weight(k)
            self._keep(named_block("u", *self.notation.of_variable(k)), self._weight(k) * e, names, groups)
            lines.append(Formula((self.names.shown(self.form.directions[k].at(self.b.rows[k]), names), self._show(weight * e, names))))
        return lines

    def _by_woodbury(self) -> Lines:
        """u = D⁻¹ (v − E t), (I + Fᵀ D⁻¹ E) t = Fᵀ D⁻¹ v"""
        structure, rows = self.form.structure, self.b.rows[0]
        said, several = self.notation.said, len(structure.factors) > 1
        inner, outside = said("(1 + Fᵀ diag(D)⁻¹ E) t = Fᵀ diag(D)⁻¹ v"), said("u = diag(D)⁻¹ (v − E t)")
        lines: Lines = [Text((said("H u = v"), " by Woodbury's formula, a system of the size of the rank: ", inner, ", ", outside, "."))]
        names, own = self._named((rows, self._letters(self.statement.variables[0])))
        result = self.names.shown(self.notation.cotangents[0].at(rows), names)
        weight = self.notation.block("D", own)
        for k, factor in enumerate(structure.factors):
            outer = self._limits(rows, own[0])
            names, (_, bound) = self._factor_names(k, factor.bound)
            mark = (str(k + 1),) if several else ()
            first = self.notation.block("t", (bound,), labels=mark)
            right = self.notation.block("F", (own[0], bound), labels=mark)
            left: Expr = first
            for j, other in enumerate(structure.factors):
                inner = [self.names._free([s.name.rstrip("'")], [*own[0], *bound]) for s in self._factor_names(j, other.bound)[1][1]]
                marked = (str(j + 1),) if several else ()
                body = right * self.notation.block("E", (own[0], inner), labels=marked) / weight
                whole = Sum(body, *outer) if outer else body
                left = left + _summed(whole * self.notation.block("t", (inner,), labels=marked), self._limits(other.bound, inner))
            value = self.names.shown(self.notation.cotangents[0].at(rows), dict(zip(rows, own[0], strict=True)))
            lines.append(Formula((left, _summed(right * value / weight, outer)), self._range(factor.bound, names)))
            again = self.notation.block("E", (own[0], bound), labels=mark) * first
            result = result - _summed(again, self._limits(factor.bound, bound))
        u = self.names.shown(self.form.directions[0].at(rows), dict(zip(rows, own[0], strict=True)))
        return [*lines, Formula((u, result / weight))]

    def _limits(self, symbols: Sequence[Symbol], shown: Sequence[Symbol]) -> list[tuple[Symbol, Expr, Expr]]:
        ranges = self.indices.ranges
        return [(s, ranges[x].lower, ranges[x].upper) for x, s in zip(symbols, shown, strict=True)]

    def _bordered(self) -> Lines:
        """H u + Aᵀw = v, A u = 0"""
        said, kind = self.notation.said, self.form.structure.kind
        how = {
            "banded": "a banded system",
            "block diagonal": "a system for each block",
            "Kronecker": "one matrix for all blocks",
            "diagonal + low rank": "by Woodbury's formula" if self.form.structure.diagonal else "a dense system",
        }.get(kind, "a dense system")
        told: tuple[Part, ...] = (said("H u = v"), f", {how}:")
        if self.statement.constraints:
            told = (said("H u + Aᵀw = v"), " and ", said("A u = 0"), f", {how}:")
            if kind not in ("dense", "zero"):
                how = f"by {how}" if how.startswith(("a ", "one ")) else how
                told = (*told[:3], ", by ", said("S = A H⁻¹ Aᵀ"), " and ", said("S w = A H⁻¹ v"), "; ", said("H⁻¹"), f" {how}:")
        lines: Lines = [Text(told)]
        for k, v_ in enumerate(self.statement.variables):
            p, q = self.b.rows[k], self.b.columns[k]
            names, _ = self._named((p, self._letters(v_)))
            terms = [*self.b.hessian_product(k, self.form.directions)]
            if self.statement.constraints:
                terms += [t.renamed(dict(zip(q, p, strict=True))) for t in self.b.jacobian_transposed_product(k, self.form.rows)]
            right = self.names.shown(self.notation.cotangents[k].at(p), names)
            lines.append(Formula((self._show(total(terms, self.indices), names), right), self._range(p, names)))
        for k, c in enumerate(self.statement.constraints):
            names, _ = self._named((c.free, self._free(c)))
            lines.append(
                Formula((self._show(total(self.b.jacobian_product(k, self.form.directions), self.indices), names), sympy.S.Zero), self._where(k, names))
            )
        return lines + self._left_out()

    def pull_back(self) -> Lines:
        """x̄ = −(Bᵀu + Cᵀw) for every input and constant."""
        said = self.notation.said
        lines: Lines = [Text(("Then ", said("−(Bᵀu + Cᵀw)" if self.statement.constraints else "−Bᵀu"), " for each input:"))]
        for k, x in enumerate(self.b.wanted):
            names, groups = self._named((self.b.given[k], self._letters(x)))
            terms = [Term(-t.coefficient, t.bound, t.deltas, t.guards) for t in self.b.pull_back(k, self.form.directions, self.form.rows)]
            e = total(terms, self.indices)
            short = self.by_directions(e)
            self._keep(f"gradient[{x.label}]", short, names, groups)
            left = self.notation.special(f"∂ℓ/∂{plain_name(x)}{{}}", rf"\frac{{\partial \ell}}{{\partial {tex_name(x)}{{}}}}", groups)
            sides = dict.fromkeys([self._show(e, names), self._show(short, names)])
            note = ("as ", said("A u = 0")) if short != e else ()
            lines.append(Formula((left, *sides), note))
        return lines


def _summed(e: Expr, limits: Sequence[tuple[Symbol, Expr, Expr]]) -> Expr:
    return Sum(e, *limits) if limits else e


def _without_common(left: Expr, right: Expr, indices: Indices) -> tuple[Expr, Expr]:
    """An equation without the factors, free of indices, that all terms share."""
    terms = [*Add.make_args(left), *Add.make_args(right)]
    shared = [f for f in Mul.make_args(terms[0]) if all(f in Mul.make_args(t) for t in terms) and not indices.of(f)]
    shared = [f for f in shared if not f.has(Sum)]
    return tuple(Add(*(t / Mul(*shared) for t in Add.make_args(e))) for e in (left, right))
