"""Limited-memory BFGS: gradients only, O(m · memory) a step, for many variables."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from declarative.engines.first_order import value_and_gradient, value_and_gradient_where
from declarative.problem import Problem
from declarative.solution import Point
from declarative.solvers.iterative import IterativeSolver, State, drop_of
from declarative.solvers.sizes import REFRESH, ended, first_scale, gradient_change, no_progress, noise_of, plain_step, progress, refreshed, relative
from declarative.solvers.wolfe import WolfeSearch
from declarative.transforms import is_differentiated
from declarative.typing import Counts, Found, SampleMask, Variables
from declarative.vectors import times


@dataclass(frozen=True)
class LBFGS(IterativeSolver):
    """Limited-memory BFGS for unconstrained problems: no Hessian, nothing of size m × m.

    Each sample has a history, a strong Wolfe line search and a stopping test of its own; one evaluation of f and ∇f serves the
    whole running batch. Non-convex objectives are fine: a pair without positive curvature is left out. Where m is small or H
    is cheap, `Newton` takes far fewer steps; `polish=` removes what a loose tolerance leaves.

    Args:
        memory: pairs of steps and gradient changes that are kept; memory · 2m numbers a sample.
        tolerance: stop when each entry of ∇f is below this relative to the size of its terms (how much it changes when y moves by
            its own size). Default eps^⅔: 3.7e-11 in float64, 2.4e-5 in float32.
        max_iterations: 2000 by default.
        on_failure, progress: as for every solver.

    Shapes:
        y (b, *y_shape). Of a warm start only y counts.

    Raises:
        ValueError: the node has constraints; memory below 1.

    Example:
        >>> class Chain(DeclarativeNode):  # x (b, n) -> y (b, n)
        ...     def objective(self, x, y): return 0.5 * (y - x).square().sum() + y.diff().square().sum()
        ...     def initial_guess(self, x): return x
        >>> Chain(solver=LBFGS())(torch.tensor([[0.0, 5.0]]))
        tensor([[2., 3.]])

    Source: Liu & Nocedal, "On the limited memory BFGS method", Math. Programming 45, 1989; the two loops as two triangular solves
    as in Byrd, Nocedal & Schnabel, Math. Programming 63, 1994.
    """

    memory: int = 10
    max_iterations: int = field(default=2000, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.memory, int) or isinstance(self.memory, bool):
            raise TypeError(f"LBFGS(memory=...) must be an int, got {self.memory!r}")
        if self.memory < 1:
            raise ValueError(f"LBFGS(memory=...) must be at least 1, got {self.memory!r}")

    def step_from(self, problem: Problem, point: Point) -> Found:
        # At a solution nothing moves any more; what a first step would be, a gradient step, still has a derivative.
        return plain_step(problem, point.y), None, None

    def begin(self, problem: Problem, y: Variables, init: tuple[Tensor, ...]) -> State:  # noqa: ARG002
        _, h, g = problem.evaluate(y.detach())
        for kind, other, rows in (("equality", "Newton() or InteriorPoint()", h), ("inequality", "InteriorPoint() or Projected(...)", g)):
            if rows.shape[1]:
                raise ValueError(f"{problem.name} has {kind} constraints, which LBFGS() does not handle; use {other}, or leave solver=None")
        value, gradient = value_and_gradient(problem, y)
        change = gradient_change(problem, y)
        b, m, k = *y.shape, self.memory
        residual = relative(gradient, gradient, change.nan_to_num(0.0)).detach()
        return {
            "y": y,
            "value": value,
            "gradient": gradient,
            "change": change.nan_to_num(0.0),
            "scale": first_scale(y.detach(), gradient.detach(), change),
            "steps": y.new_zeros(b, k, m),
            "changes": y.new_zeros(b, k, m),
            "products": y.new_zeros(b, k, k),  # sᵢᵀyⱼ
            "valid": torch.zeros(b, k, dtype=torch.bool, device=y.device),
            "residual": residual,
            "first": value.detach(),
            "drop": drop_of(value, gradient, y).detach(),
            **no_progress(y, value, residual),
        }

    def step(self, problem: Problem, state: State, iteration: int) -> tuple[State, Counts, SampleMask]:
        y, value, gradient = state["y"], state["value"], state["gradient"]
        eps = torch.finfo(y.dtype).eps
        tolerance = eps ** (2 / 3) if self.tolerance is None else self.tolerance
        finite = torch.isfinite(value) & torch.isfinite(gradient).all(1)
        still = ~finite | (state["residual"] <= tolerance)

        direction = -inverse_product(state, iteration)
        slope = (gradient * direction).sum(1)
        remembers = state["valid"].any(1) & torch.isfinite(slope) & (slope < 0)
        direction = torch.where(remembers.unsqueeze(1), direction, -state["scale"].unsqueeze(1) * gradient)
        length, value_new, gradient_new = self._search(problem, state, direction, still)
        moved = length > 0
        y_new = torch.where(moved.unsqueeze(1), y + length.unsqueeze(1) * direction, y)
        if is_differentiated(y_new, *problem.tensors):
            value_new, gradient_new = value_and_gradient(problem, y_new)
        value_new = torch.where(moved, value_new, value)
        gradient_new = torch.where(moved.unsqueeze(1), gradient_new, gradient)

        residual = relative(gradient_new, gradient_new, state["change"]).detach()
        due = finite & ((residual <= tolerance) | ~moved | (iteration % REFRESH == REFRESH - 1))
        change = refreshed(problem, y_new, state["change"], due)
        residual = relative(gradient_new, gradient_new, change).detach()
        seen, resting = progress(state, y_new, value_new, residual, noise_of(value_new.detach(), y_new.detach(), change), iteration)
        # No length lowers f, not even along −∇f; or rounding is all that moves it.
        stuck = finite & ((~moved & ~remembers) | resting) & (residual > tolerance)
        y_new = torch.where(stuck.unsqueeze(1), seen["best_y"], y_new)
        residual = torch.where(stuck, seen["best"], residual)
        status, done = ended(state, (finite, stuck), (y, y_new, value_new), (residual, tolerance))
        new = {"y": y_new, "value": value_new, "gradient": gradient_new, "change": change, "residual": residual, **seen}
        return {**state, **new, **remember(state, y_new, gradient_new, moved, iteration)}, status, done

    @staticmethod
    @torch.no_grad()
    def _search(problem: Problem, state: State, direction: Tensor, still: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The lengths are constants: what is differentiated is the step of that length."""
        y, value, gradient = state["y"].detach(), state["value"].detach(), state["gradient"].detach()
        direction = torch.where(still.unsqueeze(1), 0.0, direction.detach())
        noise = noise_of(value, y, state["change"])
        search = WolfeSearch(y, direction, value, (gradient * direction).sum(1), noise)
        return search.run(lambda candidate, wanted: value_and_gradient_where(problem, candidate, wanted), still)


