"""The forward pass: starts, descents, the best kept."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from declarative.layers.pooling.cloud import Cloud
from declarative.layers.pooling.descent import Found, descend
from declarative.layers.pooling.penalties import TruncatedQuadratic
from declarative.layers.pooling.starts import candidates
from declarative.layers.pooling.windows import best_windows
from declarative.solution import Status


def find(cloud: Cloud, restarts: int, init: Tensor | None, tolerance: float, max_iterations: int) -> tuple[Tensor, ...]:
    """u (b, C), stationarity, iterations, whether another point is as good, and status (b,)."""
    centre = cloud.centre()
    finite = torch.isfinite(centre).all(1)
    if not bool(finite.all()):
        cloud = replace(cloud, x=torch.where(finite[:, None, None], cloud.x, 0.0))
        centre = torch.where(finite.unsqueeze(1), centre, torch.nan)
    if init is not None:  # a start is no more than that
        init = torch.where(torch.isfinite(init).all(1, keepdim=True), init, centre.nan_to_num())
    if cloud.penalty.is_quadratic(*cloud.values):
        return _mean(cloud, centre, finite)
    found, tied = _best(cloud, torch.where(finite.unsqueeze(1), centre, 0.0), restarts, init, tolerance, max_iterations)
    if bool((coarse := found.converged & (found.stationarity > tolerance)).any()):
        _finish(cloud, found, coarse & (found.mass > 0))
    status = torch.where(found.converged, int(Status.CONVERGED), int(Status.MAX_ITERATIONS))
    status = torch.where(found.mass > 0, status, int(Status.NO_INLIERS))
    status = torch.where(torch.isnan(found.mass), int(Status.NON_FINITE), status)
    if not cloud.penalty.concave:
        # A penalty of one's own may fall somewhere, and push: what is left then is no minimum, and most often far away.
        status = torch.where((found.mass < 0) & ~(found.stationarity <= tolerance), int(Status.UNBOUNDED), status)
    if bool(finite.all()):
        return found.u, found.stationarity, found.iterations, tied, status
    status = torch.where(finite, status, int(Status.NON_FINITE))
    lost = torch.where(finite, 0.0, torch.nan).to(found.u.dtype)
    return found.u + lost.unsqueeze(1), found.stationarity + lost, found.iterations, tied & finite, status


def _finish(cloud: Cloud, found: Found, coarse: Tensor) -> None:
    """One more reweighted mean where the gradient's terms are small beside what rounding of u makes of them.

    Where one point alone pulls, u becomes that point. What still is rounding counts as zero.
    """
    at = cloud.at(torch.where(coarse.unsqueeze(1), found.u + cloud.at(found.u).step, found.u))
    rounding = 4 * torch.finfo(at.u.dtype).eps * torch.linalg.vector_norm(at.u, dim=1)
    exact = torch.linalg.vector_norm(at.step, dim=1) <= rounding
    found.take(replace(found, u=at.u, stationarity=torch.where(exact, 0.0, at.stationarity()), mass=at.mass), coarse)


def _mean(cloud: Cloud, centre: Tensor, finite: Tensor) -> tuple[Tensor, ...]:
    none = torch.zeros_like(finite)
    status = torch.where(finite, int(Status.CONVERGED), int(Status.NON_FINITE))
    if cloud.weights is not None:
        status = torch.where(finite & (cloud.weights.sum(1) == 0), int(Status.NO_INLIERS), status)
    return centre, centre.new_zeros(centre.shape[0]), none.long(), none, status


def _best(cloud: Cloud, centre: Tensor, restarts: int, init: Tensor | None, tolerance: float, max_iterations: int) -> tuple[Found, Tensor]:
    batch, channels, _ = cloud.x.shape
    untied = torch.zeros(batch, dtype=torch.bool, device=cloud.x.device)
    if not batch or cloud.penalty.is_convex(*cloud.values):
        return descend(cloud, centre if init is None else init, tolerance, max_iterations), untied
    if channels == 1 and type(cloud.penalty) is TruncatedQuadratic:
        best, other = best_windows(cloud, cloud.values[0])
        found = descend(cloud, best, tolerance, max_iterations)
        return found, (best != other).squeeze(1) & (found.mass > 0)
    starts, sample = candidates(cloud, centre, restarts, init)
    if sample is None:
        return descend(cloud, starts, tolerance, max_iterations), untied
    rivals = cloud.rows(sample)
    return _chosen(rivals, descend(rivals, starts, tolerance, max_iterations), sample, batch)


def _chosen(rivals: Cloud, found: Found, sample: Tensor, batch: int) -> tuple[Found, Tensor]:
    """Of each sample's descents the lowest, and whether another one ended as low elsewhere."""
    value, points = rivals.at(found.u).value, rivals.x.shape[2]
    by_value = value.argsort(stable=True)
    order = by_value[sample[by_value].argsort(stable=True)]
    counts = torch.bincount(sample, minlength=batch)
    first = order[counts.cumsum(0) - counts]
    best = Found(**{name: field[first] for name, field in vars(found).items()})
    eps = torch.finfo(value.dtype).eps
    level = value[first] * (1 + eps * (8 + points**0.5))
    gap = torch.linalg.vector_norm(found.u - best.u[sample], dim=1)
    spread = (rivals.x - rivals.centre().unsqueeze(2)).square().sum(1).mean(1).sqrt()
    tied = torch.zeros(batch, dtype=torch.bool, device=sample.device)
    tied[sample[(value <= level[sample]) & (gap > eps**0.375 * spread)]] = True
    return best, tied
