"""The Sinkhorn divergence by unrolling: log-domain Sinkhorn written as one writes it in torch, and differentiated by autograd.

Source: Genevay, Peyré & Cuturi, "Learning generative models with Sinkhorn divergences", AISTATS 2018.
"""

from __future__ import annotations

import torch
from torch import Tensor


def divergence(x: Tensor, y: Tensor, a: Tensor, b: Tensor, epsilon: float, iterations: int) -> Tensor:
    """S_ε of x (n, d) with weights a and y (m, d) with weights b, squared Euclidean distances."""

    def value(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return _regularised((x[:, None] - y[None]).square().sum(-1), a, b, epsilon, iterations)

    return value(x, y, a, b) - 0.5 * (value(x, x, a, a) + value(y, y, b, b))


def _regularised(M: Tensor, a: Tensor, b: Tensor, epsilon: float, iterations: int) -> Tensor:
    """⟨f, a⟩ + ⟨g, b⟩ after so many steps: the value of min ⟨P, M⟩ + ε KL(P ‖ abᵀ) where they have converged."""
    log_a, log_b = a.log(), b.log()
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    for _ in range(iterations):
        f = -epsilon * ((g - M) / epsilon + log_b).logsumexp(1)
        g = -epsilon * ((f[:, None] - M) / epsilon + log_a[:, None]).logsumexp(0)
    return f @ a + g @ b
