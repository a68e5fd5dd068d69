"""The bordered system [H Aᵀ; A 0][u; w] = [v; v_λ] with inactive rows masked (docs/architecture.md).

A keeps all its rows. An inactive row i is replaced by e_i: its column of Aᵀ vanishes and w_i is the right-hand side's
(zero). So samples with different active sets share one batched solve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from declarative.errors import IrregularPointError, name_samples
from declarative.kkt.symmetric import symmetric_solve
from declarative.solution import DerivativeReport
from declarative.transforms import is_wrapped
from declarative.typing import Hessians, Jacobians, Rows, Variables
from declarative.vectors import rank_tolerance

# From so many constraints on, inactive rows are left out rather than masked.
_MANY_ROWS = 12
IRREGULAR_CHOICES = ("raise", "nan", "zero", "min_norm")


@dataclass
class IrregularPolicy:
    """What becomes of samples whose KKT matrix is singular; writes what it did into a report.

    Args:
        choice: "raise" an `IrregularPointError`; "nan" or "zero" as the sample's derivative; "min_norm", the
            pseudo-inverse (right for redundant constraints: u is unique there and only w is not).
        size: m, which splits K into H and A.
        batch: b, for messages.
        name: the node's name, for messages.
        damping: δ: the solve is with H + δI and −δI in the corner.
        places: where the samples of a sub-batch belong; None: where they stand.
        most_rows: no sample has more rows whose weight is not zero, if such a number is known beforehand; None: it is read off the weights.
    """

    choice: str
    size: int
    batch: int
    name: str
    damping: float = 0.0
    report: DerivativeReport = field(default_factory=DerivativeReport)
    places: Sequence[int] | None = None
    most_rows: int | None = None

    def damp(self, matrix: Tensor) -> Tensor:
        """K + diag(δ, −δ), if damping was asked for."""
        return matrix + torch.diag_embed(self._shift(matrix)) if self.damping else matrix

    def definite(self, matrix: Tensor) -> bool:
        """Without constraints H is, at a minimiser."""
        return matrix.shape[-1] == self.size

    def _shift(self, matrix: Tensor) -> Tensor:
        shift = torch.full((matrix.shape[-1],), -self.damping, dtype=matrix.dtype, device=matrix.device)
        shift[: self.size] = self.damping
        return shift

    def record(self, matrix: Tensor, solution: Tensor, residual: Tensor, relative: Tensor, refined: int) -> None:
        """Note the relative residual of the undamped system."""
        if self.damping:
            undamped = residual + self._shift(matrix).unsqueeze(-1) * solution
            relative = undamped.abs().amax((-2, -1)) / (matrix @ solution + residual).abs().amax((-2, -1)).clamp_min(torch.finfo(matrix.dtype).tiny)
        self.report.note(relative, refined, "dense factorisation")

    def resolve(self, matrix: Tensor, rhs: Tensor, samples: Tensor) -> Tensor:
        """Apply the choice to the singular samples."""
        causes = [diagnose(k, self.size) for k in matrix]
        places = [int(i) % max(1, self.batch) if self.places is None else self.places[int(i)] for i in samples]
        self.report.irregular.update(zip(places, causes, strict=True))
        if self.choice == "raise":
            named = "; ".join(
                f"{name_samples([i for i, c in zip(places, causes, strict=True) if c == cause], self.batch)}: {cause}" for cause in sorted(set(causes))
            )
            raise IrregularPointError(
                f"{self.name}: the solution has no unique derivative at {named}. Pass differentiation=Implicit(irregular=...) with "
                '"min_norm" (right where constraints are redundant), "nan" or "zero", or change the statement so that the minimiser is regular.'
            )
        if self.choice == "min_norm":
            return self._pseudo_solve(matrix, rhs)
        undefined = torch.full_like(rhs, torch.nan if self.choice == "nan" else 0.0)
        # A sample whose result is not used (zero cotangent) contributes zero, whatever its derivative.
        return torch.where((rhs == 0).all(-2, keepdim=True), 0.0, undefined)

    def _pseudo_solve(self, matrix: Tensor, rhs: Tensor) -> Tensor:
        # Rows of A get unit length so that the cut-off means the same for each; y gets ONE scale, so that the u returned
        # is the shortest in y's own units.
        m = self.size
        largest = matrix[:, :m, :m].abs().amax((-1, -2))
        y_scale = torch.where(largest > 0, largest, 1.0).rsqrt()  # H of a linear program is zero
        row_norms = torch.linalg.vector_norm(matrix[:, m:, :m], dim=-1) * y_scale.unsqueeze(-1)
        scale = torch.cat([y_scale.unsqueeze(-1).expand(-1, m), torch.where(row_norms > 0, 1 / row_norms, 1.0)], -1)
        values, vectors = torch.linalg.eigh(matrix * scale.unsqueeze(-1) * scale.unsqueeze(-2))
        cutoff = rank_tolerance(matrix.shape[-1], matrix.dtype) * values.abs().amax(-1, keepdim=True)
        inverse = torch.where(values.abs() > cutoff, 1 / values, 0.0)
        side = scale.unsqueeze(-1) * rhs
        return scale.unsqueeze(-1) * (vectors @ (inverse.unsqueeze(-1) * (vectors.transpose(-1, -2) @ side)))


def diagnose(matrix: Tensor, size: int) -> str:
    """In words: why one singular KKT matrix (n, n), split at m, is singular."""
    jacobian = matrix[size:, :size]
    present = jacobian.abs().amax(1) > 0 if jacobian.numel() else jacobian.new_zeros(0, dtype=torch.bool)
    vanished = int(((matrix[size:, size:].diagonal() == 0) & ~present).sum())
    if vanished:
        return f"the gradient of {vanished} active constraint{'s' if vanished > 1 else ''} vanishes"
    rows = jacobian[present]
    rank = 0
    if rows.numel():
        rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        rank = int(torch.linalg.matrix_rank(rows, rtol=rank_tolerance(max(rows.shape), rows.dtype)))
    if rank < rows.shape[0]:
        return f"active constraints are redundant (their Jacobian has rank {rank}, not {rows.shape[0]})"
    return "the minimiser is not isolated (the Hessian of the Lagrangian is singular on the null space of the constraints)"


def assemble(hessian: Hessians, jacobian: Jacobians, weights: Rows | None) -> Tensor:
    """K (b, m + k, m + k) with row i of A scaled by its weight ρ_i and −(1 − ρ_i²) in the corner.

    ρ = 1 (or no weights): the constraint holds with equality. ρ = 0: it is out, its row and column those of −I. In between:
    smoothed complementarity, where eliminating w gives A_i u − (1/ρ² − 1) w_i = r_i (an interior point's s/μ).
    """
    if weights is None:
        rows, below = jacobian, torch.nn.functional.pad(jacobian, (0, jacobian.shape[1]))
    else:
        rows = jacobian * weights.unsqueeze(-1)
        below = torch.cat([rows, torch.diag_embed(weights * weights - 1)], -1)
    return torch.cat([torch.cat([hessian, rows.transpose(-1, -2)], -1), below], -2)


def solve_bordered(
    policy: IrregularPolicy, hessian: Hessians, jacobian: Jacobians, weights: Rows | None, rhs_y: Variables, rhs_rows: Rows
) -> tuple[Variables, Rows]:
    """(u, w) of the weighted bordered system; w is zero where the weight is, whatever the right-hand side."""
    if weights is not None and (kept := kept_rows(weights, policy.most_rows)) is not None:
        u, w = _solve_masked(policy, hessian, kept.take(jacobian), kept.take(weights), rhs_y, kept.take(rhs_rows))
        return u, kept.put_back(w)
    return _solve_masked(policy, hessian, jacobian, weights, rhs_y, rhs_rows)


def _solve_masked(
    policy: IrregularPolicy, hessian: Hessians, jacobian: Jacobians, weights: Rows | None, rhs_y: Variables, rhs_rows: Rows
) -> tuple[Variables, Rows]:
    """The same with all rows."""
    if jacobian.shape[1] == 0:
        return symmetric_solve(policy, policy.damp(hessian), rhs_y.unsqueeze(-1)).squeeze(-1), rhs_rows
    rhs = torch.cat([rhs_y, rhs_rows if weights is None else rhs_rows * weights], 1).unsqueeze(-1)
    solution = symmetric_solve(policy, policy.damp(assemble(hessian, jacobian, weights)), rhs).squeeze(-1)
    u, w = solution[:, : rhs_y.shape[1]], solution[:, rhs_y.shape[1] :]
    return u, w if weights is None else w * weights


@dataclass(frozen=True)
class KeptRows:
    """Of k rows no more than any one sample has active: each sample's own come first.

    Args:
        order: (b, kept) their places.
        count: k.
    """

    order: Tensor
    count: int

    def take(self, rows: Tensor) -> Tensor:
        """(b, k, …) -> (b, kept, …)"""
        index = self.order if rows.ndim == 2 else self.order.unsqueeze(-1).expand(-1, -1, rows.shape[2])
        return rows.gather(1, index)

    def put_back(self, rows: Tensor) -> Tensor:
        """(b, kept) -> (b, k), zero elsewhere."""
        return torch.zeros(rows.shape[0], self.count, dtype=rows.dtype, device=rows.device).scatter(1, self.order, rows)


def kept_rows(weights: Rows, most: int | None = None) -> KeptRows | None:
    """The rows that matter; None where leaving the others out saves nothing, or cannot be decided (under vmap).

    Args:
        most: how many they are at most in any sample, if that is known: reading it off the weights would make a GPU wait.
    """
    count = weights.shape[1]
    if count < _MANY_ROWS or is_wrapped(weights) or not weights.shape[0]:
        return None
    active = weights != 0
    kept = int(active.sum(1).max()) if most is None else most
    return KeptRows(torch.argsort(active.to(torch.int8), dim=1, descending=True, stable=True)[:, :kept], count) if kept < count else None
