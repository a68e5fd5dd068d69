"""The contract of an engine's product: a `Linearisation`, the KKT system of a batch at one point.

Symbols as in docs/architecture.md: L = f + νᵀh + μᵀg; H = ∇²_yy L; a = (h, g) with all q rows of g; A = ∂a/∂y. The
blocks B = ∇²_yx L and C = ∂a/∂x are not part of it: `pull_back` and `push_forward` multiply with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from declarative.problem import Problem
from declarative.structure.base import Operator, RowsOperator
from declarative.typing import Directions, EqualityMultipliers, Hessians, InequalityMultipliers, Jacobians, Products, Rows, Values, Variables


@runtime_checkable
class ClosedForm(Protocol):
    """What `DeclarativeNode.blocks` may be: the blocks in formulas, in place of autodiff."""

    @property
    def structured(self) -> bool:
        """Whether H is solved with by its structure."""
        ...

    @property
    def description(self) -> tuple[str, str]:
        """H and A in words."""
        ...

    def cost(self, m: int, k: int) -> tuple[float, float]:
        """Roughly, the flops of one sample's solve and the numbers that it holds, for y of m numbers and k constraints."""
        ...

    def linearise(
        self, problem: Problem, y: Variables, equality: EqualityMultipliers | None, inequality: InequalityMultipliers | None, wanted: Sequence[int] = ()
    ) -> StructuredLinearisation:
        """The KKT system at a point."""
        ...

    def contradiction(self, problem: Problem) -> Values | None:
        """(b,) by how much the constraints contradict each other, whatever y is, relative to their terms; None: that cannot happen, or is not known."""
        ...


class Linearisation(Protocol):
    """Values and derivatives of a batch of problems at (x, y, ν, μ)."""

    @property
    def objective(self) -> Values:
        """Values of f."""
        ...

    @property
    def constraints(self) -> Rows:
        """Values of a = (h, g)."""
        ...

    @property
    def equalities(self) -> int:
        """p, how many of the constraints are equalities."""
        ...

    @property
    def gradient(self) -> Variables:
        """∇_y L."""
        ...

    def with_multipliers(self, equality: EqualityMultipliers, inequality: InequalityMultipliers) -> Linearisation:
        """The same point with other multipliers; what does not depend on them is kept."""
        ...

    def hessian(self) -> Hessians:
        """H, dense, from m products."""
        ...

    def jacobian(self) -> Jacobians:
        """A, dense, from p + q products."""
        ...

    def hessian_product(self, direction: Variables) -> Variables:
        """H d, from one product."""
        ...

    def hessian_products(self, directions: Directions) -> Products:
        """H d for c directions that the batch shares, from c products."""
        ...

    def jacobian_product(self, direction: Variables) -> Rows:
        """A d, from two products."""
        ...

    def jacobian_transposed_product(self, rows: Rows) -> Variables:
        """Aᵀw, from one product."""
        ...

    def jacobian_products(self, cotangents: Directions) -> Products:
        """Aᵀw for c combinations of constraints that the batch shares, from c products."""
        ...

    def row_sizes(self) -> Rows:
        """Σ_j |A_ij|"""
        ...

    def pull_back(self, u: Variables, w: Rows, wanted: Sequence[int]) -> list[Tensor]:
        """Bᵀu + Cᵀw for the problem's tensors of these positions: ∇_x[⟨u, ∇_y L⟩ + ⟨w, a⟩] with u, w, y, λ held."""
        ...

    def input_gradients(self, u: Variables, w: Rows, wanted: Sequence[int]) -> list[Tensor]:
        """x̄ = −(Bᵀu + Cᵀw), in whatever way costs least."""
        ...

    def push_forward(self, tangents: dict[int, Tensor]) -> tuple[Variables, Rows]:
        """(B dx, C dx) for tangents of the problem's tensors, by position."""
        ...


class StructuredLinearisation(Linearisation, Protocol):
    """A linearisation that knows the structure of H and A."""

    def hessian_operator(self) -> Operator:
        """H (b, m, m)"""
        ...

    def jacobian_operator(self) -> RowsOperator | None:
        """A (b, k, m); None without constraints."""
        ...

    def magnitudes(self) -> RowsOperator | None:
        """|A|, entry by entry, or a bound on it."""
        ...
