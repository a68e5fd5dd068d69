"""The pooled point as a differentiable function of points, weights and penalty parameters.

At ∇ = Σ_i w_i κ₁_i d_i = 0, d_i = u − x_i, with H = (Σ wκ₁) I + Σ wκ₂ d dᵀ and q = H⁻¹v:

    x̄_i = w_i (κ₁_i q + κ₂_i d_i ⟨d_i, q⟩),    w̄_i = −κ₁_i ⟨d_i, q⟩,    ᾱ = −Σ_i w_i ∂κ₁_i/∂α ⟨d_i, q⟩.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from declarative.kkt.bordered import IrregularPolicy
from declarative.kkt.symmetric import symmetric_solve
from declarative.layers.formula import Formula
from declarative.layers.pooling.cloud import Candidate, Cloud
from declarative.layers.pooling.curvature import Curvature, dense
from declarative.layers.pooling.penalty import Penalty, Value
from declarative.solution import DerivativeReport
from declarative.transforms import is_differentiated
from declarative.vectors import times


@dataclass(frozen=True, eq=False)
class Pooling(Formula):
    """One call.

    Args:
        penalty: φ.
        weighted: whether weights follow x among the tensors.
        numbers: the parameters that are numbers; None for those that are among the tensors.
        find: (cloud) -> u (b, C) and data: the forward pass. Samples where no point pulls, or numbers are not finite, have zero derivatives.
        irregular: the policy for samples whose H is not positive definite.
        report: filled in by the backward pass.
    """

    penalty: Penalty
    weighted: bool
    numbers: tuple[float | None, ...]
    find: Callable[[Cloud], tuple[Tensor, ...]]
    irregular: str
    report: DerivativeReport = field(default_factory=DerivativeReport)
    live = 1

    def fresh(self) -> Pooling:
        return replace(self, report=DerivativeReport(self.irregular))

    def cloud(self, tensors: Sequence[Tensor]) -> Cloud:
        """The problem that these tensors and the numbers make."""
        rest = iter(tensors[1:])
        weights = next(rest) if self.weighted else None
        values: tuple[Value, ...] = tuple(next(rest) if number is None else number for number in self.numbers)
        return Cloud(tensors[0], weights, self.penalty, values)

    def solve(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self.find(self.cloud(tensors))

    def pull_back(self, operands: Sequence[Tensor], cotangents: Sequence[Tensor | None], wanted: Sequence[bool]) -> Sequence[Tensor | None]:
        v = torch.as_tensor(cotangents[0])
        at = _At(self.cloud(operands[:-1]), operands[-1])
        q = at.solve(v, self)
        needed = at.kappa2 is not None or any(wanted[1:])
        along = (q.unsqueeze(1) @ at.toward).squeeze(1) if needed else at.kappa1  # −⟨d, q⟩
        found: list[Tensor | None] = []
        if wanted[0]:
            recorded = is_differentiated(q, at.toward, at.kappa1)
            gradient = q.unsqueeze(2) * at.kappa1.unsqueeze(1)
            if at.kappa2 is not None:
                bent = (at.kappa2 * along).unsqueeze(1)
                gradient = torch.addcmul(gradient, at.toward, bent) if recorded else gradient.addcmul_(at.toward, bent)
            found.append(gradient)
        else:
            found.append(None)
        if self.weighted:
            found.append(at.bare_kappa1 * along if wanted[1] else None)
        count = 1 + self.weighted
        if len(wanted) > count:
            found += at.to_values(along, wanted[count:])
        return found

    def push_forward(self, operands: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        at = _At(self.cloud(operands[:-1]), operands[-1])
        count = 1 + self.weighted
        moved = torch.zeros_like(operands[-1])
        if tangents[0] is not None:
            moved = moved + times(tangents[0], at.kappa1)
            if at.kappa2 is not None:
                moved = moved + times(at.toward, at.kappa2 * (at.toward * tangents[0]).sum(1))
        if self.weighted and tangents[1] is not None:
            moved = moved + times(at.toward, at.bare_kappa1 * tangents[1])
        if any(t is not None for t in tangents[count:]):
            moved = moved + times(at.toward, at.from_values(tangents[count:]))
        return (at.solve(moved, self),)


class _At:
    """The ingredients of the derivative at u."""

    def __init__(self, cloud: Cloud, u: Tensor) -> None:
        self.cloud, self._u = cloud, u
        toward = cloud.x - u.unsqueeze(2)
        self.recorded = is_differentiated(toward)
        self._evaluate(toward, (toward * toward).sum(1))
        if self.recorded:
            self._set_apart()

    def _evaluate(self, toward: Tensor, squared: Tensor) -> None:
        self.toward, self.squared = toward, squared
        at = Candidate(self.cloud, self._u, toward, squared)
        self.bare_kappa1, self.kappa1, self.kappa2, self.mass = at.bare_kappa1, at.kappa1, at.kappa2, at.mass
        self.usable = (self.mass.detach() > 0) & torch.isfinite(squared.detach().sum(1))

    def _set_apart(self) -> None:
        """Zeros in place of what is not finite, in samples that are not usable then."""
        finite = torch.isfinite(self.squared.detach().sum(1))
        self._evaluate(torch.where(finite[:, None, None], self.toward, 0.0), torch.where(finite.unsqueeze(1), self.squared, 0.0))
        self.usable = self.usable & finite

    def solve(self, v: Tensor, call: Pooling) -> Tensor:
        """H⁻¹v; zero in samples that are not usable."""
        recorded = self.recorded or is_differentiated(v, self.mass)
        if not recorded:
            curvature = Curvature(self.toward, self.squared, self.mass, self.kappa2, self.cloud.penalty.concave)
            q = curvature.solve(v)
            call.report.method = curvature.method
            # One look at the numbers, where all is well: on a GPU each look waits for the device.
            if bool((self.usable & curvature.definite()).all()):
                return q
            self._set_apart()
        v, mass = torch.where(self.usable.unsqueeze(1), v, 0.0), torch.where(self.usable, self.mass, 1.0)
        kappa2 = None if self.kappa2 is None else torch.where(self.usable.unsqueeze(1), self.kappa2, 0.0)
        policy = IrregularPolicy(call.irregular, v.shape[1], v.shape[0], "RobustPooling", report=call.report)
        if recorded and kappa2 is not None:
            call.report.method = f"LU factors of {v.shape[1]}×{v.shape[1]}"
            return symmetric_solve(policy, dense(self.toward, mass, kappa2), v.unsqueeze(2)).squeeze(2)
        curvature = Curvature(self.toward, self.squared, mass, kappa2, self.cloud.penalty.concave)
        q = curvature.solve(v)
        call.report.method = curvature.method
        if kappa2 is not None and not bool((definite := curvature.definite()).all()):
            rows = (~definite).nonzero().squeeze(1)
            policy.places = rows.tolist()
            matrices = dense(self.toward[rows], mass[rows], kappa2[rows])
            q[rows] = symmetric_solve(policy, matrices, v[rows].unsqueeze(2)).squeeze(2)
        return q

    def to_values(self, along: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
        """Cotangents of the parameters that are tensors."""
        along = along if self.cloud.weights is None else along * self.cloud.weights
        tensors, kappa1 = self._of_values()
        if not any(wanted):
            return [None] * len(tensors)
        return [g if w else None for g, w in zip(torch.func.vjp(kappa1, *tensors)[1](along), wanted, strict=True)]

    def from_values(self, tangents: Sequence[Tensor | None]) -> Tensor:
        """The tangent of wκ₁ that those of the parameters make."""
        tensors, kappa1 = self._of_values()
        moving = tuple(torch.zeros_like(v) if t is None else t for v, t in zip(tensors, tangents, strict=True))
        # By two reverse passes, the second through the first: torch.func.jvp may not stand inside of torch's own forward mode.
        value, pull, *_ = torch.func.vjp(kappa1, *tensors)
        tangent: Tensor = torch.func.vjp(pull, torch.zeros_like(value))[1](moving)[0]
        return tangent if self.cloud.weights is None else tangent * self.cloud.weights

    def _of_values(self) -> tuple[tuple[Tensor, ...], Callable[..., Tensor]]:
        """The parameters that are tensors, and κ₁ as a function of them."""
        values = self.cloud.values
        places = [k for k, v in enumerate(values) if isinstance(v, Tensor)]

        def kappa1(*tensors: Tensor) -> Tensor:
            filled = list(values)
            for place, tensor in zip(places, tensors, strict=True):
                filled[place] = tensor
            return self.cloud.penalty.kappa1(self.squared, *filled)

        return tuple(torch.as_tensor(values[k]) for k in places), kappa1
