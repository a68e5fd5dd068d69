"""Robust pooling as a statement: what the generic engine, `certify` and `verify` see of the layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from declarative.layers.pooling.curvature import dense
from declarative.layers.pooling.pooled import Pooling
from declarative.layers.pooling.reading import Read
from declarative.node import DeclarativeNode
from declarative.solution import Solution
from declarative.structure import BlockDiagonalOperator, DiagonalOperator
from declarative.structure.base import Operator


class StatedPooling(DeclarativeNode):
    """The objective and the structure; how arguments are read and minima found is left to the layer."""

    def _read(self, inputs: tuple[Any, ...], mask: Any = None) -> Read:
        raise NotImplementedError

    def _call(self, given: Read, init: Any, tight: bool = False) -> tuple[Pooling, tuple[Tensor, ...]]:
        raise NotImplementedError

    def objective(self, *inputs_and_u: Tensor) -> Tensor:
        """Σ_i w_i φ(‖u − x_i‖²), for one instance: inputs x, and weights and α where they are given."""
        *inputs, u = inputs_and_u
        cloud = self._read(tuple(x.unsqueeze(0) for x in inputs)).cloud
        squared = (cloud.x - u.reshape(*cloud.x.shape[:2], 1)).square().sum(1)
        phi = cloud.penalty.phi(squared, *cloud.values)
        return (phi if cloud.weights is None else cloud.weights * phi).sum()

    # The algorithm and the structure, batch first, for `certify`, `explain` and the proofs of `verify`.

    def solve(self, *inputs: Tensor) -> Solution:
        """u, and how it was found."""
        given = self._read(inputs)
        call, tensors = self._call(given, None, tight=True)
        u, _, iterations, _, status = call.solve(*tensors)
        batch = inputs[0].shape[0]
        return Solution(given.shaped(u), status=status.reshape(batch, -1).amax(1), iterations=iterations.reshape(batch, -1).amax(1))

    def hessian(self, *inputs_and_solution: Any) -> Operator:
        """H = (Σκ₁) I + Σκ₂ddᵀ for each problem: one number, or one block."""
        *inputs, solution = inputs_and_solution
        cloud = self._read(tuple(inputs)).cloud
        at = cloud.at(torch.as_tensor(solution.y).reshape(cloud.x.shape[:2]))
        blocks = dense(at.toward, at.mass, at.kappa2)
        batch, size = inputs[0].shape[0], blocks.shape[1]
        if size == 1:
            return DiagonalOperator(blocks.reshape(batch, -1))
        return BlockDiagonalOperator(blocks.reshape(batch, -1, size, size))

    def vjp(self, inputs: tuple[Tensor, ...], solution: Solution, cotangent: Tensor) -> tuple[Tensor, ...]:
        """The whole backward pass."""

        def flat(*moving: Tensor) -> tuple[Tensor, ...]:
            return self._call(self._read(moving), None)[1][:count]

        count = len(inputs)
        given = self._read(inputs)
        call, tensors = self._call(given, None)
        shape = given.cloud.x.shape[:2]
        wanted = [True] * count + [False] * (len(tensors) - count)
        u, v = (torch.as_tensor(t).reshape(shape) for t in (solution.y, cotangent))
        gradients = call.pull_back((*tensors, u), (v,), wanted)[:count]
        return torch.func.vjp(flat, *inputs)[1](tuple(gradients))
