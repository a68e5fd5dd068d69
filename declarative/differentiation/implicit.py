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
from declarative.errors import IrregularPointError, name_samples
from declarative.kkt.bordered import IRREGULAR_CHOICES, IrregularPolicy, solve_bordered
from declarative.problem import Layout, Problem
from declarative.solution import DerivativeReport, Point, Solved
from declarative.transforms import alive, at_outer_levels, reject_legacy_vmap, transforms_active

# (problem, warm start, positions of the tensors whose gradients will be asked for)
Solve = Callable[[Problem, tuple[Tensor, ...], Sequence[int]], Solved]
WEAKLY_ACTIVE_CHOICES = ("inactive", "active", "raise", "nan", "zero")


@dataclass(frozen=True, kw_only=True)
class Implicit:
    """Differentiate the optimality conditions (the default).

    What was applied can be read in `Solution.report` after the backward pass.

    Args:
        irregular: what to return at samples whose KKT matrix is singular, so that no unique derivative exists: "raise"
            an `IrregularPointError` naming samples and cause, "nan", "zero", or "min_norm" (the pseudo-inverse; right
            for redundant constraints, where the derivative of y is unique though that of the multipliers is not).
        weakly_active: what to return where a constraint holds with equality but does not push (its multiplier is zero,
            and y has a kink): the one-sided derivative of the side where it is slack, "inactive", or where it holds,
            "active"; or "raise", "nan", "zero". `Solution.weakly_active` reports where this mattered.
        smoothing: τ > 0 differentiates the relaxed conditions −μ_i g_i = τ of an interior point method instead of
            μ_i g_i = 0: informative gradients at vertices and kinks, at the price of a bias that vanishes with τ. In units
            of the objective, for every sample. 0: exact.
        damping: δ > 0 solves with H + δI and −δI below it. Biased; the residual in the report is that of the undamped
            system. 0: none.

    Example:
        >>> node = Projection(differentiation=Implicit(irregular="min_norm"))  # doctest: +SKIP
    """

    irregular: str = "raise"
    weakly_active: str = "inactive"
    smoothing: float = 0.0
    damping: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in (("irregular", IRREGULAR_CHOICES), ("weakly_active", WEAKLY_ACTIVE_CHOICES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"Implicit({name}=...) must be one of {choices}, got {getattr(self, name)!r}")
        for name in ("smoothing", "damping"):
            if not isinstance(getattr(self, name), int | float) or not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"Implicit({name}=...) must be a number, 0 or more, got {getattr(self, name)!r}")

    def apply(self, problem: Problem, solve: Solve, init: tuple[Tensor, ...]) -> tuple[Point, Layout, DerivativeReport]:
        """Solve, with y and the multipliers differentiable in the problem's tensors. `init` is a warm start (y, ν, μ)."""
        record = _Record(DerivativeReport(self.irregular, damping=self.damping, smoothing=self.smoothing))
        call = _Call(self, problem.with_tensors(()), solve, len(init), record)
        outputs = _Solve.apply(call, *problem.tensors, *init)
        return Point(*outputs), record.layout, record.report


