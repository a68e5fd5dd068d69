"""Linear programs by HiGHS: a statement that is linear in y, taken apart by the engine, with the multipliers that HiGHS reports."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from declarative.engines.autodiff import linearise
from declarative.errors import name_samples
from declarative.problem import Problem
from declarative.solution import Status
from declarative.typing import Variables

METHODS = ("highs", "highs-ds", "highs-ipm")

# The bounds that HiGHS sets to its tolerances.
_TIGHTEST, _LOOSEST = 1e-10, 1e-1

_STATUS = {0: Status.CONVERGED, 1: Status.MAX_ITERATIONS, 2: Status.INFEASIBLE, 3: Status.UNBOUNDED}


class LinearPrograms:
    """min cᵀy  s.t.  A y + a(0) = 0 in the first p rows, ≤ 0 in the others; one for each sample.

    Args:
        start: (b, m), the size of y, about which linearity is tested.
        p: how many of the constraints are equalities.
        method: one of `METHODS`.
        options: scipy's options for it.

    Raises:
        ValueError: the objective's gradient or the constraints' Jacobian is not the same everywhere.
    """

    def __init__(self, problem: Problem, start: Variables, p: int, method: str, tolerance: float, options: dict[str, Any]) -> None:
        self._method, self._p = method, p
        allowed = min(max(tolerance, _TIGHTEST), _LOOSEST)
        self._options = {"primal_feasibility_tolerance": allowed, "dual_feasibility_tolerance": allowed, **options}
        origin = linearise(problem, torch.zeros_like(start))
        c, A, at_zero = origin.gradient, origin.jacobian(), origin.constraints
        self._finite = torch.isfinite(torch.cat([c, A.flatten(1), at_zero], 1)).all(1)
        self._reject_curved(problem, start, c, A)
        self._start, self._c, self._A, self._side = (t.detach().double().cpu().numpy() for t in (start, c, A, -at_zero))

    def _reject_curved(self, problem: Problem, start: Tensor, c: Tensor, A: Tensor) -> None:
        """Compare derivatives at 0 with those at the start and at opposite random points, row by row."""
        random = torch.randn(start.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(start)
        here = torch.cat([c.unsqueeze(1), A], 1)
        tolerance = torch.finfo(c.dtype).eps ** 0.5
        for point in (start, start + random * (1 + start.abs()), -random * (1 + start.abs())):
            at = linearise(problem, point)
            there = torch.cat([at.gradient.unsqueeze(1), at.jacobian()], 1)
            same = (there - here).abs().amax(2) <= tolerance * torch.maximum(there.abs(), here.abs()).amax(2)
            for what, kept in (("objective", same[:, :1]), ("equality_constraints", same[:, 1 : 1 + self._p]), ("inequality_constraints", same[:, 1 + self._p :])):
                wrong = (~kept.all(1) & self._finite).nonzero().squeeze(1).tolist()
                if wrong:
                    raise ValueError(
                        f"SciPy(method={self._method!r}) solves linear programs, and {problem.name}.{what} is not linear in y "
                        f"(its derivative changes with y in {name_samples(wrong, problem.batch)}); "
                        "use a method of scipy.optimize.minimize, such as SciPy('SLSQP'), or InteriorPoint()"
                    )

    def solve(self, i: int) -> tuple[np.ndarray, Status, int, np.ndarray]:
        """(y (m,), status, iterations, (ν, μ) (p + q,)) of sample i; the start with zeros where there is no solution."""
        nothing = self._start[i], np.zeros_like(self._side[i])
        if not bool(self._finite[i]):
            return np.full_like(nothing[0], np.nan), Status.NON_FINITE, 0, nothing[1]
        found = self._run(i, self._options)
        if found.status == 4 and self._options.get("presolve", True):
            # Presolve may find that there is no optimum without finding out whether for want of points or of a bound.
            found = self._run(i, {**self._options, "presolve": False})
        status, iterations = _STATUS.get(int(found.status), Status.NO_SOLUTION), int(found.nit)
        if status != Status.CONVERGED:
            return nothing[0] if found.x is None else np.asarray(found.x), status, iterations, nothing[1]
        # HiGHS's marginals are ∂(cᵀy)/∂side, the negatives of the multipliers of L = f + νᵀh + μᵀg.
        multipliers = -np.concatenate([np.asarray(found.eqlin.marginals), np.asarray(found.ineqlin.marginals)])
        return np.asarray(found.x), status, iterations, multipliers

    def _run(self, i: int, options: dict[str, Any]) -> Any:
        A, side, p = self._A[i], self._side[i], self._p
        # The statement says everything about y: scipy's default y ≥ 0 must go.
        return scipy.optimize.linprog(
            self._c[i], A_ub=A[p:], b_ub=side[p:], A_eq=A[:p], b_eq=side[:p], bounds=(None, None), method=self._method, options=options
        )  # pyright: ignore[reportCallIssue]
