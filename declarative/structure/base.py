"""The contract of an operator: a batch of linear maps known by few numbers, that multiplies, solves, and differentiates.

One rule differentiates every solve: with z = K⁻¹r, the cotangent of r is K⁻ᵀz̄ = u and that of the numbers t that K is made
of is −∇_t⟨u, K(t) z⟩, one more product. So an operator writes its product in differentiable torch and its solve in anything:
a library, a recursion, an iteration. It is differentiable to any order, in both modes, under every transform of torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from declarative.errors import SingularOperatorError, name_samples
from declarative.transforms import alive, at_outer_levels, folded, is_differentiated


class Operator(ABC):
    """A batch of b linear maps from c numbers to r. Its tensors come batch first.

    To write one: `tensors`, `with_tensors`, `shape`, `matmul_columns`, `transpose` and, where it can be inverted,
    `solve_columns`. The rest follows.
    """

    checks_itself: bool = False
    """Whether `solve_columns` says for itself where it cannot solve, so that its results need no second look."""

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """The numbers that it is made of, each (b, …)."""

    @abstractmethod
    def with_tensors(self, tensors: Sequence[Tensor]) -> Self:
        """The same structure over other numbers (of another batch size, perhaps)."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(b, r, c)"""

    @abstractmethod
    def matmul_columns(self, columns: Tensor) -> Tensor:
        """(b, c, k) -> (b, r, k), in differentiable torch."""

    @abstractmethod
    def transpose(self) -> Operator:
        """(b, c, r)"""

    def solve_columns(self, columns: Tensor) -> Tensor:
        """(b, n, k) -> (b, n, k): in numbers only, not recorded. Not finite in samples that are singular."""
        return torch.linalg.solve_ex(self.to_dense(), columns).result

    def attempt_columns(self, columns: Tensor) -> tuple[Tensor, Tensor | None]:
        """The same, and (b,) where it served, which is not looked at: for whoever looks at other numbers of the solution anyway. None: everywhere."""
        return self.solve_columns(columns), None

    def matmul(self, x: Tensor) -> Tensor:
        """The product with (b, c) or (b, c, k)."""
        self._check("matmul", x, self.shape[2])
        return self.matmul_columns(x) if x.ndim == 3 else self.matmul_columns(x.unsqueeze(-1)).squeeze(-1)

    def solve(self, rhs: Tensor) -> Tensor:
        """The solution z of (operator) z = rhs, for rhs (b, n) or (b, n, k). Differentiable to any order.

        Raises:
            SingularOperatorError: at samples whose map is not invertible.
        """
        if self.shape[1] != self.shape[2]:
            raise ValueError(f"{type(self).__name__}.solve needs a square operator, this one is {self.shape[1]} x {self.shape[2]}")
        self._check("solve", rhs, self.shape[1])
        return invert(self, rhs) if rhs.ndim == 3 else invert(self, rhs.unsqueeze(-1)).squeeze(-1)

    def to_dense(self) -> Tensor:
        """(b, r, c)"""
        b, _, c = self.shape
        like = self.tensors[0]
        return self.matmul_columns(torch.eye(c, dtype=like.dtype, device=like.device).expand(b, c, c))

    def diagonal(self) -> Tensor:
        """(b, min(r, c))"""
        return self.to_dense().diagonal(dim1=-2, dim2=-1)

    def is_positive_definite(self) -> Tensor:
        """(b,) bool, of a symmetric operator."""
        return torch.linalg.cholesky_ex(self.to_dense()).info == 0

    def _check(self, name: str, x: Tensor, size: int) -> None:
        b = self.shape[0]
        if x.ndim not in (2, 3) or x.shape[0] != b or x.shape[1] != size:
            raise ValueError(f"{type(self).__name__}.{name} expects ({b}, {size}) or ({b}, {size}, k), got {tuple(x.shape)}")


class RowsOperator(Operator):
    """A, the Jacobian of the constraints, of a kind that knows S = A diag(weights) Aᵀ without being formed."""

    @abstractmethod
    def gram(self, weights: Tensor) -> Tensor:
        """S (b, k, k), for weights (b, m)."""

    @abstractmethod
    def magnitudes(self) -> Operator:
        """|A|, entry by entry."""

    @property
    def knows_complement(self) -> bool:
        """Whether S has a structure of its own, which `complement` makes use of."""
        return False

    def complement(self, weights: Tensor) -> Operator:
        """S as an operator to solve with."""
        raise NotImplementedError(f"{type(self).__name__} knows no structure of S")


