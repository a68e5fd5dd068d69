"""Three ways to differentiate the same solve: `Implicit`, `Unrolled(steps)`, `OneStep`, in time, memory and error.

All three run the same number of steps of the same solver, forward and backward; the peer of each row is `Unrolled`. The first-order
solver is slow on purpose: its error shrinks by ρ a step, so that after 10 steps nothing has converged and after 1000 all has.
What is reported as the error of a gradient is its largest difference from that of a solution at rounding, relative to the largest
entry. Implicit and one-step derivatives at an iterate that has not converged are the derivatives of another problem, and unrolled
ones those of the iterate: none is exact, and the rows say by how much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.engine import difference
from benchmarks.report import Row, Target, timed
from benchmarks.statements import Descent
from benchmarks.timing import FULL, QUICK, Effort, Spread, compare, measure
from benchmarks.timing import peak_bytes as exact_peak_bytes
from declarative import DeclarativeNode, Implicit, OneStep, Unrolled
from declarative.differentiation import Differentiation
from declarative.engines.autodiff import linearise
from declarative.problem import Problem
from declarative.solvers import IterativeSolver, Newton, Solver
from declarative.solvers.iterative import State

SUITE = "unrolling"
STEPS = (10, 100, 1000)
SLOW = Effort(blocks=3, seconds=0.0, runs=1)
RATE = 0.97  # ρ


@dataclass(frozen=True, kw_only=True)
class GradientDescent(IterativeSolver):
    """y ← y − length ∇f, exactly `max_iterations` times."""

    length: float = 1.0

    def begin(self, problem: Problem, y: Tensor, init: tuple[Tensor, ...]) -> State:  # noqa: ARG002
        return {"y": y, "residual": y.new_zeros(problem.batch)}

    def step(self, problem: Problem, state: State, iteration: int) -> tuple[State, Tensor, Tensor]:
        gradient = linearise(problem, state["y"]).gradient
        done = torch.full((problem.batch,), iteration + 1 == self.max_iterations)
        return {"y": state["y"] - self.length * gradient, "residual": gradient.abs().amax(1)}, torch.zeros_like(done, dtype=torch.int64), done


class Chain(DeclarativeNode):
    """½ ‖y − x‖² + ½ κ Σ (y_{i+1} − y_i)² + 0.1 Σ log cosh y, with κ such that gradient descent contracts by `RATE`."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        smoothness = 0.5 * _stiffness() * (y[..., 1:] - y[..., :-1]).square().sum(-1)
        return 0.5 * (y - x).square().sum(-1) + smoothness + 0.1 * y.cosh().log().sum(-1)

    def initial_guess(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def _stiffness() -> float:
    # Eigenvalues of H lie in [1, 1.1 + 4κ]; steps of the inverse of the largest contract by 1 − 1 / (1.1 + 4κ).
    return (1 / (1 - RATE) - 1.1) / 4


def rows(quick: bool) -> Iterator[Row]:
    """The suite."""
    m, batch = (4, 2) if quick else (64, 16)
    x = torch.randn(batch, m, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = _gradient(Chain(), x)()
    yield from descent_rows(x, exact, (5, 20) if quick else STEPS, QUICK if quick else SLOW)
    yield from newton_rows(x, exact, QUICK if quick else FULL)
    yield from own_solve_rows(x, (20, 40) if quick else STEPS)


def _gradient(node: DeclarativeNode, x: Tensor) -> Callable[[], Tensor]:
    """Forward and backward."""
    leaf = x.clone().requires_grad_()
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    return lambda: torch.autograd.grad(node(leaf), leaf, v)[0]


def _ways(solver: Solver, steps: int) -> dict[str, DeclarativeNode]:
    ways: dict[str, Differentiation] = {"Implicit()": Implicit(), "OneStep()": OneStep(), f"Unrolled({steps})": Unrolled(steps)}
    return {name: Chain(solver=solver, differentiation=way) for name, way in ways.items()}


def descent_rows(x: Tensor, exact: Tensor, steps: tuple[int, ...], effort: Effort) -> Iterator[Row]:
    """A slow first-order solver."""
    needs: dict[str, list[int]] = {"Implicit()": [], "OneStep()": [], "Unrolled": []}
    size = f"m={x.shape[1]}, b={x.shape[0]}"
    for count in steps:
        # Where it stops is not a minimiser yet, and that is the point: nothing may be refused.
        solver = GradientDescent(max_iterations=count, length=1 - RATE, tolerance=1e30)
        nodes = _ways(solver, count)
        unrolled = _gradient(nodes.pop(f"Unrolled({count})"), x)
        what = f"{count} steps of gradient descent, {size}"
        memory = peak_bytes(unrolled)
        needs["Unrolled"].append(memory)
        yield _error(f"Unrolled, {what}", unrolled, exact)
        for name, node in nodes.items():
            ours = _gradient(node, x)
            needs[name].append(peak_bytes(ours))
            yield _error(f"{name}, {what}", ours, exact)
            yield _memory(f"peak memory of forward and backward, {name}, {what}", needs[name][-1], memory)
            yield timed(SUITE, f"forward and backward, {name}, {what}", compare(lambda run=ours: run, lambda run=unrolled: run, effort))
    for name in ("Implicit()", "OneStep()"):
        growth, peer = needs[name][-1] / needs[name][0], needs["Unrolled"][-1] / needs["Unrolled"][0]
        what = f"growth of that memory from {steps[0]} to {steps[-1]} steps, {name}"
        yield Row(SUITE, what, "x", growth, peer, _same(peer / growth), Target(ours=1.01))


def newton_rows(x: Tensor, exact: Tensor, effort: Effort) -> Iterator[Row]:
    """Newton, to convergence: all three agree, and cost is what differs."""
    iterations = Chain().solution(x).iterations
    if iterations is None:
        raise RuntimeError("a solution has iterations")
    count = int(iterations.max())
    nodes = _ways(Newton(), count)
    unrolled = _gradient(nodes.pop(f"Unrolled({count})"), x)
    size = f"{count} steps of Newton, m={x.shape[1]}, b={x.shape[0]}"
    yield Row(SUITE, f"forward and backward, Unrolled, {size}", "ms", measure(lambda: unrolled, effort).median, agreement=difference(unrolled(), exact))
    for name, node in nodes.items():
        ours = _gradient(node, x)
        agreement = difference(ours(), exact)
        yield _memory(f"peak memory of forward and backward, {name}, {size}", peak_bytes(ours), peak_bytes(unrolled))
        yield timed(SUITE, f"forward and backward, {name}, {size}", compare(lambda run=ours: run, lambda: unrolled, effort), Target(ratio=1.0), agreement)


def own_solve_rows(x: Tensor, steps: tuple[int, ...]) -> Iterator[Row]:
    """A node's own solve in torch, whose steps cost the least that steps can: Implicit beside unrolling it as written."""
    needs: list[tuple[int, int]] = []
    for count in steps:
        ours, unrolled = _gradient(Descent(count), x), _gradient(Descent(count, differentiation=Unrolled()), x)
        agreement = difference(ours(), unrolled())
        needs.append((peak_bytes(ours), peak_bytes(unrolled)))
        what = f"own solve of {count} steps, m={x.shape[1]}, b={x.shape[0]}"
        yield _memory(f"peak memory of forward and backward, {what}", *needs[-1], agreement)
        yield timed(SUITE, f"forward and backward, {what}", compare(lambda run=ours: run, lambda run=unrolled: run, QUICK), agreement=agreement)
    (first, peer_first), (last, peer_last) = needs[0], needs[-1]
    what = f"growth of that memory from {steps[0]} to {steps[-1]} steps"
    yield Row(SUITE, what, "x", last / first, peer_last / peer_first, _same(peer_last / peer_first * first / last), Target(ours=1.01))


def peak_bytes(run: Callable[[], Tensor]) -> int:
    """To a percent."""
    return exact_peak_bytes(run, slack=0.01)


def _error(what: str, gradient: Callable[[], Tensor], exact: Tensor) -> Row:
    return Row(SUITE, f"error of the gradient, {what}", "", difference(gradient(), exact))


def _memory(what: str, ours: int, peer: int, agreement: float | None = None) -> Row:
    return Row(SUITE, what, "KiB", ours / 1024, peer / 1024, _same(peer / ours), agreement=agreement)


def _same(ratio: float) -> Spread:
    return Spread(ratio, ratio, ratio)
