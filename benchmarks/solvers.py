"""The default solvers: quadratic programs against cvxpylayers, qpth and jaxopt, unconstrained problems against a loop of scipy.

A peer that is not installed is named in its rows, which then hold our side alone. Errors of quadratic programs are KKT residuals here; those of
the gradients, against 50 digits, have rows of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.contest import alone, contest, figure_row
from benchmarks.contest import gradient_error as against_exact
from benchmarks.exact import gradient
from benchmarks.peers import cvxpylayers, jaxopt, optimistix, qpth, scipy_loop
from benchmarks.peers.derivatives import reach
from benchmarks.quadratic import Answer, Inputs, gradient_error, kkt_residual, sample
from benchmarks.report import Point, Row, Target
from benchmarks.smooth import Logistic, RobustChain, SoftMaximum
from benchmarks.statements import LogSumExp, Prepared, Quartic, Robust, prepare
from benchmarks.timing import FULL, QUICK, Effort, Prepare
from declarative.solvers import Newton
from problems.quadratic_program import QuadraticProgram

SUITE = "solvers"
PEERS = {"cvxpylayers": cvxpylayers.prepare, "qpth": qpth.prepare}
# (n, batch) and how much faster than each peer.
SIZES = ((10, 1, 1 / 1.5), (10, 128, 1.0), (50, 32, 1.0), (100, 1, 1 / 1.5), (100, 32, 1.0))
# (n, batch) and how many of the batch have their gradients computed in 50 digits.
ACCURACIES = ((10, 128, 8), (50, 32, 1))
SLOW = Effort(blocks=5, seconds=0.0, runs=1)
SLOWEST = Effort(blocks=3, seconds=0.0, runs=1)
KKT_LIMIT, GRADIENT_LIMIT = 1e-9, 1e-8
SCIPY_RATIO = 20.0
TOLERANCES, WANTED = (1e-4, 1e-6, 1e-8, 1e-10), 1e-7  # of training steps: what peers are tried at, and the error of the gradient that will do
SCALES = (5, 10, 30, 100, 200)
CAUSE = "small operations: each step of the interior point method makes some hundred of them, per-sample stopping included"
MATRICES = "each sample has matrices of its own: most of the time is matrix products that numpy does as fast"
FLOOR_TEXT = """An interior point step needs one product Gᵀ diag(μ/s) G (n²q flops a sample) and one Cholesky (n³/3), and two solves with its factor; 8 to 12
steps reach 1e-12. The backward pass is one more solve and products with the data. Newton's method needs, for each step, m products with H, or what a
tag says, and one factorisation."""

Solve = Callable[..., Answer]


def rows(quick: bool) -> Iterator[Row]:
    """The suite."""
    for n, batch, ratio in ((4, 2, 1.0),) if quick else SIZES:
        effort = FULL if n * batch <= 100 else SLOW if n * batch <= 2000 else SLOWEST
        yield from speed_rows(n, batch, Target(ratio=ratio), QUICK if quick else effort)
    for n in (3, 4) if quick else SCALES:
        yield from speed_rows(n, 1, None, QUICK if quick else SLOW)
    for n, batch, count in ((4, 2, 2),) if quick else ACCURACIES:
        yield from accuracy_rows(n, batch, count)
    for m, batch in ((4, 3),) if quick else ((10, 16), (100, 1)):
        for statement in (Robust, LogSumExp, Quartic):
            yield from training_rows(statement, m, batch, QUICK if quick else FULL)
    m, batch = (4, 3) if quick else (50, 256)
    for kind in (RobustChain, SoftMaximum, Logistic):
        yield from smooth_rows(kind, m, batch, QUICK if quick else SLOWEST)


def _ours(*inputs: Tensor) -> Answer:
    found = QuadraticProgram().solution(*inputs)
    if not isinstance(found.y, Tensor) or found.equality_multipliers is None or found.inequality_multipliers is None:
        raise TypeError("y is one tensor, and a solution has multipliers")
    return Answer(found.y, found.equality_multipliers, found.inequality_multipliers)


def _gradients(solve: Solve, inputs: Inputs, v: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(solve(*inputs).y, inputs, v)


def _prepared(name: str, inputs: Inputs) -> tuple[Solve | None, str]:
    """The peer for programs of this size, or why there is none."""
    if not machine.on_cpu() and name != "qpth":
        return None, f"{name} runs on the CPU alone"
    try:
        return PEERS[name](inputs[1].shape[1], inputs[3].shape[1], inputs[5].shape[1]), ""
    except ImportError as error:
        return None, f"{name} skipped: {error}"


def speed_rows(n: int, batch: int, target: Target | None, effort: Effort) -> Iterator[Row]:
    """Forward and backward, gradients by all six inputs."""
    inputs, v = sample(n, batch)
    ours = partial(_gradients, _ours, inputs, v)
    residual = kkt_residual(inputs, _ours(*inputs))
    what = f"quadratic program, forward and backward, n={n}, b={batch}"
    point = Point("Quadratic programs, forward and backward, one program", "n", n) if target is None else None
    for name in PEERS:
        solve, note = _prepared(name, inputs)
        if solve is None:
            row = alone(SUITE, what, lambda: ours, effort, against=name, point=point, note=note)
        else:
            peer, theirs = partial(_gradients, solve, inputs, v), kkt_residual(inputs, solve(*inputs))
            weigh = "both" if name == "qpth" else "ours"
            row = contest(SUITE, what, lambda: ours, name, lambda peer=peer: peer, effort, target, weigh=weigh, point=point, peer_error=theirs, cause=CAUSE)
        yield replace(row, error=residual, errors="KKT residual")
    yield replace(_jaxopt_row(what, lambda: ours, inputs, v, effort, point), error=residual, errors="KKT residual")


def _jaxopt_row(what: str, ours: Prepare, inputs: Inputs, v: Tensor, effort: Effort, point: Point | None) -> Row:
    name = "jaxopt, OSQP"
    if not machine.on_cpu():
        return alone(SUITE, what, ours, effort, against=name, note=f"{name} runs on the CPU alone")
    try:
        program = jaxopt.quadratic_programs(inputs, v)
        theirs = kkt_residual(inputs, program.answer())
    except ImportError as error:
        return alone(SUITE, what, ours, effort, against=name, point=point, note=f"{name} skipped: {error}")
    return contest(SUITE, what, ours, name, program.side, effort, weigh="ours", point=point, peer_error=theirs)


def accuracy_rows(n: int, batch: int, count: int) -> Iterator[Row]:
    """Residuals of the optimality conditions, and gradients against 50 digits."""
    inputs, v = sample(n, batch)

    def errors(solve: Solve) -> tuple[float, float]:
        return kkt_residual(inputs, solve(*inputs)), gradient_error(inputs, v, _gradients(solve, inputs, v), count)

    ours = errors(_ours)
    for name in PEERS:
        solve, note = _prepared(name, inputs)
        theirs = (None, None) if solve is None else errors(solve)
        cases = (("KKT residual", KKT_LIMIT), ("error of the gradients", GRADIENT_LIMIT))
        for (what, limit), mine, other in zip(cases, ours, theirs, strict=True):
            yield figure_row(SUITE, f"quadratic program, n={n}, b={batch}: {what}", "", mine, name, other, Target(ours=limit), note=note)


def training_rows(kind: type[Prepared], m: int, batch: int, effort: Effort) -> Iterator[Row]:
    """Forward from x/‖x‖ and backward, each peer at the loosest of its tolerances that leads to a gradient as good as asked for."""
    known, x = prepare(kind, m, batch)
    found = known.solution(x.detach())
    if not isinstance(found.y, Tensor) or found.equality_multipliers is None:
        raise TypeError("y is one tensor, and a solution has multipliers")
    v = machine.here(torch.randn(batch, m, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    judge, node = against_exact(gradient(known, x, found.y, found.equality_multipliers, v)), kind(solver=Newton())
    what = f"forward and backward, {kind.label}, m={m}, b={batch}"

    def ours() -> Callable[[], Tensor]:
        return lambda: torch.autograd.grad(node(x), x, v)[0]

    for name, peer in {"jaxopt": jaxopt, "optimistix": optimistix}.items() if machine.on_cpu() else ():
        try:
            reached = reach(lambda tolerance, peer=peer: peer.both_ways(kind.__name__, x.detach(), v, tolerance), TOLERANCES, judge, WANTED)
        except ImportError as error:
            yield alone(SUITE, what, ours, effort, against=name, note=f"{name} skipped: {error}")
            continue
        for one in reached:
            yield contest(SUITE, what, ours, one.way.name, one.way.side, effort, judge=judge, errors="gradient", peer_error=one.error, note=one.way.note)


def smooth_rows(kind: type[RobustChain | SoftMaximum | Logistic], m: int, batch: int, effort: Effort) -> Iterator[Row]:
    """Forward alone, against scipy with exact gradients: its default method, and those that take the Hessian in closed form too."""
    drawn, node = kind.sample(m, batch), kind()
    inputs = tuple(machine.here(t) for t in drawn)
    instances = [kind.instance(*arrays) for arrays in zip(*(t.numpy() for t in drawn), strict=True)]

    def steepest(y: Any) -> float:
        points = y.cpu().numpy() if isinstance(y, Tensor) else y
        return max(float(np.abs(instance.value_and_gradient(part)[1]).max()) for instance, part in zip(instances, points, strict=True))

    for method in scipy_loop.METHODS:
        default = method == scipy_loop.DEFAULT
        peer = partial(scipy_loop.minimise, instances, method)
        what, name = f"{kind.label}, m={m}, b={batch}, forward", f"loop of scipy, {method}{', its default' if default else ''}"
        target, cause = (Target(ratio=SCIPY_RATIO), MATRICES if kind is not RobustChain else "") if default else (None, "")
        yield contest(
            SUITE, what, lambda: lambda: node(*inputs), name, lambda peer=peer: peer, effort, target,
            judge=steepest, errors="‖∇f‖∞", weigh="ours", cause=cause,
        )  # fmt: skip
