"""A node's own `solve`, taken as a solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from declarative.problem import Layout, Problem
from declarative.solution import Solution, Status
from declarative.solvers.base import Iterate, Solver, read_flat
from declarative.typing import Variables


@dataclass(frozen=True)
class UserSolve(Solver):
    """Runs the node's `solve`, which may be anything: closed form, numpy, a C library. It runs under no_grad.

    Pass it explicitly to set a policy, ``solver=UserSolve(on_failure="nan")``; a node that defines `solve` gets it by
    itself otherwise.

    Args:
        tolerance: how far from stationary and feasible its result may be, relative to the scale of the terms, before it
            counts as not a minimiser. Default eps^⅕ (7e-4 in float64, 4e-2 in float32): coarse, because a coarse solve
            may be meant, to be polished.
        max_iterations: not used.
        on_failure: as for every solver.

    Shapes:
        Inputs come batch first. y (b, *y_shape), or a `Solution` with whatever else the solve knows: multipliers (b, p) and (b, q), status
        and iterations (b,).

    Raises:
        TypeError, ValueError: results of another kind, shape, dtype or device; a warm start, which it does not take.

    Example:
        >>> class Shift(DeclarativeNode):  # x (b, n) -> y (b, n)
        ...     def objective(self, x, y): return 0.5 * (y - x - 1).square().sum()
        ...     def solve(self, x): return x + 1
        >>> Shift(solver=UserSolve(on_failure="nan"))(torch.tensor([[1.0, float("inf")], [1.0, 2.0]]))
        tensor([[nan, nan],
                [2., 3.]])
    """

    _exactness: ClassVar[float] = 0.2

    def solve(self, problem: Problem, init: tuple[Tensor, ...]) -> tuple[Iterate, Layout]:
        if init:
            raise ValueError(f"{problem.name} finds y by its own solve, which takes no warm start; leave init=None")
        found, flat, layout = self._run(problem)
        count = torch.zeros(problem.batch, dtype=torch.int64, device=flat.device)
        status = count + int(Status.CONVERGED) if found.status is None else self._per_sample(problem, "status", found.status)
        iterations = count if found.iterations is None else self._per_sample(problem, "iterations", found.iterations)
        _, h, g = problem.with_layout(layout).evaluate(flat)
        equality = self._multipliers(problem, "equality_multipliers", found.equality_multipliers, h)
        inequality = self._multipliers(problem, "inequality_multipliers", found.inequality_multipliers, g)
        return Iterate(flat, equality, inequality, status, iterations, found.workspace), layout

    def start(self, problem: Problem, init: tuple[Tensor, ...]) -> tuple[Variables, Layout]:  # noqa: ARG002
        return self._run(problem)[1:]

    @staticmethod
    def _run(problem: Problem) -> tuple[Solution, Variables, Layout]:
        outcome = problem.call_batched("solve")
        found = outcome if isinstance(outcome, Solution) else Solution(outcome)
        return found, *read_flat(problem, "solve", found.y)

    @staticmethod
    def _per_sample(problem: Problem, name: str, value: Tensor) -> Tensor:
        if value.shape != (problem.batch,):
            raise ValueError(f"{problem.name}.solve returned {name} of shape {tuple(value.shape)}; expected ({problem.batch},)")
        return value.to(torch.int64)

    @staticmethod
    def _multipliers(problem: Problem, name: str, value: Tensor | None, like: Tensor) -> Tensor | None:
        if value is None:
            return None
        if not isinstance(value, Tensor):
            raise TypeError(f"{problem.name}.solve returned {name} of type {type(value).__name__}; expected a tensor {tuple(like.shape)}")
        if value.shape != like.shape:
            raise ValueError(f"{problem.name}.solve returned {name} of shape {tuple(value.shape)}; expected {tuple(like.shape)}")
        return (value if torch.is_grad_enabled() else value.detach()).to(like.dtype)
