"""Where the minima of a penalty that is not convex are looked for: several starts at once, as columns of one matrix.

With the points centred, s = ‖x‖² − 2xᵀu + ‖u‖² and the reweighted means of all starts are two matrix products, so that more starts
cost little more than one. The starts are the mean, the spatial median (some steps of Weiszfeld's), graduated non-convexity (the penalty
stretched by μ until every point counts, then less and less), and points of the data. Each takes a few steps; the lowest go on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative.layers.pooling.cloud import Cloud, positive

_MEDIAN, _GRADUATED = 1, 2  # the columns; the mean is the first
_WEISZFELD = 4  # steps of the second start towards the spatial median
_SETTLE = 3  # steps with μ = 1, at least
_STRETCHES = 32  # steps with μ > 1, at most
_CANDIDATES = 64
_NEAR = 1e-2  # values that differ by less, relatively, are told apart by descents
_APART = 0.1  # places that differ by more, in units of the spread of the points that count, are two


def candidates(cloud: Cloud, centre: Tensor, restarts: int, init: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Good starts (k, C) and the sample (k,) that each is for, in order; None: one for each."""
    x = cloud.x - centre.unsqueeze(2)
    squares = (x * x).sum(1)
    columns = torch.zeros(x.shape[0], 3, x.shape[1], dtype=x.dtype, device=x.device)
    if init is not None:
        columns = torch.cat([columns, (init - centre).unsqueeze(1)], 1)
    if restarts:
        columns = torch.cat([columns, _data_points(cloud, x, squares, restarts)], 1)
    stretch = _stretches(cloud, squares)
    with_ones = torch.cat([x, torch.ones_like(squares).unsqueeze(1)], 1).mT
    for step in range(int(stretch.max()) + _SETTLE):
        moved = _reweighted(cloud, _distances(x, squares, columns), columns, with_ones, stretch, step)
        # A sample that has had its steps stays, whatever others in the batch still do.
        columns = moved if step < _SETTLE else torch.where((step < stretch + _SETTLE)[:, None, None], moved, columns)
    s = _distances(x, squares, columns)
    kappa1 = _kappa1(cloud, s)
    spread = ((kappa1 * s).sum(2) / positive(kappa1.sum(2))).sqrt()
    return _select(columns, _values(cloud, s), spread, centre)


def _distances(x: Tensor, squares: Tensor, columns: Tensor) -> Tensor:
    """(b, S, N)"""
    return torch.baddbmm(squares.unsqueeze(1), columns, x, alpha=-2).add_(columns.square().sum(2, keepdim=True)).clamp_min_(0.0)


def _values(cloud: Cloud, s: Tensor) -> Tensor:
    """(b, S) the objective, from s (b, S, N)."""
    return cloud.weighted(cloud.penalty.phi(s.flatten(1), *cloud.values).reshape(s.shape)).sum(2)


def _kappa1(cloud: Cloud, s: Tensor) -> Tensor:
    """wκ₁ of s (b, S, N)."""
    return cloud.weighted(cloud.penalty.kappa1(s.flatten(1), *cloud.values).reshape(s.shape))


def _stretches(cloud: Cloud, squares: Tensor) -> Tensor:
    """(b,) log₄ μ²: the first power of 4 for which the farthest point has a fifth of the weight of a near one."""
    counted = squares if cloud.weights is None else torch.where(cloud.weights > 0, squares, 0.0)
    powers = 4.0 ** torch.arange(_STRETCHES, dtype=squares.dtype, device=squares.device)
    ladder = torch.nn.functional.pad(counted.amax(1, keepdim=True) / powers, (1, 0))
    kappa1 = cloud.penalty.kappa1(ladder, *cloud.values)
    enough = kappa1[:, 1:] >= 0.2 * kappa1[:, :1]
    enough[:, -1] = True
    return enough.to(squares.dtype).argmax(1)


def _reweighted(cloud: Cloud, s: Tensor, columns: Tensor, with_ones: Tensor, stretch: Tensor, step: int) -> Tensor:
    """The reweighted means (b, S, C)."""
    inverse = None
    if step < _WEISZFELD:
        median = s[:, _MEDIAN]
        inverse = (median + torch.finfo(s.dtype).eps * median.amax(1, keepdim=True)).clamp_min(torch.finfo(s.dtype).tiny).rsqrt()
    s[:, _GRADUATED] *= torch.exp2(-2.0 * (stretch - step).clamp_min(0)).to(s.dtype).unsqueeze(1)
    kappa1 = _kappa1(cloud, s)
    if inverse is not None:
        kappa1[:, _MEDIAN] = cloud.weighted(inverse)
    sums = kappa1 @ with_ones
    mass = sums[:, :, -1:]
    means = sums[:, :, :-1] / positive(mass)
    return means if bool((mass > 0).all()) else torch.where(mass > 0, means, columns)


def _data_points(cloud: Cloud, x: Tensor, squares: Tensor, restarts: int) -> Tensor:
    """(b, k, C): of some points, evenly chosen, those with the lowest objective."""
    points = x.shape[2]
    count = min(points, max(_CANDIDATES, 4 * restarts))
    chosen = torch.linspace(0, points - 1, count, device=x.device).round().long()
    some = x[:, :, chosen].mT
    values = _values(cloud, _distances(x, squares, some))
    if cloud.weights is not None:  # what is masked is no start
        values = torch.where(cloud.weights[:, chosen] > 0, values, torch.inf)
    best = values.topk(min(restarts, count), dim=1, largest=False).indices
    return some.gather(1, best.unsqueeze(2).expand(-1, -1, x.shape[1]))


def _select(columns: Tensor, values: Tensor, spread: Tensor, centre: Tensor) -> tuple[Tensor, Tensor | None]:
    """The best of each sample, and those that are nearly as good and elsewhere."""
    lowest, place = values.min(1, keepdim=True)
    best = columns.gather(1, place.unsqueeze(2).expand(-1, 1, columns.shape[2]))
    elsewhere = torch.linalg.vector_norm(columns - best, dim=2) > _APART * spread.gather(1, place)
    rivals = (values <= lowest + _NEAR * lowest.abs()) & elsewhere
    if not bool(rivals.any()):
        return best.squeeze(1) + centre, None
    order = values.argsort(dim=1, stable=True)
    columns, spread, kept = (t.gather(1, o) for t, o in ((columns, order.unsqueeze(2).expand_as(columns)), (spread, order), (rivals, order)))
    kept[:, 0] = True
    apart = torch.cdist(columns, columns) > _APART * spread.unsqueeze(2)
    for k in range(1, columns.shape[1]):  # of several at one place, the best
        kept[:, k] &= (apart[:, k, :k] | ~kept[:, :k]).all(1)
    sample, place = kept.nonzero(as_tuple=True)
    return columns[sample, place] + centre[sample], sample
