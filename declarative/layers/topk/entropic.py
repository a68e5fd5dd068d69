"""`EntropicTopK`: top-k with the binary entropy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from declarative.layers.topk.relaxed import RelaxedTopK
from declarative.structure import DiagonalOperator


class EntropicTopK(RelaxedTopK):
    """u = argmin_u −⟨x, u⟩ + T Σ (u log u + (1 − u) log(1 − u))  s.t.  Σu = k: the limited multi-label projection.

    u_i = σ((x_i + τ)/T), with one multiplier τ found by Newton's method to rounding. T → 0 gives the hard top-k. Differentiable to any order, in
    reverse and forward mode and under torch.func, in logits and temperature.

    Args:
        k: how many: an int between 0 and n, or an integer tensor that broadcasts with the dimensions of the logits other than `dim`.
        temperature: T > 0: a number, a tensor that broadcasts in the same way, or a `torch.nn.Parameter` to be learned.
        dim: the dimension to select along.

    Shapes:
        logits (…, n) -> u (…, n), Σu = k. k = 0 gives zeros, k = n ones, with zero gradients.

    Raises:
        ValueError, TypeError: k out of range or no integer, logits that are not finite, temperatures that are not positive.

    Example:
        >>> EntropicTopK(2, temperature=0.5)(torch.tensor([2.0, 1.0, 0.0, -1.0]))
        tensor([0.9526, 0.7311, 0.2689, 0.0474])

    Source: Amos, Koltun & Kolter, "The limited multi-label projection layer", 2019.
    """

    def objective(self, *inputs_and_u: Tensor) -> Tensor:
        """−⟨x, u⟩ + T Σ (u log u + (1 − u) log(1 − u))"""
        *inputs, u = inputs_and_u
        x, u, temperature = self._stated(inputs, u)
        return (-x * u + temperature * (torch.special.xlogy(u, u) + torch.special.xlogy(1 - u, 1 - u))).sum()

    def hessian(self, *inputs_and_solution: Any) -> DiagonalOperator:
        """H = diag(T / u(1 − u))"""
        *inputs, solution = inputs_and_solution
        given, temperature = self._given(tuple(inputs))
        scale = self._scale(given, temperature)
        u = torch.as_tensor(solution.y).reshape(given.x.shape)
        return DiagonalOperator(scale.unsqueeze(1) / (u * (1 - u)))

    @staticmethod
    def _inverse(a: Tensor) -> Tensor:
        return a.sigmoid()

    @staticmethod
    def _slope(a: Tensor) -> Tensor:
        return a.sigmoid() * (-a).sigmoid()

    def _start(self, x: Tensor, k: Tensor, temperature: Tensor, most: int) -> tuple[Any, Tensor, Tensor, Tensor]:
        """The k largest and the others apart: what the others have is what the largest lack, however little it is."""
        values, places = x.topk(most + 1, dim=1)
        chosen = torch.arange(most + 1, device=x.device) < k.unsqueeze(1)
        others = x.scatter(1, places, torch.where(chosen, -torch.inf, values))
        largest = torch.where(chosen, values, torch.inf)
        at = k.long().clamp(1, most).unsqueeze(1) if most else torch.zeros_like(k, dtype=torch.int64).unsqueeze(1)
        start = -0.5 * (values.gather(1, (at - 1).clamp_min(0)) + values.gather(1, at)).squeeze(1)
        odds = temperature * torch.logit((k / x.shape[1]).clamp(1e-12, 1 - 1e-6))
        low, high, margin = self._range(x, temperature)
        return (others, largest, temperature), odds - high - margin, odds - low + margin, start

    def _evaluate(self, prepared: Any, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log Σ_others u − log Σ_largest (1 − u): nearly linear in τ, and without cancellation."""
        others, largest, temperature = prepared
        t, scale = shift.unsqueeze(1), temperature.unsqueeze(1)
        have, lack = ((others + t) / scale).sigmoid(), ((largest + t) / -scale).sigmoid()
        over, under = have.sum(1), lack.sum(1)
        nothing = (over == 0) & (under == 0)  # the gap is so many temperatures wide that u is hard
        value = torch.where(nothing, 0.0, over.log() - under.log())
        slope = ((over - have.square().sum(1)) / over + (under - lack.square().sum(1)) / under) / temperature
        eps = torch.finfo(shift.dtype).eps
        step = (value / slope).abs()
        return value, slope, nothing | (value.abs() <= 4 * eps) | (step <= eps * shift.abs())
