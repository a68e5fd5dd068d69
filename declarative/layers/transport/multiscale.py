"""Potentials of two clouds: from coarse to fine.

Neighbouring points are merged, four into one, until few are left: that problem is solved as any small one. Each finer problem starts from
the potentials of the coarser one, extended to its points by one soft minimum. What is left to do is local, and Sinkhorn's iteration with
Anderson acceleration does it in a few passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from declarative.layers.transport.auto import Auto
from declarative.layers.transport.ground import SquaredEuclidean
from declarative.layers.transport.statement import Transport
from declarative.layers.transport.tiles import Cloud, Near

_MERGED = 4  # points of a level that become one of the next
_MEMORY = 20  # passes that the acceleration looks back on
_ROUNDED = 3e-5  # down to here float32 kernels will do
_COARSE = 1e-4  # marginal error of coarse problems
_TINY = 1e-20  # sums of exponentials down to here have lost nothing in float32
_MANY = 1 << 22  # pairs from which on it can pay to leave some out
_NOTHING = 1e-2  # times the tolerance: a weight P_ij / r_i c_j that does not count
_DRIFT = 4.0  # how far γψ may move until pairs are chosen anew
_SPARSE = 0.6  # of the pairs: if no more count, the others are left out
_LISTED = 1 << 24  # columns in the lists of all blocks, at most
_SAMPLE = 16  # one block of rows in so many is asked first


@dataclass(frozen=True, eq=False)
class Potentials:
    """What the iteration found.

    Args:
        rows, columns: φ (n,) and ψ (m,), float64.
        error: marginal error (‖P1 − r‖₁ + ‖Pᵀ1 − c‖₁) / Σr, of P one step before these potentials.
        passes: over all pairs.
        near: the pairs that count, as in `Cloud`.
    """

    rows: Tensor
    columns: Tensor
    error: float
    passes: int
    near: Near = None


@dataclass(frozen=True)
class Effort:
    """How exact, and for how long.

    Args:
        tolerance: of the marginal error.
        passes: at most, on each level.
        dtype: of the last passes.
        coarsest: merge points until each cloud has at most so many.
    """

    tolerance: float
    passes: int
    dtype: torch.dtype
    coarsest: int = 1500


def spatial_order(points: Tensor) -> Tensor:
    """A permutation (n,) that puts neighbours side by side: halve the cloud along its widest side, then each half, and so on."""
    n = points.shape[0]
    order = torch.arange(n, device=points.device)
    position = torch.arange(n, device=points.device)
    for level in range(max(0, n.bit_length() - 2)):
        parts = 2**level
        part = position * parts // n
        sorted_points = points[order]
        index = part.unsqueeze(1).expand_as(sorted_points)
        low = sorted_points.new_full((parts, points.shape[1]), math.inf).scatter_reduce(0, index, sorted_points, "amin")
        high = sorted_points.new_full((parts, points.shape[1]), -math.inf).scatter_reduce(0, index, sorted_points, "amax")
        side = (high - low).argmax(1)[part].unsqueeze(1)
        low, width = low[part].gather(1, side), (high - low)[part].gather(1, side)
        place = (sorted_points.gather(1, side) - low) / torch.where(width > 0, width, 1.0)
        order = order[(part + 0.999 * place.squeeze(1)).argsort()]
    return order


def coarsen(points: Tensor, weights: Tensor, average: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Points, weights, and for each old point its new one. Old points are in spatial order.

    Args:
        average: new points are centres of mass; else one of the old points each.
    """
    n = points.shape[0]
    count = -(-n // _MERGED)
    group = torch.arange(n, device=points.device) * count // n
    mass = weights.new_zeros(count).index_add_(0, group, weights)
    if average:
        return points.new_zeros(count, points.shape[1]).index_add_(0, group, points * (weights / mass[group]).unsqueeze(1)), mass, group
    middle = (torch.arange(count, device=points.device) * n + n // 2) // count
    return points[middle], mass, group


def solve(cloud: Cloud, effort: Effort, symmetric: bool) -> Potentials:
    """The potentials of the problem. Points are in spatial order.

    Args:
        symmetric: both clouds are the same and so are the costs of (i, j) and (j, i): then φ = ψ.
    """
    n, m = cloud.rows.numel(), cloud.columns.numel()
    if max(n, m) <= effort.coarsest:
        return _begin(cloud, effort, symmetric)
    average = isinstance(cloud.ground, SquaredEuclidean)
    everyone = (torch.arange(n, device=cloud.x.device), torch.arange(m, device=cloud.x.device))
    x, r, group_x = coarsen(cloud.x, cloud.rows, average) if n > effort.coarsest else (cloud.x, cloud.rows, everyone[0])
    y, c, group_y = coarsen(cloud.y, cloud.columns, average) if m > effort.coarsest else (cloud.y, cloud.columns, everyone[1])
    coarse = solve(replace(cloud, x=x, y=y, rows=r, columns=c), replace(effort, tolerance=max(effort.tolerance, _COARSE)), symmetric)
    # Each point's potential is the soft minimum over the other coarse cloud.
    phi, _ = replace(cloud, y=y, columns=c).sweep(coarse.rows[group_x], coarse.columns, torch.float32, sums=False)
    psi = phi if symmetric else replace(cloud, x=x, rows=r).transposed.sweep(coarse.columns[group_y], coarse.rows, torch.float32, sums=False)[0]
    return _iterate(cloud, phi, psi, effort, symmetric)


def _begin(cloud: Cloud, effort: Effort, symmetric: bool) -> Potentials:
    """The coarsest problem, whose costs fit into memory."""
    problem = Transport(cloud.costs().unsqueeze(0), cloud.rows.unsqueeze(0), cloud.columns.unsqueeze(0), cloud.gamma.reshape(1))
    found = Auto().solve(problem, None, tolerance=effort.tolerance, max_iterations=effort.passes)
    phi, psi = found.rows[0], found.columns[0]
    if symmetric:
        phi = psi = (phi + psi) / 2
    return _iterate(cloud, phi, psi, effort, symmetric, found.error[0].item())


def _iterate(cloud: Cloud, phi: Tensor, psi: Tensor, effort: Effort, symmetric: bool, error: float = math.inf) -> Potentials:
    """Sinkhorn's iteration, accelerated; for symmetric problems the average of old and new.

    Args:
        error: what is expected of the first pass.
    """
    near, mixing = _Near(cloud, effort), Anderson(cloud.columns)
    k, change = 0, torch.zeros_like(psi)
    for k in range(1, effort.passes + 1):
        dtype = effort.dtype if error <= _ROUNDED else torch.float32
        cloud = near.at(psi if symmetric else phi, psi)
        if symmetric:
            change = (cloud.half_sweep(psi, dtype) - psi) / 2
            off = torch.expm1(-2 * cloud.gamma * change).abs() * cloud.rows  # |P1 − r| for φ = ψ
            error = 2 * float(off.sum() / cloud.rows.sum())
        else:
            phi, total = cloud.sweep(phi, psi, dtype)
            change = _column_change(cloud, phi, psi, total, dtype)
            error = float((total - cloud.columns).abs().sum() / cloud.columns.sum())
        if not math.isfinite(error):
            raise ValueError("the costs of some pairs are not finite numbers")
        if error <= effort.tolerance:
            break
        if k < effort.passes:
            psi = mixing.next(psi, change, error)
    psi = psi + change
    return Potentials(psi.clone() if symmetric else phi, psi, error, k, cloud.near)


def _column_change(cloud: Cloud, phi: Tensor, psi: Tensor, total: Tensor, dtype: torch.dtype) -> Tensor:
    """From ψ to the soft minimum of φ."""
    if bool(((total > _TINY * cloud.columns) & (total * _TINY < cloud.columns)).all()):
        return (cloud.columns / total).log() / cloud.gamma
    return cloud.transposed.sweep(psi, phi, dtype, sums=False)[0] - psi


class _Near:
    """Leaves out pairs that have no weight to speak of, where that leaves out most of them."""

    def __init__(self, cloud: Cloud, effort: Effort) -> None:
        self._cloud = cloud
        self._first, self._at = True, None
        self._least = _NOTHING * effort.tolerance * math.exp(-_DRIFT)
        self._pays = cloud.rows.numel() * cloud.columns.numel() >= _MANY

    def at(self, phi: Tensor, psi: Tensor) -> Cloud:
        """The problem with the pairs that count near these potentials."""
        if self._first or not self._pays:
            # The first pass moves the potentials too far.
            self._first = False
            return self._cloud
        if self._at is not None:
            # φ moves no more than ψ does.
            moved = self._cloud.gamma * (psi - self._at)
            if float(moved.max() - moved.min()) <= _DRIFT:
                return self._cloud
        sample = self._cloud.survey(phi, psi, self._least, _SAMPLE)
        count = sum(len(columns) for columns in sample)
        self._pays = count <= _SPARSE * len(sample) * self._cloud.columns.numel() and count * _SAMPLE <= _LISTED
        self._at = psi
        self._cloud = replace(self._cloud, near=self._cloud.survey(phi, psi, self._least) if self._pays else None)
        return self._cloud


class Anderson:
    """Anderson acceleration of ψ ← ψ + change(ψ), in the norm of the weights; plain steps after one that went wrong."""

    def __init__(self, weights: Tensor) -> None:
        self._scale = weights.sqrt()
        self._points: list[Tensor] = []
        self._changes: list[Tensor] = []
        self._best = math.inf

    def next(self, point: Tensor, change: Tensor, error: float) -> Tensor:
        """Where to go on from a point with this change and this error."""
        if error > 2 * self._best:
            self._points, self._changes = [], []
        self._best = min(self._best, error)
        self._points, self._changes = [*self._points[1 - _MEMORY :], point], [*self._changes[1 - _MEMORY :], change]
        if len(self._points) == 1:
            return point + change
        points, changes = torch.stack(self._points, 1), torch.stack(self._changes, 1)
        moved, turned = points[:, 1:] - points[:, :-1], changes[:, 1:] - changes[:, :-1]
        seen = turned * self._scale.unsqueeze(1)
        size = torch.linalg.vector_norm(seen, dim=0)
        size = torch.where(size > 0, size, 1.0)
        # Directions that the residual hardly knows are left out.
        u, s, vh = torch.linalg.svd(seen / size, full_matrices=False)
        inverse = torch.where(s > 1e-10 * s[0], 1 / s, 0.0)
        share = (vh.mT @ (inverse * (u.mT @ (change * self._scale)))) / size
        return point + change - (moved + turned) @ share
