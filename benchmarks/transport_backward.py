"""Entropic transport, backward by M: against the ancestor's algorithm, and the structure against the generic dense path.

Errors are those of the gradient at the true plan: ours and the ancestor's both start from our plan, the reference polishes it first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.bare import transport_with_factor
from benchmarks.contest import contest, gradient_error
from benchmarks.peers import ddn_transport
from benchmarks.plans import Problem, gradient, points, polished
from benchmarks.report import FLOOR, Point, Row, Target
from benchmarks.timing import QUICK, Effort
from declarative import DeclarativeNode, Direct, Implicit
from declarative.layers import DualNewton, OptimalTransport, Sinkhorn
from problems.optimal_transport import Transport

SUITE = "transport"
# (n, batch), γ, and how much faster than the ancestor.
CASES = ((100, 1, (1.0, 50.0), 2.5), (100, 16, (1.0, 50.0), 2.5), (500, 1, (1.0, 50.0, 1000.0), 5.0), (1000, 1, (1.0, 50.0), 10.0))
KEPT = ((50, 1), (50, 16), (100, 1), (100, 16))
KEPT_GAMMA, KEPT_RATIO = 50.0, 6.0
GRADIENT_LIMIT, DENSE_LIMIT = 1e-9, 1e-10
# Tight enough that what is left of the marginals' error does not show in the gradient's.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5}
STEPS = 10_000
CAUSE = "one Cholesky and two products on both sides: where the matrices are small both are calls, and the peer has no checks"
KEPT_CAUSE = "two triangular solves are left, and the calls of an autograd Function, which the peer has as well"
SLOW = Effort(blocks=5, seconds=0.0, runs=2, warm_up=1)
DENSE = Effort(blocks=3, seconds=0.0, runs=1, warm_up=1)


def backward_rows(n: int, batch: int, gamma: float, dtype: torch.dtype, effort: Effort, kept: bool = False, ratio: float | None = KEPT_RATIO) -> Iterator[Row]:
    """One size; `kept`: after a forward pass that ended in a Newton step, whose factor is kept; without a ratio: for the plot."""
    problem = points(n, gamma, batch, dtype)
    layer = OptimalTransport(gamma, method=DualNewton() if kept else Sinkhorn(), tolerance=TOLERANCE[dtype], max_iterations=STEPS)
    M, V = problem.M.clone().requires_grad_(), _cotangent(problem)
    P = layer(problem.M, problem.r, problem.c)
    by_block = ddn_transport.transport_backward(P, problem.r.expand(batch, n), problem.c.expand(batch, n), gamma)

    # Both start from a graph that is there: a solve just before would leave one side's numbers in the cache and not the other's.
    plan, plan_of_block = layer(M, problem.r, problem.c), by_block(M)

    def ours() -> Callable[[], Tensor]:
        return lambda: torch.autograd.grad(plan, M, V, retain_graph=True)[0]

    def block() -> Callable[[], Tensor]:
        return lambda: torch.autograd.grad(plan_of_block, M, V, retain_graph=True)[0]

    double = dtype == torch.float64
    judge = gradient_error(gradient(polished(P, problem), V, gamma))
    target = None if ratio is None else Target(ratio=ratio, error=GRADIENT_LIMIT if double else None)
    point = Point("Entropic transport, γ = 50, backward pass", "n", n) if ratio is None else None
    what = f"backward, n={n}, b={batch}, γ={gamma:g}, {str(dtype).removeprefix('torch.')}{', factor kept' if kept else ''}"
    yield contest(SUITE, what, ours, "ddn block", block, effort, target, judge=judge, errors="gradient", point=point, cause=KEPT_CAUSE if kept else CAUSE)
    if double and ratio is not None:
        bare = transport_with_factor(P.detach(), V, gamma, kept)
        yield contest(SUITE, what, ours, FLOOR, lambda: bare, effort, judge=judge, errors="gradient")


def _cotangent(problem: Problem) -> Tensor:
    return machine.here(torch.randn(problem.M.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(problem.M.dtype))


class Undeclared(Transport):
    """The plain statement without its structure, handed its plan."""

    hessian_structure = constraint_structure = mixed_structure = None
    found: Tensor

    def solve(self, M: Tensor, r: Tensor, c: Tensor) -> Tensor:  # noqa: ARG002
        return self.found


def dense_rows(m: int, n: int, gamma: float, quick: bool) -> Iterator[Row]:
    """The layer, and its statement as a plain node: gradients by M, r and c."""
    generator = torch.Generator().manual_seed(0)
    M, V = (machine.here(torch.rand(2, m, n, generator=generator, dtype=torch.float64)) for _ in range(2))
    r, c = (machine.here(0.5 + torch.rand(2, size, generator=generator, dtype=torch.float64)) for size in (m, n))
    inputs = tuple(t.requires_grad_() for t in (M, r / r.sum(1, keepdim=True), c / c.sum(1, keepdim=True)))
    layer, plain = OptimalTransport(gamma, tolerance=TOLERANCE[M.dtype]), Undeclared(gamma, differentiation=Implicit(linear_solver=Direct()))
    plain.found = layer(*inputs).detach()

    def backward(node: DeclarativeNode) -> Callable[[], Callable[[], tuple[Tensor, ...]]]:
        def prepared() -> Callable[[], tuple[Tensor, ...]]:
            plan = node(*inputs)
            return lambda: torch.autograd.grad(plan, inputs, V)

        return prepared

    ours, dense = backward(layer), backward(plain)
    exact = gradient_error(_centred(*dense()()))  # the dense path is the reference
    point = Point("Entropic transport: the layer and its statement as a dense node", "cells", m * n)
    yield contest(
        SUITE, f"backward, {m} x {n}, by structure", ours, "dense", dense, QUICK if quick else DENSE, Target(error=DENSE_LIMIT),
        judge=lambda found: exact(_centred(*found)), errors="gradient", point=point,
    )  # fmt: skip


def _centred(by_M: Tensor, by_r: Tensor, by_c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by r and c are free by a constant each, which depends on the equation that is left out."""
    return by_M, by_r - by_r.mean(1, keepdim=True), by_c - by_c.mean(1, keepdim=True)
