"""Many separate numbers and one sum that couples them: H is diagonal plus rank one.

    min Σ_i (cosh y_i − x_i y_i) + ½ s (Σ_i y_i)²,   s > 0 a parameter of the node                       x, y ∈ R⁵

With t = Σy: sinh y_i = x_i − s t, and t is the root of an increasing function of one variable.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from declarative import DeclarativeNode
from declarative.structure import LowRankUpdate
from problems.base import Inputs, Problem, cast, normal

SIZE = 5


class Coupled(DeclarativeNode):
    """x (n,) -> y (n,)."""

    hessian_structure = LowRankUpdate(1)

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return (y.cosh() - x * y).sum() + 0.5 * self.strength * y.sum() ** 2

    def initial_guess(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Any numbers will do."""
    return cast(dtype, normal(generator, batch, SIZE))


PROBLEM = Problem("coupled", Coupled, sample, (0,), note="H diagonal plus rank one, declared; a parameter in it")
