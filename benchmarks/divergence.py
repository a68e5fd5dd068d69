"""Hessians of the Sinkhorn divergence, by weights and by points: ours by implicit second order, against unrolling and OTT.

The clouds are those of OTT's tutorial: 15 and 17 points, uniform in the unit cube, weights uniform in [0.1, 1.1] and normalised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.func import hessian

from benchmarks import machine
from benchmarks.contest import alone, contest, difference
from benchmarks.peers import ott_divergence, unrolled_divergence
from benchmarks.report import Row, Target
from benchmarks.timing import FULL, QUICK, Effort
from declarative.layers import sinkhorn_divergence

SUITE = "transport"
EPSILON = 0.1
TOLERANCE = 1e-13
# Enough for the Hessian to settle to rounding; the reference takes more.
ITERATIONS, SETTLED = 50, 100
LIMIT = 1e-8
LEVELS = "three transport problems under two levels of torch.func: some 2000 small calls of Python"
ERRORS = "Hessian"
# (position of what the Hessian is by, name, milliseconds).
CASES = ((2, "weights", 5.0), (0, "points", 10.0))
SLOW = Effort(blocks=3, seconds=0.0, runs=1, warm_up=1)

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def sample(n: int, m: int) -> Inputs:
    """x, y, a, b."""
    generator = torch.Generator().manual_seed(0)
    x, y, a, b = (torch.rand(shape, generator=generator, dtype=torch.float64) for shape in ((n, 3), (m, 3), (n,), (m,)))
    a, b = a + 0.1, b + 0.1
    return machine.here(x), machine.here(y), machine.here(a / a.sum()), machine.here(b / b.sum())


def hessian_rows(n: int, m: int, quick: bool) -> Iterator[Row]:
    """By weights and by points, against each peer."""
    inputs = sample(n, m)
    for position, name, milliseconds in CASES:
        what = f"Hessian of the Sinkhorn divergence by {name}, {n} and {m} points in 3-d"
        ours = _hessian(partial(sinkhorn_divergence, epsilon=EPSILON, tolerance=TOLERANCE), position, inputs)
        unrolled, settled = (
            _hessian(partial(unrolled_divergence.divergence, epsilon=EPSILON, iterations=count), position, inputs) for count in (ITERATIONS, SETTLED)
        )
        judge = partial(_error, _modulo_constants(settled(), name), name)
        target = Target(ours=milliseconds, error=LIMIT)
        against = f"{ITERATIONS} unrolled steps"
        yield contest(
            SUITE, what, lambda run=ours: run, against, lambda run=unrolled: run, QUICK if quick else SLOW, target, judge=judge, errors=ERRORS, cause=LEVELS
        )
        effort = QUICK if quick else FULL
        try:
            theirs = ott_divergence.hessian(position, inputs, EPSILON)
        except ImportError as error:
            yield alone(SUITE, what, lambda run=ours: run, effort, target, against="OTT", judge=judge, errors=ERRORS, note=f"OTT skipped: {error}")
            continue
        error = judge(theirs.result())
        yield contest(SUITE, what, lambda run=ours: run, theirs.name, theirs.side, effort, target, judge=judge, errors=ERRORS, peer_error=error, cause=LEVELS)


def _hessian(divergence: Callable[..., Tensor], position: int, inputs: Inputs) -> Callable[[], Tensor]:
    second = hessian(divergence, argnums=position)
    return lambda: second(*inputs)


def _error(exact: Tensor, name: str, found: Tensor) -> float:
    return difference(_modulo_constants(found.to(exact), name), exact)


def _modulo_constants(matrix: Tensor, name: str) -> Tensor:
    """Weights have one mass, so that only directions that keep it count: rows and columns of that Hessian are free by constants."""
    if name != "weights":
        return matrix
    matrix = matrix - matrix.mean(1, keepdim=True)
    return matrix - matrix.mean(0, keepdim=True)
