"""Two clouds of points and the passes over all of their pairs, a block of rows at a time: no n × m matrix is ever stored.

    exponents  γ(φ_i + ψ_j − M(x_i, y_j)),   M the squared Euclidean distance or a user's cost

They are computed in float64 whatever the dtype: at γM = 10⁵ float32 resolves them to 1 % only. The exponential, which is most of the
work, is taken in the dtype of the problem.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Cost = Callable[[Tensor, Tensor], Tensor]
_NUMBERS = 1 << 19  # of a tile: large enough that calls cost little, small enough for the caches
_SAFE = 1e20  # sums of exponentials in [1/_SAFE, _SAFE] have lost nothing in float32


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


def block_of(m: int, tile: int | None) -> int:
    """How many rows a tile has, beside m columns."""
    return tile or max(1, _NUMBERS // max(m, 1))


@dataclass(frozen=True, eq=False)
class Cloud:
    """One problem in numbers: everything float64 and without a graph.

    Args:
        x, y: (n, d) and (m, d)
        rows, columns: weights r (n,) and c (m,), positive and of the same mass.
        gamma: ()
        tile: rows of a tile; None: by itself.
    """

    ground: Ground
    x: Tensor
    y: Tensor
    rows: Tensor
    columns: Tensor
    gamma: Tensor
    tile: int | None = None

    @property
    def transposed(self) -> Cloud:
        """The problem of Pᵀ."""
        return Cloud(self.ground.transposed, self.y, self.x, self.columns, self.rows, self.gamma, self.tile)

    def costs(self) -> Tensor:
        """M (n, m), stored: for few points."""
        one = torch.ones_like(self.gamma)
        left = self.ground.rows(self.x, torch.zeros_like(self.rows), one)
        return -self.ground.exponents(left, self.ground.columns(self.y, torch.zeros_like(self.columns), one), one)

    def tiles(self, phi: Tensor, psi: Tensor, dtype: torch.dtype) -> Iterator[Tile]:
        """All rows, block after block."""
        n, m = self.x.shape[0], self.y.shape[0]
        left = self.ground.rows(self.x, phi, self.gamma)
        right = self.ground.columns(self.y, psi + self.columns.log() / self.gamma, self.gamma)
        block = min(block_of(m, self.tile), n)
        exact, rounded = left.new_empty(block, m), torch.empty(block, m, dtype=dtype, device=left.device)
        for start in range(0, n, block):
            rows = slice(start, min(start + block, n))
            yield Tile(self, rows, left[rows], right, exact, rounded)

    def sweep(self, phi: Tensor, psi: Tensor, dtype: torch.dtype, sums: bool = True) -> tuple[Tensor, Tensor]:
        """φ for which P1 = r beside this ψ, and Pᵀ1 with it, in one pass.

        Args:
            phi: where φ is expected: the closer, the less work. Nothing else depends on it.
            sums: False: without Pᵀ1; zeros are returned.
        """
        found, total = torch.empty_like(phi), torch.zeros(self.y.shape[0], dtype=dtype, device=phi.device)
        ones = torch.ones_like(total)
        for tile in self.tiles(phi, psi, dtype):
            kernel = tile.kernel()
            mass, shift = kernel @ ones, phi[tile.rows]
            if not bool(((mass > 1 / _SAFE) & (mass < _SAFE)).all()):
                # φ was too far off for these rows: the largest exponent is taken out first.
                kernel, top = tile.balanced_kernel()
                mass, shift = kernel @ ones, shift - top / self.gamma
            found[tile.rows] = shift - mass.double().log() / self.gamma
            if sums:
                total.addmv_(kernel.mT, self.rows[tile.rows].to(dtype) / mass)
        return found, total.double()

    def product(self, phi: Tensor, psi: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
        """Pᵀ diag(P1)⁻¹ P · columns, (m, k) -> (m, k), for φ as `sweep` returns it: P1 = r."""
        side = columns.to(dtype)
        image = torch.zeros_like(side)
        for tile in self.tiles(phi, psi, dtype):
            kernel = tile.kernel()
            image.addmm_(kernel.mT, self.rows[tile.rows].to(dtype).unsqueeze(1) * (kernel @ side))
        return image.double()


@dataclass(frozen=True, eq=False)
class Tile:
    """Rows of exp(γ(φ_i + ψ_j − M_ij) + log c_j), computed when asked for, always into the same memory."""

    cloud: Cloud
    rows: slice
    left: Tensor
    right: Tensor
    exact: Tensor
    rounded: Tensor

    def kernel(self) -> Tensor:
        """(rows, m)"""
        return self._rounded(self._exponents()).exp_()

    def balanced_kernel(self) -> tuple[Tensor, Tensor]:
        """The same with the largest exponent of each row, (rows,), taken out."""
        exponents = self._exponents()
        top = exponents.amax(1, keepdim=True)
        return self._rounded(exponents.sub_(top)).exp_(), top.squeeze(1)

    def _exponents(self) -> Tensor:
        if isinstance(self.cloud.ground, SquaredEuclidean):
            return torch.mm(self.left, self.right.mT, out=self.exact[: self.left.shape[0]])
        return self.cloud.ground.exponents(self.left, self.right, self.cloud.gamma)

    def _rounded(self, exponents: Tensor) -> Tensor:
        return exponents if self.rounded.dtype == exponents.dtype else self.rounded[: exponents.shape[0]].copy_(exponents)
