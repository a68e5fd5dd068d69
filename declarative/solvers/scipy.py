"""scipy.optimize.minimize as a solver: one instance at a time, with exact derivatives from the engine."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from declarative.engines.autodiff import linearise
from declarative.problem import Layout, Problem
from declarative.solution import Status
from declarative.solvers.base import Iterate, Solver, start_from

_WITH_HESSIAN = {"newton-cg", "dogleg", "trust-ncg", "trust-krylov", "trust-exact", "trust-constr"}
_WITH_CONSTRAINTS = {"slsqp", "trust-constr", "cobyla", "cobyqa"}
_WITHOUT_GRADIENT = {"nelder-mead", "powell", "cobyla", "cobyqa"}


@dataclass(frozen=True)
class SciPy(Solver):
    """Any method of `scipy.optimize.minimize`, on the CPU in float64, one instance after the other.

    Gradients, Hessians and constraint Jacobians come from the engine. Multipliers are recovered from y in this package's
    signs, whatever the method reports.

    Args:
        method: as in scipy, any case. None: "trust-exact" without constraints (a Newton method), "SLSQP" with them.
        tolerance: the `tol` of scipy; default 1e-12.
        options: scipy's `options` for the method.

    Example:
        >>> node = Rosenbrock(solver=SciPy("BFGS"))  # doctest: +SKIP
    """

    method: str | None = None
    max_iterations: int = field(default=1000, kw_only=True)
    options: dict[str, Any] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        known = {*_WITH_HESSIAN, *_WITH_CONSTRAINTS, *_WITHOUT_GRADIENT, "cg", "bfgs", "l-bfgs-b", "tnc"}
        if self.method is not None and not isinstance(self.method, str):
            raise TypeError(f"SciPy(method={self.method!r}) must be a name such as 'BFGS', or None")
        if not isinstance(self.options, dict):
            raise TypeError(f"SciPy(options=...) must be a dict, got {self.options!r}")
        if self.method is not None and self.method.lower() not in known:
            raise ValueError(f"SciPy(method={self.method!r}) is not a method of scipy.optimize.minimize; choose one of {', '.join(sorted(known))}")

    def accepted(self, eps: float) -> float:
        return eps**0.25 if self.tolerance is None else max(self.tolerance, eps**0.5)

    def solve(self, problem: Problem, init: tuple[Tensor, ...]) -> tuple[Iterate, Layout]:
        y, layout = start_from(problem, init)
        problem = problem.with_layout(layout)
        _, equality, inequality = problem.evaluate(y)
        constrained = bool(equality.shape[1] or inequality.shape[1])
        method = (self.method or ("SLSQP" if constrained else "trust-exact")).lower()
        if constrained and method not in _WITH_CONSTRAINTS:
            raise ValueError(f"{problem.name} has constraints, which SciPy(method={self.method!r}) ignores; use one of {', '.join(sorted(_WITH_CONSTRAINTS))}")
        found = torch.empty_like(y)
        status, iterations = [], []
        for i in range(problem.batch):
            index = torch.tensor([i], device=y.device)
            instance = _Instance(problem.select(index), y[index], equality.shape[1], inequality.shape[1])
            result = self._minimise(instance, method)
            found[i] = torch.as_tensor(np.asarray(result.x), dtype=y.dtype, device=y.device)
            finite = bool(np.isfinite(result.x).all() and np.isfinite(result.fun))
            limited = int(getattr(result, "nit", 0)) >= self.max_iterations and not result.success
            status.append(Status.NON_FINITE if not finite else Status.MAX_ITERATIONS if limited else Status.CONVERGED)
            iterations.append(int(getattr(result, "nit", 0)))
        as_counts = [torch.tensor([int(n) for n in values], dtype=torch.int64, device=y.device) for values in (status, iterations)]
        return Iterate(found, None if equality.shape[1] else equality, None if inequality.shape[1] else inequality, *as_counts), layout

    def _minimise(self, instance: _Instance, method: str) -> Any:
        options: dict[str, Any] = {"maxiter": self.max_iterations, **self.options}
        arguments: dict[str, Any] = {"method": method, "tol": 1e-12 if self.tolerance is None else self.tolerance, "options": options}
        if method not in _WITHOUT_GRADIENT:
            arguments["jac"] = instance.gradient
        if method in _WITH_HESSIAN:
            arguments["hess"] = instance.hessian
        if method in _WITH_CONSTRAINTS:
            arguments["constraints"] = instance.constraints(method)
        with warnings.catch_warnings():
            # What scipy warns about (precision loss at a tight tol, delta_grad == 0) is judged afterwards by residuals.
            warnings.simplefilter("ignore")
            try:
                return scipy.optimize.minimize(instance.objective, instance.start, **arguments)
            except (ValueError, np.linalg.LinAlgError):
                if np.isfinite(instance.objective(instance.start)) and np.isfinite(instance.gradient(instance.start)).all():
                    raise
                # numpy stops at NaN and inf; the other samples go on.
                return scipy.optimize.OptimizeResult(x=np.full_like(instance.start, np.nan), fun=np.nan, nit=0, success=False)


class _Instance:
    """One instance as numpy functions."""

    def __init__(self, problem: Problem, start: Tensor, p: int, q: int) -> None:
        self._problem, self._like, self._p, self._q = problem, start, p, q
        self.start = start[0].double().cpu().numpy()

    def _tensor(self, y: np.ndarray) -> Tensor:
        return torch.as_tensor(np.asarray(y), dtype=self._like.dtype, device=self._like.device).reshape(1, -1)

    def objective(self, y: np.ndarray) -> float:
        return float(self._problem.evaluate(self._tensor(y))[0])

    def gradient(self, y: np.ndarray) -> np.ndarray:
        return linearise(self._problem, self._tensor(y)).gradient[0].double().cpu().numpy()

    def hessian(self, y: np.ndarray) -> np.ndarray:
        return linearise(self._problem, self._tensor(y)).hessian()[0].double().cpu().numpy()

    def _value(self, y: np.ndarray) -> np.ndarray:
        return linearise(self._problem, self._tensor(y)).constraints[0].double().cpu().numpy()

    def _jacobian(self, y: np.ndarray) -> np.ndarray:
        return linearise(self._problem, self._tensor(y)).jacobian()[0].double().cpu().numpy()

    def _weighted_hessian(self, y: np.ndarray, weights: np.ndarray, rows: slice) -> np.ndarray:
        """Σ w_i ∇²a_i: the Hessian of L with multipliers w, less that of f."""
        full = torch.zeros(1, self._p + self._q, dtype=self._like.dtype, device=self._like.device)
        full[0, rows] = torch.as_tensor(np.asarray(weights), dtype=self._like.dtype, device=self._like.device)
        point = self._tensor(y)
        with_weights = linearise(self._problem, point, full[:, : self._p], full[:, self._p :]).hessian()
        return (with_weights - linearise(self._problem, point).hessian())[0].double().cpu().numpy()

    def constraints(self, method: str) -> list[Any]:
        """In scipy's terms; its inequalities are ≥ 0 in the dictionaries, ours are ≤ 0."""
        blocks = [("eq", 1.0, slice(0, self._p)), ("ineq", -1.0, slice(self._p, self._p + self._q))]
        blocks = [block for block in blocks if block[2].stop > block[2].start]
        if method == "trust-constr":
            return [
                scipy.optimize.NonlinearConstraint(
                    lambda y, rows=rows: self._value(y)[rows],
                    0.0 if kind == "eq" else -np.inf,
                    0.0,
                    jac=lambda y, rows=rows: self._jacobian(y)[rows],  # pyright: ignore[reportArgumentType]
                    hess=lambda y, w, rows=rows: self._weighted_hessian(y, w, rows),  # pyright: ignore[reportArgumentType]
                )
                for kind, _, rows in blocks
            ]
        return [
            {
                "type": kind,
                "fun": lambda y, sign=sign, rows=rows: sign * self._value(y)[rows],
                "jac": lambda y, sign=sign, rows=rows: sign * self._jacobian(y)[rows],
            }
            for kind, sign, rows in blocks
        ]
