"""Entropic transport, forward: to the same marginal error as each peer.

Every side is asked for a relative marginal error of 1e-8 and what it reached is measured here, from its plan. A peer that does not get
there within its iterations is named with what it reached, and sets no target.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from benchmarks import machine
from benchmarks.contest import alone, contest, figure_row
from benchmarks.peers import ddn_transport, geomloss, ott, pot, regot
from benchmarks.plans import WANTED, Found, Problem, Way, as_tensor, marginal_error, points
from benchmarks.report import Row, Target
from benchmarks.timing import FULL, QUICK, Effort
from declarative.layers import OptimalTransport

SUITE = "transport"
EASY = "17 scaling steps do: 0.1 ms of our 0.39 is what a node does besides, checks of inputs and marginals first"
PEERS = {"ddn": ddn_transport.ways, "POT": pot.ways, "RegOT": regot.ways, "OTT": ott.ways, "GeomLoss": geomloss.ways}
ON_ANY_DEVICE = ("ddn", "GeomLoss")  # the others know the CPU alone
SIZES, GAMMAS = (100, 500), (10.0, 100.0, 1000.0, 10000.0)
# Scaling steps that a peer may take: it needs 1800 up to γ = 1000, and at γ = 10000 some 100 000.
LIMIT = 2000
ERRORS = "marginals"
# From this γ on, how much faster than these.
STEEP, FAR, SLOW_PEERS = 1000.0, 5.0, ("ddn", "POT")
# A peer that took so many seconds is timed so.
EFFORTS = ((0.01, FULL), (0.2, Effort(blocks=5, seconds=0.0, runs=2)), (2.0, Effort(blocks=3, seconds=0.0, runs=1, warm_up=1)))
SLOWEST = Effort(blocks=1, seconds=0.0, runs=1, warm_up=0)


@dataclass(frozen=True)
class Attempt:
    """How a peer got to the error wanted, or did not."""

    setting: float
    found: Found
    error: float
    seconds: float

    @property
    def arrived(self) -> bool:
        return self.error <= WANTED

    def __str__(self) -> str:
        return f"after {self.found.iterations} iterations"


def forward_rows(n: int, gamma: float, limit: int, quick: bool) -> Iterator[Row]:
    """Ours, then against each peer."""
    problem = points(n, gamma)
    layer = OptimalTransport(gamma, tolerance=WANTED)

    def ours() -> object:
        return layer(problem.M, problem.r, problem.c)

    what = f"forward, n={n}, γ={gamma:g}"
    effort = QUICK if quick else FULL
    solution = layer.solution(problem.M, problem.r, problem.c)
    error = marginal_error(as_tensor(solution.y), problem)
    method = "" if solution.report is None else f"{solution.report.method}, "
    note = f"{method}{'' if solution.iterations is None else int(solution.iterations)} iterations"
    yield figure_row(SUITE, f"{what}, relative marginal error", "", error, target=Target(ours=WANTED), note=note)
    for name, ways in PEERS.items():
        try:
            if not machine.on_cpu() and name not in ON_ANY_DEVICE:
                raise ImportError(f"{name} runs on the CPU alone")
            found = ways(problem, limit)
        except ImportError as missing:
            yield replace(alone(SUITE, what, lambda: ours, effort, against=name, note=f"{name} skipped: {missing}"), error=error, errors=ERRORS)
            continue
        far = gamma >= STEEP and name in SLOW_PEERS
        for way in found:
            row = _row(what, ours, way, problem, Target(ratio=FAR if far else 1.0), quick)
            yield replace(row, error=error, errors=ERRORS)


def _row(what: str, ours: Callable[[], object], way: Way, problem: Problem, target: Target, quick: bool) -> Row:
    attempt = reach(way, problem)
    if not attempt.arrived:
        row = alone(SUITE, what, lambda: ours, QUICK if quick else FULL, against=way.name, note=f"it does not get there: {attempt}")
        return replace(row, peer=1e3 * attempt.seconds, peer_error=attempt.error)
    effort = QUICK if quick else next((effort for seconds, effort in EFFORTS if attempt.seconds <= seconds), SLOWEST)
    weigh = "both" if way.weigh else "ours"
    return contest(
        SUITE, what, lambda: ours, way.name, way.at(attempt.setting), effort, target, weigh=weigh, peer_error=attempt.error, note=str(attempt), cause=EASY
    )


def reach(way: Way, problem: Problem) -> Attempt:
    """The loosest of its settings that leads to the error wanted; else the last that was tried: a tighter one cannot help where the
    iterations ran out."""
    attempt = None
    for setting in way.settings:
        start = time.perf_counter()
        found = way.solve(setting)
        seconds = time.perf_counter() - start
        attempt = Attempt(setting, found, marginal_error(found.P, problem), seconds if found.seconds is None else found.seconds)
        if attempt.arrived or found.exhausted or math.isnan(attempt.error):
            break
    if attempt is None:
        raise ValueError(f"{way.name} has no settings")
    return attempt
