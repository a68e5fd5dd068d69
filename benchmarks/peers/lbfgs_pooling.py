"""Robust pooling by one L-BFGS over the whole batch, the way of the deep declarative networks library, written anew.

The objectives of all samples are summed and torch.optim.LBFGS runs on the sum: one step length, one memory and one test of
convergence for the batch. Penalties that are not convex are run from the mean and from the median of each channel and the lower value
is kept, sample by sample. The backward pass forms H (C×C), factors it and applies the closed formula.

Source: Gould, Hartley & Campbell, "Deep declarative networks", IEEE TPAMI 44(8), 2022, section 5.2, and its public code's settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TOLERANCE, STEPS, MEMORY = 1e-5, 100, 5


@dataclass(frozen=True)
class Penalty:
    """φ(z) and (κ₁, κ₂)(z) for α = 1."""

    convex: bool
    phi: Callable[[Tensor], Tensor]
    kappas: Callable[[Tensor], tuple[Tensor, Tensor]]


def _huber(z: Tensor) -> tuple[Tensor, Tensor]:
    near = z <= 1
    return torch.where(near, 1.0, 1 / z), torch.where(near, 0.0, -1 / z**3)


def _pseudo_huber(z: Tensor) -> tuple[Tensor, Tensor]:
    root = (1 + z.square()).sqrt()
    return 1 / root, -1 / root**3


def _welsch(z: Tensor) -> tuple[Tensor, Tensor]:
    weight = (-0.5 * z.square()).exp()
    return weight, -weight


PENALTIES = {
    "Quadratic": Penalty(True, lambda z: 0.5 * z.square(), lambda z: (torch.ones_like(z), torch.zeros_like(z))),
    "PseudoHuber": Penalty(True, lambda z: (1 + z.square()).sqrt() - 1, _pseudo_huber),
    "Huber": Penalty(True, lambda z: torch.where(z <= 1, 0.5 * z.square(), z - 0.5), _huber),
    "Welsch": Penalty(False, lambda z: 1 - (-0.5 * z.square()).exp(), _welsch),
    "TruncatedQuadratic": Penalty(False, lambda z: 0.5 * z.square().clamp_max(1.0), lambda z: ((z <= 1).to(z.dtype), torch.zeros_like(z))),
}


def lbfgs_pooling(x: Tensor, name: str) -> Tensor:
    """x (b, C, N) -> u (b, C), differentiable once, with α = 1."""
    return _Pooling.apply(x, PENALTIES[name])  # pyright: ignore[reportReturnType]


def _values(x: Tensor, u: Tensor, penalty: Penalty) -> Tensor:
    return penalty.phi(torch.linalg.norm(u.unsqueeze(2) - x, dim=1)).sum(1)


def _minimise(x: Tensor, start: Tensor, penalty: Penalty) -> Tensor:
    u = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([u], lr=1.0, max_iter=STEPS, tolerance_grad=TOLERANCE, tolerance_change=1e-9, history_size=MEMORY)

    def closure() -> Tensor:
        optimiser.zero_grad()
        total = _values(x, u, penalty).sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimiser.step(closure)  # pyright: ignore[reportArgumentType]
    return u.detach()


class _Pooling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, penalty: Penalty) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = x.detach()
        u = _minimise(x, x.mean(2), penalty)
        if not penalty.convex:
            other = _minimise(x, x.median(2).values, penalty)
            u = torch.where((_values(x, u, penalty) <= _values(x, other, penalty)).unsqueeze(1), u, other)
        ctx.save_for_backward(x, u)
        ctx.penalty = penalty
        return u

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, u = ctx.saved_tensors
        apart = u.unsqueeze(2) - x
        first, second = ctx.penalty.kappas(torch.linalg.norm(apart, dim=1, keepdim=True) + 1e-9)
        mass = first.sum(2)
        if bool((second == 0).all()):
            return first * (cotangent / mass).unsqueeze(2), None
        eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        hessian = mass.unsqueeze(2) * eye + torch.einsum("bik,bjk->bij", apart, second * apart)
        q = torch.cholesky_solve(cotangent.unsqueeze(2), torch.linalg.cholesky(hessian))
        along = torch.einsum("bio,bik->bk", q, second * apart)
        return first * q + torch.einsum("bk,bik->bik", along, apart), None
