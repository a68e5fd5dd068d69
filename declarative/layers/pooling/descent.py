"""From a start to a stationary point, each sample at its own pace: reweighted means, finished by Newton's method.

The reweighted mean u + Σκ₁(x_i − u)/Σκ₁ never raises the objective if φ is concave in s = z² (the weighted quadratic through φ
majorises it), costs a few passes over the points, and its length is a free test of convergence. Newton's step costs a solve with H and
takes over where the reweighted steps shrink too slowly. A step that raises the objective is taken back: a Newton step is cut, down to the
reweighted one, and a reweighted one is halved. At a stationary point where H is not positive definite, a saddle point say, the search goes on
along the direction of negative curvature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from declarative.layers.pooling.cloud import Candidate, Cloud
from declarative.layers.pooling.curvature import Curvature, dense
from declarative.vectors import times

_HALVINGS = 40
_ESCAPES = 3
_CUT = 4  # a Newton step is cut by this as long as it stays so many times as long as the reweighted one
_FLAT = 1e-3  # eigenvalues of H smaller than this, relative to Σκ₁, count as this where H is indefinite
_LARGE = 2**17  # numbers in x, from where it is worth to leave out samples that are done

_T = TypeVar("_T")


@dataclass(eq=False)
class Found:
    """Where a descent ended, or stands.

    Args:
        u: (b, C).
        stationarity: (b,) relative to the size of the gradient's terms.
        mass: Σκ₁ (b,); zero where no point pulls.
        converged: (b,) bool.
        iterations: (b,).
    """

    u: Tensor
    stationarity: Tensor
    mass: Tensor
    converged: Tensor
    iterations: Tensor

    def take(self, other: Found, rows: Tensor) -> None:
        """What the other knows of these rows."""
        column = rows.unsqueeze(1)
        self.u = torch.where(column, other.u, self.u)
        for name in ("stationarity", "mass", "converged", "iterations"):
            setattr(self, name, torch.where(rows, getattr(other, name), getattr(self, name)))


@dataclass(eq=False)
class _Going:
    """How each sample goes on from where it stands."""

    step: Tensor  # to the point to be tried next
    reweighted: Tensor  # the reweighted step
    length: Tensor  # of that
    newton: Tensor  # bool: `step` is Newton's
    value: Tensor  # the objective where it stands, if `cautious`
    halvings: Tensor
    escapes: Tensor
    cautious: bool = True  # whether the next points must be compared with these


def descend(cloud: Cloud, start: Tensor, tolerance: float, max_iterations: int) -> Found:
    """The stationary points that the starts (b, C) lead to, to a relative gradient of `tolerance`."""
    search = _Search(cloud, tolerance)
    now, going, stopped = search.begin(start)
    if bool(stopped.all()):
        return now
    result, at, left = Found(**vars(now)), None, ~stopped
    for iteration in range(1, max_iterations + 1):
        stopped = search.advance(now, going)
        now.iterations = torch.full_like(now.iterations, iteration)
        if iteration == max_iterations:
            stopped = torch.ones_like(stopped)
        over = stopped & left
        if not bool(over.any()):
            continue
        if at is None:
            result.take(now, over)
        else:
            for name in vars(now):
                getattr(result, name)[at[over]] = getattr(now, name)[over]
        left = left & ~over
        remaining = int(left.sum())
        if not remaining:
            break
        if search.worth_leaving(remaining, left.shape[0]):
            index = left.nonzero().squeeze(1)
            at = index if at is None else at[index]
            search, now, going, left = search.rows(index), _rows(now, index), _rows(going, index), left[index]
    return result


def _rows(of: _T, index: Tensor) -> _T:
    return type(of)(**{name: t[index] if isinstance(t, Tensor) else t for name, t in vars(of).items()})


class _Search:
    """What one iteration does."""

    def __init__(self, cloud: Cloud, tolerance: float) -> None:
        self.cloud, self.tolerance, self.eps = cloud, tolerance, torch.finfo(cloud.x.dtype).eps
        self.convex, self.concave = cloud.penalty.is_convex(*cloud.values), cloud.penalty.concave
        channels, points = cloud.x.shape[1:]
        size = min(channels, points) if self.concave else channels
        # How many reweighted steps cost what a Newton step does.
        self.worth = 3 if size <= 8 else 6 if size <= 32 else 10

    def rows(self, index: Tensor) -> _Search:
        """For some of the samples."""
        return _Search(self.cloud.rows(index), self.tolerance)

    def worth_leaving(self, remaining: int, batch: int) -> bool:
        """Whether the samples that are done should leave, so that what is left costs less."""
        return 2 * remaining <= batch and self.cloud.x.numel() > _LARGE

    def begin(self, start: Tensor) -> tuple[Found, _Going, Tensor]:
        """The first point: where it stands, how it goes on, and which samples stop there."""
        trial = self.cloud.at(start)
        none = torch.zeros(start.shape[0], dtype=torch.int64, device=start.device)
        going = _Going(start, start, torch.full_like(trial.mass, torch.inf), none.bool(), trial.mass, none, none)
        converged, stationarity, stopped = self._examine(trial, going)
        return Found(start, stationarity, trial.mass, converged, none), going, stopped

    def advance(self, now: Found, going: _Going) -> Tensor:
        """Try the next point of each sample; which of them stop."""
        trial = self.cloud.at(now.u + going.step)
        if going.cautious:
            # NaN is no improvement: a sample that is not finite gets nowhere and is stopped by its halvings.
            better = trial.value <= torch.add(going.value, going.value.abs(), alpha=8 * self.eps)
            if not bool(better.all()):
                return self._keep_the_better(now, going, trial, better)
            if bool(going.halvings.any()):
                going.halvings = torch.zeros_like(going.halvings)
        now.u, now.mass = trial.u, trial.mass
        now.converged, now.stationarity, stopped = self._examine(trial, going)
        return stopped

    def _keep_the_better(self, now: Found, going: _Going, trial: Candidate, better: Tensor) -> Tensor:
        before = _Going(**vars(going))
        converged, stationarity, stopped = self._examine(trial, going)
        now.take(Found(trial.u, stationarity, trial.mass, converged, now.iterations), better)
        column = better.unsqueeze(1)
        shorter = before.newton & (torch.linalg.vector_norm(before.step, dim=1) > _CUT * before.length)
        cut = torch.where(before.newton, 1 / _CUT, 0.5).to(trial.u.dtype).unsqueeze(1)
        back = torch.where((before.newton & ~shorter).unsqueeze(1), before.reweighted, cut * before.step)
        going.step = torch.where(column, going.step, back)
        going.newton = torch.where(better, going.newton, shorter)
        going.reweighted = torch.where(column, going.reweighted, before.reweighted)
        going.length, going.escapes = torch.where(better, going.length, before.length), torch.where(better, going.escapes, before.escapes)
        going.value, going.cautious = torch.where(better, trial.value, before.value), True
        going.halvings = torch.where(better, 0, before.halvings + 1)
        exhausted = going.halvings > _HALVINGS
        # Where no step helps any more, rounding has the last word; an escape that leads nowhere leaves a stationary point.
        now.converged = torch.where(exhausted, now.stationarity <= max(self.tolerance, self.eps**0.5), now.converged)
        return stopped & better | exhausted

    def _examine(self, trial: Candidate, going: _Going) -> tuple[Tensor, Tensor, Tensor]:
        """(converged, stationarity, stopped) of new points, and how to go on from there."""
        step, stationarity = trial.step, trial.stationarity()
        length = torch.linalg.vector_norm(step, dim=1)
        # What rounding of u alone makes of the gradient is not asked for.
        converged = (stationarity <= self.tolerance) | (length <= 2 * self.eps * torch.linalg.vector_norm(trial.u, dim=1))
        everywhere, anywhere = bool(converged.all()), not self.convex and bool(converged.any())
        wants = None if everywhere else self._slow(length, stationarity, going) & ~converged
        going.step = going.reweighted = step
        going.length, going.newton, going.cautious = length, torch.zeros_like(converged), not self.concave
        stopped = converged
        if ((wants is not None and bool(wants.any())) or anywhere) and trial.kappa2 is not None:
            curvature = Curvature(trial.toward, trial.squared, trial.mass, trial.kappa2, self.concave)
            definite = curvature.definite()
            if wants is not None:
                going.newton = wants & definite
                going.step = torch.where(going.newton.unsqueeze(1), curvature.solve(trial.pull), step)
                going.cautious = True
                self._pass_by(trial, going, wants & ~definite)
            if anywhere:
                stopped = converged & ~self._escape(trial, going, converged & ~definite)
        if going.cautious:
            going.value = trial.value
        return converged, stationarity, stopped

    @staticmethod
    def _pass_by(trial: Candidate, going: _Going, bent: Tensor) -> None:
        """Newton's steps where H is indefinite, with the sizes of its eigenvalues: near a saddle reweighted steps would creep."""
        bent = bent & (trial.mass > 0)
        if bool(bent.any()):
            rows = bent.nonzero().squeeze(1)
            values, vectors = _eigen(trial, rows)
            sizes = torch.maximum(values.abs(), _FLAT * trial.mass[rows].unsqueeze(1))
            going.step = going.step.index_put((rows,), times(vectors, times(vectors.mT, trial.pull[rows]) / sizes))
            going.newton = going.newton | bent

    @staticmethod
    def _escape(trial: Candidate, going: _Going, doubtful: Tensor) -> Tensor:
        """Which of the doubtful stationary points are left, along a direction of negative curvature."""
        escaped = doubtful & (trial.mass > 0) & (going.escapes < _ESCAPES)
        if not bool(escaped.any()):
            return escaped
        rows = escaped.nonzero().squeeze(1)
        away, negative = _along_negative_curvature(trial, rows)
        escaped = escaped.index_put((rows,), negative)
        going.step = torch.where(escaped.unsqueeze(1), going.step.index_put((rows,), away), going.step)
        going.escapes, going.cautious = going.escapes + escaped, True
        return escaped

    def _slow(self, length: Tensor, stationarity: Tensor, going: _Going) -> Tensor:
        """(b,) whether reweighted steps would take longer than Newton's: from the rate at which their lengths shrink.

        Once a sample is on Newton's way, whose lengths shrink fast, it stays there.
        """
        rate = (length / going.length).clamp(1e-6, 0.999)
        left = (self.tolerance / stationarity).log() / rate.log()
        return going.newton | (torch.isfinite(going.length) & (left > self.worth))


def _eigen(trial: Candidate, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of H."""
    toward, mass = trial.toward[rows], trial.mass[rows]
    matrix = dense(toward, mass, None if trial.kappa2 is None else trial.kappa2[rows])
    # Where κ₂ overflows, of an α whose fourth power does for one, H is taken without it; eigh would raise.
    return torch.linalg.eigh(torch.where(torch.isfinite(matrix).all(2).all(1)[:, None, None], matrix, dense(toward, mass, None)))


def _along_negative_curvature(trial: Candidate, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Steps along the lowest eigenvector, as long as the points are far, and whether its curvature is negative."""
    mass = trial.mass[rows]
    values, vectors = _eigen(trial, rows)
    lowest = vectors[:, :, 0]
    negative = values[:, 0] < -64 * torch.finfo(mass.dtype).eps * mass
    spread = ((trial.kappa1[rows] * trial.squared[rows]).sum(1) / mass).sqrt()
    # To the side where more of the points are.
    side = times(trial.toward[rows].mT, lowest).sum(1).sign()
    return lowest * (torch.where(side == 0, 1.0, side) * spread).unsqueeze(1), negative
