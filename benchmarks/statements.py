"""The problems of the engine suite, and of the one about unrolling.

Each function is written with `dim=-1`, so that the same text is one instance for a node and a batch for a peer that wants it
batched by its author. `found` holds a solution computed beforehand: the forward pass then costs next to nothing, and what is
compared is differentiation alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks import machine
from declarative import DeclarativeNode, Solution
from declarative.differentiation import Differentiation
from declarative.solvers import Newton


class Prepared(DeclarativeNode):
    """A node that returns `found`, if there is one to return and no solver was given."""

    label = ""
    found: Solution | None = None

    def initial_guess(self, x: Tensor) -> Tensor:
        return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)

    def solve(self, x: Tensor) -> Solution:  # noqa: ARG002
        if self.found is None:
            raise RuntimeError("no solution was prepared")
        return self.found


class Robust(Prepared):
    """Σ √(1 + (y − x)²) + ½ Σ (y_{i+1} − y_i)²: a smooth robust fit along a chain."""

    label = "robust chain"

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return (1 + (y - x).square()).sqrt().sum(-1) + 0.5 * (y[..., 1:] - y[..., :-1]).square().sum(-1)


class LogSumExp(Prepared):
    """log Σ exp y + ½ ‖y − x‖²: every entry meets every other."""

    label = "log-sum-exp"

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return y.logsumexp(-1) + 0.5 * (y - x).square().sum(-1)


class Quartic(Prepared):
    """Σ (¼ y⁴ + ½ y² − x y) + ½ (mean y)²: x enters linearly, the entries meet in one sum."""

    label = "quartic"

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return (0.25 * y**4 + 0.5 * y.square() - x * y).sum(-1) + 0.5 * y.mean(-1).square()


class RobustOnPlanes(Robust):
    """The robust chain, with two linear equations."""

    label = "robust chain, 2 linear equations"

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        grid = torch.arange(y.shape[-1], dtype=y.dtype, device=y.device) * (math.pi / y.shape[-1])
        return (y - 0.5 * x) @ torch.stack([torch.ones_like(grid), grid.cos()], -1) - 1


class QuarticOnSphere(Quartic):
    """The quartic on the sphere whose radius x sets."""

    label = "quartic on a sphere"

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        return y.square().sum(-1, keepdim=True) - 0.1 * x.square().sum(-1, keepdim=True)


STATEMENTS = (Robust, LogSumExp, Quartic, RobustOnPlanes, QuarticOnSphere)


def prepare(kind: type[Prepared], m: int, batch: int) -> tuple[Prepared, Tensor]:
    """A node of this kind that knows its solution at the inputs x (batch, m), which come with it."""
    x = machine.here(torch.randn(batch, m, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    found = kind(solver=Newton(), polish=2).solution(x)
    if found.stationarity is None or found.violation is None or not bool(((found.stationarity < 1e-10) & (found.violation < 1e-10)).all()):
        raise RuntimeError(f"{kind.label}: the prepared point is not a solution (stationarity {found.stationarity}, violation {found.violation})")
    node = kind()
    node.found = Solution(found.y, found.equality_multipliers)
    return node, x.requires_grad_()


class Descent(DeclarativeNode):
    """½ ‖y − x‖² + 0.1 Σ log cosh y, solved by a given number of steps of gradient descent.

    A step shrinks the error tenfold, so that even ten of them end at a minimiser.
    """

    def __init__(self, steps: int, differentiation: Differentiation | None = None) -> None:
        super().__init__(differentiation=differentiation)
        self.steps = steps

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum(-1) + 0.1 * y.cosh().log().sum(-1)

    def solve(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for _ in range(self.steps):
            y = y - (y - x + 0.1 * y.tanh())
        return y
