"""Newton's method on the dual with one potential eliminated, along a path of growing γ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from declarative.layers.transport.kernel import Kernel, kernel_of, reach
from declarative.layers.transport.methods import Goal, Method, Potentials
from declarative.layers.transport.results import Results
from declarative.layers.transport.statement import Found, Transport
from declarative.layers.transport.system import factorise, schur_complement

_START = 100.0  # γ · range(M) at which the path begins
_NEAR = 0.1  # a marginal error from which Newton's steps converge fast
_OVERSHOT = -0.1  # of the slope at the start: the least slope that a step may end with
_TRIALS = 20
_PATIENCE = 30  # steps without an error that is 10 % smaller


@dataclass(frozen=True, kw_only=True)
class DualNewton(Method):
    """Newton's method on the dual, with φ eliminated in closed form: few steps, each with one Cholesky factor, at any γ.

    Where γ·range(M) is large it starts from a smaller γ and follows the solution: the factor of a Newton step also gives dψ/dγ⁻¹, and
    in γ⁻¹ the potentials are nearly straight lines. Each step is preceded by sweeps of Sinkhorn's iteration.
    """

    def run(self, problem: Transport, init: Potentials | None, goal: Goal) -> Found:
        results = Results(problem, goal, "Newton on the dual")
        kernel = kernel_of(problem, None if init is None else init[1], problem.gamma[:, None, None])
        return newton(problem, kernel, results, init is not None)


def spread(cost: Tensor) -> Tensor:
    """The range of the finite costs, (b, 1, 1)."""
    least, most = cost.amin((1, 2), keepdim=True), cost.amax((1, 2), keepdim=True)
    if bool(torch.isinf(most).any()):
        most = torch.where(torch.isinf(cost), least, cost).amax((1, 2), keepdim=True)
    wide = most - least
    return torch.where(torch.isfinite(wide), wide, 0.0)


def newton(problem: Transport, kernel: Kernel, results: Results, warm: bool, before: int = 0) -> Found:
    """Newton's steps until every sample is done. `kernel` is that of the samples in `results.alive`."""
    goal = results.goal
    target = problem.gamma[:, None, None][results.alive] if results.partial else problem.gamma[:, None, None]
    kernel.sweep(1)
    error = results.error(kernel)
    begin = torch.minimum(target, _START / spread(problem.cost if not results.partial else kernel.cost))
    begin = torch.where((target <= 2 * begin) | (warm & (error < 5 * _NEAR))[:, None, None] | (error < _NEAR)[:, None, None], target, begin)
    if bool((begin < target).any()):
        psi = kernel.full_psi()
        first = torch.where(begin < target, kernel.log_columns / begin, psi)
        kernel.absorb(first, begin)
        kernel.sweep(2)
    state = _Path(kernel, target)
    factor = None
    for step in range(before, goal.max_iterations):
        state.kernel.sweep(1 if step == before else 2)
        residual = state.kernel.residual()
        error = residual.abs().sum((1, 2)) / results.mass
        done = (error <= results.inner) & (state.kernel.gamma >= state.target).flatten()
        done = done | state.stalled(error)
        goal.report(step + 1, error)
        if bool(done.any()):
            keep = results.finish(state.kernel, done, step, factor)
            if keep is None:
                return results.found()
            state.select(keep)
            residual, error = residual[keep], error[keep]
            factor = None
        factor = state.advance(residual, error, results)
    results.finish(state.kernel, torch.ones_like(error, dtype=torch.bool), goal.max_iterations, None)
    return results.found()


