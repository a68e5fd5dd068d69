"""Least squares with an intercept: y is a pair of tensors, the weights and the intercept.

    min ½ Σ_i (a_i·w + s − t_i)² + ½λ‖w‖²                                        y = (w ∈ R³, s ∈ R), λ = 0.1

The intercept is not penalised. With Ã = [A 1] and D = diag(1, 1, 1, 0):  (ÃᵀÃ + λD) [w; s] = Ãᵀt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal

POINTS, FEATURES, PENALTY = 5, 3, 0.1
Fit = tuple[Tensor, Tensor]


class AffineFit(DeclarativeNode):
    """A (k, n), t (k,) -> (w (n,), s ())."""

    def objective(self, A: Tensor, t: Tensor, y: Fit) -> Tensor:
        w, s = y
        return 0.5 * (A @ w + s - t).square().sum() + 0.5 * PENALTY * w.square().sum()

    def initial_guess(self, A: Tensor, t: Tensor) -> Fit:  # noqa: ARG002
        return A.new_zeros(A.shape[0], A.shape[2]), A.new_zeros(A.shape[0])


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Anything will do."""
    return cast(dtype, normal(generator, batch, POINTS, FEATURES), normal(generator, batch, POINTS))


def closed_form(A: Tensor, t: Tensor) -> Fit:
    """The normal equations."""
    extended = torch.cat([A, torch.ones_like(A[:, :, :1])], 2)
    damping = torch.diag(torch.tensor([PENALTY] * A.shape[2] + [0.0], dtype=A.dtype))
    both = torch.linalg.solve(extended.mT @ extended + damping, (extended.mT @ t.unsqueeze(2)).squeeze(2))
    return both[:, :-1], both[:, -1]


PROBLEM = Problem("affine_fit", AffineFit, sample, (0, 0), closed_form, None, "y is a tuple of tensors of different shapes")
