"""Top-k: the identity layer against the bare `torch.topk`, the relaxations against the generic dense path, bracketing and entmax.

Errors are those of the gradient, against the generic dense path in float64, unless a row says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks import machine
from benchmarks.bare import diagonal_with_sum
from benchmarks.contest import alone, backward_of, contest, difference, figure_row, gradient_error
from benchmarks.peers import entmax, jaxopt
from benchmarks.peers.lml import lml
from benchmarks.report import FLOOR, Point, Row, Target
from benchmarks.timing import FULL, QUICK, Effort
from declarative import DeclarativeNode, Direct, Implicit
from declarative.layers import EntropicTopK, EuclideanTopK, IdentityTopK

SUITE = "topk"
HARD, HARD_K = (256, 10_000), 32
SOFT, SOFT_K = (256, 1000), 10
DENSE = (256, 100)
COST = 1.5  # the identity layer's, in units of torch.topk and a scatter
RESIDUAL, DENSE_RATIO, DENSE_LIMIT = 1e-12, 50.0, 1e-9
BRACKETED = 1e-14  # the width of the bracket that gives the same residual
SCALES = (100, 1_000, 10_000, 100_000)
PASSES = "the backward pass of the projection: up to eight passes over 10 MB, and the memory of the gradient, which the allocator maps anew each time"
FLOOR_TEXT = """The identity layer's floor is torch.topk and one pass to scatter; its projections add two to eight passes over the logits. A relaxation needs a
pass with one exponential a number for each Newton step of its multiplier (6 to 9 steps), and three passes backward: it is bound by memory and by exp."""
SLOW = Effort(blocks=5, seconds=0.0, runs=1, warm_up=1)

Layer = Callable[[Tensor], Tensor]


def rows(quick: bool) -> Iterator[Row]:
    """The suite."""
    effort = QUICK if quick else FULL
    yield from hard_rows((3, 20) if quick else HARD, 4 if quick else HARD_K, effort)
    for layer in (EntropicTopK, EuclideanTopK):
        yield residual_row(layer, (3, 20) if quick else SOFT, 4 if quick else SOFT_K)
        yield from dense_rows(layer, (3, 8) if quick else DENSE, 3 if quick else SOFT_K, QUICK if quick else SLOW)
    yield from bracket_rows((3, 20) if quick else SOFT, 4 if quick else SOFT_K, effort, Target(ratio=1.0, error=1e-10))
    for n in (10, 20) if quick else SCALES:
        yield from bracket_rows((16, n), 5, QUICK if quick else SLOW, None)
    yield from simplex_rows((3, 20) if quick else SOFT, effort)


def logits(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Normal numbers."""
    return machine.here(torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype))


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
        what = f"forward and backward, IdentityTopK({k}, {projection!r}), {shape[0]} x {shape[1]}"
        row = contest(SUITE, what, both_ways(layer, x, v), "torch.topk and scatter, forward alone", lambda: bare, effort, Target(ratio=1 / COST, error=0.0))
        yield replace(row, error=difference(layer(x), bare()), errors="forward", cause=PASSES)


def residual_row(layer: type[EntropicTopK | EuclideanTopK], shape: tuple[int, int], k: int) -> Row:
    """|Σu − k|, the largest of the batch, over five temperatures."""
    x = logits(shape, torch.float64)
    worst = max(float((layer(k, temperature)(x).sum(1) - k).abs().max()) for temperature in (10.0, 1.0, 0.1, 1e-2, 1e-4))
    return figure_row(SUITE, f"{layer.__name__}({k}), {shape[0]} x {shape[1]}, float64: largest |Σu − k|", "", worst, target=Target(ours=RESIDUAL))


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

    mine, dense = backward_of(ours, x, v), backward_of(plain, x, v)
    exact = gradient_error(dense()())
    what = f"backward, {layer.__name__}({k}), {shape[0]} x {shape[1]}, float64, by structure"
    yield contest(SUITE, what, mine, "dense", dense, effort, Target(ratio=DENSE_RATIO, error=DENSE_LIMIT), judge=exact, errors="gradient")
    if layer is EntropicTopK:
        yield contest(SUITE, what, mine, FLOOR, lambda: diagonal_with_sum(plain.found, v), FULL, judge=exact, errors="gradient")


def _exact(x: Tensor, k: int, v: Tensor) -> Tensor:
    """⟨v, u⟩ differentiated by x for u = σ(x + ν), Σu = k, with ν by bisection to the last bit."""
    low, high = -x.amax(1, keepdim=True) - 40, -x.amin(1, keepdim=True) + 40
    for _ in range(100):
        middle = 0.5 * (low + high)
        above = (x + middle).sigmoid().sum(1, keepdim=True) > k
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    slope = (x + low).sigmoid() * (-x - low).sigmoid()
    return slope * (v - (slope * v).sum(1, keepdim=True) / slope.sum(1, keepdim=True))


def bracket_rows(shape: tuple[int, int], k: int, effort: Effort, target: Target | None) -> Iterator[Row]:
    """Forward and backward against the published way to find the multiplier, to the same accuracy."""
    x, v = logits(shape, torch.float64), logits(shape, torch.float64).flip(0)
    ours, peer = both_ways(EntropicTopK(k), x, v), both_ways(lambda moving: lml(moving, k, BRACKETED), x, v)
    what = f"forward and backward, EntropicTopK({k}), {shape[0]} x {shape[1]}, float64"
    point = Point("Entropic top-k, batch of 16, forward and backward", "n", shape[1]) if target is None else None
    judge = gradient_error(_exact(x, k, v))
    yield contest(SUITE, what, ours, "LML by bracketing", peer, effort, target, judge=judge, errors="gradient", point=point)


def simplex_rows(shape: tuple[int, int], effort: Effort) -> Iterator[Row]:
    """The projection onto the simplex, which others call sparsemax: top-k by ½‖u‖² with k = 1."""
    x, v = logits(shape, torch.float64), logits(shape, torch.float64).flip(0)
    ours = both_ways(EuclideanTopK(1), x, v)
    what = f"forward and backward, EuclideanTopK(1), {shape[0]} x {shape[1]}, float64"
    ordered = x.sort(1, descending=True).values
    excess = ordered.cumsum(1) - 1
    support = (ordered * torch.arange(1, shape[1] + 1, dtype=x.dtype, device=x.device) > excess).sum(1, keepdim=True)
    free = x > excess.gather(1, support - 1) / support
    judge = gradient_error(torch.where(free, v - (v * free).sum(1, keepdim=True) / support, 0.0))
    try:
        peer = both_ways(entmax.sparsemax(), x, v)
        yield contest(SUITE, what, ours, "entmax's sparsemax", peer, effort, judge=judge, errors="gradient")
    except ImportError as error:
        yield alone(SUITE, what, ours, effort, against="entmax", note=f"entmax skipped: {error}")
    if machine.on_cpu():
        try:
            way = jaxopt.top_k(x, v, 1)
            error = judge(way.result())
            yield contest(SUITE, what, ours, way.name, way.side, effort, judge=judge, errors="gradient", peer_error=error)
        except ImportError as error:
            yield alone(SUITE, what, ours, effort, against="jaxopt", note=f"jaxopt skipped: {error}")
