"""jaxopt (jax, compiled, the batch by vmap): implicit differentiation of the unconstrained statements, quadratic programs, projections.

Backward, it is `root_vjp` on the gradient of the objective. Its default linear solver is CG on the normal equations; H is positive here, so that CG itself
and Cholesky are what its documentation advises, the former to a relative residual of 1e-10, which gives gradients to 1e-9.
Forward, L-BFGS with its defaults but for the tolerance: quick everywhere among its solvers, where nonlinear CG halves the time of some single samples and
takes eight times as long for a batch; it has no Newton's method.
Quadratic programs go to OSQP, its only solver with equations and inequalities that can be compiled and batched, with LU inside (quicker than CG at these
sizes) and its default implicit differentiation, normal CG, to 1e-10.

Source: Blondel et al., "Efficient and modular implicit differentiation", NeurIPS 2022.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from benchmarks.peers.derivatives import Derivative
from benchmarks.peers.remote import Task
from benchmarks.quadratic import Answer, Inputs

PACKAGES = ("jaxopt",)
LINEAR_TOLERANCE = 1e-10
LINEAR_SOLVERS = ("CG", "Cholesky")


def ways(kind: str, x: Tensor, y: Tensor, v: Tensor) -> tuple[Derivative, ...]:
    """⟨v, y⟩ differentiated by x (b, m) at the solution y: the backward pass alone. Raises ImportError where the package is missing.

    `kind` is the name of a class of benchmarks/statements.py: Robust, LogSumExp or Quartic.
    """

    def way(solver: str) -> Derivative:
        task = Task(PACKAGES, "implicit_jaxopt", "backward", (x, y, v), kind=kind, linear_solver=solver, linear_tolerance=LINEAR_TOLERANCE)
        return Derivative.of_task(f"jaxopt, {solver}", task)

    return tuple(way(solver) for solver in LINEAR_SOLVERS)


def both_ways(kind: str, x: Tensor, v: Tensor, tolerance: float) -> tuple[Derivative, ...]:
    """Forward from x/‖x‖ until the gradient's norm is at most the tolerance, and backward."""
    task = Task(PACKAGES, "implicit_jaxopt", "both_ways", (x, v), kind=kind, tolerance=tolerance, linear_tolerance=LINEAR_TOLERANCE)
    return (Derivative.of_task("jaxopt, L-BFGS and CG", task),)


@dataclass(frozen=True)
class Program:
    """Forward and backward of quadratic programs, in one run."""

    side: Task

    def answer(self) -> Answer:
        """y, ν, μ."""
        return Answer(*self.side.tensors()[:3])

    def gradients(self) -> tuple[Tensor, ...]:
        """By Q, c, A, b, G, d."""
        return self.side.tensors()[3:]


def quadratic_programs(inputs: Inputs, v: Tensor, tolerance: float = 1e-9) -> Program:
    """⟨v, y⟩ differentiated by all six inputs; the residuals that it stops by are at most the tolerance. Raises ImportError where the package is missing."""
    options = {"tolerance": tolerance, "linear_tolerance": LINEAR_TOLERANCE}
    return Program(Task(PACKAGES, "quadratic_program", "both_ways", (*inputs, v), **options))


def top_k(x: Tensor, v: Tensor, k: int) -> Derivative:
    """⟨v, u⟩ differentiated by x (b, n), forward and backward, for u the projection of x onto {Σu = k, 0 ≤ u ≤ 1}.

    With k = 1 by sorting, as everybody does; else by bisection, with its defaults.
    """
    return Derivative.of_task("jaxopt, projection", Task(PACKAGES, "top_k", "both_ways", (x, v), k=k))