@dataclass
class _Record:
    """What a forward pass leaves for its backward pass, besides tensors."""

    report: DerivativeReport
    layout: Any = None
    any_failed: bool = False
    weakly_active: list[int] = field(default_factory=list)
    linearisation: Any = None


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
        if solved.point.weakly_active.shape[1]:
            call.record.weakly_active = solved.point.weakly_active.any(1).nonzero().squeeze(1).tolist()
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
        reject_legacy_vmap(*cotangents[:3])
        system = _System(call, tuple(alive(t) for t in ctx.saved_tensors))
        wanted = [k for k, needed in enumerate(ctx.needs_input_grad[1 : 1 + system.count]) if needed]
        gradients = dict(zip(wanted, system.pull_back(cotangents[:3], wanted), strict=True))
        return None, *(gradients.get(k) for k in range(system.count)), *([None] * call.init)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        call: _Call = ctx.call
        reject_legacy_vmap(*tangents)
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
        self._failed = ~torch.isfinite(self._y).all(1) if call.record.any_failed else None
        self._excluded = [] if self._failed is None else [self._failed]
        self._undefined = list(self._excluded)
        self._active = active
        if call.record.weakly_active:
            self._treat_weakly_active(weakly_active, call.options.weakly_active)
        if self._failed is not None:
            self._substitute(self._failed)

    def _treat_weakly_active(self, weakly_active: Tensor, choice: str) -> None:
        if choice == "raise":
            raise IrregularPointError(
                f"{self._problem.name}: constraints are weakly active at {name_samples(self._call.record.weakly_active, self._problem.batch)}; the "
                'derivative is one-sided there. Choose a side with Implicit(weakly_active="inactive") or "active", or pass "nan" or "zero"'
            )
        if choice == "active":
            self._active = self._active | weakly_active
        if choice in ("nan", "zero"):
            self._excluded.append(weakly_active.any(1))
        if choice == "nan":
            self._undefined.append(weakly_active.any(1))

    def _substitute(self, failed: Tensor) -> None:
        """Evaluate failed samples at a converged neighbour's data, so that their NaN cannot reach what the batch shares.

        Their own results are set in `_solve` afterwards. Gathered by index, not selected: shapes stay fixed under vmap.
        """
        positions = torch.arange(failed.shape[0], device=failed.device)
        index = torch.where(failed, (~failed).to(torch.int8).argmax(), positions)
        dims = self._problem.in_dims
        self._problem = self._problem.with_tensors([t[index] if d == 0 else t for t, d in zip(self._problem.tensors, dims, strict=True)])
        self._y, self._equality, self._inequality, self._active = (t[index] for t in (self._y, self._equality, self._inequality, self._active))

    def _weights(self, at: Linearisation) -> Tensor | None:
        """ρ of each row: 1 where it counts as an equation, 0 where not, between with smoothing. None: all are 1."""
        if not self._active.shape[1]:
            return None
        ones = torch.ones_like(self._equality)
        weights = self._active.to(ones.dtype)
        tau = self._call.options.smoothing
        if tau > 0:
            # The pair (s̃, μ̃) with s̃ μ̃ = τ and the same μ − s; ρ² = μ̃ / (s̃ + μ̃).
            difference = self._inequality + at.constraints[:, ones.shape[1] :]
            root = (difference * difference + 4 * tau).sqrt()
            weights = (0.5 + 0.5 * difference / root).clamp_min(0).sqrt()
        return torch.cat([ones, weights], 1)

    def _solve(self, at: Linearisation, side_y: Tensor, side_rows: Tensor, used: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """(u, w), by the policies. `used()` (b,) says which samples anything is asked of: 0 · undefined counts as 0."""
        hessian, jacobian, weights = at.hessian(), at.jacobian(), self._weights(at)
        if not self._excluded:
            return solve_bordered(self._policy(), hessian, jacobian, weights, side_y, side_rows)
        # Samples without a derivative: their right-hand side is zero, and NaN is put in place of their result unless "zero" was chosen.
        column = torch.stack(self._excluded).any(0).unsqueeze(1)
        side_y, side_rows = torch.where(column, 0.0, side_y), torch.where(column, 0.0, side_rows)
        u, w = solve_bordered(self._policy(), hessian, jacobian, weights, side_y, side_rows)
        for undefined in self._undefined:
            marked = (undefined & used()).unsqueeze(1)
            u, w = torch.where(marked, torch.nan, u), torch.where(marked, torch.nan, w)
        return u, w

    def _policy(self) -> IrregularPolicy:
        options = self._call.options
        return IrregularPolicy(options.irregular, self._y.shape[1], self._y.shape[0], self._problem.name, options.damping, self._call.record.report)

    def _undefined_where_singular(self, at: Linearisation, used: Tensor) -> Tensor:
        """(b, 1): NaN in singular samples whose inputs move, zero elsewhere.

        A right-hand side (B; C) dx that happens to vanish does not make the derivative zero there, as it does where the
        cotangent vanishes; a solve with a right-hand side that does not vanish shows which samples these are.
        """
        shown = used.to(self._y.dtype).unsqueeze(1)
        policy = replace(self._policy(), report=DerivativeReport())
        u, _ = solve_bordered(policy, at.hessian(), at.jacobian(), self._weights(at), shown.expand(self._y.shape), torch.zeros_like(at.constraints))
        return 0 * u.sum(1, keepdim=True)

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
        side_rows = torch.cat([v_equality, v_inequality], 1)
        u, w = self._solve(at, v, side_rows, lambda: (torch.cat([v, side_rows], 1) != 0).any(1))
        return [-g for g in at.pull_back(u, w, wanted)]

    def push_forward(self, tangents: dict[int, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """(dy, dν, dμ) for tangents of the problem's tensors."""
        p = self._equality.shape[1]
        if self._problem.batch == 0 or not tangents:
            return torch.zeros_like(self._y), torch.zeros_like(self._equality), torch.zeros_like(self._inequality)
        at = linearise(self._problem, self._y, self._equality, self._inequality, list(tangents))
        side_y, side_rows = at.push_forward(tangents)
        dy, rows = self._solve(at, -side_y, -side_rows, lambda: self._moving(tangents))
        if self._call.options.irregular == "nan":
            undefined = self._undefined_where_singular(at, self._moving(tangents))
            dy, rows = dy + undefined, rows + undefined
        return dy, rows[:, :p], rows[:, p:]

    def _moving(self, tangents: dict[int, Tensor]) -> Tensor:
        """(b,) whether any input of the sample has a tangent other than zero."""
        batch = self._problem.batch
        moving = [(t != 0).reshape(batch, -1).any(1) if self._problem.in_dims[k] == 0 else (t != 0).any().expand(batch) for k, t in tangents.items()]
        return torch.stack(moving).any(0)
