"""Robust pooling: forward and backward against one L-BFGS over the whole batch, the structured gradient against the generic dense path, and
the exact minimum of the scalar truncated quadratic.

Clouds have a spread of half of α = 1; a fifth of the points are outliers, ten times as far. The residual of a result is the largest
‖∇‖/Σκ₁, a distance in units of α. Where the peer's is larger than ours, what it gained in time it lost in precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.engine import difference
from benchmarks.peers.lbfgs_pooling import lbfgs_pooling
from benchmarks.report import Row, Target, timed
from benchmarks.timing import FULL, QUICK, Effort, compare
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
SLOW = Effort(blocks=5, seconds=0.0, runs=2, warm_up=1)


def rows(quick: bool) -> Iterator[Row]:
    """The suite."""
    for dtype in (torch.float32, torch.float64):
        for shape in ((3, 2, 20),) if quick else SIZES:
            for name in OURS:
                yield from lbfgs_rows(name, shape, dtype, QUICK if quick else FULL)
    for name in ("PseudoHuber", "Huber", "Welsch"):
        yield from dense_rows(name, (2, 3, 8) if quick else DENSE, QUICK if quick else SLOW)
    yield exact_row(*((4, 9) if quick else (200, 60)))


def clouds(shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """(b, C, N), a fifth of the points outliers."""
    generator = torch.Generator().manual_seed(0)
    b, channels, points = shape
    near, far = torch.randn(2, b, channels, points, generator=generator, dtype=torch.float64) / channels**0.5
    outlier = torch.rand(b, 1, points, generator=generator) < 0.2
    return torch.where(outlier, 0.5 * near + 10 * far, 0.5 * near).to(dtype)


def residual(x: Tensor, u: Tensor, penalty: Penalty) -> float:
    """The largest ‖∇‖/Σκ₁, in float64."""
    x, u = x.double(), u.detach().double()
    toward = x - u.unsqueeze(2)
    kappa1 = penalty.kappa1(toward.square().sum(1), *penalty.values())
    return float((torch.linalg.vector_norm((toward * kappa1.unsqueeze(1)).sum(2), dim=1) / kappa1.sum(1)).max())


def lbfgs_rows(name: str, shape: tuple[int, int, int], dtype: torch.dtype, effort: Effort) -> Iterator[Row]:
    """One penalty at one size: forward, then backward."""
    x, layer = clouds(shape, dtype), RobustPooling(OURS[name])
    mine, theirs = (residual(x, u, OURS[name]) for u in (layer(x), lbfgs_pooling(x, name)))
    what = f"{name}, {shape[0]} x {shape[1]} x {shape[2]}, {str(dtype).removeprefix('torch.')}"
    exact = dtype == torch.float64
    target = Target(ratio=FORWARD[dtype], agreement=RESIDUAL if exact else None)
    forward = compare(lambda: lambda: layer(x), lambda: lambda: lbfgs_pooling(x, name), effort)
    note = f"residuals {mine:.0e}, its {theirs:.0e}"
    yield timed(SUITE, f"forward, {what}, ours / batch-coupled L-BFGS", forward, target, mine if exact else None, note=note)

    v = torch.ones(shape[:2], dtype=dtype)

    def backward(pool: Callable[[Tensor], Tensor]) -> Callable[[], Callable[[], tuple[Tensor, ...]]]:
        def prepared() -> Callable[[], tuple[Tensor, ...]]:
            moving = x.clone().requires_grad_()
            u = pool(moving)
            return lambda: torch.autograd.grad(u, moving, v)

        return prepared

    ours, peer = backward(layer), backward(lambda moving: lbfgs_pooling(moving, name))
    apart = difference(ours()()[0].double(), peer()()[0].double())
    note = f"gradients differ by {apart:.0e}, as its point does"
    yield timed(SUITE, f"backward, {what}, ours / batch-coupled L-BFGS", compare(ours, peer, effort), Target(ratio=BACKWARD), note=note)


class Plain(DeclarativeNode):
    """The statement without its structure, handed its minimum."""

    found: Tensor

    def __init__(self, name: str) -> None:
        super().__init__(differentiation=Implicit(linear_solver=Direct()))
        self.name = name

    def objective(self, x: Tensor, u: Tensor) -> Tensor:
        return OURS[self.name].phi((x - u.unsqueeze(1)).square().sum(0), *OURS[self.name].values()).sum()

    def solve(self, x: Tensor) -> Tensor:  # noqa: ARG002
        return self.found


def dense_rows(name: str, shape: tuple[int, int, int], effort: Effort) -> Iterator[Row]:
    """The whole backward pass by structure and by the generic dense path, at the same minimum."""
    x = clouds(shape, torch.float64).requires_grad_()
    layer, plain = RobustPooling(OURS[name], tolerance=1e-14), Plain(name)
    plain.found = layer(x).detach()
    v = torch.randn(shape[:2], generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def backward(node: DeclarativeNode) -> Callable[[], Callable[[], Tensor]]:
        def prepared() -> Callable[[], Tensor]:
            u = node(x)
            return lambda: torch.autograd.grad(u, x, v)[0]

        return prepared

    ours, dense = backward(layer), backward(plain)
    target = Target(ratio=DENSE_RATIO, agreement=DENSE_LIMIT)
    what = f"backward, {name}, {shape[0]} x {shape[1]} x {shape[2]}, float64, structure / generic dense path"
    yield timed(SUITE, what, compare(ours, dense, effort), target, difference(ours()(), dense()()))


def exact_row(problems: int, points: int) -> Row:
    """How far above the lowest of all subsets of neighbours the objective ends: the subsets of the global minimum are among them."""
    generator = torch.Generator().manual_seed(0)
    x = 4 * torch.rand(problems, 1, points, generator=generator, dtype=torch.float64)
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
    return Row(SUITE, what, "", float((ours - lowest).max()), target=Target(ours=1e-12))
