"""Entropic optimal transport between two histograms, by its objective and constraints alone; instances of every kind.

    min_P ⟨P, M⟩ + (1/γ) Σ_ij P_ij log(P_ij / (r_i c_j))   s.t.   P1 = r,  Pᵀ1 = c (one column sum is redundant)

H = diag(1/(γP)), A the fixed 0–1 matrix of marginal sums, ∂²f/∂P∂M = I (docs/architecture.md): all three are declared.

The first column's sum is the one left out. It follows from the others where both histograms have the same mass; as a function of
r and c alone, the column sums are b = (Σr − Σ_{j>1} c_j, c₂, …, c_n), and ∂P/∂c₁ = 0. Codes that leave out another sum, or none,
have gradients in r and c that differ from these by a constant each; `balanced` treats all sums alike. The closed forms below are
those of this statement.

Closed forms. One row or one column has a single feasible plan. γ → 0 leaves the entropy alone: P = r cᵀ/Σr. At 2×2 there is one
unknown, t = P₁₁: a plan is [[t, r₁ − t], [b₁ − t, t + d]] with d = r₂ − b₁, and stationarity along [[1, −1], [−1, 1]] is

    P₁₁P₂₂ = κ P₁₂P₂₁,   κ = exp(−γδ),   δ = M₁₁ + M₂₂ − M₁₂ − M₂₁         (r and c cancel)
    (1 − κ) t² + (d + κ(r₁ + b₁)) t − κ r₁b₁ = 0

Source: Cuturi, "Sinkhorn distances", NeurIPS 2013; the 2×2 plan is Sinkhorn's scaling of a 2×2 matrix, solved by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from declarative import DeclarativeNode
from declarative.structure import Constant, Diagonal, ScaledIdentityInput, Sparse
from problems.base import Inputs, Problem, cast, normal, uniform

ROWS, COLUMNS, GAMMA = 2, 3, 4.0

Sampler = Callable[[int, torch.Generator, torch.dtype], Inputs]


class Transport(DeclarativeNode):
    """M (m, n), r (m,), c (n,) -> P (m, n).

    Args:
        gamma: γ > 0, a number or a tensor (); an nn.Parameter is learned.
        options: those of every node.
    """

    hessian_structure = Diagonal()
    constraint_structure = Constant(Sparse())
    mixed_structure = ScaledIdentityInput(input=0)

    gamma: float | Tensor

    def __init__(self, gamma: float | Tensor = GAMMA, **options: Any) -> None:
        super().__init__(**options)
        if isinstance(gamma, Tensor) and not isinstance(gamma, nn.Parameter):
            self.register_buffer("gamma", gamma)
        else:
            self.gamma = gamma

    def objective(self, M: Tensor, r: Tensor, c: Tensor, P: Tensor) -> Tensor:
        return (P * M).sum() + (P * (P / (r.unsqueeze(1) * c)).log()).sum() / self.gamma

    def equality_constraints(self, M: Tensor, r: Tensor, c: Tensor, P: Tensor) -> Tensor:  # noqa: ARG002
        return torch.cat([P.sum(1) - r, (P.sum(0) - c)[1:]])

    def initial_guess(self, M: Tensor, r: Tensor, c: Tensor) -> Tensor:  # noqa: ARG002
        return r.unsqueeze(2) * c.unsqueeze(1)


def histograms(batch: int, generator: torch.Generator, *sizes: int) -> Inputs:
    """Of mass 1, no entry near zero."""
    weights = [uniform(generator, 0.5, 1.5, batch, size) for size in sizes]
    return tuple(w / w.sum(1, keepdim=True) for w in weights)


def random_costs(rows: int, columns: int) -> Sampler:
    """Costs between 0 and 1 without any order. Sizes that differ much make one histogram's entries much smaller than the other's."""

    def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
        r, c = histograms(batch, generator, rows, columns)
        return cast(dtype, uniform(generator, 0.0, 1.0, batch, rows, columns), r, c)

    return sample


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """x (…, m, d), y (…, n, d) -> ‖x_i − y_j‖² (…, m, n)."""
    return (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)


def point_clouds(rows: int, columns: int, dimension: int = 3) -> Sampler:
    """Squared distances between two clouds of the same shape, the second a little aside, divided by their dimension."""

    def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
        r, c = histograms(batch, generator, rows, columns)
        x, y = 0.5 * normal(generator, batch, rows, dimension), 0.5 * normal(generator, batch, columns, dimension)
        return cast(dtype, squared_distances(x, y + 0.2) / dimension, r, c)

    return sample


def nearly_permutation(size: int) -> Sampler:
    """One cheap partner each, of the same mass (1 on average): as γ grows, P tends to a permutation of diag(r), like exp(−γ).

    The permutation itself is a degenerate vertex, where P has no derivative in r and c. P is smooth for changes of the histograms
    that are small beside exp(−γ).
    """

    def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
        r = size * histograms(batch, generator, size)[0]
        partner = normal(generator, batch, size).argsort(1)
        cheap = nn.functional.one_hot(partner, size).bool()
        M = torch.where(cheap, 0.0, 1.0) + uniform(generator, 0.0, 0.2, batch, size, size)
        return cast(dtype, M, r, torch.zeros_like(r).scatter(1, partner, r))

    return sample


def balanced(r: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """r and c (…, n) brought to the mean of their masses s = (Σr + Σc)/2: r s/Σr, c s/Σc.

    Nothing changes where the masses are equal, except the gradients: no row or column is treated apart, ⟨r̄, r⟩ = ⟨c̄, c⟩.
    """
    rows, columns = r.sum(-1, keepdim=True), c.sum(-1, keepdim=True)
    mass = 0.5 * (rows + columns)
    return r * mass / rows, c * mass / columns


def _column_sums(r: Tensor, c: Tensor) -> Tensor:
    """What the statement asks of the columns: the first follows from the rest."""
    rest = c[:, 1:]
    return torch.cat([r.sum(1, keepdim=True) - rest.sum(1, keepdim=True), rest], 1)


def independent(M: Tensor, r: Tensor, c: Tensor) -> Tensor:  # noqa: ARG001
    """The limit γ → 0: r bᵀ/Σr."""
    return r.unsqueeze(2) * _column_sums(r, c).unsqueeze(1) / r.sum(1)[:, None, None]


def one_row(M: Tensor, r: Tensor, c: Tensor) -> Tensor:  # noqa: ARG001
    """The only plan at m = 1."""
    return _column_sums(r, c).unsqueeze(1)


def one_column(M: Tensor, r: Tensor, c: Tensor) -> Tensor:  # noqa: ARG001
    """The only plan at n = 1."""
    return r.unsqueeze(2)


def no_slope(M: Tensor, r: Tensor, c: Tensor) -> Tensor:  # noqa: ARG001
    """∂P/∂M where there is one plan only."""
    return M.new_zeros(*M.shape, *M.shape[1:])


def two_by_two(M: Tensor, r: Tensor, c: Tensor, gamma: float | Tensor = GAMMA) -> Tensor:
    """The root of the quadratic, without cancellation, for any γδ. gamma: a number, () or (b,).

    Exchanging the columns changes the sign of δ, exchanging rows and columns that of d. With δ ≥ 0 and d ≥ 0 every term of

        t = 2κ r₁b₁ / (d + κ(r₁ + b₁) + √(d² + κ(4r₁b₁ + 2d(r₁ + b₁) + κ(r₁ − b₁)²)))

    is positive. It is written with ρ = √κ, so that nothing underflows before ρ does. On either side of δ = 0 and of d = 0 it is the
    same analytic function, so that derivatives do not notice which side was taken.
    """
    b = _column_sums(r, c)
    exponent = gamma * (M[:, 0, 0] + M[:, 1, 1] - M[:, 0, 1] - M[:, 1, 0])
    flipped = exponent < 0
    exponent, b = torch.where(flipped, -exponent, exponent), torch.where(flipped.unsqueeze(1), b.flip(1), b)
    turned = r[:, 1] < b[:, 0]
    r, b = torch.where(turned.unsqueeze(1), r.flip(1), r), torch.where(turned.unsqueeze(1), b.flip(1), b)

    d, sums, product = r[:, 1] - b[:, 0], r[:, 0] + b[:, 0], r[:, 0] * b[:, 0]
    # Where exp underflows, the smallest normal number: t is zero to rounding all the same, and d = 0 does not give 0/0.
    rho = (-0.5 * exponent).exp().clamp_min(torch.finfo(r.dtype).tiny)
    root = torch.hypot(d, rho * (4 * product + 2 * d * sums + (rho * (r[:, 0] - b[:, 0])).square()).sqrt())
    t = rho * (2 * rho * product / (d + rho.square() * sums + root))

    P = torch.stack([torch.stack([t, r[:, 0] - t], 1), torch.stack([b[:, 0] - t, t + d], 1)], 1)
    P = torch.where(turned[:, None, None], P.flip(1, 2), P)
    return torch.where(flipped[:, None, None], P.flip(2), P)


def two_by_two_slope(M: Tensor, r: Tensor, c: Tensor) -> Tensor:
    """∂P/∂M = −γ E⊗E / Σ_ij(1/P_ij): P moves along E = [[1, −1], [−1, 1]] alone, and its curvature there is Σ 1/(γP)."""
    E = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=M.dtype)
    curvature = two_by_two(M, r, c).reciprocal().sum((1, 2)) / GAMMA
    return -torch.einsum("ij,kl,b->bijkl", E, E, curvature.reciprocal())


def learned() -> Transport:
    """With γ a parameter."""
    return Transport(nn.Parameter(torch.tensor(GAMMA, dtype=torch.float64)))


def build(gamma: float) -> Callable[[], Transport]:
    """With this γ."""
    return lambda: Transport(gamma)


_BATCHED = (0, 0, 0)

PROBLEMS = (
    Problem("transport", Transport, random_costs(ROWS, COLUMNS), _BATCHED, note="matrix y; diagonal H, constant sparse A and B = I, declared"),
    Problem("transport_two_by_two", learned, random_costs(2, 2), _BATCHED, two_by_two, two_by_two_slope, "one unknown: a quadratic; γ is a parameter"),
    Problem("transport_points", build(5.0), point_clouds(3, 3), _BATCHED, note="costs are squared distances"),
    Problem("transport_permutation", build(GAMMA), nearly_permutation(3), _BATCHED, note="P near a degenerate vertex"),
    Problem("transport_tall", Transport, random_costs(6, 2), _BATCHED, note="more rows than columns"),
    Problem("transport_wide", Transport, random_costs(2, 6), _BATCHED, note="more columns than rows"),
    Problem("transport_row", Transport, random_costs(1, 4), _BATCHED, one_row, no_slope, "one feasible plan: as many constraints as numbers"),
    Problem("transport_column", Transport, random_costs(3, 1), _BATCHED, one_column, no_slope, "the column sum is the redundant one"),
)
