"""Entropic transport as a statement: what the generic engine, `certify` and `verify` see of the layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from declarative.layers.transport.plan import Call, Derivative, balance, transport_plan
from declarative.layers.transport.reading import Read
from declarative.node import DeclarativeNode
from declarative.solution import Solution, Status
from declarative.structure import Constant, DiagonalOperator, Sparse


@dataclass(frozen=True, eq=False)
class Potentials:
    """φ (…, m) and ψ (…, n), with ⟨φ, r⟩ = ⟨ψ, c⟩: what `init=` takes."""

    rows: Tensor
    columns: Tensor


class StatedTransport(DeclarativeNode):
    """The objective, the constraints and the structure; how arguments are read and plans found is left to the layer."""

    constraint_structure = Constant(Sparse())
    input = "cost"
    gamma: Any

    def _given(self, inputs: tuple[Tensor | None, ...], mask: Tensor | None = None) -> Read:
        raise NotImplementedError

    def _call(self, given: Read, init: Any, inputs: tuple[Tensor | None, ...], padding: int = 0) -> Call:
        raise NotImplementedError

    # The statement, for one instance: inputs M, and r, c, γ where they are given.

    def objective(self, *inputs_and_plan: Tensor) -> Tensor:
        """⟨P, M⟩ + (1/γ) Σ P log(P / r cᵀ)."""
        *inputs, P = inputs_and_plan
        M, r, c, gamma = self._instance(inputs)
        return (P * M).sum() + (P * (P / (r.unsqueeze(1) * c)).log()).sum() / gamma

    def equality_constraints(self, *inputs_and_plan: Tensor) -> Tensor:
        """P1 = r and Pᵀ1 = c; the last column's equation follows from the others."""
        *inputs, P = inputs_and_plan
        _, r, c, _ = self._instance(inputs)
        return torch.cat([P.sum(1) - r, (P.sum(0) - c)[:-1]])

    def _instance(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor | float]:
        M, m, n = inputs[0], *inputs[0].shape
        r = inputs[1] if len(inputs) > 1 else M.new_full((m,), 1 / m)
        c = inputs[2] if len(inputs) > 2 else M.new_full((n,), 1 / n)
        gamma = inputs[3] if len(inputs) > 3 else self.gamma
        if isinstance(gamma, Tensor) and gamma.ndim:
            raise ValueError("gamma differs between samples here: pass it at the call, layer(M, r, c, gamma)")
        return (-M.log() if self.input == "affinity" else M), *balance(r, c), gamma

    # The algorithm and the structure, batch first: what the generic engine uses, for `certify`, `explain` and the proofs of `verify`.

    def solve(self, *inputs: Tensor) -> Solution:
        """P and the multipliers."""
        given = self._given(inputs)
        plan, phi, psi, _, iterations, converged = transport_plan(self._call(given, None, inputs), given.cost, given.rows, given.columns, given.gamma)
        status = torch.where(converged, int(Status.CONVERGED), int(Status.MAX_ITERATIONS))
        return Solution(plan, multipliers_of(phi, psi, given.gamma), status=status, iterations=iterations)

    def hessian(self, *inputs_and_solution: Any) -> DiagonalOperator:
        """H = diag(1 / γP)."""
        *inputs, solution = inputs_and_solution
        return DiagonalOperator((solution.y * self._given(tuple(inputs)).gamma[:, None, None]).reciprocal().flatten(1))

    def vjp(self, inputs: tuple[Tensor, ...], solution: Solution, cotangent: Tensor) -> tuple[Tensor, ...]:
        """The whole backward pass."""
        given = self._given(inputs)
        phi, psi = _potentials_of(solution, given)
        at = Derivative(Call(), given.cost, given.rows, given.columns, given.gamma, torch.as_tensor(solution.y), phi, psi)
        cost, *rest = at.pull_back(cotangent, None, None, wanted=(True, True, True, True))
        first = -cost / inputs[0] if self.input == "affinity" else cost  # pyright: ignore[reportOptionalOperand]
        return (first, *rest)[: len(inputs)]  # pyright: ignore[reportReturnType]


def multipliers_of(phi: Tensor, psi: Tensor, gamma: Tensor) -> Tensor:
    """ν of the statement: the multiplier of the last column, which has no equation, is zero."""
    return torch.cat([-phi - psi[:, -1:] - 1 / gamma.unsqueeze(1), (psi[:, -1:] - psi)[:, :-1]], 1)


def _potentials_of(solution: Solution, given: Read) -> tuple[Tensor, Tensor]:
    nu, m = torch.as_tensor(solution.equality_multipliers), given.rows.shape[1]
    return -nu[:, :m] - 1 / given.gamma.unsqueeze(1), nn.functional.pad(-nu[:, m:], (0, 1))


@torch.no_grad()
def stationarity(given: Read, plan: Tensor, potentials: Potentials) -> Tensor:
    """(b,) how far P is from the plan of its potentials, as a cost, relative to the largest: where P is not zero."""
    rows, columns = balance(given.rows, given.columns)
    density = plan / (rows.unsqueeze(2) * columns.unsqueeze(1))
    gap = given.cost + density.log() / given.gamma[:, None, None] - potentials.rows.unsqueeze(2) - potentials.columns.unsqueeze(1)
    finite = torch.where(torch.isinf(given.cost), 0.0, given.cost)
    return torch.where((plan > 0) & torch.isfinite(gap), gap, 0.0).abs().amax((1, 2)) / (finite.abs().amax((1, 2)) + 1 / given.gamma)
