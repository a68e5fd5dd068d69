"""exp(γ(φ_i + ψ_j − M_ij)) of two clouds as a differentiable function: what it does to vectors, tile by tile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from declarative.layers.transport.multiscale import Potentials
from declarative.layers.transport.pairs import PairSum
from declarative.layers.transport.tiles import Ground, block_of


@dataclass(frozen=True, eq=False)
class PairKernel:
    """K_ij = exp(γ(φ_i + ψ_j − M_ij)), the density of the plan P_ij = r_i c_j K_ij, and the potentials that were found.

    Args:
        dtype: of the exponentials; the rest is float64.
        tile: rows of a tile; None: by itself.
        bounded: weights of both clouds are zero or so small that their pairs, of no weight, could overflow.
        empty: some of c are zero.
        symmetric: both clouds are one.
        tolerance: of linear solves, relative.
        found: numbers.
    """

    ground: Ground
    dtype: torch.dtype
    tile: int | None
    bounded: bool
    empty: bool
    symmetric: bool
    tolerance: float
    found: Potentials

    def features(self, x: Tensor, y: Tensor, gamma: Tensor, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the exponents are made of: so few numbers a point that the tiles need not see more."""
        return self.ground.rows(x, phi, gamma), self.ground.columns(y, psi, gamma), gamma

    def times(self, features: tuple[Tensor, ...], columns: Tensor) -> Tensor:
        """K · columns, (m, k) -> (n, k)"""
        return self._times(columns.shape[0])(*features, columns.to(self.dtype))[0].double()

    def pull_times(self, features: tuple[Tensor, ...], columns: Tensor, cotangent: Tensor, wanted: tuple[int, ...]) -> tuple[Tensor, ...]:
        """The cotangents of the wanted features from that of `times`, without `times` itself."""
        return self._times(columns.shape[0]).pull_back(wanted)(*features, columns.to(self.dtype), cotangent.to(self.dtype))

    def transposed_times(self, features: tuple[Tensor, ...], rows: Tensor) -> Tensor:
        """Kᵀ · rows, (n, k) -> (m, k)"""

        def product(left: Tensor, right: Tensor, gamma: Tensor, rows: Tensor) -> tuple[Tensor]:
            return (self._exponents(left, right, gamma).to(self.dtype).exp().mT @ rows,)

        return self._sum(product, "rcsr", "c", features[1].shape[0])(*features, rows.to(self.dtype))[0].double()

    def costs(self, features: tuple[Tensor, ...], phi: Tensor, psi: Tensor, columns: Tensor) -> Tensor:
        """(K ∘ M) · columns, (m,) -> (n,), for the potentials that the features have."""

        def product(left: Tensor, right: Tensor, gamma: Tensor, phi: Tensor, psi: Tensor, columns: Tensor) -> tuple[Tensor]:
            exponents = self._exponents(left, right, gamma)
            costs = phi.unsqueeze(1) + psi - exponents / gamma
            return ((exponents.to(self.dtype).exp() * costs.to(self.dtype)) @ columns,)

        return self._sum(product, "rcsrcc", "r", columns.shape[0])(*features, phi, psi, columns.to(self.dtype))[0].double()

    def soft_rows(self, x: Tensor, y: Tensor, columns: Tensor, gamma: Tensor, psi: Tensor) -> Tensor:
        """φ of this ψ, (n,)."""
        start = self.found.rows
        return start - self.times(self.features(x, y, gamma, start, psi), columns.unsqueeze(1)).squeeze(1).log() / gamma

    def soft_columns(self, x: Tensor, y: Tensor, rows: Tensor, gamma: Tensor, phi: Tensor) -> Tensor:
        """ψ of this φ, (m,)."""
        start = self.found.columns
        return start - self.transposed_times(self.features(x, y, gamma, phi, start), rows.unsqueeze(1)).squeeze(1).log() / gamma

    def _times(self, m: int) -> PairSum:
        def product(left: Tensor, right: Tensor, gamma: Tensor, columns: Tensor) -> tuple[Tensor]:
            return (self._exponents(left, right, gamma).to(self.dtype).exp() @ columns,)

        return self._sum(product, "rcsc", "r", m)

    def _exponents(self, left: Tensor, right: Tensor, gamma: Tensor) -> Tensor:
        exponents = self.ground.exponents(left, right, gamma)
        return exponents.clamp(max=80.0) if self.bounded else exponents

    def _sum(self, function: Callable[..., tuple[Tensor, ...]], inputs: str, outputs: str, m: int) -> PairSum:
        return PairSum(function, inputs, outputs, block_of(m, self.tile), self.found.near)
