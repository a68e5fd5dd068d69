"""The cost of a pair of points, as exponents γ(φ_i + ψ_j − M(x_i, y_j)) that are made from a few numbers a point.

They are computed in float64 whatever the dtype: at γM = 10⁵ float32 resolves them to 1 % only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Cost = Callable[[Tensor, Tensor], Tensor]


class Ground(ABC):
    """The cost of a pair, as exponents made from a few numbers a point."""

    @abstractmethod
    def rows(self, x: Tensor, phi: Tensor, gamma: Tensor) -> Tensor:
        """(n, d), (n,), () -> (n, k), float64"""

    @abstractmethod
    def columns(self, y: Tensor, psi: Tensor, gamma: Tensor) -> Tensor:
        """(m, d), (m,), () -> (m, k), float64"""

    @abstractmethod
    def exponents(self, left: Tensor, right: Tensor, gamma: Tensor) -> Tensor:
        """(n, k), (m, k), () -> (n, m), float64"""

    def pull_back(self, left: Tensor, right: Tensor, gamma: Tensor, weights: Tensor, wanted: tuple[int, ...]) -> tuple[Tensor, ...]:
        """The cotangents of the wanted ones of (left, right, gamma) from that of the exponents, (n, m)."""
        tensors = [left, right, gamma]

        def chosen(*some: Tensor) -> Tensor:
            for k, tensor in zip(wanted, some, strict=True):
                tensors[k] = tensor
            return self.exponents(*tensors)

        back: Any = torch.func.vjp(chosen, *(tensors[k] for k in wanted))[1]
        return back(weights)

    @property
    def transposed(self) -> Ground:
        """The cost with its arguments exchanged."""
        return self


class SquaredEuclidean(Ground):
    """M = ‖x − y‖²: the exponents of a tile are one product of matrices. The clouds should be centred."""

    def rows(self, x: Tensor, phi: Tensor, gamma: Tensor) -> Tensor:
        return torch.cat([2 * gamma * x, (gamma * (phi - x.square().sum(1))).unsqueeze(1), torch.ones_like(x[:, :1])], 1)

    def columns(self, y: Tensor, psi: Tensor, gamma: Tensor) -> Tensor:
        return torch.cat([y, torch.ones_like(y[:, :1]), (gamma * (psi - y.square().sum(1))).unsqueeze(1)], 1)

    def exponents(self, left: Tensor, right: Tensor, gamma: Tensor) -> Tensor:  # noqa: ARG002
        return left @ right.mT

    def pull_back(self, left: Tensor, right: Tensor, gamma: Tensor, weights: Tensor, wanted: tuple[int, ...]) -> tuple[Tensor, ...]:
        # gamma is in the features already.
        return tuple((lambda: weights @ right, lambda: weights.mT @ left, lambda: torch.zeros_like(gamma))[k]() for k in wanted)


@dataclass(frozen=True)
class Given(Ground):
    """A user's cost(x, y): (n, d), (m, d) -> (n, m), called in the dtype of the points that the user gave."""

    cost: Cost
    dtype: torch.dtype
    swapped: bool = False

    def rows(self, x: Tensor, phi: Tensor, gamma: Tensor) -> Tensor:  # noqa: ARG002
        return torch.cat([x, phi.unsqueeze(1)], 1)

    def columns(self, y: Tensor, psi: Tensor, gamma: Tensor) -> Tensor:
        return self.rows(y, psi, gamma)

    def exponents(self, left: Tensor, right: Tensor, gamma: Tensor) -> Tensor:
        x, y = left[:, :-1].to(self.dtype), right[:, :-1].to(self.dtype)
        costs = self.cost(y, x).mT if self.swapped else self.cost(x, y)
        return gamma * (left[:, -1:] + right[:, -1] - costs)

    @property
    def transposed(self) -> Ground:
        return replace(self, swapped=not self.swapped)
