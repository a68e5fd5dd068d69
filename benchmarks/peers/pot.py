"""POT on entropic transport: scaling vectors, in the log domain, and with absorption into the kernel, on numpy, its quickest backend here.

Forward and backward it runs on torch, and autograd goes back through every step: that is how it gives the gradient of a plan. Its other kind
("last_step") is one step's, and wrong by 1e-2 and more on these problems.

Source: Flamary et al., "POT: Python optimal transport", JMLR 22(78), 2021.
"""

from __future__ import annotations

import warnings
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.derivatives import Derivative
from benchmarks.plans import WANTED, Found, Problem, Way

METHODS = {"sinkhorn": "scaling", "sinkhorn_log": "log domain", "sinkhorn_stabilized": "absorption"}
# The log domain takes twice as long as these, and is wanted only where both fail.
DIFFERENTIATED = ("sinkhorn", "sinkhorn_stabilized")
STEPS = 5000


def ways(problem: Problem, limit: int) -> tuple[Way, ...]:
    """One for each method. It stops by the 2-norm of the columns' errors. Raises ImportError where the package is not installed."""
    ot = import_module("ot")
    norm = WANTED / problem.c.shape[-1] ** 0.5
    return tuple(
        Way(f"POT {label}", [factor * norm for factor in (1, 0.5, 0.1)], partial(_solved, ot, method, problem, limit)) for method, label in METHODS.items()
    )


def _solved(ot: Any, method: str, problem: Problem, limit: int, tolerance: float) -> Found:
    M, r, c = (t.numpy() for t in (problem.M, problem.r, problem.c))
    P, log = _sinkhorn(ot, r, c, M, problem.gamma, method, limit, tolerance)
    iterations = int(log["n_iter"] if "n_iter" in log else log["niter"]) + 1
    return Found(P, iterations, exhausted=iterations >= limit)


def _sinkhorn(ot: Any, r: Any, c: Any, M: Any, gamma: float, method: str, limit: int, tolerance: float) -> tuple[Any, dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of overflow, and that it did not converge, which is what the caller finds out
        return ot.sinkhorn(r, c, M, 1 / gamma, method=method, numItermax=limit, stopThr=tolerance, log=True, warn=False)


def both_ways(problem: Problem, V: Tensor, tolerance: float) -> tuple[Derivative, ...]:
    """⟨V, P⟩ differentiated by M (m, n), forward and backward, the plan to this relative error of its columns. Raises ImportError where it is missing."""
    ot = import_module("ot")
    norm = tolerance / problem.c.shape[-1] ** 0.5

    def run(method: str) -> Tensor:
        M = problem.M.detach().clone().requires_grad_()
        P, _ = _sinkhorn(ot, problem.r, problem.c, M, problem.gamma, method, STEPS, norm)
        return torch.autograd.grad(P, M, V)[0]

    return tuple(Derivative.here(f"POT {METHODS[method]}, unrolled", lambda method=method: partial(run, method)) for method in DIFFERENTIATED)
