"""Batched primal-dual interior point for inequalities, equalities or both (Mehrotra 1992; Nocedal & Wright, ch. 19)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from declarative.engines.autodiff import linearise
from declarative.problem import Layout, Problem
from declarative.solution import Point, Status
from declarative.solvers.base import Found, Iterate, IterativeSolver, State, decide, start_from
from declarative.solvers.line_search import LineSearch
from declarative.solvers.newton import Newton
from declarative.solvers.optimality import coordinate_sizes, gradient_sizes
from declarative.solvers.polish import step_on_active_set
from declarative.solvers.step import ReducedModel
from declarative.typing import Counts, SampleMask, Variables


@dataclass(frozen=True)
class InteriorPoint(IterativeSolver):
    """Primal-dual interior point with slacks g + s = 0, s > 0; the start need not be feasible.

    Each step factorises the condensed matrix H + A_gᵀ diag(μ/s) A_g on the null space of the equalities once, for a
    predictor and a corrector. Non-convex samples descend on the barrier function with an exact penalty to a local
    minimum. Each sample has its own barrier parameter and step length. What is left of the barrier is removed afterwards,
    by Newton steps on the active set, so that y and μ come out at machine precision.

    Args:
        tolerance: stop when stationarity, infeasibility and complementarity are below this relative to their scales.
            Default eps^⅔: 3.7e-11 in float64, 2.4e-5 in float32.
    """

    def solve(self, problem: Problem, init: tuple[Tensor, ...]) -> tuple[Iterate, Layout]:
        y, layout = start_from(problem, init)
        if not problem.with_layout(layout).evaluate(y)[2].shape[1]:  # no barrier, no interior
            return Newton(max_iterations=self.max_iterations, progress=self.progress).solve(problem, init)
        return super().solve(problem, init)

    def stepping(self, problem: Problem, y: Variables) -> IterativeSolver:
        if problem.evaluate(y)[2].shape[1]:
            return self
        return Newton(max_iterations=self.max_iterations, progress=self.progress)

    def step_from(self, problem: Problem, point: Point) -> Found:
        return step_on_active_set(problem, point)  # the steps that end its solve; those of the barrier stop short of the solution

    def begin(self, problem: Problem, y: Variables, init: tuple[Tensor, ...]) -> State:
        return self._warm_start(problem, y, init) if init else self._cold_start(problem, y)

    @staticmethod
    def _cold_start(problem: Problem, y: Tensor) -> State:
        """Slacks and multipliers of the size that a first step from s = max(1, −g), μ = 1 asks for (Mehrotra)."""
        _, h, g = problem.evaluate(y)
        state = {
            "y": y,
            "equality": torch.zeros_like(h),
            "inequality": torch.ones_like(g),
            "slack": (-g).clamp_min(1.0),
            "penalty": y.new_zeros(y.shape[0]),
            "residual": y.new_zeros(y.shape[0]),
        }
        state["slack"] = torch.where(torch.isfinite(g), state["slack"], 1.0)
        system = _Barrier(problem, state)
        zero = torch.zeros_like(g)
        step = system.direction(zero, zero)
        slack, mu = ((state[name] + step[name]).abs().clamp_min(1.0) for name in ("slack", "inequality"))
        good = (torch.isfinite(slack) & torch.isfinite(mu)).all(1, keepdim=True)
        return {**state, "slack": torch.where(good, slack, state["slack"]), "inequality": torch.where(good, mu, state["inequality"])}

    @staticmethod
    def _warm_start(problem: Problem, y: Tensor, init: tuple[Tensor, ...]) -> State:
        """Near the given solution on both sides, but inside."""
        slack = -problem.evaluate(y)[2]
        margin = torch.finfo(y.dtype).eps ** 0.25
        return {
            "y": y,
            "equality": init[1],
            "inequality": init[2].clamp_min(margin),
            "slack": slack.clamp_min(margin),
            "penalty": y.new_zeros(y.shape[0]),
            "residual": y.new_zeros(y.shape[0]),
        }

    def step(self, problem: Problem, state: State, iteration: int) -> tuple[State, Counts, SampleMask]:  # noqa: ARG002
        eps = torch.finfo(state["y"].dtype).eps
        tolerance = eps ** (2 / 3) if self.tolerance is None else self.tolerance
        system = _Barrier(problem, state)
        converged = system.remaining <= tolerance
        s, mu, gap = state["slack"], state["inequality"], system.gap

        # Predictor: straight at complementarity 0. How far it gets sets the centring σ = (gap after / gap)³.
        zero = torch.zeros_like(s)
        ahead = system.direction(zero, zero)
        reach = torch.minimum(_to_boundary(s, ahead["slack"]), _to_boundary(mu, ahead["inequality"])).clamp_max(1.0).unsqueeze(1)
        after = ((s + reach * ahead["slack"]) * (mu + reach * ahead["inequality"])).mean(1)
        centring = (after / gap).clamp(0, 1) ** 3
        floor = torch.minimum(0.1 * tolerance * system.scale_gap, gap)  # nothing is gained below; s and μ stay clear of underflow
        target = torch.maximum(centring * gap, floor).unsqueeze(1)
        second_order = torch.where(system.model.convex.unsqueeze(1), ahead["slack"] * ahead["inequality"], 0.0)
        step = system.direction(target.expand_as(s), second_order)

        # Fraction to the boundary, tending to 1 as the gap closes, so that the last steps are Newton's.
        fraction = 1 - (gap / system.scale_gap).clamp(eps**0.5, 0.005)
        longest = (fraction * _to_boundary(s, step["slack"])).clamp_max(1.0)
        longest_dual = (fraction * _to_boundary(mu, step["inequality"])).clamp_max(1.0)
        length, y_new, s_new, penalty = system.search(step, target[:, 0], longest)
        # Where the merit refuses every length the step is taken short, not dropped: residuals decide on convergence.
        refused = length == 0
        length = torch.where(refused, 0.1 * longest, length)
        y_new, s_new = (
            torch.where(refused.unsqueeze(1), old + length.unsqueeze(1) * step[name], new) for name, old, new in (("y", state["y"], y_new), ("slack", s, s_new))
        )
        longest_dual = torch.where(refused, 0.1 * longest_dual, longest_dual)

        new = {
            "y": y_new,
            "slack": s_new,
            "equality": state["equality"] + length.unsqueeze(1) * step["equality"],
            "inequality": mu + longest_dual.unsqueeze(1) * step["inequality"],
            "penalty": penalty,
            "residual": system.remaining,
        }
        keep = (system.finite & ~converged).unsqueeze(1)
        new = {name: torch.where(keep if value.ndim == 2 else keep[:, 0], value, state[name]) for name, value in new.items()}
        status, done = decide(
            (~system.finite, Status.NON_FINITE),
            (converged, Status.CONVERGED),
            (system.contradictory(), Status.INFEASIBLE),
            (system.unbounded(), Status.UNBOUNDED),
        )
        return new, status, done


class _Barrier:
    """The perturbed optimality system of a batch at (y, ν, μ, s), factorised."""

    def __init__(self, problem: Problem, state: State) -> None:
        self._problem, self._state = problem, state
        y, nu, mu, s = (state[name] for name in ("y", "equality", "inequality", "slack"))
        self._p = nu.shape[1]
        at = linearise(problem, y, nu, mu)
        a, self._jacobian, hessian = at.constraints, at.jacobian(), at.hessian()
        self._multipliers = torch.cat([nu, mu], 1)
        self._objective, self._gradient = at.objective, at.gradient
        self._f_gradient = at.gradient - _transposed(self._jacobian, self._multipliers)
        self._h, self._violation = a[:, : self._p], a[:, self._p :] + s
        self._a_g = self._jacobian[:, self._p :]
        self.gap = (s * mu).mean(1)
        self._residual = torch.cat([self._h, self._violation], 1)

        size, magnitudes, tiny = coordinate_sizes(y), self._jacobian.abs(), torch.finfo(y.dtype).tiny
        steepest = torch.maximum(self._f_gradient.abs(), (hessian.abs() @ size.unsqueeze(-1)).squeeze(-1))
        self._scale_f = gradient_sizes(steepest, magnitudes, self._multipliers, self._p)
        self._scale_a = (magnitudes @ size.unsqueeze(-1)).squeeze(-1) + tiny
        self.scale_gap = (self._scale_f * size).amax(1) + tiny
        relative = torch.cat([self._gradient.abs() / self._scale_f, self._residual.abs() / self._scale_a], 1).amax(1)
        self.remaining = torch.maximum(relative, self.gap / self.scale_gap)  # the largest relative residual
        self.finite = torch.isfinite(at.objective) & torch.isfinite(at.gradient).all(1) & torch.isfinite(a).all(1)
        self._weights = mu / s
        self.model = ReducedModel(hessian + (self._a_g.mT * self._weights.unsqueeze(1)) @ self._a_g, self._jacobian[:, : self._p])

    def direction(self, target: Tensor, second_order: Tensor) -> State:
        """Newton's step towards s ∘ μ = target, with Δs ∘ Δμ ≈ second_order accounted for."""
        s, mu = self._state["slack"], self._state["inequality"]
        push = (target - second_order) / s - mu + self._weights * self._violation
        dy, d_nu = self.model.solve(self._gradient + _transposed(self._a_g, push), -self._h)
        d_s = -self._violation - (self._a_g @ dy.unsqueeze(-1)).squeeze(-1)
        return {"y": dy, "slack": d_s, "equality": d_nu, "inequality": (target - second_order) / s - mu - self._weights * d_s}

    def search(self, step: State, barrier: Tensor, longest: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(length, y, s, ρ) on the merit function f − τ Σ log s + ρ(‖h‖₁ + ‖g + s‖₁), τ the complementarity aimed at."""
        y, s = self._state["y"], self._state["slack"]
        m, eps = y.shape[1], torch.finfo(y.dtype).eps
        largest = _largest(self._multipliers + torch.cat([step["equality"], step["inequality"]], 1))
        penalty = torch.where(self._state["penalty"] < 1.1 * largest, 2 * largest, self._state["penalty"])
        infeasibility = self._h.abs().sum(1) + self._violation.abs().sum(1)
        logs = s.log()
        slope = (self._f_gradient * step["y"]).sum(1) - barrier * (step["slack"] / s).sum(1) - penalty * infeasibility
        merit = self._objective - barrier * logs.sum(1) + penalty * infeasibility
        noise = 10 * eps * (self._objective.abs() + penalty * (infeasibility + self._scale_a.amax(1)) + barrier * logs.abs().sum(1))

        def merit_at(joint: Tensor) -> Tensor:
            value, h, g = self._problem.evaluate(joint[:, :m])
            slack = joint[:, m:]
            return value - barrier * slack.log().sum(1) + penalty * (h.abs().sum(1) + (g + slack).abs().sum(1))

        line = LineSearch(torch.cat([y, s], 1), torch.cat([step["y"], step["slack"]], 1), slope, merit, noise, halvings=12)
        length, joint = line.run(merit_at, None, torch.zeros_like(self.finite), longest)
        return length, joint[:, :m], joint[:, m:], penalty

    def contradictory(self) -> Tensor:
        """Multipliers that have grown large, cancel in Aᵀλ and leave a violation: a certificate of infeasibility (Farkas)."""
        largest = _largest(self._multipliers)
        steepest = self._jacobian.abs().amax((1, 2))
        grown = largest * steepest > 1e4 * _largest(self._f_gradient)
        cancelling = _largest(_transposed(self._jacobian, self._multipliers)) <= 1e-3 * largest * steepest
        value = torch.cat([self._h, self._violation - self._state["slack"]], 1)
        separating = (self._multipliers * value).sum(1) > 1e-3 * largest * _largest(self._residual)
        return grown & cancelling & separating & (self._residual.abs() > torch.finfo(largest.dtype).eps ** 0.5 * self._scale_a).any(1)

    def unbounded(self) -> Tensor:
        """The iterate has run off while nearly feasible."""
        y = self._state["y"]
        return (_largest(y) > torch.finfo(y.dtype).eps ** -0.75) & (self._residual.abs() <= 1e-3 * self._scale_a).all(1)


def _transposed(jacobian: Tensor, rows: Tensor) -> Tensor:
    """Aᵀ w."""
    return (jacobian.mT @ rows.unsqueeze(-1)).squeeze(-1)


def _largest(values: Tensor) -> Tensor:
    """‖·‖∞ of each sample, 0 where there is nothing."""
    return values.abs().amax(1) if values.shape[1] else values.new_zeros(values.shape[0])


def _to_boundary(value: Tensor, change: Tensor) -> Tensor:
    """The largest t ≤ 1e10 with value + t·change ≥ 0, per sample."""
    ratio = torch.where(change < 0, -value / torch.where(change < 0, change, -1.0), torch.inf)
    return ratio.amin(1).clamp_max(1e10)
