"""The autodiff engine: two evaluators of the same blocks.

* `GraphLinearisation` builds ONE autograd graph of the batched statement and reuses it: H and A by products batched by
  vmap, and the pull-back by one more product. A whole backward at m = 10 takes a sixth of what nested
  torch.func transforms take, because a small backward costs transforms, not arithmetic.
* `FunctionalLinearisation` does the same with torch.func, whose levels plain autograd cannot serve.

Both are differentiable themselves when grad mode is on (or under a torch.func level): that is all that higher
derivatives need.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from declarative.batching import batched
from declarative.engines.base import Linearisation
from declarative.engines.nested import nested_hessian, nested_jacobian, pays
from declarative.problem import Problem
from declarative.transforms import transforms_active
from declarative.typing import Directions, EqualityMultipliers, Hessians, InequalityMultipliers, Jacobians, Products, Rows, Variables

# Batched products move m·b numbers a row through the graph; past the cache one large sweep is slower than several
# small ones (440 ms unchunked, 250 ms chunked at m = 200, b = 128).
_NUMBERS_A_CHUNK = 65_536


def linearise(
    problem: Problem, y: Variables, equality: EqualityMultipliers | None = None, inequality: InequalityMultipliers | None = None, wanted: Sequence[int] = ()
) -> Linearisation:
    """Linearise the KKT system of the problem at (y, ν, μ); multipliers that are None count as zero.

    Args:
        wanted: positions of the problem's tensors for which `pull_back` will be asked.
    """
    if transforms_active():
        return FunctionalLinearisation(problem, y, equality, inequality)
    return GraphLinearisation(problem, y, equality, inequality, wanted)


def _lagrangian(parts: tuple[Tensor, Tensor, Tensor], equality: Tensor | None, inequality: Tensor | None) -> Tensor:
    """Σ_samples f + νᵀh + μᵀg. Samples are separate instances, so the sum's derivatives are each sample's own."""
    objective, h, g = parts
    total = objective.sum()
    if equality is not None and h.shape[1]:
        total = total + (equality * h).sum()
    if inequality is not None and g.shape[1]:
        total = total + (inequality * g).sum()
    return total


def _unit_cotangents(output: Tensor) -> Tensor:
    """(count, count): the i-th selects output i in every sample."""
    return torch.eye(output.shape[1], dtype=output.dtype, device=output.device)


def _rows_a_chunk(y: Tensor) -> int:
    return max(1, _NUMBERS_A_CHUNK // max(1, y.numel()))


class GraphLinearisation:
    """The blocks from one reused autograd graph. Differentiable when built with grad mode on."""

    def __init__(self, problem: Problem, y: Tensor, equality: Tensor | None, inequality: Tensor | None, wanted: Sequence[int]) -> None:
        self._create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            # Aliases: the partial derivative with respect to x must not run through y(x), though a higher derivative
            # must. autograd.grad follows only paths to the alias, while the alias itself hangs on the original.
            self._y = self._alias(y)
            self._tensors = [self._alias(t) if k in wanted else (t if self._create_graph else t.detach()) for k, t in enumerate(problem.tensors)]
            parts = problem.evaluate(self._y, self._tensors)
            self._a = torch.cat(parts[1:], 1) if parts[1].shape[1] and parts[2].shape[1] else parts[1 if parts[1].shape[1] else 2]
            self._parts = parts
            self._gradient = self._derivative(_lagrangian(parts, equality, inequality), None, create_graph=True)
        self._problem, self._multipliers = problem, (equality, inequality)
        self._hessian: Tensor | None = None
        self._jacobian: Tensor | None = None

    def with_multipliers(self, equality: Tensor, inequality: Tensor) -> GraphLinearisation:
        if not self._a.shape[1]:
            return self
        other = copy.copy(self)
        with torch.enable_grad():
            other._gradient = self._derivative(_lagrangian(self._parts, equality, inequality), None, create_graph=True)
        other._multipliers = equality, inequality
        return other

    def _alias(self, tensor: Tensor) -> Tensor:
        if self._create_graph and tensor.requires_grad:
            return tensor.view_as(tensor)
        return tensor.detach().requires_grad_()

    def _derivative(self, output: Tensor, cotangent: Tensor | None, *, create_graph: bool | None = None) -> Tensor:
        """vᵀ ∂output/∂y; a cotangent of None selects a scalar output itself."""
        if not output.requires_grad:
            return torch.zeros_like(self._y)
        (result,) = torch.autograd.grad(
            output,
            self._y,
            cotangent,
            retain_graph=True,
            create_graph=self._create_graph if create_graph is None else create_graph,
            allow_unused=True,
            materialize_grads=True,
        )
        return result

    def _out(self, tensor: Tensor) -> Tensor:
        return tensor if self._create_graph else tensor.detach()

    @property
    def objective(self) -> Tensor:
        return self._out(self._parts[0])

    @property
    def constraints(self) -> Tensor:
        return self._out(self._a)

    @property
    def gradient(self) -> Tensor:
        return self._out(self._gradient)

    @property
    def equalities(self) -> int:
        """p"""
        return self._parts[1].shape[1]

    @property
    def roots(self) -> tuple[Tensor, ...]:
        """The graph's outputs, for whoever walks it."""
        return self._parts[0], self._a, self._gradient

    def knows(self, hessian: Hessians, jacobian: Jacobians) -> None:
        """H and A, where they are the same at every y and λ: never formed again."""
        self._hessian, self._jacobian = hessian, jacobian

    def derivatives(self) -> tuple[Tensor | None, Tensor | None]:
        """One product with H and one with A, each with its graph, for whoever walks it; None where there is nothing to derive."""
        with torch.enable_grad():
            pairs = ((self._gradient, self._y.detach()), (self._a, torch.ones_like(self._a)))
            found = [self._derivative(output, cotangent, create_graph=True) if output.requires_grad and output.numel() else None for output, cotangent in pairs]
        return found[0], found[1]

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """What the graph was built on."""
        return self._y, *self._tensors

    def _rows(self, output: Tensor, cotangents: Tensor | None = None) -> Tensor:
        """(b, c, m): products of the Jacobian of output (b, k) with cotangents (c, k), by default all of its rows."""
        if cotangents is None:
            cotangents = _unit_cotangents(output)
        count, b = cotangents.shape[0], output.shape[0]
        if count == 0 or output.shape[1] == 0 or not output.requires_grad:
            return self._y.new_zeros(b, count, self._y.shape[1])
        cotangents = cotangents.unsqueeze(1).expand(count, b, output.shape[1])
        if count == 1:
            return self._derivative(output, cotangents[0]).unsqueeze(1)
        step = _rows_a_chunk(self._y)
        # Not is_grads_batched=True: its legacy vmap (20 µs faster) cannot run a custom Function, so not a node inside a node.
        chunks = [batched(lambda cotangent: (self._derivative(output, cotangent),), (0,), len(part), (part,))[0] for part in cotangents.split(step)]
        rows = chunks[0] if len(chunks) == 1 else torch.cat(chunks)
        return rows.transpose(0, 1)

    def hessian(self) -> Hessians:
        if self._hessian is not None and not self._create_graph:
            return self._hessian
        if not self._create_graph and self._gradient.requires_grad and pays(self._problem, self._y, self._y.shape[1]):
            return nested_hessian(self._problem, self._y.detach(), *self._multipliers)
        return self._rows(self._gradient)

    def jacobian(self) -> Jacobians:
        if self._jacobian is None:
            count = self._a.shape[1]
            if not self._create_graph and self._a.requires_grad and pays(self._problem, self._y, count):
                self._jacobian = nested_jacobian(self._problem, self._y.detach(), count)
            else:
                self._jacobian = self._rows(self._a)
        return self._jacobian

    def hessian_product(self, direction: Variables) -> Variables:
        if self._hessian is not None and not self._create_graph:
            return torch.bmm(self._hessian, direction.unsqueeze(-1)).squeeze(-1)
        return self._derivative(self._gradient, direction)

    def hessian_products(self, directions: Directions) -> Products:
        return self._rows(self._gradient, directions)

    def jacobian_product(self, direction: Variables) -> Rows:
        if not self._a.requires_grad or not self._a.shape[1]:
            return torch.zeros_like(self._a)
        with torch.enable_grad():
            w = torch.zeros_like(self._a, requires_grad=True)
            pulled = self._derivative(self._a, w, create_graph=True)
        if not pulled.requires_grad:
            return torch.zeros_like(self._a)
        return torch.autograd.grad(pulled, w, direction, create_graph=self._create_graph, retain_graph=True)[0]

    def jacobian_transposed_product(self, rows: Rows) -> Variables:
        return self._derivative(self._a, rows)

    def jacobian_products(self, cotangents: Directions) -> Products:
        return self._rows(self._a, cotangents)

    def _joint_outputs(self, u: Tensor, w: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        pairs = [(o, c) for o, c in ((self._gradient, u), (self._a, w)) if o.requires_grad and o.shape[1]]
        return [o for o, _ in pairs], [c for _, c in pairs]

    def pull_back(self, u: Variables, w: Rows, wanted: Sequence[int]) -> list[Tensor]:
        targets = [self._tensors[k] for k in wanted]
        outputs, cotangents = self._joint_outputs(u, w)
        if not outputs:
            return [torch.zeros_like(t) for t in targets]
        # u and w enter as cotangents, so they are held fixed here and still differentiated by the next order.
        return list(
            torch.autograd.grad(outputs, targets, cotangents, create_graph=self._create_graph, retain_graph=True, allow_unused=True, materialize_grads=True)
        )

    def push_forward(self, tangents: dict[int, Tensor]) -> tuple[Variables, Rows]:
        # (B; C) dx is the transpose of the linear map (u, w) -> Bᵀu + Cᵀw: differentiate the pull-back with respect to
        # cotangents that it is linear in.
        targets = [self._tensors[k] for k in tangents]
        u, w = (torch.zeros_like(o, requires_grad=True) for o in (self._gradient, self._a))
        outputs, cotangents = self._joint_outputs(u, w)
        pulled = torch.autograd.grad(outputs, targets, cotangents, create_graph=True, allow_unused=True, materialize_grads=True) if outputs else ()
        pairs = [(o, t) for o, t in zip(pulled, tangents.values(), strict=False) if o.requires_grad]
        if not pairs:
            return torch.zeros_like(u), torch.zeros_like(w)
        du, dw = torch.autograd.grad(
            [o for o, _ in pairs], (u, w), [t for _, t in pairs], create_graph=self._create_graph, allow_unused=True, materialize_grads=True
        )
        return du, dw


class FunctionalLinearisation:
    """The blocks by torch.func, for use under its levels. Always differentiable."""

    def __init__(self, problem: Problem, y: Tensor, equality: Tensor | None, inequality: Tensor | None) -> None:
        self._problem, self._y = problem, y
        self._equality, self._inequality = equality, inequality
        outputs: Any = torch.func.vjp(self._system, y, has_aux=True)
        (self._gradient, self._a), self._transpose, self._f = outputs

    def with_multipliers(self, equality: Tensor, inequality: Tensor) -> FunctionalLinearisation:
        return FunctionalLinearisation(self._problem, self._y, equality, inequality)

    def _system(self, y: Tensor, tensors: Sequence[Tensor] | None = None) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """((∇_y L, a), f) as a function of y and the problem's tensors."""

        def total(v: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            parts = self._problem.evaluate(v, tensors)
            return _lagrangian(parts, self._equality, self._inequality), (torch.cat(parts[1:], 1), parts[0])

        gradient, (a, objective) = torch.func.grad(total, has_aux=True)(y)
        return (gradient, a), objective

    @property
    def objective(self) -> Tensor:
        return self._f

    @property
    def constraints(self) -> Tensor:
        return self._a

    @property
    def gradient(self) -> Tensor:
        return self._gradient

    def _rows(self, cotangents: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        b, count = self._y.shape[0], cotangents.shape[0]
        if cotangents.numel() == 0:
            return self._y.new_zeros(b, count, self._y.shape[1])
        expanded = cotangents.unsqueeze(1).expand(count, b, cotangents.shape[1])
        return torch.func.vmap(product, chunk_size=_rows_a_chunk(self._y))(expanded).transpose(0, 1)

    def hessian(self) -> Hessians:
        return self._rows(_unit_cotangents(self._gradient), self.hessian_product)

    def jacobian(self) -> Jacobians:
        return self.jacobian_products(_unit_cotangents(self._a))

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
