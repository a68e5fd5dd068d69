"""The optimal transport layer: its backward pass against the ancestor's, its forward pass against those who solve the same problem to
the same accuracy, both passes against those who unroll, its memory, its structure against the generic path, and Hessians of the Sinkhorn divergence.

A peer that is not installed is named in its rows, which then hold our side alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks import machine
from benchmarks.contest import alone, contest, figure_row, gradient_error
from benchmarks.divergence import hessian_rows
from benchmarks.peers import ott, pot
from benchmarks.peers.derivatives import reach
from benchmarks.plans import gradient, points, polished
from benchmarks.report import Point, Row, Target
from benchmarks.timing import FULL, QUICK, Effort, peak_bytes
from benchmarks.transport_backward import CASES, KEPT, KEPT_GAMMA, SLOW, backward_rows, dense_rows
from benchmarks.transport_forward import GAMMAS, LIMIT, SIZES, SUITE, forward_rows
from declarative import SolverWarning
from declarative.layers import Auto, OptimalTransport, Sinkhorn
from declarative.layers.transport.methods import Method

DENSE_SIZES = ((5, 5), (8, 9), (10, 10), (20, 20), (30, 30))
DENSE_GAMMA = 10.0
MEMORY_GAMMA = 100.0
COMPILED = "the peer is one compiled program; at 50 points ours is calls of Python"
COUNTS = (10, 100, 1000)
MATRICES = 6.0
BOTH = ((50, 10.0), (50, 100.0), (100, 100.0), (200, 100.0), (500, 100.0))
OURS, TOLERANCES, ENOUGH = 1e-8, (1e-4, 1e-6, 1e-8, 1e-10), 1e-5  # of forward and backward: marginal errors, and the error of the gradient that will do
SCALES = (50, 100, 200, 500, 1000)
VECTORS = "six matrices and a dozen vectors, which are a hundredth of a matrix"
FLOOR_TEXT = """Forward: a scaling step is two products with the kernel (4n² flops, bound by memory: the kernel is read twice); a Newton step on the dual is one
product n³ and one Cholesky n³/3, and 3 to 8 of them replace hundreds to thousands of scaling steps. Backward: the Schur complement (n³ flops), its
Cholesky (n³/3), two products and four passes over n² numbers; with a kept factor only the products and passes are left."""


def rows(quick: bool) -> Iterator[Row]:
    """The suite."""
    cases = ((6, 1, (1.0,), 2.5), (5, 2, (5.0,), 2.5)) if quick else CASES
    for n, batch, gammas, ratio in cases:
        for dtype in (torch.float64,) if quick else (torch.float64, torch.float32):
            for gamma in gammas:
                yield from backward_rows(n, batch, gamma, dtype, QUICK if quick else FULL if n <= 100 else SLOW, ratio=ratio)
    for n, batch in ((6, 2),) if quick else KEPT:
        yield from backward_rows(n, batch, KEPT_GAMMA, torch.float64, QUICK if quick else FULL, kept=True)
    for n in (5, 8) if quick else SCALES:
        yield from backward_rows(n, 1, 1.0 if quick else KEPT_GAMMA, torch.float64, QUICK if quick else SLOW, ratio=None)
    for n in (8,) if quick else SIZES:
        for gamma in (5.0,) if quick else GAMMAS:
            yield from forward_rows(n, gamma, 200 if quick else LIMIT, quick)
    for n, gamma in ((6, 5.0),) if quick else BOTH:
        yield from both_rows(n, gamma, QUICK if quick else SLOW)
    yield from memory_rows(30, 60) if quick else memory_rows(500, 1000)
    for m, n in ((3, 4),) if quick else DENSE_SIZES:
        yield from dense_rows(m, n, DENSE_GAMMA, quick)
    yield from hessian_rows(*((4, 5) if quick else (15, 17)), quick)


def both_rows(n: int, gamma: float, effort: Effort) -> Iterator[Row]:
    """Forward and backward by M, each peer at the loosest of its tolerances that leads to a gradient as good as asked for."""
    problem, layer = points(n, gamma), OptimalTransport(gamma, tolerance=OURS)
    M = problem.M.clone().requires_grad_()
    V = machine.here(torch.randn(n, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    plan = layer(problem.M, problem.r, problem.c)
    judge = gradient_error(gradient(polished(plan, problem), V, gamma))
    what = f"forward and backward, n={n}, γ={gamma:g}"

    def ours() -> Callable[[], torch.Tensor]:
        return lambda: torch.autograd.grad(layer(M, problem.r, problem.c), M, V)[0]

    for name, peer in {"POT": pot, "OTT": ott}.items() if machine.on_cpu() else ():
        try:
            reached = reach(lambda tolerance, peer=peer: peer.both_ways(problem, V, tolerance), TOLERANCES, judge, ENOUGH)
        except ImportError as error:
            yield alone(SUITE, what, ours, effort, against=name, note=f"{name} skipped: {error}")
            continue
        for one in reached:
            way = one.way
            point = Point(f"Entropic transport, γ = {gamma:g}, forward and backward", "n", n)
            found = {"judge": judge, "errors": "gradient", "peer_error": one.error, "note": way.note, "point": point, "cause": COMPILED}
            yield contest(SUITE, what, ours, way.name, way.side, effort, Target(ratio=1.0) if one.error <= ENOUGH else None, **found)


def memory_rows(n: int, large: int) -> Iterator[Row]:
    """Forward and backward: it does not grow with the iterations, and is a few matrices of the problem's size."""
    for method in (Sinkhorn(), Auto()):
        name = type(method).__name__
        peaks = [_peak(n, method, tolerance=1e-15, max_iterations=count) for count in COUNTS]
        for count, peak in zip(COUNTS, peaks, strict=True):
            point = Point(f"Entropic transport, n = {n}: forward and backward", "iterations", count, f"ours, {name}()")
            what = f"peak memory of forward and backward, n={n}, {name}(), at most {count} iterations"
            yield figure_row(SUITE, what, "matrices", peak / (8 * n**2), memory=peak, point=point)
        what = f"growth of the peak memory, n={n}, {name}(), from {COUNTS[0]} to {COUNTS[-1]} iterations"
        yield figure_row(SUITE, what, "x", peaks[-1] / peaks[0], target=Target(ours=1.01))
        for size in (large // 4, large // 2, large):
            peak = _peak(size, method)
            point = Point("Entropic transport, γ = 100: memory of forward and backward", "n", size, f"ours, {name}()")
            target = Target(ours=MATRICES) if size == large else None
            what = f"peak memory of forward and backward, n={size}, {name}()"
            yield figure_row(SUITE, what, "matrices", peak / (8 * size**2), target=target, memory=peak, point=point, cause=VECTORS)


def _peak(n: int, method: Method, **options: Any) -> int:
    problem, layer = points(n, MEMORY_GAMMA), OptimalTransport(MEMORY_GAMMA, method=method, **options)
    M, V = problem.M.requires_grad_(), torch.ones_like(problem.M)

    def run() -> None:
        torch.autograd.grad(layer(M, problem.r, problem.c), M, V)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SolverWarning)  # of the few iterations, which is the point
        return peak_bytes(run, slack=0.01)
