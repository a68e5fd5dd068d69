"""Newton's method on the dual with one potential eliminated, along a path of growing γ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from declarative.layers.transport.kernel import Kernel, kernel_of, spread
from declarative.layers.transport.methods import Goal, Method, Potentials
from declarative.layers.transport.path import NEAR, Path
from declarative.layers.transport.results import Results, host
from declarative.layers.transport.statement import Found, Transport

_START = 100.0  # γ · range(M) at which a path begins at most
_FAR = 0.25  # a marginal error that is worth a start at a smaller γ
_FEW = 10  # iterations after which less is
_SWEEPS = 2  # of Sinkhorn's iteration before each of Newton's steps


@dataclass(frozen=True, kw_only=True)
class DualNewton(Method):
    """Newton's method on the dual, with φ eliminated in closed form: few steps, at any γ.

    Where γ·range(M) is large it starts from a smaller γ and follows the solution: the factor of a Newton step also gives dψ/dγ⁻¹, and
    in γ⁻¹ the potentials are nearly straight lines. Each step is preceded by sweeps of Sinkhorn's iteration. Up to about 200
    columns a step is one Cholesky factor; beyond, it is conjugate gradients where they are faster.

    Example:
        >>> M = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> OptimalTransport(1.0, method=DualNewton())(M)
        tensor([[0.3655, 0.1345],
                [0.1345, 0.3655]])

    Source: Brauer, Clason, Lorenz & Wirth, "A Sinkhorn–Newton method for entropic optimal transport", 2017; Schmitzer, SIAM J. Sci.
    Comput. 41(3), 2019 (growing γ).
    """

    def run(self, problem: Transport, init: Potentials | None, goal: Goal) -> Found:
        results = Results(problem, goal, "Newton's method on the dual")
        kernel = kernel_of(problem, None if init is None else init[1], problem.gamma[:, None, None])
        return newton(kernel, results)


def newton(kernel: Kernel, results: Results, before: int = 0) -> Found:
    """Newton's steps until every sample is done, after `before` iterations of another kind, from the kernel of the running samples."""
    goal = results.goal
    if before == 0:
        error = results.error(kernel.residual())
        if not (error > results.inner).all():
            keep = results.finish(kernel, error <= results.inner, 0, None)
            if keep is None:
                return results.found()
            kernel = kernel.select(keep)
        kernel.sweep(_SWEEPS)
    path = Path(kernel, _begin(kernel, results, _FAR if before <= _FEW else NEAR), results)
    for step in range(before + 1, goal.max_iterations + 2):
        residual = path.kernel.residual()
        error = results.error(residual)
        done = path.done(error, step - before)
        if step > goal.max_iterations:
            done = np.ones_like(done)
        if done.any():
            path.arrive(done)
            keep = results.finish(path.kernel, done, step - 1, path.direction.factor)
            if keep is None:
                break
            path.select(keep)
            residual, error = residual[keep], error[~done]
        goal.report(step, error)
        path.advance(residual, error)
        path.kernel.sweep(_SWEEPS)
    return results.found()


def _begin(kernel: Kernel, results: Results, far_from: float) -> np.ndarray:
    """Bring the kernel to a γ at which a few sweeps nearly suffice: a kernel costs much less than a factor. Returns the least γ."""
    far = results.error(kernel.residual()) >= far_from
    target = host(results.target)
    if not far.any():
        return target
    wide = np.maximum(host(spread(kernel.cost)).ravel(), 1e-30)
    least = np.minimum(target, 1 / wide)
    now, gamma = target, np.minimum(target, _START / wide)
    while True:
        far = far & (gamma < now)
        if not far.any():
            return least
        now = np.where(far, gamma, now)
        at = torch.from_numpy(now).to(kernel.c).view(-1, 1, 1)
        kernel.absorb_some(far, kernel.log_columns / at, at)
        kernel.sweep(_SWEEPS)
        far = far & (results.error(kernel.residual()) >= _FAR)
        gamma = np.where(far, np.maximum(gamma / 3, least), gamma)
