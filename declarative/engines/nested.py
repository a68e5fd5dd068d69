"""H and A of large batches: directions batched INSIDE the instances, so that products with a sample's own matrices are matrix products.

Batched outside, as the graph's products are, each direction would bring a copy of every sample's matrices: at m = 100,
b = 32 the Hessian of a quadratic form takes 220 ms that way, 16 ms by single products, and 3.3 ms here. The transforms cost half
a millisecond, which is why small batches go the other way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from declarative.batching import batched
from declarative.problem import Problem
from declarative.typing import EqualityMultipliers, Hessians, InequalityMultipliers, Jacobians, Variables

# Directions times numbers of the largest tensor that is each sample's own, from which on this pays. Measured on two cores: statements
# with matrices break even at 250k and are 50 times as fast at 100M; statements of vectors break even at 1M.
_WORTH = 500_000
# Directions at a time: so many numbers in one sweep of y.
_NUMBERS_A_CHUNK = 500_000


def pays(problem: Problem, y: Variables, count: int) -> bool:
    """Whether `count` directions are enough."""
    own = [t.numel() for t, dim in zip(problem.tensors, problem.in_dims, strict=True) if dim == 0]
    return count * max([y.numel(), *own]) >= _WORTH


def nested_hessian(problem: Problem, y: Variables, equality: EqualityMultipliers | None, inequality: InequalityMultipliers | None) -> Hessians:
    """H (b, m, m)."""
    multipliers = [lam for lam in (equality, inequality) if lam is not None]

    def gradient(tensors: tuple[Tensor, ...], weights: list[Tensor | None]) -> Callable[[Tensor], Tensor]:
        def lagrangian(v: Tensor) -> Tensor:
            objective, *constraints = problem.evaluate_instance(*tensors, v)
            for lam, rows in zip(weights, constraints, strict=True):
                if lam is not None and rows.numel():
                    objective = objective + (lam * rows).sum()
            return objective

        return torch.func.grad(lagrangian)

    def rows(*arguments: Tensor) -> tuple[Tensor]:
        count = len(problem.tensors)
        given = iter(arguments[count + 1 :])
        weights = [None if lam is None else next(given) for lam in (equality, inequality)]
        return (_rows(gradient(arguments[:count], weights), arguments[count], y.shape[1], y.shape[0]),)

    dims = (*problem.in_dims, 0, *(0 for _ in multipliers))
    return batched(rows, dims, problem.batch, (*(t.detach() for t in problem.tensors), y, *multipliers), problem.depth)[0]


def nested_jacobian(problem: Problem, y: Variables, count: int) -> Jacobians:
    """A (b, count, m)."""

    def rows(*arguments: Tensor) -> tuple[Tensor]:
        return (_rows(lambda v: torch.cat(problem.evaluate_instance(*arguments[:-1], v)[1:]), arguments[-1], count, y.shape[0]),)

    return batched(rows, (*problem.in_dims, 0), problem.batch, (*(t.detach() for t in problem.tensors), y), problem.depth)[0]


def _rows(function: Callable[[Tensor], Tensor], v: Tensor, count: int, batch: int) -> Tensor:
    pull: Any = torch.func.vjp(function, v)[1]
    units = torch.eye(count, dtype=v.dtype, device=v.device)
    step = max(1, _NUMBERS_A_CHUNK // max(1, batch * v.shape[0]))
    chunks = [batched(pull, (0,), len(part), (part,))[0] for part in units.split(step)]
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks)
