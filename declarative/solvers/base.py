"""The contract of a solver, and the loop that the iterative ones share.

A solver turns a `Problem` and a start into an `Iterate`. What it leaves out (multipliers, active set) and what must hold
of every solution (residuals, status, the failure policy) is done once for all, in finish.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from declarative.engines.quadratic import Quadratic
from declarative.problem import Layout, Problem
from declarative.solution import Point, Status
from declarative.typing import Counts, EqualityMultipliers, InequalityMultipliers, SampleMask, Values, Variables

ON_FAILURE_CHOICES = ("raise", "warn", "nan")


@dataclass(frozen=True)
class Iterate:
    """What a solver found. Multipliers that it does not know are None and will be recovered from y."""

    y: Variables
    equality: EqualityMultipliers | None
    inequality: InequalityMultipliers | None
    status: Counts
    iterations: Counts
    workspace: Any = None  # what a node's own solve left for its solve_kkt
    quadratic: Quadratic | None = None  # the statement's constants, where it has been found to be quadratic


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """Finds y. These options are those of every solver.

    Args:
        tolerance: how exact, a positive number; each solver says in what units. None: its default for the dtype.
        max_iterations: at most this many steps for a sample. The default is the solver's.
        on_failure: "raise" a `SolverError` naming samples and causes; "warn" with a `SolverWarning` and return the last
            iterates; "nan": mark the failed samples with NaN (their neighbours are untouched), silently but for `status`.

    Shapes:
        y (b, *y_shape), as `initial_guess` returns it; multipliers ν (b, p) and μ (b, q); status and iterations (b,).

    Raises:
        TypeError, ValueError: options of a wrong kind or out of range.
        SolverError: samples that failed, with on_failure "raise".
    """

    tolerance: float | None = None
    max_iterations: int = 100
    on_failure: str = "raise"
    _exactness: ClassVar[float] = 0.5  # the power of eps that passes by default

    def __post_init__(self) -> None:
        if self.on_failure not in ON_FAILURE_CHOICES:
            raise ValueError(f"{type(self).__name__}(on_failure=...) must be one of {ON_FAILURE_CHOICES}, got {self.on_failure!r}")
        if self.tolerance is not None and not isinstance(self.tolerance, int | float):
            raise TypeError(f"{type(self).__name__}(tolerance=...) must be a number or None, got {self.tolerance!r}")
        if not isinstance(self.max_iterations, int) or isinstance(self.max_iterations, bool):
            raise TypeError(f"{type(self).__name__}(max_iterations=...) must be an int, got {self.max_iterations!r}")
        if self.tolerance is not None and not self.tolerance > 0:
            raise ValueError(f"{type(self).__name__}(tolerance=...) must be positive, got {self.tolerance!r}")
        if self.max_iterations < 1:
            raise ValueError(f"{type(self).__name__}(max_iterations=...) must be at least 1, got {self.max_iterations!r}")

    @abstractmethod
    def solve(self, problem: Problem, init: tuple[Tensor, ...]) -> tuple[Iterate, Layout]:
        """Solve the batch. `init` is () or flat (y, ν, μ) to start from; runs under no_grad."""

    def start(self, problem: Problem, init: tuple[Tensor, ...]) -> tuple[Variables, Layout]:
        """The flat start: a warm start, or the node's `initial_guess`."""
        return start_from(problem, init)

    def accepted(self, eps: float) -> float:
        """The relative residual up to which a point that the solver calls a solution passes for one."""
        return eps**self._exactness if self.tolerance is None else max(self.tolerance, eps**0.5)

    def strict(self) -> Solver:
        """This solver, as exact as it gets (for finite differences)."""
        return replace(self, tolerance=None) if self.tolerance is not None else self


def start_from(problem: Problem, init: tuple[Tensor, ...]) -> tuple[Variables, Layout]:
    """The flat start: a warm start, or the node's `initial_guess`."""
    if init:
        if problem.layout is None:
            raise RuntimeError(f"{problem.name}: a warm start without a layout")
        return init[0], problem.layout
    return read_flat(problem, "initial_guess", problem.call_batched("initial_guess"))


def read_flat(problem: Problem, method: str, y: Any) -> tuple[Variables, Layout]:
    """What the node's method returned, checked and flattened."""
    layout = read_layout(problem, method, y)
    # A copy: the node may return its input, or an expanded tensor, and neither may become the output's memory.
    flat = layout.pack(y if isinstance(y, tuple | list) else (y,)).clone(memory_format=torch.contiguous_format)
    return flat if torch.is_grad_enabled() else flat.detach(), layout


def read_layout(problem: Problem, method: str, y: object) -> Layout:
    """The shape of y from what the node's method returned, or an error that says what is wrong with it."""
    name = f"{problem.name}.{method}"
    parts = tuple(y) if isinstance(y, tuple | list) else (y,)
    if not parts:
        raise ValueError(f"{name} returned an empty tuple; expected a tensor (b, *y_shape) or a tuple of such tensors")
    for i, part in enumerate(parts):
        which = f"entry {i} of the tuple" if len(parts) > 1 else "its result"
        if not isinstance(part, Tensor):
            raise TypeError(f"{name} must return a tensor (b, *y_shape) or a tuple of such tensors; {which} is {type(part).__name__}")
        if part.ndim == 0 or part.shape[0] != problem.batch:
            raise ValueError(
                f"{name} must return a batch: expected a leading dimension of size {problem.batch}, {which} has shape {tuple(part.shape)}. "
                "It gets its inputs batch first, those shared by the batch expanded to it"
            )
        if part.dtype != problem.like.dtype:
            raise TypeError(f"{name} must keep the dtype of the inputs, {problem.like.dtype}; {which} is {part.dtype}")
        if part.device != problem.like.device:
            raise ValueError(f"{name} must keep the device of the inputs, {problem.like.device}; {which} is on {part.device}")
    return Layout(tuple(tuple(part.shape[1:]) for part in parts if isinstance(part, Tensor)), isinstance(y, tuple | list))


State = dict[str, Tensor]


def with_quadratic(state: State, quadratic: Quadratic) -> State:
    """The state of a solver that has found the statement to be quadratic: its constants go along with each sample."""
    return state | {f"quadratic_{name}": value for name, value in vars(quadratic).items()}


def quadratic_of(state: State) -> Quadratic | None:
    """What `with_quadratic` put there."""
    if "quadratic_hessian" not in state:
        return None
    return Quadratic(*(state[f"quadratic_{name}"] for name in Quadratic.__dataclass_fields__))


Found = tuple[Variables, EqualityMultipliers | None, InequalityMultipliers | None]


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
        problem = problem.with_layout(layout)
        state, status, iterations = iterate(problem, self.begin(problem, y, init), self)
        return Iterate(*self.result(state), status, iterations, quadratic=quadratic_of(state)), layout


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
