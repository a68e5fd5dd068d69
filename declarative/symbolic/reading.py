"""The user's statement, read: which name is what, what every index runs over, and that it all fits together."""

# sympy annotates most results as Basic.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
from __future__ import annotations

import keyword
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sympy
from sympy import Expr, Idx, Indexed, IndexedBase, Product, Sum, Symbol
from sympy.core.function import AppliedUndef
from sympy.core.relational import Equality, GreaterThan, LessThan, StrictGreaterThan, StrictLessThan

from declarative.symbolic.arrays import Array
from declarative.symbolic.functions import Cases, escaped, stable
from declarative.symbolic.indices import Indices, Range
from declarative.symbolic.lowering import SUPPORTED
from declarative.symbolic.statement import Constraint, Statement

_CASES = "Write declarative.symbolic.Cases in place of Piecewise: it stays where it is written"
_ARITHMETIC = (sympy.Add, sympy.Mul, sympy.Pow, sympy.Number, sympy.NumberSymbol, Symbol, Indexed, IndexedBase, Sum, Product, sympy.Tuple)
_LOGIC = (sympy.logic.boolalg.Boolean, sympy.functions.elementary.piecewise.ExprCondPair)
_LOCALS = """torch batch inverse row_sums column_sums row_side column_side reduced right_side solved primal dual count kkt hessian_matrix jacobian_matrix
corner_block active active_rows pieces schur_matrix schur_blocks through_rows pulled_back block_size block_values cotangent gradients objective
constraints equalities inequalities input_gradients gradient hessian jacobian complement start"""
_RESERVED = {*_LOCALS.split(), *keyword.kwlist}  # names that generated code uses itself


