"""Hessians of the Sinkhorn divergence, by weights and by points: ours by implicit second order, against unrolling and OTT.

The clouds are those of OTT's tutorial: 15 and 17 points, uniform in the unit cube, weights uniform in [0.1, 1.1] and normalised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.func import hessian

from benchmarks.engine import difference
from benchmarks.peers import ott_divergence, unrolled_divergence
from benchmarks.plans import as_tensor
from benchmarks.report import Row, Target, timed
from benchmarks.timing import FULL, QUICK, Effort, compare, measure
from declarative.layers import sinkhorn_divergence

SUITE = "transport"
EPSILON = 0.1
TOLERANCE = 1e-13
# Enough for the Hessian to settle to rounding.
ITERATIONS = 50
AGREEMENT = 1e-8
# (position of what the Hessian is by, name, milliseconds).
CASES = ((2, "weights", 5.0), (0, "points", 10.0))
SLOW = Effort(blocks=3, seconds=0.0, runs=1, warm_up=1)

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def sample(n: int, m: int) -> Inputs:
    """x, y, a, b."""
    generator = torch.Generator().manual_seed(0)
    x, y, a, b = (torch.rand(shape, generator=generator, dtype=torch.float64) for shape in ((n, 3), (m, 3), (n,), (m,)))
    a, b = a + 0.1, b + 0.1
    return x, y, a / a.sum(), b / b.sum()


def hessian_rows(n: int, m: int, quick: bool) -> Iterator[Row]:
    """By weights and by points, against each peer."""
    inputs = sample(n, m)
    for position, name, limit in CASES:
        ours = _hessian(partial(sinkhorn_divergence, epsilon=EPSILON, tolerance=TOLERANCE), position, inputs)
        found = _modulo_constants(ours(), name)
        what = f"Hessian of the Sinkhorn divergence by {name}, {n} and {m} points in 3-d, ours /"
        unrolled = _hessian(partial(unrolled_divergence.divergence, epsilon=EPSILON, iterations=ITERATIONS), position, inputs)
        comparison = compare(lambda run=ours: run, lambda run=unrolled: run, QUICK if quick else SLOW)
        yield timed(SUITE, f"{what} {ITERATIONS} unrolled steps", comparison, Target(ours=limit, agreement=AGREEMENT), _error(found, unrolled, name))
        try:
            theirs = ott_divergence.hessian(position, inputs, EPSILON)
        except ImportError as error:
            yield Row(SUITE, f"{what} OTT, implicit", "ms", measure(lambda run=ours: run, QUICK if quick else FULL).median, note=f"OTT skipped: {error}")
            continue
        comparison = compare(lambda run=ours: run, lambda run=theirs: run, QUICK if quick else FULL)
        yield timed(SUITE, f"{what} OTT, implicit", comparison, Target(ours=limit), _error(found, theirs, name))


def _hessian(divergence: Callable[..., Tensor], position: int, inputs: Inputs) -> Callable[[], Tensor]:
    second = hessian(divergence, argnums=position)
    return lambda: second(*inputs)


def _error(found: Tensor, run: Callable[[], object], name: str) -> float:
    return difference(found, _modulo_constants(as_tensor(run()), name))


def _modulo_constants(matrix: Tensor, name: str) -> Tensor:
    """Weights have one mass, so that only directions that keep it count: rows and columns of that Hessian are free by constants."""
    if name != "weights":
        return matrix
    matrix = matrix - matrix.mean(1, keepdim=True)
    return matrix - matrix.mean(0, keepdim=True)
