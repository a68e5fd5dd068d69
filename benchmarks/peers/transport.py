"""The backward pass of entropic transport as one would write it by hand (Schur complement of the larger marginal, one Cholesky).

With w the potentials' adjoint,  [diag(P1) P; Pᵀ diag(Pᵀ1)] w = ((P∘V)1, (P∘V)ᵀ1)  and  ∂ℓ/∂M = −γ P∘(V − w_r 1ᵀ − 1 w_cᵀ).

Source: Campbell, Liu & Gould, "Solving the blind perspective-n-point problem end-to-end", ECCV 2020; Luise et al., NeurIPS 2018.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def transport_backward(P: Tensor, gamma: float) -> Callable[[Tensor], Tensor]:
    """M -> P as an autograd Function whose forward pass returns the plan given, so that only its backward pass is timed."""

    class ByHand(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, M: Tensor) -> Tensor:  # noqa: ARG004  # pyright: ignore[reportIncompatibleMethodOverride]
            ctx.save_for_backward(P)
            return P.clone()

        @staticmethod
        def backward(ctx: Any, V: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            (P,) = ctx.saved_tensors
            weighted = P * V
            r, side_r = P.sum(-1), weighted.sum(-1)
            Q = P[..., 1:]
            schur = torch.diag_embed(Q.sum(-2)) - Q.mT @ (Q / r.unsqueeze(-1))
            side = weighted.sum(-2)[..., 1:] - (Q.mT @ (side_r / r).unsqueeze(-1)).squeeze(-1)
            w_c = torch.cholesky_solve(side.unsqueeze(-1), torch.linalg.cholesky(schur)).squeeze(-1)
            w_r = (side_r - (Q @ w_c.unsqueeze(-1)).squeeze(-1)) / r
            return -gamma * P * (V - w_r.unsqueeze(-1) - torch.nn.functional.pad(w_c, (1, 0)).unsqueeze(-2))

    return ByHand.apply
