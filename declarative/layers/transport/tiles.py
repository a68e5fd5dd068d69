"""Two clouds of points and the passes over all of their pairs, a block of rows at a time: no n × m matrix is ever stored.

Exponents are float64 (ground.py). The exponential, which is most of the work, is taken in the dtype of the problem, or for a first
approximation in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from declarative.layers.transport.ground import Ground, SquaredEuclidean

Near = Sequence[Tensor] | None
_NUMBERS = 1 << 19  # of a tile: large enough that calls cost little, small enough for the caches
LEAST = -80.0  # exponents below count as this: exp takes 30 times as long where it underflows
_SAFE = 1e20  # sums of exponentials in [1/_SAFE, _SAFE] have lost nothing in float32


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

    def costs(self, rows: slice = slice(None), columns: slice = slice(None)) -> Tensor:
        """M (n, m), or a part of it, stored."""
        x, y, one = self.x[rows], self.y[columns], torch.ones_like(self.gamma)
        return -self.ground.exponents(self.ground.rows(x, torch.zeros_like(x[:, 0]), one), self.ground.columns(y, torch.zeros_like(y[:, 0]), one), one)

    def spread(self) -> Tensor:
        """The range of M between one point of each cloud and all of the other: at least a quarter of the whole for squared distances."""
        seen = torch.cat([self.costs(slice(1)).flatten(), self.costs(slice(None), slice(1)).flatten()])
        return seen.max() - seen.min()

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
        """For each block of rows the columns where Σ P_ij / r_i c_j over these rows exceeds `least`."""
        dtype = torch.float32
        floor = (least * self.columns).to(dtype)
        tiles = replace(self, near=None).tiles(phi, psi, dtype, stride=stride)
        return [(tile.kernel().mT @ torch.ones_like(floor[: tile.left.shape[0]]) > floor).nonzero().squeeze(1) for tile in tiles]


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
        return self._exp(self._exponents())

    def balanced_kernel(self) -> tuple[Tensor, Tensor]:
        """The same with the largest exponent of each row, (rows,), taken out."""
        exponents = self._exponents()
        top = exponents.amax(1, keepdim=True)
        return self._exp(exponents.sub_(top)), top.squeeze(1)

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

    def _exp(self, exponents: Tensor) -> Tensor:
        rounded = exponents if self.rounded.dtype == exponents.dtype else self._memory(self.rounded).copy_(exponents)
        return rounded.clamp_(min=LEAST).exp_()

    def _memory(self, buffer: Tensor) -> Tensor:
        n, m = self.left.shape[0], self.right.shape[0]
        return buffer[: n * m].view(n, m)


def _is_safe(sums: Tensor) -> bool:
    return bool(((sums > 1 / _SAFE) & (sums < _SAFE)).all())
