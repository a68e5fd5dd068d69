"""What every test of the catalogue needs: a worked problem with instances, as plain functions of its leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from declarative import DeclarativeNode, Solution
from declarative.solvers import InteriorPoint, Newton
from problems import Problem, catalogue

CATALOGUE = catalogue()
every_problem = pytest.mark.parametrize("name", CATALOGUE)
with_closed_form = pytest.mark.parametrize("name", [name for name, problem in CATALOGUE.items() if problem.closed_form])
without_closed_form = pytest.mark.parametrize(
    "name", [name for name, problem in CATALOGUE.items() if not problem.closed_form or list(problem.node().parameters())]
)
with_jacobian = pytest.mark.parametrize("name", [name for name, problem in CATALOGUE.items() if problem.jacobian])


def _constrained(problem: Problem) -> bool:
    node, base = type(problem.node()), DeclarativeNode
    return node.equality_constraints is not base.equality_constraints or node.inequality_constraints is not base.inequality_constraints


with_constraints = pytest.mark.parametrize("name", [name for name, problem in CATALOGUE.items() if _constrained(problem)])


class AsSolution(nn.Module):
    """A node as a module whose forward returns the whole solution, for functional_call."""

    def __init__(self, node: DeclarativeNode):
        super().__init__()
        self.node = node

    def forward(self, *inputs, in_dims=0):
        return self.node.solution(*inputs, in_dims=in_dims)


@dataclass(frozen=True, eq=False)
class Case:
    """Instances of a worked problem. Its leaves are the inputs and then the node's parameters."""

    problem: Problem
    node: DeclarativeNode
    inputs: tuple[Tensor, ...]
    batch: int

    @property
    def in_dims(self):
        return self.problem.in_dims

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.node.named_parameters())

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return (*self.inputs, *(p.detach().clone() for p in self.node.parameters()))

    @property
    def leaf_dims(self) -> tuple[int | None, ...]:
        return (*self.in_dims, *(None for _ in self.names))

    def with_inputs(self, *inputs: Tensor, batch: int | None = None) -> Case:
        return replace(self, inputs=inputs, batch=self.batch if batch is None else batch)

    def solution(self, *leaves: Tensor, in_dims: Any = "own") -> Solution:
        """The solution, as a function of inputs and (if they are given) parameters."""
        inputs, parameters = leaves[: len(self.inputs)], leaves[len(self.inputs) :]
        bound = {f"node.{name}": value for name, value in zip(self.names, parameters, strict=False)}
        return torch.func.functional_call(AsSolution(self.node), bound, inputs, {"in_dims": self.in_dims if in_dims == "own" else in_dims})

    def y(self, *leaves: Tensor) -> Tensor:
        """(b, m)"""
        return flat(self.solution(*leaves).y)

    def known(self, *inputs: Tensor) -> Tensor:
        """(b, m), by the closed form."""
        return flat(self.problem.closed_form(*inputs))

    def single(self, i: int) -> tuple[Tensor, ...]:
        """The inputs of sample i, without a batch dimension."""
        return tuple(x if dim is None else x[i] for x, dim in zip(self.inputs, self.in_dims, strict=True))

    def alone(self, i: int) -> Tensor:
        """(m,): sample i solved as a single instance."""
        y = self.node(*self.single(i), in_dims=None)
        return torch.cat([part.reshape(-1) for part in (y if isinstance(y, tuple) else (y,))])

    def take(self, index: Any) -> Case:
        """The sub-batch of these samples."""
        inputs = tuple(x if dim is None else x[index] for x, dim in zip(self.inputs, self.in_dims, strict=True))
        first = next(x for x, dim in zip(inputs, self.in_dims, strict=True) if dim == 0)
        return replace(self, inputs=inputs, batch=first.shape[0])


def case(name: str, batch: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0, polish: int = 10) -> Case:
    """Instances of a worked problem, solved to rounding unless `polish` says otherwise."""
    problem = CATALOGUE[name]
    node = problem.node().to(dtype)
    node.polish = polish
    return Case(problem, node, problem.sample(batch, torch.Generator().manual_seed(seed), dtype), batch)


def with_policy(example: Case, on_failure: str) -> Case:
    """The same, with the default solver but another failure policy; a node inside the node gets it too."""
    inequalities = example.node.solution(*example.inputs, in_dims=example.in_dims).inequality_multipliers.shape[1]
    node = example.problem.node().to(example.inputs[0].dtype)
    for inner in node.children():
        if isinstance(inner, DeclarativeNode):
            inner.solver = Newton(on_failure=on_failure)
    node.solver = InteriorPoint(on_failure=on_failure) if inequalities else Newton(on_failure=on_failure)
    return replace(example, node=node)


def flat(y: Tensor | tuple[Tensor, ...]) -> Tensor:
    """(b, *shape), or a tuple of such, as (b, m)."""
    parts = y if isinstance(y, tuple) else (y,)
    return torch.cat([part.reshape(part.shape[0], prod(part.shape[1:])) for part in parts], 1)


def weights(shape: Sequence[int], seed: int = 7) -> Tensor:
    """Fixed random numbers of this shape, of both signs and none near zero."""
    numbers = np.random.default_rng(seed).standard_normal(tuple(shape))  # numpy's: vmap forbids torch's
    return torch.as_tensor(numbers + 0.3 * np.sign(numbers))


def loss(y: Tensor) -> Tensor:
    """A scalar that is not linear in y, so that derivatives of the loss meet those of y."""
    return (weights(y.shape).to(y) * (y + 0.5 * y.sin())).sum()


def gradients(function: Callable[..., Tensor], leaves: Sequence[Tensor], order: int = 1) -> tuple[Tensor, ...]:
    """∇ of a scalar function in all leaves; for order k that of its (k − 1)th derivative in fixed directions."""
    variables = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    value = function(*variables)
    for step in range(order):
        if not value.requires_grad:
            return tuple(torch.zeros_like(v) for v in variables)
        found = torch.autograd.grad(value, variables, create_graph=step + 1 < order, allow_unused=True, materialize_grads=True)
        value = torch.stack([(g * weights(g.shape, seed=20 + step).to(g)).sum() for g in found]).sum()
    return found


def finite_difference(function: Callable[..., Tensor], leaves: Sequence[Tensor], k: int, direction: Tensor, step: float = 2e-4) -> Tensor:
    """Derivative along a direction of leaf k, with an error of step⁴."""

    def at(distance: float) -> Tensor:
        return function(*(leaf + distance * direction if i == k else leaf for i, leaf in enumerate(leaves))).detach()

    return (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)


def close(actual: Any, expected: Any, tolerance: float = 1e-9, **kwargs: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, **kwargs)
