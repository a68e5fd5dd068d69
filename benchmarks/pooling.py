"""Robust pooling: forward and backward against one L-BFGS over the whole batch, the structured gradient against the generic dense path, and
the exact minimum of the scalar truncated quadratic.

Clouds have a spread of half of α = 1; a fifth of the points are outliers, ten times as far. The residual of a result is the largest
‖∇‖/Σκ₁, a distance in units of α. Where the peer's is larger than ours, what it gained in time it lost in precision. The peer differentiates at
the point where it stopped, and the error of its gradient is that of its point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.bare import pooling_backward
from benchmarks.contest import backward_of, contest, figure_row, gradient_error
from benchmarks.exact import COUNT
from benchmarks.peers.lbfgs_pooling import lbfgs_pooling
from benchmarks.report import FLOOR, Point, Row, Target
from benchmarks.timing import FULL, QUICK, Effort, Prepare
from declarative import DeclarativeNode, Direct, Implicit
from declarative.layers import Huber, Penalty, PseudoHuber, Quadratic, RobustPooling, TruncatedQuadratic, Welsch

SUITE = "pooling"
SIZES = ((16, 3, 1024), (64, 64, 49), (256, 16, 256))
OURS = {"Quadratic": Quadratic(), "PseudoHuber": PseudoHuber(), "Huber": Huber(), "Welsch": Welsch(), "TruncatedQuadratic": TruncatedQuadratic()}
FORWARD = {torch.float32: 6.0, torch.float64: 3.0}
BACKWARD = 2.5
RESIDUAL = 1e-8  # in float64
DENSE = (16, 32, 200)
DENSE_RATIO, DENSE_LIMIT = 20.0, 1e-10
LARGE = 2**19  # numbers, from where a few runs are enough: the peer takes up to a second
SCALES = (64, 256, 1024, 4096)
CAUSE = "at this size the work is small calls, on both sides; the peer stops at a residual some hundred times larger"
FLOOR_TEXT = """A reweighted step is two products with the C x N matrix of points (4CN flops a sample) and one pass over N weights, so it is bound by memory:
two passes over the points a step, 5 to 25 steps. The backward pass is one pass for the weights, C²N flops to form H and C³/3 to factor it (or a few
products of 4CN), and one pass to write the gradient."""
SLOW = Effort(blocks=5, seconds=0.0, runs=2, warm_up=1)


def rows(quick: bool) -> Iterator[Row]:
    """The suite."""
    for dtype in (torch.float32, torch.float64):
        for shape in ((3, 2, 20),) if quick else SIZES:
            for name in OURS:
                yield from lbfgs_rows(name, shape, dtype, QUICK if quick else FULL if prod(shape) < LARGE else SLOW)
    for count in (8, 16) if quick else SCALES:
        yield from lbfgs_rows("Welsch", (16, 3, count), torch.float64, QUICK if quick else SLOW, scaling=True)
    for name in ("PseudoHuber", "Huber", "Welsch"):
        yield from dense_rows(name, (2, 3, 8) if quick else DENSE, QUICK if quick else SLOW)
    yield exact_row(*((4, 9) if quick else (200, 60)))


def clouds(shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """(b, C, N), a fifth of the points outliers."""
    generator = torch.Generator().manual_seed(0)
    b, channels, points = shape
    near, far = torch.randn(2, b, channels, points, generator=generator, dtype=torch.float64) / channels**0.5
    outlier = torch.rand(b, 1, points, generator=generator) < 0.2
    return machine.here(torch.where(outlier, 0.5 * near + 10 * far, 0.5 * near).to(dtype))


def residual(x: Tensor, u: Tensor, penalty: Penalty) -> float:
    """The largest ‖∇‖/Σκ₁, in float64."""
    x, u = x.double(), u.detach().double()
    toward = x - u.unsqueeze(2)
    kappa1 = penalty.kappa1(toward.square().sum(1), *penalty.values())
    return float((torch.linalg.vector_norm((toward * kappa1.unsqueeze(1)).sum(2), dim=1) / kappa1.sum(1)).max())


def lbfgs_rows(name: str, shape: tuple[int, int, int], dtype: torch.dtype, effort: Effort, *, scaling: bool = False) -> Iterator[Row]:
    """One penalty at one size: forward, then backward; `scaling`: for the plots, without targets."""
    x, layer = clouds(shape, dtype), RobustPooling(OURS[name])
    what = f"{name}, {shape[0]} x {shape[1]} x {shape[2]}, {str(dtype).removeprefix('torch.')}"
    exact = dtype == torch.float64
    target = None if scaling else Target(ratio=FORWARD[dtype], error=RESIDUAL if exact else None)
    point = Point(f"Robust pooling, {name}, {shape[0]} x {shape[1]} x N, {{}}", "N", shape[2]) if scaling else None
    yield contest(
        SUITE, f"forward, {what}", lambda: lambda: layer(x), "batch-coupled L-BFGS", lambda: lambda: lbfgs_pooling(x, name), effort, target,
        judge=lambda u: residual(x, u, OURS[name]), errors="‖∇‖/Σκ₁", point=_titled(point, "forward"), cause=CAUSE,
    )  # fmt: skip
    v = x.new_ones(shape[:2])

    def backward(pool: Callable[[Tensor], Tensor]) -> Prepare:
        return backward_of(pool, x.clone().requires_grad_(), v)

    judge = gradient_error(_exact_gradient(x, layer, v))
    yield contest(
        SUITE, f"backward, {what}", backward(layer), "batch-coupled L-BFGS", backward(lambda moving: lbfgs_pooling(moving, name)), effort,
        None if scaling else Target(ratio=BACKWARD), judge=judge, errors="gradient", point=_titled(point, "backward"), cause=CAUSE,
    )  # fmt: skip
    if not scaling and exact and name == "PseudoHuber":
        u = layer(x).detach()
        yield contest(SUITE, f"backward, {what}", backward(layer), FLOOR, lambda: pooling_backward(x, u, v), effort, judge=judge, errors="gradient")


def _titled(point: Point | None, way: str) -> Point | None:
    return None if point is None else replace(point, figure=point.figure.format(way))


def _exact_gradient(x: Tensor, layer: RobustPooling, v: Tensor) -> Tensor:
    """By the generic dense path in float64, at a minimum that is solved for to rounding from where our layer ends."""
    few = x[:COUNT].double()
    plain = machine.model(Plain(layer.penalty))
    plain.found = RobustPooling(layer.penalty, tolerance=1e-14)(few).detach()
    leaf = few.clone().requires_grad_()
    return torch.autograd.grad(plain(leaf), leaf, v[:COUNT].double())[0]


class Plain(DeclarativeNode):
    """The statement without its structure, handed its minimum."""

    found: Tensor

    def __init__(self, penalty: Penalty) -> None:
        super().__init__(differentiation=Implicit(linear_solver=Direct()))
        self.penalty = penalty

    def objective(self, x: Tensor, u: Tensor) -> Tensor:
        return self.penalty.phi((x - u.unsqueeze(1)).square().sum(0), *self.penalty.values()).sum()

    def solve(self, x: Tensor) -> Tensor:  # noqa: ARG002
        return self.found


def dense_rows(name: str, shape: tuple[int, int, int], effort: Effort) -> Iterator[Row]:
    """The whole backward pass by structure and by the generic dense path, at the same minimum."""
    x = clouds(shape, torch.float64).requires_grad_()
    layer, plain = RobustPooling(OURS[name], tolerance=1e-14), Plain(OURS[name])
    plain.found = layer(x).detach()
    v = machine.here(torch.randn(shape[:2], generator=torch.Generator().manual_seed(1), dtype=torch.float64))

    ours, dense = backward_of(layer, x, v), backward_of(plain, x, v)
    target = Target(ratio=DENSE_RATIO, error=DENSE_LIMIT)
    what = f"backward, {name}, {shape[0]} x {shape[1]} x {shape[2]}, float64, by structure"
    # The dense path is the reference: its error is none by definition.
    yield contest(SUITE, what, ours, "dense", dense, effort, target, judge=gradient_error(dense()()), errors="gradient")


def exact_row(problems: int, points: int) -> Row:
    """How far above the lowest of all subsets of neighbours the objective ends: the subsets of the global minimum are among them."""
    generator = torch.Generator().manual_seed(0)
    x = machine.here(4 * torch.rand(problems, 1, points, generator=generator, dtype=torch.float64))
    penalty = TruncatedQuadratic(0.5)

    def objective(u: Tensor) -> Tensor:
        return penalty.phi((x - u.unsqueeze(2)).square().sum(1), *penalty.values()).sum(1)

    ours = objective(RobustPooling(penalty)(x))
    ordered = x.sort(2).values
    lowest = torch.full_like(ours, torch.inf)
    for first in range(points):
        for last in range(first, points):
            lowest = torch.minimum(lowest, objective(ordered[:, :, first : last + 1].mean(2)))
    what = f"scalar TruncatedQuadratic, {problems} problems of {points} points: objective above the lowest of all windows"
    return figure_row(SUITE, what, "", float((ours - lowest).max()), target=Target(ours=1e-12))
