"""The steps of a convex quadratic program on its constants: Mehrotra's predictor and corrector on the null space of the equalities.

    min ½ dᵀHd + cᵀd   s.t.   h + A_h d = 0,   g + A_g d + s = 0,   s ≥ 0         d = y − y₀

With P = I − BBᵀ the projection onto null(A_h) and d₀ = −A_h⁺h, the points d = d₀ + z with z in null(A_h) satisfy the equalities. What is
left is a program in z with PHP and A_g P, formed once, and inequalities alone. A step costs one product of matrices and one Cholesky
factor, which predictor and corrector share, of

    K = PHP + P A_gᵀ diag(μ/s) A_g P + σBBᵀ = PHP + Rᵀ diag(σ, μ/s) R,        R = [Bᵀ; A_g P]

K leaves null(A_h) to itself, so σ, which makes it definite across, may follow its size. Numbers only: no step is differentiated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from declarative.engines.quadratic import Quadratic
from declarative.kkt.null_space import row_space
from declarative.kkt.symmetric import definite_factor
from declarative.solvers.optimality import resolution
from declarative.typing import SampleMask


@dataclass(frozen=True)
class Program:
    """The constants of the program in z. Vectors are columns (b, ·, 1).

    Args:
        hessian: PHP (b, m, m)
        rows: R (b, r + q, m), r columns of B first.
        slope: of the objective, P(c + Hd₀).
        offset: g + A_g d₀
        origin: y₀ + d₀
        diagonal: |H_jj|
        squares: ‖R_i‖² (b, r + q), for r > 0.
    """

    hessian: Tensor
    rows: Tensor
    slope: Tensor
    offset: Tensor
    origin: Tensor
    diagonal: Tensor
    squares: Tensor

    @property
    def rank(self) -> int:
        """r"""
        return self.rows.shape[1] - self.offset.shape[1]

    def is_definite(self) -> SampleMask:
        """Whether the objective is strictly convex on null(A_h)."""
        basis, scale = self.rows[:, : self.rank].mT, self.diagonal.amax(1, keepdim=True)
        return definite_factor(torch.baddbmm(self.hessian, scale * basis, basis.mT) if self.rank else self.hessian)[1]

    def select(self, index: Tensor) -> Program:
        """These samples."""
        return Program(**{name: value[index] for name, value in vars(self).items()})


def reduced(known: Quadratic, p: int) -> tuple[Program, Tensor | None]:
    """The program around y₀, and A_h⁺ (None without equalities)."""
    hessian, rows, slope, offset, origin = known.hessian, known.jacobian, known.slope.unsqueeze(2), known.constraints[:, p:].unsqueeze(2), known.origin
    diagonal = hessian.diagonal(dim1=1, dim2=2).abs().unsqueeze(2)
    if not p:
        return Program(hessian, rows, slope, offset, origin.unsqueeze(2), diagonal, diagonal), None
    basis, inverse = row_space(rows[:, :p])
    shift = -torch.bmm(inverse, known.constraints[:, :p].unsqueeze(2))
    offset, slope = torch.baddbmm(offset, rows[:, p:], shift), torch.baddbmm(slope, hessian, shift)
    rows = torch.cat([basis.mT, rows[:, p:]], 1)
    inequalities = rows[:, basis.shape[2] :]
    inequalities.baddbmm_(torch.bmm(inequalities, basis), basis.mT, alpha=-1)
    hessian = torch.baddbmm(hessian, torch.bmm(hessian, basis), basis.mT, alpha=-1)
    hessian.baddbmm_(basis, torch.bmm(basis.mT, hessian), alpha=-1)  # symmetric to rounding; what follows reads one triangle
    slope = torch.baddbmm(slope, basis, torch.bmm(basis.mT, slope), alpha=-1)
    squares = torch.linalg.vector_norm(rows, dim=2).square()
    return Program(hessian, rows, slope, offset, origin.unsqueeze(2) + shift, diagonal, squares), inverse


class Walk:
    """Where the samples have come to: z, and X = (s, μ), (b, 2, q, 1), both positive.

    Args:
        floor: the complementarity that is never aimed below, relative to the objective's terms; s and μ stay clear of underflow.
    """

    def __init__(self, program: Program, z: Tensor, pair: Tensor, floor: float) -> None:
        self.program, self.z, self.pair, self._floor = program, z, pair, floor
        self.active = pair[:, 0] < pair[:, 1]
        """Rows whose slack shrinks faster than their multiplier, from the first step on."""
        self._inequalities = program.rows[:, program.rank :]
        self._scaled, self._matrix = torch.empty_like(program.rows), torch.empty_like(program.hessian)

    def select(self, index: Tensor) -> Walk:
        """These samples."""
        return Walk(self.program.select(index), self.z[index], self.pair[index], self._floor)

    def measure(self) -> Tensor:
        """What is left (b, 1, 1): stationarity, violation and complementarity in units of the objective, relative to the largest of its terms."""
        at, (s, mu) = self.program, self.pair.unbind(1)
        slope = torch.baddbmm(at.slope, at.hessian, self.z)
        self._stationarity = torch.baddbmm(slope, self._inequalities.mT, mu)
        self._violation = torch.baddbmm(at.offset, self._inequalities, self.z).add_(s)
        size = (at.origin + self.z).abs_()
        size += resolution(size.dtype) * (1 + size.amax(1, keepdim=True))
        self._units = (torch.addcmul(slope.abs_(), at.diagonal, size).mul_(size)).amax(1, keepdim=True)
        self._gap = (s * mu).mean(1, keepdim=True)
        left = torch.cat([self._stationarity * size, self._violation * mu, self._gap], 1)
        return torch.linalg.vector_norm(left, ord=torch.inf, dim=1, keepdim=True) / self._units

    def factorise(self) -> SampleMask:
        """K at this point; whether it is positive definite."""
        at, (s, mu) = self.program, self.pair.unbind(1)
        self._weights = weights = mu / s
        if at.rank:
            largest = (at.squares[:, at.rank :].unsqueeze(2) * weights).amax(1, keepdim=True)
            sigma = torch.maximum(largest, at.diagonal.amax(1, keepdim=True))
            weights = torch.cat([sigma.expand(-1, at.rank, 1), weights], 1)
        torch.mul(at.rows, weights, out=self._scaled)
        matrix = torch.baddbmm(at.hessian, self._scaled.mT, at.rows, out=self._matrix)
        self._factor, sound = definite_factor(matrix)
        return sound

    def direction(self, complementarity: Tensor | None) -> tuple[Tensor, Tensor]:
        """(Δz, ΔX) of Newton's step to s ∘ μ = that times s; None: 0."""
        mu = self.pair[:, 1]
        wanted = -mu if complementarity is None else complementarity - mu
        side = torch.baddbmm(self._stationarity, self._inequalities.mT, torch.addcmul(wanted, self._weights, self._violation))
        back = torch.cholesky_solve(side, self._factor)
        slack = torch.baddbmm(self._violation, self._inequalities, back, beta=-1)
        return back.neg_(), torch.stack([slack, torch.addcmul(wanted, self._weights, slack, value=-1)], 1)

    def start(self, moving: bool) -> SampleMask:
        """Whether K is positive definite; where `moving`, slacks and multipliers become of the size that a first step asks for (Mehrotra)."""
        self.measure()
        sound = self.factorise()
        if moving:
            self.pair = (self.pair + self.direction(None)[1]).abs_().clamp_min_(1.0)
        return sound

    def advance(self, remaining: Tensor) -> None:
        """Predictor and corrector."""
        (s, _), eps = self.pair.unbind(1), torch.finfo(self.z.dtype).eps
        _, ahead = self.direction(None)
        reach = _to_boundary(ahead / self.pair).amin(1, keepdim=True).clamp_max_(1.0)
        after = torch.addcmul(self.pair, reach, ahead).prod(1).mean(1, keepdim=True)
        # How far the predictor gets sets the centring σ = (gap after / gap)³; below the floor nothing is gained.
        target = torch.maximum((after / self._gap).clamp_(0, 1) ** 3 * self._gap, torch.minimum(self._floor * self._units, self._gap))
        dz, change = self.direction((target - ahead.prod(1)).div_(s))
        # A fraction of the way to the boundary that tends to 1, so that the last steps are Newton's.
        ratio = change / self.pair
        length = (_to_boundary(ratio) * (1 - remaining.clamp(eps**0.5, 0.005)).unsqueeze(1)).clamp_max_(1.0)
        self.active = ratio[:, 0] < ratio[:, 1]
        self.z, self.pair = torch.addcmul(self.z, length[:, 0], dz), torch.addcmul(self.pair, length, change)


def _to_boundary(ratio: Tensor) -> Tensor:
    """(b, 2, 1, 1): the largest t ≤ 1e10 with 1 + t·ratio ≥ 0."""
    return ratio.amin(2, keepdim=True).neg_().clamp_min_(1e-10).reciprocal_()
