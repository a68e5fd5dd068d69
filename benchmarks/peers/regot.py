"""RegOT (C++) on the dual of entropic transport: Newton's method, its safe and sparse kind, and the sparse-plus-low-rank quasi-Newton one.

The first is the quickest up to γ = 1000; the others still arrive at γ = 10000, where it ends in NaN. Its L-BFGS fails its line search on
these problems, and its remaining methods are slower.

Source: Tang & Qiu, "Safe and sparse Newton method for entropic-regularized optimal transport", NeurIPS 2024.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from benchmarks.plans import WANTED, Found, Problem, Way

LIMIT = 500
METHODS = {"sinkhorn_newton": "Newton", "sinkhorn_ssns": "safe Newton", "sinkhorn_splr": "SPLR"}


def ways(problem: Problem, limit: int) -> tuple[Way, ...]:
    """One for each method. It stops by the 2-norm of the dual's gradient. Raises ImportError where the package is not installed."""
    regot = import_module("regot")
    # It wants columns to be contiguous, and gets them so.
    arguments = (np.asfortranarray(problem.M.numpy()), problem.r.numpy(), problem.c.numpy(), 1 / problem.gamma)
    norm = WANTED / problem.c.shape[-1] ** 0.5
    limit = min(limit, LIMIT)
    settings = [factor * norm for factor in (3, 1, 0.3, 0.1)]
    return tuple(Way(f"RegOT {label}", settings, partial(_solved, getattr(regot, method), arguments, limit)) for method, label in METHODS.items())


def _solved(method: Any, arguments: tuple[Any, ...], limit: int, tolerance: float) -> Found:
    found = method(*arguments, tol=tolerance, max_iter=limit)
    return Found(found.plan, int(found.niter), exhausted=found.niter >= limit)
