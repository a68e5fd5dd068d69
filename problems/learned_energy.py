"""The minimiser of a learned energy: a small network inside the objective.

    min ½ Σ e^{w_i} (y_i − x_i)² + ¼ Σ_j v_j softplus(U_j·[x; y] + b_j)             x, y ∈ R³; w, U, b, v are learned

The first term is strongly convex and the second curves less than it does, so that the minimiser is unique. There is no closed
form: gradients of x and of every parameter come from the optimality conditions alone.

Source: the idea, Belanger & McCallum, "Structured prediction energy networks", ICML 2016.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal

SIZE, HIDDEN = 3, 4


class LearnedEnergy(DeclarativeNode):
    """x (n,) -> the minimiser y (n,) of a network's output."""

    def __init__(self, size: int = SIZE, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2 * size, hidden), nn.Softplus(), nn.Linear(hidden, 1, bias=False))
        self.log_stiffness = nn.Parameter(torch.zeros(size))
        self.register_buffer("strength", torch.tensor(0.25))

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        spring = 0.5 * (self.log_stiffness.exp() * (y - x).square()).sum()
        return spring + self.strength * self.network(torch.cat([x, y])).sum()

    def initial_guess(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def build() -> LearnedEnergy:
    """The same random parameters each time; global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LearnedEnergy()


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Anything will do."""
    return cast(dtype, normal(generator, batch, SIZE))


PROBLEM = Problem("learned_energy", build, sample, (0,), note="parameters, a buffer and a submodule in the objective")
