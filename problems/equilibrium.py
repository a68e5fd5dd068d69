"""A deep-equilibrium layer: the fixed point y = tanh(Wy + Ux + b), in two statements.

    equilibrium          min 0                s.t.  y = F(y)                      x ∈ R², y ∈ R³; W, U, b are learned
    equilibrium_energy   min ½‖y − F(y)‖²

With ‖W‖₂ < 1, F is a contraction and the fixed point is unique. With J = ∂F/∂y = diag(1 − y²)W, ∂y/∂x = (I − J)⁻¹ diag(1 − y²)U. In the first statement
the optimality conditions are the fixed point itself. In the second H = (I − J)ᵀ(I − J), for the residual is zero: the same derivative, by a system whose
condition number is the square. The first is to be preferred; the second allows for fixed points that do not quite exist.

Source: Bai, Kolter & Koltun, "Deep equilibrium models", NeurIPS 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal

INPUTS, SIZE, NORM = 2, 3, 0.7


class _Cell(DeclarativeNode):
    """F(y) = tanh(Wy + Ux + b), with ‖W‖₂ = 0.7 at the start: training may leave that, and then a fixed point need not be unique."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        W = normal(generator, SIZE, SIZE)
        self.W = nn.Parameter(NORM * W / torch.linalg.matrix_norm(W, 2))
        self.U = nn.Parameter(normal(generator, SIZE, INPUTS) / INPUTS**0.5)
        self.b = nn.Parameter(0.3 * normal(generator, SIZE))

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """y − F(y)."""
        return y - torch.tanh(self.W @ y + self.U @ x + self.b)

    def initial_guess(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[0], self.b.shape[0])


class Equilibrium(_Cell):
    """x (d,) -> y (n,), the fixed point as the only point that is feasible."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return 0 * y.sum()

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        return self.residual(x, y)


class EquilibriumEnergy(_Cell):
    """x (d,) -> y (n,), the fixed point as the zero of an energy."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * self.residual(x, y).square().sum()


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Anything will do."""
    return cast(dtype, normal(generator, batch, INPUTS))


def unrolled(x: Tensor, W: Tensor, U: Tensor, b: Tensor, steps: int) -> Tensor:
    """(batch, n): so many steps of y ← tanh(Wy + Ux + b) from zero, differentiable."""
    y = x.new_zeros(x.shape[0], b.shape[0])
    for _ in range(steps):
        y = torch.tanh(y @ W.mT + x @ U.mT + b)
    return y


def closed_form(x: Tensor) -> Tensor:
    """The iteration until it moves no more: the error falls by 0.7 each step at least, and so do those of the derivatives."""
    W, U, b = (parameter.detach().to(x.dtype) for parameter in _Cell().parameters())
    return unrolled(x, W, U, b, steps=150)


def jacobian(x: Tensor) -> Tensor:
    """(I − J)⁻¹ diag(1 − y²)U."""
    W, U, _ = (parameter.detach().to(x.dtype) for parameter in _Cell().parameters())
    slope = (1 - closed_form(x).square()).unsqueeze(2)
    return torch.linalg.solve(torch.eye(SIZE, dtype=x.dtype) - slope * W, slope * U)


PROBLEMS = (
    Problem("equilibrium", Equilibrium, sample, (0,), closed_form, jacobian, "as many equations as unknowns; the objective says nothing; learned matrices"),
    Problem("equilibrium_energy", EquilibriumEnergy, sample, (0,), closed_form, jacobian, "a residual that is zero at the solution"),
)
