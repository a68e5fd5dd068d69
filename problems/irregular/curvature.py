"""Points where the curvature is to blame: flat directions, saddles, maximisers."""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.irregular.base import Irregular, batch


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=1, keepdim=True)


def _eye(x: Tensor) -> Tensor:
    return torch.eye(x.shape[1], dtype=x.dtype).expand(x.shape[0], -1, -1)


class Flat(DeclarativeNode):
    """min ½(y₀ − x₀)² + ½c(y₁ − x₁)², with c = 0 where x₀ > 0: there any y₁ will do. c = 1 elsewhere."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        square = (y - x).square()
        return 0.5 * square[0] + torch.where(x[0] > 0, 0.0, 0.5 * square[1])

    def solve(self, x: Tensor) -> Tensor:
        return x.clone()


class FlatOnPlane(DeclarativeNode):
    """min ½(y₀ − x₀)² + ½c(y₁ − x₁)²  s.t.  y₂ = y₀, with c as above: H is singular on null(A), A has full rank."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        square = (y[:2] - x).square()
        return 0.5 * square[0] + torch.where(x[0] > 0, 0.0, 0.5 * square[1])

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return y[2] - y[0]

    def solve(self, x: Tensor) -> Tensor:
        return torch.cat([x, x[:, :1]], 1)


class Ring(DeclarativeNode):
    """min ¼(‖y‖² − x²)² + ½c y₁², c = 0 where x > 2: every point of the circle of radius x. Elsewhere c = 1 and y = (x, 0)."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.25 * (y.square().sum() - x[0].square()).square() + torch.where(x[0] > 2, 0.0, 0.5 * y[1].square())

    def solve(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.zeros_like(x)], 1)


class Farthest(DeclarativeNode):
    """min −½‖y − x‖²  s.t.  ‖y‖² ≤ 1: the point of the ball farthest from x, −x/‖x‖; every point of the sphere for x = 0."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return -0.5 * (y - x).square().sum()

    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return y.square().sum() - 1

    def solve(self, x: Tensor) -> Tensor:
        norm = _norm(x)
        first = torch.zeros_like(x)
        first[:, 0] = 1
        return torch.where(norm > 0, -x / norm.clamp_min(1e-300), first)


def _farthest_jacobian(x: Tensor) -> Tensor:
    norm = _norm(x).unsqueeze(2)
    y = x.unsqueeze(2) / norm
    return -(_eye(x) - y @ y.mT) / norm


class Quartic(DeclarativeNode):
    """min ¼(y − x)⁴ where x > 0, ½(y − x)² elsewhere: the quartic has an isolated minimiser without curvature."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.where(x > 0, 0.25 * (y - x) ** 4, 0.5 * (y - x).square()).sum()

    def solve(self, x: Tensor) -> Tensor:
        return x.clone()


class Saddle(DeclarativeNode):
    """min ½(y₀ − x)² − ½y₁² + ¼y₁⁴, with a `solve` that returns y₁ = 0 where x > 0 (stationary: a saddle), else y₁ = 1."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y[0] - x[0]).square() - 0.5 * y[1].square() + 0.25 * y[1] ** 4

    def solve(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.where(x > 0, 0.0, 1.0)], 1)


class Maximiser(DeclarativeNode):
    """min ½‖y − x‖²  s.t.  ‖y‖² = 1, with a `solve` that returns the farthest point of the sphere where x₀ > 0."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum()

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return y.square().sum() - 1

    def solve(self, x: Tensor) -> Tensor:
        return torch.where(x[:, :1] > 0, -1.0, 1.0) * x / _norm(x)


def _sphere_jacobian(x: Tensor) -> Tensor:
    norm = _norm(x).unsqueeze(2)
    y = x.unsqueeze(2) / norm
    return (_eye(x) - y @ y.mT) / norm


def _first_column(rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).unsqueeze(1)


PROBLEMS = (
    Irregular(
        "flat",
        Flat,
        batch([-1.0, 0.5], [1.0, 0.5], [-0.3, 1.0]),
        _eye,
        "matrix",
        "not an isolated",
        {"min_norm": [[1.0, 0.0], [0.0, 0.0]]},
        "a variable that the objective does not see",
    ),
    Irregular(
        "flat_on_plane",
        FlatOnPlane,
        batch([-1.0, 0.5], [1.0, 0.5], [-0.3, 1.0]),
        lambda x: torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=x.dtype).expand(x.shape[0], 3, 2),
        "matrix",
        "not an isolated",
        {"min_norm": [[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]},
        "H singular on null(A)",
    ),
    Irregular(
        "ring",
        Ring,
        batch([1.0], [3.0], [1.5]),
        lambda x: _first_column([1.0, 0.0]).to(x).expand(x.shape[0], 2, 1),
        "matrix",
        "not an isolated",
        {"min_norm": [[1.0], [0.0]]},
        "a circle of minimisers: the shortest derivative moves along the radius",
    ),
    Irregular(
        "farthest",
        Farthest,
        batch([0.3, -0.2], [0.0, 0.0], [1.0, 2.0]),
        _farthest_jacobian,
        "matrix",
        "not an isolated",
        {"min_norm": torch.zeros(2, 2)},
        "the farthest point of the ball: regular but from the centre, from where all are equally far",
    ),
    Irregular(
        "quartic",
        Quartic,
        batch([-1.0], [1.0], [-0.3]),
        lambda x: x.new_ones(3, 1, 1),
        "matrix",
        "not an isolated",
        {"min_norm": [[0.0]]},
        "y = x moves with slope one, but H = 0: the implicit function theorem has nothing to say",
    ),
    Irregular(
        "saddle",
        Saddle,
        batch([-1.0], [1.0], [-0.3]),
        lambda x: _first_column([1.0, 0.0]).to(x).expand(x.shape[0], 2, 1),
        "certificate",
        "saddle",
        {"formal": [[1.0], [0.0]]},
        "stationary, with a regular KKT matrix: every first-order check passes",
    ),
    Irregular(
        "maximiser",
        Maximiser,
        batch([-3.0, 4.0], [0.6, 0.8], [-1.0, 2.0]),
        _sphere_jacobian,
        "certificate",
        "maximiser",
        {"formal": [[-0.64, 0.48], [0.48, -0.36]]},
        "the farthest point in place of the nearest",
    ),
)
