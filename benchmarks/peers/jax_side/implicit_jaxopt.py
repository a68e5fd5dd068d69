"""jaxopt on the unconstrained statements: its implicit differentiation at a solution, and with its L-BFGS before it."""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jaxopt
from compiled import compiled
from jaxopt import implicit_diff, linear_solve
from objectives import OBJECTIVES, start, stationarity
from ready import Ready

# Steps: more than any of the three takes to 1e-12.
MOST = 2000


def _linear_solver(name: str, tolerance: float) -> Callable[..., Any]:
    return {"CG": partial(linear_solve.solve_cg, tol=tolerance), "Cholesky": linear_solve.solve_cholesky}[name]


def backward(x: Any, y: Any, v: Any, *, kind: str, linear_solver: str, linear_tolerance: float) -> Ready:
    """(b, m) -> x̄ (b, m)."""
    optimality, solve = stationarity(kind), _linear_solver(linear_solver, linear_tolerance)

    def one(x: Any, y: Any, v: Any) -> Any:
        return implicit_diff.root_vjp(optimality, y, (x,), v, solve=solve)[0]

    return compiled(jax.jit(jax.vmap(one)), x, y, v)


def both_ways(x: Any, v: Any, *, kind: str, tolerance: float, linear_tolerance: float) -> Ready:
    """(b, m) -> x̄ (b, m), y (b, m)."""
    objective, solve = OBJECTIVES[kind], _linear_solver("CG", linear_tolerance)
    solver = jaxopt.LBFGS(fun=lambda y, x: objective(x, y), tol=tolerance, maxiter=MOST, implicit_diff_solve=solve)

    def one(x: Any, v: Any) -> Any:
        y, pull_back = jax.vjp(lambda moving: solver.run(start(x), moving).params, x)
        return pull_back(v)[0], y

    return compiled(jax.jit(jax.vmap(one)), x, v)
