"""Relaxed top-k as a function of logits and temperature, with one multiplier.

    u = argmin_u −⟨x, u⟩ + T Ω(u)  s.t.  Σu = k,          u_i = s(a_i),  a = (x + τ)/T

with s the inverse of Ω' (a sigmoid for the binary entropy, the clamp to [0, 1] for ½‖u‖² in the box) and τ, minus the multiplier of the
equation, the root of an increasing function. With D = s'(a)/T, d τ follows from Σ du = 0, and so

    x̄ = D (v − ⟨D, v⟩/ΣD),    T̄ = −⟨x̄, x + τ⟩/T,    τ̄ adds −τ̄ D/ΣD to x̄ (Σ x̄ is −τ̄ then).

Where ΣD = 0, at a vertex, all of these are zero. Source: Amos, Koltun & Kolter, "The limited multi-label projection layer", 2019 (entropic);
Amos, PhD thesis, 2019, and Martins & Kreutzer, "Learning what's easy", EMNLP 2017 (Euclidean).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from declarative.layers.formula import Formula

_FAR = 1e30


@dataclass(frozen=True, eq=False)
class Relaxation(Formula):
    """One call.

    Args:
        find: (x (b, n), T (b,)) -> u (b, n), τ (b,) and data: the forward pass.
        slope: s'(a).
        temperature: T; None where it is the second tensor, (b,).
    """

    find: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
    slope: Callable[[Tensor], Tensor]
    temperature: float | None
    live = 2

    def fresh(self) -> Relaxation:
        return self

    def solve(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        x = tensors[0]
        return self.find(x, tensors[1] if self.temperature is None else torch.full_like(x[:, 0], self.temperature))

    def _at(self, operands: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """a (b, n), D (b, n) and 1/ΣD (b, 1), zero at a vertex."""
        temperature = self.temperature if self.temperature is not None else operands[1].unsqueeze(1)
        # Where T is so small that a overflows u is hard: a must stay finite for its product with a derivative that is zero.
        a = ((operands[0] + operands[-1].unsqueeze(1)) / temperature).clamp(-_FAR, _FAR)
        density = self.slope(a) / temperature
        total = density.sum(1, keepdim=True)
        return a, density, torch.where(total > 0, 1 / torch.where(total > 0, total, 1.0), 0.0)

    def pull_back(self, operands: Sequence[Tensor], cotangents: Sequence[Tensor | None], wanted: Sequence[bool]) -> Sequence[Tensor | None]:
        a, density, inverse = self._at(operands)
        v, multiplier = cotangents
        gradient = torch.zeros_like(a)
        if v is not None:
            gradient = density * (v - (density * v).sum(1, keepdim=True) * inverse)
        if multiplier is not None:
            gradient = gradient - density * inverse * multiplier.unsqueeze(1)
        found: list[Tensor | None] = [gradient if wanted[0] else None]
        if self.temperature is None:
            found.append(-(gradient * a).sum(1) if wanted[1] else None)
        return found

    def push_forward(self, operands: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        a, density, inverse = self._at(operands)
        moved = torch.zeros_like(a) if tangents[0] is None else tangents[0]
        if self.temperature is None and tangents[1] is not None:
            moved = moved - a * tangents[1].unsqueeze(1)
        shift = -(density * moved).sum(1, keepdim=True) * inverse
        return density * (moved + shift), shift.squeeze(1)
