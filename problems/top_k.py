"""Top-k made smooth: a linear function and a strictly convex term over vectors in [0, 1] that sum to k.

    min −xᵀu + T Ω(u)   s.t.   Σ u_i = k                                            x, u ∈ Rⁿ

Entropic, Ω = Σ u log u + (1 − u) log(1 − u): the logarithms are barriers on both sides of (0, 1), and u_i = σ((x_i + τ)/T). For two entries and
k = 1 the multiplier is τ = −(x_1 + x_2)/2, so that u_1 = σ((x_1 − x_2)/2T), with ∂u_1/∂x_1 = u_1 u_2/2T. For more of them e^τ is the root of a
polynomial of degree n.

Euclidean, Ω = ½‖u‖² with the bounds stated: u = clamp(x/T + τ, 0, 1), the projection onto the capped simplex. Σu is piecewise linear in τ; with its
kinks sorted the piece that contains k is found, and on it, with m entries in between and o ones, τ = (k − o − Σ_between x/T)/m. There
∂u/∂x = (diag(1_S) − 1_S 1_Sᵀ/|S|)/T, S those in between.

Source: Amos, Koltun & Kolter, "The limited multi-label projection layer", 2019; Wang & Lu, "Projection onto the capped simplex", 2015.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal, uniform

SIZE, CHOSEN = 6, 2


class EntropicChoice(DeclarativeNode):
    """x (n,), T () -> u (n,) with Σu = k, of itself in (0, 1)."""

    def __init__(self, k: int = CHOSEN) -> None:
        super().__init__()
        self.k = k

    def objective(self, x: Tensor, temperature: Tensor, u: Tensor) -> Tensor:
        return (temperature * (u * u.log() + (1 - u) * (1 - u).log()) - x * u).sum()

    def equality_constraints(self, x: Tensor, temperature: Tensor, u: Tensor) -> Tensor:  # noqa: ARG002
        return u.sum() - self.k

    def initial_guess(self, x: Tensor, temperature: Tensor) -> Tensor:  # noqa: ARG002
        return torch.full_like(x, self.k / x.shape[-1])


class CappedSimplex(DeclarativeNode):
    """x (n,), T () -> u (n,), the point with Σu = k and 0 ≤ u ≤ 1 next to x/T."""

    def __init__(self, k: int = CHOSEN) -> None:
        super().__init__()
        self.k = k

    def objective(self, x: Tensor, temperature: Tensor, u: Tensor) -> Tensor:
        return (0.5 * temperature * u.square() - x * u).sum()

    def equality_constraints(self, x: Tensor, temperature: Tensor, u: Tensor) -> Tensor:  # noqa: ARG002
        return u.sum() - self.k

    def inequality_constraints(self, x: Tensor, temperature: Tensor, u: Tensor) -> Tensor:  # noqa: ARG002
        return torch.cat([-u, u - 1])

    def initial_guess(self, x: Tensor, temperature: Tensor) -> Tensor:  # noqa: ARG002
        return torch.full_like(x, self.k / x.shape[-1])


# Samplers


def sample_pairs(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Two logits and a temperature for each sample."""
    return cast(dtype, normal(generator, batch, 2), uniform(generator, 0.5, 1.5, batch))


def sample_logits(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """A temperature shared by the batch."""
    return cast(dtype, normal(generator, batch, SIZE), torch.tensor(0.7, dtype=torch.float64))


def sample_capped(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Some entries in between, and none nearer than 1/20 to a bound that it does not push, or to where it would not push it."""
    kept: list[tuple[Tensor, Tensor]] = []
    while len(kept) < batch:
        x, temperature = normal(generator, 1, SIZE), uniform(generator, 0.6, 1.2, 1)
        a = x / temperature.unsqueeze(1) + threshold(x, temperature, CHOSEN)
        if bool(((a.abs() > 0.05) & ((a - 1).abs() > 0.05)).all()) and bool(((a > 0) & (a < 1)).any()):
            kept.append((x, temperature))
    return cast(dtype, *(torch.cat(parts) for parts in zip(*kept, strict=True)))


# Closed forms


def pair(x: Tensor, temperature: Tensor) -> Tensor:
    """u of two entries, k = 1."""
    first = ((x[:, :1] - x[:, 1:]) / (2 * temperature.unsqueeze(1))).sigmoid()
    return torch.cat([first, 1 - first], 1)


def pair_slope(x: Tensor, temperature: Tensor) -> Tensor:
    """u_1 u_2/2T [[1, −1], [−1, 1]]"""
    u = pair(x, temperature)
    signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=x.dtype)
    return (u.prod(1) / (2 * temperature))[:, None, None] * signs


def threshold(x: Tensor, temperature: Tensor, k: int) -> Tensor:
    """τ (b, 1), for x (b, n) and T () or (b,), by sorting; 0 < k < n. Where it is not unique, one end of its range."""
    scaled = x / temperature.expand(x.shape[0]).unsqueeze(1)
    with torch.no_grad():
        kinks = torch.cat([-scaled, 1 - scaled], 1).sort(1).values
        sums = (scaled.unsqueeze(1) + kinks.unsqueeze(2)).clamp(0, 1).sum(2)
        # The last kink with a sum below k: τ lies between it and the next.
        place = (sums < k).sum(1, keepdim=True) - 1
        end = kinks.gather(1, place + 1)
        middle = 0.5 * (kinks.gather(1, place) + end)
        between = (scaled + middle > 0) & (scaled + middle < 1)
        ones = (scaled + middle >= 1).sum(1, keepdim=True)
    return (k - ones - torch.where(between, scaled, 0.0).sum(1, keepdim=True)) / between.sum(1, keepdim=True)


def capped(x: Tensor, temperature: Tensor) -> Tensor:
    """clamp(x/T + τ, 0, 1)"""
    scaled = x / temperature.expand(x.shape[0]).unsqueeze(1)
    return (scaled + threshold(x, temperature, CHOSEN)).clamp(0, 1)


def capped_slope(x: Tensor, temperature: Tensor) -> Tensor:
    """(diag(1_S) − 1_S 1_Sᵀ/|S|)/T"""
    u = capped(x, temperature)
    between = ((u > 0) & (u < 1)).to(x.dtype)
    matrix = torch.diag_embed(between) - between.unsqueeze(2) * between.unsqueeze(1) / between.sum(1)[:, None, None]
    return matrix / temperature[:, None, None]


PROBLEMS = (
    Problem("top_k_pair", lambda: EntropicChoice(1), sample_pairs, (0, 0), pair, pair_slope, "entropic, two entries: barriers on both sides"),
    Problem("top_k_entropic", EntropicChoice, sample_logits, (0, None), note="no closed form for more entries; a temperature shared by the batch"),
    Problem("top_k_capped", CappedSimplex, sample_capped, (0, 0), capped, capped_slope, "bounds on both sides of every entry; by sorting"),
)
