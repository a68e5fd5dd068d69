"""A support-vector machine with slack variables.

    min ½‖w‖² + C Σ ξ_i   s.t.   t_i (w·a_i + s) ≥ 1 − ξ_i,  ξ ≥ 0               a_i ∈ R², t_i = ±1, y = (w, s, ξ)

With α the multipliers of the margins, w = Σ α_i t_i a_i, Σ α_i t_i = 0 and 0 ≤ α ≤ C. A point is outside the margin (α = 0), on it (0 < α < C, ξ = 0) or
within (α = C, ξ > 0). Which is which makes the solution that of one linear system, and a smooth function of the data until a point changes sides.

Not regular where a point reaches the margin with α = 0 or α = C; and s is not unique where no point lies on it.

Source: Cortes & Vapnik, "Support-vector networks", Machine Learning 20, 1995.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal, uniform

FEATURES, STRENGTH = 2, 1.0
LABELS = (1.0, -1.0, 1.0, -1.0, 1.0)
OUTSIDE, ON, WITHIN = range(3)
Machine = tuple[Tensor, Tensor, Tensor]


class SupportVectorMachine(DeclarativeNode):
    """a (k, n), t (k,), C () -> (w (n,), s (), ξ (k,))."""

    def objective(self, a: Tensor, t: Tensor, strength: Tensor, y: Machine) -> Tensor:  # noqa: ARG002
        w, _, slack = y
        return 0.5 * w.square().sum() + strength * slack.sum()

    def inequality_constraints(self, a: Tensor, t: Tensor, strength: Tensor, y: Machine) -> Tensor:  # noqa: ARG002
        w, s, slack = y
        return torch.cat([1 - slack - t * (a @ w + s), -slack])

    def initial_guess(self, a: Tensor, t: Tensor, strength: Tensor) -> Machine:  # noqa: ARG002
        batch, points, features = a.shape
        return a.new_zeros(batch, features), a.new_zeros(batch), a.new_full((batch, points), 2.0)


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Drawn from the answer: of either class one point on the margin and one within, and one clearly outside.

    With scores p = w·a + s of the points within, p₊ − p₋ = δ, and α on the margin, w = α (a₊ − a₋) + C (v₊ − v₋). Since w·(a₊ − a₋) = 2, that asks for
    ‖w‖² = 2α + Cδ; and then a₊ − a₋ follows.
    """
    f64 = torch.float64
    alpha, gap = uniform(generator, 0.35, 0.65, batch, 1), uniform(generator, 0.2, 0.8, batch, 1)
    direction = torch.nn.functional.normalize(normal(generator, batch, FEATURES), dim=1)
    square = 2 * alpha + STRENGTH * gap
    w, along = direction * square.sqrt(), direction / square.sqrt()
    across = torch.stack([-direction[:, 1], direction[:, 0]], 1)
    s = normal(generator, batch, 1)

    def point(score: Tensor) -> Tensor:
        return (score - s) * along + normal(generator, batch, 1) * across

    middle = uniform(generator, -0.3, 0.3, batch, 1)
    within_up, within_down = point(middle + gap / 2), point(middle - gap / 2)
    margin_down = point(-torch.ones(batch, 1, dtype=f64))
    margin_up = margin_down + (w - STRENGTH * (within_up - within_down)) / alpha
    outside = point(uniform(generator, 1.5, 2.5, batch, 1))
    return cast(
        dtype,
        torch.stack([margin_up, margin_down, within_up, within_down, outside], 1),
        torch.tensor(LABELS, dtype=f64),
        torch.tensor(STRENGTH, dtype=f64),
    )


def _fit(a: Tensor, t: Tensor, strength: Tensor, places: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(w, s) (b, n + 1) and α (b, k), if the points were at these places."""
    on = torch.tensor([place == ON for place in places])
    within = torch.tensor([place == WITHIN for place in places])
    signed = t[:, None] * torch.cat([a, torch.ones_like(a[..., :1])], 2)  # rows t_i (a_i, 1)
    # w = Σ α_i t_i a_i and Σ α_i t_i = 0; t_i (w·a_i + s) = 1 on the margin.
    margin = signed[:, on]
    weight = torch.diag(torch.cat([torch.ones_like(a[0, 0]), torch.zeros_like(a[0, 0, :1])]))
    top = torch.cat([weight.expand(a.shape[0], -1, -1), -margin.mT], 2)
    bottom = torch.cat([margin, margin.new_zeros(a.shape[0], margin.shape[1], margin.shape[1])], 2)
    right = torch.cat([strength * signed[:, within].sum(1), torch.ones_like(margin[..., 0])], 1)
    solved, _ = torch.linalg.solve_ex(torch.cat([top, bottom], 1), right.unsqueeze(2))
    alpha = torch.where(within, strength, torch.zeros_like(signed[..., 0])).index_copy(1, on.nonzero().squeeze(1), solved[:, a.shape[2] + 1 :, 0])
    return solved[:, : a.shape[2] + 1, 0], alpha


def _places(a: Tensor, t: Tensor, strength: Tensor) -> list[tuple[int, ...]]:
    """Where the points of each sample are: every possibility is tried."""
    found: list[tuple[int, ...] | None] = [None] * a.shape[0]
    for places in product(range(3), repeat=a.shape[1]):
        if not 2 <= places.count(ON) <= a.shape[2] + 1:
            continue  # s would not be determined, or not the multipliers
        plane, alpha = _fit(a, t, strength, places)
        score = t * ((a @ plane[:, :-1, None]).squeeze(2) + plane[:, -1:])
        place = torch.tensor(places)
        right = torch.where(place == OUTSIDE, score > 1, torch.where(place == WITHIN, score < 1, (alpha > 0) & (alpha < strength))).all(1)
        found = [places if ok else before for ok, before in zip(right.tolist(), found, strict=True)]
    return [places for places in found if places is not None]


def closed_form(a: Tensor, t: Tensor, strength: Tensor) -> Machine:
    """By trying all places of the points."""
    with torch.no_grad():
        places = _places(a, t, strength)
    planes = [_fit(row.unsqueeze(0), t, strength, place)[0] for row, place in zip(a, places, strict=True)]
    plane = torch.cat(planes)
    w, s = plane[:, :-1], plane[:, -1]
    shortfall = 1 - t * ((a @ w.unsqueeze(2)).squeeze(2) + s.unsqueeze(1))
    within = torch.tensor([[where == WITHIN for where in place] for place in places])
    return w, s, torch.where(within, shortfall, 0.0)


PROBLEM = Problem("support_vector", SupportVectorMachine, sample, (0, None, None), closed_form, None, "y is three tensors; inequalities of every kind")
