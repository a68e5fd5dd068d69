"""When a first-order solver may stop: by the residual that finish.py will measure.

That needs the size of the gradient's terms, for which one product with H is formed at the start, every so many steps and before a
sample may stop: nothing else near a minimum has the right size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative.engines.autodiff import linearise
from declarative.engines.first_order import value_and_gradient
from declarative.problem import Problem
from declarative.solution import Status
from declarative.solvers.iterative import State, decide, runs_off
from declarative.solvers.optimality import coordinate_sizes, probe
from declarative.typing import Counts, SampleMask, Values, Variables

_PATIENCE = 30
# The sizes of the gradient's terms are measured anew after so many steps, at the cost of about three evaluations.
REFRESH = 20


@torch.no_grad()
def gradient_change(problem: Problem, y: Variables) -> Variables:
    """H d for the probe d, by one product: the size of the terms of ∇f, entry by entry, as finish.py measures it."""
    return linearise(problem, y).hessian_product(probe(coordinate_sizes(y))).detach()


def relative(residual: Variables, gradient: Variables, change: Variables) -> Values:
    """‖residual‖∞, each entry relative to the size of the terms of ∇f there."""
    sizes = torch.maximum(gradient.abs(), change.abs()).clamp_min(torch.finfo(gradient.dtype).tiny)
    return (residual.abs() / sizes).amax(1)


def refreshed(problem: Problem, y: Variables, change: Variables, due: SampleMask) -> Variables:
    """The sizes measured anew where that is due."""
    index = due.nonzero().squeeze(1)
    if index.shape[0] == 0:
        return change
    return change.index_copy(0, index, gradient_change(problem.select(index), y.detach()[index]).nan_to_num(0.0))


def progress(state: State, y: Variables, value: Values, residual: Values, noise: Values, iteration: int) -> tuple[State, SampleMask]:
    """(the best point so far, samples at the level of rounding).

    Those have neither halved their residual nor lowered f visibly for 30 steps and a quarter of all. A user's tolerance below what
    rounding allows ends so, and the best point seen is then a better answer than the last.
    """
    halved = residual <= 0.5 * state["milestone"]
    lowered = value < state["lowest"] - noise
    since = torch.where(halved | lowered, 0, state["since"] + 1)
    better = residual < state["best"]
    new = {
        "milestone": torch.where(halved, residual, state["milestone"]),
        "lowest": torch.where(lowered, value, state["lowest"]).detach(),
        "since": since,
        "best": torch.where(better, residual, state["best"]),
        "best_y": torch.where(better.unsqueeze(1), y, state["best_y"]),
    }
    return new, since >= _PATIENCE + iteration // 4


def no_progress(y: Variables, value: Values, residual: Values) -> State:
    """What `progress` starts from."""
    since = torch.zeros(y.shape[0], dtype=torch.int64, device=y.device)
    return {"milestone": residual, "lowest": value.detach(), "since": since, "best": residual, "best_y": y}


def noise_of(value: Values, y: Variables, change: Variables) -> Values:
    """A change of f that rounding can cause: eps times its value and the terms that may cancel in it."""
    return 10 * torch.finfo(y.dtype).eps * (value.abs() + (change.abs() * coordinate_sizes(y)).sum(1))


def first_scale(y: Tensor, gradient: Tensor, change: Tensor) -> Values:
    """The multiple of −∇f to begin with: the inverse of the curvature that the probe met, not further than 1 + ‖y‖∞."""
    tiny = torch.finfo(y.dtype).tiny
    longest = (1 + y.abs().amax(1)) / gradient.abs().amax(1).clamp_min(tiny)
    scale = (probe(coordinate_sizes(y)) * change).sum(1) / change.square().sum(1)
    return torch.where(torch.isfinite(scale) & (scale > 0), torch.minimum(scale, longest), longest)


def plain_step(problem: Problem, y: Variables) -> Variables:
    """y − t∇f with the length t (held) that the curvature at y suggests."""
    gradient = value_and_gradient(problem, y)[1]
    length = first_scale(y.detach(), gradient.detach(), gradient_change(problem, y.detach()))
    return y - length.unsqueeze(1) * gradient


def ended(
    state: State, flags: tuple[SampleMask, SampleMask], move: tuple[Variables, Variables, Values], residual: tuple[Values, float]
) -> tuple[Counts, SampleMask]:
    """(status, done) of a first-order step: `flags` are (finite, stuck), `move` is (y before, y, f), `residual` comes with its tolerance."""
    (finite, stuck), (before, y, value), (left, tolerance) = flags, move, residual
    return decide(
        (~finite, Status.NON_FINITE),
        (finite & ((left <= tolerance) | (stuck & (left <= 0.1 * torch.finfo(y.dtype).eps ** 0.5))), Status.CONVERGED),
        (finite & runs_off(state, value, y, y - before), Status.UNBOUNDED),
        (stuck, Status.NOT_STATIONARY),
    )
