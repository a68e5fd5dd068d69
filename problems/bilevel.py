"""A node inside another node's objective, which it inverts.

    min ¾ Σ z(y_i)⁴ − xᵀy,    z(y) = argmin_z ¼z⁴ − yz = y^⅓                      x > 0, y ∈ R²

¾z(y)⁴ = ¾y^{4/3} has the derivative y^⅓, so that the outer optimality condition is y^⅓ = x: y = x³, ∂y/∂x = diag(3x²). The outer
Newton step and the outer backward pass need second and third derivatives of the inner solution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, uniform
from problems.cubic_root import CubicRoot

SIZE = 2


class Cube(DeclarativeNode):
    """x (n,) > 0 -> y (n,) = x³, the entries of y being a batch for the inner node."""

    def __init__(self) -> None:
        super().__init__()
        self.root = CubicRoot()

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.75 * self.root(y).pow(4).sum() - x @ y

    def initial_guess(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Near enough to one for Newton's method to stay at positive y from there."""
    return cast(dtype, uniform(generator, 0.8, 1.4, batch, SIZE))


def closed_form(x: Tensor) -> Tensor:
    """x³."""
    return x**3


def jacobian(x: Tensor) -> Tensor:
    """diag(3x²)."""
    return torch.diag_embed(3 * x**2)


PROBLEM = Problem("bilevel", Cube, sample, (0,), closed_form, jacobian, "a node inside a node: third derivatives of the inner one are needed")
