"""Ridge regression on one design matrix, with a penalty that can be learned.

    min ½‖Ay − t‖² + ½e^ρ‖y‖²                                                    A: 5×3 and ρ shared by the batch, t ∈ R⁵ a sample's own

(AᵀA + e^ρ I) y = Aᵀt. What each sample says about A and ρ adds up in their gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal

POINTS, FEATURES = 5, 3


class Ridge(DeclarativeNode):
    """t (k,), A (k, n), ρ () -> y (n,)."""

    def objective(self, t: Tensor, A: Tensor, log_penalty: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (A @ y - t).square().sum() + 0.5 * log_penalty.exp() * y.square().sum()

    def initial_guess(self, t: Tensor, A: Tensor, log_penalty: Tensor) -> Tensor:  # noqa: ARG002
        return t.new_zeros(t.shape[0], A.shape[-1])


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Anything will do."""
    return cast(dtype, normal(generator, batch, POINTS), normal(generator, POINTS, FEATURES), torch.tensor(-0.7, dtype=torch.float64))


def closed_form(t: Tensor, A: Tensor, log_penalty: Tensor) -> Tensor:
    """The normal equations."""
    return torch.linalg.solve(A.mT @ A + log_penalty.exp() * torch.eye(A.shape[1], dtype=A.dtype), A.mT @ t.mT).mT


def jacobian(t: Tensor, A: Tensor, log_penalty: Tensor) -> Tensor:
    """(AᵀA + e^ρ I)⁻¹Aᵀ."""
    operator = torch.linalg.solve(A.mT @ A + log_penalty.exp() * torch.eye(A.shape[1], dtype=A.dtype), A.mT)
    return operator.expand(t.shape[0], *operator.shape)


PROBLEM = Problem("ridge", Ridge, sample, (0, None, None), closed_form, jacobian, "shared inputs: their gradient is a sum over the batch")
