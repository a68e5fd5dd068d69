"""Linear programs by HiGHS: a statement that is linear in y, taken apart by the engine, with the multipliers that HiGHS reports."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from declarative.engines.autodiff import linearise
from declarative.engines.base import Linearisation
from declarative.errors import name_samples
from declarative.problem import Problem
from declarative.solution import Status
from declarative.typing import Variables
from declarative.vectors import times

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
        ValueError: the objective or a constraint is not linear in y.
    """

    def __init__(self, problem: Problem, start: Variables, p: int, method: str, tolerance: float, options: dict[str, Any]) -> None:
        self._method, self._p = method, p
        allowed = min(max(tolerance, _TIGHTEST), _LOOSEST)
        self._options = {"primal_feasibility_tolerance": allowed, "dual_feasibility_tolerance": allowed, **options}
        origin = linearise(problem, torch.zeros_like(start))
        c, A, at_zero = origin.gradient, origin.jacobian(), origin.constraints
        self._finite = torch.isfinite(torch.cat([c, A.flatten(1), at_zero], 1)).all(1)
        self._reject_curved(problem, start, origin)
        self._start, self._c, self._A, self._side = (t.detach().double().cpu().numpy() for t in (start, c, A, -at_zero))

    def _reject_curved(self, problem: Problem, start: Tensor, origin: Linearisation) -> None:
        """Compare values at the start and at opposite random points with those of the linear functions."""
        random = torch.randn(start.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(start)
        slopes = torch.cat([origin.gradient.unsqueeze(1), origin.jacobian()], 1)
        at_zero = torch.cat([origin.objective.unsqueeze(1), origin.constraints], 1)
        for point in (start, start + random * (1 + start.abs()), -random * (1 + start.abs())):
            f, h, g = problem.evaluate(point)
            change = times(slopes, point)
            scale = times(slopes.abs(), point.abs()) + at_zero.abs()
            same = (torch.cat([f.unsqueeze(1), h, g], 1) - at_zero - change).abs() <= torch.finfo(f.dtype).eps ** 0.5 * scale
            parts = {"objective": 1, "equality_constraints": h.shape[1], "inequality_constraints": g.shape[1]}
            for what, kept in zip(parts, same.split(list(parts.values()), 1), strict=True):
                wrong = (~kept.all(1) & self._finite).nonzero().squeeze(1).tolist()
                if wrong:
                    raise ValueError(
                        f"SciPy(method={self._method!r}) solves linear programs, and {problem.name}.{what} is not linear in y "
                        f"({name_samples(wrong, problem.batch)}); use a method of scipy.optimize.minimize, such as SciPy('SLSQP'), or InteriorPoint()"
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
        return found.x + 0.0, status, iterations, multipliers + 0.0  # no −0

    def _run(self, i: int, options: dict[str, Any]) -> Any:
        A, side, p = self._A[i], self._side[i], self._p
        # The statement says everything about y: scipy's default y ≥ 0 must go.
        return scipy.optimize.linprog(
            self._c[i], A_ub=A[p:], b_ub=side[p:], A_eq=A[:p], b_eq=side[:p], bounds=(None, None), method=self._method, options=options
        )  # pyright: ignore[reportCallIssue]
