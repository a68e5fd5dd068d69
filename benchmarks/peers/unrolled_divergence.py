"""The Sinkhorn divergence by unrolling: log-domain Sinkhorn written as one writes it in torch, and differentiated by autograd.

A cloud against itself has one potential, and averaging it with its update converges several times as fast: the stronger opponent.

Source: Feydy et al., "Interpolating between optimal transport and MMD using Sinkhorn divergences", AISTATS 2019, section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def divergence(x: Tensor, y: Tensor, a: Tensor, b: Tensor, epsilon: float, iterations: int) -> Tensor:
    """S_ε of x (n, d) with weights a and y (m, d) with weights b, squared Euclidean distances."""
    with_itself = (_with_itself(_distances(z, z), weights, epsilon, iterations) for z, weights in ((x, a), (y, b)))
    return _between(_distances(x, y), a, b, epsilon, iterations) - 0.5 * sum(with_itself)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return (x[:, None] - y[None]).square().sum(-1)


def _between(M: Tensor, a: Tensor, b: Tensor, epsilon: float, iterations: int) -> Tensor:
    """⟨f, a⟩ + ⟨g, b⟩ after so many steps: the value of min ⟨P, M⟩ + ε KL(P ‖ abᵀ) where they have converged."""
    log_a, log_b = a.log(), b.log()
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    for _ in range(iterations):
        f = -epsilon * ((g - M) / epsilon + log_b).logsumexp(1)
        g = -epsilon * ((f[:, None] - M) / epsilon + log_a[:, None]).logsumexp(0)
    return f @ a + g @ b


def _with_itself(M: Tensor, a: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The same with f = g, averaged with its update, and one full step at the end."""
    log_a, f = a.log(), torch.zeros_like(a)
    for _ in range(iterations):
        f = 0.5 * (f - epsilon * ((f - M) / epsilon + log_a).logsumexp(1))
    return -2 * epsilon * ((f - M) / epsilon + log_a).logsumexp(1) @ a
