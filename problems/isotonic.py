"""Isotonic regression: the nearest sequence that does not fall.

    min ½ Σ w_i (y_i − x_i)²   s.t.   y_i ≤ y_{i+1}                              x, y ∈ R⁵; w = 1, or w > 0 shared by the batch

The solution is constant on blocks, and there it is the weighted mean of x. Pooling adjacent violators finds the blocks: neighbours that are out of order
are merged until none are. Away from a change of blocks, ∂y_i/∂x_j = w_j / Σ_block w where i and j share a block, else 0: block averaging.

Not regular where two blocks have the same mean.

Source: Ayer, Brunk, Ewing, Reid & Silverman, "An empirical distribution function for sampling with incomplete information", Annals of Mathematical
Statistics 26(4), 1955; Best & Chakravarti, "Active set algorithms for isotonic regression", Mathematical Programming 47, 1990.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from declarative.structure import Constant, Diagonal
from problems.base import Inputs, Problem, cast, normal, uniform

SIZE = 5


class WeightedIsotonic(DeclarativeNode):
    """x (n,), w (n,) > 0 -> y (n,)."""

    hessian_structure = Diagonal()
    constraint_structure = Constant()

    def objective(self, x: Tensor, w: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (w * (y - x).square()).sum()

    def inequality_constraints(self, x: Tensor, w: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return y[:-1] - y[1:]

    def initial_guess(self, x: Tensor, w: Tensor) -> Tensor:  # noqa: ARG002
        return torch.zeros_like(x)


class Isotonic(DeclarativeNode):
    """x (n,) -> y (n,)."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum()

    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return y[:-1] - y[1:]

    def initial_guess(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def _from_answer(batch: int, generator: torch.Generator, w: Tensor) -> Tensor:
    """x of solutions with clear steps between blocks and clearly positive multipliers inside of them: x = y − (μ_i − μ_{i−1})/w_i."""
    sizes = torch.arange(batch) % SIZE
    rising = normal(generator, batch, SIZE - 1).argsort(1).argsort(1) < sizes.unsqueeze(1)
    steps = uniform(generator, 0.3, 1.2, batch, SIZE - 1) * rising
    mu = uniform(generator, 0.3, 1.2, batch, SIZE - 1) * ~rising
    none = torch.zeros(batch, 1, dtype=torch.float64)
    y = normal(generator, batch, 1) + torch.cat([none, steps.cumsum(1)], 1)
    return y + torch.cat([none, mu, none], 1).diff(dim=1) / w


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Numbers of blocks by turns."""
    return cast(dtype, _from_answer(batch, generator, torch.ones(SIZE, dtype=torch.float64)))


def weighted_sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Numbers of blocks by turns."""
    w = uniform(generator, 0.6, 1.6, SIZE)
    return cast(dtype, _from_answer(batch, generator, w), w)


def block_starts(x: list[float], w: list[float]) -> list[int]:
    """Where blocks begin, by pooling adjacent violators."""
    blocks: list[tuple[int, float, float]] = []  # start, Σw, Σwx
    for i, (value, weight) in enumerate(zip(x, w, strict=True)):
        start, mass, moment = i, weight, weight * value
        while blocks and blocks[-1][2] / blocks[-1][1] >= moment / mass:
            earlier, more, other = blocks.pop()
            start, mass, moment = earlier, mass + more, moment + other
        blocks.append((start, mass, moment))
    return [start for start, _, _ in blocks]


def weighted_jacobian(x: Tensor, w: Tensor) -> Tensor:
    """w_j / Σ_block w within blocks."""
    begins = torch.zeros_like(x)
    for row, values in zip(begins, x.tolist(), strict=True):
        row[block_starts(values, w.tolist())] = 1
    block = begins.cumsum(1)
    mass = (block.unsqueeze(2) == block.unsqueeze(1)) * w
    return mass / mass.sum(2, keepdim=True)


def weighted_closed_form(x: Tensor, w: Tensor) -> Tensor:
    """Weighted means over blocks."""
    return (weighted_jacobian(x, w) @ x.unsqueeze(2)).squeeze(2)


def closed_form(x: Tensor) -> Tensor:
    """Means over blocks."""
    return weighted_closed_form(x, torch.ones_like(x[0]))


def jacobian(x: Tensor) -> Tensor:
    """1/length within blocks."""
    return weighted_jacobian(x, torch.ones_like(x[0]))


PROBLEMS = (
    Problem("isotonic", Isotonic, sample, (0,), closed_form, jacobian, "active sets differ between samples, from none to all"),
    Problem(
        "isotonic_weighted",
        WeightedIsotonic,
        weighted_sample,
        (0, None),
        weighted_closed_form,
        weighted_jacobian,
        "shared weights; H diagonal, A constant: declared",
    ),
)
