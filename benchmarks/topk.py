"""Top-k: the identity layer against the bare `torch.topk`, the relaxations against the generic dense path and against bracketing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.engine import difference
from benchmarks.peers.lml import lml
from benchmarks.report import Row, Target, timed
from benchmarks.timing import FULL, QUICK, Effort, compare
from declarative import DeclarativeNode, Direct, Implicit
from declarative.layers import EntropicTopK, EuclideanTopK, IdentityTopK

SUITE = "topk"
HARD, HARD_K = (256, 10_000), 32
SOFT, SOFT_K = (256, 1000), 10
DENSE = (256, 100)
COST = 1.5  # the identity layer's, in units of torch.topk and a scatter
RESIDUAL, DENSE_RATIO, DENSE_LIMIT = 1e-12, 50.0, 1e-9
BRACKETED = 1e-14  # the width of the bracket that gives the same residual
SLOW = Effort(blocks=5, seconds=0.0, runs=1, warm_up=1)

Layer = Callable[[Tensor], Tensor]


def rows(quick: bool) -> Iterator[Row]:
    """The suite."""
    effort = QUICK if quick else FULL
    yield from hard_rows((3, 20) if quick else HARD, 4 if quick else HARD_K, effort)
    for layer in (EntropicTopK, EuclideanTopK):
        yield residual_row(layer, (3, 20) if quick else SOFT, 4 if quick else SOFT_K)
        yield from dense_rows(layer, (3, 8) if quick else DENSE, 3 if quick else SOFT_K, QUICK if quick else SLOW)
    yield from bracket_rows((3, 20) if quick else SOFT, 4 if quick else SOFT_K, effort)


def logits(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def both_ways(layer: Layer, x: Tensor, v: Tensor) -> Callable[[], Callable[[], Tensor]]:
    """Forward and backward."""

    def prepared() -> Callable[[], Tensor]:
        moving = x.clone().requires_grad_()
        return lambda: torch.autograd.grad(layer(moving), moving, v)[0]

    return prepared


def hard_rows(shape: tuple[int, int], k: int, effort: Effort) -> Iterator[Row]:
    """The identity layer, forward and backward, and the forward pass that everybody needs."""
    x, v = logits(shape, torch.float32), logits(shape, torch.float32).flip(0)

    def bare() -> Tensor:
        return torch.zeros_like(x).scatter_(1, x.topk(k, dim=1).indices, 1.0)

    for projection in ("standardise", "centre", None):
        layer = IdentityTopK(k, projection)
        what = f"forward and backward, IdentityTopK({k}, {projection!r}), {shape[0]} x {shape[1]}, ours / torch.topk and scatter, forward alone"
        comparison = compare(both_ways(layer, x, v), lambda: bare, effort)
        yield timed(SUITE, what, comparison, Target(ratio=1 / COST, agreement=0.0), difference(layer(x), bare()))


def residual_row(layer: type[EntropicTopK | EuclideanTopK], shape: tuple[int, int], k: int) -> Row:
    """|Σu − k|, the largest of the batch, over five temperatures."""
    x = logits(shape, torch.float64)
    worst = max(float((layer(k, temperature)(x).sum(1) - k).abs().max()) for temperature in (10.0, 1.0, 0.1, 1e-2, 1e-4))
    return Row(SUITE, f"{layer.__name__}({k}), {shape[0]} x {shape[1]}, float64: largest |Σu − k|", "", worst, target=Target(ours=RESIDUAL))


class Plain(DeclarativeNode):
    """The statement without structure, handed its solution."""

    found: Tensor

    def __init__(self, stated: nn.Module) -> None:
        super().__init__(differentiation=Implicit(linear_solver=Direct(), irregular="min_norm"))
        self.stated = stated

    def objective(self, x: Tensor, u: Tensor) -> Tensor:
        return self.stated.objective(x, u)  # pyright: ignore[reportCallIssue]

    def equality_constraints(self, x: Tensor, u: Tensor) -> Tensor:
        return self.stated.equality_constraints(x, u)  # pyright: ignore[reportCallIssue]

    def inequality_constraints(self, x: Tensor, u: Tensor) -> Tensor | None:
        return self.stated.inequality_constraints(x, u)  # pyright: ignore[reportCallIssue]

    def solve(self, x: Tensor) -> Tensor:  # noqa: ARG002
        return self.found


def dense_rows(layer: type[EntropicTopK | EuclideanTopK], shape: tuple[int, int], k: int, effort: Effort) -> Iterator[Row]:
    """The backward pass by structure and by the generic dense path, at the same solution."""
    x, v = logits(shape, torch.float64).requires_grad_(), logits(shape, torch.float64).flip(0)
    ours = layer(k)
    plain = Plain(ours)
    plain.found = ours(x).detach()

    def backward(node: nn.Module) -> Callable[[], Callable[[], Tensor]]:
        def prepared() -> Callable[[], Tensor]:
            u = node(x)
            return lambda: torch.autograd.grad(u, x, v)[0]

        return prepared

    mine, dense = backward(ours), backward(plain)
    what = f"backward, {layer.__name__}({k}), {shape[0]} x {shape[1]}, float64, structure / generic dense path"
    yield timed(SUITE, what, compare(mine, dense, effort), Target(ratio=DENSE_RATIO, agreement=DENSE_LIMIT), difference(mine()(), dense()()))


def bracket_rows(shape: tuple[int, int], k: int, effort: Effort) -> Iterator[Row]:
    """Forward and backward against the published way to find the multiplier, to the same accuracy."""
    x, v = logits(shape, torch.float64), logits(shape, torch.float64).flip(0)
    layer = EntropicTopK(k)
    theirs = float((lml(x, k, BRACKETED).sum(1) - k).abs().max())
    ours, peer = both_ways(layer, x, v), both_ways(lambda moving: lml(moving, k, BRACKETED), x, v)
    what = f"forward and backward, EntropicTopK({k}), {shape[0]} x {shape[1]}, float64, ours / LML by bracketing"
    note = f"its |Σu − k| {theirs:.0e}"
    yield timed(SUITE, what, compare(ours, peer, effort), Target(ratio=1.0, agreement=1e-10), difference(ours()(), peer()()), note=note)
