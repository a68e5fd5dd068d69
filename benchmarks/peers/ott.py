"""OTT (jax, compiled) on entropic transport: the log domain, its default, as it is and with its two accelerations.

Its momentum chooses its weight by the rate of the first 30 steps, and Anderson's acceleration remembers five; between them they were the quickest of
its options at every γ tried, the domain of scalings included. Backward, it is its default, implicit differentiation, in the kind that its
documentation gives for a symmetric system (CG), to a tolerance of 1e-10; the default 1e-6 ends at gradients good to 1e-7.

Source: Cuturi et al., "Optimal transport tools (OTT): a JAX toolbox for all things Wasserstein", arXiv 2201.12324, 2022.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from benchmarks.peers.derivatives import Derivative
from benchmarks.peers.remote import Task, connect
from benchmarks.plans import WANTED, Found, Problem, Way
from benchmarks.timing import Effort

PACKAGES = ("ott",)
OPTIONS = ("log domain", "adaptive momentum", "Anderson")
ACCELERATED = OPTIONS[1:]
LINEAR_TOLERANCE = 1e-10
STEPS = 5000
_ONCE = Effort(blocks=1, seconds=0.0, runs=1, warm_up=0)


def ways(problem: Problem, limit: int) -> tuple[Way, ...]:
    """One for each option. It stops by the 1-norm of the columns' errors. Raises ImportError where the package is not installed."""
    connect(*PACKAGES)

    def way(option: str) -> Way:
        side = partial(_task, problem, limit, option)
        return Way(f"OTT {option}", [WANTED, WANTED / 3], lambda setting: _solved(side(setting), limit), side=side)

    return tuple(way(option) for option in OPTIONS)


def _task(problem: Problem, limit: int, option: str, tolerance: float) -> Task:
    options = {"gamma": problem.gamma, "limit": limit, "way": option, "threshold": tolerance}
    return Task(PACKAGES, "transport", "plan", (problem.M, problem.r, problem.c), **options)


def _solved(task: Task, limit: int) -> Found:
    P, iterations = task.result()
    return Found(P, int(iterations), exhausted=int(iterations) >= limit, seconds=1e-3 * task.block(_ONCE))


def both_ways(problem: Problem, V: Tensor, tolerance: float) -> tuple[Derivative, ...]:
    """⟨V, P⟩ differentiated by M (m, n), forward and backward, the plan to this relative error of its columns."""

    def way(option: str) -> Derivative:
        options = {"gamma": problem.gamma, "limit": STEPS, "way": option, "threshold": tolerance, "linear_tolerance": LINEAR_TOLERANCE}
        return Derivative.of_task(f"OTT {option}, implicit", Task(PACKAGES, "transport", "gradient", (problem.M, problem.r, problem.c, V), **options))

    return tuple(way(option) for option in ACCELERATED)
