"""What a Hock-Schittkowski problem is: its functions as printed, and the published answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor

from declarative import DeclarativeNode

Bound = Sequence[Any]
Function = Callable[..., Any]


@dataclass(frozen=True)
class HockSchittkowski:
    """min f(x, y)  s.t.  h(x, y) = 0,  g(x, y) ≥ 0,  lower ≤ y ≤ upper, as the collection writes it.

    Functions are called with x and then y₁, …, yₙ, each a scalar; the constraints return tuples of scalars.

    Args:
        name: "HS71".
        objective: f.
        start: the published starting point.
        x: the published value of the coefficient that may move.
        optimum: the published optimal value.
        solution: the published minimiser (where there are several, the one that is meant).
        equalities, inequalities: h and g.
        lower, upper: bounds on y, one number for all coordinates or one each; infinite ones are left out. For a bound
            that is the coefficient itself, write it into `inequalities`.
        unique: whether the published minimiser is the only global one.
        local: values of other local minima, where a descent from the start may end.
        irregular: why y has no ordinary derivative at the solution; "" where it has one.
    """

    name: str
    objective: Function
    start: Sequence[float]
    x: float
    optimum: float
    solution: Sequence[float]
    equalities: Function | None = None
    inequalities: Function | None = None
    lower: Bound | float = -inf
    upper: Bound | float = inf
    unique: bool = True
    local: Sequence[float] = ()
    irregular: str = ""

    def node(self, **options: Any) -> DeclarativeNode:
        """The problem as a layer x (b,) -> y (b, n); `options` are those of `DeclarativeNode`."""
        return Statement(self, **options)

    def bounds(self) -> list[tuple[float, float]]:
        """(lower, upper) of each coordinate."""
        n = len(self.start)
        low, high = ([b] * n if isinstance(b, int | float) else list(b) for b in (self.lower, self.upper))
        return list(zip(low, high, strict=True))


class Statement(DeclarativeNode):
    """A problem of the collection as g ≤ 0, bounds among the inequalities."""

    def __init__(self, problem: HockSchittkowski, **options: Any) -> None:
        super().__init__(**options)
        self.problem = problem
        self._low, self._high = ([(i, pair[side]) for i, pair in enumerate(problem.bounds()) if abs(pair[side]) < inf] for side in (0, 1))

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return self.problem.objective(x, *y.unbind())

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor | None:
        return torch.stack(self.problem.equalities(x, *y.unbind())) if self.problem.equalities else None

    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor | None:
        rows = [-g for g in self.problem.inequalities(x, *y.unbind())] if self.problem.inequalities else []
        rows += [low - y[i] for i, low in self._low] + [y[i] - high for i, high in self._high]
        return torch.stack(rows) if rows else None

    def initial_guess(self, x: Tensor) -> Tensor:
        return x.new_tensor(self.problem.start).expand(x.shape[0], -1)
