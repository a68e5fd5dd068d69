"""Implicit differentiation of a solution: the formula of docs/architecture.md, once.

On the optimality conditions (∇_y L, a) = 0 the implicit function theorem gives K [dy; dλ] = −[B; C] dx with
K = [[H, Aᵀ], [A, 0]]. Reverse mode solves K [u; w] = [v; v_λ] for the cotangent and returns
x̄ = −∇_x[⟨u, ∇_y L⟩ + ⟨w, a⟩], one pull-back. (Gould, Hartley & Campbell, "Deep declarative networks", TPAMI 2022.)

One autograd Function serves every transform of torch: its forward runs any solver without a graph; its backward is made
of differentiable operations on its inputs AND outputs, so that differentiating the backward pass differentiates through
y and λ again, to any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from declarative.differentiation.base import Differentiation, Forward
from declarative.differentiation.call import Call, Record
from declarative.differentiation.linear_solvers import LinearSolver
from declarative.differentiation.system import System
from declarative.kkt.bordered import IRREGULAR_CHOICES
from declarative.problem import Layout, Problem
from declarative.solution import DerivativeReport, Point
from declarative.transforms import alive, at_outer_levels, reject_legacy_vmap

WEAKLY_ACTIVE_CHOICES = ("inactive", "active", "raise", "nan", "zero")


@dataclass(frozen=True, kw_only=True)
class Implicit(Differentiation):
    """Differentiate the optimality conditions (the default).

    What was applied can be read in `Solution.report` after the backward pass.

    Args:
        irregular: what to return at samples whose KKT matrix is singular, so that no unique derivative exists: "raise"
            an `IrregularPointError` naming samples and cause, "nan", "zero", or "min_norm" (the pseudo-inverse; right
            for redundant constraints in all inputs that leave them so: the derivative of y is unique though that of the
            multipliers is not. An input that moves one of two equal constraints alone has a kink there, and gets a mean).
        weakly_active: what to return where a constraint holds with equality but does not push (its multiplier is zero,
            and y has a kink): the one-sided derivative of the side where it is slack, "inactive", or where it holds,
            "active"; or "raise", "nan", "zero". `Solution.weakly_active` reports where this mattered.
        smoothing: τ > 0 differentiates the relaxed conditions −μ_i g_i = τ of an interior point method instead of
            μ_i g_i = 0: informative gradients at vertices and kinks, at the price of a bias that vanishes with τ. In units
            of the objective, for every sample. 0: exact.
        damping: δ > 0 solves with H + δI and −δI below it. Biased; the residual in the report is that of the undamped
            system. 0: none.
        linear_solver: how the KKT system is solved: `Direct()`, `ConjugateGradients()`, `MINRES()`, or `Auto()`, which chooses by
            what the node declares and by size (`node.explain(...)` says what and why). None: `Auto()`.

    Example:
        >>> node = Projection(differentiation=Implicit(irregular="min_norm"))  # Projection: see DeclarativeNode
    """

    irregular: str = "raise"
    weakly_active: str = "inactive"
    smoothing: float = 0.0
    damping: float = 0.0
    linear_solver: LinearSolver | None = None

    def __post_init__(self) -> None:
        if self.linear_solver is not None and not isinstance(self.linear_solver, LinearSolver):
            raise TypeError(f"Implicit(linear_solver=...) must be Auto(), Direct(), ConjugateGradients() or MINRES(), got {self.linear_solver!r}")
        for name, choices in (("irregular", IRREGULAR_CHOICES), ("weakly_active", WEAKLY_ACTIVE_CHOICES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"Implicit({name}=...) must be one of {choices}, got {getattr(self, name)!r}")
        for name in ("smoothing", "damping"):
            if not isinstance(getattr(self, name), int | float) or not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"Implicit({name}=...) must be a number, 0 or more, got {getattr(self, name)!r}")

    def apply(self, problem: Problem, forward: Forward, init: tuple[Tensor, ...]) -> tuple[Point, Layout, DerivativeReport]:
        record = Record(DerivativeReport(self.irregular, damping=self.damping, smoothing=self.smoothing))
        call = Call(self, problem.with_tensors(()), forward, len(init), record)
        outputs = _Solve.apply(call, *problem.tensors, *init)
        return Point(*outputs), record.layout, record.report


class _Solve(torch.autograd.Function):
    """(problem tensors, warm start) -> the fields of a `Point`; y and the multipliers are differentiable."""

    @staticmethod
    def forward(call: Call, *tensors: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, init = call.split(tensors)
        wanted = [k for k, t in enumerate(values) if t.requires_grad]
        solved = call.solve(call.problem.with_tensors([t.detach() for t in values]), tuple(t.detach() for t in init), wanted)
        call.record.layout, call.record.linearisation, call.record.workspace = solved.layout, solved.linearisation, solved.workspace
        finite = torch.isfinite(solved.point.y).all(1)
        call.record.any_failed = not bool(finite.all())
        call.record.all_failed = call.record.any_failed and not bool(finite.any())
        if solved.point.weakly_active.numel():
            call.record.weakly_active = solved.point.weakly_active.any(1).nonzero().squeeze(1).tolist()
            call.record.most_active = int((solved.point.active | solved.point.weakly_active).sum(1).max())
        return tuple(vars(solved.point).values())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        call, *tensors = inputs
        ctx.call = call
        ctx.mark_non_differentiable(*output[3:])
        ctx.set_materialize_grads(False)
        values = call.split(tuple(tensors))[0]
        ctx.save_for_backward(*values, *output[:5])
        ctx.save_for_forward(*values, *output[:5])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        call: Call = ctx.call
        reject_legacy_vmap(*cotangents[:3])
        system = System(call, tuple(alive(t) for t in ctx.saved_tensors))
        wanted = [k for k, needed in enumerate(ctx.needs_input_grad[1 : 1 + system.count]) if needed]
        gradients = dict(zip(wanted, system.pull_back(cotangents[:3], wanted), strict=True))
        return None, *(gradients.get(k) for k in range(system.count)), *([None] * call.init)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        call: Call = ctx.call
        reject_legacy_vmap(*tangents)
        count = len(ctx.saved_tensors)

        def push(*operands: Tensor) -> tuple[Tensor, ...]:
            system = System(call, operands[:count])
            moving = operands[count : count + system.count]
            return system.push_forward({k: t for k, t in enumerate(moving) if t is not None})

        return *at_outer_levels(push, (*ctx.saved_tensors, *tangents)), *([None] * 6)

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: Any, in_dims: tuple[Any, ...], call: Call, *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        folded, arguments = call.folded(info.batch_size, in_dims[1:], tensors)
        outputs = _Solve.apply(folded, *arguments)
        return tuple(o.unflatten(0, (info.batch_size, -1)) for o in outputs), (0,) * len(outputs)
