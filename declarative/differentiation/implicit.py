"""Implicit differentiation of a solution: the formula of docs/architecture.md, once.

On the optimality conditions (∇_y L, a) = 0 the implicit function theorem gives K [dy; dλ] = −[B; C] dx with
K = [[H, Aᵀ], [A, 0]]. Reverse mode solves K [u; w] = [v; v_λ] for the cotangent and returns
x̄ = −∇_x[⟨u, ∇_y L⟩ + ⟨w, a⟩], one pull-back. (Gould, Hartley & Campbell, "Deep declarative networks", TPAMI 2022.)

One autograd Function serves every transform of torch: its forward runs any solver without a graph; its backward is made
of differentiable operations on its inputs AND outputs, so that differentiating the backward pass differentiates through
y and λ again, to any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from declarative.engines.autodiff import linearise
from declarative.engines.base import Linearisation
from declarative.forward_mode import at_outer_levels, transforms_active
from declarative.kkt.bordered import IRREGULAR_CHOICES, IrregularPolicy, solve_bordered
from declarative.problem import Layout, Problem
from declarative.solution import Point, Solved

# (problem, warm start, positions of the tensors whose gradients will be asked for)
Solve = Callable[[Problem, tuple[Tensor, ...], Sequence[int]], Solved]
WEAKLY_ACTIVE_CHOICES = ("inactive", "active")


@dataclass(frozen=True)
class Implicit:
    """Differentiate the optimality conditions (the default).

    Args:
        irregular: what to return at samples whose KKT matrix is singular, so that no unique derivative exists: "raise"
            an `IrregularPointError` naming samples and cause, "nan", "zero", or "min_norm" (the pseudo-inverse; right
            for redundant constraints).
        weakly_active: which side's derivative to take where a constraint holds with equality but does not push (its
            multiplier is zero, and y has a kink): "inactive" (the side on which it is slack) or "active".
            `Solution.weakly_active` reports where this mattered.

    Example:
        >>> node = Projection(differentiation=Implicit(irregular="min_norm"))  # doctest: +SKIP
    """

    irregular: str = "raise"
    weakly_active: str = "inactive"

    def __post_init__(self) -> None:
        for name, choices in (("irregular", IRREGULAR_CHOICES), ("weakly_active", WEAKLY_ACTIVE_CHOICES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")

    def apply(self, problem: Problem, solve: Solve, init: tuple[Tensor, ...]) -> tuple[Point, Layout]:
        """Solve, with y and the multipliers differentiable in the problem's tensors. `init` is a warm start (y, ν, μ)."""
        record = _Record()
        call = _Call(self, problem.with_tensors(()), solve, len(init), record)
        outputs = _Solve.apply(call, *problem.tensors, *init)
        return Point(*outputs), record.layout


