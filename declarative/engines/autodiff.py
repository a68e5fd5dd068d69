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
from collections.abc import Sequence

import torch
from torch import Tensor

from declarative.batching import batched
from declarative.engines.base import Linearisation
from declarative.engines.functional import FunctionalLinearisation, derivatives, lagrangian, rows_a_chunk, unit_cotangents
from declarative.engines.nested import nested_hessian, nested_jacobian, pays
from declarative.problem import Problem
from declarative.transforms import transforms_active
from declarative.typing import Directions, EqualityMultipliers, Hessians, InequalityMultipliers, Jacobians, Products, Rows, Variables
from declarative.vectors import joined, times

# Numbers of B, and of the tensors behind it, times m.
_NUMBERS_OF_MIXED = 65_536


def linearise(
    problem: Problem, y: Variables, equality: EqualityMultipliers | None = None, inequality: InequalityMultipliers | None = None, wanted: Sequence[int] = ()
) -> Linearisation:
    """Linearise the KKT system of the problem at (y, ν, μ), by the node's closed form if it has one; multipliers that are None count as zero.

    Args:
        wanted: positions of the problem's tensors for which `pull_back` will be asked.
    """
    if problem.node.blocks is not None:
        return problem.node.blocks.linearise(problem, y, equality, inequality, wanted)
    return autodiff(problem, y, equality, inequality, wanted)


