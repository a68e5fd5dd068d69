"""The optimal transport layer: its backward pass against the ancestor's, its forward pass against those who solve the same problem to
the same accuracy, its memory, its structure against the generic path, and Hessians of the Sinkhorn divergence.

A peer that is not installed is named in its rows, which then hold our side alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.divergence import hessian_rows
from benchmarks.plans import points
from benchmarks.report import Row, Target
from benchmarks.timing import FULL, QUICK, peak_bytes
from benchmarks.transport_backward import CASES, KEPT, KEPT_GAMMA, SLOW, backward_rows, dense_rows
from benchmarks.transport_forward import GAMMAS, LIMIT, SIZES, SUITE, forward_rows
from declarative import SolverWarning
from declarative.layers import Auto, OptimalTransport, Sinkhorn
from declarative.layers.transport.methods import Method

DENSE_SIZES = ((5, 5), (8, 9), (10, 10), (20, 20), (30, 30))
DENSE_GAMMA = 10.0
MEMORY_GAMMA = 100.0
FEW, MANY = 10, 1000
MATRICES = 6.0


def rows(quick: bool) -> Iterator[Row]:
    """The suite."""
    cases = ((6, 1, (1.0,), 2.5), (5, 2, (5.0,), 2.5)) if quick else CASES
    for n, batch, gammas, ratio in cases:
        for dtype in (torch.float64,) if quick else (torch.float64, torch.float32):
            for gamma in gammas:
                yield from backward_rows(n, batch, gamma, dtype, QUICK if quick else FULL if n <= 100 else SLOW, ratio=ratio)
    for n, batch in ((6, 2),) if quick else KEPT:
        yield from backward_rows(n, batch, KEPT_GAMMA, torch.float64, QUICK if quick else FULL, kept=True)
    for n in (8,) if quick else SIZES:
        for gamma in (5.0,) if quick else GAMMAS:
            yield from forward_rows(n, gamma, 200 if quick else LIMIT, quick)
    yield from memory_rows(30, 60) if quick else memory_rows(500, 1000)
    for m, n in ((3, 4),) if quick else DENSE_SIZES:
        yield from dense_rows(m, n, DENSE_GAMMA, quick)
    yield from hessian_rows(*((4, 5) if quick else (15, 17)), quick)


def memory_rows(n: int, large: int) -> Iterator[Row]:
    """Forward and backward: it does not grow with the iterations, and is a few matrices of the problem's size."""
    for method in (Sinkhorn(), Auto()):
        name = type(method).__name__
        few, many = (_peak(n, method, tolerance=1e-15, max_iterations=count) for count in (FEW, MANY))
        yield Row(SUITE, f"growth of the peak memory, n={n}, {name}(), from {FEW} to {MANY} iterations", "x", many / few, target=Target(ours=1.01))
        matrices = _peak(large, method) / (8 * large**2)
        yield Row(SUITE, f"peak memory of forward and backward, n={large}, {name}()", "matrices", matrices, target=Target(ours=MATRICES))


def _peak(n: int, method: Method, **options: Any) -> float:
    problem, layer = points(n, MEMORY_GAMMA), OptimalTransport(MEMORY_GAMMA, method=method, **options)
    M, V = problem.M.requires_grad_(), torch.ones_like(problem.M)

    def run() -> None:
        torch.autograd.grad(layer(M, problem.r, problem.c), M, V)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SolverWarning)  # of the few iterations, which is the point
        return peak_bytes(run, slack=0.01)
