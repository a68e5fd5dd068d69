"""Points where the solution has a kink: a constraint holds with equality and does not push."""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.irregular.base import Irregular, batch


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=1, keepdim=True)


class Ball(DeclarativeNode):
    """min ½‖y − x‖²  s.t.  ‖y‖² ≤ 1, with x on the sphere."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum()

    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return y.square().sum() - 1

    def solve(self, x: Tensor) -> Tensor:
        return x / _norm(x).clamp_min(1)


def _ball_jacobian(x: Tensor) -> Tensor:
    eye, norm = torch.eye(2, dtype=x.dtype), _norm(x).unsqueeze(2)
    y = x.unsqueeze(2) / norm
    return torch.where(norm < 1, eye, (eye - y @ y.mT) / norm)


class OnTheSphere(Ball):
    """The same, with a `solve` that puts every point on the sphere: right outside, and inside of the wrong sign."""

    def solve(self, x: Tensor) -> Tensor:
        return x / _norm(x)


class SoftThreshold(DeclarativeNode):
    """min ½(y₀ − x)² + y₁  s.t.  y₀ ≤ y₁, −y₀ ≤ y₁: the proximal map of |y|, y₁ = |y₀|. Zero for |x| ≤ 1, with kinks at ±1."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y[0] - x[0]).square() + y[1]

    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return torch.stack([y[0] - y[1], -y[0] - y[1]])

    def solve(self, x: Tensor) -> Tensor:
        y = x.sign() * (x.abs() - 1).clamp_min(0)
        return torch.cat([y, y.abs()], 1)


def _threshold_jacobian(x: Tensor) -> Tensor:
    slope = (x.abs() > 1).to(x.dtype)
    return torch.stack([slope, slope * x.sign()], 1)


class Relu(DeclarativeNode):
    """min ½(y − x)²  s.t.  −y ≤ 0: max(x, 0)."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum()

    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return -y

    def solve(self, x: Tensor) -> Tensor:
        return x.clamp_min(0)


_SIDE = 1e-11  # below what float64 can tell from weak activity after a solve
_TANGENT = torch.tensor([[0.64, -0.48], [-0.48, 0.36]], dtype=torch.float64)  # I − yyᵀ at y = (0.6, 0.8)


def _on_sphere(name: str, scale: float, note: str) -> Irregular:
    inputs = batch([0.3, -0.2], [0.6 * scale, 0.8 * scale], [1.0, 2.0])
    return Irregular(name, Ball, inputs, _ball_jacobian, "kink", "weakly active", {"inactive": torch.eye(2), "active": _TANGENT}, note)


PROBLEMS = (
    _on_sphere("ball_boundary", 1.0, "on the sphere itself: I from inside, I − yyᵀ from outside"),
    _on_sphere("ball_from_inside", 1 - _SIDE, "as near to the sphere as a solver comes, from inside"),
    _on_sphere("ball_from_outside", 1 + _SIDE, "and from outside"),
    Irregular(
        "absolute_value",
        SoftThreshold,
        batch([0.4], [1.0], [-2.5]),
        _threshold_jacobian,
        "kink",
        "weakly active",
        {"inactive": [[1.0], [1.0]], "active": [[0.0], [0.0]]},
        "a kink of the kind that |y| in an objective makes, written with two inequalities",
    ),
    Irregular(
        "relu",
        Relu,
        batch([-1.0], [0.0], [2.0]),
        lambda x: (x > 0).to(x.dtype).unsqueeze(2),
        "kink",
        "weakly active",
        {"inactive": [[1.0]], "active": [[0.0]]},
        "max(x, 0) at 0",
    ),
    Irregular(
        "wrong_sign",
        OnTheSphere,
        batch([3.0, -2.0], [0.3, 0.4], [1.0, 2.0]),
        _ball_jacobian,
        "status",
        "wrong sign",
        note="a point that stays on a constraint which it should leave",
    ),
)
