"""OTT (jax, compiled) on entropic transport: the log domain, its default, with and without momentum.

Source: Cuturi et al., "Optimal transport tools (OTT): a JAX toolbox for all things Wasserstein", arXiv 2201.12324, 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from benchmarks.plans import WANTED, Found, Problem, Way

MOMENTUM = 1.5


def ways(problem: Problem, limit: int) -> tuple[Way, ...]:
    """One for each option. It stops by the 1-norm of the columns' errors. Raises ImportError where the package is not installed."""
    jax, geometry = import_module("jax"), import_module("ott.geometry.geometry")
    linear, acceleration = import_module("ott.solvers.linear"), import_module("ott.solvers.linear.acceleration")
    jax.config.update("jax_enable_x64", True)
    M, r, c = (jax.numpy.asarray(t.numpy()) for t in (problem.M, problem.r, problem.c))
    options = {
        "log domain": {},
        "momentum": {"momentum": acceleration.Momentum(value=MOMENTUM)},
    }

    def compiled(extra: dict[str, Any]) -> Callable[..., Any]:
        def solve(M: Any, r: Any, c: Any, threshold: Any) -> Any:
            geom = geometry.Geometry(cost_matrix=M, epsilon=1 / problem.gamma)
            found = linear.solve(geom, a=r, b=c, threshold=threshold, max_iterations=limit, **extra)
            return found.matrix, found.n_iters

        fast = jax.jit(solve)
        fast(M, r, c, 1.0)  # compiles it
        return fast

    return tuple(Way(f"OTT {label}", [WANTED, WANTED / 3], partial(_solved, compiled(extra), (M, r, c), limit)) for label, extra in options.items())


def _solved(solve: Callable[..., Any], arguments: tuple[Any, ...], limit: int, tolerance: float) -> Found:
    P, iterations = solve(*arguments, tolerance)
    P.block_until_ready()
    return Found(P, int(iterations), exhausted=int(iterations) >= limit)
