"""`SinkhornLoss`: what a plan costs, with its analytic gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from declarative.layers.transport.layer import OptimalTransport


class SinkhornLoss(nn.Module):
    """S = ⟨P, M⟩ of the entropic plan P, or with `regularised=True` the optimal value ⟨P, M⟩ + (1/γ) KL(P ‖ r cᵀ).

    The gradient of ⟨P, M⟩ is P − γP∘(M − w_r 1ᵀ − 1 w_cᵀ), one linear system. That of the regularised value is P, by the envelope
    theorem, and solves none. Both are differentiable in M, r, c and γ, to any order.

    Args:
        gamma: γ > 0, as for `OptimalTransport`.
        regularised: whether the entropy is part of the value.
        options: of `OptimalTransport`.

    Shapes:
        M (…, m, n), r (…, m), c (…, n), γ (…,) -> (…,). Leading dimensions broadcast.

    Raises:
        ValueError, TypeError, SolverError: as `OptimalTransport`.

    Example:
        >>> M = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> SinkhornLoss(gamma=2.0)(M), SinkhornLoss(gamma=2.0, regularised=True)(M)
        (tensor(0.1192), tensor(0.2831))

    Source: Qiu, Yin & Wang, "Efficient, stable, and analytic differentiation of the Sinkhorn loss", preprint 2023.
    """

    def __init__(self, gamma: float | Tensor = 1.0, *, regularised: bool = False, **options: Any) -> None:
        super().__init__()
        if not isinstance(regularised, bool):
            raise TypeError(f"regularised must be True or False, got {regularised!r}")
        self.transport, self.regularised = OptimalTransport(gamma, **options), regularised

    def forward(
        self,
        M: Tensor,
        r: Tensor | None = None,
        c: Tensor | None = None,
        gamma: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        init: Any = None,
    ) -> Tensor:
        """S (…,). Arguments as those of `OptimalTransport`."""
        if self.regularised:
            return self.transport.value(M, r, c, gamma, mask=mask, init=init)
        plan = self.transport(M, r, c, gamma, mask=mask, init=init)
        affinity = self.transport.input == "affinity"
        # Forbidden pairs cost nothing: no mass goes there. Rows and columns without mass keep their costs, which mass would have to pay.
        forbidden = M == 0 if affinity else torch.isinf(M)
        cost = torch.where(forbidden if mask is None else forbidden | ~mask, 1.0, M)
        return (plan * (-cost.log() if affinity else cost)).sum((-2, -1))
