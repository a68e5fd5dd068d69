"""A transport plan as a differentiable function of costs, marginals and γ: the implicit derivative in closed form.

With A_i = log r_i + γφ_i and B_j = log c_j + γψ_j the plan is P_ij = exp(A_i + B_j − γM_ij), so that

    dP = P∘(dA 1ᵀ + 1 dBᵀ − γ dM − M dγ),      K [dA; dB] = [dr; dc] + [(P∘T)1; (P∘T)ᵀ1],   T = γ dM + M dγ

and for a cotangent V of P, with K w = [(P∘V)1; (P∘V)ᵀ1] and U = P∘(V − w_r 1ᵀ − 1 w_cᵀ),

    M̄ = −γU,   γ̄ = −⟨U, M⟩ = −⟨U, M − φ1ᵀ − 1ψᵀ⟩,   r̄ = w_r,   c̄ = w_c.

φ and ψ stand in γ̄ for the digits that a large constant in M would cost, and in T likewise: then dA and dB lose φ dγ and ψ dγ.

Where r_i = 0 the equation of row i is taken in the limit, divided by its mass: P_ij / r_i = c_j exp(γ(φ_i + ψ_j − M_ij)) (system.py).
One linear system, one right-hand side; everything else is elementwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from declarative.kkt.marginals import Marginals
from declarative.layers.formula import Formula, solved
from declarative.layers.transport.statement import Found, Transport, soft_minimum
from declarative.solution import DerivativeReport
from declarative.transforms import is_differentiated

_BOUND = 80.0  # of exponents where no mass is: pairs of an empty row and an empty column have no bound of their own


def _nothing(given: Any) -> Any:
    return given


@dataclass
class Record:
    """What the forward pass leaves for the backward pass, beside the tensors that autograd keeps."""

    factor: Tensor | None = None
    empty: bool = False
    report: DerivativeReport = field(default_factory=DerivativeReport)


@dataclass(frozen=True, eq=False)
class Call:
    """One call of the layer.

    Args:
        prepare: checks the problem, in numbers, and balances its marginals.
        solve: finds the plan of what `prepare` returns.
        finish: warns, raises or marks where that failed.
        constrained: False drops the constraint terms of the derivative (w = 0).
        tolerance, max_iterations: for who solves by other means.
    """

    prepare: Callable[[Transport], Transport] = _nothing
    solve: Callable[[Transport], Found] = _nothing
    finish: Callable[[Found], Found] = _nothing
    constrained: bool = True
    tolerance: float = 0.0
    max_iterations: int = 0
    record: Record = field(default_factory=Record)


def balance(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Marginals of one mass, the mean of both: what gives derivatives with respect to r alone, or c alone, a meaning."""
    row_mass, column_mass = rows.sum(-1, keepdim=True), columns.sum(-1, keepdim=True)
    mass = 0.5 * (row_mass + column_mass)
    return rows * (mass / row_mass), columns * (mass / column_mass)


def unbalance(rows: Tensor, columns: Tensor, rows_bar: Tensor, columns_bar: Tensor) -> tuple[Tensor, Tensor]:
    """The cotangents of `balance`'s arguments from those of its results."""
    row_mass, column_mass = rows.sum(-1, keepdim=True), columns.sum(-1, keepdim=True)
    mass = 0.5 * (row_mass + column_mass)
    along_rows = (rows_bar * rows).sum(-1, keepdim=True) / row_mass
    along_columns = (columns_bar * columns).sum(-1, keepdim=True) / column_mass
    share = 0.5 * (along_rows + along_columns)
    return (rows_bar - along_rows) * (mass / row_mass) + share, (columns_bar - along_columns) * (mass / column_mass) + share


