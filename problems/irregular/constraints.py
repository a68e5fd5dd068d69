"""Points where the constraints are to blame: written twice, encoding each other, without a gradient, too many at a vertex."""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.irregular.base import Irregular, batch, centering

_CENTERING = centering(3)


def _onto_plane(x: Tensor) -> Tensor:
    return x - x.sum(-1, keepdim=True) / x.shape[-1]


class Duplicate(DeclarativeNode):
    """min ½‖y − x‖²  s.t.  Σy = 0, and in samples with x₀ > 0 once more, twice as large; elsewhere y₀ = y₁ as well."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum()

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y.sum(), torch.where(x[0] > 0, 2 * y.sum(), y[0] - y[1])])

    def solve(self, x: Tensor) -> Tensor:
        mean = 0.5 * (x[:, :1] + x[:, 1:2])
        equal = torch.cat([mean, mean, x[:, 2:]], 1)
        return torch.where(x[:, :1] > 0, _onto_plane(x), _onto_plane(equal))


def _duplicate_jacobian(x: Tensor) -> Tensor:
    normal = torch.tensor([1.0, -1.0, 0.0], dtype=x.dtype)
    return (_CENTERING - torch.outer(normal, normal) / 2).expand(x.shape[0], 3, 3)


class Pair(DeclarativeNode):
    """min ½‖y − x‖²  s.t.  Σy ≤ 0 and −Σy ≤ w, with w = 0 (together an equality) where x₀ > 0, and w = 9 elsewhere."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum()

    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y.sum(), torch.where(x[0] > 0, -y.sum(), -y.sum() - 9)])

    def solve(self, x: Tensor) -> Tensor:
        return _onto_plane(x)


class Vanishing(DeclarativeNode):
    """min ½‖y − x‖²  s.t.  the power of Σy, the square where x₀ > 0, is zero: a square has no gradient where it is zero."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum()

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.where(x[0] > 0, y.sum().square(), y.sum())

    def solve(self, x: Tensor) -> Tensor:
        return _onto_plane(x)


class RankDeficient(DeclarativeNode):
    """min ½‖y − x‖²  s.t.  y₀ = y₁, y₁ = y₂ and, where x₀ > 0, y₀ = y₂ (which follows); elsewhere y₀ = 0."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum()

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[0] - y[1], y[1] - y[2], torch.where(x[0] > 0, y[0] - y[2], y[0])])

    def solve(self, x: Tensor) -> Tensor:
        return torch.where(x[:, :1] > 0, x.mean(1, keepdim=True), 0.0).expand(x.shape)


class LPVertex(DeclarativeNode):
    """min xᵀy  s.t.  y ≥ 0, Σy = 1: the vertex of the smallest cost. H = 0, and the constraints alone determine y."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return x @ y

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return y.sum() - 1

    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return -y

    def solve(self, x: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(x.argmin(1), x.shape[1]).to(x.dtype)


class DegenerateVertex(DeclarativeNode):
    """min −Σy  s.t.  y ≤ x (two), and y₀ + y₁ ≤ t through the same vertex: three constraints that push in two dimensions.

    t = x₀ + x₁ where x₀ > 0; elsewhere t = x₀ + x₁ + 1, out of the way.
    """

    def objective(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return -y.sum()

    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([y - x, (y.sum() - x.sum() - torch.where(x[0] > 0, 0.0, 1.0)).reshape(1)])

    def solve(self, x: Tensor) -> Tensor:
        return x.clone()


PROBLEMS = (
    Irregular(
        "duplicate",
        Duplicate,
        batch([-1.0, 0.5, 2.0], [1.0, 0.5, 2.0], [-0.3, 1.0, 0.1]),
        _duplicate_jacobian,
        "matrix",
        "redundant",
        {"min_norm": _CENTERING},
        "one constraint written twice: the multipliers are not unique, the derivative of y is",
    ),
    Irregular(
        "rank_deficient",
        RankDeficient,
        batch([-1.0, 0.5, 2.0], [1.0, 0.5, 2.0], [-0.3, 1.0, 0.1]),
        lambda x: x.new_zeros(3, 3, 3),
        "matrix",
        "redundant",
        {"min_norm": [[1 / 3] * 3] * 3},
        "three constraints of rank two",
    ),
    Irregular(
        "vanishing_gradient",
        Vanishing,
        batch([-1.0, 0.5, 0.5], [1.0, 0.5, -1.5], [-0.3, 1.0, 0.1]),
        lambda x: _CENTERING.expand(x.shape[0], 3, 3),
        "matrix",
        "vanishes",
        {"min_norm": torch.eye(3)},
        "the pseudo-inverse does not see a constraint without a gradient: its answer is that of the problem without it",
    ),
    Irregular(
        "inequality_pair",
        Pair,
        batch([-1.0, 0.5, 2.0], [1.0, 0.5, 2.0], [-0.3, 1.0, 0.1]),
        lambda x: _CENTERING.expand(x.shape[0], 3, 3),
        "kink",
        "encode an equality",
        {"inactive": _CENTERING, "active": _CENTERING},
        "only one of the two can push; counting both makes the matrix singular",
    ),
    Irregular(
        "lp_vertex",
        LPVertex,
        batch([1.0, 0.5, 2.0], [0.2, 1.0, 2.0], [3.0, 1.0, 0.1]),
        lambda x: x.new_zeros(3, 3, 3),
        "none",
        "",
        {"formal": torch.zeros(3, 3)},
        "regular, with derivative zero: what a linear program has almost everywhere; smoothing gives something to learn from",
    ),
    Irregular(
        "degenerate_vertex",
        DegenerateVertex,
        batch([-1.0, 0.5], [1.0, 0.5], [-0.3, 1.0]),
        lambda x: torch.eye(2, dtype=x.dtype).expand(x.shape[0], 2, 2),
        "matrix",
        "linearly dependent",
        {"min_norm": torch.eye(2)},
        "more constraints than dimensions meet in one point",
    ),
)
