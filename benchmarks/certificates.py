"""What the cheap part of the certificate costs a forward pass, and what polishing makes of a loose solve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.contest import contest, figure_row
from benchmarks.report import Row, Target
from benchmarks.statements import LogSumExp, QuarticOnSphere
from benchmarks.timing import QUICK, Effort
from declarative import DeclarativeNode
from declarative.node import choose_solver, prepare
from declarative.problem import Layout, Problem
from declarative.solvers import InteriorPoint, Solver, UserSolve
from declarative.solvers.base import Iterate
from declarative.solvers.finish import find_point
from problems.simplex import SimplexProjection

SUITE = "certificates"
LIMIT = 1 / 1.1  # the solve alone takes at least this part of the whole
LOOSE = 1e-3
EFFORT = Effort(blocks=7, seconds=0.0, runs=5)


@dataclass(frozen=True)
class Kept(Solver):
    """What another solver found, again."""

    found: tuple[Iterate, Layout] | None = None

    def solve(self, problem: Problem, init: tuple[Tensor, ...]) -> tuple[Iterate, Layout]:  # noqa: ARG002
        if self.found is None:
            raise RuntimeError("nothing was found before")
        return self.found


def rows(quick: bool) -> Iterator[Row]:
    """The suite."""
    m, batch = (6, 3) if quick else (100, 32)
    x = machine.here(torch.randn(batch, m, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    for label, node in (("log-sum-exp, Newton", Unsolved()), ("sphere, Newton", UnsolvedSphere()), ("simplex, interior point", SimplexProjection())):
        yield overhead_row(f"{label}, m={m}, b={batch}", node, x, quick)
    yield from polish_rows(quick)


class Unsolved(DeclarativeNode):
    """The log-sum-exp statement without a prepared solution."""

    objective = LogSumExp.objective

    def initial_guess(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class UnsolvedSphere(DeclarativeNode):
    """The quartic on a sphere without a prepared solution."""

    objective = QuarticOnSphere.objective
    equality_constraints = QuarticOnSphere.equality_constraints

    def initial_guess(self, x: Tensor) -> Tensor:
        return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def overhead_row(what: str, node: DeclarativeNode, x: Tensor, quick: bool) -> Row:
    """The solver alone beside the solver with multipliers, active set, residuals and status."""
    problem, _, _ = prepare(node, (x,), 0)
    solver = choose_solver(node, problem)

    def alone() -> tuple[Iterate, Layout]:
        with torch.no_grad():
            return solver.solve(problem, ())

    def certified() -> None:
        with torch.no_grad():
            find_point(problem, (), (), Kept(found=alone()), 0, False)

    effort = QUICK if quick else EFFORT
    return contest(SUITE, f"forward with the cheap certificate, {what}", lambda: certified, "without it", lambda: alone, effort, Target(ratio=LIMIT))


class QuadraticProgram(DeclarativeNode):
    """½ yᵀQy + cᵀy  s.t.  Gy ≤ d."""

    def objective(self, Q: Tensor, c: Tensor, G: Tensor, d: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return 0.5 * y @ Q @ y + c @ y

    def inequality_constraints(self, Q: Tensor, c: Tensor, G: Tensor, d: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return G @ y - d

    def initial_guess(self, Q: Tensor, c: Tensor, G: Tensor, d: Tensor) -> Tensor:  # noqa: ARG002
        return torch.zeros_like(c)


class LooseQP(QuadraticProgram):
    """The same, solved by the alternating direction method of multipliers, which stops at residuals of LOOSE."""

    def solve(self, Q: Tensor, c: Tensor, G: Tensor, d: Tensor) -> Tensor:
        rho = 1.0
        factor = torch.linalg.cholesky(Q + rho * G.mT @ G)
        y, z, dual = torch.zeros_like(c), torch.zeros_like(d), torch.zeros_like(d)
        for _ in range(10_000):
            side = -c + (G.mT @ (rho * z - dual).unsqueeze(-1)).squeeze(-1)
            y = torch.cholesky_solve(side.unsqueeze(-1), factor).squeeze(-1)
            through = (G @ y.unsqueeze(-1)).squeeze(-1)
            before, z = z, torch.minimum(through + dual / rho, d)
            dual = dual + rho * (through - z)
            if float((through - z).abs().max()) < LOOSE and float((z - before).abs().max()) < LOOSE:
                break
        return y


def polish_rows(quick: bool) -> Iterator[Row]:
    """Error of solutions and gradients of the loose quadratic program after 0 to 3 polishing steps."""
    generator = torch.Generator().manual_seed(0)
    m, q, batch = (5, 3, 2) if quick else (30, 20, 16)
    draw: Callable[..., Tensor] = lambda *shape: machine.here(torch.randn(shape, generator=generator, dtype=torch.float64))  # noqa: E731
    root = draw(batch, m, m)
    Q = root @ root.mT / m + torch.eye(m, dtype=torch.float64)
    inputs = tuple(t.requires_grad_() for t in (Q, draw(batch, m), draw(batch, q, m), draw(batch, q).abs() * 0.3))
    v = draw(batch, m)

    def solved(node: DeclarativeNode) -> tuple[Tensor, ...]:
        y = node(*inputs)
        if not isinstance(y, Tensor):
            raise TypeError("y is one tensor")
        return y.detach(), *torch.autograd.grad(y, inputs, v)

    exact = solved(QuadraticProgram(solver=InteriorPoint(), polish=10))
    for steps in (0, 1, 2, 3):
        found = solved(LooseQP(solver=UserSolve(tolerance=1e-2), polish=steps))
        errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, exact, strict=True)]
        what = f"quadratic program solved to {LOOSE:g}, m={m}, q={q}, b={batch}, {steps} polishing steps"
        yield figure_row(SUITE, f"{what}: error of y", "", errors[0])
        yield figure_row(SUITE, f"{what}: error of the gradients", "", max(errors[1:]), target=Target(ours=1e-8) if steps == 3 else None)