def invert(operator: Operator, columns: Tensor) -> Tensor:
    """operator⁻¹ · columns, by the rule above."""
    if not is_differentiated(columns, *operator.tensors):
        return _Inverse.forward(operator, columns, *operator.tensors)
    return _Inverse.apply(operator, columns, *operator.tensors)


def _checked(operator: Operator, columns: Tensor, solution: Tensor) -> Tensor:
    good = torch.isfinite(solution)
    if not bool(good.all()):
        # What was not finite before is not the operator's fault.
        given = torch.isfinite(columns).flatten(1).all(1)
        for tensor in operator.tensors:
            given = given & torch.isfinite(tensor).flatten(1).all(1)
        singular = (given & ~good.flatten(1).all(1)).nonzero().squeeze(1).tolist()
        if singular:
            raise SingularOperatorError(
                f"{type(operator).__name__} is singular at {name_samples(singular, columns.shape[0])}; it cannot be solved with. Check the numbers that it "
                "was built from, or leave the structure undeclared"
            )
    return solution


class _Inverse(torch.autograd.Function):
    @staticmethod
    def forward(operator: Operator, columns: Tensor, *tensors: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        detached = operator.with_tensors([t.detach() for t in tensors])
        solution = detached.solve_columns(columns.detach())
        return solution if operator.checks_itself else _checked(detached, columns, solution)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        operator, _, *tensors = inputs
        ctx.operator = operator
        ctx.save_for_backward(output, *tensors)
        ctx.save_for_forward(output, *tensors)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        solution, *tensors = (alive(t) for t in ctx.saved_tensors)
        operator: Operator = ctx.operator.with_tensors(tensors)
        adjoint = invert(operator.transpose(), cotangent)
        wanted = [k for k, needed in enumerate(ctx.needs_input_grad[2:]) if needed]
        gradients: list[Tensor | None] = [None] * len(tensors)
        if wanted:

            def pairing(*chosen: Tensor) -> Tensor:
                replaced = list(tensors)
                for k, tensor in zip(wanted, chosen, strict=True):
                    replaced[k] = tensor
                return -(adjoint * operator.with_tensors(replaced).matmul_columns(solution)).sum()

            pull_back: Any = torch.func.vjp(pairing, *(tensors[k] for k in wanted))[1]
            for k, gradient in zip(wanted, pull_back(torch.ones((), dtype=adjoint.dtype, device=adjoint.device)), strict=True):
                gradients[k] = gradient
        return None, adjoint, *gradients

    @staticmethod
    def jvp(ctx: Any, _: None, columns_tangent: Tensor | None, *tangents: Tensor | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        count = len(tangents)

        def push(solution: Tensor, *operands: Tensor | None) -> tuple[Tensor]:
            tensors = [t for t in operands[:count] if t is not None]
            operator: Operator = ctx.operator.with_tensors(tensors)
            given = operands[count]
            rhs = torch.zeros_like(solution) if given is None else given
            moving = {k: t for k, t in enumerate(operands[count + 1 :]) if t is not None}
            if moving:
                rhs = rhs - _tangent_of_product(operator, tensors, moving, solution)
            return (invert(operator, rhs),)

        return at_outer_levels(push, (*ctx.saved_tensors, columns_tangent, *tangents))[0]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], operator: Operator, columns: Tensor, *tensors: Tensor) -> tuple[Tensor, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        size = info.batch_size
        _, columns_dim, *dims = in_dims
        if all(dim is None for dim in dims):
            # Many right-hand sides for one operator: columns of one solve.
            side = columns.movedim(columns_dim, -1)
            solution = invert(operator.with_tensors(tensors), side.flatten(-2))
            return solution.unflatten(-1, side.shape[-2:]), solution.ndim

        solution = invert(operator.with_tensors([folded(t, dim, size) for t, dim in zip(tensors, dims, strict=True)]), folded(columns, columns_dim, size))
        return solution.reshape(size, *columns.movedim(columns_dim, 0).shape[1:] if columns_dim is not None else columns.shape), 0


def _tangent_of_product(operator: Operator, tensors: list[Tensor], moving: dict[int, Tensor], solution: Tensor) -> Tensor:
    """(dK) z for tangents of the tensors: the transpose of the transposed map, because torch nests no forward mode here."""

    def product(*chosen: Tensor) -> Tensor:
        replaced = list(tensors)
        for k, tensor in zip(moving, chosen, strict=True):
            replaced[k] = tensor
        return operator.with_tensors(replaced).matmul_columns(solution)

    pulled: Any = torch.func.vjp(product, *(tensors[k] for k in moving))
    value, pull_back = pulled
    twice: Any = torch.func.vjp(lambda cotangent: pull_back(cotangent), torch.zeros_like(value))[1]
    return twice(tuple(moving.values()))[0]
