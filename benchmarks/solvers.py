"""The default solvers: quadratic programs against cvxpylayers and qpth, unconstrained problems against a loop of scipy.

A peer that is not installed is named in its rows, which then hold our side alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.engine import difference
from benchmarks.peers import cvxpylayers, qpth, scipy_loop
from benchmarks.quadratic import Answer, Inputs, gradient_error, kkt_residual, sample
from benchmarks.report import Row, Target, timed
from benchmarks.smooth import Logistic, RobustChain, SoftMaximum
from benchmarks.timing import FULL, QUICK, Effort, compare, measure
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

Solve = Callable[..., Answer]


def rows(quick: bool) -> Iterator[Row]:
    """The suite."""
    for n, batch, ratio in ((4, 2, 1.0),) if quick else SIZES:
        effort = FULL if n * batch <= 100 else SLOW if n * batch <= 2000 else SLOWEST
        yield from speed_rows(n, batch, ratio, QUICK if quick else effort)
    for n, batch, count in ((4, 2, 2),) if quick else ACCURACIES:
        yield from accuracy_rows(n, batch, count)
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
    try:
        return PEERS[name](inputs[1].shape[1], inputs[3].shape[1], inputs[5].shape[1]), ""
    except ImportError as error:
        return None, f"{name} skipped: {error}"


def speed_rows(n: int, batch: int, ratio: float, effort: Effort) -> Iterator[Row]:
    """Forward and backward, gradients by all six inputs."""
    inputs, v = sample(n, batch)
    ours = partial(_gradients, _ours, inputs, v)
    for name in PEERS:
        what = f"QP forward and backward, n={n}, b={batch}, ours / {name}"
        solve, note = _prepared(name, inputs)
        if solve is None:
            yield Row(SUITE, what, "ms", measure(lambda: ours, effort).median, note=note)
        else:
            peer = partial(_gradients, solve, inputs, v)
            yield timed(SUITE, what, compare(lambda: ours, lambda peer=peer: peer, effort), Target(ratio=ratio))


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
            yield Row(SUITE, f"QP n={n}, b={batch}, {what}, ours / {name}", "", mine, other, target=Target(ours=limit), note=note)


def smooth_rows(kind: type[RobustChain | SoftMaximum | Logistic], m: int, batch: int, effort: Effort) -> Iterator[Row]:
    """Forward alone, against scipy with exact gradients: its default method, and those that take the Hessian in closed form too."""
    inputs, node = kind.sample(m, batch), kind()
    instances = [kind.instance(*arrays) for arrays in zip(*(t.numpy() for t in inputs), strict=True)]
    found = node(*inputs)
    if not isinstance(found, Tensor):
        raise TypeError("y is one tensor")

    def steepest(y: np.ndarray) -> float:
        return max(float(np.abs(instance.value_and_gradient(part)[1]).max()) for instance, part in zip(instances, y, strict=True))

    for method in scipy_loop.METHODS:
        y = scipy_loop.minimise(instances, method)
        comparison = compare(lambda: lambda: node(*inputs), lambda method=method: partial(scipy_loop.minimise, instances, method), effort)
        what = f"{kind.label}, m={m}, b={batch}, ours / loop of scipy ({method}{', its default' if method == scipy_loop.DEFAULT else ''})"
        target = Target(ratio=SCIPY_RATIO) if method == scipy_loop.DEFAULT else None
        yield timed(SUITE, f"{what}, forward", comparison, target, difference(found, torch.from_numpy(y)))
        yield Row(SUITE, f"{what}, largest gradient norm left", "", steepest(found.numpy()), steepest(y))
