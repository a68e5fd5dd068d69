"""The numbers of a matrix-free solve: conjugate gradients, MINRES or the node's own `solve_kkt`, and what becomes of samples that they fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from declarative.differentiation.linear_solvers import MINRES, ConjugateGradients, Preconditioner
from declarative.engines.autodiff import linearise
from declarative.engines.blocks import read_solution
from declarative.errors import StructureError, name_samples
from declarative.kkt.bordered import IrregularPolicy, solve_bordered
from declarative.kkt.iterative import Outcome, conjugate_gradients, minres
from declarative.kkt.matrix_free import MatrixFreeKKT
from declarative.kkt.null_space import row_space
from declarative.problem import Problem
from declarative.structure.base import Operator
from declarative.vectors import times


def matrix_free(
    policy: IrregularPolicy, problem: Problem, at: Any, point: tuple[Tensor, Tensor, Tensor], weights: Tensor | None, method: Method
) -> MatrixFreeKKT:
    """K of the problem at the point (y, ν, μ), to be solved by `method`."""
    y, equality, inequality = point
    batch, p = problem.batch, equality.shape[1]
    tensors = tuple(t if dim == 0 else t.expand(batch, *t.shape) for t, dim in zip(problem.tensors, problem.in_dims, strict=True))
    multipliers = torch.cat([equality, inequality], 1)
    method = replace(method, policy=policy, problem=problem, equalities=p)

    def linearised(arguments: Any, y: Tensor, multipliers: Tensor) -> Any:
        here = replace(problem, in_dims=tuple(0 for _ in arguments), batch=y.shape[0]).with_tensors(arguments)
        return linearise(here, y, multipliers[:, :p], multipliers[:, p:])

    ones = torch.ones_like(multipliers) if weights is None else weights
    return MatrixFreeKKT(linearised, method, tensors, y, multipliers, ones, at)


@dataclass(frozen=True)
class Method:
    """A way to solve K z = r in numbers; what it cannot do is done densely."""

    policy: Any = None
    problem: Any = None
    equalities: int = 0

    def __call__(self, kkt: MatrixFreeKKT, columns: Tensor) -> Tensor:
        at = kkt.linearised()
        return torch.stack([self._solve(kkt, at, column) for column in columns.unbind(-1)], -1) if columns.shape[-1] else torch.zeros_like(columns)

    def _solve(self, kkt: MatrixFreeKKT, at: Any, rhs: Tensor) -> Tensor:
        raise NotImplementedError

    def _preconditioner(self, kkt: MatrixFreeKKT, make: Preconditioner | None) -> Callable[[Tensor], Tensor] | None:
        """The caller's preconditioner at the point of `kkt`."""
        if make is None:
            return None
        p = self.equalities
        operator = make(read_solution(self.problem, kkt.y, kkt.multipliers[:, :p], kkt.multipliers[:, p:], kkt.weights[:, p:] > 0))
        if not isinstance(operator, Operator):
            raise TypeError(f"{self.policy.name}: the preconditioner must return an operator from declarative.structure, got {type(operator).__name__}")
        return operator.solve

    def _finished(self, kkt: MatrixFreeKKT, rhs: Tensor, solution: Tensor, good: Tensor, what: str) -> Tensor:
        """The residual noted, and samples that are not good solved densely."""
        report = self.policy.report
        scale = rhs.abs().amax(1).clamp_min(torch.finfo(rhs.dtype).tiny)
        report.residual = (rhs - kkt.matmul_columns(solution.unsqueeze(-1)).squeeze(-1)).abs().amax(1) / scale
        report.method = what
        bad = (~good).nonzero().squeeze(1)
        if bad.numel():
            report.method = f"{what}; {name_samples(bad.tolist(), rhs.shape[0])} dense"
            solution = solution.index_copy(0, bad, self._dense(kkt, rhs, bad))
        return solution

    def _dense(self, kkt: MatrixFreeKKT, rhs: Tensor, index: Tensor) -> Tensor:
        m, p, whole = kkt.y.shape[1], self.equalities, index.numel() == rhs.shape[0]
        weights, side = kkt.weights[index], rhs[index]
        if kkt.at is None:
            at = kkt.with_tensors([t[index] for t in kkt.tensors]).linearised()
        elif whole:
            at = kkt.at
        else:
            # What the batch shares stays shared: a copy for each sample would cost a hundred times as much.
            here = self.problem.with_tensors([t.detach() for t in self.problem.tensors]).select(index)
            at = linearise(here, kkt.y[index], kkt.multipliers[index, :p], kkt.multipliers[index, p:])
        policy = replace(self.policy, places=[int(i) % max(1, self.policy.batch) for i in index])
        found = solve_bordered(policy, at.hessian().detach(), at.jacobian().detach(), weights if side.shape[1] > m else None, side[:, :m], side[:, m:])
        return torch.cat(found, 1)


