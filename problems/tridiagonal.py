"""A symmetric tridiagonal system of equations as a problem of least energy.

    min ½ yᵀTy − xᵀy,    T_ii = a_i, T_{i,i+1} = T_{i+1,i} = c_i                 x, a, y ∈ R⁵, c ∈ R⁴, T positive definite

Ty = x, so that ∂y/∂x = T⁻¹, and for a loss with gradient v: x̄ = T⁻¹v, ā_i = −x̄_i y_i, c̄_i = −x̄_i y_{i+1} − x̄_{i+1} y_i. H = T: forward and backward
pass cost O(n) each, by the declared structure.

Source: the elimination that costs O(n): Thomas, "Elliptic problems in linear differential equations over a network", Columbia University, 1949.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from declarative.structure import Banded, ScaledIdentityInput
from problems.base import Inputs, Problem, cast, normal, uniform

SIZE = 5


class Tridiagonal(DeclarativeNode):
    """x (n,), a (n,), c (n − 1,) -> y (n,)."""

    hessian_structure = Banded(1)
    mixed_structure = ScaledIdentityInput(input=0, scale=-1.0)

    def objective(self, x: Tensor, a: Tensor, c: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (a * y.square()).sum() + (c * y[:-1] * y[1:]).sum() - x @ y

    def initial_guess(self, x: Tensor, a: Tensor, c: Tensor) -> Tensor:  # noqa: ARG002
        return torch.zeros_like(x)


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """The diagonal dominates: positive definite, whatever the signs."""
    a, c = uniform(generator, 2.0, 3.0, batch, SIZE), uniform(generator, -0.9, 0.9, batch, SIZE - 1)
    return cast(dtype, normal(generator, batch, SIZE), a, c)


def matrix(a: Tensor, c: Tensor) -> Tensor:
    """T (b, n, n)."""
    return torch.diag_embed(a) + torch.diag_embed(c, 1) + torch.diag_embed(c, -1)


def closed_form(x: Tensor, a: Tensor, c: Tensor) -> Tensor:
    """T⁻¹x by elimination of one unknown after the other."""
    pivots, right = [a[:, 0]], [x[:, 0]]
    for i in range(1, x.shape[1]):
        factor = c[:, i - 1] / pivots[-1]
        pivots.append(a[:, i] - factor * c[:, i - 1])
        right.append(x[:, i] - factor * right[-1])
    y = [right[-1] / pivots[-1]]
    for i in range(x.shape[1] - 2, -1, -1):
        y.append((right[i] - c[:, i] * y[-1]) / pivots[i])
    return torch.stack(y[::-1], 1)


def jacobian(x: Tensor, a: Tensor, c: Tensor) -> Tensor:  # noqa: ARG001
    """T⁻¹."""
    return torch.linalg.inv(matrix(a, c))


PROBLEM = Problem("tridiagonal", Tridiagonal, sample, (0, 0, 0), closed_form, jacobian, "H tridiagonal and made of inputs, declared; B = −I, declared")
