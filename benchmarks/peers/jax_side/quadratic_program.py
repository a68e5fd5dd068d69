"""jaxopt on quadratic programs: OSQP and its implicit differentiation."""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jaxopt
from compiled import compiled
from jaxopt import linear_solve
from ready import Ready

MOST = 20_000


def both_ways(Q: Any, c: Any, A: Any, b: Any, G: Any, d: Any, v: Any, *, tolerance: float, linear_tolerance: float) -> Ready:
    """Batch first -> y, ν, μ, and the gradients of ⟨v, y⟩ by all six."""
    solve = partial(linear_solve.solve_normal_cg, tol=linear_tolerance)
    solver = jaxopt.OSQP(tol=tolerance, maxiter=MOST, eq_qp_solve="lu", implicit_diff_solve=solve, check_primal_dual_infeasability=False)

    def solved(*program: Any) -> Any:
        Q, c, A, b, G, d = program
        found = solver.run(params_obj=(Q, c), params_eq=(A, b), params_ineq=(G, d)).params
        return found.primal, (found.dual_eq, found.dual_ineq)

    def one(v: Any, *program: Any) -> Any:
        y, pull_back, multipliers = jax.vjp(solved, *program, has_aux=True)
        return (y, *multipliers, *pull_back(v))

    return compiled(jax.jit(jax.vmap(one)), v, Q, c, A, b, G, d)
