"""The slow, plain derivative that the fast ones are compared with: one instance at a time, every block formed.

x̄ = −[B; C]ᵀ K⁺ [v; 0] with H, A, B, C from nested torch.func transforms of the instance functions, and a pseudo-inverse
by numpy. It shares no code with the engines, the KKT solve or the batching.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from declarative.problem import Layout, Problem
from declarative.solution import Solution


def dense_vjp(node: Any, problem: Problem, single: bool, solution: Solution, active: Tensor, v: Tensor) -> list[Tensor]:
    """x̄ for every tensor of the problem, in float64, batch first; tensors that the batch shares get the sum.

    Args:
        active: (b, q) the inequalities that count as equations.
    """
    parts = solution.y if isinstance(solution.y, tuple) else (solution.y,)
    parts = tuple(part.unsqueeze(0) if single else part for part in parts)
    layout = Layout(tuple(tuple(part.shape[1:]) for part in parts), isinstance(solution.y, tuple))
    tensors = [t.detach().double() if t.is_floating_point() else t for t in problem.tensors]
    problem = Problem(node, tuple(tensors), problem.in_dims, problem.batch, problem.inputs, problem.lifted, layout)
    y = layout.pack(parts).detach().double()
    fields = (solution.equality_multipliers, solution.inequality_multipliers)
    nu, mu = (torch.as_tensor(f).detach().reshape(problem.batch, -1) for f in fields)
    floating = [k for k, t in enumerate(tensors) if t.is_floating_point()]
    results = [torch.zeros_like(t) for t in tensors]
    for i in range(problem.batch):
        values = [t[i] if dim == 0 else t for t, dim in zip(tensors, problem.in_dims, strict=True)]
        gradients = _instance(problem, values, y[i], nu[i].double(), mu[i].double(), active[i], v[i].detach().double(), floating)
        for k, gradient in zip(floating, gradients, strict=True):
            if problem.in_dims[k] == 0:
                results[k][i] = gradient
            else:
                results[k] += gradient
    return results


def _instance(problem: Problem, values: list[Tensor], y: Tensor, nu: Tensor, mu: Tensor, active: Tensor, v: Tensor, floating: list[int]) -> list[Tensor]:
    def conditions(u: Tensor, *moving: Tensor) -> Tensor:
        """(∇_y L, h, g_active) stacked: what vanishes at the solution."""
        inside = list(values)
        for k, tensor in zip(floating, moving, strict=True):
            inside[k] = tensor

        def lagrangian(w: Tensor) -> tuple[Tensor, Tensor]:
            f, h, g = problem.evaluate_instance(*inside, w)
            return f + (nu * h).sum() + (mu * g).sum(), torch.cat([h, g[active]])

        gradient, a = torch.func.grad(lagrangian, has_aux=True)(u)
        return torch.cat([gradient, a])

    moving = tuple(values[k] for k in floating)
    whole: Any = torch.func.jacrev(conditions, argnums=tuple(range(len(moving) + 1)))(y, *moving)
    m = y.shape[0]
    columns = whole[0].cpu().numpy()
    kkt = np.zeros((columns.shape[0], columns.shape[0]))
    kkt[:, :m], kkt[:m, m:] = columns, columns[m:].T
    side = np.concatenate([v.cpu().numpy(), np.zeros(columns.shape[0] - m)])
    adjoint = torch.as_tensor(np.linalg.pinv(kkt, rcond=1e-13) @ side, device=v.device)
    return [-torch.tensordot(adjoint, block, dims=1) for block in whole[1:]]
