"""Entropic optimal transport between two histograms, by its objective and constraints alone.

    min_P ⟨P, M⟩ + (1/γ) Σ_ij P_ij log(P_ij / (r_i c_j))   s.t.   P1 = r,  Pᵀ1 = c (one column sum is redundant)

H = diag(1/(γP)), A the fixed 0–1 matrix of marginal sums, ∂²f/∂P∂M = I (docs/architecture.md): all three are declared.

Source: Cuturi, "Sinkhorn distances", NeurIPS 2013.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from declarative.structure import Constant, Diagonal, ScaledIdentityInput, Sparse
from problems.base import Inputs, Problem, cast, uniform

ROWS, COLUMNS, GAMMA = 2, 3, 4.0


class Transport(DeclarativeNode):
    """M (m, n), r (m,), c (n,) -> P (m, n)."""

    hessian_structure = Diagonal()
    constraint_structure = Constant(Sparse())
    mixed_structure = ScaledIdentityInput(input=0)

    def objective(self, M: Tensor, r: Tensor, c: Tensor, P: Tensor) -> Tensor:
        return (P * M).sum() + (P * (P / (r.unsqueeze(1) * c)).log()).sum() / GAMMA

    def equality_constraints(self, M: Tensor, r: Tensor, c: Tensor, P: Tensor) -> Tensor:  # noqa: ARG002
        return torch.cat([P.sum(1) - r, (P.sum(0) - c)[1:]])

    def initial_guess(self, M: Tensor, r: Tensor, c: Tensor) -> Tensor:  # noqa: ARG002
        return r.unsqueeze(2) * c.unsqueeze(1)


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Histograms of the same mass."""
    r, c = uniform(generator, 0.5, 1.5, batch, ROWS), uniform(generator, 0.5, 1.5, batch, COLUMNS)
    r, c = r / r.sum(1, keepdim=True), c / c.sum(1, keepdim=True)
    return cast(dtype, uniform(generator, 0.0, 1.0, batch, ROWS, COLUMNS), r, c)


PROBLEM = Problem("transport", Transport, sample, (0, 0, 0), note="matrix y; diagonal H, constant sparse A and B = I, declared")