@dataclass(frozen=True)
class CGMethod(Method):
    """Conjugate gradients on the null space of A's rows that count."""

    options: ConjugateGradients = ConjugateGradients()  # noqa: RUF009
    give_up: bool = False

    def _solve(self, kkt: MatrixFreeKKT, at: Any, rhs: Tensor) -> Tensor:
        m, k = kkt.y.shape[1], kkt.multipliers.shape[1]
        tolerance = torch.finfo(rhs.dtype).eps ** 0.75 if self.options.tolerance is None else self.options.tolerance
        limit = 2 * m if self.options.max_iterations is None else self.options.max_iterations
        precondition = self._preconditioner(kkt, self.options.preconditioner)
        if not k:
            found = conjugate_gradients(at.hessian_product, rhs, tolerance=tolerance, max_iterations=limit, precondition=precondition, give_up=self.give_up)
            return self._finished(kkt, rhs, found.solution, found.converged, _named("conjugate gradients", found))
        rows = at.jacobian() * kkt.weights.unsqueeze(-1)
        basis, inverse = row_space(rows)
        v, r = rhs[:, :m], rhs[:, m:] * kkt.weights

        def project(x: Tensor) -> Tensor:
            return x - times(basis, times(basis.mT, x))

        particular = times(inverse, r)
        side = project(v - at.hessian_product(particular))
        inner = None if precondition is None else (lambda x: project(precondition(project(x))))
        found = conjugate_gradients(
            lambda x: project(at.hessian_product(project(x))), side, tolerance=tolerance, max_iterations=limit, precondition=inner, give_up=self.give_up
        )
        u = particular + project(found.solution)
        w = times(inverse.mT, v - at.hessian_product(u))
        # Redundant rows have no unique multipliers: whether that is allowed is for the dense solve's policy to say.
        full = (basis.abs().sum(1) > 0).sum(1) == (kkt.weights > 0).sum(1)
        return self._finished(kkt, rhs, torch.cat([u, w * kkt.weights], 1), found.converged & full, _named("projected conjugate gradients", found))


@dataclass(frozen=True)
class MINRESMethod(Method):
    """MINRES on K."""

    options: MINRES = MINRES()  # noqa: RUF009

    def _solve(self, kkt: MatrixFreeKKT, at: Any, rhs: Tensor) -> Tensor:
        tolerance = torch.finfo(rhs.dtype).eps ** 0.75 if self.options.tolerance is None else self.options.tolerance
        limit = 4 * rhs.shape[1] if self.options.max_iterations is None else self.options.max_iterations
        precondition = self._preconditioner(kkt, self.options.preconditioner)
        held = replace(kkt, at=at)
        found = minres(lambda z: held.matmul_columns(z.unsqueeze(-1)).squeeze(-1), rhs, tolerance=tolerance, max_iterations=limit, precondition=precondition)
        return self._finished(kkt, rhs, found.solution, found.converged, _named("MINRES", found))


@dataclass(frozen=True)
class HookMethod(Method):
    """The node's `solve_kkt`, whose result is checked against K."""

    hook: Any = None

    def _solve(self, kkt: MatrixFreeKKT, at: Any, rhs: Tensor) -> Tensor:
        m, p = kkt.y.shape[1], self.equalities
        solution = torch.cat(self.hook(kkt, rhs[:, :m], rhs[:, m:]), 1)
        weights = torch.cat([torch.ones_like(kkt.y), kkt.weights], 1)
        solution = torch.where(weights > 0, solution, 0.0)
        scale = rhs.abs().amax(1).clamp_min(torch.finfo(rhs.dtype).tiny)
        held = replace(kkt, at=at)
        residual = (rhs * weights - held.matmul_columns(solution.unsqueeze(-1)).squeeze(-1)).abs().amax(1) / scale
        self.policy.report.residual, self.policy.report.method = residual, "the node's solve_kkt"
        wrong = (~(residual <= torch.finfo(rhs.dtype).eps ** 0.4)).nonzero().squeeze(1)
        if wrong.numel() and bool(torch.isfinite(rhs).all()):
            raise StructureError(
                f"{self.policy.name}.solve_kkt does not solve the KKT system at {name_samples(wrong.tolist(), rhs.shape[0])}: relative residual "
                f"{float(residual[wrong].max()):.1e}. It must return (u, w) with H u + Aᵀw = rhs_y and A u = rhs_multipliers; "
                f"p = {p} rows of equalities come first, and rows of inactive inequalities are out (w = 0 there)"
            )
        return solution


def _named(method: str, found: Outcome) -> str:
    return f"{method}, {found.iterations} steps"
