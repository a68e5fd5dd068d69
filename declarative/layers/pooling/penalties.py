"""The penalties of robust statistics, with κ₁ and κ₂ in closed form (s = z²)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from declarative.layers.pooling.penalty import Penalty, Value


class _Scaled(Penalty):
    """A penalty with one parameter α > 0, in units of x: where quadratic turns into something that grows less."""

    concave = True

    def __init__(self, alpha: Value = 1.0) -> None:
        super().__init__(alpha=alpha)

    def check(self, **values: Value) -> None:
        """α > 0, in numbers."""
        alpha = values["alpha"]
        valid = bool((torch.isfinite(alpha) & (alpha > 0)).all()) if isinstance(alpha, Tensor) else 0 < alpha < math.inf
        if not valid:
            came = f"a tensor with entries from {float(alpha.min()):g} to {float(alpha.max()):g}" if isinstance(alpha, Tensor) else f"{alpha!r}"
            raise ValueError(f"{type(self).__name__}: alpha must be positive and finite, got {came}. Learn its logarithm if it may cross zero")


class Quadratic(Penalty):
    """φ = z²/2: the mean."""

    convex = concave = True

    def phi(self, s: Tensor) -> Tensor:
        """φ(s)"""
        return 0.5 * s

    def kappa1(self, s: Tensor) -> Tensor:
        """1"""
        return torch.ones_like(s)

    def kappa2(self, s: Tensor, kappa1: Tensor) -> None:
        """0"""

    def is_quadratic(self, *values: Value) -> bool:  # noqa: ARG002
        """Yes."""
        return True


class PseudoHuber(_Scaled):
    """φ = α²(√(1 + z²/α²) − 1): quadratic near, linear far; smooth and strictly convex.

    Args:
        alpha: α > 0, in units of x: a number, a tensor or a `torch.nn.Parameter` to be learned.

    Source: Charbonnier et al., "Deterministic edge-preserving regularization in computed imaging", IEEE TIP 1997.
    """

    convex = True

    def phi(self, s: Tensor, alpha: Value) -> Tensor:
        """φ(s; α)"""
        kappa1 = self.kappa1(s, alpha)
        return s * kappa1 / (1 + kappa1)  # α²(1/κ₁ − 1), without its cancellation

    def kappa1(self, s: Tensor, alpha: Value) -> Tensor:
        """1/r, r = √(1 + s/α²)"""
        return torch.rsqrt(1 + s / alpha**2)

    def kappa2(self, s: Tensor, kappa1: Tensor, alpha: Value) -> Tensor:  # noqa: ARG002
        """−1/(α²r³)"""
        return kappa1**3 * (-1 / alpha**2)


class Huber(_Scaled):
    """φ = z²/2 up to z = α, α(z − α/2) beyond: convex.

    At z = α the second derivative jumps, and the derivative of the pooled point is one-sided; that of z < α is taken.

    Args:
        alpha: α > 0, in units of x: a number, a tensor or a `torch.nn.Parameter` to be learned.

    Source: Huber, "Robust estimation of a location parameter", Annals of Mathematical Statistics 35, 1964.
    """

    convex = True

    def phi(self, s: Tensor, alpha: Value) -> Tensor:
        """φ(s; α)"""
        near = s <= alpha**2
        return torch.where(near, 0.5 * s, alpha * torch.where(near, alpha**2, s).sqrt() - 0.5 * alpha**2)

    def kappa1(self, s: Tensor, alpha: Value) -> Tensor:
        """min(1, α/z)"""
        # 1/z stays finite, and its derivatives, where it is not used
        return torch.where(s <= alpha**2, 1.0, alpha * torch.where(s <= alpha**2, alpha**2, s).rsqrt())

    def kappa2(self, s: Tensor, kappa1: Tensor, alpha: Value) -> Tensor:
        """0 near, −α/z³ far"""
        return torch.where(s <= alpha**2, 0.0, kappa1**3 * (-1 / alpha**2))

    def kink(self, alpha: Value) -> Value:
        """z = α"""
        return alpha


class Welsch(_Scaled):
    """φ = 1 − exp(−z²/2α²): far points lose all influence; not convex (Leclerc).

    Args:
        alpha: α > 0, in units of x: a number, a tensor or a `torch.nn.Parameter` to be learned.

    Source: Dennis & Welsch, "Techniques for nonlinear least squares and robust regression", 1978; Leclerc, IJCV 1989.
    """

    def phi(self, s: Tensor, alpha: Value) -> Tensor:
        """φ(s; α)"""
        return -(s * (-0.5 / alpha**2)).expm1()

    def kappa1(self, s: Tensor, alpha: Value) -> Tensor:
        """exp(−s/2α²)/α²"""
        exponent = s * (-0.5 / alpha**2)
        # Numbers below the smallest normal one would take a hundred times as long: they are zero here.
        lowest = math.log(torch.finfo(s.dtype).tiny) + 8
        return torch.threshold(exponent.clamp_min(lowest).exp(), math.exp(lowest + 0.01), 0.0) / alpha**2

    def kappa2(self, s: Tensor, kappa1: Tensor, alpha: Value) -> Tensor:  # noqa: ARG002
        """−κ₁/α²"""
        return kappa1 * (-1 / alpha**2)


class TruncatedQuadratic(_Scaled):
    """φ = min(z²/2, α²/2): the mean of the points within α; not convex.

    On the boundary z = α a point is counted as near. With one channel (or `scalar=True`) the global minimum is found exactly.

    Args:
        alpha: α > 0, in units of x: a number, a tensor or a `torch.nn.Parameter`. The pooled point is piecewise constant in α: its
            gradient is zero.

    Source: Blake & Zisserman, "Visual reconstruction", MIT Press 1987.
    """

    def phi(self, s: Tensor, alpha: Value) -> Tensor:
        """φ(s; α)"""
        return 0.5 * torch.where(s <= alpha**2, s, alpha**2)

    def kappa1(self, s: Tensor, alpha: Value) -> Tensor:
        """1 near, 0 far"""
        return (s <= alpha**2).to(s.dtype)

    def kappa2(self, s: Tensor, kappa1: Tensor, alpha: Value) -> None:
        """0"""

    def kink(self, alpha: Value) -> Value:
        """z = α"""
        return alpha


class GemanMcClure(_Scaled):
    """φ = (z²/2)/(1 + z²/α²): bounded; not convex.

    Args:
        alpha: α > 0, in units of x: a number, a tensor or a `torch.nn.Parameter` to be learned.

    Source: Geman & McClure, "Bayesian image analysis", Proc. ASA Statistical Computing Section, 1985.
    """

    def phi(self, s: Tensor, alpha: Value) -> Tensor:
        """φ(s; α)"""
        return 0.5 * s / (1 + s / alpha**2)

    def kappa1(self, s: Tensor, alpha: Value) -> Tensor:
        """1/r², r = 1 + s/α²"""
        return (1 + s / alpha**2) ** -2

    def kappa2(self, s: Tensor, kappa1: Tensor, alpha: Value) -> Tensor:
        """−4/(α²r³)"""
        return kappa1 / (1 + s / alpha**2) * (-4 / alpha**2)


class Cauchy(_Scaled):
    """φ = (α²/2) log(1 + z²/α²): grows without bound, slowly; not convex (Lorentzian).

    Args:
        alpha: α > 0, in units of x: a number, a tensor or a `torch.nn.Parameter` to be learned.

    Source: Black & Anandan, "The robust estimation of multiple motions", CVIU 1996.
    """

    def phi(self, s: Tensor, alpha: Value) -> Tensor:
        """φ(s; α)"""
        return 0.5 * alpha**2 * (s / alpha**2).log1p()

    def kappa1(self, s: Tensor, alpha: Value) -> Tensor:
        """1/r, r = 1 + s/α²"""
        return 1 / (1 + s / alpha**2)

    def kappa2(self, s: Tensor, kappa1: Tensor, alpha: Value) -> Tensor:  # noqa: ARG002
        """−2/(α²r²)"""
        return kappa1**2 * (-2 / alpha**2)


class Barron(Penalty):
    """The general adaptive loss: φ = (β/α)((z²/(βσ²) + 1)^{α/2} − 1), β = |α − 2|, and its limits in α.

    α is a shape: 2 quadratic, 1 pseudo-Huber, 0 Cauchy, −2 Geman–McClure, −∞ Welsch; convex for α ≥ 1. It may be learned, with the scale
    σ. φ is in units of σ², so that κ₁(0) = 1/σ².

    Args:
        alpha: α < 2, a number (also −inf and 2), a tensor or a `torch.nn.Parameter`. The derivative in α is infinite at 2.
        scale: σ > 0, in units of x: a number, a tensor or a `torch.nn.Parameter`.

    Source: Barron, "A general and adaptive robust loss function", CVPR 2019.
    """

    concave = True

    def __init__(self, alpha: Value = 1.0, scale: Value = 1.0) -> None:
        super().__init__(alpha=alpha, scale=scale)

    def check(self, **values: Value) -> None:
        """α ≤ 2 (as a tensor < 2) and σ > 0."""
        alpha, scale = values.get("alpha", 1.0), values.get("scale", 1.0)
        if not (bool((alpha < 2).all() & torch.isfinite(alpha).all()) if isinstance(alpha, Tensor) else alpha <= 2):
            came = f"a tensor with largest entry {float(alpha.max()):g}" if isinstance(alpha, Tensor) else f"{alpha!r}"
            raise ValueError(f"Barron: alpha must be at most 2 as a number, finite and below 2 as a tensor, got {came}")
        if not (bool((torch.isfinite(scale) & (scale > 0)).all()) if isinstance(scale, Tensor) else 0 < scale < math.inf):
            came = f"a tensor with entries from {float(scale.min()):g} to {float(scale.max()):g}" if isinstance(scale, Tensor) else f"{scale!r}"
            raise ValueError(f"Barron: scale must be positive and finite, got {came}")

    def phi(self, s: Tensor, alpha: Value, scale: Value) -> Tensor:
        """φ(s; α, σ)"""
        q = s / scale**2
        if not isinstance(alpha, Tensor) and alpha in (2.0, -math.inf):
            return 0.5 * q if alpha == 2 else -(-0.5 * q).expm1()
        beta = 2 - alpha
        return _grown(alpha, beta, (q / beta).log1p())

    def kappa1(self, s: Tensor, alpha: Value, scale: Value) -> Tensor:
        """r^(α/2 − 1)/σ², r = 1 + s/(βσ²)"""
        q, unit = s / scale**2, 1 / scale**2
        if not isinstance(alpha, Tensor) and alpha in (2.0, -math.inf):
            return torch.ones_like(s) * unit if alpha == 2 else (-0.5 * q).exp() * unit
        beta = 2 - alpha
        return (-0.5 * beta * (q / beta).log1p()).exp() * unit

    def kappa2(self, s: Tensor, kappa1: Tensor, alpha: Value, scale: Value) -> Tensor | None:
        """−r^(α/2 − 2)/σ⁴ = −κ₁/(rσ²)"""
        unit = 1 / scale**2
        if not isinstance(alpha, Tensor) and alpha in (2.0, -math.inf):
            return None if alpha == 2 else -kappa1 * unit
        return -kappa1 * unit / (1 + s * unit / (2 - alpha))

    def is_convex(self, *values: Value) -> bool:
        """α ≥ 1"""
        alpha = values[0]
        return bool((alpha >= 1).all()) if isinstance(alpha, Tensor) else alpha >= 1

    def is_quadratic(self, *values: Value) -> bool:
        """α = 2"""
        return not isinstance(values[0], Tensor) and values[0] == 2


def _grown(alpha: Value, beta: Value, log: Tensor) -> Tensor:
    """(β/α) (exp(α log r / 2) − 1), with its limit β log r / 2 at α = 0."""
    y = 0.5 * alpha * log
    if not isinstance(alpha, Tensor):
        return 0.5 * beta * log if alpha == 0 else (beta / alpha) * y.expm1()
    # expm1(y)/y by its series where y is small: the quotient has no derivative in α at 0
    small = y.abs() < 1e-3
    safe = torch.where(small, 1.0, y)
    series = 1 + y * (0.5 + y * (1 / 6 + y * (1 / 24 + y / 120)))
    return 0.5 * beta * log * torch.where(small, series, safe.expm1() / safe)
