"""L-BFGS on the dual with one potential eliminated: no matrix but the kernel, no factorisation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from declarative.layers.transport.kernel import Kernel, kernel_of, reach
from declarative.layers.transport.methods import Goal, Method, Potentials
from declarative.layers.transport.results import Results, host
from declarative.layers.transport.sinkhorn import Way, start
from declarative.layers.transport.statement import Found, Transport
from declarative.solvers.lbfgs import inverse_product, remember
from declarative.solvers.wolfe import WolfeSearch

_SCALING = 4.0
_LEVEL = 0.01  # the marginal error at which γ may grow
_PATIENCE = 500  # steps without an error that is 10 % smaller


@dataclass(frozen=True, kw_only=True)
class DualLBFGS(Method):
    """L-BFGS on the dual in ψ, with φ eliminated in closed form: a smooth concave problem without constraints.

    Each sample has a history and a line search of its own. A step costs little more than one of Sinkhorn's, and far fewer are needed
    where γ is large; of the methods that need no factorisation it is the most robust there.

    Args:
        memory: pairs of steps and gradient changes that are kept.

    Raises:
        TypeError, ValueError: `memory` is not a positive int.

    Example:
        >>> M = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> OptimalTransport(1.0, method=DualLBFGS())(M)
        tensor([[0.3655, 0.1345],
                [0.1345, 0.3655]])

    Source: Qiu, Yin & Wang, "Efficient, stable, and analytic differentiation of the Sinkhorn loss", 2023; Liu & Nocedal 1989.
    """

    memory: int = 10

    def __post_init__(self) -> None:
        if not isinstance(self.memory, int) or isinstance(self.memory, bool):
            raise TypeError(f"DualLBFGS(memory=...) must be an int, got {self.memory!r}")
        if self.memory < 1:
            raise ValueError(f"DualLBFGS(memory=...) must be at least 1, got {self.memory!r}")

    def run(self, problem: Transport, init: Potentials | None, goal: Goal) -> Found:
        results = Results(problem, goal, "L-BFGS on the dual")
        scaling = 1.0 if init is not None else _SCALING
        kernel = kernel_of(problem, None if init is None else init[1], start(problem, scaling))
        descent, way = _Descent(kernel, self.memory), Way(kernel, results, scaling)
        best, since = np.full(results.mass.shape, np.inf), np.zeros(results.mass.shape)
        for step in range(goal.max_iterations + 1):
            error = results.error(kernel.residual())
            better = (error < 0.9 * best) | ~way.arrived
            best, since = np.where(better, error, best), np.where(better, step, since)
            settled = (best < 100 * torch.finfo(kernel.c.dtype).eps) & (step - since > 5)
            stopped = (error <= results.inner) | settled | (step - since > _PATIENCE) | descent.resting
            done = (stopped & way.arrived) | ~np.isfinite(error)
            if step == goal.max_iterations:
                done = np.ones_like(done)
            if done.any():
                way.arrive(done)
                keep = results.finish(kernel, done, step, None)
                if keep is None:
                    break
                kernel = kernel.select(keep)
                descent.select(kernel, keep)
                way.select(kernel, keep)
                error, best, since = error[~done], best[~done], since[~done]
            goal.report(step, error)
            descent.forget(way.advance((error < _LEVEL) | descent.resting, step))
            descent.step(step)
        return results.found()


class _Descent:
    """The running samples' histories, in z = √c · log v: in these variables the curvature is that of I − AᵀA with ‖A‖ ≤ 1."""

    def __init__(self, kernel: Kernel, memory: int) -> None:
        kernel.sweep(2)
        self.kernel, self.root = kernel, kernel.c.squeeze(1).sqrt()
        b, n = self.root.shape
        zeros = self.root.new_zeros
        self.state = {
            "gradient": zeros(b, n),
            "y": zeros(b, n),
            "steps": zeros(b, memory, n),
            "changes": zeros(b, memory, n),
            "products": zeros(b, memory, memory),
            "valid": torch.zeros(b, memory, dtype=torch.bool, device=self.root.device),
            "scale": torch.ones_like(self.root[:, 0]),
        }
        self.resting = np.zeros(b, dtype=bool)

    def select(self, kernel: Kernel, index: Tensor) -> None:
        self.kernel, self.root, self.resting = kernel, self.root[index], self.resting[index.cpu().numpy()]
        self.state = {name: x[index] for name, x in self.state.items()}

    def forget(self, changed: np.ndarray) -> None:
        """These samples have another γ."""
        if changed.any():
            mask = torch.from_numpy(changed).to(self.root.device)
            self.state["valid"] = self.state["valid"] & ~mask.unsqueeze(1)
            self.state["scale"] = torch.where(mask, 1.0, self.state["scale"])

    def step(self, iteration: int) -> None:
        """One step of each sample; `resting` are those that no length takes further."""
        kernel, state = self.kernel, self.state
        kernel.keep_within_reach(0.5)
        here = kernel.v.log().squeeze(1) * self.root
        value, gradient = self._at(here)
        state |= {"y": here, "gradient": gradient}
        direction = -inverse_product(state, iteration)
        slope = (gradient * direction).sum(1)
        remembers = state["valid"].any(1) & torch.isfinite(slope) & (slope < 0)
        direction = torch.where(remembers.unsqueeze(1), direction, -state["scale"].unsqueeze(1) * gradient)
        sizes = (here.abs() * self.root).sum(1) + (kernel.r * kernel.u.log()).abs().sum((1, 2))
        noise = 4 * torch.finfo(here.dtype).eps * sizes
        search = WolfeSearch(here, direction, value, (gradient * direction).sum(1), noise)
        length, _, gradient_new = search.run(lambda z, _: self._at(z), torch.zeros_like(remembers))
        moved = length > 0
        point = torch.where(moved.unsqueeze(1), here + length.unsqueeze(1) * direction, here)
        gradient_new = torch.where(moved.unsqueeze(1), gradient_new, gradient)
        state |= remember(state, point, gradient_new, moved, iteration)
        self.resting = host(~moved & ~remembers)
        self._at(point)

    def _at(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """−γ times the dual's value (b,), less a constant, and its gradient (b, n)."""
        kernel = self.kernel
        logs = (z / self.root).unsqueeze(1)
        kernel.v = logs.exp()
        kernel.settle()
        value = -(kernel.r * kernel.u.log()).sum((1, 2)) - (kernel.c * logs).sum((1, 2))
        # Beyond its reach K says nothing: the search comes back, and absorbs before it goes on.
        value = torch.where(torch.linalg.vector_norm(logs, math.inf, (1, 2)) <= reach(z.dtype), value, torch.inf)
        return value, -kernel.residual().squeeze(1) / self.root
