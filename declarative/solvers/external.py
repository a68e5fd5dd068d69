"""A function of numpy arrays as a solver: whatever solves ONE instance, mapped over the batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from declarative.errors import SolverError, SolverWarning
from declarative.problem import Layout, Problem
from declarative.solution import Status
from declarative.solvers.base import Iterate, Solver, start_from
from declarative.typing import Variables


class _Found(NamedTuple):
    """What the function returned for one sample."""

    parts: list[np.ndarray]
    equality: np.ndarray | None
    inequality: np.ndarray | None
    is_tuple: bool


@dataclass(frozen=True)
class External(Solver):
    """Anything that finds y for one instance: numpy, cvxpy, a C library, a service.

    The function gets the inputs of one instance as float64 numpy arrays, in the order of `objective`, without a batch
    dimension, and returns y. It is called once for each sample, one after the other, and may keep state of its own, such as
    a parametrised cvxpy problem. Derivatives come from the node's statement, which the result is judged by; `polish` takes
    a coarse one to rounding. To use the node's parameters too, write the node's `solve` instead.

    Args:
        function: (*inputs of one instance) -> y, an array of y_shape, or a tuple of arrays where y is a tuple. None, or a
            member of `Status` that names the reason, says that there is no solution: the sample fails, its neighbours do not.
            So does an exception: with on_failure "raise" it is the cause of the `SolverError`, with "warn" its text is warned
            of, with "nan" only `status` tells.
        multipliers: whether the function returns (y, ν, μ) instead, in the signs of L = f + νᵀh + μᵀg, μ ≥ 0, which are those
            of cvxpy's dual values for `h == 0` and `g <= 0`. None in place of one: it is recovered from y.
        tolerance: how far from stationary and feasible y may be, relative to the scale of the terms. Default eps^⅕ (7e-4 in
            float64), as for a node's own `solve`.
        max_iterations: not used; the function has limits of its own.

    Shapes:
        y: y_shape; ν: (p,); μ: (q,), each of any shape with that many entries. They come back in the dtype and on the device
        of the inputs.

    Raises:
        TypeError, ValueError: results that are not numbers, or whose shapes differ between samples or from the statement; a warm
            start, which it does not take.
        SolverError: an exception of the function, with on_failure "raise".

    Example:
        >>> import cvxpy
        >>> y, z = cvxpy.Variable(3), cvxpy.Parameter(3)
        >>> program = cvxpy.Problem(cvxpy.Minimize(0.5 * cvxpy.sum_squares(y - z)), [cvxpy.sum(y) == 1, y >= 0])
        >>> def by_cvxpy(x):
        ...     z.value = x
        ...     program.solve()
        ...     return y.value
        >>> Projection(solver=External(by_cvxpy), polish=3)(torch.tensor([[0.5, 0.3, 0.6]]))  # Projection: see DeclarativeNode
        tensor([[0.3667, 0.1667, 0.4667]])

    Source: the signs are those of Diamond & Boyd, "CVXPY", JMLR 17(83), 2016.
    """

    function: Callable[..., Any]
    multipliers: bool = field(default=False, kw_only=True)
    _exactness: ClassVar[float] = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.function):
            raise TypeError(f"External(function) must be callable with the numpy arrays of one instance, got {self.function!r}")
        if not isinstance(self.multipliers, bool):
            raise TypeError(f"External(multipliers=...) must be True or False, got {self.multipliers!r}")

    def start(self, problem: Problem, init: tuple[Tensor, ...]) -> tuple[Variables, Layout]:
        # Without a sample to solve, only initial_guess tells the shape of y.
        if problem.batch == 0:
            return start_from(problem, init)
        found, layout = self.solve(problem, init)
        return found.y, layout

    def solve(self, problem: Problem, init: tuple[Tensor, ...]) -> tuple[Iterate, Layout]:
        if init:
            raise ValueError(f"{problem.name} finds y by External(function), which takes no warm start; leave init=None")
        results = [self._call(problem, i) for i in range(problem.batch)]
        found = {i: result for i, result in enumerate(results) if isinstance(result, _Found)}
        layout = _layout(problem, list(found.values()))
        points = torch.full((problem.batch, layout.size), torch.nan, dtype=torch.float64)
        for i, result in found.items():
            points[i] = torch.from_numpy(np.concatenate([part.reshape(-1) for part in result.parts]))
        y = points.to(problem.like)
        _, h, g = problem.with_layout(layout).evaluate(y)
        equality = _multipliers(problem, "ν", {i: result.equality for i, result in found.items()}, h)
        inequality = _multipliers(problem, "μ", {i: result.inequality for i, result in found.items()}, g)
        status = torch.tensor([int(Status.CONVERGED if isinstance(r, _Found) else r) for r in results], device=y.device)
        return Iterate(y, equality, inequality, status, torch.zeros_like(status)), layout

    def _call(self, problem: Problem, i: int) -> _Found | Status:
        """Sample i, or why it has no solution."""
        inputs = zip(problem.tensors[: problem.inputs], problem.in_dims, strict=False)
        # Copies: a function may write on what it gets.
        arrays = [np.array((x if dim is None else x[i]).detach().double().cpu().numpy()) for x, dim in inputs]
        try:
            result = self.function(*arrays)
        except Exception as error:
            message = f"{problem.name}: External(function) raised {type(error).__name__} in sample {i} of {problem.batch}: {error}"
            if self.on_failure == "raise":
                raise SolverError(message) from error
            if self.on_failure == "warn":
                warnings.warn(message, SolverWarning, stacklevel=2)
            return Status.NO_SOLUTION
        return self._read(problem, i, result)

    def _read(self, problem: Problem, i: int, result: Any) -> _Found | Status:
        if isinstance(result, Status):
            return Status.NO_SOLUTION if result == Status.CONVERGED else result
        y, nu, mu = result, None, None
        if self.multipliers and result is not None:
            if not isinstance(result, tuple | list) or len(result) != 3:
                came = f"{type(result).__name__} of length {len(result)}" if isinstance(result, tuple | list) else type(result).__name__
                raise ValueError(f"{problem.name}: External(function, multipliers=True) must return (y, ν, μ), got {came} for sample {i}")
            y, nu, mu = result
        parts = tuple(y) if isinstance(y, tuple | list) else (y,)
        if not parts or any(part is None for part in parts):
            return Status.NO_SOLUTION
        known = [None if value is None else _numbers(problem, i, name, value) for name, value in (("ν", nu), ("μ", mu))]
        return _Found([_numbers(problem, i, "y", part) for part in parts], known[0], known[1], isinstance(y, tuple | list))


def _layout(problem: Problem, found: list[_Found]) -> Layout:
    """The shape of y, from the samples that have one; from the node's `initial_guess` where none has."""
    if not found:
        try:
            return start_from(problem, ())[1]
        except TypeError as error:
            raise SolverError(
                f"{problem.name}: External(function) found no solution of any sample, and without initial_guess nothing else tells the shape of y"
            ) from error
    layouts = {Layout(tuple(part.shape for part in result.parts), result.is_tuple) for result in found}
    if len(layouts) > 1:
        raise ValueError(f"{problem.name}: External(function) returned y of different shapes: {sorted(str(layout.shapes) for layout in layouts)}")
    return layouts.pop()


def _multipliers(problem: Problem, name: str, found: dict[int, np.ndarray | None], like: Tensor) -> Tensor | None:
    """(b, p) or (b, q); None, to be recovered, where a sample that was solved did not bring them."""
    rows = torch.full(like.shape, torch.nan, dtype=torch.float64)
    for i, value in found.items():
        if value is None:
            return None
        if value.size != like.shape[1]:
            raise ValueError(
                f"{problem.name}: External(function) returned {name} of shape {value.shape} for sample {i}; "
                f"expected ({like.shape[1]},), one for each constraint"
            )
        rows[i] = torch.from_numpy(value).reshape(-1)
    return rows.to(like)


def _numbers(problem: Problem, i: int, what: str, value: Any) -> np.ndarray:
    try:
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{problem.name}: External(function) must return {what} as an array of numbers, got {type(value).__name__} for sample {i}") from error
