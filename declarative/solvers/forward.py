"""What a way to differentiate may ask of the forward pass: a solution, the steps towards it with their graph, one step more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from declarative.problem import Layout, Problem
from declarative.solution import Point, Solved, Status
from declarative.solvers.base import Iterate, Solver, start_from
from declarative.solvers.finish import judge_point, solve_to_point
from declarative.solvers.iterative import IterativeSolver, report
from declarative.solvers.user import UserSolve
from declarative.typing import Found


@dataclass(frozen=True)
class Forward:
    """The forward pass of one node.

    Args:
        choose: the node's solver for a problem.
        polish: how many steps of polishing a solve ends with.
        check_captured: whether tensors that the statement uses behind the engine's back are to be refused.
    """

    choose: Callable[[Problem], Solver]
    polish: int
    check_captured: bool

    def __call__(self, problem: Problem, init: tuple[Tensor, ...], wanted: Sequence[int]) -> Solved:
        """The solution, without a graph. `wanted`: positions of the tensors whose gradients will be asked for."""
        return solve_to_point(problem, init, wanted, self.choose(problem), self.polish, self.check_captured)

    def unroll(self, problem: Problem, init: tuple[Tensor, ...], steps: int | None) -> tuple[Iterate, Layout]:
        """The iterate after so many steps of the solver, or (None) the result of the node's own solve, with the graph behind it.

        Samples that came out as NaN or inf are no part of that graph: their derivatives would spoil what the batch shares.

        Raises:
            TypeError, ValueError: a solver that has no steps, a solve that takes no number of them, polishing.
        """
        if self.polish:
            raise ValueError(f"{problem.name}: polish={self.polish} cannot be unrolled; take more steps, or use differentiation=OneStep() or Implicit()")
        found, layout = self._run(problem, init, steps)
        bad = ~torch.isfinite(found.y).all(1) | (found.status == Status.NON_FINITE)
        if not bool(bad.any()):
            return found, layout
        index, whole = (~bad).nonzero().squeeze(1), {name: getattr(found, name) for name in ("y", "equality", "inequality")}
        whole = {name: value.detach() for name, value in whole.items() if value is not None}
        if index.numel():
            part, _ = self._run(problem.select(index), tuple(t[index] for t in init), steps)
            whole = {name: value.index_copy(0, index, getattr(part, name)) for name, value in whole.items()}
        return replace(found, **whole), layout

    def _run(self, problem: Problem, init: tuple[Tensor, ...], steps: int | None) -> tuple[Iterate, Layout]:
        solver = self.choose(problem)
        if isinstance(solver, UserSolve):
            return self._own(problem, init, solver, steps)
        self.check_steps(problem, "Unrolled")
        if steps is None or not isinstance(solver, IterativeSolver):
            raise TypeError(f"{problem.name}: Unrolled() without a number of steps is for a node's own solve; pass Unrolled(steps) to unroll {solver!r}")
        y, layout = start_from(problem, init)
        problem = problem.with_layout(layout)
        return take_steps(problem, y, init, solver.stepping(problem, y), steps), layout

    @staticmethod
    def _own(problem: Problem, init: tuple[Tensor, ...], solver: UserSolve, steps: int | None) -> tuple[Iterate, Layout]:
        if steps is not None:
            raise TypeError(f"{problem.name} finds y by its own solve, which takes no number of steps; use Unrolled() to differentiate it as it is written")
        found, layout = solver.solve(problem, init)
        if torch.is_grad_enabled() and any(t.requires_grad for t in problem.tensors) and not found.y.requires_grad:
            raise TypeError(
                f"{problem.name}.solve returns a y that torch cannot differentiate (numpy, detach or no_grad is in the way); use differentiation=Implicit()"
            )
        return found, layout

    def check_steps(self, problem: Problem, what: str) -> None:
        """A TypeError unless the solver is made of differentiable steps."""
        solver = self.choose(problem)
        if not isinstance(solver, IterativeSolver):
            kind = "its own solve" if isinstance(solver, UserSolve) else repr(solver)
            able = "an iterative solver (Newton(), InteriorPoint(), ...)"
            raise TypeError(f"{problem.name}: {what} differentiates the steps of {able}, and {kind} has none; use differentiation=Implicit()")

    def step(self, problem: Problem, point: Point) -> Found:
        """(y, ν, μ) one step on from a solution, with its graph; None for multipliers that the solver does not know."""
        solver = self.choose(problem)
        if not isinstance(solver, IterativeSolver):
            raise TypeError(f"{problem.name}: {solver!r} has no steps")
        return solver.step_from(problem, point)

    def judge(self, problem: Problem, found: Iterate) -> Point:
        """The point that an unrolled iterate is, without a graph. Too few steps are no error; other failures follow `on_failure`."""
        return judge_point(problem, found, self.choose(problem), self.check_captured)


def take_steps(problem: Problem, y: Tensor, init: tuple[Tensor, ...], solver: IterativeSolver, steps: int) -> Iterate:
    """Exactly so many steps, all of them differentiable where grad mode is on. Each sample has the status of the first step that ended it."""
    state = solver.begin(problem, y, init)
    ended = torch.zeros(problem.batch, dtype=torch.bool, device=y.device)
    status = torch.full((problem.batch,), int(Status.MAX_ITERATIONS), device=y.device)
    for count in range(steps):
        state, now, done = solver.step(problem, state, count)
        status = torch.where(done & ~ended, now, status)
        ended = ended | done
        report(solver, state, ended, count, problem.batch)
    return Iterate(*solver.result(state), status, torch.full_like(status, steps))
