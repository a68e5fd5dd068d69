"""What the optimality conditions say of a point: scales, active set, residuals. Shared by all that finish a solve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from declarative.engines.autodiff import GraphLinearisation, linearise
from declarative.engines.base import Linearisation
from declarative.engines.quadratic import Quadratic
from declarative.problem import Problem
from declarative.structure.base import Operator
from declarative.typing import EqualityMultipliers, InequalityMask, InequalityMultipliers, Jacobians, Rows, SampleMask, Values, Variables
from declarative.vectors import golden_turns, times


def resolution(dtype: torch.dtype) -> float:
    """The size, relative to 1 + ‖y‖∞, below which a coordinate's value cannot be told from the errors of a solve.

    Rounding in ∇f, some thousand units where its terms cancel, must stay below √eps of the size: eps^¼ leaves room for that in float64; in
    float32 nothing less than 1 does, so there all coordinates are judged on one scale.
    """
    eps = torch.finfo(dtype).eps
    return min(1.0, max(eps**0.25, 3e3 * eps**0.5))


def coordinate_sizes(y: Variables, floor: float = 0.0) -> Variables:
    """The size of each coordinate of y: what a relative error is relative to.

    Coordinates may have units of their own (metres beside radians), so each counts for itself; one that is zero has the size of
    floor · (1 + ‖y‖∞), at least `resolution`: an accuracy of τ resolves coordinates down to √τ.
    """
    return y.abs() + max(floor, resolution(y.dtype)) * (1 + y.abs().amax(1, keepdim=True))


def probe(sizes: Variables) -> Variables:
    """A move of each coordinate by its own size."""
    return sizes * golden_turns(sizes)


# Times the multiplier that balances ∇f.
_LARGEST = 1e3


def multiplied(rows: Jacobians | Operator, vector: Variables) -> Rows:
    """A x"""
    return times(rows, vector) if isinstance(rows, Tensor) else rows.matmul(vector)


def balancing_multipliers(steepest: Variables, magnitudes: Jacobians | Operator, sizes: Variables) -> Rows:
    """For each constraint the multiplier with which it would balance ∇f, as far as that points where the constraint moves."""
    tiny = torch.finfo(steepest.dtype).tiny
    return multiplied(magnitudes, steepest * sizes * sizes) / multiplied(magnitudes, sizes).square().clamp_min(tiny)


def gradient_sizes(steepest: Variables, magnitudes: Jacobians | Operator, sizes: Variables, multipliers: Rows, p: int) -> Variables:
    """The size of the terms of ∇_y L, entry by entry, from those of ∇f, |A|, y and λ."""
    tiny = torch.finfo(steepest.dtype).tiny
    if multipliers.shape[1]:
        balancing = balancing_multipliers(steepest, magnitudes, sizes)
        counted = multipliers != 0
        counted[:, :p] = True
        # Multipliers that are larger by far cancel each other (constraints that depend): they are no size to judge by.
        amounts = torch.minimum(multipliers.abs(), _LARGEST * balancing) + resolution(steepest.dtype) * torch.where(counted, balancing, 0.0)
        steepest = torch.maximum(steepest, multiplied(magnitudes.mT if isinstance(magnitudes, Tensor) else magnitudes.transpose(), amounts))
    return steepest.clamp_min(tiny)


@dataclass
class Scales:
    """Units in which "small" is judged, per sample, so that rescaling f, g, y or one coordinate of y changes no verdict.

    Args:
        y: the size of each coordinate (`coordinate_sizes`).
        gradient: the size of the terms of each entry of ∇_y L: of ∇f, of the change of ∇_y L when y moves by its own size (one
            Hessian-vector product, of L; near an unconstrained minimum nothing else has the right size), and of Σ |λ_i ∇a_i|,
            where a multiplier counts as at least `resolution` and at most 10³ times the one that would balance those terms.
        rows: how much each constraint changes, to first order, when y moves by its own size.
        push: of each inequality with multiplier 1, once somebody has asked: ∇g_i relative to `gradient` where it matters most.
        sets, residuals: what `active_set` and `residuals` have said for these multipliers.
    """

    y: Variables
    gradient: Variables
    rows: Rows
    push: InequalityMultipliers | None = None
    sets: tuple[InequalityMask, InequalityMask] | None = None
    residuals: tuple[Values, Values] | None = None


class Optimality:
    """The problem's first-order data at y, independent of multipliers."""

    def __init__(
        self,
        problem: Problem,
        y: Variables,
        wanted: Sequence[int] = (),
        floor: float = 0.0,
        quadratic: Quadratic | None = None,
        at: Linearisation | None = None,
        magnitudes: Jacobians | None = None,
    ) -> None:
        self.problem, self.y = problem, y
        self._options = wanted, floor, quadratic
        self.at: Linearisation = linearise(problem, y, wanted=wanted) if at is None else at
        if quadratic is not None and isinstance(self.at, GraphLinearisation):
            self.at.knows(quadratic.hessian, quadratic.jacobian)
        self.p = p = self.at.equalities
        self.gradient, self.values = self.at.gradient, self.at.constraints
        closed = self.values.shape[1] > 0 and problem.node.blocks is not None
        if magnitudes is None:
            magnitudes = self.at.magnitudes() if closed else self.jacobian.abs()  # pyright: ignore[reportAttributeAccessIssue]
        self._magnitudes: Jacobians | Operator = magnitudes
        self.slack: InequalityMultipliers = -self.values[:, p:]
        self._size = coordinate_sizes(y, floor)
        self._rows: Rows = multiplied(self._magnitudes, self._size)
        self._move = probe(self._size)
        self._known: tuple[Tensor, Tensor, Scales] | None = None

    @cached_property
    def jacobian(self) -> Jacobians:
        """A, dense."""
        return self.at.jacobian()

    @cached_property
    def _change(self) -> Variables:
        """How much ∇f changes when y moves by its own size."""
        return self.at.hessian_product(self._move)

    @property
    def _entries(self) -> Jacobians:
        """|A|, dense."""
        return self._magnitudes if isinstance(self._magnitudes, Tensor) else self.jacobian.abs()

    def moved(self, y: Variables) -> Optimality:
        """The same at another point."""
        known = self._magnitudes if self._options[2] is not None and isinstance(self._magnitudes, Tensor) else None
        return Optimality(self.problem, y, *self._options, magnitudes=known)

    def lagrangian(self, equality: EqualityMultipliers, inequality: InequalityMultipliers) -> Linearisation:
        """The linearisation of L; where H is the same for all multipliers, that of f has it."""
        return self.at if self._options[2] is not None else self.at.with_multipliers(equality, inequality)

    def scales(self, equality: EqualityMultipliers, inequality: InequalityMultipliers) -> Scales:
        if self._known is None or self._known[0] is not equality or self._known[1] is not inequality:
            here = self.lagrangian(equality, inequality)
            change = self._change if here is self.at else here.hessian_product(self._move)
            steepest = torch.maximum(self.gradient.abs(), change.abs())
            sizes = gradient_sizes(steepest, self._magnitudes, self._size, torch.cat([equality, inequality], 1), self.p)
            self._known = equality, inequality, Scales(self._size, sizes, self._rows)
        return self._known[2]

    def runaway(self, equality: EqualityMultipliers, inequality: InequalityMultipliers) -> SampleMask:
        """(b,) multipliers so large that they can only cancel each other: constraints depend, and a solver has let them grow."""
        multipliers = torch.cat([equality, inequality], 1)
        if not multipliers.shape[1]:
            return torch.zeros_like(self.y[:, 0], dtype=torch.bool)
        steepest = torch.maximum(self.gradient.abs(), self._change.abs())
        return (multipliers.abs() > 1e6 * balancing_multipliers(steepest, self._magnitudes, self._size)).any(1)

    def relative_values(self, scales: Scales) -> Rows:
        """a relative to the change that a move of y by its own size brings: how far each constraint is from holding with equality."""
        return torch.where(self.values == 0, 0.0, self.values / scales.rows.clamp_min(torch.finfo(self.y.dtype).tiny))

    def relative_slack(self, scales: Scales) -> InequalityMultipliers:
        """Distance to each inequality's boundary, relative to the size of y; negative outside."""
        return -self.relative_values(scales)[:, self.p :]

    def relative_push(self, scales: Scales, inequality: InequalityMultipliers) -> InequalityMultipliers:
        """μ_i ∇g_i relative to the terms of ∇_y L, in the coordinate where it matters most."""
        if not inequality.shape[1]:
            return inequality
        if scales.push is None:
            # Of the KKT point of a quadratic program with n = 100, b = 32 this is asked seven times.
            scales.push = (self._entries[:, self.p :] / scales.gradient.unsqueeze(1)).amax(2)
        return inequality * scales.push

    def active_set(self, equality: EqualityMultipliers, inequality: InequalityMultipliers) -> tuple[InequalityMask, InequalityMask]:
        """(active, weakly active), from slack and multiplier together.

        A solution of accuracy δ has an O(δ) slack and an O(1) push where a constraint is active, and the other way round
        where it is not; comparing the two (relative to their scales) decides rightly for any small δ, where a threshold
        on g alone would have to guess δ. A bound on a number that is zero has no size of its own: there the slack is compared on
        the scale of the others, or the least slack would outweigh a small push. Weakly active: both are below √eps, and the
        constraint is not violated.
        """
        eps = torch.finfo(self.y.dtype).eps
        root = eps**0.5
        scales = self.scales(equality, inequality)
        if scales.sets is not None:
            return scales.sets
        push, slack = self.relative_push(scales, inequality), self.relative_slack(scales)
        coarse = multiplied(self._magnitudes, coordinate_sizes(self.y, eps**0.125))[:, self.p :].clamp_min(torch.finfo(self.y.dtype).tiny)
        active = (push > self.slack / coarse) & (push > root)
        scales.sets = active, ~active & (slack.abs() <= root)
        return scales.sets

    def residuals(self, equality: EqualityMultipliers, inequality: InequalityMultipliers, scales: Scales | None = None) -> tuple[Values, Values]:
        """(stationarity, violation), relative; a multiplier of the wrong sign counts as its size in stationarity."""
        if scales is not None:
            return self._residuals(equality, inequality, scales)
        scales = self.scales(equality, inequality)
        if scales.residuals is None:
            scales.residuals = self._residuals(equality, inequality, scales)
        return scales.residuals

    def _residuals(self, equality: EqualityMultipliers, inequality: InequalityMultipliers, scales: Scales) -> tuple[Values, Values]:
        multipliers = torch.cat([equality, inequality], 1)
        total = self.gradient + (
            self.at.jacobian_transposed_product(multipliers) if isinstance(self._magnitudes, Operator) else times(self.jacobian.mT, multipliers)
        )
        stationarity = (total.abs() / scales.gradient).amax(1)
        if not multipliers.shape[1]:
            return stationarity, torch.zeros_like(stationarity)
        relative = self.relative_values(scales)
        relative = torch.cat([relative[:, : self.p].abs(), relative[:, self.p :].clamp_min(0)], 1)
        if inequality.shape[1]:
            stationarity = torch.maximum(stationarity, self.relative_push(scales, -inequality).amax(1).clamp_min(0))
        return stationarity, relative.amax(1)
