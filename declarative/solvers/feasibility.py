"""Is there no feasible point, or was none found? The violation is minimised, from where a failed solve ended."""

from __future__ import annotations

import torch
from torch import Tensor

from declarative.engines.autodiff import linearise
from declarative.engines.quadratic import times
from declarative.problem import Problem
from declarative.solvers.optimality import coordinate_sizes
from declarative.typing import Rows, SampleMask, Variables

_STEPS = 60


def is_infeasible(problem: Problem, y: Variables, p: int) -> SampleMask:
    """(b,) whether ½‖(h, max(g, 0))‖² has a minimum above zero near y: Levenberg–Marquardt (Moré, 1978), every row to its own scale.

    For convex constraints that proves that there is no feasible point; for others, that there is none nearby.
    """
    eps = torch.finfo(y.dtype).eps
    size = coordinate_sizes(y)
    damping = torch.full_like(y[:, 0], 1e-3)
    residual, jacobian = _violation(problem, y, size, p)
    for _ in range(_STEPS):
        value, slope = 0.5 * residual.square().sum(1), times(jacobian.mT, residual)
        flat = _is_flat(residual, jacobian, slope)
        if bool((flat | (residual.abs().amax(1) <= eps**0.5)).all()):
            break
        gram = jacobian @ jacobian.mT + torch.diag_embed((damping * value.clamp(eps, 1.0)).unsqueeze(1).expand_as(residual) + eps)
        factor, _ = torch.linalg.cholesky_ex(gram)
        step = -times(jacobian.mT, torch.cholesky_solve(residual.unsqueeze(-1), factor).squeeze(-1))
        tried = y + size * step.nan_to_num(0.0)
        new_residual, new_jacobian = _violation(problem, tried, size, p)
        better = (0.5 * new_residual.square().sum(1) < value) & torch.isfinite(new_jacobian).flatten(1).all(1)
        damping = torch.where(better, 0.2 * damping, 10 * damping).clamp(eps, 1e12)
        column = better.unsqueeze(1)
        y, residual = torch.where(column, tried, y), torch.where(column, new_residual, residual)
        jacobian = torch.where(column.unsqueeze(2), new_jacobian, jacobian)
    return _is_flat(residual, jacobian, times(jacobian.mT, residual)) & (residual.abs().amax(1) > eps**0.5)


def _violation(problem: Problem, y: Variables, size: Variables, p: int) -> tuple[Rows, Tensor]:
    """What is violated and its Jacobian, in units of y's own size and of what a move of that size changes in each row."""
    at = linearise(problem, y)
    values, jacobian = at.constraints, at.jacobian() * size.unsqueeze(1)
    scale = torch.linalg.vector_norm(jacobian, dim=2).clamp_min(torch.finfo(y.dtype).tiny)
    violated = torch.ones_like(values, dtype=torch.bool)
    violated[:, p:] = values[:, p:] > 0
    weight = torch.where(violated, 1 / scale, 0.0)
    return (weight * values).detach(), weight.unsqueeze(2) * jacobian


def _is_flat(residual: Rows, jacobian: Tensor, slope: Variables) -> SampleMask:
    """Whether the violation has a stationary point here, with room for a minimum that is approached slowly."""
    terms = (jacobian.abs() * residual.abs().unsqueeze(2)).amax((1, 2))
    # A constraint whose gradient vanishes is infinitely far from holding.
    unreachable = residual.abs().amax(1) > torch.finfo(residual.dtype).eps ** -0.5
    return (slope.abs().amax(1) <= 1e-5 * terms) | unreachable
