"""Tags: what a node's author knows about H, and what then has to be formed (docs/architecture.md).

A tag names a few directions; the engine returns H's products with them (one sweep, as many as there are directions), and
the tag makes an operator of these. A diagonal takes one product, a tridiagonal three, blocks of size s take s: columns
that share no row are probed together. (Curtis, Powell & Reid, 1974; Coleman & Moré, 1984.)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from declarative.structure.banded import BandedOperator
from declarative.structure.base import Operator
from declarative.structure.blocks import BlockDiagonalOperator
from declarative.structure.elementary import DenseOperator, DiagonalOperator
from declarative.structure.low_rank import LowRankUpdateOperator


class Tag(ABC):
    """What is known about a symmetric matrix of size m."""

    @abstractmethod
    def products(self, m: int) -> int:
        """How many products with H it takes."""

    @abstractmethod
    def directions(self, m: int, like: Tensor) -> Tensor:
        """(c, m): the vectors to multiply H with. Raises a ValueError if the tag does not fit the size."""

    @abstractmethod
    def operator(self, products: Tensor) -> Operator:
        """The operator that has these products (b, c, m)."""

    @abstractmethod
    def solve_flops(self, m: int) -> float:
        """Roughly, the arithmetic of one solve."""


def _colours(m: int, count: int, like: Tensor) -> Tensor:
    """(count, m): direction c is the sum of the unit vectors whose index is c modulo count."""
    index = torch.arange(m, device=like.device)
    return (index % count == torch.arange(count, device=like.device).unsqueeze(1)).to(like.dtype)


def _positive(tag: object, name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{type(tag).__name__}({name}=...) must be a positive integer, got {value!r}")


@dataclass(frozen=True)
class Dense(Tag):
    """Nothing is known: m products."""

    def products(self, m: int) -> int:
        return m

    def directions(self, m: int, like: Tensor) -> Tensor:
        return torch.eye(m, dtype=like.dtype, device=like.device)

    def operator(self, products: Tensor) -> Operator:
        return DenseOperator(products)

    def solve_flops(self, m: int) -> float:
        return 2 / 3 * m**3


@dataclass(frozen=True)
class Diagonal(Tag):
    """H is diagonal: the objective (with the constraints' curvature) is separable in y. One product."""

    def products(self, m: int) -> int:  # noqa: ARG002
        return 1

    def directions(self, m: int, like: Tensor) -> Tensor:
        return torch.ones(1, m, dtype=like.dtype, device=like.device)

    def operator(self, products: Tensor) -> Operator:
        return DiagonalOperator(products[:, 0])

    def solve_flops(self, m: int) -> float:
        return m


@dataclass(frozen=True)
class ScaledIdentity(Tag):
    """H is a multiple of the identity, as in a projection. One product."""

    def products(self, m: int) -> int:  # noqa: ARG002
        return 1

    def directions(self, m: int, like: Tensor) -> Tensor:
        return torch.ones(1, m, dtype=like.dtype, device=like.device)

    def operator(self, products: Tensor) -> Operator:
        # A column, expanded: m numbers are never written.
        return DiagonalOperator(products[:, 0, :1].expand(-1, products.shape[2]))

    def solve_flops(self, m: int) -> float:
        return m


@dataclass(frozen=True)
class Banded(Tag):
    """H_ij = 0 where |i − j| > bandwidth, as in a chain or a time series: 2·bandwidth + 1 products, linear cost.

    Args:
        bandwidth: 1 for a tridiagonal H.
    """

    bandwidth: int = 1

    def __post_init__(self) -> None:
        _positive(self, "bandwidth", self.bandwidth)

    def products(self, m: int) -> int:
        return min(m, 2 * self.bandwidth + 1)

    def directions(self, m: int, like: Tensor) -> Tensor:
        return _colours(m, self.products(m), like)

    def operator(self, products: Tensor) -> Operator:
        _, count, m = products.shape
        width = min(self.bandwidth, m - 1)
        # Entry (i, j) is in product j mod count, at i.
        rows = torch.arange(m, device=products.device)
        offsets = torch.arange(-width, width + 1, device=products.device).unsqueeze(1)
        columns = rows + offsets
        inside = (columns >= 0) & (columns < m)
        bands = products[:, columns % count, rows.expand_as(columns)]
        return BandedOperator(torch.where(inside, bands, 0.0), width, width)

    def solve_flops(self, m: int) -> float:
        return m * (2 * self.bandwidth + 1) ** 2


@dataclass(frozen=True)
class BlockDiagonal(Tag):
    """H consists of square blocks along the diagonal: y is made of groups that the objective does not couple.

    Args:
        size: of every block; it must divide m. As many products.
    """

    size: int

    def __post_init__(self) -> None:
        _positive(self, "size", self.size)

    def products(self, m: int) -> int:  # noqa: ARG002
        return self.size

    def directions(self, m: int, like: Tensor) -> Tensor:
        if m % self.size:
            raise ValueError(f"BlockDiagonal(size={self.size}) does not fit y of {m} numbers: the size of a block must divide it")
        return _colours(m, self.size, like)

    def operator(self, products: Tensor) -> Operator:
        # (b, column in the block, block, row in the block)
        return BlockDiagonalOperator(products.unflatten(2, (-1, self.size)).permute(0, 2, 3, 1))

    def solve_flops(self, m: int) -> float:
        return m * self.size**2


@dataclass(frozen=True)
class LowRankUpdate(Tag):
    """H = D + L with D diagonal and L of rank at most `rank`: a separable objective plus a few coupled sums. 3·rank + 1 products.

    The indices are split into three groups. A random direction ω supported on one group gives Lω exactly in the rows
    outside that group, where Dω vanishes; from three groups with `rank` directions each, L follows everywhere. H·1 then
    gives D. L must have its full rank on each group: a factor with one entry only, or an L that is itself block diagonal with small blocks,
    may not; `verify` finds that out.

    Args:
        rank: of L, at most m // 3.
    """

    rank: int
    _seed: int = field(default=20, repr=False)

    def __post_init__(self) -> None:
        _positive(self, "rank", self.rank)

    def products(self, m: int) -> int:  # noqa: ARG002
        return 3 * self.rank + 1

    def directions(self, m: int, like: Tensor) -> Tensor:
        if 3 * self.rank > m:
            raise ValueError(f"LowRankUpdate(rank={self.rank}) does not fit y of {m} numbers: the rank must be at most {m // 3}; leave H untagged")
        probes = self._probes(m, like)
        return torch.cat([*probes, torch.ones(1, m, dtype=like.dtype, device=like.device)])

    def _probes(self, m: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Three times (rank, m), of disjoint supports; the same numbers in every call."""
        generator = np.random.default_rng(self._seed)  # numpy's: torch's own is forbidden under vmap
        groups = generator.permutation(m) % 3
        numbers = generator.standard_normal((self.rank, m))
        first, second, third = (torch.as_tensor(numbers * (groups == g), dtype=like.dtype, device=like.device) for g in range(3))
        return first, second, third

    def operator(self, products: Tensor) -> Operator:
        m, k = products.shape[2], self.rank
        probes = self._probes(m, products)
        images = [products[:, g * k : (g + 1) * k].mT for g in range(3)]  # H Ω_g, (b, m, k)
        first = self._completed(images, probes, (0, 1, 2))
        # Nyström: L = F (ΩᵀF)⁺ Fᵀ for F = LΩ. Symmetric, so that its pseudo-inverse has a derivative where ranks are constant.
        gram = probes[0] @ first
        core = torch.linalg.pinv(0.5 * (gram + gram.mT), rtol=self._cutoff(products), hermitian=True)
        low = LowRankUpdateOperator(DiagonalOperator(torch.zeros_like(products[:, 0])), first, core)
        diagonal = products[:, 3 * k] - low.matmul_columns(torch.ones_like(products[:, 0]).unsqueeze(-1)).squeeze(-1)
        return LowRankUpdateOperator(DiagonalOperator(diagonal), first, core)

    @staticmethod
    def _cutoff(products: Tensor) -> float:
        return torch.finfo(products.dtype).eps ** 0.75

    def _completed(self, images: list[Tensor], probes: tuple[Tensor, ...], groups: tuple[int, int, int]) -> Tensor:
        """LΩ_a in all rows: known outside group a, and inside it through Ω_b: LΩ_a = LΩ_b (Ω_cᵀLΩ_b)⁺ (Ω_cᵀLΩ_a)."""
        a, b, c = groups
        inside = (probes[a] != 0).any(0).unsqueeze(-1)
        through = torch.linalg.pinv(probes[c] @ images[b], rtol=self._cutoff(images[a])) @ (probes[c] @ images[a])
        return torch.where(inside, images[b] @ through, images[a])

    def solve_flops(self, m: int) -> float:
        return 2 * m * self.rank**2
