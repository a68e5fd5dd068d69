"""From what a solver found to a `Point` that can be differentiated, whichever solver it was.

Multipliers are recovered where the solver left them out, the point is polished, the active set decided, the residuals
measured and the status judged by them: a point that is not a minimiser does not pass because a solver says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from declarative.engines.autodiff import GraphLinearisation, linearise
from declarative.engines.captured import reject_captured
from declarative.errors import SolverError, SolverWarning, lost_gradient, name_samples
from declarative.problem import Problem
from declarative.solution import Point, Solved, Status
from declarative.solvers.base import Iterate, Solver
from declarative.solvers.feasibility import is_infeasible
from declarative.solvers.interior_point import InteriorPoint
from declarative.solvers.iterative import IterativeSolver
from declarative.solvers.multipliers import recover
from declarative.solvers.optimality import Optimality
from declarative.solvers.polish import polish
from declarative.transforms import yields_duals

# The interior point method ends at a positive barrier parameter; these steps remove it. They stop by themselves.
_STEPS_AFTER_BARRIER = 4
# An equation that is left out because it follows from the others may be off by so much: by rounding, or in a finite difference.
_CONTRADICTION = 0.05


def solve_to_point(problem: Problem, init: tuple[Tensor, ...], wanted: Sequence[int], solver: Solver, polish_steps: int, check_captured: bool) -> Solved:
    """Solve the batch with `solver`, and do what its `on_failure` says about samples that failed.

    Args:
        wanted: positions of the problem's tensors whose gradients a backward pass will ask for.
    """
    if problem.batch == 0:
        return _empty(problem, init, solver)
    solved = find_point(problem, init, wanted, solver, polish_steps, check_captured)
    return replace(solved, point=_apply_policy(problem, solved.point, solver))


def find_point(problem: Problem, init: tuple[Tensor, ...], wanted: Sequence[int], solver: Solver, polish_steps: int, check_captured: bool) -> Solved:
    """The same without the policy: failed samples are in `status` and keep their last iterate."""
    found, layout = solver.solve(problem, init)
    problem = problem.with_layout(layout)
    eps = torch.finfo(found.y.dtype).eps
    at = linearise(problem, found.y, wanted=wanted)
    if found.quadratic is not None and found.anew is not None:
        wrong = ~found.quadratic.agrees(at, found.y) & torch.isfinite(found.y).all(1)
        if bool(wrong.any()):
            found = found.anew(found, wrong.nonzero().squeeze(1))
            at = linearise(problem, found.y, wanted=wanted)
    optimality = Optimality(problem, found.y, wanted, solver.accepted(eps) ** 0.5, found.quadratic, at)
    _reject_hidden(problem, found.y, optimality, check_captured)
    equality, inequality = recover(optimality, eps ** (1 / 6 if polish_steps else 1 / 3), found.equality, found.inequality)
    runaway = optimality.runaway(equality, inequality).unsqueeze(1)
    if bool(runaway.any()):
        smallest = recover(optimality, eps ** (1 / 6), None, None)
        equality, inequality = (torch.where(runaway, new, old) for new, old in zip(smallest, (equality, inequality), strict=True))
    steps = max(polish_steps, _STEPS_AFTER_BARRIER if isinstance(solver, InteriorPoint) else 0)
    if steps:
        optimality, equality, inequality = polish(optimality, equality, inequality, steps)
    point = _measured(optimality, equality, inequality, found, solver)
    believed = None if isinstance(solver, IterativeSolver) else found.status
    point = replace(point, status=_explain_violations(problem, point.y, optimality.p, point.status, point.violation, believed))
    if problem.node.blocks is not None and (apart := problem.node.blocks.contradiction(problem)) is not None:
        contradictory = (apart > _CONTRADICTION) & (point.status == Status.CONVERGED)
        status = torch.where(contradictory, int(Status.INFEASIBLE), point.status)
        point = replace(point, status=status, violation=torch.maximum(point.violation, apart))
    return Solved(point, layout, optimality.at if wanted else None, None if steps else found.workspace)


def judge_point(problem: Problem, found: Iterate, solver: Solver, check_captured: bool) -> Point:
    """The point where somebody stopped, as it is: neither polished, nor refused for having stopped too early."""
    if problem.batch == 0:
        return _empty(problem, (found.y,), solver).point
    eps = torch.finfo(found.y.dtype).eps
    optimality = Optimality(problem, found.y, (), solver.accepted(eps) ** 0.5)
    _reject_hidden(problem, found.y, optimality, check_captured)
    equality, inequality = recover(optimality, eps ** (1 / 3), found.equality, found.inequality)
    point = _measured(optimality, equality, inequality, found, solver)
    early = (point.status == Status.MAX_ITERATIONS) | (point.status == Status.NOT_STATIONARY)
    early = early | (found.status == Status.CONVERGED) & (point.status == Status.INFEASIBLE)
    return _apply_policy(problem, point, solver, early)


def _measured(optimality: Optimality, equality: Tensor, inequality: Tensor, found: Iterate, solver: Solver) -> Point:
    """The point with its active set, its residuals and the status that these give it."""
    y = optimality.y
    active, weakly_active = optimality.active_set(equality, inequality)
    stationarity, violation = optimality.residuals(equality, inequality)
    status = _judge(found, y, stationarity, violation, solver)
    return Point(y, equality, torch.where(active, inequality, 0.0), active, weakly_active, status, found.iterations, stationarity, violation)


def _reject_hidden(problem: Problem, y: Tensor, optimality: Optimality, check_captured: bool) -> None:
    """Raise for tensors whose gradients would be lost."""
    if check_captured and isinstance(optimality.at, GraphLinearisation):
        reject_captured(problem.node, optimality.at.roots, optimality.at.leaves)
    if yields_duals(lambda: problem.evaluate(y)):
        raise lost_gradient(problem.name, "a dual number of forward mode")


def _judge(found: Iterate, y: Tensor, stationarity: Tensor, violation: Tensor, solver: Solver) -> Tensor:
    eps = torch.finfo(y.dtype).eps
    accepted = solver.accepted(eps)
    status = found.status
    finite = torch.isfinite(y).all(1) & torch.isfinite(stationarity) & torch.isfinite(violation)
    if bool(((status == Status.CONVERGED) & (torch.maximum(stationarity, violation) <= accepted) & finite).all()):
        return status
    # A solver that ran out of steps at a point that passes anyway (or was polished to one) has converged.
    excused = (status == Status.MAX_ITERATIONS) | (status == Status.NOT_STATIONARY)
    enough = min(accepted, eps**0.4)
    status = torch.where(excused & (stationarity <= enough) & (violation <= enough), int(Status.CONVERGED), status)
    claimed = status == Status.CONVERGED
    status = torch.where(claimed & ~(stationarity <= accepted), int(Status.NOT_STATIONARY), status)
    status = torch.where(claimed & ~(violation <= accepted), int(Status.INFEASIBLE), status)
    undecided = claimed | (status == Status.MAX_ITERATIONS)
    return torch.where(undecided & ~finite, int(Status.NON_FINITE), status)


def _explain_violations(problem: Problem, y: Tensor, p: int, status: Tensor, violation: Tensor, proved_by_solver: Tensor | None) -> Tensor:
    """A violation means that no feasible point exists, or that none was found: which, is found out.

    Our own iterations only suspect it; a solver from elsewhere that says so is believed.
    """
    failed = (status != Status.CONVERGED) & (status != Status.UNBOUNDED) & (status != Status.NO_SOLUTION)
    if not bool(failed.any()):
        return status
    if proved_by_solver is not None:
        failed = failed & (proved_by_solver != Status.INFEASIBLE)
    suspects = (failed & ((violation > torch.finfo(y.dtype).eps ** 0.5) | (status == Status.INFEASIBLE)) & torch.isfinite(y).all(1)).nonzero().squeeze(1)
    if not suspects.numel():
        return status
    proved = is_infeasible(problem.select(suspects), y[suspects], p)
    before = status[suspects]
    excused = torch.where(before == Status.INFEASIBLE, int(Status.NOT_STATIONARY), before)
    return status.index_copy(0, suspects, torch.where(proved, int(Status.INFEASIBLE), excused))


def _apply_policy(problem: Problem, point: Point, solver: Solver, excused: Tensor | None = None) -> Point:
    failed = point.status != Status.CONVERGED
    if excused is not None:
        failed = failed & ~excused
    if not bool(failed.any()):
        return point
    if solver.on_failure == "nan":
        column = failed.unsqueeze(1)
        marked = {name: torch.where(column, torch.nan, getattr(point, name)) for name in ("y", "equality", "inequality")}
        return Point(**{**vars(point), **marked, "active": point.active & ~column, "weakly_active": point.weakly_active & ~column})
    message = describe_failures(problem, point, solver)
    if solver.on_failure == "raise":
        raise SolverError(message)
    warnings.warn(message, SolverWarning, stacklevel=2)
    return point


def describe_failures(problem: Problem, point: Point, solver: Solver) -> str:
    """Which samples failed, how, by how much, and what can be done."""
    parts = []
    for status in sorted(set(point.status.tolist()) - {int(Status.CONVERGED)}):
        members = (point.status == status).nonzero().squeeze(1)
        worst = f"stationarity {float(point.stationarity[members].max()):.1e}, violation {float(point.violation[members].max()):.1e}"
        parts.append(f"{name_samples(members.tolist(), problem.batch)}: {Status(status).meaning} ({worst}, relative)")
    return (
        f"{problem.name}, solved by {type(solver).__name__}: {'; '.join(parts)}. "
        'Check the inputs and the start, raise max_iterations, or pass a solver with on_failure="nan" (or "warn") to go on without these samples'
    )


def _empty(problem: Problem, init: tuple[Tensor, ...], solver: Solver) -> Solved:
    """No samples: shapes come from one made-up instance of zeros, which is evaluated and not solved."""
    found, layout = solver.start(problem, init)
    one = problem.with_layout(layout).with_tensors(
        [torch.zeros(t.shape[1:], dtype=t.dtype, device=t.device) if dim == 0 else t for t, dim in zip(problem.tensors, problem.in_dims, strict=True)]
    )
    _, h, g = one.evaluate_instance(*one.tensors, found.new_zeros(layout.size))
    counts = torch.zeros(0, dtype=torch.int64, device=found.device)
    values = found.new_zeros(0)
    rows = found.new_zeros(0, g.shape[0])
    mask = torch.zeros(0, g.shape[0], dtype=torch.bool, device=found.device)
    return Solved(Point(found, found.new_zeros(0, h.shape[0]), rows, mask, mask.clone(), counts, counts.clone(), values, values.clone()), layout)
