"""exp(γ(φ_i + ψ_j − M_ij)) of two clouds as a differentiable function: what it does to vectors, tile by tile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from declarative.layers.transport.ground import Ground
from declarative.layers.transport.multiscale import Potentials
from declarative.layers.transport.pairs import PairSum
from declarative.layers.transport.tiles import LEAST, block_of


@dataclass(frozen=True, eq=False)
class PairKernel:
    """K_ij = exp(γ(φ_i + ψ_j − M_ij)), the density of the plan P_ij = r_i c_j K_ij, and the potentials that were found.

    Args:
        dtype: of the exponentials; the rest is float64.
        tile: rows of a tile; None: by itself.
        empty: some of c are zero.
        symmetric: both clouds are one.
        tolerance: of linear solves, relative.
        found: numbers.
    """

    ground: Ground
    dtype: torch.dtype
    tile: int | None
    empty: bool
    symmetric: bool
    tolerance: float
    found: Potentials

    def features(self, x: Tensor, y: Tensor, gamma: Tensor, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the exponents are made of: so few numbers a point that the tiles need not see more."""
        return self.ground.rows(x, phi, gamma), self.ground.columns(y, psi, gamma), gamma

    def times(self, features: tuple[Tensor, ...], columns: Tensor) -> Tensor:
        """K · columns, (m, k) -> (n, k)"""

        def product(left: Tensor, right: Tensor, gamma: Tensor, columns: Tensor) -> tuple[Tensor]:
            return (self._exp(self.ground.exponents(left, right, gamma)) @ columns,)

        return self._sum(product, "rcsc", "r", columns.shape[0])(*features, columns.to(self.dtype))[0].double()

    def pull_times(self, features: tuple[Tensor, ...], columns: Tensor, cotangent: Tensor, wanted: tuple[int, ...]) -> tuple[Tensor, ...]:
        """The cotangents of the wanted features from that of `times`, (n, k), without `times` itself."""

        def pulled(left: Tensor, right: Tensor, gamma: Tensor, columns: Tensor, cotangent: Tensor) -> tuple[Tensor, ...]:
            weights = self._exp(self.ground.exponents(left, right, gamma)) * (cotangent @ columns.mT)
            return self.ground.pull_back(left, right, gamma, weights.double(), wanted)

        outputs = "".join("rcs"[k] for k in wanted)
        return self._sum(pulled, "rcscr", outputs, columns.shape[0])(*features, columns.to(self.dtype), cotangent.to(self.dtype))

    def transposed_times(self, features: tuple[Tensor, ...], rows: Tensor) -> Tensor:
        """Kᵀ · rows, (n, k) -> (m, k)"""

        def product(left: Tensor, right: Tensor, gamma: Tensor, rows: Tensor) -> tuple[Tensor]:
            return (self._exp(self.ground.exponents(left, right, gamma)).mT @ rows,)

        return self._sum(product, "rcsr", "c", features[1].shape[0])(*features, rows.to(self.dtype))[0].double()

    def costs(self, features: tuple[Tensor, ...], phi: Tensor, psi: Tensor, columns: Tensor) -> Tensor:
        """(K ∘ M) · columns, (m,) -> (n,), for the potentials that the features have."""

        def product(left: Tensor, right: Tensor, gamma: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
            exponents = self.ground.exponents(left, right, gamma)
            kernel = self._exp(exponents)
            return kernel @ columns, (kernel * exponents.to(self.dtype)) @ columns[:, 0]

        # M_ij = φ_i + ψ_j − exponent / γ; the largest entries of K have small exponents, which lose nothing in float32.
        sides = torch.stack([columns, columns * psi], 1).to(self.dtype)
        mass, inclined = self._sum(product, "rcsc", "rr", columns.shape[0])(*features, sides)
        return phi * mass[:, 0] + mass[:, 1] - inclined / features[2]

    def soft_rows(self, x: Tensor, y: Tensor, columns: Tensor, gamma: Tensor, psi: Tensor) -> Tensor:
        """φ of this ψ, (n,)."""
        start = self.found.rows
        return start - self.times(self.features(x, y, gamma, start, psi), columns.unsqueeze(1)).squeeze(1).log() / gamma

    def soft_columns(self, x: Tensor, y: Tensor, rows: Tensor, gamma: Tensor, phi: Tensor) -> Tensor:
        """ψ of this φ, (m,)."""
        start = self.found.columns
        return start - self.transposed_times(self.features(x, y, gamma, phi, start), rows.unsqueeze(1)).squeeze(1).log() / gamma

    def _exp(self, exponents: Tensor) -> Tensor:
        # K_ij is at most 1 / max(r_i, c_j). Where both have no weight, neither has the pair, and K must not overflow.
        rounded = exponents.to(self.dtype)
        # The derivative of clamp would cost more than the exponential, to no purpose.
        return (rounded + (rounded.clamp(LEAST, -LEAST) - rounded).detach()).exp()

    def _sum(self, function: Callable[..., tuple[Tensor, ...]], inputs: str, outputs: str, m: int) -> PairSum:
        return PairSum(function, inputs, outputs, block_of(m, self.tile), self.found.near)
