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
from declarative.typing import Counts, EqualityMultipliers, InequalityMultipliers, Variables

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
    anew: Callable[[Iterate, Tensor], Iterate] | None = None  # with these samples solved without them


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