@dataclass
class _Record:
    """What a forward pass leaves for its backward pass, besides tensors."""

    layout: Any = None
    any_failed: bool = False
    linearisation: Any = None
    applied: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Call:
    options: Implicit
    problem: Problem  # without tensors: those go through the Function
    solve: Solve
    init: int
    record: _Record

    def split(self, tensors: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """(the problem's tensors, the warm start's)."""
        count = len(tensors) - self.init
        return tensors[:count], tensors[count:]

    def folded(self, size: int, dims: tuple[int | None, ...], tensors: tuple[Tensor, ...]) -> tuple[_Call, list[Tensor]]:
        """This call with one more dimension (vmap's) folded into the batch.

        A tensor that the batch shares but vmap maps needs one copy a sample of its slice.
        """
        batch = self.problem.batch
        in_dims = (*self.problem.in_dims, *([0] * self.init))
        new_dims: list[int | None] = []
        new_tensors: list[Tensor] = []
        for tensor, dim, in_dim in zip(tensors, dims, in_dims, strict=True):
            if dim is None and in_dim is None:
                new_dims.append(None)
                new_tensors.append(tensor)
                continue
            outer = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            if in_dim is None:
                outer = outer.unsqueeze(1).expand(size, batch, *outer.shape[1:])
            new_dims.append(0)
            new_tensors.append(outer.reshape(size * batch, *outer.shape[2:]))
        problem = replace(self.problem, in_dims=tuple(new_dims[: len(self.problem.in_dims)]), batch=size * batch)
        return replace(self, problem=problem), new_tensors


class _Solve(torch.autograd.Function):
    """(problem tensors, warm start) -> the fields of a `Point`; y and the multipliers are differentiable."""

    @staticmethod
    def forward(call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, init = call.split(tensors)
        wanted = [k for k, t in enumerate(values) if t.requires_grad]
        solved = call.solve(call.problem.with_tensors([t.detach() for t in values]), tuple(t.detach() for t in init), wanted)
        call.record.layout, call.record.linearisation = solved.layout, solved.linearisation
        call.record.any_failed = not bool(torch.isfinite(solved.point.y).all())
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
        call: _Call = ctx.call
        system = _System(call, ctx.saved_tensors)
        wanted = [k for k, needed in enumerate(ctx.needs_input_grad[1 : 1 + system.count]) if needed]
        gradients = dict(zip(wanted, system.pull_back(cotangents[:3], wanted), strict=True))
        return None, *(gradients.get(k) for k in range(system.count)), *([None] * call.init)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        call: _Call = ctx.call
        count = len(ctx.saved_tensors)

        def push(*operands: Tensor) -> tuple[Tensor, ...]:
            system = _System(call, operands[:count])
            moving = operands[count : count + system.count]
            return system.push_forward({k: t for k, t in enumerate(moving) if t is not None})

        return *at_outer_levels(push, (*ctx.saved_tensors, *tangents)), *([None] * 6)

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: Any, in_dims: tuple[Any, ...], call: _Call, *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        folded, arguments = call.folded(info.batch_size, in_dims[1:], tensors)
        outputs = _Solve.apply(folded, *arguments)
        return tuple(o.unflatten(0, (info.batch_size, -1)) for o in outputs), (0,) * len(outputs)


class _System:
    """The KKT system at a solution, for the two passes."""

    def __init__(self, call: _Call, saved: tuple[Tensor, ...]) -> None:
        *tensors, self._y, self._equality, self._inequality, active, weakly_active = saved
        self._call, self.count = call, len(tensors)
        self._problem = call.problem.with_tensors(tensors).with_layout(call.record.layout)
        if active.shape[1] and call.options.weakly_active == "active":
            active = active | weakly_active
        self._rows = (
            torch.cat([torch.ones_like(self._equality, dtype=torch.bool), active], 1)
            if active.shape[1] and self._equality.shape[1]
            else (active if active.shape[1] else torch.ones_like(self._equality, dtype=torch.bool))
        )
        self._failed = ~torch.isfinite(self._y).all(1) if call.record.any_failed else None
        if self._failed is not None:
            self._substitute(self._failed)

    def _substitute(self, failed: Tensor) -> None:
        """Evaluate failed samples at a converged neighbour's data, so that their NaN cannot reach what the batch shares.

        Their own results are set by `_mask` afterwards. Gathered by index, not selected: shapes stay fixed under vmap.
        """
        positions = torch.arange(failed.shape[0], device=failed.device)
        index = torch.where(failed, (~failed).to(torch.int8).argmax(), positions)
        dims = self._problem.in_dims
        self._problem = self._problem.with_tensors([t[index] if d == 0 else t for t, d in zip(self._problem.tensors, dims, strict=True)])
        self._y, self._equality, self._inequality, self._rows = (t[index] for t in (self._y, self._equality, self._inequality, self._rows))

    def _mask(self, sought: Tensor, given: Tensor, failed: Tensor) -> Tensor:
        """A failed sample has no derivative: NaN, or zero where nothing asks for it (0 · undefined counts as 0)."""
        unused = (given == 0).all(1)
        marked = torch.where(unused, 0.0, torch.nan).to(sought.dtype).unsqueeze(1)
        return torch.where(failed.unsqueeze(1), marked, sought)

    def _solve(self, hessian: Tensor, jacobian: Tensor, side_y: Tensor, side_rows: Tensor) -> tuple[Tensor, Tensor]:
        policy = IrregularPolicy(self._call.options.irregular, self._y.shape[1], self._y.shape[0], self._problem.name, self._call.record.applied)
        if self._failed is None:
            return solve_bordered(policy, hessian, jacobian, self._rows, side_y, side_rows)
        given = torch.cat([side_y, side_rows], 1)
        side_y, side_rows = (torch.where(self._failed.unsqueeze(1), 0.0, s) for s in (side_y, side_rows))
        u, w = solve_bordered(policy, hessian, jacobian, self._rows, side_y, side_rows)
        return self._mask(u, given, self._failed), self._mask(w, given, self._failed)

    def _linearisation_kept(self) -> Linearisation | None:
        """The graph that the forward pass measured its residuals on: good for one backward pass that is not recorded."""
        kept, self._call.record.linearisation = self._call.record.linearisation, None
        if kept is None or self._failed is not None or torch.is_grad_enabled() or transforms_active():
            return None
        return kept.with_multipliers(self._equality, self._inequality)

    def pull_back(self, cotangents: tuple[Tensor | None, ...], wanted: list[int]) -> list[Tensor]:
        """x̄ for the wanted tensors."""
        v, v_equality, v_inequality = (
            torch.zeros_like(output) if c is None else c for c, output in zip(cotangents, (self._y, self._equality, self._inequality), strict=True)
        )
        if self._problem.batch == 0 or not wanted:
            return [torch.zeros_like(self._problem.tensors[k]) for k in wanted]
        at = self._linearisation_kept() or linearise(self._problem, self._y, self._equality, self._inequality, wanted)
        u, w = self._solve(at.hessian(), at.jacobian(), v, torch.cat([v_equality, v_inequality], 1))
        return [-g for g in at.pull_back(u, w, wanted)]

    def push_forward(self, tangents: dict[int, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """(dy, dν, dμ) for tangents of the problem's tensors."""
        p = self._equality.shape[1]
        if self._problem.batch == 0 or not tangents:
            return torch.zeros_like(self._y), torch.zeros_like(self._equality), torch.zeros_like(self._inequality)
        at = linearise(self._problem, self._y, self._equality, self._inequality, list(tangents))
        side_y, side_rows = at.push_forward(tangents)
        dy, rows = self._solve(at.hessian(), at.jacobian(), -side_y, -side_rows)
        return dy, rows[:, :p], rows[:, p:]
