"""GeomLoss on entropic transport: averaged steps in the log domain, ε lowered from the largest cost to its value over all of them.

It has no tolerance that it keeps to (version 0.3.1), but a number of iterations.

Source: Feydy et al., "Interpolating between optimal transport and MMD using Sinkhorn divergences", AISTATS 2019.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch

from benchmarks.plans import Found, Problem, Way

LIMIT = 1000


def ways(problem: Problem, limit: int) -> tuple[Way, ...]:
    """Its one way; its error falls with the square of the steps at best, so that more would not do. Raises ImportError where the package is not installed."""
    ot = import_module("geomloss.ot")
    return (Way("GeomLoss", [min(limit, LIMIT) // share for share in (16, 4, 1)], partial(_solved, ot, problem), weigh=True),)


@torch.no_grad()
def _solved(ot: Any, problem: Problem, iterations: float) -> Found:
    plan = ot.solve(problem.M, reg=1 / problem.gamma, a=problem.r, b=problem.c, max_iter=int(iterations)).plan
    return Found(plan, int(iterations))
