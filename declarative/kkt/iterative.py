"""Conjugate gradients and MINRES for batches, each sample with its own step lengths and its own end.

In numbers only: whoever calls them differentiates by the implicit rule (structure/base.py). A sample that is done no longer
moves; the product stays one call for the batch. Right-hand sides are normalised, so units do not matter, and the residual
that is returned is the true one, computed at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
# The rate of convergence is looked at every so many steps.
_STEPS_BEFORE_JUDGEMENT = 8


@dataclass(frozen=True)
class Outcome:
    """What an iteration found.

    Args:
        solution: (b, n).
        residual: (b,) ‖rhs − K z‖ / ‖rhs‖, computed anew.
        converged: (b,) bool.
        iterations: steps that the slowest sample took.
    """

    solution: Tensor
    residual: Tensor
    converged: Tensor
    iterations: int


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(b, 1)"""
    return (a * b).sum(1, keepdim=True)


def _normalised(rhs: Tensor) -> tuple[Tensor, Tensor]:
    """(rhs of unit length, its length (b, 1)); a zero stays zero."""
    largest = rhs.abs().amax(1, keepdim=True)
    safe = torch.where(largest > 0, largest, 1.0)
    size = torch.linalg.vector_norm(rhs / safe, dim=1, keepdim=True)
    return rhs / safe / torch.where(size > 0, size, 1.0), largest * size


def _finish(product: Product, unit: Tensor, size: Tensor, z: Tensor, tolerance: float, iterations: int) -> Outcome:
    residual = torch.linalg.vector_norm(unit - product(z), dim=1)
    # The recurrence's residual and the true one part by rounding.
    return Outcome(z * size, residual, residual <= 10 * tolerance, iterations)


def _hopeless(step: int, limit: int, worst: float, tolerance: float) -> bool:
    """Whether the rate so far would take half as many steps again as the limit."""
    if not 0 < worst < math.inf:
        return False
    rate = -math.log(worst) / step
    return rate <= 0 or -math.log(tolerance) / rate > 1.5 * limit


def conjugate_gradients(
    product: Product, rhs: Tensor, *, tolerance: float, max_iterations: int, precondition: Product | None = None, give_up: bool = False
) -> Outcome:
    """K z = rhs for symmetric positive (semi-)definite K (Hestenes & Stiefel, 1952). A sample that meets negative curvature ends unconverged.

    Args:
        product: z ↦ K z, (b, n) -> (b, n).
        rhs: (b, n).
        tolerance: on ‖residual‖ / ‖rhs‖.
        precondition: r ↦ M⁻¹ r for a positive definite M near K.
        give_up: stop early if the rate of the first steps says that max_iterations will not do.
    """
    unit, size = _normalised(rhs)
    z, r = torch.zeros_like(unit), unit
    s = r if precondition is None else precondition(r)
    p, rs = s, _dot(r, s)
    # NaN is not above the tolerance, so that a broken sample is done at once.
    moving = torch.linalg.vector_norm(r, dim=1, keepdim=True) > tolerance
    step = 0
    while step < max_iterations and bool(moving.any()):
        step += 1
        q = product(p)
        curvature = _dot(p, q)
        moving = moving & (curvature > 0)
        length = torch.where(moving, rs / curvature, 0.0)
        z, r = torch.where(moving, torch.addcmul(z, length, p), z), torch.where(moving, torch.addcmul(r, length, q, value=-1), r)
        sizes = torch.linalg.vector_norm(r, dim=1, keepdim=True)
        moving = moving & (sizes > tolerance)
        if give_up and step % _STEPS_BEFORE_JUDGEMENT == 0 and _hopeless(step, max_iterations, float(torch.where(moving, sizes, 0.0).max()), tolerance):
            break
        s = r if precondition is None else precondition(r)
        after = _dot(r, s)
        p, rs = torch.addcmul(s, after / rs, p), after
    return _finish(product, unit, size, z, tolerance, step)


def minres(product: Product, rhs: Tensor, *, tolerance: float, max_iterations: int, precondition: Product | None = None) -> Outcome:
    """K z = rhs for symmetric K, indefinite or not (Paige & Saunders, 1975; preconditioned as in Elman, Silvester & Wathen, alg. 4.1).

    Args: as in `conjugate_gradients`; the preconditioner must be positive definite though K is not.
    """
    unit, size = _normalised(rhs)
    z = torch.zeros_like(unit)
    residual = unit
    total = 0
    # The recurrence loses accuracy over many steps; a second run on what is left restores it.
    for _ in range(3):
        found, steps = _minres_once(product, residual, tolerance, max_iterations - total, precondition)
        z, total = z + torch.where(torch.isfinite(found), found, 0.0), total + steps
        residual = unit - product(z)
        if total >= max_iterations or not bool((torch.linalg.vector_norm(residual, dim=1) > tolerance).any()):
            break
    return _finish(product, unit, size, z, tolerance, total)


def _minres_once(product: Product, rhs: Tensor, tolerance: float, max_iterations: int, precondition: Product | None) -> tuple[Tensor, int]:
    def applied(v: Tensor) -> Tensor:
        return v if precondition is None else precondition(v)

    z, w_old, w = torch.zeros_like(rhs), torch.zeros_like(rhs), torch.zeros_like(rhs)
    v_old, v = torch.zeros_like(rhs), rhs
    s = applied(v)
    gamma_old, gamma = torch.ones_like(rhs[:, :1]), _dot(s, v).clamp_min(0).sqrt()
    start = gamma
    eta = gamma
    sine_old = sine = torch.zeros_like(gamma)
    cosine_old = cosine = torch.ones_like(gamma)
    goal = tolerance * start / torch.linalg.vector_norm(rhs, dim=1, keepdim=True).clamp_min(torch.finfo(rhs.dtype).tiny)
    moving = start > 0
    step = 0
    while step < max_iterations and bool(moving.any()):
        step += 1
        direction = s / torch.where(gamma > 0, gamma, 1.0)
        q = product(direction)
        delta = _dot(q, direction)
        v_new = q - (delta / gamma) * v - (gamma / gamma_old) * v_old
        s = applied(v_new)
        gamma_new = _dot(s, v_new).clamp_min(0).sqrt()
        first = cosine * delta - cosine_old * sine * gamma
        length = torch.sqrt(first * first + gamma_new * gamma_new)
        second, third = sine * delta + cosine_old * cosine * gamma, sine_old * gamma
        sound = moving & (length > 0)
        cosine_old, cosine = cosine, torch.where(sound, first / length, 0.0)
        sine_old, sine = sine, torch.where(sound, gamma_new / length, 0.0)
        w_old, w = w, torch.where(sound, (direction - third * w_old - second * w) / length, 0.0)
        z = torch.where(sound, z + cosine * eta * w, z)
        eta = -sine * eta
        moving = sound & (eta.abs() > goal) & (gamma_new > 0)
        v_old, v, gamma_old, gamma = v, v_new, gamma, gamma_new
    return z, step
