"""Attention as an optimisation problem, and one that softmax cannot state.

    min −⟨S, Y⟩ + Σ_ij Y_ij log Y_ij   s.t.   Y1 = 1,      S = QKᵀ/√d            Q: 2×3 queries, K: 3×3 keys, Y: 2×3

    attention           as above: Y = softmax(S), row by row
    attention_coupled   with ½e^κ Σ_j (Σ_i Y_ij)²: a key that several queries look at becomes dearer. κ is learned

In the second, the queries compete; there is no closed form, for row i depends on all the others. With c_j = Σ_i Y_ij, Y = softmax(S − e^κ 1cᵀ): a
fixed point for c. H is diag(1/Y), which is declared, or that plus e^κ (11ᵀ ⊗ I), which is left to the engine.

Source: Vaswani et al., "Attention is all you need", NeurIPS 2017; the statement with entropy, Martins & Astudillo, "From softmax to sparsemax", ICML 2016.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from declarative import DeclarativeNode
from declarative.structure import Constant, Diagonal
from problems.base import Inputs, Problem, cast, normal

QUERIES, KEYS, SIZE = 2, 3, 3


class Attention(DeclarativeNode):
    """Q (m, d), K (n, d) -> Y (m, n), rows on the simplex."""

    hessian_structure = Diagonal()
    constraint_structure = Constant()

    def objective(self, Q: Tensor, K: Tensor, Y: Tensor) -> Tensor:
        return (Y * Y.log()).sum() - (Y * scores(Q, K)).sum()

    def equality_constraints(self, Q: Tensor, K: Tensor, Y: Tensor) -> Tensor:  # noqa: ARG002
        return Y.sum(1) - 1

    def initial_guess(self, Q: Tensor, K: Tensor) -> Tensor:
        return Q.new_full((Q.shape[0], Q.shape[1], K.shape[1]), 1 / K.shape[1])


class CoupledAttention(Attention):
    """The same, keys becoming dearer as they are used; κ is learned."""

    hessian_structure = None

    def __init__(self) -> None:
        super().__init__()
        self.log_price = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def objective(self, Q: Tensor, K: Tensor, Y: Tensor) -> Tensor:
        return super().objective(Q, K, Y) + 0.5 * self.log_price.exp() * Y.sum(0).square().sum()


def scores(Q: Tensor, K: Tensor) -> Tensor:
    """QKᵀ/√d."""
    return Q @ K.mT / Q.shape[-1] ** 0.5


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Anything will do."""
    return cast(dtype, normal(generator, batch, QUERIES, SIZE), normal(generator, batch, KEYS, SIZE))


def closed_form(Q: Tensor, K: Tensor) -> Tensor:
    """softmax(QKᵀ/√d)."""
    return scores(Q, K).softmax(2)


def jacobian(Q: Tensor, K: Tensor) -> Tensor:
    """∂Y_ij/∂Q_kl = δ_ik Y_ij (K_jl − Σ_j' Y_ij' K_j'l)/√d."""
    Y = closed_form(Q, K)
    moved = K.unsqueeze(1) - (Y @ K).unsqueeze(2)  # (b, m, n, d)
    eye = torch.eye(Q.shape[1], dtype=Q.dtype)
    return torch.einsum("ik,bij,bijl->bijkl", eye, Y, moved) / Q.shape[2] ** 0.5


PROBLEMS = (
    Problem("attention", Attention, sample, (0, 0), closed_form, jacobian, "a matrix as y; H diagonal and A constant, declared"),
    Problem("attention_coupled", CoupledAttention, sample, (0, 0), note="rows that depend on each other; a learned parameter; A constant, declared"),
)
