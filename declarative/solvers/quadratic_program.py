"""Convex quadratic programs by their constants alone.

Mehrotra's steps (mehrotra.py) come near the solution; from there it is that of one linear system, as soon as the active rows show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from declarative.engines.quadratic import Quadratic
from declarative.kkt.bordered import IrregularPolicy, solve_bordered
from declarative.solvers.mehrotra import Program, Walk, reduced
from declarative.typing import Counts, EqualityMultipliers, InequalityMultipliers, Rows, SampleMask, Values, Variables
from declarative.vectors import times

# The power of eps at which the active rows are tried: at 1e-4 (float64) they were right in all of the benchmark's 194 programs, two steps
# before the end.
_EARLY = 0.25

Ended = tuple[Variables, EqualityMultipliers, InequalityMultipliers, Counts, SampleMask]


@dataclass(frozen=True)
class Stop:
    """Where each sample's walk has ended.

    Args:
        z, pair: as in `Walk`
        active: rows whose slack shrinks faster than their multiplier in the last step (Tapia's indicator; El-Bakry, Tapia & Zhang, SIAM
            Review 36, 1994).
        steps: how many.
        converged: whether it came to the tolerance, with K positive definite.
    """

    z: Tensor
    pair: Tensor
    active: Tensor
    steps: Counts
    converged: SampleMask


def run(walk: Walk, sound: SampleMask, tolerance: Values, limit: int, notify: Callable[[Values, SampleMask, int], None]) -> Stop:
    """Until each sample has come to the tolerance, or `limit` steps; one that does not keeps where it was when that showed."""
    places = torch.arange(walk.z.shape[0], device=walk.z.device)
    running = places >= 0
    stop = Stop(torch.empty_like(walk.z), torch.empty_like(walk.pair), torch.empty_like(walk.active), torch.full_like(places, limit), places < 0)

    def note(index: Tensor) -> None:
        there = places[index]
        stop.z[there], stop.pair[there], stop.active[there] = walk.z[index], walk.pair[index], walk.active[index]

    for count in range(1, limit + 1):
        remaining = walk.measure()
        left = remaining.flatten()
        ended = ~(left > tolerance) | ~sound  # NaN has ended, too
        notify(left, ended, count)
        if bool((ended & running).any()):
            index = (ended & running).nonzero().squeeze(1)
            note(index)
            stop.steps[places[index]], stop.converged[places[index]] = count, ((left <= tolerance) & sound)[index]
            running = running & ~ended
            keep = running.nonzero().squeeze(1)
            if not keep.numel():
                return stop
            # A copy of the constants costs about as much as the steps of the samples that have ended, until half of them have.
            if 2 * keep.numel() <= running.shape[0]:
                walk = walk.select(keep)
                places, running, tolerance, remaining = places[keep], running[keep], tolerance[keep], walk.measure()
        sound = walk.factorise()
        walk.advance(remaining)
    note(running.nonzero().squeeze(1))
    return stop


def solve(
    known: Quadratic,
    p: int,
    start: tuple[InequalityMultipliers, InequalityMultipliers] | None,
    tolerance: float,
    limit: int,
    notify: Callable[[Values, SampleMask, int], None],
) -> Ended:
    """(y, ν, μ, steps, converged) after at most `limit` steps.

    A strictly convex program is left early, for the equations of the rows that are active by then: whether their solution is the
    optimum shows in signs alone. Samples with a row that neither pushes clearly nor is clearly slack walk on.

    Args:
        start: slacks and multipliers of the inequalities to begin with; None: Mehrotra's.
        tolerance: of `Walk.measure`.
        notify: called with (what is left, done, steps so far) after each step.
    """
    program, inverse = reduced(known, p)
    offset = program.offset.squeeze(2)
    pair = torch.stack(start or ((-offset).clamp_min(1.0), torch.ones_like(offset)), 1).unsqueeze(3)
    walk = Walk(program, torch.zeros_like(program.slope), pair, 0.1 * tolerance)
    sound = walk.start(moving=start is None)
    definite = program.is_definite()
    early = torch.where(definite, max(tolerance, torch.finfo(offset.dtype).eps ** _EARLY), tolerance).to(offset.dtype)
    stop = run(walk, sound, early, limit, notify)
    y, multipliers, exact = _crossed(known, inverse, stop, program.origin)
    if not bool(exact.all()):
        index = (stop.converged & definite & ~exact).nonzero().squeeze(1)
        if index.numel():
            _walk_on(stop, program, index, tolerance, limit, notify)
        here, mu = (program.origin + stop.z).squeeze(2), stop.pair[:, 1].squeeze(2)
        column = exact.unsqueeze(1)
        multipliers = torch.where(column, multipliers, torch.cat([_equality_multipliers(known, inverse, here, mu)[0], mu], 1))
        y = torch.where(column, y, here)
    return y, multipliers[:, :p], multipliers[:, p:], stop.steps, stop.converged


def _equality_multipliers(known: Quadratic, inverse: Tensor | None, y: Variables, mu: InequalityMultipliers) -> tuple[EqualityMultipliers, Variables]:
    """ν that makes ∇_y L smallest, and ∇_y L."""
    p = known.jacobian.shape[1] - mu.shape[1]
    pull = known.gradient(y) + times(known.jacobian[:, p:].mT, mu)
    if inverse is None:
        return pull[:, :0], pull
    nu = -times(inverse.mT, pull)
    return nu, pull + times(known.jacobian[:, :p].mT, nu)


def _walk_on(stop: Stop, program: Program, index: Tensor, tolerance: float, limit: int, notify: Callable[[Values, SampleMask, int], None]) -> None:
    """These samples to a smaller tolerance, from where they have stopped; `stop` is written."""
    before = stop.steps[index] - 1  # the first step of the second walk measures where the first one ended
    spent = int(before.max())
    more = run(
        Walk(program.select(index), stop.z[index], stop.pair[index], 0.1 * tolerance),
        stop.converged[index],
        torch.full_like(stop.z[index, 0, 0], tolerance),
        limit - spent,
        lambda left, done, count: notify(left, done, spent + count),
    )
    stop.z[index], stop.pair[index], stop.steps[index], stop.converged[index] = more.z, more.pair, before + more.steps, more.converged


def _crossed(known: Quadratic, inverse: Tensor | None, stop: Stop, origin: Tensor) -> tuple[Variables, Rows, SampleMask]:
    """The solution of the equations of the active rows, its multipliers, and whether it is optimal: no row is left out that it violates,
    none is in that pulls.
    """
    active, y, mu = stop.active.squeeze(2), (origin + stop.z).squeeze(2), torch.where(stop.active, stop.pair[:, 1], 0.0).squeeze(2)
    # From the multipliers that are there: what the solve adds is small, and so is its rounding.
    nu, gradient = _equality_multipliers(known, inverse, y, mu)
    p = nu.shape[1]
    weights = torch.nn.functional.pad(active.to(y.dtype), (p, 0), value=1.0)
    values = known.constraints + times(known.jacobian, y - known.origin)
    policy = IrregularPolicy("nan", y.shape[1], y.shape[0], "a quadratic program")
    dy, change = solve_bordered(policy, known.hessian, known.jacobian, weights, -gradient, -values * weights)
    multipliers = torch.cat([nu, mu], 1) + change
    margin = torch.where(active, multipliers[:, p:], -(values + times(known.jacobian, dy))[:, p:])
    return y + dy, multipliers, stop.converged & (margin.amin(1) > 0) & torch.isfinite(dy).all(1)
