"""Newton steps on the KKT system, with the active set found anew at each: what a solver left, taken to rounding.

This is the semismooth Newton method on the optimality conditions: rows that push become equations, the others are left
out, and K [dy; dλ] = −[∇_y L; a] is the system that the backward pass solves too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative.engines.autodiff import linearise
from declarative.kkt.bordered import IrregularPolicy, solve_bordered
from declarative.problem import Problem
from declarative.solution import Point
from declarative.solvers.optimality import Optimality


def polish(problem: Problem, y: Tensor, equality: Tensor, inequality: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """(y, ν, μ) after at most `steps` Newton steps; a sample keeps the best that it has seen."""
    best = _Candidate(problem, y, equality, inequality)
    for _ in range(steps):
        candidate = best.advanced()
        # NaN compares false, so that a failed step is not taken.
        better = candidate.residual < best.residual
        if not bool(better.any()):
            break
        best = candidate if bool(better.all()) else best.where(better, candidate)
    return best.y, best.equality, best.inequality


def step_on_active_set(problem: Problem, point: Point) -> tuple[Tensor, Tensor, Tensor]:
    """(y, ν, μ) one such step from a solution on, differentiable."""
    p, active = point.equality.shape[1], point.active.to(point.y.dtype)
    at = linearise(problem, point.y, point.equality, point.inequality)
    rows = torch.cat([torch.ones_like(point.equality), active], 1)
    policy = IrregularPolicy("raise", point.y.shape[1], point.y.shape[0], problem.name)
    dy, change = solve_bordered(policy, at.hessian(), at.jacobian(), rows, -at.gradient, -at.constraints * rows)
    return point.y + dy, point.equality + change[:, :p], point.inequality + change[:, p:]


class _Candidate:
    def __init__(self, problem: Problem, y: Tensor, equality: Tensor, inequality: Tensor) -> None:
        self.problem, self.y, self.equality = problem, y, equality
        self.optimality = Optimality(problem, y, equality.shape[1])
        active, weakly = self.optimality.active_set(inequality)
        root = torch.finfo(y.dtype).eps ** 0.5
        scales = self.optimality.scales(torch.cat([equality, inequality], 1))
        # Not yet separated by size (an unpolished point may have slack and push both small): the larger one decides.
        self.active = active | (weakly & (self.optimality.relative_push(scales, inequality) > self.optimality.relative_slack(scales).clamp_min(root)))
        self.inequality = torch.where(self.active, inequality, 0.0)
        stationarity, violation = self.optimality.residuals(equality, self.inequality)
        slack = self.optimality.relative_slack(scales)
        gap = torch.where(self.active, slack.abs(), 0.0).amax(1) if slack.shape[1] else torch.zeros_like(violation)
        self.residual = stationarity + violation + gap

    def advanced(self) -> _Candidate:
        """One Newton step on."""
        p = self.equality.shape[1]
        at = linearise(self.problem, self.y, self.equality, self.inequality)
        rows = torch.cat([torch.ones_like(self.equality), self.active.to(self.y.dtype)], 1)
        policy = IrregularPolicy("min_norm", self.y.shape[1], self.y.shape[0], self.problem.name)
        dy, change = solve_bordered(policy, at.hessian(), self.optimality.jacobian, rows, -at.gradient, -at.constraints * rows)
        return _Candidate(self.problem, self.y + dy, self.equality + change[:, :p], self.inequality + change[:, p:])

    def where(self, mask: Tensor, other: _Candidate) -> _Candidate:
        column = mask.unsqueeze(1)
        return _Candidate(
            self.problem,
            torch.where(column, other.y, self.y),
            torch.where(column, other.equality, self.equality),
            torch.where(column, other.inequality, self.inequality),
        )
