"""OTT on entropic transport: the plan, and the gradient of ⟨V, P⟩ by the cost."""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
from compiled import compiled
from ott.geometry import geometry
from ott.solvers import linear
from ott.solvers.linear import acceleration, implicit_differentiation
from ready import Ready

MOMENTUM_FROM, MEMORY = 30, 5
RIDGE = 1e-2


def _options(way: str) -> dict[str, Any]:
    return {
        "log domain": {},
        "adaptive momentum": {"momentum": acceleration.Momentum(start=MOMENTUM_FROM)},
        "Anderson": {"anderson": acceleration.AndersonAcceleration(memory=MEMORY)},
    }[way]


# Kept: the tolerance is an argument, so that another one compiles nothing anew.
@lru_cache(maxsize=8)
def _plan(gamma: float, limit: int, way: str) -> Any:
    def solve(M: Any, r: Any, c: Any, threshold: Any) -> Any:
        geom = geometry.Geometry(cost_matrix=M, epsilon=1 / gamma)
        found = linear.solve(geom, a=r, b=c, threshold=threshold, max_iterations=limit, **_options(way))
        return found.matrix, found.n_iters

    return jax.jit(solve)


def plan(M: Any, r: Any, c: Any, *, gamma: float, limit: int, way: str, threshold: float) -> Ready:
    """P and the number of iterations."""
    return compiled(_plan(gamma, limit, way), M, r, c, threshold)


def symmetric_adjoint(tolerance: float) -> Any:
    """Without a function on the marginals the system is symmetric, so that CG may stand where CG on the normal equations is the default; it has constants
    in its kernel, which the ridge takes out."""
    options = {"rtol": tolerance, "atol": tolerance, "ridge_kernel": RIDGE}
    return implicit_differentiation.ImplicitDiff(precondition_fun=lambda x: x, symmetric=True, solver_kwargs=options)


@lru_cache(maxsize=8)
def _gradient(gamma: float, limit: int, way: str, linear_tolerance: float) -> Any:
    implicit = symmetric_adjoint(linear_tolerance)

    def value(M: Any, r: Any, c: Any, V: Any, threshold: Any) -> Any:
        geom = geometry.Geometry(cost_matrix=M, epsilon=1 / gamma)
        found = linear.solve(geom, a=r, b=c, threshold=threshold, max_iterations=limit, implicit_diff=implicit, **_options(way))
        return (V * found.matrix).sum()

    return jax.jit(jax.grad(value))


def gradient(M: Any, r: Any, c: Any, V: Any, *, gamma: float, limit: int, way: str, threshold: float, linear_tolerance: float) -> Ready:
    """Of ⟨V, P⟩ by M, forward and backward."""
    return compiled(_gradient(gamma, limit, way, linear_tolerance), M, r, c, V, threshold)
