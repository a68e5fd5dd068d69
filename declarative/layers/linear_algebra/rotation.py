"""`Rotation`: the nearest rotation, of a matrix or between two sets of points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from declarative.differentiation.base import Differentiation
from declarative.layers.closed_form import Answer, ClosedFormLayer, reject
from declarative.layers.formula import Formula, solved
from declarative.layers.natural import matrix, read
from declarative.layers.natural_layer import Call
from declarative.structure.base import Operator, invert

_CAUSE = "the two smallest singular values (the last one with the sign of det M) add up to zero, so that the nearest rotation is not unique"


class Rotation(ClosedFormLayer):
    """R = argmin ½‖R − M‖²  s.t.  RᵀR = I, det R = 1: the nearest rotation.

    R = U diag(1, …, 1, ±1) Vᵀ from the singular value decomposition M = U S Vᵀ, with the sign that makes det R = 1. The rotations are a component of
    {RᵀR = I} of their own, so that det R = 1 needs no equation. The derivative is finite wherever R is unique: equal singular values do not matter.

    Args:
        differentiation: where s_{d−1} ± s_d = 0 (the sign that of det M), R is one of many; `Implicit(irregular=...)` says what its derivative is to be.

    Shapes:
        M (…, d, d) -> R (…, d, d). `.solution(M)`: equality_multipliers (…, d(d+1)/2), of the entries of RᵀR = I on and above the diagonal, by rows.

    Raises:
        ValueError, TypeError: matrices that are not square or not finite.
        IrregularPointError: an M without a unique R is differentiated, with irregular="raise".

    Example:
        >>> Rotation()(torch.tensor([[0.0, -2.0], [1.0, 0.0]]))
        tensor([[ 0., -1.],
                [ 1.,  0.]])

    Source: Kabsch, "A solution for the best rotation to relate two sets of vectors", Acta Cryst. A32, 1976; Umeyama, IEEE TPAMI 13(4), 1991.
    """

    arguments = ("M",)
    ranks = (2,)

    def __init__(self, *, differentiation: Differentiation | None = None) -> None:
        super().__init__(differentiation=differentiation)

    def _read(self, inputs: tuple[Any, ...]) -> Call:
        (M,) = inputs
        owner = type(self).__name__
        if not matrix(owner, "M", M, "d", "d").shape[-1]:
            raise ValueError(f"{owner}: M must have d = 1 or more, got shape {tuple(M.shape)}")
        lead, tensors = read(owner, {"M": (M, 2)})
        return Call(lead, (tensors[0].expand(lead.batch, -1, -1),))

    def _objective(self, *tensors_and_y: Tensor) -> Tensor:
        M, R = tensors_and_y
        return 0.5 * (R - M).square().sum((1, 2))

    def _equalities(self, *tensors_and_y: Tensor) -> Tensor:
        R = tensors_and_y[-1]
        return _upper(R.mT @ R - torch.eye(R.shape[1], dtype=R.dtype, device=R.device))

    def _products(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """M and S (b or 1, d, d): but for constants the objective is ½⟨R S, R⟩ − ⟨R, M⟩."""
        (M,) = tensors
        return M, torch.eye(M.shape[1], dtype=M.dtype, device=M.device).unsqueeze(0)

    def _answer(self, *tensors: Tensor) -> Answer:
        self._check_finite(*tensors)
        M, gram = self._products(*tensors)
        R, gap = solved(_Nearest(), M)
        # Stationarity: R S − M + R (N + Nᵀ) = 0, with the multipliers in the upper triangle N.
        both = R.mT @ M - gram
        d = M.shape[1]
        halved = torch.eye(d, dtype=M.dtype, device=M.device) * -0.5 + 1
        return Answer(R, _upper(0.5 * (both + both.mT) * halved), irregular=gap.detach() == 0, cause=_CAUSE)


class PointRotation(Rotation):
    """R = argmin ½ Σ_i w_i ‖R p_i − q_i‖²  s.t.  RᵀR = I, det R = 1: the rotation that takes points p to q (Wahba's problem).

    That is the nearest rotation of M = Σ_i w_i q_i p_iᵀ.

    Args:
        centre: whether the weighted means are taken off both first, as where a translation is free too: it is then q̄ − R p̄.
        differentiation: as in `Rotation`; points on a line leave R open.

    Shapes:
        source p (…, N, d), target q (…, N, d), weights w (…, N) -> R (…, d, d); leading dimensions broadcast; all weights are 1 unless given.

    Raises:
        ValueError, TypeError: weights that are negative, or zero throughout, numbers that are not finite, shapes that do not fit.
        IrregularPointError: points without a unique R are differentiated, with irregular="raise".

    Example:
        >>> p = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> PointRotation()(p, torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
        tensor([[ 0., -1.],
                [ 1.,  0.]])

    Source: Wahba, "A least squares estimate of satellite attitude", SIAM Review 7(3), 1965; Kabsch, Acta Cryst. A32, 1976.
    """

    arguments = ("source", "target", "weights")
    ranks = (2, 2, 1)

    def __init__(self, *, centre: bool = False, differentiation: Differentiation | None = None) -> None:
        super().__init__(differentiation=differentiation)
        self.centre = centre

    def _read(self, inputs: tuple[Any, ...]) -> Call:
        owner, (source, target, weights) = type(self).__name__, inputs
        source = matrix(owner, "source", source, "N", "d")
        named = {"source": (source, 2), "target": (target, 2), "weights": (source.new_ones(source.shape[-2]) if weights is None else weights, 1)}
        lead, tensors = read(owner, named)
        count, d = source.shape[-2:]
        for name, tensor, wanted in (("target", tensors[1], (count, d)), ("weights", tensors[2], (count,))):
            if tuple(tensor.shape[1:]) != wanted:
                raise ValueError(f"{owner}: {name} must have instances {wanted}, as source {tuple(source.shape)} has, got shape {tuple(named[name][0].shape)}")
        return Call(lead, tuple(t.expand(lead.batch, *t.shape[1:]) for t in tensors))

    def _placed(self, source: Tensor, target: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        column = weights.unsqueeze(2)
        if not self.centre:
            return source, target, column
        total = column.sum(1, keepdim=True)
        source, target = (points - (column * points).sum(1, keepdim=True) / total for points in (source, target))
        return source, target, column

    def _objective(self, *tensors_and_y: Tensor) -> Tensor:
        *tensors, R = tensors_and_y
        source, target, column = self._placed(*tensors)
        return 0.5 * (column * (source @ R.mT - target).square()).sum((1, 2))

    def _products(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        owner, weights = type(self).__name__, tensors[2]
        reject(owner, (weights < 0).any(1) | ~(weights > 0).any(1), "weights must be 0 or more, and not zero throughout")
        source, target, column = self._placed(*tensors)
        return target.mT @ (column * source), source.mT @ (column * source)


@dataclass(frozen=True, eq=False)
class _Nearest(Formula):
    """M (b, d, d) -> R and how far it is from not being unique, relative to the largest singular value, 0 where rounding hides it.

    P = RᵀM is symmetric. Differentiating that: dR = R Ω with Ω skew and P Ω + Ω P = RᵀdM − dMᵀR, a symmetric linear map of Ω. Its eigenvalues are sums
    of two of P. The distance counts as constant.
    """

    live = 2

    def fresh(self) -> _Nearest:
        return self

    def solve(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        (M,) = tensors
        U, S, Vh = torch.linalg.svd(M)
        turn = torch.ones_like(S)
        turn[:, -1] = torch.linalg.det(U @ Vh).sign()
        gap = torch.ones_like(S[:, 0])
        if M.shape[1] > 1:
            least = S[:, -2] + turn[:, -1] * S[:, -1]
            clear = least > 8 * M.shape[1] * torch.finfo(M.dtype).eps * S[:, 0]
            gap = torch.where(clear, least / S[:, 0].clamp_min(torch.finfo(M.dtype).tiny), 0.0)
        return (U * turn.unsqueeze(1)) @ Vh, gap

    @staticmethod
    def _turned(operands: Sequence[Tensor], skew: Tensor) -> Tensor:
        """Ω"""
        M, R, _ = operands
        P = R.mT @ M
        return invert(_Lyapunov(0.5 * (P + P.mT)), skew.flatten(1).unsqueeze(2)).reshape(skew.shape)

    def pull_back(self, operands: Sequence[Tensor], cotangents: Sequence[Tensor | None], wanted: Sequence[bool]) -> Sequence[Tensor | None]:
        R, v = operands[1], cotangents[0]
        if not wanted[0] or v is None:
            return [torch.zeros_like(R) if wanted[0] else None]
        inner = R.mT @ v
        return [R @ self._turned(operands, inner - inner.mT)]

    def push_forward(self, operands: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        _, R, gap = operands
        dM = tangents[0]
        if dM is None:
            return torch.zeros_like(R), torch.zeros_like(gap)
        inner = R.mT @ dM
        return R @ self._turned(operands, inner - inner.mT), torch.zeros_like(gap)


@dataclass(frozen=True, eq=False)
class _Lyapunov(Operator):
    """Ω ↦ P Ω + Ω P for symmetric P (b, d, d), on skew Ω, flat. Where eigenvalues of P add up to zero, the pseudo-inverse."""

    P: Tensor
    checks_itself = True

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.P,)

    def with_tensors(self, tensors: Sequence[Tensor]) -> _Lyapunov:
        return _Lyapunov(*tensors)

    @property
    def shape(self) -> tuple[int, int, int]:
        b, d, _ = self.P.shape
        return b, d * d, d * d

    def transpose(self) -> _Lyapunov:
        return self

    def matmul_columns(self, columns: Tensor) -> Tensor:
        P, omega = self.P.unsqueeze(1), columns.mT.unflatten(2, self.P.shape[1:])
        return (P @ omega + omega @ P).flatten(2).mT

    def solve_columns(self, columns: Tensor) -> Tensor:
        values, V = torch.linalg.eigh(self.P)
        V, sums = V.unsqueeze(1), values.unsqueeze(2) + values.unsqueeze(1)
        small = sums.abs() <= 8 * values.shape[1] * torch.finfo(sums.dtype).eps * values.abs().amax(1)[:, None, None]
        # The diagonal is zero: Ω is skew.
        small = small | torch.eye(values.shape[1], dtype=torch.bool, device=small.device)
        inverse = torch.where(small, 0.0, 1 / torch.where(small, 1.0, sums)).unsqueeze(1)
        side = columns.mT.unflatten(2, self.P.shape[1:])
        return (V @ (inverse * (V.mT @ side @ V)) @ V.mT).flatten(2).mT


def _upper(matrix: Tensor) -> Tensor:
    """(b, d, d) -> (b, d(d+1)/2): the entries on and above the diagonal, by rows."""
    d = matrix.shape[1]
    rows, columns = torch.triu_indices(d, d, device=matrix.device)
    return matrix[:, rows, columns]
