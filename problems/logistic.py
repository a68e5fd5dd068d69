"""Logistic regression with a learned ridge.

    min Σ_i [log(1 + exp(a_i·y)) − t_i a_i·y] + ½e^ρ‖y‖²                         a_i, y ∈ R³, t ∈ [0, 1]⁵, ρ a parameter of the node

With p_i = 1/(1 + exp(−a_i·y)):  ∇ = Aᵀ(p − t) + e^ρ y and H = Aᵀ diag(p(1 − p)) A + e^ρ I. The ridge makes the minimiser exist and unique where the classes
can be separated, too; ∂y/∂ρ = −e^ρ H⁻¹y, ∂y/∂t = H⁻¹Aᵀ.

Source: Cox, "The regression analysis of binary sequences", Journal of the Royal Statistical Society B 20(2), 1958.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal
from problems.oracles import root

POINTS, FEATURES, LOG_PENALTY = 5, 3, -0.5


class LogisticRegression(DeclarativeNode):
    """t (k,), A (k, n) -> weights y (n,); ρ is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.log_penalty = nn.Parameter(torch.tensor(LOG_PENALTY, dtype=torch.float64))

    def objective(self, t: Tensor, A: Tensor, y: Tensor) -> Tensor:
        score = A @ y
        # torch's softplus(z) − z is 0 from z = 20 on: a kink, at which Newton's method may have to end where the ridge is weak.
        return -(t * logsigmoid(score) + (1 - t) * logsigmoid(-score)).sum() + 0.5 * self.log_penalty.exp() * y.square().sum()

    def initial_guess(self, t: Tensor, A: Tensor) -> Tensor:  # noqa: ARG002
        return A.new_zeros(A.shape[0], A.shape[2])


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Anything will do."""
    t = (normal(generator, batch, POINTS) > 0).double()
    return cast(dtype, t, normal(generator, batch, POINTS, FEATURES))


def _slope(A: Tensor, y: Tensor) -> Tensor:
    p = (A @ y.unsqueeze(2)).sigmoid()
    ridge = torch.tensor(LOG_PENALTY, dtype=A.dtype).exp() * torch.eye(A.shape[2], dtype=A.dtype)
    return A.mT @ (p * (1 - p) * A) + ridge


def closed_form(t: Tensor, A: Tensor) -> Tensor:
    """Iteratively reweighted least squares, which is Newton's method, from zero."""

    def field(y: Tensor) -> Tensor:
        p = (A @ y.unsqueeze(2)).squeeze(2).sigmoid()
        return (A.mT @ (p - t).unsqueeze(2)).squeeze(2) + torch.tensor(LOG_PENALTY, dtype=A.dtype).exp() * y

    return root(field, lambda y: _slope(A, y), torch.zeros_like(A[:, 0]), steps=20)


def jacobian(t: Tensor, A: Tensor) -> Tensor:
    """∂y/∂t = H⁻¹Aᵀ."""
    return torch.linalg.solve(_slope(A, closed_form(t, A)), A.mT)


PROBLEM = Problem("logistic", LogisticRegression, sample, (0, 0), closed_form, jacobian, "a learned parameter, of which the Hessian is a function")
