"""`SymbolicNode`: a layer from an objective in index notation, with its derivatives derived."""

# sympy annotates most results as Basic.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
import torch
from sympy import Symbol
from torch import Tensor, nn

from declarative.differentiation.base import Differentiation
from declarative.node import DeclarativeNode
from declarative.solvers.base import Solver
from declarative.symbolic.closed_form import ClosedForm
from declarative.symbolic.derivation import Derivation
from declarative.symbolic.export import module_source
from declarative.symbolic.reading import Reader
from declarative.symbolic.smoothness import check_smooth
from declarative.symbolic.statement import Statement
from declarative.symbolic.symbolic_blocks import SymbolicBlocks
from declarative.symbolic.terms import Term
from declarative.typing import Output


class SymbolicNode(DeclarativeNode):
    """A `DeclarativeNode` from sympy expressions in index notation, for one instance and for every size.

    H, A, B, C and ∇L are derived in closed form, once; their structure is found (diagonal, banded, blocks, low rank, the Schur complement
    of row and column sums, …), and the backward pass is compiled from it: `print(node.derivation())`, `node.to_source()`. Where no structure is
    found the derivation says which term prevents it, and the dense system is solved.

    Args:
        objective: f, one number: every index is summed over. `Sum`, `Product`, indexed and plain symbols, elementary functions, `Piecewise`.
        variable: y, such as P[i, j] or a plain symbol; a tuple for y of several parts. Its indices say how long its axes are:
            `i = sympy.Idx("i", m)`.
        inputs: the inputs in call order, likewise.
        equality: expressions h = 0, or `sympy.Eq`; one for each value of the indices that are not summed over.
        inequality: expressions g ≤ 0, or `<=` and `>=`.
        constants: values of further symbols: a number, a tensor (a buffer of the node), or a parameter, which is learned.
        sizes: numbers for size symbols that no input shows.
        start: where the solver starts: a number, an expression in the inputs and the variable's indices, or a function of the batched inputs.
            None: for each sample the first of 0, 1 and ½ (everywhere) at which ∇f is finite and no constraint's gradient vanishes.
        solve: a function of the batched inputs that returns y, or a `Solution`. None: `solver` does.
        solver, differentiation, polish: as for every node.

    Constraints that fix the sums of both the rows and the columns are redundant: the last equation follows from the others, and is left
    out. How far the totals differ is in `Solution.violation`; samples where it is more than 5 % are `Status.INFEASIBLE`.

    Shapes:
        Inputs batch first, one axis for each index. y (b, *sizes), or a tuple. Multipliers: family by family, indices in the
        order of the variable's, then the inputs'.

    Raises:
        ValueError, TypeError: unknown symbols, index ranges that disagree, expressions without a derivative, sizes that do not match at
            the call; in the user's own symbols.

    Example:
        >>> n = sympy.Symbol("n", integer=True, positive=True)
        >>> i, (x, y) = sympy.Idx("i", n), map(sympy.IndexedBase, "xy")
        >>> node = SymbolicNode(  # softmax: the entropy-regularised maximum
        ...     objective=sympy.Sum(y[i] * sympy.log(y[i]) - x[i] * y[i], (i, 0, n - 1)),
        ...     variable=y[i], inputs=(x[i],), equality=[sympy.Sum(y[i], (i, 0, n - 1)) - 1])
        >>> node(torch.tensor([[0.0, 1.0, 2.0]]))
        tensor([[0.0900, 0.2447, 0.6652]])

    Source: math.md §2 for the formula; docs/architecture.md for how blocks are derived.
    """

    def __init__(
        self,
        *,
        objective: Any,
        variable: Any,
        inputs: Sequence[Any],
        equality: Sequence[Any] = (),
        inequality: Sequence[Any] = (),
        constants: Mapping[Any, Any] | None = None,
        sizes: Mapping[Symbol, int] | None = None,
        start: Any = None,
        solve: Callable[..., Any] | None = None,
        solver: Solver | None = None,
        differentiation: Differentiation | None = None,
        polish: int = 0,
    ) -> None:
        constants = dict(constants or {})
        reader = Reader(type(self).__name__, sizes or {})
        statement = reader.read(objective, variable, inputs, constants, _several("equality", equality), _several("inequality", inequality))
        check_smooth(statement)
        form = ClosedForm(statement, reader.code)
        super().__init__(solver=solver, differentiation=differentiation, polish=polish)
        self.constants = _held(statement, constants)
        self._closed = SymbolicBlocks(form, self.constants)
        self.blocks = self._closed  # may be taken away, to compare with autodiff
        self.input_names = tuple(str(a.label) for a in statement.inputs)
        self._statement = statement
        self._start = _start(start, reader, statement)
        if solve is not None:
            if not callable(solve):
                raise TypeError(f"solve must be a function of the batched inputs, got {solve!r}")
            self.solve = solve

    @property
    def form(self) -> ClosedForm:
        """The closed form of every block."""
        return self._closed.form

    def check_shapes(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        self._closed.shapes(1, shapes)

    def _values(self, inputs: Sequence[Tensor], y: Output | None = None) -> dict[Symbol, Tensor]:
        statement = self._statement
        values = {a.label: t for a, t in zip(statement.inputs, inputs, strict=True)}
        values |= {a.label: getattr(self.constants, a.code) for a in statement.constants}
        if y is not None:
            values |= {v.label: t for v, t in zip(statement.variables, y if isinstance(y, tuple) else (y,), strict=True)}
        return values

    # The statement

    def objective(self, *inputs_and_y: Any) -> Tensor:
        *inputs, y = inputs_and_y
        return self.form.objective()(self._values(inputs, y))[0]

    def equality_constraints(self, *inputs_and_y: Any) -> Tensor | None:
        return self._constraints(inputs_and_y, True)

    def inequality_constraints(self, *inputs_and_y: Any) -> Tensor | None:
        return self._constraints(inputs_and_y, False)

    def _constraints(self, inputs_and_y: tuple[Any, ...], equality: bool) -> Tensor | None:
        families = [c for c in self._statement.constraints if c.equality is equality]
        if not families:
            return None
        *inputs, y = inputs_and_y
        flat = torch.cat([r.reshape(-1) for r in self.form.constraints(equality)(self._values(inputs, y))])
        return flat[:-1] if equality and self.form.dropped is not None else flat

    # Where a solver starts

    def initial_guess(self, *inputs: Tensor) -> Output:
        variables = self._closed.shapes(1, tuple(tuple(x.shape[1:]) for x in inputs)).variables
        batch, like = inputs[0].shape[0], inputs[0]
        if callable(self._start):
            return self._start(*inputs)
        if isinstance(self._start, float):
            parts = tuple(like.new_full((batch, *shape), self._start) for shape in variables)
        elif self._start is not None:
            placeholder = tuple(like.new_zeros(batch, *shape) for shape in variables)
            results = self.form.start(self._start)(self._values(inputs, placeholder))
            parts = tuple(r.expand(batch, *shape) for r, shape in zip(results, variables, strict=True))
        else:
            parts = self._found_start(inputs, variables)
        return parts if self._statement.is_tuple else parts[0]

    def _found_start(self, inputs: tuple[Tensor, ...], shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, ...]:
        batch, like = inputs[0].shape[0], inputs[0]
        shared = self._values(inputs)
        families = zip(self._statement.constraints, self._closed.shapes(1, tuple(tuple(x.shape[1:]) for x in inputs)).families, strict=True)
        multipliers = {c.multipliers.label: like.new_zeros(batch, *shape) for c, shape in families}
        chosen: tuple[Tensor, ...] | None = None
        good = torch.zeros(batch, dtype=torch.bool, device=like.device)
        for number in (0.0, 1.0, 0.5):
            parts = tuple(like.new_full((batch, *shape), number) for shape in shapes)
            values = {**shared, **multipliers, **{v.label: part for v, part in zip(self._statement.variables, parts, strict=True)}}
            fits = self._fits(values, batch)
            if chosen is None:
                chosen, good = parts, fits
            else:
                take = fits & ~good
                chosen = tuple(torch.where(take.reshape(-1, *([1] * (p.ndim - 1))), p, c) for p, c in zip(parts, chosen, strict=True))
                good = good | fits
            if bool(good.all()):
                break
        return chosen or ()

    def _fits(self, values: dict[Symbol, Tensor], batch: int) -> Tensor:
        """(b,) whether ∇L is finite and no equality's gradient vanishes."""
        like = values[self._statement.variables[0].label]
        found = torch.ones(batch, dtype=torch.bool, device=like.device)
        gradients = self.form.gradient()(values)
        for part, v in zip(gradients, self._statement.variables, strict=True):
            finite = torch.isfinite(part)
            found = found & (finite.flatten(finite.ndim - len(v.axes)).all(-1) if v.axes else finite)
        if self._statement.constraints:
            rows = self.form.row_sizes()(values)
            for part, c in zip(rows, self._statement.constraints, strict=True):
                if c.equality:
                    sound = torch.isfinite(part) & (part > 0)
                    found = found & (sound.flatten(sound.ndim - len(c.free)).all(-1) if c.free else sound)
        return found

    # For people

    def derivation(self) -> Derivation:
        """Problem, Lagrangian, blocks, the structure found and the gradient: LaTeX in a notebook, text in a terminal, Markdown by `.markdown()`."""
        return Derivation(self.form)

    def to_source(self) -> str:
        """A Python file of every block and of the whole backward pass, which needs nothing but torch."""
        return module_source(self.form)

    def extra_repr(self) -> str:
        names = ", ".join(map(str, self._statement.variables))
        return f"{names} of {', '.join(map(str, self._statement.inputs))}; H is {self.form.structure.words}"


def _several(name: str, given: Any) -> Sequence[Any]:
    if isinstance(given, sympy.Basic | bool):
        raise TypeError(f"{name} must be a list of expressions, got {given}; write [{given}]")
    return tuple(given)


def _held(statement: Statement, constants: Mapping[Any, Any]) -> nn.Module:
    """The module of the constants that are tensors."""
    module = nn.Module()
    given = {(key.base.label if isinstance(key, sympy.Indexed) else key): value for key, value in constants.items()}
    for array in statement.constants:
        value = given[array.label]
        if not isinstance(value, Tensor):
            raise TypeError(f"constants: {array} must be a number, a tensor or a parameter, got {type(value).__name__}")
        if value.ndim != len(array.axes):
            raise ValueError(f"constants: {array} must have shape {array.shape}, got {tuple(value.shape)}")
        if isinstance(value, nn.Parameter):
            module.register_parameter(array.code, value)
        else:
            module.register_buffer(array.code, value)
    return module


def _start(start: Any, reader: Reader, statement: Statement) -> Any:
    """None, a number, a function, or for each variable terms of its own indices."""
    if start is None or (callable(start) and not isinstance(start, sympy.Basic)):
        return start
    if isinstance(start, int | float):
        return float(start)
    given = start if isinstance(start, tuple | list) else (start,)
    if len(given) != len(statement.variables):
        raise ValueError(f"start must have one expression for each of the {len(statement.variables)} variables, got {len(given)}")
    found = []
    for variable, e in zip(statement.variables, given, strict=True):
        read = reader.further("start", e)
        strange = statement.indices.of(read) - set(variable.indices)
        if strange:
            raise ValueError(f"start: {e} depends on {', '.join(sorted(map(str, strange)))}, which is no index of {variable}")
        if any(v.label in read.free_symbols for v in statement.variables):
            raise ValueError(f"start: {e} depends on the variable itself")
        found.append([Term(read)])
    return tuple(found)
