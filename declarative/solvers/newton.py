"""Batched Newton for unconstrained and equality-constrained problems."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from declarative.engines.autodiff import linearise
from declarative.problem import Problem
from declarative.solution import Status
from declarative.solvers.iterative import IterativeSolver, State, decide, drop_of, runs_off
from declarative.solvers.line_search import LineSearch, exact_penalty
from declarative.solvers.optimality import coordinate_sizes
from declarative.solvers.structured_step import model_at
from declarative.typing import Counts, SampleMask, Variables


@dataclass(frozen=True)
class Newton(IterativeSolver):
    """Newton's method with a line search of its own for each sample; with equalities, sequential quadratic programming.

    Descends from non-convex regions (eigenvalues of the reduced Hessian are made positive), tolerates a singular
    Hessian and redundant constraints. Each sample's iterates depend on that sample alone.

    Args:
        tolerance: stop when the Newton step is below this relative to 1 + ‖y‖∞, and below its root relative to each
            coordinate, and then take that step (so that the error left is about its square). Default eps^¾: 1.8e-12 in
            float64, 6e-6 in float32.
        max_iterations: 100 by default.
        on_failure, progress: as for every solver.

    Shapes:
        y (b, *y_shape) and ν (b, p), both kept from a warm start.

    Raises:
        ValueError: the node has inequality constraints.

    Example:
        >>> class Nearest(DeclarativeNode):  # of a circle's points: x (b, 2) -> y (b, 2)
        ...     def objective(self, x, y): return 0.5 * (y - x).square().sum()
        ...     def equality_constraints(self, x, y): return y @ y - 1
        ...     def initial_guess(self, x): return x
        >>> Nearest(solver=Newton())(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])

    Source: Nocedal & Wright, "Numerical Optimization", 2006, ch. 3 and 18.
    """

    def begin(self, problem: Problem, y: Variables, init: tuple[Tensor, ...]) -> State:
        objective, equality, inequality = problem.evaluate(y)
        if inequality.shape[1]:
            raise ValueError(f"{problem.name} has inequality constraints, which Newton() does not handle; use InteriorPoint() or leave solver=None")
        zero = y.new_zeros(problem.batch)
        state = {"y": y, "equality": init[1] if init else torch.zeros_like(equality), "inequality": inequality, "penalty": zero, "residual": zero}
        return state | {"radius": 1 + y.abs().amax(1), "first": objective, "drop": zero, "size": zero + torch.inf}

    def step(self, problem: Problem, state: State, iteration: int) -> tuple[State, Counts, SampleMask]:
        y, eps = state["y"], torch.finfo(state["y"].dtype).eps
        at = linearise(problem, y, state["equality"])
        h, f = at.constraints, at.objective
        if iteration == 0:
            state = state | {"drop": drop_of(f, at.gradient, y)}
        scale = 1 + y.abs().amax(1)
        model = model_at(problem, at, y, state["equality"], state["radius"])
        step, change = model.solve(at.gradient, -h)
        # The model is of L at the old ν, so its multipliers are a change of ν. The merit function f + ρ‖h‖₁ needs ∇f.
        rounding = 10 * eps * at.row_sizes().sum(1) * scale
        gradient = at.gradient - at.jacobian_transposed_product(state["equality"])
        infeasibility = h.abs().sum(1)
        slope = (gradient * step).sum(1)
        curvature = (h * change).sum(1) - (at.gradient * step).sum(1)  # dᵀHd, by the step's own equations
        penalty = exact_penalty(state["penalty"], state["equality"] + change, slope, curvature.clamp_min(0.0), infeasibility, rounding)
        slope = slope - penalty * infeasibility
        merit = f + penalty * infeasibility
        noise = 10 * eps * f.abs() + penalty * (10 * eps * infeasibility + rounding)

        tolerance = eps**0.75 if self.tolerance is None else self.tolerance
        size = step.abs().amax(1)
        finite = torch.isfinite(size) & torch.isfinite(f)
        # The step is small: take it whole (rounding makes the line search blind at this size) and stop.
        relative = torch.maximum(size / scale, tolerance**0.5 * (step.abs() / coordinate_sizes(y)).amax(1))
        close = finite & (relative <= tolerance)
        if h.shape[1] and iteration == 0:
            close = torch.zeros_like(close)  # the curvature of L at the first ν says nothing: a maximum would pass for a minimum
        if model.downhill is not None:
            # A saddle point or a maximum, where Newton's step is zero: off it, down the steepest curve.
            trapped = close & (model.downhill != 0).any(1)
            step = torch.where(trapped.unsqueeze(1), 0.1 * state["radius"].unsqueeze(1) * model.downhill, step)
            close = close & ~trapped

        def merit_at(candidate: Tensor) -> Tensor:
            value, violation, _ = problem.evaluate(candidate)
            return value + penalty * violation.abs().sum(1)

        def correction(candidate: Tensor) -> Tensor:
            return model.solve(torch.zeros_like(step), -problem.evaluate(candidate)[1])[0]

        small = size <= eps**0.4 * scale
        # What the step gains is below the rounding of the merit, which may be larger than it looks where terms of f cancel. As long as steps become
        # shorter, they are Newton's last ones.
        blind = small & (slope.abs() <= noise) & (size <= 0.5 * state["size"])
        search = LineSearch(y, step, slope, merit, noise)
        length, candidate = search.run(merit_at, correction if h.shape[1] else None, close | blind)
        # Where the model is not convex, it may reach as far as it has shown to hold.
        radius = torch.where(length < 1, (2 * length).clamp(0.1, 1.0), 2.0) * state["radius"]
        # No step length improves the merit: the noise floor (if the step is small at all), or no progress.
        stalled = finite & (length == 0)
        over = close | (stalled & small)
        unbounded = finite & runs_off(state, f, y, step)
        status, done = decide(
            (~finite, Status.NON_FINITE),
            (over, Status.CONVERGED),
            (unbounded, Status.UNBOUNDED),
            (stalled, Status.NOT_STATIONARY),
        )
        equality = state["equality"] + torch.where((finite & (length > 0)).unsqueeze(1), length.unsqueeze(1) * change, 0.0)
        new = {"y": candidate, "equality": equality, "penalty": penalty, "residual": relative, "radius": radius, "size": size}
        return {**state, **new}, status, done
