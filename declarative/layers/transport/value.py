"""The optimal value of entropic transport, differentiated by the envelope theorem.

    V = min_P ⟨P, M⟩ + (1/γ) KL(P ‖ r cᵀ),     dV = ⟨P, dM⟩ + ⟨φ − 1/2γ, dr⟩ + ⟨ψ − 1/2γ, dc⟩ − (KL/γ²) dγ

The gradient needs the plan and the potentials only: no linear system. They are functions of the inputs in turn (plan.py), and so the
second derivative is right, too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from declarative.transforms import alive, at_outer_levels, folded, reject_legacy_vmap, unfolded


def transport_value(cost: Tensor, rows: Tensor, columns: Tensor, gamma: Tensor, plan: Tensor, phi: Tensor, psi: Tensor) -> Tensor:
    """V (b,) of balanced marginals; plan and potentials as `transport_plan` returns them."""
    return _Value.apply(cost, rows, columns, gamma, plan, phi, psi)  # pyright: ignore[reportReturnType]


def _slopes(cost: Tensor, gamma: Tensor, plan: Tensor, phi: Tensor, psi: Tensor, by_gamma: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """∂V/∂(M, r, c, γ), each (b, …); that by γ, which alone takes a pass over the costs, if wanted."""
    half = 0.5 / gamma.unsqueeze(1)
    if not by_gamma:
        return plan, phi - half, psi - half, None
    gap = torch.where(torch.isinf(cost), 0.0, phi.unsqueeze(2) + psi.unsqueeze(1) - torch.where(torch.isinf(cost), 0.0, cost))
    return plan, phi - half, psi - half, -(plan * gap).sum((1, 2)) / gamma


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(cost: Tensor, rows: Tensor, columns: Tensor, gamma: Tensor, plan: Tensor, phi: Tensor, psi: Tensor) -> Tensor:  # noqa: ARG004  # pyright: ignore[reportIncompatibleMethodOverride]
        # The dual value: what is left of the error in the marginals is its square.
        return (phi * rows).sum(1) + (psi * columns).sum(1) + (rows.sum(1) - plan.sum((1, 2))) / gamma

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        cost, _, _, gamma, plan, phi, psi = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(cost, gamma, plan, phi, psi)
        ctx.save_for_forward(cost, gamma, plan, phi, psi)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        reject_legacy_vmap(cotangent)
        if cotangent is None:
            return (None,) * 7
        saved, wanted = [alive(t) for t in ctx.saved_tensors], ctx.needs_input_grad
        slopes = _slopes(*saved, by_gamma=wanted[3])
        scales = cotangent[:, None, None], cotangent.unsqueeze(1), cotangent.unsqueeze(1), cotangent
        found = (slope * scale if need and slope is not None else None for slope, scale, need in zip(slopes, scales, wanted, strict=False))
        return (*found, None, None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        count = len(ctx.saved_tensors)

        def push(*operands: Any) -> tuple[Tensor]:
            gamma = operands[1]
            total = torch.zeros_like(gamma)
            for slope, dot in zip(_slopes(*operands[:count]), operands[count:], strict=True):
                if dot is not None and slope is not None:
                    total = total + (slope * dot).reshape(*gamma.shape, slope[0].numel() if slope.shape[0] else 1).sum(1)
            return (total,)

        return at_outer_levels(push, (*ctx.saved_tensors, *tangents[:4]))[0]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *tensors: Tensor) -> tuple[Tensor, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        size = info.batch_size
        return unfolded(_Value.apply(*(folded(t, d, size) for t, d in zip(tensors, in_dims, strict=True))), size), 0  # pyright: ignore[reportArgumentType]
