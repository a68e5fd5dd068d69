"""Derivatives of entropic transport between clouds, of every order, in the memory of one tile.

    V = min_P ⟨P, M⟩ + (1/γ) Σ_ij P_ij log(P_ij / r_i c_j),   M_ij = cost(x_i, y_j),   P_ij = r_i c_j K_ij,   K_ij = exp(γ(φ_i + ψ_j − M_ij))

An iteration finds the potentials as numbers. Three rules make them, and V, differentiable, each by sums over pairs:

* ∂V/∂(r, c, M) = (φ − 1/2γ, ψ − 1/2γ, P), ∂V/∂γ = −(1/γ) Σ_ij P_ij (φ_i + ψ_j − M_ij), where the potentials are functions in turn: so the next
  derivative is right, too.
* φ_i = −(1/γ) log Σ_j c_j exp(γ(ψ_j − M_ij)).
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
from declarative.layers.transport.pair_kernel import PairKernel
from declarative.layers.transport.pairs import one_by_one
from declarative.layers.transport.tiles import Cloud
from declarative.structure.base import Operator, invert
from declarative.transforms import alive, is_differentiated, reject_legacy_vmap

_STEPS = 500  # of conjugate gradients, at most


def value(kernel: PairKernel, x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, gamma: Tensor) -> Tensor:
    """V, ()."""
    return _Value.apply(kernel, x, y, rows, columns, gamma)  # pyright: ignore[reportReturnType]


def loss(kernel: PairKernel, x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, gamma: Tensor) -> Tensor:
    """⟨P, M⟩, ()."""
    phi, psi = potentials(kernel, x, y, rows, columns, gamma)
    return rows @ kernel.costs(kernel.features(x, y, gamma, phi, psi), phi, psi, columns)


def potentials(kernel: PairKernel, x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """(φ, ψ) as functions of everything, up to a common constant; numbers where nothing is differentiated."""
    if not is_differentiated(x, y, rows, columns, gamma):
        return kernel.found.rows, kernel.found.columns
    return _Potentials.apply(kernel, x, y, rows, columns, gamma)  # pyright: ignore[reportReturnType]


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(kernel: PairKernel, x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, gamma: Tensor) -> Tensor:  # noqa: ARG004  # pyright: ignore[reportIncompatibleMethodOverride]
        # One of the potentials is the soft minimum of the other, so this is the dual value: errors enter squared.
        return rows @ kernel.found.rows + columns @ kernel.found.columns

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.kernel = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        reject_legacy_vmap(cotangent)
        kernel: PairKernel = ctx.kernel
        x, y, rows, columns, gamma = inputs = tuple(alive(t) for t in ctx.saved_tensors)
        phi, psi = potentials(kernel, *inputs)
        need_x, need_y, need_rows, need_columns, need_gamma = ctx.needs_input_grad[1:]
        # x and y are the same points if the problem is symmetric, and V does not change when they change places.
        doubled = kernel.symmetric and need_x
        need_y = need_y and not doubled
        points: tuple[Tensor | None, ...] = (None, None, None)
        if need_x or need_y or need_gamma:
            wanted = (0, 1, 2) if need_gamma else (0,) * need_x + (1,) * need_y
            made: Any = torch.func.vjp(lambda x, y, gamma: kernel.features(x, y, gamma, phi, psi), x, y, gamma)
            features, back = made
            pulled = kernel.pull_times(features, columns.unsqueeze(1), -(cotangent / gamma) * rows.unsqueeze(1), wanted)
            sides = dict(zip(wanted, pulled, strict=True))
            points = back(tuple(sides[k] if k in sides else torch.zeros_like(t) for k, t in enumerate(features)))
        x_bar, y_bar, gamma_bar = (t if need else None for t, need in zip(points, (need_x, need_y, need_gamma), strict=True))
        rows_bar = cotangent * (phi - 0.5 / gamma) if need_rows else None
        columns_bar = cotangent * (psi - 0.5 / gamma) if need_columns else None
        return None, 2 * x_bar if doubled and x_bar is not None else x_bar, y_bar, rows_bar, columns_bar, gamma_bar

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return one_by_one(_Value, info, in_dims, inputs)


class _Potentials(torch.autograd.Function):
    @staticmethod
    def forward(kernel: PairKernel, *inputs: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG004  # pyright: ignore[reportIncompatibleMethodOverride]
        return kernel.found.rows.clone(), kernel.found.columns.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.kernel = inputs[0]
        ctx.save_for_backward(*output, *inputs[1:])

    @staticmethod
    def backward(ctx: Any, phi_bar: Tensor, psi_bar: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        reject_legacy_vmap(phi_bar, psi_bar)
        kernel: PairKernel = ctx.kernel
        phi, psi, *inputs = (alive(t) for t in ctx.saved_tensors)
        x, y, rows, columns, gamma = inputs
        needed = ctx.needs_input_grad[1:]
        beside: list[Tensor | None] = [None] * 5
        if kernel.empty:
            # F says nothing of columns without weight; there ψ is the soft minimum of φ.
            own, psi_bar = torch.where(columns > 0, 0.0, psi_bar), torch.where(columns > 0, psi_bar, 0.0)

            def soft(x: Tensor, y: Tensor, rows: Tensor, gamma: Tensor, phi: Tensor) -> Tensor:
                return kernel.soft_columns(x, y, rows, gamma, phi)

            beside[0], beside[1], beside[2], beside[4], more = _pull_back(soft, (x, y, rows, gamma, phi), (*needed[:3], needed[4], True), own)
            phi_bar = phi_bar + more  # pyright: ignore[reportOperatorIssue]
        # ∂φ_i/∂ψ_j = −P_ij / r_i
        side = psi_bar - columns * kernel.transposed_times(kernel.features(x, y, gamma, phi, psi), phi_bar.unsqueeze(1)).squeeze(1)
        adjoint = invert(Reduced(kernel, tuple(t.unsqueeze(0) for t in (*inputs, psi))), side[None, :, None])[0]

        def pairing(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, gamma: Tensor) -> Tensor:
            """⟨φ̄, φ⟩ − ⟨adjoint, F⟩ / γ at this ψ."""
            mass, image = _share(kernel, (x, y, columns, gamma, psi), adjoint)
            found = kernel.found.rows - mass.log().squeeze(1) / gamma
            return phi_bar @ found + (columns @ adjoint - rows @ image).squeeze(0) / gamma

        gradients = _pull_back(pairing, inputs, needed, torch.ones_like(gamma))
        return None, *(g if b is None or g is None else g + b for g, b in zip(gradients, beside, strict=True))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return one_by_one(_Potentials, info, in_dims, inputs)


def _share(kernel: PairKernel, at: tuple[Tensor, ...], side: Tensor) -> tuple[Tensor, Tensor]:
    """Z_i = Σ_j c_j K_ij (n, 1), with the φ that was found in K, and diag(P1)⁻¹ P · side, (m, k) -> (n, k), of the φ that belongs to this ψ."""
    x, y, columns, gamma, psi = at
    weight = columns.unsqueeze(1)
    image = kernel.times(kernel.features(x, y, gamma, kernel.found.rows, psi), torch.cat([weight, weight * side], 1))
    return image[:, :1], image[:, 1:] / image[:, :1]


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

    kernel: PairKernel
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
        kernel, v = self.kernel, columns[0]
        mass, image = _share(kernel, (x, y, c, gamma, psi), v)
        scaled = r.unsqueeze(1) / mass
        back = kernel.transposed_times(kernel.features(x, y, gamma, kernel.found.rows, psi), torch.cat([scaled, scaled * image], 1))
        return (c.unsqueeze(1) * (back[:, :1] * v - back[:, 1:] + c @ v / c.sum())).unsqueeze(0)

    def solve_columns(self, columns: Tensor) -> Tensor:
        x, y, r, c, gamma, psi = (t[0] for t in self.numbers)
        kernel = self.kernel
        cloud = Cloud(kernel.ground, x, y, r, c, gamma, kernel.tile, kernel.found.near)
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
