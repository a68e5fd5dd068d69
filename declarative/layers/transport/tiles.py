"""Two clouds of points and the passes over all of their pairs, a block of rows at a time: no n × m matrix is ever stored.

    exponents  γ(φ_i + ψ_j − M(x_i, y_j)),   M the squared Euclidean distance or a user's cost

They are computed in float64 whatever the dtype: at γM = 10⁵ float32 resolves them to 1 % only. The exponential, which is most of the
work, is taken in the dtype of the problem.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Cost = Callable[[Tensor, Tensor], Tensor]
Near = Sequence[Tensor] | None
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
        rows, columns: weights r (n,) and c (m,), of the same mass.
        gamma: ()
        tile: rows of a tile; None: by itself.
        near: for each block of rows the columns that count, increasing; None: all.
    """

    ground: Ground
    x: Tensor
    y: Tensor
    rows: Tensor
    columns: Tensor
    gamma: Tensor
    tile: int | None = None
    near: Near = None

    @property
    def transposed(self) -> Cloud:
        """The problem of Pᵀ."""
        return Cloud(self.ground.transposed, self.y, self.x, self.columns, self.rows, self.gamma, self.tile)

    def costs(self) -> Tensor:
        """M (n, m), stored: for few points."""
        one = torch.ones_like(self.gamma)
        left = self.ground.rows(self.x, torch.zeros_like(self.rows), one)
        return -self.ground.exponents(left, self.ground.columns(self.y, torch.zeros_like(self.columns), one), one)

    def tiles(self, phi: Tensor, psi: Tensor, dtype: torch.dtype, half: bool = False, stride: int = 1) -> Iterator[Tile]:
        """Block after block of rows.

        Args:
            half: of a symmetric problem only the columns from the block's first row on.
            stride: one block of so many.
        """
        n, m = self.x.shape[0], self.y.shape[0]
        left = self.ground.rows(self.x, phi, self.gamma)
        right = self.ground.columns(self.y, psi + self.columns.log() / self.gamma, self.gamma)
        block = min(block_of(m, self.tile), n)
        exact, rounded = left.new_empty(block * m), torch.empty(block * m, dtype=dtype, device=left.device)
        for k, start in enumerate(range(0, n, block)):
            if k % stride:
                continue
            rows = slice(start, min(start + block, n))
            first = start if half else 0
            if self.near is None:
                yield Tile(self, rows, left[rows], right[first:], slice(first, m), exact, rounded)
            else:
                columns = self.near[k]
                columns = columns[int(torch.searchsorted(columns, first)) :]
                yield Tile(self, rows, left[rows], right[columns], columns, exact, rounded)

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
            mass, shift = kernel @ ones[: kernel.shape[1]], phi[tile.rows]
            if not _is_safe(mass):
                # φ was too far off for these rows: the largest exponent is taken out first.
                kernel, top = tile.balanced_kernel()
                mass, shift = kernel @ ones[: kernel.shape[1]], shift - top / self.gamma
            found[tile.rows] = shift - mass.double().log() / self.gamma
            if sums:
                tile.add(total, kernel.mT @ (self.rows[tile.rows].to(dtype) / mass))
        return found, total.double()

    def half_sweep(self, psi: Tensor, dtype: torch.dtype) -> Tensor:
        """φ of `sweep` for a symmetric problem, from half of the pairs: P_ij stands for P_ji, too."""
        own, other = torch.zeros_like(psi), torch.zeros(psi.shape[0], dtype=dtype, device=psi.device)
        ones = torch.ones_like(other)
        for tile in self.tiles(psi, psi, dtype, half=True):
            kernel = tile.kernel()
            own[tile.rows] = (kernel @ ones[: kernel.shape[1]]).double()
            beyond = tile.count_before(tile.rows.stop)
            tile.add(other, kernel[:, beyond:].mT @ self.rows[tile.rows].to(dtype), beyond)
        mass = own + other.double() / self.columns
        return psi - mass.log() / self.gamma if _is_safe(mass) else self.sweep(psi, psi, dtype, sums=False)[0]

    def product(self, phi: Tensor, psi: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
        """Pᵀ diag(P1)⁻¹ P · columns, (m, k) -> (m, k), for φ as `sweep` returns it: P1 = r."""
        side = columns.to(dtype)
        image = torch.zeros_like(side)
        for tile in self.tiles(phi, psi, dtype):
            kernel = tile.kernel()
            tile.add(image, kernel.mT @ (self.rows[tile.rows].to(dtype).unsqueeze(1) * (kernel @ side[tile.columns])))
        return image.double()

    def survey(self, phi: Tensor, psi: Tensor, least: float, stride: int = 1) -> list[Tensor]:
        """For each block of rows the columns where P_ij / r_i c_j exceeds `least` somewhere."""
        floor = (least * self.columns).to(torch.float32)
        return [(tile.kernel().amax(0) > floor).nonzero().squeeze(1) for tile in replace(self, near=None).tiles(phi, psi, torch.float32, stride=stride)]


@dataclass(frozen=True, eq=False)
class Tile:
    """A block of exp(γ(φ_i + ψ_j − M_ij) + log c_j), computed when asked for, always into the same memory."""

    cloud: Cloud
    rows: slice
    left: Tensor
    right: Tensor
    columns: slice | Tensor
    exact: Tensor
    rounded: Tensor

    def kernel(self) -> Tensor:
        """(rows, columns)"""
        return self._rounded(self._exponents()).exp_()

    def balanced_kernel(self) -> tuple[Tensor, Tensor]:
        """The same with the largest exponent of each row, (rows,), taken out."""
        exponents = self._exponents()
        top = exponents.amax(1, keepdim=True)
        return self._rounded(exponents.sub_(top)).exp_(), top.squeeze(1)

    def count_before(self, column: int) -> int:
        """How many columns of the tile come before this one."""
        return column - self.columns.start if isinstance(self.columns, slice) else int(torch.searchsorted(self.columns, column))

    def add(self, total: Tensor, part: Tensor, first: int = 0) -> None:
        """Add a part for each column, from the tile's `first` on, to the total of all columns."""
        if isinstance(self.columns, slice):
            total[self.columns][first:] += part
        else:
            total.index_add_(0, self.columns[first:], part)

    def _exponents(self) -> Tensor:
        if isinstance(self.cloud.ground, SquaredEuclidean):
            return torch.mm(self.left, self.right.mT, out=self._memory(self.exact))
        return self.cloud.ground.exponents(self.left, self.right, self.cloud.gamma)

    def _rounded(self, exponents: Tensor) -> Tensor:
        return exponents if self.rounded.dtype == exponents.dtype else self._memory(self.rounded).copy_(exponents)

    def _memory(self, buffer: Tensor) -> Tensor:
        n, m = self.left.shape[0], self.right.shape[0]
        return buffer[: n * m].view(n, m)


def _is_safe(sums: Tensor) -> bool:
    return bool(((sums > 1 / _SAFE) & (sums < _SAFE)).all())