class _Path:
    """The running samples, each at its own γ on the way to its target."""

    def __init__(self, kernel: Kernel, target: Tensor) -> None:
        self.kernel, self.target = kernel, target
        self.ratio = torch.full_like(target, 4.0)
        self.floor = 1e-12 if target.dtype == torch.float64 else 1e-6
        self.damping = torch.full_like(target, self.floor)
        self.best = torch.full_like(target, torch.inf).flatten()
        self.waited = torch.zeros_like(self.best)

    def stalled(self, error: Tensor) -> Tensor:
        """Samples whose error no longer falls."""
        on_path = (self.kernel.gamma < self.target).flatten()
        better = (error < 0.9 * self.best) | on_path
        self.best = torch.where(better, error, self.best)
        self.waited = torch.where(better, 0.0, self.waited + 1)
        return (self.waited > _PATIENCE) | ~torch.isfinite(error)

    def select(self, index: Tensor) -> None:
        self.kernel = self.kernel.select(index)
        for name in ("target", "ratio", "damping", "best", "waited"):
            setattr(self, name, getattr(self, name)[index])

    def advance(self, residual: Tensor, error: Tensor, results: Results) -> Tensor:
        """One step, in γ or at this γ; the factor of the system before it."""
        kernel = self.kernel
        plan = kernel.plan()
        columns = kernel.c - residual
        schur = schur_complement(plan, kernel.r.squeeze(2), columns.squeeze(2))
        schur.diagonal(dim1=1, dim2=2).add_((self.damping * columns).squeeze(2))
        factor, good = factorise(schur)
        if not bool(good.all()):
            self.damping = torch.where(good[:, None, None], self.damping, (self.damping * 100).clamp(max=1.0))
            schur.diagonal(dim1=1, dim2=2).add_(torch.where(good[:, None], 0.0, (self.damping * columns).squeeze(2)))
            factor = torch.linalg.cholesky_ex(schur)[0]
        onward = (kernel.gamma < self.target) & (error < _NEAR)[:, None, None]
        if not bool(onward.any()):
            delta = torch.cholesky_solve(residual, factor)
            self._search(delta, delta, onward, residual, results)
            return factor
        slack = kernel.slack
        if kernel.row_floor is not None:
            slack = slack.masked_fill(torch.isinf(slack), 0.0)
        moved = plan * slack
        rows = moved.sum(2, keepdim=True)
        side = torch.baddbmm(moved.sum(1).unsqueeze(2), plan.mT, rows / kernel.r, alpha=-1)
        solution = torch.cholesky_solve(torch.cat((residual, side), 2), factor)
        # As γ → ∞ the potential tends to this limit, in the straight line that is its tangent here.
        self._search(solution[:, :, :1], solution[:, :, 1:], onward, residual, results)
        return factor

    def _search(self, delta: Tensor, side: Tensor, onward: Tensor, residual: Tensor, results: Results) -> None:
        """Take the step: as far in γ as stays near the path; at one γ as far as the dual rises."""
        kernel = self.kernel
        delta = torch.nan_to_num(delta, 0.0, 0.0, 0.0)
        cap = reach(delta.dtype)
        largest = delta.abs().amax(1, keepdim=True)
        length = torch.where(largest > cap, cap / largest, 1.0)
        slope = (residual * delta).sum(1, keepdim=True)
        base, gamma, logs = kernel.full_psi(), kernel.gamma, kernel.v.log()
        # side solves K w = [(P∘C)1; (P∘C)ᵀ1] with C = φ + ψ − M, so the limit is ψ − w.
        limit = kernel.psi - side
        any_onward, error = bool(onward.any()), torch.zeros_like(length)
        for trial in range(_TRIALS):
            if any_onward or bool(((length * largest) > 0.3 * cap).any()):
                following = torch.where(onward, torch.minimum(gamma * self.ratio, self.target), gamma)
                tangent = limit + (gamma / following) * (base - limit) + delta / following
                kernel.absorb(torch.where(onward, tangent, base + length * delta / gamma), following)
            else:
                if trial == 0 and kernel.strays():
                    kernel.absorb(base, gamma)
                    logs = kernel.v.log()
                kernel.v = (logs + length * delta).exp()
                kernel.settle()
            after = kernel.residual()
            inclined = (after * delta).sum(1, keepdim=True)
            error = after.abs().sum(1, keepdim=True) / results.mass[:, None, None]
            fine = torch.where(onward, error < _NEAR, inclined >= _OVERSHOT * slope)
            if bool(fine.all()):
                break
            shorter = length * (slope / (slope - inclined)).clamp(0.1, 0.7)
            length = torch.where(fine | onward, length, shorter)
            self.ratio = torch.where(onward & ~fine, self.ratio.sqrt(), self.ratio)
            given_up = onward & (self.ratio < 1.2)
            onward = onward & ~given_up
        self.ratio = torch.where(onward & (error < 0.3 * _NEAR), self.ratio**1.5, self.ratio).clamp(2.0, 64.0)
        short = ~onward & (length < 0.02)
        self.damping = torch.where(short, (self.damping * 100).clamp(max=1.0), (self.damping / 10).clamp(min=self.floor))
