"""Derivatives of entropic transport between clouds, of every order, in the memory of one tile.

    V = min_P ⟨P, M⟩ + (1/γ) Σ_ij P_ij log(P_ij / r_i c_j),   M_ij = cost(x_i, y_j),   P_ij = r_i c_j exp(γ(φ_i + ψ_j − M_ij))

An iteration finds the potentials as numbers. Three rules make them, and V, differentiable, each by sums over pairs:

* V is the maximum over (φ, ψ) of ⟨r, φ⟩ + ⟨c, ψ⟩ − (1/γ)(Σ_ij P_ij − (Σr + Σc)/2). Its derivative is that of this expression with the
  potentials held fixed, and then the potentials are functions again: so the next derivative is right too.
* φ_i = −(1/γ) log Σ_j c_j exp(γ(ψ_j − M_ij)): plain torch.
* ψ solves F = Pᵀ1 − c = 0 with this φ in P. ∂F/∂ψ = γS, S = diag(Pᵀ1) − Pᵀ diag(P1)⁻¹ P, and conjugate gradients solve with S.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from declarative.errors import SolverWarning
from declarative.layers.transport.multiscale import Potentials
from declarative.layers.transport.pairs import PairSum, one_by_one
from declarative.layers.transport.tiles import Cloud, Ground, block_of
from declarative.structure.base import Operator, invert
from declarative.transforms import alive, is_differentiated

_STEPS = 500  # of conjugate gradients, at most


@dataclass(frozen=True, eq=False)
class Kernel:
    """K_ij = exp(γ(φ_i + ψ_j − M_ij)) as a differentiable function, tile by tile, and the potentials that were found.

    Args:
        dtype: of the exponentials; the rest is float64.
        bounded: weights of both clouds are zero or so small that their pairs, of no weight, could overflow.
        empty: some of c are zero.
        tolerance: of solves, relative.
        found: numbers.
        symmetric: both clouds are one.
    """

    ground: Ground
    dtype: torch.dtype
    tile: int | None
    bounded: bool
    empty: bool
    tolerance: float
    found: Potentials
    symmetric: bool

    def _exponents(self, left: Tensor, right: Tensor, gamma: Tensor) -> Tensor:
        exponents = self.ground.exponents(left, right, gamma)
        return exponents.clamp(max=80.0) if self.bounded else exponents

    def _sum(self, function: Callable[..., Tensor], inputs: str, outputs: str, *tensors: Tensor) -> Tensor:
        columns = next(t.shape[0] for t, kind in zip(tensors, inputs, strict=True) if kind == "c")
        return PairSum(lambda *t: (function(*t),), inputs, outputs, block_of(columns, self.tile))(*tensors)[0]

    def features(self, x: Tensor, phi: Tensor, y: Tensor, psi: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the exponents are made of."""
        return self.ground.rows(x, phi, gamma), self.ground.columns(y, psi, gamma), gamma

    def times(self, features: tuple[Tensor, Tensor, Tensor], columns: Tensor) -> Tensor:
        """K · columns, (m, k) -> (n, k)"""

        def product(left: Tensor, right: Tensor, gamma: Tensor, columns: Tensor) -> Tensor:
            return self._exponents(left, right, gamma).to(self.dtype).exp() @ columns

        return self._sum(product, "rcsc", "r", *features, columns.to(self.dtype)).double()

    def transposed_times(self, features: tuple[Tensor, Tensor, Tensor], rows: Tensor) -> Tensor:
        """Kᵀ · rows, (n, k) -> (m, k)"""

        def product(left: Tensor, right: Tensor, gamma: Tensor, rows: Tensor) -> Tensor:
            return self._exponents(left, right, gamma).to(self.dtype).exp().mT @ rows

        return self._sum(product, "rcsr", "c", *features, rows.to(self.dtype)).double()

    def costs(self, x: Tensor, phi: Tensor, y: Tensor, psi: Tensor, gamma: Tensor, columns: Tensor) -> Tensor:
        """(K ∘ M) · columns, (m,) -> (n,)"""

        def product(left: Tensor, right: Tensor, gamma: Tensor, phi: Tensor, psi: Tensor, columns: Tensor) -> Tensor:
            exponents = self._exponents(left, right, gamma)
            costs = phi.unsqueeze(1) + psi - exponents / gamma
            return (exponents.to(self.dtype).exp() * costs.to(self.dtype)) @ columns

        return self._sum(product, "rcsrcc", "r", *self.features(x, phi, y, psi, gamma), phi, psi, columns.to(self.dtype)).double()

    def soft_rows(self, x: Tensor, y: Tensor, psi: Tensor, columns: Tensor, gamma: Tensor) -> Tensor:
        """φ of this ψ, (n,)."""
        start = self.found.rows
        return start - self.times(self.features(x, start, y, psi, gamma), columns.unsqueeze(1)).squeeze(1).log() / gamma

    def soft_columns(self, x: Tensor, y: Tensor, phi: Tensor, rows: Tensor, gamma: Tensor) -> Tensor:
        """ψ of this φ, (m,)."""
        start = self.found.columns
        return start - self.transposed_times(self.features(x, phi, y, start, gamma), rows.unsqueeze(1)).squeeze(1).log() / gamma

    def share(self, x: Tensor, y: Tensor, psi: Tensor, rows: Tensor, columns: Tensor, gamma: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        """diag(P1)⁻¹ P · side, (m, k) -> (n, k), and r_i / Σ_j c_j K_ij, (n, 1), for P whose φ is that of this ψ."""
        features = self.features(x, self.found.rows, y, psi, gamma)
        weight = columns.unsqueeze(1)
        image = self.times(features, torch.cat([weight, weight * side], 1))
        return image[:, 1:] / image[:, :1], rows.unsqueeze(1) / image[:, :1]


def potentials(kernel: Kernel, x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """(φ, ψ) as functions of everything; numbers where nothing is differentiated."""
    if not is_differentiated(x, y, rows, columns, gamma):
        return kernel.found.rows, kernel.found.columns
    psi = _Columns.apply(kernel, x, y, rows, columns, gamma)
    phi = kernel.soft_rows(x, y, psi, columns, gamma)
    if kernel.empty:
        # F says nothing of columns without weight; the soft minimum does.
        psi = torch.where(columns > 0, psi, kernel.soft_columns(x, y, phi, rows, gamma))
    return phi, psi


def value(kernel: Kernel, x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, gamma: Tensor) -> Tensor:
    """V, ()."""
    return _Value.apply(kernel, x, y, rows, columns, gamma)


def loss(kernel: Kernel, x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, gamma: Tensor) -> Tensor:
    """⟨P, M⟩, ()."""
    phi, psi = potentials(kernel, x, y, rows, columns, gamma)
    return rows @ kernel.costs(x, phi, y, psi, gamma, columns)


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(kernel: Kernel, x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, gamma: Tensor) -> Tensor:  # noqa: ARG004  # pyright: ignore[reportIncompatibleMethodOverride]
        return rows @ kernel.found.rows + columns @ kernel.found.columns

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.kernel = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        kernel: Kernel = ctx.kernel
        inputs = tuple(alive(t) for t in ctx.saved_tensors)
        phi, psi = potentials(kernel, *inputs)

        def dual(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, gamma: Tensor) -> Tensor:
            mass = rows @ kernel.times(kernel.features(x, phi, y, psi, gamma), columns.unsqueeze(1)).squeeze(1)
            return rows @ phi + columns @ psi - (mass - (rows.sum() + columns.sum()) / 2) / gamma

        needed = list(ctx.needs_input_grad[1:])
        doubled = kernel.symmetric and needed[0]
        if doubled:
            # x and y are the same points, and V does not change when they change places.
            needed[1] = False
        gradients = _pull_back(dual, inputs, needed, cotangent)
        if doubled and gradients[0] is not None:
            gradients[0] = 2 * gradients[0]
        return None, *gradients

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return one_by_one(_Value, info, in_dims, inputs)


class _Columns(torch.autograd.Function):
    """ψ of F(ψ) = 0."""

    @staticmethod
    def forward(kernel: Kernel, *inputs: Tensor) -> Tensor:  # noqa: ARG004  # pyright: ignore[reportIncompatibleMethodOverride]
        return kernel.found.columns.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.kernel = inputs[0]
        ctx.save_for_backward(output, *inputs[1:])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        kernel: Kernel = ctx.kernel
        psi, *inputs = (alive(t) for t in ctx.saved_tensors)
        adjoint = invert(Reduced(kernel, (*(t.unsqueeze(0) for t in (*inputs, psi)),)), cotangent[None, :, None])[0]

        def pairing(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, gamma: Tensor) -> Tensor:
            shared, _ = kernel.share(x, y, psi, rows, columns, gamma, adjoint)
            return (columns @ adjoint - rows @ shared).squeeze(0) / gamma

        return None, *_pull_back(pairing, inputs, ctx.needs_input_grad[1:], cotangent.new_ones(()))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return one_by_one(_Columns, info, in_dims, inputs)


def _pull_back(function: Callable[..., Tensor], inputs: Sequence[Tensor], needed: Sequence[bool], cotangent: Tensor) -> list[Tensor | None]:
    """The cotangents of the inputs that need one, differentiable themselves."""
    wanted = [k for k, need in enumerate(needed) if need]
    gradients: list[Tensor | None] = [None] * len(inputs)

    def chosen(*some: Tensor) -> Tensor:
        replaced = list(inputs)
        for k, tensor in zip(wanted, some, strict=True):
            replaced[k] = tensor
        return function(*replaced)

    back: Any = torch.func.vjp(chosen, *(inputs[k] for k in wanted))[1]
    for k, gradient in zip(wanted, back(cotangent), strict=True):
        gradients[k] = gradient
    return gradients


@dataclass(frozen=True)
class Reduced(Operator):
    """S + ccᵀ/Σc of one problem: symmetric, positive definite on the columns that have weight, zero on the others.

    Args:
        numbers: x, y, r, c, γ and ψ, each with a leading dimension of 1.
    """

    kernel: Kernel
    numbers: tuple[Tensor, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.numbers

    def with_tensors(self, tensors: Sequence[Tensor]) -> Reduced:
        return Reduced(self.kernel, tuple(tensors))

    @property
    def shape(self) -> tuple[int, int, int]:
        m = self.numbers[1].shape[1]
        return 1, m, m

    def transpose(self) -> Reduced:
        return self

    def matmul_columns(self, columns: Tensor) -> Tensor:
        x, y, r, c, gamma, psi = (t[0] for t in self.numbers)
        v, weight = columns[0], c.unsqueeze(1)
        shared, scaled = self.kernel.share(x, y, psi, r, c, gamma, v)
        image = self.kernel.transposed_times(self.kernel.features(x, self.kernel.found.rows, y, psi, gamma), torch.cat([scaled, scaled * shared], 1))
        return (weight * (image[:, :1] * v - image[:, 1:] + c @ v / c.sum())).unsqueeze(0)

    def solve_columns(self, columns: Tensor) -> Tensor:
        x, y, r, c, gamma, psi = (t[0] for t in self.numbers)
        kernel = self.kernel
        cloud = Cloud(kernel.ground, x, y, r, c, gamma, kernel.tile)
        phi, sums = cloud.sweep(kernel.found.rows, psi, kernel.dtype)

        def product(v: Tensor) -> Tensor:
            return sums.unsqueeze(1) * v - cloud.product(phi, psi, v, kernel.dtype) + c.unsqueeze(1) * (c @ v / c.sum())

        return conjugate_gradients(product, torch.where(c > 0, c, 1.0).unsqueeze(1), columns[0], kernel.tolerance).unsqueeze(0)


def conjugate_gradients(product: Callable[[Tensor], Tensor], diagonal: Tensor, side: Tensor, tolerance: float) -> Tensor:
    """The solution (m, k) for k right-hand sides at once, to a residual of `tolerance` relative to each, in the norm of 1/diagonal."""
    solution, residual = torch.zeros_like(side), side
    z = residual / diagonal
    direction, size = z, (residual * z).sum(0)
    goal = tolerance**2 * size
    for _ in range(_STEPS):
        if bool((size <= goal).all()):
            return solution
        image = product(direction)
        curvature = (direction * image).sum(0)
        length = torch.where(curvature > 0, size / curvature, 0.0)
        solution, residual = solution + length * direction, residual - length * image
        z = residual / diagonal
        new = (residual * z).sum(0)
        direction, size = z + torch.where(size > 0, new / size, 0.0) * direction, new
    worst = float((size / torch.where(goal > 0, goal, 1.0)).max().sqrt()) * tolerance
    warnings.warn(
        f"conjugate gradients for the derivative of a transport plan stopped after {_STEPS} steps at a relative residual of {worst:.1e} ({tolerance:.1e} was "
        "asked for): a larger epsilon makes the system easier",
        SolverWarning,
        stacklevel=2,
    )
    return solution
