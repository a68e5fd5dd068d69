"""What a solve returns: per sample, the minimiser, its multipliers, its active set and how the solve went."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from torch import Tensor

from declarative.typing import Counts, EqualityMultipliers, InequalityMask, InequalityMultipliers, Output, Values, Variables


class Status(IntEnum):
    """How the solve of one sample ended. ``solution.status == Status.CONVERGED`` is a mask over the batch."""

    CONVERGED = 0
    MAX_ITERATIONS = 1
    INFEASIBLE = 2
    UNBOUNDED = 3
    NON_FINITE = 4
    NOT_STATIONARY = 5
    NO_SOLUTION = 6
    NO_INLIERS = 7

    @property
    def meaning(self) -> str:
        """The status in words, for messages."""
        return _MEANINGS[self]


_MEANINGS = {
    Status.CONVERGED: "converged",
    Status.MAX_ITERATIONS: "did not converge within max_iterations",
    Status.INFEASIBLE: "no point satisfies the constraints",
    Status.UNBOUNDED: "the objective is unbounded below on the feasible set",
    Status.NON_FINITE: "NaN or inf in the inputs, the start or the statement's values",
    Status.NO_SOLUTION: "the solver came back without a solution",
    Status.NO_INLIERS: "no point is near enough to pull: the objective is flat there, and the derivative zero",
    Status.NOT_STATIONARY: "the point is not a minimiser (the optimality conditions do not hold there)",
}


@dataclass
class DerivativeReport:
    """What happened when the solution was last differentiated; filled in by the backward pass (or the forward mode).

    Args:
        policy: what was chosen for irregular samples.
        irregular: for each sample whose KKT matrix was singular, why. The policy was applied to these.
        residual: (b,) relative residual of the linear solve, always of the system WITHOUT damping.
        refined: how many steps of iterative refinement that took.
        damping, smoothing: what the caller asked for; 0 by default.
        method: how the linear system was solved.
    """

    policy: str = "raise"
    irregular: dict[int, str] = field(default_factory=dict)
    residual: Tensor | None = None
    refined: int = 0
    damping: float = 0.0
    smoothing: float = 0.0
    method: str = ""

    def note(self, residual: Tensor, refined: int, method: str) -> None:
        """How accurate a solve was, and how it was done where nobody has said so."""
        self.residual, self.refined, self.method = residual, refined, self.method or method


@dataclass(frozen=True, eq=False)
class Solution:
    """A batch of solutions. For a single instance (``in_dims=None``) the leading dimension b is absent everywhere.

    ``y`` and the multipliers are differentiable; the rest is data. Only ``y`` is needed when a user's
    ``solve`` returns one: whatever it leaves out is recovered or computed.

    Args:
        y: (b, *y_shape), or a tuple of such tensors, as the node's ``initial_guess`` or ``solve`` shapes it.
        equality_multipliers: ν (b, p) of L = f + νᵀh + μᵀg.
        inequality_multipliers: μ (b, q), μ ≥ 0, zero where a constraint is inactive.
        active: (b, q) bool: constraints that hold with equality and push (μ > 0).
        weakly_active: (b, q) bool: constraints that hold with equality and do not push (μ = 0); the derivative is
            one-sided there, and ``Implicit(weakly_active=...)`` says which side is taken.
        status: (b,) integers, members of `Status`.
        iterations: (b,) integers: solver steps that each sample took.
        stationarity: (b,) ‖∇_y L‖∞ relative to the scale of the gradient's terms.
        violation: (b,) largest violation of a constraint, in units of y relative to 1 + ‖y‖∞.
        report: what the backward pass did, once it has run.
        workspace: whatever a node's `solve` hands to its `solve_kkt`, a factorisation for one.
    """

    y: Output
    equality_multipliers: Tensor | None = None
    inequality_multipliers: Tensor | None = None
    active: Tensor | None = None
    weakly_active: Tensor | None = None
    status: Tensor | None = None
    iterations: Tensor | None = None
    stationarity: Tensor | None = None
    violation: Tensor | None = None
    report: DerivativeReport | None = None
    workspace: Any = None


@dataclass(frozen=True)
class Point:
    """A batch of solutions with flat y: what solvers hand on inside the package. Fields as in `Solution`."""

    y: Variables
    equality: EqualityMultipliers
    inequality: InequalityMultipliers
    active: InequalityMask
    weakly_active: InequalityMask
    status: Counts
    iterations: Counts
    stationarity: Values
    violation: Values


@dataclass(frozen=True)
class Solved:
    """What a solve hands to whoever differentiates it.

    Args:
        point: the solution.
        layout: the shape of y (a `declarative.problem.Layout`).
        linearisation: the KKT system at the point, if the solve has it at hand: the backward pass need not build it again.
        workspace: what the node's own solve left for its `solve_kkt`; None once the point was polished.
    """

    point: Point
    layout: Any
    linearisation: Any = None
    workspace: Any = None
