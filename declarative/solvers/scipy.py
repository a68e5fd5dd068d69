"""scipy.optimize as a solver: one instance at a time, with exact derivatives from the engine."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from declarative.problem import Layout, Problem
from declarative.solution import Status
from declarative.solvers import linear_program
from declarative.solvers.base import Iterate, Solver, start_from
from declarative.solvers.instance import Instance
from declarative.solvers.linear_program import LinearPrograms

_WITH_HESSIAN = {"newton-cg", "dogleg", "trust-ncg", "trust-krylov", "trust-exact", "trust-constr"}
_WITH_CONSTRAINTS = {"slsqp", "trust-constr", "cobyla", "cobyqa"}
_WITHOUT_GRADIENT = {"nelder-mead", "powell", "cobyla", "cobyqa"}
_MINIMIZERS = {*_WITH_HESSIAN, *_WITH_CONSTRAINTS, *_WITHOUT_GRADIENT, "cg", "bfgs", "l-bfgs-b", "tnc"}
# The option that bounds the work counts evaluations here, iterations elsewhere.
_LIMIT = {"tnc": "maxfun"}
_COUNT_EVALUATIONS = {"tnc", "cobyla"}

# y (m,), status, iterations, multipliers (p + q,) or None
Outcome = tuple[np.ndarray, Status, int, np.ndarray | None]


@dataclass(frozen=True)
class SciPy(Solver):
    """Any method of `scipy.optimize.minimize`, or HiGHS for linear programs, on the CPU, one instance at a time.

    Gradients, Hessians and constraint Jacobians come from the engine, evaluated in the dtype and on the device of the
    inputs; scipy itself computes in float64. Multipliers are recovered from y in this package's signs, whatever the
    method reports. "trust-constr" is an interior point method that may stop some 1e-5 inside of the constraints that hold it;
    give its node a `polish`, which takes that to rounding.

    The methods "highs", "highs-ds" and "highs-ipm" are those of `scipy.optimize.linprog`. They ask for an objective and
    constraints that are linear in y, which is tested; bounds are the inequalities that the statement writes. Their
    multipliers are HiGHS's own. The solution is a vertex: y moves with the right-hand sides, its derivative with respect
    to the costs is zero wherever it exists, and where the optimum is not unique, or more constraints meet than y has
    entries, `Implicit(irregular=...)` decides. Integer programs and assignments are not solved here: their solutions are
    piecewise constant, so that no implicit derivative says anything about them.

    A warm start gives every method its y; the methods of scipy take no multipliers, and HiGHS takes neither.

    Args:
        method: as in scipy, any case. None: "trust-exact" without constraints (a Newton method), "SLSQP" with them.
        tolerance: the `tol` of scipy; for HiGHS both feasibility tolerances. Default: eps^¾ of the dtype, 2e-12 in float64
            (HiGHS allows 1e-10 at least) and 6e-6 in float32.
        max_iterations: scipy's `maxiter`; for "TNC" and "COBYLA" evaluations of the objective.
        options: scipy's `options` for the method.
        workers: how many threads share the samples of a batch. The results are the same; whether it is faster depends on
            how much of the work is done inside torch and scipy rather than between them. The statement must then allow
            being evaluated by several threads.
        on_failure: as for every solver.

    Shapes:
        y (b, *y_shape), ν (b, p), μ (b, q). scipy sees the y of one instance flat, (m,).

    Raises:
        ValueError, TypeError: an unknown method, an option that the method does not know, constraints that it would
            ignore, a statement that is not linear for HiGHS.

    Example:
        >>> class Cheapest(DeclarativeNode):  # a linear program: at least as much as x of each, at costs 1 and 2
        ...     def objective(self, x, y): return y[0] + 2 * y[1]
        ...     def inequality_constraints(self, x, y): return x - y
        ...     def initial_guess(self, x): return torch.zeros_like(x)
        >>> s = Cheapest(solver=SciPy("highs")).solution(torch.tensor([[3.0, 4.0]]))
        >>> s.y, s.inequality_multipliers
        (tensor([[3., 4.]]), tensor([[1., 2.]]))

    Source: Virtanen et al., "SciPy 1.0", Nature Methods 17, 2020; Huangfu & Hall, "Parallelizing the dual revised simplex method", Math. Prog.
    Comp. 10, 2018 (HiGHS).
    """

    method: str | None = None
    max_iterations: int = field(default=1000, kw_only=True)
    options: dict[str, Any] = field(default_factory=dict, kw_only=True)
    workers: int = field(default=1, kw_only=True)
    _exactness: ClassVar[float] = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method is not None and not isinstance(self.method, str):
            raise TypeError(f"SciPy(method={self.method!r}) must be a name such as 'BFGS', or None")
        if not isinstance(self.options, dict):
            raise TypeError(f"SciPy(options=...) must be a dict, got {self.options!r}")
        if not isinstance(self.workers, int) or isinstance(self.workers, bool) or self.workers < 1:
            raise ValueError(f"SciPy(workers=...) must be a number of threads, 1 or more, got {self.workers!r}")
        if self.method is not None and self.method.lower() not in {*_MINIMIZERS, *linear_program.METHODS}:
            raise ValueError(
                f"SciPy(method={self.method!r}) is not a method of scipy.optimize.minimize; choose one of {', '.join(sorted(_MINIMIZERS))}, "
                f"or for a linear program {', '.join(linear_program.METHODS)}"
            )
        if self.method is not None:
            _reject_unknown_options(self.method.lower(), self.options)

    def solve(self, problem: Problem, init: tuple[Tensor, ...]) -> tuple[Iterate, Layout]:
        y, layout = start_from(problem, init)
        problem = problem.with_layout(layout)
        _, equality, inequality = problem.evaluate(y)
        p, q = equality.shape[1], inequality.shape[1]
        method = (self.method or ("SLSQP" if p + q else "trust-exact")).lower()
        if self.method is None:
            _reject_unknown_options(method, self.options)
        tolerance = torch.finfo(y.dtype).eps ** 0.75 if self.tolerance is None else self.tolerance
        options = {_LIMIT.get(method, "maxiter"): self.max_iterations, **self.options}
        if method in linear_program.METHODS:
            solve = LinearPrograms(problem, y, p, method, tolerance, options).solve
        elif p + q and method not in _WITH_CONSTRAINTS:
            able = ", ".join(sorted({*_WITH_CONSTRAINTS, *linear_program.METHODS}))
            raise ValueError(f"{problem.name} has constraints, which SciPy(method={self.method!r}) ignores; use one of {able}")
        else:
            solve = partial(_minimise, problem, y, p, q, method, tolerance, options)
        points, status, iterations, multipliers = zip(*self._each(solve, problem.batch), strict=True)
        found = torch.as_tensor(np.stack(points)).to(y)
        how, steps = (torch.tensor([int(n) for n in values], device=y.device) for values in (status, iterations))
        if multipliers[0] is None:
            return Iterate(found, None if p else equality, None if q else inequality, how, steps), layout
        known = torch.as_tensor(np.stack(multipliers)).to(y)
        return Iterate(found, known[:, :p], known[:, p:], how, steps), layout

    def _each(self, solve: Callable[[int], Outcome], count: int) -> list[Outcome]:
        def without_grad(i: int) -> Outcome:  # grad mode belongs to a thread
            with torch.no_grad():
                return solve(i)

        with _quiet():
            if self.workers == 1 or count == 1:
                return [solve(i) for i in range(count)]
            with ThreadPoolExecutor(min(self.workers, count)) as pool:
                return list(pool.map(without_grad, range(count)))


@contextmanager
def _quiet() -> Iterator[None]:
    """What scipy warns about (precision loss at a tight tol, delta_grad == 0) is judged afterwards, by residuals."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=scipy.optimize.OptimizeWarning)
        warnings.filterwarnings("ignore", category=RuntimeWarning)
        warnings.filterwarnings("ignore", module=r"scipy\.|declarative\.solvers")
        yield


