"""POT on entropic transport: scaling vectors, in the log domain, and with absorption into the kernel, on numpy, its quickest backend here.

Source: Flamary et al., "POT: Python optimal transport", JMLR 22(78), 2021.
"""

from __future__ import annotations

import warnings
from functools import partial
from importlib import import_module
from typing import Any

from benchmarks.plans import WANTED, Found, Problem, Way

METHODS = {"sinkhorn": "scaling", "sinkhorn_log": "log domain", "sinkhorn_stabilized": "absorption"}


def ways(problem: Problem, limit: int) -> tuple[Way, ...]:
    """One for each method. It stops by the 2-norm of the columns' errors. Raises ImportError where the package is not installed."""
    ot = import_module("ot")
    norm = WANTED / problem.c.shape[-1] ** 0.5
    return tuple(
        Way(f"POT {label}", [factor * norm for factor in (1, 0.5, 0.1)], partial(_solved, ot, method, problem, limit)) for method, label in METHODS.items()
    )


def _solved(ot: Any, method: str, problem: Problem, limit: int, tolerance: float) -> Found:
    M, r, c = (t.numpy() for t in (problem.M, problem.r, problem.c))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of overflow, and that it did not converge, which is what the caller finds out
        P, log = ot.sinkhorn(r, c, M, 1 / problem.gamma, method=method, numItermax=limit, stopThr=tolerance, log=True, warn=False)
    iterations = int(log["n_iter"] if "n_iter" in log else log["niter"]) + 1
    return Found(P, iterations, exhausted=iterations >= limit)
