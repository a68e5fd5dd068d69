"""f and ∇f alone: what a first-order solver pays for.

`linearise` records the graph of ∇f as well, for products with H; here nothing is kept, which takes about half the time and a
third of the memory. While a graph is being recorded around it (grad mode, a torch.func level) the result is differentiable.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from declarative.problem import Problem
from declarative.transforms import transforms_active
from declarative.typing import SampleMask, Values, Variables


def value_and_gradient(problem: Problem, y: Variables) -> tuple[Values, Variables]:
    """(f, ∇_y f) of the batch at y."""
    if transforms_active():
        return _functional(problem, y)
    recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        # An alias, as in autodiff.py: the partial derivative must not run through y(x), a higher one must.
        at = y.view_as(y) if recorded and y.requires_grad else y.detach().requires_grad_()
        objective = problem.evaluate(at, problem.tensors if recorded else [t.detach() for t in problem.tensors])[0]
        if not objective.requires_grad:
            return objective, torch.zeros_like(y)
        (gradient,) = torch.autograd.grad(objective.sum(), at, create_graph=recorded, allow_unused=True, materialize_grads=True)
    return (objective, gradient) if recorded else (objective.detach(), gradient)


def value_and_gradient_where(problem: Problem, y: Variables, wanted: SampleMask) -> tuple[Values, Variables]:
    """The same for the wanted samples; the others may come out as NaN. Where they are few, only they are paid for."""
    index = wanted.nonzero().squeeze(1)
    if 2 * index.shape[0] > y.shape[0]:
        return value_and_gradient(problem, y)
    nothing = y.new_full(y.shape[:1], torch.nan), torch.full_like(y, torch.nan)
    if index.shape[0] == 0:
        return nothing
    value, gradient = value_and_gradient(problem.select(index), y[index])
    return nothing[0].index_copy(0, index, value), nothing[1].index_copy(0, index, gradient)


def _functional(problem: Problem, y: Tensor) -> tuple[Tensor, Tensor]:
    def total(v: Tensor) -> tuple[Tensor, Tensor]:
        objective = problem.evaluate(v)[0]
        return objective.sum(), objective

    result: Any = torch.func.grad(total, has_aux=True)(y)
    return result[1], result[0]
