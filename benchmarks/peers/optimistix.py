"""optimistix (jax, compiled, the batch by vmap): implicit differentiation of the unconstrained statements.

Backward, it is its default, `ImplicitAdjoint`, of a minimiser that ends where it starts: the interface for solvers of one's own makes that a few lines,
and nothing but the adjoint is left. The statements carry the tag that H is positive, so that the linear solver that it chooses is Cholesky's; and CG to
a relative residual of 1e-10. Forward, on the gradient, Newton's method, the quickest here, though nothing holds it where it leaves its region of
convergence, and Powell's dogleg, which is held. BFGS takes longer than both and ends at 1e-8.

Source: Rader, Lyons & Kidger, "Optimistix: modular optimisation in JAX and Equinox", arXiv 2402.09983, 2024.
"""

from __future__ import annotations

from torch import Tensor

from benchmarks.peers.derivatives import Derivative
from benchmarks.peers.remote import Task

PACKAGES = ("optimistix",)
LINEAR_TOLERANCE = 1e-10
LINEAR_SOLVERS = ("Cholesky", "CG")
SOLVERS = ("Newton", "Dogleg")


def ways(kind: str, x: Tensor, y: Tensor, v: Tensor) -> tuple[Derivative, ...]:
    """⟨v, y⟩ differentiated by x (b, m) at the solution y: the backward pass alone. Raises ImportError where the package is missing.

    `kind` is the name of a class of benchmarks/statements.py: Robust, LogSumExp or Quartic.
    """

    def way(solver: str) -> Derivative:
        task = Task(PACKAGES, "implicit_optimistix", "backward", (x, y, v), kind=kind, linear_solver=solver, linear_tolerance=LINEAR_TOLERANCE)
        return Derivative.of_task(f"optimistix, {solver}", task)

    return tuple(way(solver) for solver in LINEAR_SOLVERS)


def both_ways(kind: str, x: Tensor, v: Tensor, tolerance: float) -> tuple[Derivative, ...]:
    """Forward from x/‖x‖ until a step, and what it changes, is small by the tolerance, and backward."""

    def way(solver: str) -> Derivative:
        return Derivative.of_task(
            f"optimistix, {solver}", Task(PACKAGES, "implicit_optimistix", "both_ways", (x, v), kind=kind, solver=solver, tolerance=tolerance)
        )

    return tuple(way(solver) for solver in SOLVERS)
