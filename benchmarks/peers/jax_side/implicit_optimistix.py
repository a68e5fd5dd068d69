"""optimistix on the unconstrained statements: its implicit adjoint at a solution, and with its solvers before it."""
# ruff: noqa: ARG002, the signatures are optimistix's
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax
import optimistix
from compiled import compiled
from objectives import OBJECTIVES, start, stationarity
from ready import Ready

MOST = 2000
# All three are convex: so one may promise that H is positive, and the automatic choice of a linear solver is Cholesky's.
CONVEX = frozenset({lineax.positive_semidefinite_tag})


class Given(optimistix.AbstractMinimiser):
    """A minimiser that ends where it starts, so that what is left of forward and backward is the adjoint."""

    rtol: float = 0.0
    atol: float = 0.0
    norm: Callable[..., Any] = optimistix.max_norm

    def init(self, fn: Any, y: Any, args: Any, options: Any, f_struct: Any, aux_struct: Any, tags: Any) -> Any:
        return ()

    def step(self, fn: Any, y: Any, args: Any, options: Any, state: Any, tags: Any) -> Any:
        return y, state, None

    def terminate(self, fn: Any, y: Any, args: Any, options: Any, state: Any, tags: Any) -> Any:
        return jnp.array(True), optimistix.RESULTS.successful

    def postprocess(self, fn: Any, y: Any, aux: Any, args: Any, options: Any, state: Any, tags: Any, result: Any) -> Any:
        return y, aux, {}


def _adjoint(linear_solver: str, linear_tolerance: float) -> Any:
    by_cg = lineax.CG(rtol=linear_tolerance, atol=0.0)
    return optimistix.ImplicitAdjoint({"Cholesky": lineax.AutoLinearSolver(well_posed=None), "CG": by_cg}[linear_solver])


def backward(x: Any, y: Any, v: Any, *, kind: str, linear_solver: str, linear_tolerance: float) -> Ready:
    """(b, m) -> x̄ (b, m)."""
    objective, adjoint = OBJECTIVES[kind], _adjoint(linear_solver, linear_tolerance)

    def one(x: Any, y: Any, v: Any) -> Any:
        def solved(moving: Any) -> Any:
            return optimistix.minimise(lambda y, x: objective(x, y), Given(), y, moving, adjoint=adjoint, tags=CONVEX, throw=False).value

        return jax.vjp(solved, x)[1](v)[0]

    return compiled(jax.jit(jax.vmap(one)), x, y, v)


def both_ways(x: Any, v: Any, *, kind: str, solver: str, tolerance: float) -> Ready:
    """(b, m) -> x̄ (b, m), y (b, m)."""
    optimality, method = stationarity(kind), {"Newton": optimistix.Newton, "Dogleg": optimistix.Dogleg}[solver](tolerance, tolerance)

    def one(x: Any, v: Any) -> Any:
        def solved(moving: Any) -> Any:
            return optimistix.root_find(optimality, method, start(x), moving, max_steps=MOST, tags=CONVEX, throw=False).value

        y, pull_back = jax.vjp(solved, x)
        return pull_back(v)[0], y

    return compiled(jax.jit(jax.vmap(one)), x, v)
