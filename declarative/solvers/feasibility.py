"""Is there no feasible point, or was none found? The violation is minimised, from where a failed solve ended."""

from __future__ import annotations

import torch
from torch import Tensor

from declarative.engines.autodiff import linearise
from declarative.problem import Problem
from declarative.solvers.optimality import coordinate_sizes, probe
from declarative.typing import Rows, SampleMask, Variables
from declarative.vectors import times

_STEPS = 60


def is_infeasible(problem: Problem, y: Variables, p: int) -> SampleMask:
    """(b,) whether ½‖(h, max(g, 0))‖² has a minimum above zero near y: Levenberg–Marquardt (Moré, 1978), every row to its own scale.

    For convex constraints that proves that there is no feasible point; for others, that there is none nearby.
    """
    eps = torch.finfo(y.dtype).eps
    size = coordinate_sizes(y)
    damping = torch.full_like(y[:, 0], 1e-3)
    scale = torch.maximum(*(_changes(problem, at, size) for at in (y, y + probe(size)))).clamp_min(torch.finfo(y.dtype).tiny)
    residual, jacobian = _violation(problem, y, size, scale, p)
    halfway = residual
    for count in range(_STEPS):
        if count == _STEPS // 2:
            halfway = residual
        value, slope = 0.5 * residual.square().sum(1), times(jacobian.mT, residual)
        flat = _is_flat(residual, slope)
        if bool((flat | (residual.abs().amax(1) <= eps**0.5)).all()):
            break
        gram = jacobian @ jacobian.mT + torch.diag_embed((damping * value.clamp_min(eps)).unsqueeze(1).expand_as(residual) + eps)
        factor, _ = torch.linalg.cholesky_ex(gram)
        step = -times(jacobian.mT, torch.cholesky_solve(residual.unsqueeze(-1), factor).squeeze(-1))
        tried = y + size * step.nan_to_num(0.0)
        new_residual, new_jacobian = _violation(problem, tried, size, scale, p)
        better = (0.5 * new_residual.square().sum(1) < value) & torch.isfinite(new_jacobian).flatten(1).all(1)
        damping = torch.where(better, 0.2 * damping, 10 * damping).clamp(eps, 1e12)
        column = better.unsqueeze(1)
        y, residual = torch.where(column, tried, y), torch.where(column, new_residual, residual)
        jacobian = torch.where(column.unsqueeze(2), new_jacobian, jacobian)
    # Where the curvature of the constraints holds a minimum, Gauss–Newton steps come to it slowly: what half of them could not lower is one.
    stuck = residual.square().sum(1) > 0.98 * halfway.square().sum(1)
    return (stuck | _is_flat(residual, times(jacobian.mT, residual))) & (residual.abs().amax(1) > eps**0.5)


def _changes(problem: Problem, y: Variables, size: Variables) -> Rows:
    """How much each constraint changes when y moves by its own size."""
    return torch.linalg.vector_norm(linearise(problem, y).jacobian() * size.unsqueeze(1), dim=2).nan_to_num(0.0)


def _violation(problem: Problem, y: Variables, size: Variables, scale: Rows, p: int) -> tuple[Rows, Tensor]:
    """What is violated and its Jacobian, each row in its own unit and y in units of its size."""
    at = linearise(problem, y)
    violated = torch.ones_like(at.constraints, dtype=torch.bool)
    violated[:, p:] = at.constraints[:, p:] > 0
    weight = torch.where(violated, 1 / scale, 0.0)
    return weight * at.constraints, weight.unsqueeze(2) * (at.jacobian() * size.unsqueeze(1))


def _is_flat(residual: Rows, slope: Variables) -> SampleMask:
    """Whether the violation has a stationary point here, with room for a minimum that is approached slowly."""
    return slope.abs().amax(1) <= 1e-5 * residual.abs().amax(1)  # rows of the Jacobian are of size 1
