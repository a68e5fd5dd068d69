"""What a declared structure saves, against the same node without it; and the automatic choice where nothing is declared.

Timed is the backward call. Solutions are given, so that the forward pass costs next to nothing. Errors are those of the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.bare import diagonal_backward
from benchmarks.contest import alone, backward_of, contest, figure_row, gradient_error
from benchmarks.exact import COUNT, solve_refined
from benchmarks.peers import loop
from benchmarks.peers.transport import transport_backward
from benchmarks.plans import Problem, gradient, polished
from benchmarks.report import FLOOR, Point, Row, Target
from benchmarks.timing import FULL, QUICK, Effort, peak_bytes
from declarative import DeclarativeNode, Direct, Implicit
from declarative.structure import Diagonal
from problems.chain import Chain
from problems.optimal_transport import GAMMA, Transport

SUITE = "structure"
SLOW = Effort(blocks=3, seconds=0.0, runs=2)
WHOLE_MS = 0.4
SPARSE = "Sparse() says where A is not zero, not that it sums rows and columns: S is formed and factorised with all 59 rows; the layer and SymbolicNode know"
FLOOR_TEXT = """A tagged backward pass needs one product with H (two backward sweeps through the objective), O(m) flops to solve, and one product
with Bᵀ. At m = 10 that is three calls into torch; at m = 10⁵ it is bound by memory: some 30 passes over m numbers. Matrix-free, the floor is one
product (two sweeps) for each step of conjugate gradients."""


def rows(quick: bool) -> Iterator[Row]:
    """The suite."""
    for m, batch, ratio in ((4, 3, None),) if quick else ((10, 16, None), (30, 128, None), (100, 128, 30.0), (1000, 8, 100.0)):
        yield from diagonal_rows(m, batch, ratio, QUICK if quick else SLOW if m > 100 else FULL)
    yield memory_row(50 if quick else 100_000)
    for batch in (2,) if quick else (1, 16):
        yield from transport_rows(4 if quick else 30, batch, quick)
    for condition, batch in ((10.0, 2),) if quick else ((10.0, 1), (10.0, 128), (3000.0, 1), (3000.0, 16)):
        yield from automatic_rows(20 if quick else 500, condition, batch, quick)
    yield from chain_rows((10, 20) if quick else (1_000, 10_000, 100_000), quick)


class Separable(DeclarativeNode):
    """Σ cosh y − x y: y = arsinh x."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return (y.cosh() - x * y).sum()

    def solve(self, x: Tensor) -> Tensor:
        return x.asinh()


class TaggedSeparable(Separable):
    """The same, declared."""

    hessian_structure = Diagonal()


