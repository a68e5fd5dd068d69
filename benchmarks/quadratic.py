"""Quadratic programs for the solver suite, and what is true of them, computed apart from the package.

    min ½ yᵀQy + cᵀy   s.t.   Ay = b,   Gy ≤ d                   n variables, one equality, n inequalities

Drawn from the answer, as in problems/quadratic_program.py, but with every matrix each sample's own: y, ν and μ first, two inequalities
in five active, then c, b and d. So each program is feasible, strictly convex (Q ⪰ I) and strictly complementary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import machine

# Q, c, A, b, G, d, batch first.
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
Array = NDArray[np.float64]

_ACTIVE = 0.4
_DIGITS = 50


@dataclass(frozen=True)
class Answer:
    """y with its graph, ν and μ without."""

    y: Tensor
    equality: Tensor
    inequality: Tensor


def sample(n: int, batch: int) -> tuple[Inputs, Tensor]:
    """Inputs that require grad, and a cotangent of y."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    root = normal(batch, n, n)
    Q = root @ root.mT / n + torch.eye(n, dtype=torch.float64)
    A, G, y, nu = normal(batch, 1, n) / n**0.5, normal(batch, n, n) / n**0.5, normal(batch, n), normal(batch, 1)
    active = torch.rand(batch, n, generator=generator).argsort(1) < _ACTIVE * n
    amount = 0.5 + torch.rand(batch, n, generator=generator, dtype=torch.float64)
    c = -(_times(Q, y) + _times(A.mT, nu) + _times(G.mT, torch.where(active, amount, 0.0)))
    b, d = _times(A, y), _times(G, y) + torch.where(active, 0.0, amount)
    v = machine.here(normal(batch, n))
    Q, c, A, b, G, d = (machine.here(t).requires_grad_() for t in (Q, c, A, b, G, d))
    return (Q, c, A, b, G, d), v


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def kkt_residual(inputs: Inputs, answer: Answer) -> float:
    """The largest of stationarity, violation, wrong sign and complementarity over the batch; the data are of size 1."""
    Q, c, A, b, G, d = (t.detach().cpu().numpy() for t in inputs)
    y, nu, mu = (t.detach().cpu().numpy() for t in (answer.y, answer.equality, answer.inequality))
    stationarity = np.einsum("bij,bj->bi", Q, y) + c + np.einsum("bij,bi->bj", A, nu) + np.einsum("bij,bi->bj", G, mu)
    equality, slack = np.einsum("bij,bj->bi", A, y) - b, d - np.einsum("bij,bj->bi", G, y)
    return float(max(np.abs(stationarity).max(), np.abs(equality).max(), -slack.min(), -mu.min(), np.abs(mu * slack).max()))


def gradient_error(inputs: Inputs, cotangent: Tensor, gradients: tuple[Tensor, ...], count: int) -> float:
    """Against the reference, for the first `count` samples: the largest difference relative to the largest entry of each gradient."""
    worst = 0.0
    for i in range(count):
        exact = _reference(cotangent[i].cpu().numpy(), *(t[i].detach().cpu().numpy() for t in inputs))
        found = [t[i].cpu().numpy() for t in gradients]
        worst = max(worst, *(float(np.abs(a - e).max() / np.abs(e).max()) for a, e in zip(found, exact, strict=True)))
    return worst


def _reference(v: Array, Q: Array, c: Array, A: Array, b: Array, G: Array, d: Array) -> tuple[Array, ...]:
    """⟨v, y⟩ differentiated by all inputs: both systems with K = [[Q, Rᵀ], [R, 0]], R the active rows, in 50 digits."""
    p = len(b)
    with mpmath.workdps(_DIGITS):
        active = _active_set(Q, c, A, b, G, d)
        rows = np.vstack([A, G[active]])
        y, multipliers = _solve(Q, rows, -c, np.concatenate([b, d[active]]))
        mu, slack = multipliers[p:], d - G @ y
        if not ((mu > 0).all() and (slack[~active] > 0).all()):
            raise RuntimeError("the reference has the wrong active set")
        u, w = _solve(Q, rows, v, np.zeros(len(rows)))
        all_multipliers, all_w = np.zeros(p + len(d), dtype=object), np.zeros(p + len(d), dtype=object)
        where = np.concatenate([np.ones(p, dtype=bool), active])
        all_multipliers[where], all_w[where] = multipliers, w
        by_Q = -(np.outer(u, y) + np.outer(y, u)) / 2
        by_rows = -(np.outer(all_multipliers, u) + np.outer(all_w, y))
        exact = (by_Q, -u, by_rows[:p], all_w[:p], by_rows[p:], all_w[p:])
        return tuple(part.astype(np.float64) for part in exact)


def _solve(Q: Array, rows: Array, first: Array, second: Array) -> tuple[Any, Any]:
    n, k = len(Q), len(rows)
    K = mpmath.matrix(np.block([[Q, rows.T], [rows, np.zeros((k, k))]]).tolist())
    found = np.array(list(mpmath.lu_solve(K, mpmath.matrix(np.concatenate([first, second]).tolist()))), dtype=object)
    return found[:n], found[n:]


def _active_set(Q: Array, c: Array, A: Array, b: Array, G: Array, d: Array) -> NDArray[np.bool_]:
    """By the primal-dual active set method in float64; `_reference` proves what comes out."""
    p, active = len(b), np.zeros(len(d), dtype=bool)
    for _ in range(100):
        rows = np.vstack([A, G[active]])
        K = np.block([[Q, rows.T], [rows, np.zeros((len(rows), len(rows)))]])
        z = np.linalg.solve(K, np.concatenate([-c, b, d[active]]))
        mu = np.zeros(len(d))
        mu[active] = z[len(c) + p :]
        found = mu + G @ z[: len(c)] - d > 0
        if (found == active).all():
            break
        active = found
    return active
