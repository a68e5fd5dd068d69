"""Projection onto the intersection of two discs: a quadratically constrained quadratic program.

    min ½‖y − x‖²   s.t.   ½‖y − p‖² ≤ ½ρ²,  ½‖y + p‖² ≤ ½ρ²                     x, y ∈ R², p = (½, 0), ρ = 1 an input that is shared

The lens has two arcs and two corners at (0, ±√(ρ² − ‖p‖²)). Inside, y = x; nearest to an arc, y = c + ρ (x − c)/‖x − c‖ with the centre c of its disc;
nearest to a corner, both constraints are active and ∂y/∂x = 0, whereas ∂y/∂ρ is not.

Not regular at ρ = ‖p‖, and it is why this problem is in textbooks: the discs touch in 0, the only feasible point, and there both constraints have gradients
along p alone. Then no multipliers exist unless x − y lies along p, and where they do they are not unique; `certify` says so.

Source: Boyd & Vandenberghe, "Convex optimization", 2004, exercise 5.26.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, uniform

CENTRE, RADIUS = (0.5, 0.0), 1.0


class Lens(DeclarativeNode):
    """x (2,), ρ () -> the nearest y (2,) of the lens."""

    def objective(self, x: Tensor, radius: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return 0.5 * (y - x).square().sum()

    def inequality_constraints(self, x: Tensor, radius: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        p = y.new_tensor(CENTRE)
        return 0.5 * (torch.stack([y - p, y + p]).square().sum(1) - radius.square())

    def initial_guess(self, x: Tensor, radius: Tensor) -> Tensor:  # noqa: ARG002
        return torch.zeros_like(x)


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """By turns inside, out from an arc on either side, and out from a corner: x = y + Σ μ_i (y ∓ p)."""
    p = torch.tensor(CENTRE, dtype=torch.float64)
    side = torch.where(uniform(generator, -1, 1, batch, 1) < 0, -1.0, 1.0)
    inside = uniform(generator, -0.3, 0.3, batch, 2)
    angle = uniform(generator, -0.7, 0.7, batch, 1)
    arc = side * (torch.cat([angle.cos(), angle.sin()], 1) * RADIUS - p)  # of the disc whose centre is on the other side
    corner = torch.cat([torch.zeros_like(side), side * (RADIUS**2 - p.square().sum()).sqrt()], 1)
    mu = uniform(generator, 0.3, 1.0, batch, 2)
    turn = (torch.arange(batch) % 3).unsqueeze(1)
    y = torch.where(turn == 0, inside, torch.where(turn == 1, arc, corner))
    pull = torch.where(turn == 1, mu[:, :1] * (y + side * p), mu[:, :1] * (y + p) + mu[:, 1:] * (y - p))
    return cast(dtype, torch.where(turn == 0, y, y + pull), torch.tensor(RADIUS, dtype=torch.float64))


def closed_form(x: Tensor, radius: Tensor) -> Tensor:
    """The first that is feasible and nearest: x itself, the points on the arcs, a corner."""
    p = x.new_tensor(CENTRE)
    half = (radius.square() - p.square().sum()).sqrt()
    y = torch.stack([torch.zeros_like(x[:, 0]), x[:, 1].sign() * half], 1)
    for centre in (p, -p):
        arc = centre + radius * normalize(x - centre, dim=1)
        outside, within = _beyond(x, centre, radius) > 0, _beyond(arc, -centre, radius) < 0
        y = torch.where(outside & within, arc, y)
    feasible = (_beyond(x, p, radius) < 0) & (_beyond(x, -p, radius) < 0)
    return torch.where(feasible, x, y)


def _beyond(x: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    return (x - centre).square().sum(1, keepdim=True) - radius.square()


PROBLEM = Problem("lens", Lens, sample, (0, None), closed_form, None, "curved inequalities; none, one or both active")