def _random(*shape: int) -> Tensor:
    return machine.here(torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


def diagonal_rows(m: int, batch: int, ratio: float | None, effort: Effort) -> Iterator[Row]:
    """One product against m."""
    x = _random(batch, m).requires_grad_()
    v, node = torch.ones_like(x), TaggedSeparable()
    tagged, dense = backward_of(node, x, v), backward_of(Separable(differentiation=Implicit(linear_solver=Direct())), x, v)
    what = f"backward, separable, m={m}, b={batch}, Diagonal()"
    exact = x.detach()[:COUNT].square().add(1).rsqrt()
    judged = {"judge": gradient_error(exact), "errors": "gradient"}
    point = Point("Backward pass of a separable objective", "m", m, "ours, Diagonal()") if batch == 128 else None
    row = contest(SUITE, what, tagged, "dense", dense, effort, None if ratio is None else Target(ratio=ratio), **judged, point=point)
    yield row
    if m <= 10:
        yield Row(SUITE, f"{what}: whole call", "ms", row.ours, target=Target(ours=WHOLE_MS))
    solved = loop.Solved(x, x.detach().asinh(), x.detach()[:, :0])
    yield contest(SUITE, what, tagged, FLOOR, lambda: diagonal_backward(node, solved, v), effort, **judged)


def memory_row(m: int) -> Row:
    """O(m): four times the numbers, four times the bytes."""

    def peak(size: int) -> float:
        x = _random(1, size).requires_grad_()
        return peak_bytes(backward_of(TaggedSeparable(), x, torch.ones_like(x))())

    small, large = peak(m), peak(4 * m)
    return figure_row(SUITE, f"growth of the peak memory, Diagonal(), from m={m} to m={4 * m}", "x", large / small, target=Target(ours=4.2))


class Sinkhorn(Transport):
    """Entropic transport with a solver of its own."""

    def solve(self, M: Tensor, r: Tensor, c: Tensor) -> Tensor:
        kernel = (-GAMMA * M).exp() * r.unsqueeze(2) * c.unsqueeze(1)
        u, v = torch.ones_like(r), torch.ones_like(c)
        for _ in range(300):
            u = r / (kernel @ v.unsqueeze(2)).squeeze(2)
            v = c / (kernel.mT @ u.unsqueeze(2)).squeeze(2)
        return u.unsqueeze(2) * kernel * v.unsqueeze(1)


class UndeclaredSinkhorn(Sinkhorn):
    """The same, saying nothing."""

    hessian_structure = constraint_structure = mixed_structure = None


def transport_rows(n: int, batch: int, quick: bool) -> Iterator[Row]:
    """Tags against the dense path and against a backward pass written by hand."""
    M, r = _random(batch, n, n).abs().requires_grad_(), machine.here(torch.full((batch, n), 1 / n, dtype=torch.float64))
    node, v = Sinkhorn(), _random(batch, n, n)
    tagged = backward_of(node, M, v, r, r)
    dense = backward_of(UndeclaredSinkhorn(differentiation=Implicit(linear_solver=Direct())), M, v, r, r)
    what = f"backward, entropic transport {n} x {n}, b={batch}, tags"
    P = node(M, r, r).detach()
    exact = gradient(polished(P, Problem(M.detach(), r, r, GAMMA)), v, GAMMA)
    judged = {"judge": gradient_error(exact), "errors": "gradient"}
    cause = "at b=1 the dense path itself takes 11 ms: a hundredth of it is less than any backward call costs"
    yield contest(SUITE, what, tagged, "dense", dense, QUICK if quick else SLOW, Target(ratio=100), **judged, cause=cause)
    by_hand = transport_backward(P, GAMMA)
    leaf = M.detach().requires_grad_()

    def hand() -> Callable[[], Tensor]:
        y = by_hand(leaf)
        return lambda: torch.autograd.grad(y, leaf, v)[0]

    yield contest(SUITE, what, tagged, "by hand", hand, QUICK if quick else FULL, Target(ratio=0.2), **judged, cause=SPARSE)


class Coupled(DeclarativeNode):
    """½ (κ − 1) ‖W y‖² + Σ cosh y − x y, ‖W‖ = 1: at y = 0, x = 0 the Hessian's condition number is about κ."""

    W: Tensor

    def __init__(self, m: int, condition: float, differentiation: Implicit | None = None) -> None:
        super().__init__(differentiation=differentiation)
        matrix = _random(m, m)
        self.register_buffer("W", matrix / torch.linalg.matrix_norm(matrix, ord=2))
        self.strength = condition - 1

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * self.strength * (y @ self.W).square().sum(-1) + (y.cosh() - x * y).sum(-1)

    def solve(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def automatic_rows(m: int, condition: float, batch: int, quick: bool) -> Iterator[Row]:
    """Nothing declared: against the ancestor's loop, and against the dense path."""
    v = _random(batch, m)
    x = torch.zeros_like(v, requires_grad=True)
    node = machine.model(Coupled(m, condition))
    ours, dense = backward_of(node, x, v), backward_of(machine.model(Coupled(m, condition, Implicit(linear_solver=Direct()))), x, v)
    effort = QUICK if quick else SLOW
    what = f"backward, nothing declared, m={m}, b={batch}, condition {condition:g}"
    benign = condition < 100
    W = node.W.cpu()
    H = node.strength * W @ W.mT + torch.eye(m, dtype=W.dtype)  # at y = 0, where ∂²f/∂y∂x = −I
    exact = solve_refined(H.expand(len(v[:COUNT]), m, m), v[:COUNT].cpu())
    judged = {"judge": gradient_error(exact), "errors": "gradient", "weigh": "none" if batch > 1 else "both"}
    yield contest(SUITE, what, ours, "dense", dense, effort, None if benign else Target(ratio=1 / 1.3), **judged)
    if benign:
        solved = loop.Solved(x, torch.zeros_like(x), x.detach()[:, :0])

        def ancestor() -> Callable[[], Tensor]:
            return lambda: loop.backward(node, solved, v, form_blocks=True)

        target = Target(ratio=15.0 if batch == 1 else 20.0)
        cause = "43 products of 0.1 ms one after the other; forming H at once takes as long" if batch == 1 else "within the spread of other runs"
        yield contest(SUITE, what, ours, "ancestor's loop", ancestor, QUICK, target, **judged, cause=cause)


def chain_rows(sizes: tuple[int, ...], quick: bool) -> Iterator[Row]:
    """Tridiagonal H at sizes that no dense matrix would fit."""
    times = []
    for m in sizes:
        x = (2 * _random(1, m)).requires_grad_()
        point = Point("Backward pass of a chain, Banded(1)", "m", m)
        row = alone(SUITE, f"backward, chain, Banded(1), m={m}", backward_of(Chain(), x, torch.ones_like(x)), QUICK if quick else SLOW, point=point)
        times.append(row.ours / m)
        yield row
    what = f"growth of the time per number from m={sizes[0]} to m={sizes[-1]}"
    yield figure_row(SUITE, what, "x", times[-1] / times[0], target=Target(ours=1.5))
