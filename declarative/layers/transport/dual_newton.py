"""Newton's method on the dual with one potential eliminated, along a path of growing γ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from declarative.layers.transport.kernel import Kernel, kernel_of, spread
from declarative.layers.transport.methods import Goal, Method, Potentials
from declarative.layers.transport.path import Path
from declarative.layers.transport.results import Results
from declarative.layers.transport.statement import Found, Transport

_START = 100.0  # γ · range(M) at which a path begins at most
_FAR = 0.25  # a marginal error that is worth a start at a smaller γ
_SWEEPS = 2  # of Sinkhorn's iteration before each of Newton's steps


@dataclass(frozen=True, kw_only=True)
class DualNewton(Method):
    """Newton's method on the dual, with φ eliminated in closed form: few steps, each with one Cholesky factor, at any γ.

    Where γ·range(M) is large it starts from a smaller γ and follows the solution: the factor of a Newton step also gives dψ/dγ⁻¹, and
    in γ⁻¹ the potentials are nearly straight lines. Each step is preceded by sweeps of Sinkhorn's iteration.
    """

    def run(self, problem: Transport, init: Potentials | None, goal: Goal) -> Found:
        results = Results(problem, goal, "Newton on the dual")
        kernel = kernel_of(problem, None if init is None else init[1], problem.gamma[:, None, None])
        return newton(problem, kernel, results)


def newton(problem: Transport, kernel: Kernel, results: Results, before: int = 0) -> Found:
    """Newton's steps until every sample is done, after `before` iterations of another kind.

    `kernel` is that of the samples in `results.alive`.
    """
    goal = results.goal
    target = problem.gamma[results.alive][:, None, None] if results.partial else problem.gamma[:, None, None]
    if not before:
        kernel.sweep(_SWEEPS)
    path = Path(kernel, target, _begin(kernel, target, results), results.mass, goal.tolerance)
    for step in range(before, goal.max_iterations):
        if step > before:
            path.kernel.sweep(_SWEEPS)
        residual = path.kernel.residual()
        error = residual.abs().sum((1, 2)) / results.mass
        goal.report(step + 1, error)
        done = (error <= results.inner) & path.arrived | path.stalled(error)
        if bool(done.any()):
            path.arrive(done)
            keep = results.finish(path.kernel, done, step, path.direction.factor)
            if keep is None:
                return results.found()
            path.select(keep)
            residual, error = residual[keep], error[keep]
        path.advance(residual, error)
    every = torch.ones_like(path.arrived)
    path.arrive(every)
    results.finish(path.kernel, every, goal.max_iterations, path.direction.factor)
    return results.found()


def _begin(kernel: Kernel, target: Tensor, results: Results) -> Tensor:
    """Bring the kernel to a γ at which a few sweeps nearly suffice: a kernel costs much less than a factor. Returns the least γ."""
    error = results.error(kernel)
    far = (error >= _FAR)[:, None, None]
    if not bool(far.any()):
        return target
    wide = spread(kernel.cost)
    least = torch.minimum(target, 1 / wide)
    gamma = torch.minimum(target, _START / wide)
    while True:
        far = far & (gamma < kernel.gamma)
        if not bool(far.any()):
            return least
        gamma = torch.where(far, gamma, kernel.gamma)
        kernel.absorb(torch.where(far, kernel.log_columns / gamma, kernel.full_psi()), gamma)
        kernel.sweep(_SWEEPS)
        far = far & (results.error(kernel) >= _FAR)[:, None, None]
        gamma = torch.where(far, torch.maximum(gamma / 3, least), gamma)
