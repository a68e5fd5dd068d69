"""Several starts for each sample, solved as one batch; the best solution is returned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from declarative.problem import Layout, Problem
from declarative.solution import Point, Status
from declarative.solvers.base import Iterate, Solver, read_flat, start_from
from declarative.solvers.finish import find_point
from declarative.solvers.user import UserSolve
from declarative.typing import Output, Values, Variables


@dataclass(frozen=True)
class MultiStart(Solver):
    """Another solver from several starts for each sample, for objectives with several minima.

    All starts of all samples are solved in one batch. For each sample the solution with the smallest objective is returned, with its
    multipliers, among those that converged and are judged minimisers; a sample fails only if all its starts fail, with the status
    of the first. `solution.iterations` counts the steps of all starts. Nothing proves the minimum found to be global.

    Args:
        solver: from each start; its tolerance, max_iterations and on_failure hold for the whole: `MultiStart(Newton(on_failure="nan"))`.
        starts: how many. The first is the node's `initial_guess` (or the warm start), the others it plus
            spread · (1 + |y|) · standard normal noise, the same for every sample. Or a function (*inputs) -> (k, b, *y_shape), or a tuple
            of such tensors, that gives all starts; inputs come batch first, and a warm start is one more in front.
        spread: how far the other starts are, in units of 1 + |y|.
        seed: of the noise; the same seed gives the same starts.

    Shapes:
        As those of the solver. It solves k · b samples at once, and takes the memory of as many.

    Raises:
        TypeError, ValueError: starts that are no tensors or of the wrong shape; a `UserSolve`, which takes no start.

    Example:
        >>> class Well(DeclarativeNode):  # x (b, 1) -> y (b, 1)
        ...     def objective(self, x, y): return ((y**2 - 1) ** 2 + x * y).sum()
        ...     def initial_guess(self, x): return torch.ones_like(x)
        >>> x = torch.tensor([[0.0001]])
        >>> Well()(x), Well(solver=MultiStart(Newton()))(x)
        (tensor([[1.0000]]), tensor([[-1.0000]]))

    Source: Rinnooy Kan & Timmer, "Stochastic global optimization methods I", Math. Programming 39, 1987, of which this is the plain form.
    """

    solver: Solver
    starts: int | Callable[..., Output] = 8
    spread: float = 1.0
    seed: int = 0
    tolerance: float | None = field(init=False, default=None)
    max_iterations: int = field(init=False, default=100)
    on_failure: str = field(init=False, default="raise")

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Solver):
            raise TypeError(f"MultiStart(solver) must be an object from declarative.solvers, such as Newton(), got {self.solver!r}")
        if isinstance(self.solver, UserSolve):
            raise ValueError("MultiStart(solver) cannot be UserSolve(): a node's own solve takes no start")
        for name in ("tolerance", "max_iterations", "on_failure"):
            object.__setattr__(self, name, getattr(self.solver, name))
        super().__post_init__()
        if not callable(self.starts):
            _check_count("starts", self.starts, 1)
        _check_count("seed", self.seed, 0)
        if not isinstance(self.spread, int | float) or isinstance(self.spread, bool) or not 0 < self.spread < float("inf"):
            raise ValueError(f"MultiStart(spread=...) must be a positive number, got {self.spread!r}")

    def accepted(self, eps: float) -> float:
        return self.solver.accepted(eps)

    def strict(self) -> Solver:
        return replace(self, solver=self.solver.strict())

    def solve(self, problem: Problem, init: tuple[Tensor, ...]) -> tuple[Iterate, Layout]:
        starts, layout = self._starts(problem, init)
        count, b = starts.shape[0], problem.batch
        index = torch.arange(b, device=starts.device).repeat(count)
        base = problem.select(index)
        repeated = _Started(base.node, base.tensors, base.in_dims, base.batch, base.inputs, base.lifted, layout, base.depth, started=starts.flatten(0, 1))
        point = find_point(repeated, (), (), self.solver, 0, False).point
        best = self._best(repeated.evaluate(point.y)[0], point, count, b)
        iterations = point.iterations.reshape(count, b).sum(0)
        return Iterate(point.y[best], point.equality[best], point.inequality[best], point.status[best], iterations), layout

    @staticmethod
    def _best(objective: Values, point: Point, count: int, b: int) -> Tensor:
        """Of each sample's solutions that with the smallest objective (the first of equals), by its place in the repeated batch."""
        usable = (point.status == Status.CONVERGED) & torch.isfinite(objective)
        ranked = torch.where(usable, objective, torch.inf).reshape(count, b)
        # Differences of rounding's size are none: which start is taken must not hang on them.
        smallest = ranked.amin(0)
        near = ranked <= smallest + 100 * torch.finfo(objective.dtype).eps * smallest.abs()
        first = near.to(torch.int64).argmax(0)
        return first * b + torch.arange(b, device=objective.device)

    def _starts(self, problem: Problem, init: tuple[Tensor, ...]) -> tuple[Tensor, Layout]:
        """(k, b, m)."""
        if callable(self.starts):
            return self._given_starts(problem, init, self.starts)
        y, layout = start_from(problem, init)
        noise = np.random.default_rng(self.seed).standard_normal((self.starts - 1, 1, layout.size))
        others = y + self.spread * (1 + y.abs()) * torch.from_numpy(noise).to(y)
        return torch.cat([y.unsqueeze(0), others]), layout

    @staticmethod
    def _given_starts(problem: Problem, init: tuple[Tensor, ...], function: Callable[..., Output]) -> tuple[Tensor, Layout]:
        tensors = zip(problem.tensors[: problem.inputs], problem.in_dims[: problem.inputs], strict=True)
        given = function(*(t if dim == 0 else t.expand(problem.batch, *t.shape) for t, dim in tensors))
        parts = tuple(given) if isinstance(given, tuple | list) else (given,)
        name = f"{problem.name}: the function starts of MultiStart(...)"
        if not parts or not all(isinstance(part, Tensor) for part in parts):
            raise TypeError(f"{name} must return a tensor (k, b, *y_shape) or a tuple of such tensors, got {given!r}")
        counts = {part.shape[0] if part.ndim > 1 else 0 for part in parts}
        if len(counts) != 1 or 0 in counts:
            raise ValueError(f"{name} must return (k, b, *y_shape) with k ≥ 1 starts, got shapes {[tuple(part.shape) for part in parts]}")
        flat, layouts = [], []
        for i in range(counts.pop()):
            y, layout = read_flat(problem, "starts", tuple(part[i] for part in parts) if isinstance(given, tuple | list) else given[i])
            flat.append(y)
            layouts.append(layout)
        if init:
            y, layout = start_from(problem, init)
            if layout != layouts[0]:
                raise ValueError(f"{name} returned starts of shape {layouts[0].shapes}, the warm start has {layout.shapes}")
            flat.insert(0, y)
        return torch.stack(flat), layouts[0]


@dataclass(frozen=True)
class _Started(Problem):
    """A problem whose initial guess is given."""

    started: Variables | None = None

    def call_batched(self, method: str, *extra: Any, packed: bool = False) -> Any:
        if method != "initial_guess" or self.started is None or self.layout is None:
            return super().call_batched(method, *extra, packed=packed)
        return self.layout.unpack(self.started)

    def select(self, index: Tensor) -> Problem:
        chosen = super().select(index)
        return replace(chosen, started=self.started[index]) if self.started is not None else chosen  # pyright: ignore[reportCallIssue]


def _check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        kind = "an int or a function" if name == "starts" else "an int"
        raise TypeError(f"MultiStart({name}=...) must be {kind}, got {value!r}")
    if value < least:
        raise ValueError(f"MultiStart({name}=...) must be at least {least}, got {value!r}")
