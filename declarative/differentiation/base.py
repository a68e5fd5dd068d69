"""The contract of a way to differentiate, and of the forward pass that it asks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from declarative.problem import Layout, Problem
from declarative.solution import DerivativeReport, Point, Solved
from declarative.typing import Found


class Forward(Protocol):
    """The node's forward pass (solvers/forward.py)."""

    def __call__(self, problem: Problem, init: tuple[Tensor, ...], wanted: Sequence[int]) -> Solved:
        """The solution, without a graph. `wanted`: positions of the tensors whose gradients will be asked for."""
        ...

    def unroll(self, problem: Problem, init: tuple[Tensor, ...], steps: int | None) -> tuple[Any, Layout]:
        """What a solver returns (y, ν, μ, status, iterations), after so many steps, with the graph behind it."""
        ...

    def judge(self, problem: Problem, found: Any) -> Point:
        """The point that an unrolled iterate is, without a graph."""
        ...

    def check_steps(self, problem: Problem, what: str) -> None:
        """A TypeError unless the solver is made of differentiable steps."""
        ...

    def step(self, problem: Problem, point: Point) -> Found:
        """(y, ν, μ) one step on from a solution, with its graph."""
        ...


class Differentiation(ABC):
    """How y is differentiated: `Implicit`, `Unrolled` or `OneStep`."""

    @abstractmethod
    def apply(self, problem: Problem, forward: Forward, init: tuple[Tensor, ...]) -> tuple[Point, Layout, DerivativeReport]:
        """Solve, with y and the multipliers differentiable in the problem's tensors. `init` is a warm start (y, ν, μ)."""
