"""Newton steps on the KKT system, with the active set found anew at each: what a solver left, taken to rounding.

This is the semismooth Newton method on the optimality conditions: rows that push become equations, the others are left
out, and K [dy; dλ] = −[∇_y L; a] is the system that the backward pass solves too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative.engines.autodiff import linearise
from declarative.engines.blocks import hessian_operator, read_solution
from declarative.kkt.bordered import IrregularPolicy, solve_bordered
from declarative.kkt.schur import solve_structured
from declarative.problem import Problem
from declarative.solution import Point
from declarative.solvers.optimality import Optimality
from declarative.structure.elementary import DenseOperator
from declarative.typing import EqualityMultipliers, InequalityMultipliers, SampleMask, Values
from declarative.vectors import times

_ROUNDING = 4  # units of roundoff, and one for each number in y: below, a step gains nothing


def polish(
    optimality: Optimality, equality: EqualityMultipliers, inequality: InequalityMultipliers, steps: int
) -> tuple[Optimality, EqualityMultipliers, InequalityMultipliers]:
    """(at y, ν, μ) after at most `steps` Newton steps; a sample keeps the best that it has seen.

    A step on a wrong active set leads away, and shows what was wrong about it: a constraint that is violated, a multiplier with the
    wrong sign. So the steps go on from where they have come to. (Hintermüller, Ito & Kunisch, SIAM J. Optim. 13(3), 2002.)
    """
    best = current = _Candidate(optimality, equality, inequality)
    for _ in range(steps):
        open_ = ~(best.residual <= (_ROUNDING + best.optimality.y.shape[1]) * torch.finfo(best.residual.dtype).eps)
        if not bool(open_.any()):
            break
        candidate = current.advanced()
        # NaN compares false, so that a failed step is not taken.
        better = open_ & (candidate.residual < best.residual)
        if not bool((better | candidate.differs(current)).any()):
            break
        if bool(better.any()):
            best = candidate if bool(better.all()) else best.where(better, candidate)
        current = candidate
    return best.optimality, best.equality, best.inequality


def step_on_active_set(problem: Problem, point: Point) -> tuple[Tensor, Tensor, Tensor]:
    """(y, ν, μ) one such step from a solution on, differentiable."""
    p, active = point.equality.shape[1], point.active.to(point.y.dtype)
    at = linearise(problem, point.y, point.equality, point.inequality)
    rows = torch.cat([torch.ones_like(point.equality), active], 1)
    policy = IrregularPolicy("raise", point.y.shape[1], point.y.shape[0], problem.name)
    dy, change = solve_bordered(policy, at.hessian(), at.jacobian(), rows, -at.gradient, -at.constraints * rows)
    return point.y + dy, point.equality + change[:, :p], point.inequality + change[:, p:]


class _Candidate:
    def __init__(self, optimality: Optimality, equality: EqualityMultipliers, inequality: InequalityMultipliers) -> None:
        self.optimality, self.equality = optimality, equality
        active, weakly = optimality.active_set(equality, inequality)
        scales = optimality.scales(equality, inequality)
        slack = optimality.relative_slack(scales)
        # Not yet separated by size (an unpolished point may have slack and push both small): the larger one decides.
        root = torch.finfo(equality.dtype).eps ** 0.5
        held = weakly & (inequality > 0) & (optimality.relative_push(scales, inequality) > slack)
        self.active = active | held | (slack < -root)
        self.inequality = torch.where(self.active, inequality, 0.0) if inequality.shape[1] else inequality
        if torch.equal(self.inequality, inequality):
            self.inequality = inequality  # the same, so that what has been measured for it is known
            stationarity, violation = optimality.residuals(equality, inequality)
        else:
            stationarity, violation = optimality.residuals(equality, self.inequality, scales)
        gap = torch.where(self.active, slack.abs(), 0.0).amax(1) if slack.shape[1] else torch.zeros_like(violation)
        self.residual: Values = stationarity + violation + gap

    def differs(self, other: _Candidate) -> SampleMask:
        """Samples whose active set is another, in finite numbers."""
        return (self.active != other.active).any(1) & torch.isfinite(self.residual)

    def advanced(self) -> _Candidate:
        """One Newton step on."""
        here, p = self.optimality, self.equality.shape[1]
        problem, at = here.problem, here.lagrangian(self.equality, self.inequality)
        slope = here.gradient + times(here.jacobian.mT, torch.cat([self.equality, self.inequality], 1))
        rows = torch.cat([torch.ones_like(self.equality), self.active.to(self.equality.dtype)], 1)
        policy = IrregularPolicy("min_norm", here.y.shape[1], here.y.shape[0], problem.name)
        point = read_solution(problem, here.y, self.equality, self.inequality, self.active)
        hessian, jacobian = hessian_operator(problem, at, point), DenseOperator(here.jacobian) if rows.shape[1] else None
        dy, change = solve_structured(policy, hessian, jacobian, rows, -slope, -here.values * rows)
        return _Candidate(here.moved(here.y + dy), self.equality + change[:, :p], self.inequality + change[:, p:])

    def where(self, mask: Tensor, other: _Candidate) -> _Candidate:
        column = mask.unsqueeze(1)
        return _Candidate(
            self.optimality.moved(torch.where(column, other.optimality.y, self.optimality.y)),
            torch.where(column, other.equality, self.equality),
            torch.where(column, other.inequality, self.inequality),
        )
