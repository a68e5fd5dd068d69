"""H + Gᵀ diag(w) G by the structure of H: what an interior point step factorises, at the cost of the structure."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from declarative.structure.banded import BandedOperator
from declarative.structure.base import Operator
from declarative.structure.blocks import BlockDiagonalOperator
from declarative.structure.elementary import DiagonalOperator
from declarative.structure.low_rank import LowRankUpdateOperator
from declarative.typing import Jacobians, Rows

# A band wider than this part of the matrix is no band.
_NARROW = 8


def condensed(hessian: Operator, rows: Jacobians, weights: Rows) -> Operator | None:
    """The sum as an operator, where each row of G touches few neighbouring numbers only (a bound touches one); None elsewhere."""
    reach = _reach(rows)
    if reach == 0:
        return _with_diagonal(hessian, (weights.unsqueeze(-1) * rows * rows).sum(1))
    if not isinstance(hessian, DiagonalOperator | BandedOperator):
        return None
    m = rows.shape[2]
    width = max(reach, hessian.lower if isinstance(hessian, BandedOperator) else 0)
    if (2 * width + 1) * _NARROW > m:
        return None
    weighted = weights.unsqueeze(-1) * rows
    diagonals = [_band(hessian, d) + (_overlap(weighted, rows, d) if d <= reach else 0.0) for d in range(width + 1)]
    # The diagonal at −d is that at d, stored by its row: d places further down.
    above = [torch.nn.functional.pad(part, (0, d)) for d, part in enumerate(diagonals)]
    below = [torch.nn.functional.pad(part, (d, 0)) for d, part in enumerate(diagonals)]
    return BandedOperator(torch.stack([*reversed(below[1:]), *above], 1), width, width)


def _reach(rows: Jacobians) -> int:
    """The largest distance of two numbers that one row touches, in any sample."""
    touched = (rows != 0).any(0)
    if not touched.numel():
        return 0
    places = torch.arange(touched.shape[1], device=touched.device)
    last = torch.where(touched, places, -1).amax(1)
    first = torch.where(touched, places, touched.shape[1]).amin(1)
    return int((last - first).clamp_min(0).max())


def _overlap(weighted: Tensor, rows: Tensor, distance: int) -> Tensor:
    """(b, m − d): the entries of Gᵀ diag(w) G that stand d to the right of the diagonal."""
    m = rows.shape[2]
    return (weighted[:, :, : m - distance] * rows[:, :, distance:]).sum(1)


def _band(hessian: Operator, distance: int) -> Tensor:
    """(b, m − d): those of H."""
    if isinstance(hessian, BandedOperator):
        if distance > hessian.upper:
            return hessian.bands[:, 0, distance:] * 0
        return hessian.bands[:, hessian.lower + distance, : hessian.bands.shape[2] - distance]
    values = hessian.diagonal()
    return values if distance == 0 else values[:, distance:] * 0


def _with_diagonal(hessian: Operator, extra: Tensor) -> Operator | None:
    if isinstance(hessian, DiagonalOperator):
        return DiagonalOperator(hessian.diagonal() + extra)
    if isinstance(hessian, BandedOperator):
        main = torch.zeros_like(hessian.bands)
        main[:, hessian.lower] = 1
        return replace(hessian, bands=hessian.bands + main * extra.unsqueeze(1))
    if isinstance(hessian, BlockDiagonalOperator):
        _, count, size, _ = hessian.blocks.shape
        return replace(hessian, blocks=hessian.blocks + torch.diag_embed(extra.unflatten(1, (count, size))))
    if isinstance(hessian, LowRankUpdateOperator):
        base = _with_diagonal(hessian.base, extra)
        return None if base is None else replace(hessian, base=base)
    return None
