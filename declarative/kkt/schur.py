"""The KKT matrix as an operator of structured blocks, solved by the Schur complement of H (docs/architecture.md).

    K = [[H, (ρA)ᵀ], [ρA, −(1 − ρ²)]],   S = ρ A H⁻¹ Aᵀ ρ + 1 − ρ²,   w = S⁻¹(ρ A H⁻¹ v − r),   u = H⁻¹(v − (ρA)ᵀ w)

with the row weights ρ of `bordered.assemble`. H is never formed. The residual of every solve is measured with K itself,
refined where it is not at rounding; samples where H is singular though K need not be (or is too) go to the dense solve,
with its verdicts and policies. So a declared structure changes the cost, never the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from declarative.errors import IrregularPointError, name_samples
from declarative.kkt.bordered import IrregularPolicy, assemble, kept_rows, solve_bordered
from declarative.kkt.lu import lu_factor
from declarative.kkt.symmetric import SCREEN, largest_entry, symmetric_solve
from declarative.structure.base import Operator, RowsOperator
from declarative.structure.elementary import DenseOperator, DiagonalOperator, InverseDiagonalOperator
from declarative.transforms import is_differentiated
from declarative.typing import Rows, Variables
from declarative.vectors import golden_turns

# Numbers in the dense matrices that a fallback may form (2 GiB in float64).
_LARGEST_DENSE = 2**28
BY_STRUCTURE = "factorisation by structure"


@dataclass(frozen=True, eq=False)
class SchurKKT(Operator):
    """K of n = m + k rows from H (b, m, m) and A (b, k, m).

    Args:
        policy: what becomes of singular samples; takes note of residuals.
        hessian: H.
        jacobian: A; None without constraints.
        weights: ρ (b, k); None where all are 1.
    """

    policy: IrregularPolicy
    hessian: Operator
    jacobian: Operator | None
    weights: Tensor | None
    checks_itself = True  # by residuals; what the policy leaves as NaN is meant

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        rows = () if self.jacobian is None else self.jacobian.tensors
        return (*self.hessian.tensors, *rows, *(() if self.weights is None else (self.weights,)))

    def with_tensors(self, tensors: Sequence[Tensor]) -> SchurKKT:
        first = len(self.hessian.tensors)
        second = first + (0 if self.jacobian is None else len(self.jacobian.tensors))
        return replace(
            self,
            hessian=self.hessian.with_tensors(tensors[:first]),
            jacobian=None if self.jacobian is None else self.jacobian.with_tensors(tensors[first:second]),
            weights=None if self.weights is None else tensors[second],
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        b, m, _ = self.hessian.shape
        n = m + (0 if self.jacobian is None else self.jacobian.shape[1])
        return b, n, n

    def transpose(self) -> SchurKKT:
        return self

    def matmul_columns(self, columns: Tensor) -> Tensor:
        m = self.hessian.shape[1]
        if self.jacobian is None:
            return self.hessian.matmul_columns(columns)
        u, w = columns[:, :m], columns[:, m:]
        weighted = w if self.weights is None else w * self.weights.unsqueeze(-1)
        rows = self.jacobian.matmul_columns(u)
        top = self.hessian.matmul_columns(u) + self.jacobian.transpose().matmul_columns(weighted)
        if self.weights is not None:
            rows = rows * self.weights.unsqueeze(-1) - (1 - self.weights**2).unsqueeze(-1) * w
        return torch.cat([top, rows], 1)

    def to_dense(self) -> Tensor:
        hessian = self.hessian.to_dense()
        jacobian = hessian.new_zeros(hessian.shape[0], 0, hessian.shape[2]) if self.jacobian is None else self.jacobian.to_dense()
        return assemble(hessian, jacobian, self.weights)

    def solve_columns(self, columns: Tensor) -> Tensor:
        if columns.numel() == 0:
            return torch.zeros_like(columns)
        factor = _SchurFactor(self)
        solution = factor.solve(columns)
        eps, scale = torch.finfo(columns.dtype).eps, largest_entry(columns).clamp_min(torch.finfo(columns.dtype).tiny)
        residual = columns - self.matmul_columns(solution)
        relative, refined = largest_entry(residual) / scale, 0
        # One look at the numbers, where all is well: on a GPU each look waits for the device.
        if not bool((factor.sound & (relative <= eps**0.75)).all()):
            solution, relative, refined = self._improved(factor, columns, solution, residual, scale)
        self.policy.report.note(relative, refined, BY_STRUCTURE)
        return solution

    def _improved(self, factor: _SchurFactor, columns: Tensor, solution: Tensor, residual: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, int]:
        """(solution, its relative residual by sample, steps of refinement); what does not settle is solved densely."""
        eps, refined, relative = torch.finfo(columns.dtype).eps, 0, largest_entry(residual) / scale
        while refined < 2 and not bool((relative <= eps**0.75).all()):
            refined += 1
            better = solution + factor.solve(residual)
            renewed = columns - self.matmul_columns(better)
            gained = (largest_entry(renewed) / scale < relative)[:, None, None]
            if not bool(gained.any()):
                break
            solution, residual = torch.where(gained, better, solution), torch.where(gained, renewed, residual)
            relative = largest_entry(residual) / scale
        settled = factor.sound & (relative <= eps**0.5)
        if not bool(settled.all()):
            finite = torch.stack([torch.isfinite(t).flatten(1).all(1) for t in (*self.tensors, columns)]).all(0)
            doubtful = (finite & ~settled).nonzero().squeeze(1)
            if doubtful.numel():
                solution = solution.index_copy(0, doubtful, self._dense(doubtful, columns))
        return solution, relative, refined

    def _dense(self, index: Tensor, columns: Tensor) -> Tensor:
        """The dense solve, for the samples that the Schur complement cannot settle."""
        n = self.shape[1]
        if n * n * index.numel() > _LARGEST_DENSE:
            raise IrregularPointError(
                f"{self.policy.name}: the structured solve failed at {name_samples(index.tolist(), self.policy.batch)}: H is singular there, or nearly so, "
                f"and a dense KKT matrix of {n} rows is too large to decide whether a derivative exists. Check the tag or hook with verify on a small instance"
            )
        part = self.with_tensors([t[index] for t in self.tensors])
        policy = replace(self.policy, report=replace(self.policy.report, irregular={}), places=[int(i) % max(1, self.policy.batch) for i in index])
        solution = symmetric_solve(policy, part.to_dense(), columns[index])
        self.policy.report.irregular.update(policy.report.irregular)
        return solution


def solve_structured(
    policy: IrregularPolicy, hessian: Operator, jacobian: Operator | None, weights: Rows | None, rhs_y: Variables, rhs_rows: Rows
) -> tuple[Variables, Rows]:
    """(u, w) of the weighted bordered system, as `solve_bordered` returns them, by the structure of H where that serves."""
    if policy.damping or isinstance(hessian, DenseOperator):
        dense = hessian.to_dense()
        rows = dense.new_zeros(dense.shape[0], 0, dense.shape[2]) if jacobian is None else jacobian.to_dense()
        return solve_bordered(policy, dense, rows, weights, rhs_y, rhs_rows)
    if jacobian is None:
        return SchurKKT(policy, hessian, None, None).solve(rhs_y), rhs_rows
    if weights is None and isinstance(hessian, DiagonalOperator | InverseDiagonalOperator) and isinstance(jacobian, RowsOperator) and jacobian.knows_complement:
        kkt = DiagonalKKT(policy, hessian, jacobian, None)
        if not is_differentiated(rhs_y, rhs_rows, *kkt.tensors) and (found := kkt.solve_pair(rhs_y, rhs_rows)) is not None:
            return found
        u, w = kkt.solve(torch.cat([rhs_y, rhs_rows], 1)).split([rhs_y.shape[1], rhs_rows.shape[1]], 1)
        return u, w
    if weights is not None and isinstance(jacobian, DenseOperator) and (kept := kept_rows(weights, policy.most_rows)) is not None:
        fewer = DenseOperator(kept.take(jacobian.matrix))
        u, w = solve_structured(policy, hessian, fewer, kept.take(weights), rhs_y, kept.take(rhs_rows))
        return u, kept.put_back(w)
    rhs = torch.cat([rhs_y, rhs_rows if weights is None else rhs_rows * weights], 1)
    u, w = SchurKKT(policy, hessian, jacobian, weights).solve(rhs).split([rhs_y.shape[1], rhs_rows.shape[1]], 1)
    return u, w if weights is None else w * weights


class DiagonalKKT(SchurKKT):
    """The same where H = W⁻¹ is diagonal and A says what S = A W Aᵀ is: u = W(v − Aᵀw) satisfies the rows of H by itself, and A u = r is checked."""

    def solve_columns(self, columns: Tensor) -> Tensor:
        m = self.hessian.shape[1]
        pairs = [self.solve_pair(column[:, :m], column[:, m:]) for column in columns.unbind(-1)] if columns.numel() else []
        if not pairs or any(pair is None for pair in pairs):
            return super().solve_columns(columns)
        return torch.stack([torch.cat(pair, 1) for pair in pairs if pair is not None], -1)

    def solve_pair(self, v: Variables, r: Rows) -> tuple[Variables, Rows] | None:
        """(u, w), in numbers; None where the result does not hold in every sample."""
        jacobian = self.jacobian
        if not isinstance(jacobian, RowsOperator) or not v.numel():
            return None
        inverse = inverse_of(self.hessian)
        complement = jacobian.complement(inverse)
        through = inverse * v
        side = jacobian.matmul(through) - r
        w, served = complement.attempt_columns(side.unsqueeze(-1))
        u, left = self._completed(jacobian, inverse, v, r, w.squeeze(-1), through)
        # What is left of A u = r is compared with the right-hand side of S; where that cancels, with the terms of A u and r themselves.
        tiny, tolerance = torch.finfo(v.dtype).tiny, torch.finfo(v.dtype).eps ** 0.7
        scale = largest_entry(side).clamp_min(tiny)
        relative = left / scale
        good = relative <= tolerance  # false for NaN
        if not bool((good if served is None else good.logical_and_(served)).all()):
            if served is not None:
                w = complement.solve_columns(side.unsqueeze(-1))
                u, left = self._completed(jacobian, inverse, v, r, w.squeeze(-1), u)
                relative = left / scale
            if not bool((relative <= tolerance).all()):
                relative = left / largest_entry(jacobian.magnitudes().matmul(u.abs()) + r.abs()).clamp_min(tiny)
                if not bool((relative <= tolerance).all()):
                    return None
        self.policy.report.note(relative, 0, BY_STRUCTURE)
        return u, w.squeeze(-1)

    @staticmethod
    def _completed(jacobian: Operator, inverse: Tensor, v: Tensor, r: Tensor, w: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
        """u = W(v − Aᵀw), and by how much A u = r fails (b,)."""
        # In the memory that is there: what is this large is mapped anew at each call.
        u = torch.sub(v, jacobian.transpose().matmul(w), out=room).mul_(inverse)
        return u, largest_entry(r - jacobian.matmul(u))


def inverse_of(hessian: Operator) -> Tensor:
    """W (b, m) of a diagonal H."""
    return hessian.inverse if isinstance(hessian, InverseDiagonalOperator) else hessian.diagonal().reciprocal()


class _SchurFactor:
    """S, scaled to a unit diagonal and factorised once for several right-hand sides."""

    def __init__(self, kkt: SchurKKT) -> None:
        self._kkt = kkt
        self._jacobian, self._weights = kkt.jacobian, kkt.weights
        self.sound = _is_sound(kkt.hessian)
        """(b,) bool: neither H nor S looks singular. Said generously: the dense solve decides about the others."""
        if self._jacobian is None:
            return
        schur = self._complement()
        if self._weights is not None:
            rho = self._weights
            schur = schur * rho.unsqueeze(-1) * rho.unsqueeze(-2) + torch.diag_embed(1 - rho * rho)
        self._scale = schur.diagonal(dim1=-2, dim2=-1).abs().clamp_min(torch.finfo(schur.dtype).tiny).rsqrt().unsqueeze(-1)
        schur = schur * self._scale * self._scale.mT
        # NaN in one sample must not reach the batched factorisation.
        bad = ~torch.isfinite(schur).flatten(1).all(1)
        eye = torch.eye(schur.shape[1], dtype=schur.dtype, device=schur.device)
        factor, pivots = lu_factor(torch.where(bad[:, None, None], eye, schur))
        smallest, largest = torch.aminmax(factor.diagonal(dim1=-2, dim2=-1).abs(), dim=-1)
        singular = ~(smallest > SCREEN * schur.shape[1] * torch.finfo(schur.dtype).eps * largest)
        self.sound = self.sound & ~bad & ~singular
        self._factor, self._pivots = torch.where((bad | singular)[:, None, None], eye, factor), pivots

    def _complement(self) -> Tensor:
        hessian, jacobian = self._kkt.hessian, self._jacobian
        if isinstance(hessian, DiagonalOperator | InverseDiagonalOperator) and isinstance(jacobian, RowsOperator):
            return jacobian.gram(inverse_of(hessian))
        if jacobian is None:
            raise RuntimeError("no constraints, no Schur complement")
        transposed = jacobian.transpose().to_dense()
        return jacobian.matmul_columns(hessian.solve_columns(transposed))

    def solve(self, columns: Tensor) -> Tensor:
        hessian, jacobian = self._kkt.hessian, self._jacobian
        if jacobian is None:
            return hessian.solve_columns(columns)
        m = hessian.shape[1]
        v, r = columns[:, :m], columns[:, m:]
        through = jacobian.matmul_columns(hessian.solve_columns(v))
        side = (through if self._weights is None else through * self._weights.unsqueeze(-1)) - r
        w = self._scale * torch.linalg.lu_solve(self._factor, self._pivots, self._scale * side)
        pulled = jacobian.transpose().matmul_columns(w if self._weights is None else w * self._weights.unsqueeze(-1))
        return torch.cat([hessian.solve_columns(v - pulled), w], 1)


def _is_sound(hessian: Operator) -> Tensor:
    """(b,) whether H, brought to a unit diagonal, does not blow up a right-hand side that it was not made for."""
    diagonal = hessian.diagonal().abs()
    if isinstance(hessian, DiagonalOperator | InverseDiagonalOperator):
        return (diagonal > 0).all(1)
    eps, n = torch.finfo(diagonal.dtype).eps, diagonal.shape[1]
    root = torch.maximum(diagonal, eps * diagonal.amax(1, keepdim=True)).sqrt().unsqueeze(-1)
    grown = root * hessian.solve_columns(root * golden_turns(diagonal).unsqueeze(-1))
    return grown.abs().amax((1, 2)) * eps * n**0.5 < 0.1  # false for NaN
