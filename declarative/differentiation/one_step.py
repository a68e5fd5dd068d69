"""Differentiation of the solver's last step alone (Bolte, Pauwels & Vaiter, NeurIPS 2023).

With S(x, y) a step and y = S(x, y) the solution, dy/dx = (I − ∂_y S)⁻¹ ∂_x S. For a Newton step ∂_y S vanishes at the solution and
∂_x S is all there is; for a step that contracts by ρ, ∂_x S is wrong by a factor of 1/(1 − ρ) at most.

As in implicit.py, the backward pass is made of differentiable operations on inputs AND outputs of one autograd Function: the
second derivative then runs through y again, which a step recorded at a constant y would leave out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from declarative.differentiation.base import Differentiation, Forward
from declarative.problem import Layout, Problem
from declarative.solution import DerivativeReport, Point
from declarative.transforms import alive, reject_legacy_vmap, reject_mapped_and_dual, transforms_active


@dataclass(frozen=True)
class OneStep(Differentiation):
    """Solve to convergence without a graph, then differentiate ONE step of the solver at the solution.

    Exact for steps of Newton's kind (`Newton`, `InteriorPoint`, whose last steps are Newton's on the active set), to any order in
    reverse mode. For a first-order method that converges at the rate ρ it is an approximation, off by about ρ of the derivative: one
    such step costs a gradient and solves no linear system. Memory does not grow with the solver's steps.

    y and status are those of the solve. Where the derivative is not unique, a step of `InteriorPoint` raises an
    `IrregularPointError`, and one of `Newton` takes the shortest; `Implicit` has policies for that.

    Shapes:
        As those of the node: y (b, *y_shape).

    Raises:
        TypeError: solvers that are not made of steps (`SciPy`, a node's own solve); use `Implicit`.
        NotImplementedError: torch.func.vmap around the node, forward mode, derivatives of multipliers that the solver does not keep.

    Example:
        >>> class Root(DeclarativeNode):  # ¼y⁴ − xy: the cube root of x
        ...     def objective(self, x, y): return (y**4 / 4 - x * y).sum()
        ...     def initial_guess(self, x): return torch.ones_like(x)
        >>> x = torch.tensor([[8.0]], requires_grad=True)
        >>> torch.autograd.grad(Root(differentiation=OneStep())(x).sum(), x)[0]
        tensor([[0.0833]])

    Source: Bolte, Pauwels & Vaiter, "One-step differentiation of iterative algorithms", NeurIPS 2023.
    """

    def apply(self, problem: Problem, forward: Forward, init: tuple[Tensor, ...]) -> tuple[Point, Layout, DerivativeReport]:
        reject_mapped_and_dual("OneStep", *problem.tensors)
        if problem.batch:
            with torch.no_grad():
                forward.check_steps(problem, "OneStep")
        call = _Call(problem.with_tensors(()), forward, len(init))
        outputs = _Stepped.apply(call, *problem.tensors, *init)
        if call.layout is None:
            raise RuntimeError("a solve shows the shape of y")
        return Point(*outputs), call.layout, DerivativeReport(method="one step of the solver")


@dataclass
class _Call:
    problem: Problem  # without tensors: those go through the Function
    forward: Forward
    init: int
    layout: Layout | None = None

    def step(self, tensors: list[Tensor], outputs: tuple[Tensor, ...], kept: Tensor | None) -> tuple[Tensor | None, ...]:
        """(y, ν, μ) after one step; of the samples of these indices only, where given."""
        y, equality, inequality, active = outputs
        problem = self.problem.with_tensors(tensors)
        if self.layout is not None:
            problem = problem.with_layout(self.layout)
        if kept is not None:
            problem = problem.select(kept)
            y, equality, inequality, active = (t[kept] for t in outputs)
        unused, counts = y.detach()[:, 0] if y.shape[1] else y.new_zeros(y.shape[0]), active.new_zeros(y.shape[0], dtype=torch.int64)
        return self.forward.step(problem, Point(y, equality, inequality, active, torch.zeros_like(active), counts, counts, unused, unused))


class _Stepped(torch.autograd.Function):
    """(problem tensors, warm start) -> the fields of a `Point`; y and the multipliers are differentiable."""

    @staticmethod
    def forward(call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        count = len(tensors) - call.init
        numbers = [t.detach() for t in tensors]
        solved = call.forward(call.problem.with_tensors(numbers[:count]), tuple(numbers[count:]), ())
        call.layout = solved.layout
        return tuple(vars(solved.point).values())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, *tensors = inputs
        ctx.mark_non_differentiable(*output[3:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[: len(tensors) - ctx.call.init], *output[:4])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        call: _Call = ctx.call
        reject_legacy_vmap(*cotangents[:3])
        saved = tuple(alive(t) for t in ctx.saved_tensors)
        tensors, outputs = list(saved[:-4]), saved[-4:]
        reject_mapped_and_dual("OneStep", *tensors)
        wanted = [k for k, needed in enumerate(ctx.needs_input_grad[1 : 1 + len(tensors)]) if needed]
        gradients: list[Tensor | None] = [None] * (len(tensors) + call.init)
        for k, gradient in zip(wanted, _pull_back(call, tensors, outputs, cotangents[:3], wanted), strict=True):
            gradients[k] = gradient
        return None, *gradients


def _pull_back(call: _Call, tensors: list[Tensor], outputs: tuple[Tensor, ...], cotangents: tuple[Tensor | None, ...], wanted: list[int]) -> list[Tensor]:
    """The cotangents of the wanted tensors: through the step, y and the multipliers that it starts from held fixed."""
    failed = ~torch.isfinite(outputs[0].detach()).all(1)
    kept = (~failed).nonzero().squeeze(1) if bool(failed.any()) else None
    sides = [c for c in cotangents if c is not None]
    if (kept is not None and not kept.numel()) or not outputs[0].shape[0] or not sides:
        results = [torch.zeros_like(tensors[k]) for k in wanted]
    else:
        rows = [c if kept is None else c[kept] for c in sides]

        def stepped(*chosen: Tensor) -> tuple[Tensor, ...]:
            replaced = list(tensors)
            for k, tensor in zip(wanted, chosen, strict=True):
                replaced[k] = tensor
            return _differentiable(call, call.step(replaced, outputs, kept), cotangents)

        results = _vjp(stepped, [tensors[k] for k in wanted], rows)
    if kept is None:
        return results
    # A failed sample has no derivative: NaN where one is asked for.
    used = torch.stack([(c != 0).flatten(1).any(1) for c in sides]).any(0) & failed if sides else failed & False
    batched = [call.problem.in_dims[k] == 0 for k in wanted]
    return [torch.where(used.reshape(-1, *[1] * (r.ndim - 1)) if b else used.any(), torch.nan, r) for r, b in zip(results, batched, strict=True)]


def _differentiable(call: _Call, found: tuple[Tensor | None, ...], cotangents: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """Those parts of a step's result that have cotangents."""
    for part, cotangent in zip(found, cotangents, strict=True):
        if part is None and cotangent is not None and cotangent.numel():
            raise NotImplementedError(
                f"{call.problem.name}: the multipliers were recovered from y, and a step of its solver does not differentiate them; use Implicit()"
            )
    pairs = zip(found, cotangents, strict=True)
    return tuple(cotangent if part is None else part for part, cotangent in pairs if cotangent is not None)


def _vjp(function: Any, arguments: list[Tensor], cotangents: list[Tensor]) -> list[Tensor]:
    if transforms_active():
        pull_back: Any = torch.func.vjp(function, *arguments)[1]
        return list(pull_back(tuple(cotangents)))
    recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases: the partial derivative must not run through y(x), though a higher one must.
        aliases = [t.view_as(t) if recorded and t.requires_grad else t.detach().requires_grad_() for t in arguments]
        pairs = [(o, c) for o, c in zip(function(*aliases), cotangents, strict=True) if o.requires_grad]
    if not pairs:
        return [torch.zeros_like(t) for t in arguments]
    results = torch.autograd.grad([o for o, _ in pairs], aliases, [c for _, c in pairs], create_graph=recorded, allow_unused=True, materialize_grads=True)
    return list(results)
