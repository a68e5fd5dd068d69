"""What the optimality conditions say of a point: scales, active set, residuals. Shared by all that finish a solve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from declarative.engines.autodiff import linearise
from declarative.engines.base import Linearisation
from declarative.problem import Problem
from declarative.typing import InequalityMask, InequalityMultipliers, Rows, Values, Variables


@dataclass(frozen=True)
class Scales:
    """Units in which "small" is judged, per sample, so that rescaling f, g or y changes no verdict.

    Args:
        y: 1 + ‖y‖∞.
        gradient: the size of the terms of ∇_y L: of ∇f, of each λ_i ∇a_i, and of the change of ∇f when y moves by its
            own size (one Hessian-vector product; near an unconstrained minimum nothing else has the right size).
        rows: ‖∇a_i‖ for each constraint.
    """

    y: Values
    gradient: Values
    rows: Rows


class Optimality:
    """The problem's first-order data at y, independent of multipliers."""

    def __init__(self, problem: Problem, y: Variables, p: int, wanted: Sequence[int] = ()) -> None:
        self.problem, self.y, self.p = problem, y, p
        self.at: Linearisation = linearise(problem, y, wanted=wanted)
        self.gradient, self.values, self.jacobian = self.at.gradient, self.at.constraints, self.at.jacobian()
        self.slack: InequalityMultipliers = -self.values[:, p:]
        self._rows = torch.linalg.vector_norm(self.jacobian, dim=2)
        self._scale_y = 1 + y.abs().amax(1)
        signs = torch.ones(y.shape[1], dtype=y.dtype, device=y.device)
        signs[1::2] = -1
        moved = self.at.hessian_product(self._scale_y.unsqueeze(1) * signs)
        self._steepest = torch.maximum(self.gradient.abs().amax(1), moved.abs().amax(1))

    def scales(self, multipliers: Rows) -> Scales:
        pulls = (self._rows * multipliers.abs()).amax(1) if multipliers.shape[1] else torch.zeros_like(self._steepest)
        return Scales(self._scale_y, torch.maximum(self._steepest, pulls).clamp_min(torch.finfo(self.y.dtype).tiny), self._rows)

    def relative_values(self, scales: Scales) -> Rows:
        """a as signed distances in y relative to the size of y: how far each constraint is from holding with equality."""
        tiny = torch.finfo(self.y.dtype).tiny
        return torch.where(self.values == 0, 0.0, self.values / scales.rows.clamp_min(tiny) / scales.y.unsqueeze(1))

    def relative_slack(self, scales: Scales) -> InequalityMultipliers:
        """Distance to each inequality's boundary in units of y, relative to the size of y; negative outside."""
        return -self.relative_values(scales)[:, self.p :]

    def relative_push(self, scales: Scales, inequality: InequalityMultipliers) -> InequalityMultipliers:
        """μ_i‖∇g_i‖ relative to the terms of ∇_y L."""
        return inequality * scales.rows[:, self.p :] / scales.gradient.unsqueeze(1)

    def active_set(self, inequality: InequalityMultipliers) -> tuple[InequalityMask, InequalityMask]:
        """(active, weakly active), from slack and multiplier together.

        A solution of accuracy δ has an O(δ) slack and an O(1) push where a constraint is active, and the other way round
        where it is not; comparing the two (relative to their scales) decides rightly for any small δ, where a threshold
        on g alone would have to guess δ. Weakly active: both are below √eps, and the constraint is not violated.
        """
        root = torch.finfo(self.y.dtype).eps ** 0.5
        scales = self.scales(torch.cat([torch.zeros_like(self.values[:, : self.p]), inequality], 1))
        push, slack = self.relative_push(scales, inequality), self.relative_slack(scales)
        active = (push > slack) & (push > root)
        return active, ~active & (slack.abs() <= root)

    def residuals(self, equality: Tensor, inequality: Tensor) -> tuple[Values, Values]:
        """(stationarity, violation), relative; a multiplier of the wrong sign counts as its size in stationarity."""
        multipliers = torch.cat([equality, inequality], 1)
        scales = self.scales(multipliers)
        total = self.gradient + (self.jacobian.mT @ multipliers.unsqueeze(-1)).squeeze(-1)
        stationarity = total.abs().amax(1) / scales.gradient
        if not multipliers.shape[1]:
            return stationarity, torch.zeros_like(stationarity)
        relative = self.relative_values(scales)
        relative = torch.cat([relative[:, : self.p].abs(), relative[:, self.p :].clamp_min(0)], 1)
        if inequality.shape[1]:
            stationarity = torch.maximum(stationarity, self.relative_push(scales, -inequality).amax(1).clamp_min(0))
        return stationarity, relative.amax(1)
