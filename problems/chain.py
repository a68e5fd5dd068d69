"""A signal smoothed along a chain: tridiagonal H.

    min ½‖y − x‖² + Σ_i √(1 + (y_{i+1} − y_i)²)                                                        x, y ∈ R⁶

H = I + a weighted graph Laplacian of the chain: three products form it, and solving costs O(m).
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from declarative.structure import Banded, ScaledIdentityInput
from problems.base import Inputs, Problem, cast, normal

SIZE = 6


class Chain(DeclarativeNode):
    """x (n,) -> y (n,)."""

    hessian_structure = Banded(1)
    mixed_structure = ScaledIdentityInput(input=0, scale=-1.0)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum() + (1 + (y[1:] - y[:-1]).square()).sqrt().sum()

    def initial_guess(self, x: Tensor) -> Tensor:
        return x


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Steep enough that the square root bends."""
    return cast(dtype, 2 * normal(generator, batch, SIZE))


PROBLEM = Problem("chain", Chain, sample, (0,), note="tridiagonal H, declared; B = −I, declared")
