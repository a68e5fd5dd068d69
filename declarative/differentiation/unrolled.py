"""Differentiation through the solver's own steps, as an alternative to the optimality conditions and a check on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from declarative.differentiation.base import Differentiation, Forward
from declarative.problem import Layout, Problem
from declarative.solution import DerivativeReport, Point
from declarative.transforms import is_recorded, reject_mapped_and_dual, without_graph


@dataclass(frozen=True)
class Unrolled(Differentiation):
    """Run a number of the solver's steps and differentiate through all of them.

    The derivative is that of the iterate, whether it has converged or not, to any order in reverse mode, and tends to that of the
    solution. Memory and the time of the backward pass grow with the steps; `Implicit` needs neither, and is exact.

    `initial_guess` is differentiated too; a warm start and the lengths that a line search finds are constants. Nothing is polished:
    y is the iterate. Too few steps are no error: `Solution.status` says MAX_ITERATIONS or NOT_STATIONARY. Other failures follow the
    solver's `on_failure`. y is differentiable, and so are the multipliers that the solver keeps (`Newton`, `InteriorPoint`).

    Args:
        steps: exactly so many, for every sample (the solver's `max_iterations` does not count). None: for a node with a `solve`
            of its own in differentiable torch, which is run as it is written.

    Shapes:
        As those of the node: y (b, *y_shape), status (b,).

    Raises:
        TypeError: solvers that are not made of steps (`SciPy`), a solve that torch cannot differentiate; use `Implicit`.
        ValueError: fewer steps than 1; a node that is to be polished.
        NotImplementedError: torch.func.vmap around the node, and forward mode.

    Example:
        >>> class Root(DeclarativeNode):  # ¼y⁴ − xy: the cube root of x
        ...     def objective(self, x, y): return (y**4 / 4 - x * y).sum()
        ...     def initial_guess(self, x): return torch.ones_like(x)
        >>> x = torch.tensor([[2.0]], requires_grad=True)
        >>> torch.cat([torch.autograd.grad(Root(differentiation=Unrolled(steps))(x).sum(), x)[0] for steps in (1, 2, 8)], 1)
        tensor([[0.3333, 0.2222, 0.2100]])

    Source: Domke, "Generic methods for optimization-based modeling", AISTATS 2012.
    """

    steps: int | None = None

    def __post_init__(self) -> None:
        if self.steps is None:
            return
        if not isinstance(self.steps, int) or isinstance(self.steps, bool):
            raise TypeError(f"Unrolled(steps) must be an int, or None for a node's own solve, got {self.steps!r}")
        if self.steps < 1:
            raise ValueError(f"Unrolled(steps) must be at least 1, got {self.steps!r}")

    def apply(self, problem: Problem, forward: Forward, init: tuple[Tensor, ...]) -> tuple[Point, Layout, DerivativeReport]:
        reject_mapped_and_dual("Unrolled", *problem.tensors)
        init = tuple(t.detach() for t in init)
        if problem.batch == 0:
            return self._empty(problem, forward, init)
        with torch.set_grad_enabled(is_recorded(*problem.tensors)):
            found, layout = forward.unroll(problem, init, self.steps)
        names = [name for name in ("y", "equality", "inequality", "status", "iterations") if getattr(found, name) is not None]
        count, bare = len(problem.tensors), problem.with_tensors(()).with_layout(layout)

        def judged(*tensors: Tensor) -> tuple[Tensor, ...]:
            numbers: Any = dict(zip(names, tensors[count:], strict=True))
            return tuple(vars(forward.judge(bare.with_tensors(tensors[:count]), replace(found, workspace=None, **numbers))).values())

        point = Point(*without_graph(judged, *problem.tensors, *(getattr(found, name) for name in names)))
        # Where the failure policy has put NaN, NaN stays.
        y = torch.where(torch.isnan(point.y), point.y, found.y)
        equality = point.equality if found.equality is None else torch.where(torch.isnan(point.equality), point.equality, found.equality)
        inequality = point.inequality if found.inequality is None else torch.where(point.active, found.inequality, point.inequality)
        return replace(point, y=y, equality=equality, inequality=inequality), layout, self._report()

    def _report(self) -> DerivativeReport:
        return DerivativeReport(method="the node's own solve, unrolled" if self.steps is None else f"{self.steps} unrolled steps")

    def _empty(self, problem: Problem, forward: Forward, init: tuple[Tensor, ...]) -> tuple[Point, Layout, DerivativeReport]:
        solved = forward(problem, init, ())
        zero = sum((t.sum() for t in problem.tensors if t.is_floating_point()), problem.like.new_zeros(()))
        return replace(solved.point, y=solved.point.y + zero), solved.layout, self._report()
