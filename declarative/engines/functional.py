"""The blocks by torch.func, whose levels plain autograd cannot serve; and what both evaluators share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward

from declarative.problem import Problem
from declarative.typing import Directions, Hessians, Jacobians, Products, Rows, Variables

# Batched products move m·b numbers a row through the graph; past the cache one large sweep is slower than several
# small ones (440 ms unchunked, 250 ms chunked at m = 200, b = 128).
_NUMBERS_A_CHUNK = 65_536


def lagrangian(parts: tuple[Tensor, Tensor, Tensor], equality: Tensor | None, inequality: Tensor | None) -> Tensor:
    """Σ_samples f + νᵀh + μᵀg. Samples are separate instances, so the sum's derivatives are each sample's own."""
    objective, h, g = parts
    total = objective.sum()
    if equality is not None and h.shape[1]:
        total = total + (equality * h).sum()
    if inequality is not None and g.shape[1]:
        total = total + (inequality * g).sum()
    return total


def derivatives(outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor], *, create_graph: bool) -> tuple[Tensor, ...]:
    """Σ cotangentᵀ ∂output/∂input for each input, zero where there is no path; the graph stays.

    The engine's own call, without the checks of shapes in torch.autograd.grad: those take 10 µs, and a backward pass at m = 10 makes two or three such calls.
    """
    found: Any = _engine_run_backward(tuple(outputs), tuple(cotangents), True, create_graph, tuple(inputs), allow_unreachable=True, accumulate_grad=False)
    return tuple(torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True))


def unit_cotangents(output: Tensor) -> Tensor:
    """(count, count): the i-th selects output i in every sample."""
    return torch.eye(output.shape[1], dtype=output.dtype, device=output.device)


def rows_a_chunk(y: Tensor) -> int:
    """How many products to batch at a time."""
    return max(1, _NUMBERS_A_CHUNK // max(1, y.numel()))


class FunctionalLinearisation:
    """The blocks by torch.func, for use under its levels. Always differentiable."""

    def __init__(self, problem: Problem, y: Tensor, equality: Tensor | None, inequality: Tensor | None) -> None:
        self._problem, self._y = problem, y
        self._equality, self._inequality = equality, inequality
        self._equalities = 0  # evaluation shows how many
        outputs: Any = torch.func.vjp(self._system, y, has_aux=True)
        (self._gradient, self._a), self._transpose, self._f = outputs

    def with_multipliers(self, equality: Tensor, inequality: Tensor) -> FunctionalLinearisation:
        return FunctionalLinearisation(self._problem, self._y, equality, inequality)

    def _system(self, y: Tensor, tensors: Sequence[Tensor] | None = None) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """((∇_y L, a), f) as a function of y and the problem's tensors."""

        def total(v: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            parts = self._problem.evaluate(v, tensors)
            self._equalities = parts[1].shape[1]
            return lagrangian(parts, self._equality, self._inequality), (torch.cat(parts[1:], 1), parts[0])

        gradient, (a, objective) = torch.func.grad(total, has_aux=True)(y)
        return (gradient, a), objective

    @property
    def objective(self) -> Tensor:
        return self._f

    @property
    def constraints(self) -> Tensor:
        return self._a

    @property
    def equalities(self) -> int:
        return self._equalities

    @property
    def gradient(self) -> Tensor:
        return self._gradient

    def _rows(self, cotangents: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        b, count = self._y.shape[0], cotangents.shape[0]
        if cotangents.numel() == 0:
            return self._y.new_zeros(b, count, self._y.shape[1])
        expanded = cotangents.unsqueeze(1).expand(count, b, cotangents.shape[1])
        return torch.func.vmap(product, chunk_size=rows_a_chunk(self._y))(expanded).transpose(0, 1)

    def hessian(self) -> Hessians:
        return self._rows(unit_cotangents(self._gradient), self.hessian_product)

    def jacobian(self) -> Jacobians:
        return self.jacobian_products(unit_cotangents(self._a))

    def hessian_product(self, direction: Variables) -> Variables:
        return self._transpose((direction, torch.zeros_like(self._a)))[0]

    def hessian_products(self, directions: Directions) -> Products:
        return self._rows(directions, self.hessian_product)

    def jacobian_product(self, direction: Variables) -> Rows:
        zero = torch.zeros_like(self._gradient)
        twice: Any = torch.func.vjp(lambda w: self._transpose((zero, w))[0], torch.zeros_like(self._a))[1]
        return twice(direction)[0]

    def jacobian_transposed_product(self, rows: Rows) -> Variables:
        return self._transpose((torch.zeros_like(self._gradient), rows))[0]

    def jacobian_products(self, cotangents: Directions) -> Products:
        zero = torch.zeros_like(self._gradient)
        return self._rows(cotangents, lambda w: self._transpose((zero, w))[0])

    def row_sizes(self) -> Rows:
        return self.jacobian().abs().sum(2)

    def _of_tensors(self, positions: Sequence[int]) -> Callable[..., tuple[Tensor, Tensor]]:
        def system(*chosen: Tensor) -> tuple[Tensor, Tensor]:
            tensors = list(self._problem.tensors)
            for position, tensor in zip(positions, chosen, strict=True):
                tensors[position] = tensor
            return self._system(self._y, tensors)[0]

        return system

    def pull_back(self, u: Variables, w: Rows, wanted: Sequence[int]) -> list[Tensor]:
        chosen = [self._problem.tensors[k] for k in wanted]
        transpose: Any = torch.func.vjp(self._of_tensors(wanted), *chosen)[1]
        return list(transpose((u, w)))

    def input_gradients(self, u: Variables, w: Rows, wanted: Sequence[int]) -> list[Tensor]:
        return self.pull_back(-u, -w, wanted)

    def push_forward(self, tangents: dict[int, Tensor]) -> tuple[Variables, Rows]:
        # The transpose of the linear pull-back, as above. torch.func.jvp would nest forward mode inside forward mode,
        # which torch 2.13 does not support.
        positions = list(tangents)
        chosen = [self._problem.tensors[k] for k in positions]
        pulled: Any = torch.func.vjp(self._of_tensors(positions), *chosen)
        outputs, transpose = pulled
        twice: Any = torch.func.vjp(lambda cotangents: transpose(cotangents), tuple(torch.zeros_like(o) for o in outputs))[1]
        ((du, dw),) = twice(tuple(tangents.values()))
        return du, dw
