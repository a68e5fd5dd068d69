"""Solvers made of steps: the loop that they share, and what their statuses have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from declarative.problem import Layout, Problem
from declarative.solution import Point, Status
from declarative.solvers.base import Iterate, Solver, start_from
from declarative.typing import Counts, Found, SampleMask, Values, Variables

State = dict[str, Tensor]


@dataclass(frozen=True)
class Progress:
    """What a solver's `progress` is called with after each iteration; `print` shows it as a line.

    Args:
        solver: the class of the solver, by name.
        iteration: how many there have been.
        running, total: samples that are not done yet, and all of them.
        residual: the largest of the running samples' own measures of what is left, in the units of the solver's tolerance.

    Example:
        >>> print(Progress("Newton", 3, 2, 8, 1e-4))
        Newton    3: 2 of 8 samples running, residual 1.0e-04
        >>> node = Projection(solver=InteriorPoint(progress=print))  # a line for each step of every solve; Projection: see DeclarativeNode
    """

    solver: str
    iteration: int
    running: int
    total: int
    residual: float

    def __str__(self) -> str:
        return f"{self.solver} {self.iteration:4d}: {self.running} of {self.total} samples running, residual {self.residual:.1e}"


@dataclass(frozen=True, kw_only=True)
class IterativeSolver(Solver):
    """A solver made of steps on a state: what runs to convergence, and what `Unrolled` and `OneStep` differentiate.

    A state is tensors (b, …), among them "y" (b, m) and "residual" (b,), the solver's own measure of what is left, relative to its
    tolerance's units. Steps are made of differentiable operations, without branches on a single sample's numbers.

    Args:
        progress: called with a `Progress` after each iteration, for one `print`.
    """

    progress: Callable[[Progress], object] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.progress is not None and not callable(self.progress):
            raise TypeError(f"{type(self).__name__}(progress=...) must be a function of a Progress, such as print, got {self.progress!r}")

    def accepted(self, eps: float) -> float:
        # The solver measures by its own last linearisation, the judge anew.
        return eps**0.5 if self.tolerance is None else max(10 * self.tolerance, eps**0.5)

    @abstractmethod
    def begin(self, problem: Problem, y: Variables, init: tuple[Tensor, ...]) -> State:
        """The state at the start y; `init` is () or the flat (y, ν, μ) of a warm start."""

    @abstractmethod
    def step(self, problem: Problem, state: State, iteration: int) -> tuple[State, Counts, SampleMask]:
        """(new state, status (b,), done (b,)): the status counts where done."""

    def result(self, state: State) -> Found:
        """(y, ν, μ) of a state; None for multipliers that the solver does not know."""
        return state["y"], state.get("equality"), state.get("inequality")

    def stepping(self, problem: Problem, y: Variables) -> IterativeSolver:  # noqa: ARG002
        """Whose steps solve this problem: its own, unless it hands a kind of problem on to another solver."""
        return self

    def step_from(self, problem: Problem, point: Point) -> Found:
        """(y, ν, μ) one step on from a solution: what `OneStep` differentiates."""
        state = self.begin(problem, point.y, (point.y, point.equality, point.inequality))
        return self.result(self.step(problem, state, 0)[0])

    def solve(self, problem: Problem, init: tuple[Tensor, ...]) -> tuple[Iterate, Layout]:
        y, layout = start_from(problem, init)
        return self.solve_from(problem.with_layout(layout), y, init), layout

    def solve_from(self, problem: Problem, y: Variables, init: tuple[Tensor, ...]) -> Iterate:
        """Solve from y, which is that of `init` where there is a warm start."""
        state, status, iterations = iterate(problem, self.begin(problem, y, init), self)
        return Iterate(*self.result(state), status, iterations)


def iterate(problem: Problem, state: State, solver: IterativeSolver) -> tuple[State, Counts, Counts]:
    """Step until each sample is done; a sample that is done stops costing and no longer moves.

    Returns:
        the final state, status (b,), iterations (b,)
    """
    alive = torch.arange(problem.batch, device=problem.like.device)
    status = torch.full_like(alive, int(Status.MAX_ITERATIONS))
    iterations = torch.zeros_like(alive)
    current, here = problem, state
    for count in range(solver.max_iterations):
        here, status_here, done = solver.step(current, here, count)
        iterations[alive] += 1
        report(solver, here, done, count, problem.batch)
        if bool(done.any()):
            if alive.shape[0] == problem.batch and bool(done.all()):
                return here, status_here, iterations
            state = {name: state[name].index_copy(0, alive, value) for name, value in here.items()}
            status[alive[done]] = status_here[done]
            keep = (~done).nonzero().squeeze(1)
            if keep.numel() == 0:
                return state, status, iterations
            alive, current = alive[keep], current.select(keep)
            here = {name: value[keep] for name, value in here.items()}
    return {name: state[name].index_copy(0, alive, value) for name, value in here.items()}, status, iterations


def report(solver: IterativeSolver, state: State, done: SampleMask, count: int, total: int) -> None:
    """Call the solver's `progress`, if it has one, after step number `count` (from 0)."""
    if solver.progress is not None:
        left = state["residual"].detach()[~done]
        worst = float(left.max()) if left.numel() else 0.0
        solver.progress(Progress(type(solver).__name__, count + 1, left.numel(), total, worst))


def decide(*outcomes: tuple[Tensor, Status]) -> tuple[Tensor, Tensor]:
    """(status (s,), done (s,)): for each sample the first outcome whose mask holds; MAX_ITERATIONS where none does."""
    first = outcomes[0][0]
    status = torch.full(first.shape, int(Status.MAX_ITERATIONS), dtype=torch.int64, device=first.device)
    done = torch.zeros_like(first)
    for mask, outcome in reversed(outcomes):
        status = torch.where(mask, int(outcome), status)
        done = done | mask
    return status, done


def drop_of(objective: Values, gradient: Variables, y: Variables) -> Values:
    """What counts as a moderate change of f at the start: its own size, and what its slope makes of a move by 1 + ‖y‖∞."""
    return objective.abs() + gradient.abs().amax(1) * (1 + y.abs().amax(1))


def runs_off(state: State, objective: Values, y: Variables, step: Variables) -> SampleMask:
    """y is huge, the step is of its size, and f has fallen by far more than at the start was moderate ("first" and "drop")."""
    size = y.abs().amax(1)
    far = (size > torch.finfo(y.dtype).eps ** -0.75) & (step.abs().amax(1) > 0.5 * size)
    return far & (state["first"] - objective > 1e4 * state["drop"])
