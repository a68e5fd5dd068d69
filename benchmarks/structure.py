"""What a declared structure saves, against the same node without it; and the automatic choice where nothing is declared.

Timed is the backward call. Solutions are given, so that the forward pass costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.engine import difference
from benchmarks.peers import loop
from benchmarks.peers.transport import transport_backward
from benchmarks.report import Row, Target, timed
from benchmarks.timing import FULL, QUICK, Effort, compare, measure, peak_bytes
from declarative import DeclarativeNode, Direct, Implicit
from declarative.structure import Diagonal
from problems.chain import Chain
from problems.optimal_transport import GAMMA, Transport

SUITE = "structure"
SLOW = Effort(blocks=3, seconds=0.0, runs=2)
WHOLE_MS = 0.5


def rows(quick: bool) -> Iterator[Row]:
    """The suite."""
    for m, batch, ratio in ((4, 3, None),) if quick else ((10, 16, None), (100, 128, 30.0), (1000, 8, 100.0)):
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
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _backward(node: DeclarativeNode, x: Tensor, v: Tensor, *rest: Tensor) -> Callable[[], Callable[[], Tensor]]:
    def prepared() -> Callable[[], Tensor]:
        y = node(x, *rest)
        return lambda: torch.autograd.grad(y, x, v)[0]

    return prepared


def diagonal_rows(m: int, batch: int, ratio: float | None, effort: Effort) -> Iterator[Row]:
    """One product against m."""
    x, v = _random(batch, m).requires_grad_(), torch.ones(batch, m, dtype=torch.float64)
    tagged, dense = _backward(TaggedSeparable(), x, v), _backward(Separable(differentiation=Implicit(linear_solver=Direct())), x, v)
    comparison = compare(tagged, dense, effort)
    what = f"backward, separable, m={m}, b={batch}, Diagonal() / dense"
    yield timed(SUITE, what, comparison, None if ratio is None else Target(ratio=ratio), difference(tagged()(), dense()()))
    if m <= 10:
        yield Row(SUITE, f"{what}: whole call", "ms", comparison.ours.median, target=Target(ours=WHOLE_MS))


def memory_row(m: int) -> Row:
    """O(m): four times the numbers, four times the bytes."""

    def peak(size: int) -> float:
        x = _random(1, size).requires_grad_()
        return peak_bytes(_backward(TaggedSeparable(), x, torch.ones(1, size, dtype=torch.float64))())

    small, large = peak(m), peak(4 * m)
    return Row(SUITE, f"growth of the peak memory, Diagonal(), from m={m} to m={4 * m}", "x", large / small, target=Target(ours=4.2))


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
    M, r = _random(batch, n, n).abs().requires_grad_(), torch.full((batch, n), 1 / n, dtype=torch.float64)
    node, v = Sinkhorn(), _random(batch, n, n)
    tagged = _backward(node, M, v, r, r)
    dense = _backward(UndeclaredSinkhorn(differentiation=Implicit(linear_solver=Direct())), M, v, r, r)
    what = f"backward, entropic transport {n}x{n}, b={batch}, tags"
    yield timed(SUITE, f"{what} / dense", compare(tagged, dense, QUICK if quick else SLOW), Target(ratio=100), difference(tagged()(), dense()()))
    P = node(M, r, r).detach()
    by_hand = transport_backward(P, GAMMA)
    leaf = M.detach().requires_grad_()

    def hand() -> Callable[[], Tensor]:
        y = by_hand(leaf)
        return lambda: torch.autograd.grad(y, leaf, v)[0]

    yield timed(SUITE, f"{what} / by hand", compare(tagged, hand, QUICK if quick else FULL), Target(ratio=0.2), difference(tagged()(), hand()()))


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
    x, v = torch.zeros(batch, m, dtype=torch.float64, requires_grad=True), _random(batch, m)
    node = Coupled(m, condition)
    ours, dense = _backward(node, x, v), _backward(Coupled(m, condition, Implicit(linear_solver=Direct())), x, v)
    effort = QUICK if quick else SLOW
    what = f"backward, nothing declared, m={m}, b={batch}, condition {condition:g}"
    benign = condition < 100
    yield timed(SUITE, f"{what} / dense", compare(ours, dense, effort), None if benign else Target(ratio=1 / 1.3), difference(ours()(), dense()()))
    if benign:
        solved = loop.Solved(x, torch.zeros_like(x), x.detach()[:, :0])

        def ancestor() -> Callable[[], Tensor]:
            return lambda: loop.backward(node, solved, v, form_blocks=True)

        target = Target(ratio=15.0 if batch == 1 else 20.0)
        yield timed(SUITE, f"{what} / the ancestor's loop", compare(ours, ancestor, QUICK), target, difference(ours()(), ancestor()()))


def chain_rows(sizes: tuple[int, ...], quick: bool) -> Iterator[Row]:
    """Tridiagonal H at sizes that no dense matrix would fit."""
    times = []
    for m in sizes:
        x, v = (2 * _random(1, m)).requires_grad_(), torch.ones(1, m, dtype=torch.float64)
        spent = measure(_backward(Chain(), x, v), QUICK if quick else SLOW)
        times.append(spent.median / m)
        yield Row(SUITE, f"backward, chain, Banded(1), m={m}", "ms", spent.median)
    yield Row(SUITE, f"growth of the time per number from m={sizes[0]} to m={sizes[-1]}", "x", times[-1] / times[0], target=Target(ours=1.5))