def inverse_product(state: State, iteration: int) -> Variables:
    """The two-loop recursion's approximation of H⁻¹∇f.

    With R the upper triangle of SYᵀ in order of age and D its diagonal, the first loop is the back substitution R α = S∇f and the
    second the forward substitution Rᵀδ = D α − γ Y q, where q = ∇f − Yᵀα; the result is γ q + Sᵀδ. A pair that is not valid is a row and
    column of the identity.
    """
    steps, changes, gradient, scale = state["steps"], state["changes"], state["gradient"], state["scale"].unsqueeze(1)
    k = steps.shape[1]
    places = torch.arange(k, device=steps.device)
    by_age, by_slot = (places + iteration) % k, (places - iteration) % k
    valid = state["valid"][:, by_age]
    triangle = state["products"][:, by_age][:, :, by_age].triu()
    triangle = torch.where(valid.unsqueeze(1) & valid.unsqueeze(2), triangle, torch.diag_embed((~valid).to(triangle.dtype)))

    def solve(matrix: Tensor, side: Tensor, *, upper: bool) -> Tensor:
        return torch.linalg.solve_triangular(matrix, torch.where(valid, side, 0.0).unsqueeze(-1), upper=upper).squeeze(-1)

    alpha = solve(triangle, times(steps, gradient)[:, by_age], upper=True)
    q = gradient - _combined(changes, alpha[:, by_slot])
    side = triangle.diagonal(dim1=1, dim2=2) * alpha - scale * times(changes, q)[:, by_age]
    delta = solve(triangle.mT, side, upper=False)
    return scale * q + _combined(steps, delta[:, by_slot])


def _combined(rows: Tensor, weights: Tensor) -> Tensor:
    return torch.bmm(weights.unsqueeze(1), rows).squeeze(1)


def remember(state: State, y: Tensor, gradient: Tensor, moved: Tensor, iteration: int) -> State:
    """The history with the newest pair in the oldest one's slot; emptied where no length was accepted."""
    step, change = y - state["y"], gradient - state["gradient"]
    slot = torch.tensor([iteration % state["steps"].shape[1]], device=y.device)
    steps = state["steps"].index_copy(1, slot, step.unsqueeze(1))
    changes = state["changes"].index_copy(1, slot, change.unsqueeze(1))
    column = times(steps, change)
    products = state["products"].index_copy(2, slot, column.unsqueeze(2))
    curvature, squared = (step * change).sum(1), change.square().sum(1)
    # The cautious update. The bound is far below the cosine of any curvature that rounding lets one see.
    good = moved & (curvature > torch.finfo(y.dtype).eps ** 0.75 * step.square().sum(1).sqrt() * squared.sqrt())
    good = good & torch.isfinite(curvature) & torch.isfinite(squared)
    valid = (state["valid"] & moved.unsqueeze(1)).index_copy(1, slot, good.unsqueeze(1))
    scale = torch.where(good, curvature / torch.where(good, squared, 1.0), state["scale"])
    return {"steps": steps, "changes": changes, "products": products, "valid": valid, "scale": scale}
