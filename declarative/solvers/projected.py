"""Accelerated projected gradients, for a smooth objective over a set whose nearest points are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from declarative.engines.first_order import value_and_gradient, value_and_gradient_where
from declarative.problem import Problem
from declarative.projections import Projection
from declarative.solution import Point, Status
from declarative.solvers.base import Iterate
from declarative.solvers.iterative import IterativeSolver, State, drop_of
from declarative.solvers.optimality import Optimality
from declarative.solvers.sizes import REFRESH, ended, first_scale, gradient_change, no_progress, noise_of, plain_step, progress, refreshed, relative
from declarative.transforms import is_differentiated
from declarative.typing import Counts, Found, SampleMask, Values, Variables

_GROWTH = 1.1  # of a step length from one step to the next, until it is refused


@dataclass(frozen=True)
class Projected(IterativeSolver):
    """Projected gradients with Nesterov's momentum (FISTA), restarted where f rises or the momentum points uphill.

    The node states the same set by its constraints, as for any solver: derivative, active set and multipliers come from the
    statement, this solver only finds y. First derivatives alone, a step length of its own for each sample. Non-convex objectives
    descend to a stationary point. Many steps where H is ill-conditioned: a loose tolerance with `polish=4` is then cheaper.

    Args:
        projection: an object of `declarative.projections`, such as `Simplex()`; or a function (b, m) -> (b, m) that takes flat y to the
            nearest point of a closed convex set, in differentiable torch.
        tolerance: stop when each entry of (y − Π(y − t∇f))/t is below this relative to the size of the terms of ∇f. Default eps^⅔:
            3.7e-11 in float64, 2.4e-5 in float32.
        max_iterations: 5000 by default.
        on_failure, progress: as for every solver.

    Shapes:
        y (b, *y_shape), which the projection sees as (b, m). Multipliers are recovered from y; of a warm start only y counts.

    Raises:
        ValueError: the node states no constraints, or a point of the set violates them; the projection changes shape or dtype.
        TypeError: a projection that cannot be called, or that returns no tensor.

    Example:
        >>> class Nearest(DeclarativeNode):  # x (b, n) -> y (b, n)
        ...     def objective(self, x, y): return 0.5 * (y - x).square().sum()
        ...     def equality_constraints(self, x, y): return y.sum() - 1
        ...     def inequality_constraints(self, x, y): return -y
        ...     def initial_guess(self, x): return torch.full_like(x, 1 / x.shape[-1])
        >>> Nearest(solver=Projected(Simplex()))(torch.tensor([[1.0, 0.0, 0.5]]))
        tensor([[0.7500, 0.0000, 0.2500]])

    Source: Beck & Teboulle, SIAM J. Imaging Sci. 2(1), 2009; restarts: O'Donoghue & Candès, Found. Comput. Math. 15, 2015; steps that
    grow again: Becker, Candès & Grant, Math. Prog. Comp. 3, 2011.
    """

    projection: Projection | Callable[[Tensor], Tensor]
    max_iterations: int = field(default=5000, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.projection, type) or not callable(getattr(self.projection, "project", self.projection)):
            raise TypeError(f"Projected(projection) must be an object such as Simplex(), or a function (b, m) -> (b, m), got {self.projection!r}")

    def solve_from(self, problem: Problem, y: Variables, init: tuple[Tensor, ...]) -> Iterate:
        found = super().solve_from(problem, y, init)
        self._check_agreement(problem, found)
        return found

    def step_from(self, problem: Problem, point: Point) -> Found:
        # At a solution nothing moves any more; a plain step still has a derivative.
        return self._project(problem, plain_step(problem, point.y)), None, None

    def begin(self, problem: Problem, y: Variables, init: tuple[Tensor, ...]) -> State:  # noqa: ARG002
        if not sum(rows.shape[1] for rows in problem.evaluate(y.detach())[1:]):
            raise ValueError(
                f"{problem.name} states no constraints, but Projected(...) would hold y in a set: "
                "state the set by equality_constraints or inequality_constraints too, or use LBFGS() or Newton()"
            )
        y = self._project(problem, y)
        value, gradient = value_and_gradient(problem, y)
        change = gradient_change(problem, y)
        length = first_scale(y.detach(), gradient.detach(), change)
        change = change.nan_to_num(0.0)
        residual = self._residual(problem, y, gradient, change, length)
        return {
            "y": y,
            "value": value,
            "gradient": gradient,
            "previous": y,
            "length": length,
            "weight": torch.ones_like(length),  # FISTA's t
            "shortened": torch.ones_like(length),  # the last change of length, which those weights account for
            "change": change,
            "residual": residual,
            "first": value.detach(),
            "drop": drop_of(value, gradient, y).detach(),
            **no_progress(y, value, residual),
        }

    def step(self, problem: Problem, state: State, iteration: int) -> tuple[State, Counts, SampleMask]:
        y, value, previous, change = state["y"], state["value"], state["previous"], state["change"]
        eps = torch.finfo(y.dtype).eps
        tolerance = eps ** (2 / 3) if self.tolerance is None else self.tolerance
        finite = torch.isfinite(value) & torch.isfinite(state["gradient"]).all(1)
        still = ~finite | (state["residual"] <= tolerance)

        weight = 0.5 * (1 + (1 + 4 * state["weight"].square() * state["shortened"]).sqrt())
        momentum = (state["weight"] - 1) / weight
        ahead = y + momentum.unsqueeze(1) * (y - previous)
        value_ahead, slope_ahead = value_and_gradient(problem, ahead)
        inside = torch.isfinite(value_ahead) & torch.isfinite(slope_ahead).all(1) & (momentum > 0)
        ahead = torch.where(inside.unsqueeze(1), ahead, y)
        value_ahead = torch.where(inside, value_ahead, value)
        slope_ahead = torch.where(inside.unsqueeze(1), slope_ahead, state["gradient"])

        noise = noise_of(value, y, change)
        length, accepted, value_new, gradient_new = self._shorten(problem, (ahead, value_ahead, slope_ahead), _GROWTH * state["length"], noise, still)
        y_new = self._project(problem, ahead - length.unsqueeze(1) * slope_ahead)
        if is_differentiated(y_new, *problem.tensors):
            value_new, gradient_new = value_and_gradient(problem, y_new)
        # After a rise the step is taken back, and the next one is without momentum; so f never rises beyond its rounding.
        taken = accepted & ~still & ~(inside & (value_new > value + noise))
        uphill = ((ahead - y_new) * (y_new - y)).sum(1) > 0
        y_new = torch.where(taken.unsqueeze(1), y_new, y)
        value_new = torch.where(taken, value_new, value)
        gradient_new = torch.where(taken.unsqueeze(1), gradient_new, state["gradient"])
        restart = ~taken | uphill
        weight = torch.where(restart, 1.0, weight).detach()
        length = torch.where(accepted, length, state["length"])

        residual = self._residual(problem, y_new, gradient_new, change, length)
        stuck = finite & ~accepted & ~inside & ~still
        due = finite & ((residual <= tolerance) | stuck | (iteration % REFRESH == REFRESH - 1))
        change = refreshed(problem, y_new, change, due)
        residual = self._residual(problem, y_new, gradient_new, change, length)
        seen, resting = progress(state, y_new, value_new, residual, noise, iteration)
        stuck = (stuck | (finite & resting)) & (residual > tolerance)
        y_new = torch.where(stuck.unsqueeze(1), seen["best_y"], y_new)
        residual = torch.where(stuck, seen["best"], residual)
        status, done = ended(state, (finite, stuck), (y, y_new, value_new), (residual, tolerance))
        new = {"y": y_new, "value": value_new, "gradient": gradient_new, "previous": torch.where(restart.unsqueeze(1), y_new, y), **seen}
        new |= {"length": length, "shortened": state["length"] / length, "weight": weight, "change": change, "residual": residual}
        return {**state, **new}, status, done

    @torch.no_grad()
    def _shorten(self, problem: Problem, at: tuple[Tensor, Tensor, Tensor], length: Tensor, noise: Tensor, still: Tensor) -> tuple[Tensor, ...]:
        """(length, accepted, f, ∇f) of a projected step from `at` = (y, f, ∇f) under which the parabola of that length bounds f."""
        y, value, slope = (part.detach() for part in at)
        accepted = still
        value_new, gradient_new = value, slope
        for _ in range(60):
            candidate = self._project(problem, y - length.unsqueeze(1) * slope)
            move = candidate - y
            trial, gradient = value_and_gradient_where(problem, candidate, ~accepted)
            squared, curvature = move.square().sum(1), ((gradient - slope) * move).sum(1)
            bounded = trial <= value + (slope * move).sum(1) + 0.5 * squared / length + noise
            # The same bound on the change of ∇f, which rounding leaves visible for longer.
            finite = torch.isfinite(trial) & torch.isfinite(curvature)
            good = finite & bounded & (curvature * length <= (1 + 1e-6) * squared)
            fresh = good & ~accepted
            value_new = torch.where(fresh, trial, value_new)
            gradient_new = torch.where(fresh.unsqueeze(1), gradient, gradient_new)
            accepted = accepted | good
            if bool(accepted.all()):
                break
            met = torch.where(finite & (curvature > 0), squared / curvature, 0.5 * length)
            length = torch.where(accepted, length, torch.minimum(torch.maximum(met, 0.1 * length), 0.7 * length))
        return length, accepted, value_new, gradient_new

    def _project(self, problem: Problem, y: Tensor) -> Variables:
        project: Any = getattr(self.projection, "project", self.projection)
        result = project(y)
        if not isinstance(result, Tensor):
            raise TypeError(f"{problem.name}: the projection of Projected(...) must return a tensor (b, m), got {type(result).__name__}")
        if result.shape != y.shape or result.dtype != y.dtype:
            raise ValueError(
                f"{problem.name}: the projection of Projected(...) must keep shape and dtype of flat y, {tuple(y.shape)} and {y.dtype}; "
                f"got {tuple(result.shape)} and {result.dtype}"
            )
        return result

    @torch.no_grad()
    def _residual(self, problem: Problem, y: Tensor, gradient: Tensor, change: Tensor, length: Tensor) -> Values:
        column = length.unsqueeze(1)
        return relative((y - self._project(problem, y - column * gradient)) / column, gradient, change)

    def _check_agreement(self, problem: Problem, found: Iterate) -> None:
        """A point of the projection's set must satisfy what the node states."""
        members = (found.status == Status.CONVERGED).nonzero().squeeze(1)
        if not members.numel():
            return
        problem, y = problem.select(members), found.y[members]
        _, h, g = problem.evaluate(y)
        eps = torch.finfo(y.dtype).eps
        if bool((torch.cat([h.abs(), g], 1) <= 100 * eps).all()):
            return
        violation = Optimality(problem, y).residuals(torch.zeros_like(h), torch.zeros_like(g))[1]
        wrong = (~(violation <= self.accepted(eps))).nonzero().squeeze(1)
        if wrong.numel():
            raise ValueError(
                f"{problem.name}: its constraints and Projected({self.projection!r}) disagree: sample {int(members[wrong[0]])} is in the projection's "
                f"set, but violates the constraints by {float(violation[wrong[0]]):.1e} (relative); state the same set in both"
            )
