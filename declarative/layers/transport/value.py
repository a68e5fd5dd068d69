"""The optimal value of entropic transport, differentiated by the envelope theorem.

    V = min_P ⟨P, M⟩ + (1/γ) KL(P ‖ r cᵀ),     dV = ⟨P, dM⟩ + ⟨φ − 1/2γ, dr⟩ + ⟨ψ − 1/2γ, dc⟩ − (KL/γ²) dγ

The gradient needs the plan and the potentials only: no linear system. They are functions of the inputs in turn (plan.py), and so the
second derivative is right, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from declarative.layers.formula import Formula, solved


def transport_value(cost: Tensor, rows: Tensor, columns: Tensor, gamma: Tensor, plan: Tensor, phi: Tensor, psi: Tensor) -> Tensor:
    """V (b,) of balanced marginals; plan and potentials as `transport_plan` returns them."""
    return solved(_Value(), cost, rows, columns, gamma, plan, phi, psi)[0]


def _slopes(cost: Tensor, gamma: Tensor, plan: Tensor, phi: Tensor, psi: Tensor, by_gamma: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """∂V/∂(M, r, c, γ), each (b, …); that by γ, which alone takes a pass over the costs, if wanted."""
    half = 0.5 / gamma.unsqueeze(1)
    if not by_gamma:
        return plan, phi - half, psi - half, None
    gap = torch.where(torch.isinf(cost), 0.0, phi.unsqueeze(2) + psi.unsqueeze(1) - torch.where(torch.isinf(cost), 0.0, cost))
    return plan, phi - half, psi - half, -(plan * gap).sum((1, 2)) / gamma


class _Value(Formula):
    live = 1

    def fresh(self) -> _Value:
        return self

    def solve(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        _, rows, columns, gamma, plan, phi, psi = tensors
        # The dual value: what is left of the error in the marginals is its square.
        return ((phi * rows).sum(1) + (psi * columns).sum(1) + (rows.sum(1) - plan.sum((1, 2))) / gamma,)

    def pull_back(self, operands: Sequence[Tensor], cotangents: Sequence[Tensor | None], wanted: Sequence[bool]) -> Sequence[Tensor | None]:
        cost, _, _, gamma, plan, phi, psi, _ = operands
        v = torch.as_tensor(cotangents[0])
        slopes = _slopes(cost, gamma, plan, phi, psi, by_gamma=wanted[3])
        scales = v[:, None, None], v.unsqueeze(1), v.unsqueeze(1), v
        return (*(s * scale if need and s is not None else None for s, scale, need in zip(slopes, scales, wanted, strict=False)), None, None, None)

    def push_forward(self, operands: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        cost, _, _, gamma, plan, phi, psi, _ = operands
        total = torch.zeros_like(gamma)
        for slope, dot in zip(_slopes(cost, gamma, plan, phi, psi), tangents, strict=False):
            if dot is not None and slope is not None:
                total = total + (slope * dot).reshape(*gamma.shape, slope[0].numel() if slope.shape[0] else 1).sum(1)
        return (total,)