class Reader:
    """Reads a statement; every message is in the user's own symbols."""

    def __init__(self, title: str, sizes: Mapping[Symbol, int]) -> None:
        self._title, self._fixed = title, {_symbol(s): sympy.Integer(n) for s, n in sizes.items()}
        self.indices = Indices()
        self._known: dict[Any, Symbol] = {}  # the user's free indices
        self._arrays: dict[Symbol, Array] = {}
        self._codes: set[str] = set(_RESERVED)
        self._totals: dict[Any, Expr] = {}
        self._limits: dict[Symbol, Range] = {}

    def read(
        self,
        objective: Any,
        variable: Any,
        inputs: Sequence[Any],
        constants: Mapping[Any, Any],
        equality: Sequence[Any],
        inequality: Sequence[Any],
    ) -> Statement:
        """The statement, checked."""
        statement = Statement(self._title, self.indices)
        labelled = {"objective": self._expression("objective", objective)}
        for kind, given in (("equality", equality), ("inequality", inequality)):
            labelled |= {f"{kind}[{k}]": self._difference(f"{kind}[{k}]", e, Equality if kind == "equality" else None) for k, e in enumerate(given)}
        expressions = list(labelled.values())
        self.indices.taken |= {str(s) for e in expressions for s in e.free_symbols if isinstance(s, Symbol)} - {
            str(i) for e in expressions for i in _index_names(e)
        }
        self._look_at_limits(expressions)
        statement.is_tuple = isinstance(variable, tuple | list)
        statement.variables = tuple(self._array("variable", v) for v in (variable if statement.is_tuple else (variable,)))
        if not isinstance(inputs, tuple | list):
            raise TypeError(f"inputs must be a tuple such as (M[i, j], r[i], gamma), got {inputs!r}")
        if not inputs:
            raise ValueError("inputs must name at least one input")
        statement.inputs = tuple(self._array("inputs", x) for x in inputs)
        for key, value in constants.items():
            array = self._array("constants", key)
            if isinstance(value, int | float) and not isinstance(value, bool):
                if array.axes:
                    raise TypeError(f"constants: {array} has indices, so its value must be a tensor of shape {array.shape}, got the number {value!r}")
                statement.numbers[array.label], statement.number_codes[array.label] = float(value), array.code
            else:
                statement.constants = (*statement.constants, array)
        read = {label: self._read(label, e) for label, e in labelled.items()}
        statement.objective = read.pop("objective")
        free = self.indices.of(statement.objective)
        if free:
            hint = f". If you did: sympy moves a Piecewise out of inner sums. {_CASES}" if objective.has(sympy.Piecewise) else ""
            raise ValueError(f"the objective depends on the index {_named(free)} outside of every Sum: it must be one number; sum over {_named(free)}{hint}")
        statement.constraints = tuple(self._constraint(label, e, label.startswith("equality"), statement) for label, e in read.items())
        self._check_known(statement)
        return statement

    def further(self, label: str, e: Any) -> Expr:
        """One more expression, in the same symbols."""
        return self._read(label, self._expression(label, e))

    # Expressions

    def _expression(self, label: str, e: Any) -> Expr:
        if isinstance(e, int | float) and not isinstance(e, bool):
            e = sympy.sympify(e)
        if not isinstance(e, Expr) or isinstance(e, sympy.MatrixExpr):
            hint = "; write matrices with indices, Sum(A[i, j]*y[j], (j, 0, n - 1))" if isinstance(e, sympy.MatrixBase | sympy.MatrixExpr) else ""
            raise TypeError(f"{label} must be a sympy expression, got {e!r}{hint}")
        return e

    def _difference(self, label: str, e: Any, kind: Any) -> Expr:
        """h of an equation h = 0, or g of an inequality g ≤ 0."""
        if isinstance(e, bool | sympy.logic.boolalg.BooleanAtom):
            raise TypeError(f"{label} is {e}: Python's == compares on the spot; write the difference of both sides, or sympy.Eq(left, right)")
        if kind is Equality and isinstance(e, Equality):
            return self._expression(label, e.lhs - e.rhs)
        if kind is None and isinstance(e, LessThan | StrictLessThan):
            return self._expression(label, e.lhs - e.rhs)
        if kind is None and isinstance(e, GreaterThan | StrictGreaterThan):
            return self._expression(label, e.rhs - e.lhs)
        if isinstance(e, sympy.core.relational.Relational):
            other = "inequality" if kind is Equality else "equality"
            raise TypeError(f"{label} must be {'an equation' if kind is Equality else 'an inequality'}, got {e}; put it into {other}=")
        return self._expression(label, e)

    def _look_at_limits(self, expressions: Iterable[Expr]) -> None:
        """Where an index has no range of its own, the sums over it tell."""
        for e in expressions:
            for total in e.atoms(Sum, Product):
                for symbol, *limits in total.limits:
                    if len(limits) == 2 and isinstance(symbol, Symbol):
                        self._limits.setdefault(symbol, self._range_of(*limits))

    def _range_of(self, lower: Any, upper: Any) -> Range:
        return Range(sympy.sympify(lower).xreplace(self._fixed), sympy.sympify(upper).xreplace(self._fixed))

    # Arrays

    def _array(self, role: str, given: Any) -> Array:
        if isinstance(given, IndexedBase):
            raise TypeError(f"{role}: {given} needs its indices, such as {given}[i]: they say how many axes it has and how long these are")
        if isinstance(given, Symbol):
            return self._register(role, given, (), ())
        if not isinstance(given, Indexed):
            raise TypeError(f"{role} must be given as a symbol or an indexed symbol such as P[i, j], got {given!r}")
        label = given.base.label
        if not isinstance(label, Symbol):
            raise TypeError(f"{role}: the base of {given} must be a name, got {label!r}")
        axes, names = [], []
        for k, index in enumerate(given.indices):
            if not isinstance(index, Symbol | Idx):
                raise ValueError(f"{role}: {given} must be written with plain indices, got {index}")
            axes.append(self._axis(role, given, k, index))
            names.append(self._free(index, axes[-1]))
        if len(set(names)) < len(names):
            raise ValueError(f"{role}: {given} must be written with different indices")
        return self._register(role, label, tuple(axes), tuple(names))

    def _axis(self, role: str, given: Indexed, k: int, index: Any) -> Range:
        if isinstance(index, Idx) and index.lower is not None and index.upper is not None:
            return self._range_of(index.lower, index.upper)
        if given.base.shape is not None:
            return self._range_of(0, given.base.shape[k] - 1)
        if index in self._limits:
            return self._limits[index]
        raise ValueError(f"{role}: what the index {index} of {given} runs over is not known; write {index} = sympy.Idx({str(index)!r}, n), with n its size")

    def _free(self, index: Any, over: Range) -> Symbol:
        """The statement's symbol for a free index of the user's."""
        if index not in self._known:
            self._known[index] = self.indices.fresh(str(index.label if isinstance(index, Idx) else index), over)
        known = self._known[index]
        if self.indices.ranges[known] != over:
            raise ValueError(f"the index {index} runs over {self.indices.ranges[known]} in one place and over {over} in another")
        return known

    def _register(self, role: str, label: Symbol, axes: tuple[Range, ...], names: tuple[Symbol, ...]) -> Array:
        if label in self._arrays:
            raise ValueError(f"{role}: {label} is given twice")
        array = Array(label, axes, self.code(str(label)), names)
        self._arrays[label] = array
        self.indices.taken.add(str(label))
        return array

    def code(self, name: str) -> str:
        """A name for generated code."""
        plain = "".join(c if c.isalnum() or c == "_" else "_" for c in name.strip("\\")) or "a"
        plain = f"a{plain}" if plain[0].isdigit() else plain
        while plain in self._codes or (plain[0] == "t" and plain[1:].isdigit()):
            plain += "_"
        self._codes.add(plain)
        return plain

    # Reading

    def _read(self, label: str, e: Expr) -> Expr:
        moved = escaped(e)
        if moved is not None:
            raise ValueError(f"{label}: sympy has moved the Piecewise {moved} out of a sum that it stood in, which changes what it says. {_CASES}")
        return stable(self._rebuilt(label, e, dict(self._fixed)))

    def _rebuilt(self, label: str, e: sympy.Basic, names: dict[Any, Any]) -> Any:
        if e in names:
            return names[e]
        if isinstance(e, Sum | Product):
            return self._total(label, e, names)
        if isinstance(e, Indexed):
            return self._entry(label, e, names)
        if isinstance(e, Idx):
            if e.lower is None:
                raise ValueError(f"{label}: what the index {e} runs over is not known; write sympy.Idx({str(e.label)!r}, n), with n its size")
            return self._free(e, self._range_of(e.lower, e.upper))
        if isinstance(e, Symbol):
            return self._plain(label, e)
        self._refuse(label, e)
        if isinstance(e, sympy.Piecewise | Cases):
            return Cases(*((self._rebuilt(label, pair[0], names), self._rebuilt(label, pair[1], names)) for pair in e.args))
        return e.func(*(self._rebuilt(label, a, names) for a in e.args)) if e.args else e

    def _refuse(self, label: str, e: sympy.Basic) -> None:
        if isinstance(e, AppliedUndef):
            raise ValueError(f"{label}: {e} is an unknown function; write out what it is")
        if not isinstance(e, (*_ARITHMETIC, *_LOGIC, *SUPPORTED)):
            raise ValueError(f"{label}: {type(e).__name__} in {e} has no derivative, or no counterpart in torch")

    def _plain(self, label: str, e: Symbol) -> Symbol:
        if e in self._arrays:
            if self._arrays[e].axes:
                raise ValueError(f"{label}: {e} has indices, {self._arrays[e]}, but stands alone here")
            return e
        if e in self._known:
            return self._known[e]
        return e

    def _total(self, label: str, e: Sum | Product, names: dict[Any, Any]) -> Expr:
        # The same sum in two places is one: it gets the same indices.
        key = e, frozenset((s, names[s]) for s in e.atoms(Idx, Symbol) if s in names)
        if key not in self._totals:
            self._totals[key] = self._new_total(label, e, names)
        return self._totals[key]

    def _new_total(self, label: str, e: Sum | Product, names: dict[Any, Any]) -> Expr:
        inner, limits = dict(names), []
        # The outermost sum, the last of the limits, is read first.
        for limit in reversed(e.limits):
            if len(limit) != 3:
                raise ValueError(f"{label}: {e} needs limits for {limit[0]}, such as ({limit[0]}, 0, n - 1)")
            over = Range(*(self._rebuilt(label, x, inner) for x in limit[1:]))
            if self.indices.of(over.lower) | self.indices.of(over.upper):
                raise ValueError(
                    f"{label}: the limits of {limit[0]} in {e} depend on another index; sum over the whole range, "
                    "with Piecewise((…, condition), (0, True)) inside"
                )
            name = limit[0].label if isinstance(limit[0], Idx) else limit[0]
            inner[limit[0]] = self.indices.fresh(str(name), over)
            limits.append((inner[limit[0]], over.lower, over.upper))
        return e.func(self._rebuilt(label, e.function, inner), *reversed(limits))

    def _entry(self, label: str, e: Indexed, names: dict[Any, Any]) -> Expr:
        array = self._arrays.get(e.base.label)
        if array is None:
            raise ValueError(
                f"{label}: {e} is not known: {e.base} is neither the variable nor an input. Add {e} to inputs=, or its value to constants={{{e}: tensor}}"
            )
        if len(e.indices) != len(array.axes):
            raise ValueError(f"{label}: {e} has {len(e.indices)} indices, but {array} has {len(array.axes)}")
        read = []
        for k, (index, axis) in enumerate(zip(e.indices, array.axes, strict=True)):
            if isinstance(index, Symbol) and index not in names and index not in self._known:
                found = self._free(index, self._limits.get(index, axis))
            else:
                found = self._rebuilt(label, index, names)
            try:
                symbol, offset = self.indices.split(found)
            except ValueError as error:
                raise ValueError(f"{label}: in {e}, {error}") from error
            over = Range(offset, offset) if symbol is None else self.indices.ranges[symbol].shifted(offset)
            inside = axis.covers(over)
            if not inside:
                certain = "" if inside is False else ", which need not be the same (a size that is always the same is given by sizes={n: …})"
                raise ValueError(
                    f"{label}: in {e} the index {index} runs over {over}, but axis {k} of {array} over {axis}{certain}. Correct a Sum's limits or an Idx's size"
                )
            read.append(found)
        return IndexedBase(array.label)[tuple(read)]

    def _constraint(self, label: str, e: Expr, equality: bool, statement: Statement) -> Constraint:
        labels = {v.label for v in statement.variables}
        if not labels & e.free_symbols:
            raise ValueError(f"{label}: {e} does not depend on {', '.join(map(str, statement.variables))}; it is no constraint")
        order = [s for a in (*statement.variables, *statement.inputs) for s in a.indices]
        free = sorted(self.indices.of(e), key=lambda s: (order.index(s) if s in order else len(order), s.name))
        # Free indices of their own: what one constraint does with them is nothing to another.
        own = {s: self.indices.fresh(s, self.indices.ranges[s]) for s in free}
        kind, count = ("nu" if equality else "mu"), 1
        while f"{kind}{count}" in self._codes or f"{kind}{count}" in self.indices.taken:
            count += 1
        name = f"{kind}{count}"
        multipliers = Array(Symbol(f"{kind}_{count}"), tuple(self.indices.ranges[s] for s in free), self.code(name), tuple(free))
        self.indices.taken.add(str(multipliers.label))
        return Constraint(e.xreplace(own), tuple(own.values()), multipliers, equality)

    def _check_known(self, statement: Statement) -> None:
        """Every symbol is an index, an array or a size that some array shows."""
        known = {*self._arrays, *self.indices.ranges, *(c.multipliers.label for c in statement.constraints)}
        shown = {s for a in (*statement.inputs, *statement.constants) for axis in a.axes for s in axis.size.free_symbols}
        everything = [("objective", statement.objective), *((f"constraint {k}", c.expression) for k, c in enumerate(statement.constraints))]
        for label, e in everything:
            for s in sorted((s for s in e.free_symbols if isinstance(s, Symbol)), key=str):
                if s not in known and s not in shown and s not in statement.sizes:
                    raise ValueError(
                        f"{label}: {s} is not known: it is neither the variable, nor an input, an index or a size. Add it to inputs=, "
                        f"or give its value: constants={{{s}: …}}"
                    )
        missing = sorted(statement.sizes - shown, key=str)
        if missing:
            where = next(
                a
                for a in (*statement.variables, *(c.multipliers for c in statement.constraints))
                if any(missing[0] in axis.size.free_symbols for axis in a.axes)
            )
            raise ValueError(f"no input shows how large {missing[0]} is, which {where} needs; give it: sizes={{{missing[0]}: 5}}, for one")
        if not {v.label for v in statement.variables} & set().union(*(e.free_symbols for _, e in everything)):
            raise ValueError(f"{', '.join(map(str, statement.variables))} occurs neither in the objective nor in a constraint")


def _symbol(s: Any) -> Symbol:
    if not isinstance(s, Symbol):
        raise TypeError(f"sizes must map size symbols to numbers, got the key {s!r}")
    return s


def _index_names(e: Expr) -> set[Any]:
    found = {i for entry in e.atoms(Indexed) for index in entry.indices for i in index.free_symbols if not isinstance(i, Idx)}
    found |= {i.label for i in e.atoms(Idx)} | {limit[0] for total in e.atoms(Sum, Product) for limit in total.limits}
    return found


def _named(symbols: Iterable[Symbol]) -> str:
    return " and ".join(sorted(s.name for s in symbols))