def autodiff(
    problem: Problem, y: Variables, equality: EqualityMultipliers | None = None, inequality: InequalityMultipliers | None = None, wanted: Sequence[int] = ()
) -> Linearisation:
    """The same from the statement, whatever else the node knows."""
    if transforms_active():
        return FunctionalLinearisation(problem, y, equality, inequality)
    return GraphLinearisation(problem, y, equality, inequality, wanted)


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
            self._a = joined(parts[1], parts[2])
            self._parts = parts
            self._gradient = self._slope(parts, equality, inequality)
        self._problem, self._multipliers, self._wanted = problem, (equality, inequality), wanted
        self._hessian: Tensor | None = None
        self._jacobian: Tensor | None = None
        self._mixed: dict[int, Tensor] = {}
        self._mixed_rows: dict[int, Tensor] = {}

    def with_multipliers(self, equality: Tensor, inequality: Tensor) -> GraphLinearisation:
        if not self._a.shape[1]:
            return self
        other = copy.copy(self)
        with torch.enable_grad():
            if self._multipliers == (None, None):
                # ∇f is there: what is added to it is Aᵀλ. At m = 10 a quarter of the time that the Lagrangian takes anew.
                other._gradient = self._gradient + self._derivative(self._a, joined(equality, inequality), create_graph=True)
            else:
                other._gradient = self._slope(self._parts, equality, inequality)
        other._multipliers, other._mixed = (equality, inequality), {}
        return other

    def _alias(self, tensor: Tensor) -> Tensor:
        if self._create_graph and tensor.requires_grad:
            return tensor.view_as(tensor)
        return tensor.detach().requires_grad_()

    def _derivative(self, output: Tensor, cotangent: Tensor, *, create_graph: bool | None = None) -> Tensor:
        """vᵀ ∂output/∂y"""
        if not output.requires_grad:
            return torch.zeros_like(self._y)
        return derivatives((output,), (self._y,), (cotangent,), create_graph=self._create_graph if create_graph is None else create_graph)[0]

    def _slope(self, parts: tuple[Tensor, Tensor, Tensor], equality: Tensor | None, inequality: Tensor | None) -> Tensor:
        """∇_y L, with its graph."""
        total = lagrangian(parts, equality, inequality)
        return self._derivative(total, torch.ones_like(total), create_graph=True)

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
        return self._products(output, unit_cotangents(output) if cotangents is None else cotangents, (self._y,))[0].transpose(0, 1)

    def _products(self, output: Tensor, cotangents: Tensor, targets: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """(c, *shape) for each target: its derivative of output (b, k) with cotangents (c, k)."""
        count, b = cotangents.shape[0], output.shape[0]
        if count == 0 or output.shape[1] == 0 or not output.requires_grad:
            return tuple(t.new_zeros(count, *t.shape) for t in targets)
        cotangents = cotangents.unsqueeze(1).expand(count, b, output.shape[1])

        def product(cotangent: Tensor) -> tuple[Tensor, ...]:
            return derivatives((output,), targets, (cotangent,), create_graph=self._create_graph)

        if count == 1:
            return tuple(result.unsqueeze(0) for result in product(cotangents[0]))
        step = rows_a_chunk(self._y)
        # Not is_grads_batched=True: its legacy vmap cannot run a custom Function, so not a node inside a node.
        if count <= step:
            return batched(product, (0,), count, (cotangents,))
        chunks = [batched(product, (0,), len(part), (part,)) for part in cotangents.split(step)]
        return tuple(torch.cat(parts) for parts in zip(*chunks, strict=True))

    def hessian(self) -> Hessians:
        if self._hessian is not None and not self._create_graph:
            return self._hessian
        if not self._create_graph and self._gradient.requires_grad and pays(self._problem, self._y, self._y.shape[1]):
            return nested_hessian(self._problem, self._y.detach(), *self._multipliers)
        rows, self._mixed = self._rows_and_mixed(self._gradient)
        return rows

    def jacobian(self) -> Jacobians:
        if self._jacobian is None:
            count = self._a.shape[1]
            if not self._create_graph and self._a.requires_grad and pays(self._problem, self._y, count):
                self._jacobian = nested_jacobian(self._problem, self._y.detach(), count)
            else:
                self._jacobian, self._mixed_rows = self._rows_and_mixed(self._a)
        return self._jacobian

    def _rows_and_mixed(self, output: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """H or A, and B or C of the wanted tensors, (b, n, k) each, where they come at little cost.

        The products that H and A take anyway then go on to x, a few operations, where a pull-back would walk the whole graph once more: a fifth of a
        backward pass at m = 10. Not for what the batch shares, which has no B of each sample, nor beside large tensors (weights, perhaps), through
        which m pull-backs may be much work.
        """
        problem, count = self._problem, output.shape[1]
        numbers = count * sum(t.numel() * (1 if dim == 0 else problem.batch) for t, dim in zip(problem.tensors, problem.in_dims, strict=True))
        if self._create_graph or numbers > _NUMBERS_OF_MIXED or any(problem.in_dims[k] is None for k in self._wanted):
            return self._rows(output), {}
        rows, *mixed = self._products(output, unit_cotangents(output), (self._y, *(self._tensors[k] for k in self._wanted)))
        return rows.transpose(0, 1), {k: block.unsqueeze(-1).flatten(2).permute(1, 2, 0) for k, block in zip(self._wanted, mixed, strict=True)}

    def hessian_product(self, direction: Variables) -> Variables:
        if self._hessian is not None and not self._create_graph:
            return times(self._hessian, direction)
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
        if self._jacobian is not None and not self._create_graph:
            return times(self._jacobian.mT, rows)
        return self._derivative(self._a, rows)

    def jacobian_products(self, cotangents: Directions) -> Products:
        return self._rows(self._a, cotangents)

    def row_sizes(self) -> Rows:
        return self.jacobian().abs().sum(2)

    def _joint_outputs(self, u: Tensor, w: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        pairs = [(o, c) for o, c in ((self._gradient, u), (self._a, w)) if o.requires_grad and o.shape[1]]
        return [o for o, _ in pairs], [c for _, c in pairs]

    def pull_back(self, u: Variables, w: Rows, wanted: Sequence[int]) -> list[Tensor]:
        targets = [self._tensors[k] for k in wanted]
        if all(k in self._mixed for k in wanted) and (all(k in self._mixed_rows for k in wanted) or not w.shape[1]):
            found = [times(self._mixed[k], u) for k in wanted]
            if w.shape[1]:
                found = [b + times(self._mixed_rows[k], w) for b, k in zip(found, wanted, strict=True)]
            return [b.view_as(t) for b, t in zip(found, targets, strict=True)]
        outputs, cotangents = self._joint_outputs(u, w)
        if not outputs:
            return [torch.zeros_like(t) for t in targets]
        # u and w enter as cotangents, so they are held fixed here and still differentiated by the next order.
        return list(derivatives(outputs, targets, cotangents, create_graph=self._create_graph))

    def input_gradients(self, u: Variables, w: Rows, wanted: Sequence[int]) -> list[Tensor]:
        # The sign goes to u and w, which are often smaller than the inputs.
        return self.pull_back(-u, -w if w.shape[1] else w, wanted)

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