def complete(cost: Tensor, rows: Tensor, columns: Tensor, gamma: Tensor, phi: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
    """The potentials, where r or c is zero as functions of the others."""
    phi = torch.where(rows > 0, phi, soft_minimum(cost, columns, psi, gamma))
    psi = torch.where(columns > 0, psi, soft_minimum(cost.mT, rows, phi, gamma))
    return (
        torch.where(rows > 0, phi, phi - _share_of_empty(cost, columns, phi, psi, gamma)),
        torch.where(columns > 0, psi, psi - _share_of_empty(cost.mT, rows, psi, phi, gamma)),
    )


def _share_of_empty(cost: Tensor, weights: Tensor, phi: Tensor, psi: Tensor, gamma: Tensor) -> Tensor:
    """What weights that are zero take from the soft minimum φ of the others: zero itself, but not its derivatives."""
    free = (weights <= 0).unsqueeze(1) & torch.isfinite(cost)
    exponents = torch.where(free, phi.unsqueeze(2) + psi.unsqueeze(1) - torch.where(free, cost, 0.0), 0.0) * gamma[:, None, None]
    return (exponents.clamp_max(_BOUND).exp() * torch.where(free, weights.unsqueeze(1), 0.0)).sum(2).log1p() / gamma.unsqueeze(1)


def transport_plan(call: Call, cost: Tensor, rows: Tensor, columns: Tensor, gamma: Tensor) -> tuple[Tensor, ...]:
    """P (b, m, n), φ (b, m), ψ (b, n), error, iterations and converged (b,), of M (b, m, n), r (b, m), c (b, n), γ (b,).

    P is differentiable; φ and ψ are where their marginal is positive, and downstream functions of them must not change with
    (φ + t, ψ − t).
    """
    return solved(PlanFormula(call), cost, rows, columns, gamma)  # pyright: ignore[reportReturnType]


@dataclass(frozen=True, eq=False)
class PlanFormula(Formula):
    """The plan and its potentials, by whatever method, and their derivative."""

    call: Call
    live = 3

    def fresh(self) -> PlanFormula:
        return PlanFormula(replace(self.call, record=Record()))

    def solve(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        call = self.call
        found = call.finish(call.solve(call.prepare(Transport(*tensors))))
        call.record.factor, call.record.report.method = found.factor, found.method
        return found.plan, found.rows, found.columns, found.error, found.iterations, found.converged

    def pull_back(self, operands: Sequence[Tensor], cotangents: Sequence[Tensor | None], wanted: Sequence[bool]) -> Sequence[Tensor | None]:
        return Derivative(self.call, *operands).pull_back(*cotangents, wanted=wanted)

    def push_forward(self, operands: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        return Derivative(self.call, *operands).push_forward(*tangents)


class Derivative:
    """The derivative at a plan, in differentiable torch: of its inputs and of itself."""

    def __init__(self, call: Call, cost: Tensor, rows: Tensor, columns: Tensor, gamma: Tensor, plan: Tensor, phi: Tensor, psi: Tensor) -> None:
        self.call, self.cost, self.gamma, self.plan, self.phi, self.psi = call, cost, gamma, plan, phi, psi
        self.given = rows, columns
        self._scale = gamma[:, None, None]
        self.empty = call.record.empty
        self._shares, self._density = self._conditionals() if self.empty else (None, None)
        self._blocks = (plan, plan)
        if self._shares is not None:
            r, c = balance(rows, columns)
            self._blocks = torch.where(r.unsqueeze(2) > 0, plan, self._shares[0]), torch.where(c.unsqueeze(1) > 0, plan, self._shares[1])

    def _solve(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """K [·; ·] = [rows; columns]."""
        system = Marginals(self.plan, *(self._blocks if self.empty else (None, None)), self.call.record.factor, self.call.record.report)
        if self.empty or is_differentiated(self.plan, rows, columns):
            return system.solve(torch.cat([rows, columns], 1)).split([rows.shape[1], columns.shape[1]], 1)  # pyright: ignore[reportReturnType]
        return system.solve_pair(rows, columns)

    def _slack(self, phi: Tensor, psi: Tensor) -> Tensor:
        """M − φ1ᵀ − 1ψᵀ, with 0 for forbidden pairs."""
        forbidden = torch.isinf(self.cost)
        return torch.where(forbidden, 0.0, torch.where(forbidden, 0.0, self.cost) - phi.unsqueeze(2) - psi.unsqueeze(1))

    def _conditionals(self) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Π of the rows where r = 0, the share of each pair for one unit of mass, and of such columns; 0 elsewhere. P / rcᵀ of both."""
        rows, columns = balance(*self.given)
        empty_rows, empty_columns = rows.unsqueeze(2) == 0, columns.unsqueeze(1) == 0
        # The potential of what is empty is not free: it follows from the others.
        phi, psi = complete(self.cost, rows, columns, self.gamma, self.phi, self.psi)
        exponents = -self._slack(phi, psi) * self._scale
        density = torch.where(torch.isinf(self.cost) | ~(empty_rows | empty_columns), 0.0, exponents.clamp_max(_BOUND).exp())
        shares = torch.where(empty_rows, density * columns.unsqueeze(1), 0.0), torch.where(empty_columns, density * rows.unsqueeze(2), 0.0)
        return shares, torch.where(empty_rows & empty_columns, density, 0.0)

    def pull_back(self, plan_bar: Tensor | None, phi_bar: Tensor | None, psi_bar: Tensor | None, wanted: Sequence[bool]) -> list[Tensor | None]:
        """Cotangents of (M, r, c, γ)."""
        plan = self.plan
        if plan_bar is None:
            weighted = None
            side_rows, side_columns = torch.zeros_like(self.phi), torch.zeros_like(self.psi)
        else:
            weighted = plan * plan_bar
            side_rows, side_columns = self._sums(weighted, plan_bar)
        if phi_bar is not None:
            side_rows = side_rows + phi_bar / self.gamma.unsqueeze(1)
        if psi_bar is not None:
            side_columns = side_columns + psi_bar / self.gamma.unsqueeze(1)
        if self.call.constrained:
            w_rows, w_columns = self._solve(side_rows, side_columns)
        else:
            w_rows, w_columns = torch.zeros_like(side_rows), torch.zeros_like(side_columns)
        found: list[Tensor | None] = [None] * 4
        if wanted[0] or wanted[3]:
            both = w_rows.unsqueeze(2) + w_columns.unsqueeze(1)
            in_place = weighted is not None and not is_differentiated(plan, weighted, both, self.gamma)
            if weighted is None:
                moved = -(plan * both)
            else:
                moved = weighted.addcmul_(plan, both, value=-1) if in_place else torch.addcmul(weighted, plan, both, value=-1)
            if wanted[3]:
                found[3] = -(moved * self._slack(self.phi, self.psi)).sum((1, 2))
            if wanted[0]:
                found[0] = moved.mul_(-self._scale) if in_place else moved * -self._scale
        if wanted[1] or wanted[2]:
            found[1], found[2] = self._to_marginals(w_rows, w_columns, side_rows, side_columns, phi_bar, psi_bar)
        return found

    def _sums(self, weighted: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """(P∘V)1 and (P∘V)ᵀ1 of weighted = P∘V; with Π for P where it is empty."""
        if self._shares is None:
            return weighted.sum(2), weighted.sum(1)
        return (self._blocks[0] * values).sum(2), (self._blocks[1] * values).sum(1)

    def _to_marginals(
        self,
        w_rows: Tensor,
        w_columns: Tensor,
        side_rows: Tensor,
        side_columns: Tensor,
        phi_bar: Tensor | None,
        psi_bar: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        rows, columns = balance(*self.given)
        if not self.call.constrained:  # the potentials held fixed: r̄ = Π V
            w_rows, w_columns = side_rows / torch.where(rows > 0, rows, 1.0), side_columns / torch.where(columns > 0, columns, 1.0)
        if phi_bar is not None:
            w_rows = w_rows - torch.where(rows > 0, phi_bar / (self.gamma.unsqueeze(1) * torch.where(rows > 0, rows, 1.0)), 0.0)
        if psi_bar is not None:
            w_columns = w_columns - torch.where(columns > 0, psi_bar / (self.gamma.unsqueeze(1) * torch.where(columns > 0, columns, 1.0)), 0.0)
        return unbalance(*self.given, w_rows, w_columns)

    def push_forward(self, cost_dot: Tensor | None, rows_dot: Tensor | None, columns_dot: Tensor | None, gamma_dot: Tensor | None) -> tuple[Tensor, ...]:
        """Tangents of (P, φ, ψ)."""
        plan, gamma = self.plan, self.gamma.unsqueeze(1)
        r_dot, c_dot = self._balanced_tangents(rows_dot, columns_dot)
        total = torch.zeros_like(plan)
        if cost_dot is not None:
            total = total + cost_dot * self._scale
        if gamma_dot is not None:
            total = total + self._slack(self.phi, self.psi) * gamma_dot[:, None, None]
        side_rows, side_columns = self._sums(plan * total, total)
        rows, columns = balance(*self.given)
        moved = torch.zeros_like(plan)
        if self._shares is None or self._density is None:
            side_rows, side_columns = side_rows + r_dot, side_columns + c_dot
        else:  # what becomes of the mass that empty rows and columns get; dA is γ dφ there
            moved = self._shares[0] * r_dot.unsqueeze(2) + self._shares[1] * c_dot.unsqueeze(1)
            side_rows = side_rows + torch.where(rows > 0, r_dot - moved.sum(2), -(self._density * c_dot.unsqueeze(1)).sum(2))
            side_columns = side_columns + torch.where(columns > 0, c_dot - moved.sum(1), -(self._density * r_dot.unsqueeze(2)).sum(1))
        if self.call.constrained:
            a_dot, b_dot = self._solve(side_rows, side_columns)
        else:
            a_dot, b_dot = r_dot / torch.where(rows > 0, rows, 1.0), c_dot / torch.where(columns > 0, columns, 1.0)
        plan_dot = plan * (a_dot.unsqueeze(2) + b_dot.unsqueeze(1) - total)
        if self._shares is not None:
            plan_dot = plan_dot + moved
        phi_dot = a_dot - torch.where(rows > 0, r_dot / torch.where(rows > 0, rows, 1.0), 0.0)
        psi_dot = b_dot - torch.where(columns > 0, c_dot / torch.where(columns > 0, columns, 1.0), 0.0)
        return plan_dot, phi_dot / gamma, psi_dot / gamma

    def _balanced_tangents(self, rows_dot: Tensor | None, columns_dot: Tensor | None) -> tuple[Tensor, Tensor]:
        rows, columns = self.given
        r = torch.zeros_like(rows) if rows_dot is None else rows_dot
        c = torch.zeros_like(columns) if columns_dot is None else columns_dot
        row_mass, column_mass = rows.sum(1, keepdim=True), columns.sum(1, keepdim=True)
        row_rate, column_rate = r.sum(1, keepdim=True), c.sum(1, keepdim=True)
        mass, rate = 0.5 * (row_mass + column_mass), 0.5 * (row_rate + column_rate)
        return (
            (r * mass + rows * rate - rows * (mass * row_rate / row_mass)) / row_mass,
            (c * mass + columns * rate - columns * (mass * column_rate / column_mass)) / column_mass,
        )