def _reject_unknown_options(method: str, options: dict[str, Any]) -> None:
    """scipy only warns of an option that it does not know: ask it about each, by a problem that takes no time.

    Its documentation, the one list that it gives out, leaves out options that work.
    """
    for name in options:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", "Unknown solver options|Unrecognized options", scipy.optimize.OptimizeWarning)
            try:
                if method in linear_program.METHODS:
                    scipy.optimize.linprog([1.0], bounds=(0, 1), method=method, options={name: None})
                else:
                    derivatives = {"jac": lambda y: 2 * y} | ({"hess": lambda _: 2 * np.eye(1)} if method in _WITH_HESSIAN else {})
                    scipy.optimize.minimize(lambda y: float(y @ y), np.ones(1), method=method, options={name: None}, **derivatives)
            except Exception as error:
                if not (isinstance(error, scipy.optimize.OptimizeWarning) or "unexpected keyword argument" in str(error)):
                    continue  # it knows the option, and does not take None for it
                of = "linprog" if method in linear_program.METHODS else "minimize"
                raise ValueError(
                    f"SciPy(method={method!r}) has no option {name!r}; print(scipy.optimize.show_options({of!r}, {method!r}, disp=False)) lists them"
                ) from error


def _minimise(problem: Problem, start: Tensor, p: int, q: int, method: str, tolerance: float, options: dict[str, Any], i: int) -> Outcome:
    index = torch.tensor([i], device=start.device)
    instance = Instance(problem.select(index), start[index], p, q, values_only=method in _WITHOUT_GRADIENT)
    arguments: dict[str, Any] = {"method": method, "tol": tolerance, "options": options}
    if method not in _WITHOUT_GRADIENT:
        arguments["jac"] = instance.gradient
    if method in _WITH_HESSIAN:
        arguments["hess"] = instance.hessian
    if method in _WITH_CONSTRAINTS:
        arguments["constraints"] = instance.constraints(method)
    try:
        result = scipy.optimize.minimize(instance.objective, instance.start, **arguments)
    except (ValueError, np.linalg.LinAlgError) as error:
        if instance.finite and not isinstance(error, np.linalg.LinAlgError):
            raise
        # numpy stops at NaN and inf; the other samples go on.
        return np.full_like(instance.start, np.nan), Status.NO_SOLUTION if instance.finite else Status.NON_FINITE, 0, None
    y, steps = np.asarray(result.x, dtype=float), int(result.get("nit", result.nfev))
    if not (np.isfinite(y).all() and np.isfinite(result.fun)):
        return y, Status.NON_FINITE, steps, None
    spent = int(result.nfev) if method in _COUNT_EVALUATIONS else steps
    limited = not result.success and spent >= options[_LIMIT.get(method, "maxiter")]
    return y, Status.MAX_ITERATIONS if limited else Status.CONVERGED, steps, None
