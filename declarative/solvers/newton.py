"""Batched Newton for unconstrained and equality-constrained problems (Nocedal & Wright, ch. 3 and 18)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from declarative.engines.autodiff import linearise
from declarative.problem import Problem
from declarative.solution import Status
from declarative.solvers.base import IterativeSolver, State, decide
from declarative.solvers.line_search import LineSearch
from declarative.solvers.structured_step import model_at
from declarative.typing import Counts, SampleMask, Variables


@dataclass(frozen=True)
class Newton(IterativeSolver):
    """Newton's method with a line search of its own for each sample; with equalities, sequential quadratic programming.

    Descends from non-convex regions (eigenvalues of the reduced Hessian are made positive), tolerates a singular
    Hessian and redundant constraints. Each sample's iterates depend on that sample alone.

    Args:
        tolerance: stop when the Newton step is below this relative to 1 + ‖y‖∞, and then take that step (so that the
            error left is about its square). Default eps^¾: 1.8e-12 in float64, 6e-6 in float32.
    """

    def begin(self, problem: Problem, y: Variables, init: tuple[Tensor, ...]) -> State:
        equality, inequality = problem.evaluate(y)[1:]
        if inequality.shape[1]:
            raise ValueError(f"{problem.name} has inequality constraints, which Newton() does not handle; use InteriorPoint() or leave solver=None")
        zero = y.new_zeros(problem.batch)
        return {"y": y, "equality": init[1] if init else torch.zeros_like(equality), "inequality": inequality, "penalty": zero, "residual": zero}

    def step(self, problem: Problem, state: State, iteration: int) -> tuple[State, Counts, SampleMask]:  # noqa: ARG002
        y, eps = state["y"], torch.finfo(state["y"].dtype).eps
        at = linearise(problem, y, state["equality"])
        h, f = at.constraints, at.objective
        model = model_at(problem, at, y, state["equality"])
        step, change = model.solve(at.gradient, -h)
        equality = state["equality"] + change
        # The model is of L at the old ν, so its multipliers are a change of ν. The merit function f + ρ‖h‖₁ needs ∇f.
        jacobian = at.jacobian()
        gradient = at.gradient - (jacobian.mT @ state["equality"].unsqueeze(-1)).squeeze(-1)
        infeasibility = h.abs().sum(1)
        largest = equality.abs().amax(1) if equality.shape[1] else torch.zeros_like(f)
        penalty = torch.where(state["penalty"] < 1.1 * largest, 2 * largest, state["penalty"])
        slope = (gradient * step).sum(1) - penalty * infeasibility
        merit = f + penalty * infeasibility
        noise = 10 * eps * (f.abs() + penalty * infeasibility)

        tolerance = eps**0.75 if self.tolerance is None else self.tolerance
        scale = 1 + y.abs().amax(1)
        # Where the model had to be convexified its minimiser may be arbitrarily far.
        reach = (1e3 * scale / step.abs().amax(1).clamp_min(torch.finfo(y.dtype).tiny)).clamp_max(1.0).detach()  # a length is a constant of differentiation
        step = torch.where(model.convex.unsqueeze(1), step, step * reach.unsqueeze(1))
        size = step.abs().amax(1)
        finite = torch.isfinite(size) & torch.isfinite(f)
        # The step is small: take it whole (rounding makes the line search blind at this size) and stop.
        close = finite & (size <= tolerance * scale)

        def merit_at(candidate: Tensor) -> Tensor:
            value, violation, _ = problem.evaluate(candidate)
            return value + penalty * violation.abs().sum(1)

        def correction(candidate: Tensor) -> Tensor:
            return model.solve(torch.zeros_like(step), -problem.evaluate(candidate)[1])[0]

        search = LineSearch(y, step, slope, merit, noise)
        length, candidate = search.run(merit_at, correction if h.shape[1] else None, close)
        # No step length improves the merit: the noise floor (if the step is small at all), or no progress.
        stalled = finite & (length == 0)
        settled = close | (stalled & (size <= eps**0.4 * scale))
        infeasible = _is_infeasible(h, jacobian, scale) & (stalled | close)
        unbounded = finite & (candidate.abs().amax(1) > eps**-0.75)
        status, done = decide(
            (~finite, Status.NON_FINITE),
            (infeasible, Status.INFEASIBLE),
            (settled, Status.CONVERGED),
            (unbounded, Status.UNBOUNDED),
            (stalled, Status.NOT_STATIONARY),
        )
        equality = torch.where((finite & (length > 0)).unsqueeze(1), equality, state["equality"])
        return {"y": candidate, "equality": equality, "inequality": state["inequality"], "penalty": penalty, "residual": size / scale}, status, done


def _is_infeasible(h: Tensor, jacobian: Tensor, scale: Tensor) -> Tensor:
    """‖h‖ has a stationary point with h ≠ 0: no step reduces the violation to first order."""
    if not h.shape[1]:
        return torch.zeros_like(scale, dtype=torch.bool)
    root = torch.finfo(h.dtype).eps ** 0.5
    largest = torch.linalg.vector_norm(jacobian, dim=2).amax(1)
    pull = torch.linalg.vector_norm((jacobian.mT @ h.unsqueeze(-1)).squeeze(-1), dim=1)
    size = torch.linalg.vector_norm(h, dim=1)
    return (pull <= root * largest * size) & (size > root * (1 + largest) * scale)
