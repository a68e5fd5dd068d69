"""The blocks of a symbolic node as any node may use them (`DeclarativeNode.blocks`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from declarative.problem import Problem
from declarative.symbolic.closed_form import ClosedForm
from declarative.symbolic.linearisation import SymbolicLinearisation
from declarative.symbolic.shapes import Shapes
from declarative.symbolic.sizes import evaluate, read_sizes

_REMEMBERED = 100  # shapes of inputs


class SymbolicBlocks:
    """The blocks of a symbolic node, for any node with the same statement (`DeclarativeNode.blocks`).

    Args:
        form: the closed form.
        constants: the module that holds the tensors among the constants.
    """

    def __init__(self, form: ClosedForm, constants: nn.Module) -> None:
        self.form, self._constants = form, constants
        self._shapes: dict[tuple[int, tuple[tuple[int, ...], ...]], Shapes] = {}

    @property
    def structured(self) -> bool:
        """Whether H is solved with by its structure."""
        return self.form.structure.kind not in ("dense", "zero")

    @property
    def description(self) -> tuple[str, str]:
        """H and A in words."""
        count, structure = len(self.form.statement.constraints), self.form.structure
        return structure.words + (
            f", because of {structure.obstacle}" if structure.obstacle else ""
        ), f"{count} famil{'y' if count == 1 else 'ies'} of constraints, by products in closed form"

    def cost(self, m: int, k: int) -> tuple[float, float]:
        """Roughly, the flops of one sample's solve and the numbers that it holds."""
        kind, complement = self.form.structure.kind, self.form.complement
        of_hessian = {"banded": 5.0 * m, "block diagonal": 10.0 * m, "Kronecker": 10.0 * m, "diagonal + low rank": m**3 / 3}.get(kind, 2.0 * m)
        if complement is None:
            return of_hessian + 2.0 * k * k * m + 2 / 3 * k**3, float(m * (k + 2) + k * k)
        of_rows = {"diagonal": 2.0 * k, "marginals": (k / 2) ** 3, "eliminated": (k / 2) ** 3}.get(complement.kind, 2 / 3 * k**3)
        return 8.0 * m + of_rows, float(4 * m + (0 if complement.kind == "diagonal" else k * k / 4))

    def shapes(self, batch: int, inputs: tuple[tuple[int, ...], ...]) -> Shapes:
        """Those of the variables and of the constraints, from those of the inputs of one instance.

        Raises:
            ValueError: inputs that do not fit together, in the user's symbols.
        """
        key = batch, inputs
        if key not in self._shapes:
            statement = self.form.statement
            held = [(a, tuple(getattr(self._constants, a.code).shape)) for a in statement.constants]
            known = read_sizes(statement, [*zip(statement.inputs, inputs, strict=True), *held])
            variables = tuple(tuple(evaluate(axis.size, known) for axis in v.axes) for v in statement.variables)
            families = tuple(tuple(evaluate(axis.size, known) for axis in c.multipliers.axes) for c in statement.constraints)
            if len(self._shapes) > _REMEMBERED:
                self._shapes.clear()
            self._shapes[key] = Shapes(batch, variables, families, self.form.dropped)
        return self._shapes[key]

    def _shapes_of(self, problem: Problem) -> Shapes:
        count = problem.inputs
        if count != len(self.form.statement.inputs):
            raise ValueError(f"{problem.name}: its blocks are those of a statement of {len(self.form.statement.inputs)} inputs, it has {count}")
        inputs = tuple(tuple(t.shape[1:] if d == 0 else t.shape) for t, d in zip(problem.tensors[:count], problem.in_dims, strict=False))
        return self.shapes(problem.batch, inputs)

    def linearise(self, problem: Problem, y: Tensor, equality: Tensor | None, inequality: Tensor | None, wanted: Sequence[int] = ()) -> SymbolicLinearisation:
        """The KKT system at a point; `wanted` as in engines/autodiff.py."""
        statement, count, shapes = self.form.statement, problem.inputs, self._shapes_of(problem)
        if problem.layout is not None and problem.layout.shapes != shapes.variables:
            raise ValueError(f"{problem.name}: its blocks are those of y shaped {shapes.variables}, its own y is shaped {problem.layout.shapes}")
        places: list[int | None] = list(range(count))
        values = {a.label: t for a, t in zip(statement.inputs, problem.tensors, strict=False)}
        for a in statement.constants:
            place = next((count + k for k, names in enumerate(problem.lifted) if f"constants.{a.code}" in names), None)
            places.append(place)
            values[a.label] = getattr(self._constants, a.code) if place is None else problem.tensors[place]
            if place is None and values[a.label].requires_grad:
                raise TypeError(f"{problem.name}: the constant {a} of its blocks requires grad; make it an input of both statements")
        return SymbolicLinearisation(self.form, problem, places, values, shapes, y, (equality, inequality), wanted)

    def contradiction(self, problem: Problem) -> Tensor | None:
        """(b,) the difference of the totals that the sums of the rows and of the columns are asked to have, relative to these."""
        found = self.form.complement
        if self.form.dropped is None or found is None:
            return None
        with torch.no_grad():
            nothing = problem.like.new_zeros(problem.batch, self._shapes_of(problem).size)
            at = self.linearise(problem, nothing, None, None)
            rows, columns = (s * part.flatten(1) for s, part in zip(found.signs, at.families(), strict=True))
        total = torch.maximum(rows.abs().sum(1), columns.abs().sum(1))
        return (rows.sum(1) - columns.sum(1)).abs() / torch.where(total > 0, total, 1.0)
