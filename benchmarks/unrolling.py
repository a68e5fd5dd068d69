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

from benchmarks import machine
from benchmarks.contest import Judge, contest, figure_row, gradient_error
from benchmarks.report import Point, Row, Target
from benchmarks.statements import Descent
from benchmarks.timing import FULL, QUICK, Effort
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
        done = torch.full((problem.batch,), iteration + 1 == self.max_iterations, device=gradient.device)
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
    x = machine.here(torch.randn(batch, m, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    exact = gradient_error(_gradient(Chain(), x)())
    yield from descent_rows(x, exact, (5, 20) if quick else STEPS, QUICK if quick else SLOW)
    yield from newton_rows(x, exact, QUICK if quick else FULL)
    yield from own_solve_rows(x, (20, 40) if quick else STEPS)


def _gradient(node: DeclarativeNode, x: Tensor) -> Callable[[], Tensor]:
    """Forward and backward."""
    leaf = x.clone().requires_grad_()
    v = machine.here(torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype))
    return lambda: torch.autograd.grad(node(leaf), leaf, v)[0]


def _ways(solver: Solver, steps: int) -> dict[str, DeclarativeNode]:
    ways: dict[str, Differentiation] = {"Implicit()": Implicit(), "OneStep()": OneStep(), f"Unrolled({steps})": Unrolled(steps)}
    return {name: Chain(solver=solver, differentiation=way) for name, way in ways.items()}


def descent_rows(x: Tensor, exact: Judge, steps: tuple[int, ...], effort: Effort) -> Iterator[Row]:
    """A slow first-order solver."""
    needs: dict[str, list[tuple[int, int]]] = {"Implicit()": [], "OneStep()": []}
    for count in steps:
        # Where it stops is not a minimiser yet, and that is the point: nothing may be refused.
        solver = GradientDescent(max_iterations=count, length=1 - RATE, tolerance=1e30)
        nodes = _ways(solver, count)
        unrolled = _gradient(nodes.pop(f"Unrolled({count})"), x)
        for name, node in nodes.items():
            ours = _gradient(node, x)
            what = f"forward and backward, {name}, {count} steps of gradient descent, m={x.shape[1]}, b={x.shape[0]}"
            point = Point("Gradient descent, differentiated in three ways", "iterations", count, f"ours, {name}")
            row = contest(
                SUITE, what, lambda run=ours: run, "Unrolled", lambda run=unrolled: run, effort, judge=exact, errors="gradient", point=point
            )  # fmt: skip
            needs[name].append((row.memory or 0, row.peer_memory or 0))
            yield row
    for name, found in needs.items():
        yield _growth(f"growth of that memory from {steps[0]} to {steps[-1]} steps, {name}", found)


def newton_rows(x: Tensor, exact: Judge, effort: Effort) -> Iterator[Row]:
    """Newton, to convergence: all three agree, and cost is what differs."""
    iterations = Chain().solution(x).iterations
    if iterations is None:
        raise RuntimeError("a solution has iterations")
    count = int(iterations.max())
    nodes = _ways(Newton(), count)
    unrolled = _gradient(nodes.pop(f"Unrolled({count})"), x)
    for name, node in nodes.items():
        ours = _gradient(node, x)
        what = f"forward and backward, {name}, {count} steps of Newton, m={x.shape[1]}, b={x.shape[0]}"
        target = Target(ratio=1.0)
        yield contest(SUITE, what, lambda run=ours: run, "Unrolled", lambda: unrolled, effort, target, judge=exact, errors="gradient")


def own_solve_rows(x: Tensor, steps: tuple[int, ...]) -> Iterator[Row]:
    """A node's own solve in torch, whose steps cost the least that steps can: Implicit beside unrolling it as written."""
    needs: list[tuple[int, int]] = []
    for count in steps:
        ours, unrolled = _gradient(Descent(count), x), _gradient(Descent(count, differentiation=Unrolled()), x)
        judge = gradient_error(unrolled())
        what = f"forward and backward, own solve of {count} steps, m={x.shape[1]}, b={x.shape[0]}"
        row = contest(SUITE, what, lambda run=ours: run, "Unrolled", lambda run=unrolled: run, QUICK, judge=judge, errors="gradient")
        needs.append((row.memory or 0, row.peer_memory or 0))
        yield row
    yield _growth(f"growth of that memory from {steps[0]} to {steps[-1]} steps, own solve", needs)


def _growth(what: str, needs: list[tuple[int, int]]) -> Row:
    (first, peer_first), (last, peer_last) = needs[0], needs[-1]
    return figure_row(SUITE, what, "x", last / first, "Unrolled", peer_last / peer_first, Target(ours=1.01))
