"""Batched primal-dual interior point for inequalities, equalities or both (Mehrotra 1992; Nocedal & Wright, ch. 19)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from declarative.engines.autodiff import linearise
from declarative.engines.base import Linearisation
from declarative.engines.blocks import is_structured
from declarative.engines.quadratic import Quadratic, is_quadratic
from declarative.problem import Problem
from declarative.solution import Point, Status
from declarative.solvers.barrier import Barrier
from declarative.solvers.base import Iterate
from declarative.solvers.iterative import IterativeSolver, State, decide, drop_of, iterate, report
from declarative.solvers.multipliers import recover
from declarative.solvers.newton import Newton
from declarative.solvers.optimality import Optimality
from declarative.solvers.polish import step_on_active_set
from declarative.solvers.quadratic_program import solve
from declarative.typing import Counts, Found, SampleMask, Values, Variables

_MOVING = ("y", "slack", "equality", "inequality")
# A convex quadratic program with an interior takes 5 to 15 steps.
_MOST_BY_CONSTANTS = 30


@dataclass(frozen=True)
class InteriorPoint(IterativeSolver):
    """Primal-dual interior point with slacks g + s = 0, s > 0; the start need not be feasible.

    Each step factorises the condensed matrix H + A_gᵀ diag(μ/s) A_g on the null space of the equalities once, for a
    predictor and a corrector. Non-convex samples descend on the barrier function with an exact penalty to a local
    minimum. Each sample has its own barrier parameter and step length. A quadratic program (a statement whose H and A do not
    depend on y) is linearised once. A declared structure of H is used where the inequalities keep it: bounds and constraints on a
    few neighbouring numbers. What is left of the barrier is removed afterwards, by Newton steps on the active set, so
    that y and μ come out at machine precision.

    Maxima and saddle points are left. Where the inequalities leave no strict interior (an equation written twice the other way round, a
    transport plan with an empty row) it converges more slowly.

    Args:
        tolerance: stop when stationarity, infeasibility and complementarity are below this relative to their scales.
            Default eps^⅔: 3.7e-11 in float64, 2.4e-5 in float32.

    Shapes:
        y (b, *y_shape) as the node's `initial_guess`; ν (b, p), μ (b, q), μ ≥ 0.

    Example:
        >>> class Projection(DeclarativeNode):  # onto the simplex
        ...     def objective(self, x, y): return 0.5 * ((y - x) ** 2).sum()
        ...     def equality_constraints(self, x, y): return y.sum() - 1
        ...     def inequality_constraints(self, x, y): return -y
        ...     def initial_guess(self, x): return torch.full_like(x, 1 / x.shape[-1])
        >>> Projection(solver=InteriorPoint(max_iterations=50)).solution(torch.tensor([[2.0, 0.5]])).inequality_multipliers.round(decimals=4)
        tensor([[0.0000, 0.5000]])

    Source: Mehrotra, SIAM J. Optim. 2(4), 1992; Nocedal & Wright, "Numerical Optimization", ch. 19; Wächter & Biegler, Math. Prog.
    88, 2000 (why bounds that hold must go on holding).
    """

    def solve_from(self, problem: Problem, y: Variables, init: tuple[Tensor, ...]) -> Iterate:
        at = linearise(problem, y)
        if at.constraints.shape[1] == at.equalities:  # no barrier, no interior
            return self._without_barrier().solve_from(problem, y, init)
        if is_structured(problem.node) or not is_quadratic(at):
            return self._by_steps(problem, at, y, init)
        known = Quadratic(y, at.gradient, at.constraints, at.hessian(), at.jacobian())
        found = self._by_constants(problem, known, at.equalities, init)
        left = ((found.status != Status.CONVERGED) & (found.iterations < self.max_iterations)).nonzero().squeeze(1)
        return self._continued(problem, y, init, found, left) if left.numel() else found

    def _by_steps(self, problem: Problem, at: Linearisation, y: Variables, init: tuple[Tensor, ...]) -> Iterate:
        state, status, iterations = iterate(problem, self._begun(problem, at, y, init), self)
        return Iterate(*self.result(state), status, iterations)

    def _by_constants(self, problem: Problem, known: Quadratic, p: int, init: tuple[Tensor, ...]) -> Iterate:
        y, start = known.origin, None
        if init:
            _, mu, push, margin = _warmth(problem, *init)
            start = torch.maximum(-known.constraints[:, p:], margin), torch.maximum(mu, push)

        def notify(left: Values, done: SampleMask, count: int) -> None:
            report(self, {"residual": left}, done, count - 1, problem.batch)

        y, nu, mu, steps, converged = solve(known, p, start, self._stop(y), min(self.max_iterations, _MOST_BY_CONSTANTS), notify)
        status = torch.where(converged, int(Status.CONVERGED), int(Status.MAX_ITERATIONS))
        return Iterate(y, nu, mu, status, steps, quadratic=known, anew=partial(self._anew, problem, known.origin, init))

    def _continued(self, problem: Problem, y: Variables, init: tuple[Tensor, ...], found: Iterate, left: Tensor) -> Iterate:
        """Samples that are not convex, or have no solution, or no interior, by steps that can tell."""
        spent = found.iterations[left]
        again = replace(self, max_iterations=self.max_iterations - int(spent.max()))._anew(problem, y, init, found, left)
        return replace(again, quadratic=found.quadratic, anew=found.anew, iterations=again.iterations.index_add(0, left, spent))

    def _anew(self, problem: Problem, y: Variables, init: tuple[Tensor, ...], found: Iterate, index: Tensor) -> Iterate:
        """These samples solved step by step: among others those that ended on another quadratic piece than they started on."""
        part, start = problem.select(index), y[index]
        again = self._by_steps(part, linearise(part, start), start, tuple(t[index] for t in init))
        names = ("y", "equality", "inequality", "status", "iterations")
        return replace(found, quadratic=None, anew=None, **{name: getattr(found, name).index_copy(0, index, getattr(again, name)) for name in names})

    def _stop(self, y: Tensor) -> float:
        return torch.finfo(y.dtype).eps ** (2 / 3) if self.tolerance is None else self.tolerance

    def stepping(self, problem: Problem, y: Variables) -> IterativeSolver:
        return self if problem.evaluate(y)[2].shape[1] else self._without_barrier()

    def _without_barrier(self) -> Newton:
        return Newton(tolerance=self.tolerance, max_iterations=self.max_iterations, progress=self.progress)

    def step_from(self, problem: Problem, point: Point) -> Found:
        return step_on_active_set(problem, point)  # the steps that end its solve; those of the barrier stop short of the solution

    def begin(self, problem: Problem, y: Variables, init: tuple[Tensor, ...]) -> State:
        return self._begun(problem, linearise(problem, y), y, init)

    @staticmethod
    def _begun(problem: Problem, at: Linearisation, y: Variables, init: tuple[Tensor, ...]) -> State:
        zero = y.new_zeros(y.shape[0])
        p = at.equalities
        state = {"y": y, "penalty": zero, "residual": zero, "radius": 1 + y.abs().amax(1), "convex": zero > 0}
        state |= {"first": at.objective, "drop": drop_of(at.objective, at.gradient, y)}
        h, g = at.constraints[:, :p], at.constraints[:, p:]
        state = _warm_start(problem, state, init, g) if init else _cold_start(problem, state, h, g)
        return state | {"before": zero + torch.inf, **{f"last_{name}": state[name] for name in _MOVING}}

    def step(self, problem: Problem, state: State, iteration: int) -> tuple[State, Counts, SampleMask]:  # noqa: ARG002
        eps = torch.finfo(state["y"].dtype).eps
        tolerance = self._stop(state["y"])
        system = Barrier(problem, state)
        # Without a strict interior the slacks vanish before the last digits come, and what follows is rounding: the last point was better.
        stalled = (state["before"] <= eps**0.5) & (system.remaining > 0.9 * state["before"]) & (system.remaining > tolerance)
        if bool(stalled.any()):
            state = state | {name: torch.where(stalled.unsqueeze(1), state[f"last_{name}"], state[name]) for name in _MOVING}
        converged = (system.remaining <= tolerance) | stalled
        if bool((converged & state["convex"]).all()) and not torch.is_grad_enabled():
            return {**state, "residual": system.remaining}, torch.full_like(converged, int(Status.CONVERGED), dtype=torch.int64), converged
        s, mu, gap = state["slack"], state["inequality"], system.gap

        # Predictor: straight at complementarity 0. How far it gets sets the centring σ = (gap after / gap)³.
        zero = torch.zeros_like(s)
        ahead = system.direction(zero, zero)
        reach = torch.minimum(_to_boundary(s, ahead["slack"]), _to_boundary(mu, ahead["inequality"])).clamp_max(1.0).unsqueeze(1)
        after = ((s + reach * ahead["slack"]) * (mu + reach * ahead["inequality"])).mean(1)
        centring = (after / gap).clamp(0, 1) ** 3
        floor = torch.minimum(0.1 * tolerance * system.scale_gap, gap)  # nothing is gained below; s and μ stay clear of underflow
        target = torch.maximum(centring * gap, floor).unsqueeze(1)
        convex = system.model.convex
        second_order = ahead["slack"] * ahead["inequality"] * convex.unsqueeze(1)
        step = system.direction(target.expand_as(s), second_order)

        # Fraction to the boundary, tending to 1 towards the solution, so that the last steps are Newton's.
        fraction = 1 - system.remaining.clamp(eps**0.5, 0.005)
        longest = (fraction * _to_boundary(s, step["slack"])).clamp_max(1.0)
        longest_dual = (fraction * _to_boundary(mu, step["inequality"])).clamp_max(1.0)
        length, y_new, s_new, penalty = system.search(step, target[:, 0], longest)
        # Where the merit refuses every length the step is taken short, not dropped: residuals decide on convergence.
        refused = (length == 0) & (longest > 0)
        if bool(refused.any()):
            length = torch.where(refused, 0.1 * longest, length)
            column = refused.unsqueeze(1)
            y_new = torch.where(column, state["y"] + length.unsqueeze(1) * step["y"], y_new)
            s_new = torch.where(column, s + length.unsqueeze(1) * step["slack"], s_new)
            longest_dual = torch.where(refused, 0.1 * longest_dual, longest_dual)

        new = {
            "y": y_new,
            "slack": s_new,
            "equality": state["equality"] + length.unsqueeze(1) * step["equality"],
            "inequality": mu + longest_dual.unsqueeze(1) * step["inequality"],
            "penalty": penalty,
            "residual": system.remaining,
            "convex": convex,
            "before": system.remaining,
            **{f"last_{name}": state[name] for name in _MOVING},
            # Where the model is not convex, it may reach as far as it has shown to hold.
            "radius": torch.where(length < longest, (2 * length / longest).clamp(0.1, 1.0), 2.0) * state["radius"],
        }
        broken = system.finite & ~(torch.isfinite(y_new).all(1) & torch.isfinite(new["inequality"]).all(1) & torch.isfinite(penalty))
        downhill = system.model.downhill
        trapped = torch.zeros_like(converged) if downhill is None else converged & (downhill != 0).any(1)
        converged = converged & ~trapped
        ended = converged | broken | ~system.finite
        if bool(ended.any()):
            column = ended.unsqueeze(1)
            new = {name: torch.where(column if value.ndim == 2 else ended, state[name], value) for name, value in new.items()}
        if downhill is not None and bool(trapped.any()):
            new = self._escaped(problem, {**state, **new}, trapped, downhill)
        contradictory, unbounded = system.contradictory(), system.unbounded(step["y"]) & ~trapped
        if not bool((ended | contradictory | unbounded).any()):
            return {**state, **new}, torch.zeros_like(ended, dtype=torch.int64), ended
        status, done = decide(
            (~system.finite, Status.NON_FINITE),
            (converged, Status.CONVERGED),
            (contradictory, Status.INFEASIBLE),
            (unbounded, Status.UNBOUNDED),
            (broken, Status.NOT_STATIONARY),
        )
        return {**state, **new}, status, done

    @staticmethod
    def _escaped(problem: Problem, state: State, trapped: SampleMask, downhill: Variables) -> State:
        """Off a saddle point or a maximum, where the conditions hold, down the steepest curve; and a new start from there."""
        y = state["y"] + torch.where(trapped, 0.1 * state["radius"], 0.0).unsqueeze(1) * downhill
        _, h, g = problem.evaluate(y)
        renewed = _cold_start(problem, {**state, "y": y}, h, g)
        return state | {name: torch.where(trapped.unsqueeze(1), renewed[name], state[name]) for name in _MOVING}


def _cold_start(problem: Problem, state: State, h: Tensor, g: Tensor) -> State:
    """Slacks and multipliers of the size that a first step from s = max(1, −g), μ = 1 asks for (Mehrotra).

    A constraint that holds at the start gets its own slack, so that bounds, once they hold, go on holding: outside them an infeasible
    step may run into a slack that is zero, and stay. (Wächter & Biegler, 2000.)
    """
    slack = torch.where(torch.isfinite(g), (-g).clamp_min(1.0), 1.0)
    state = {**state, "equality": torch.zeros_like(h), "inequality": torch.ones_like(g), "slack": slack}
    zero = torch.zeros_like(g)
    step = Barrier(problem, state).direction(zero, zero)
    slack, mu = ((state[name] + step[name]).abs().clamp_min(1.0) for name in ("slack", "inequality"))
    slack = torch.where(g < 0, torch.maximum(-g, 1e-2 * slack.clamp_max(1.0)), slack)
    good = (torch.isfinite(slack) & torch.isfinite(mu)).all(1, keepdim=True)
    return {**state, "slack": torch.where(good, slack, state["slack"]), "inequality": torch.where(good, mu, state["inequality"])}


def _warm_start(problem: Problem, state: State, init: tuple[Tensor, ...], g: Tensor) -> State:
    """Near the given solution on both sides, but inside: as far as the point is from solving this problem."""
    with torch.no_grad():
        nu, mu, push, margin = _warmth(problem, *init)
    return {**state, "equality": nu, "inequality": torch.maximum(mu, push), "slack": torch.maximum(-g, margin)}


def _warmth(problem: Problem, y: Tensor, nu: Tensor, mu: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(ν, μ, least push, least slack) of a warm start; multipliers that are all zero are recovered."""
    eps = torch.finfo(y.dtype).eps
    optimality = Optimality(problem, y)
    unknown = ((nu == 0).all(1) & (mu == 0).all(1)).unsqueeze(1)
    if bool(unknown.any()):
        found = recover(optimality, eps ** (1 / 6), None, None)
        nu, mu = (torch.where(unknown, new, old) for new, old in zip(found, (nu, mu), strict=True))
    stationarity, violation = optimality.residuals(nu, mu)
    off = torch.maximum(stationarity, violation).nan_to_num(1.0).clamp(eps**0.5, 1.0).unsqueeze(1)
    scales = optimality.scales(nu, mu)
    # A push of relative size `off` in each row's strongest coordinate.
    push = off / optimality.relative_push(scales, torch.ones_like(mu)).clamp_min(eps)
    return nu, mu, push, off * scales.rows[:, nu.shape[1] :]


def _to_boundary(value: Tensor, change: Tensor) -> Tensor:
    """The largest t ≤ 1e10 with value + t·change ≥ 0, per sample."""
    ratio = torch.where(change < 0, -value / torch.where(change < 0, change, -1.0), torch.inf)
    return ratio.amin(1).clamp_max(1e10)
