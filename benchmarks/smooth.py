"""Smooth convex problems without constraints for the solver suite: as nodes, and as the numpy functions that one writes for scipy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from declarative import DeclarativeNode
from declarative.structure import Banded

Array = NDArray[np.float64]
RIDGE = 0.1


@dataclass(frozen=True)
class Instance:
    """One instance for scipy, as fast as numpy allows: value and gradient in one call, the Hessian in closed form."""

    value_and_gradient: Callable[[Array], tuple[float, Array]]
    hessian: Callable[[Array], Array]
    size: int


class SoftMaximum(DeclarativeNode):
    """log Σ exp(Wy + x) + ½ ‖y‖²."""

    label = "log-sum-exp with ridge"

    def objective(self, W: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return (W @ y + x).logsumexp(-1) + 0.5 * y.square().sum()

    def initial_guess(self, W: Tensor, x: Tensor) -> Tensor:  # noqa: ARG002
        return W.new_zeros(W.shape[0], W.shape[2])

    @staticmethod
    def sample(m: int, batch: int) -> tuple[Tensor, Tensor]:
        """W (batch, m, m) and x (batch, m)."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, m, m, generator=generator, dtype=torch.float64), torch.randn(batch, m, generator=generator, dtype=torch.float64)

    @staticmethod
    def instance(W: Array, x: Array) -> Instance:
        """The same for scipy."""
        identity = np.eye(W.shape[1])

        def weights(y: Array) -> tuple[Array, float]:
            z = W @ y + x
            top = z.max()
            e = np.exp(z - top)
            total = e.sum()
            return e / total, float(top + np.log(total))

        def value_and_gradient(y: Array) -> tuple[float, Array]:
            p, value = weights(y)
            return value + 0.5 * float(y @ y), p @ W + y

        def hessian(y: Array) -> Array:
            p, _ = weights(y)
            mean = p @ W
            return W.T @ (p[:, None] * W) - np.outer(mean, mean) + identity

        return Instance(value_and_gradient, hessian, W.shape[1])


class Logistic(DeclarativeNode):
    """Σ log(1 + exp(−t ∘ Xy)) + ½ RIDGE ‖y‖²."""

    label = "logistic regression with ridge"

    def objective(self, X: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-t * (X @ y)).sum() + 0.5 * RIDGE * y.square().sum()

    def initial_guess(self, X: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002
        return X.new_zeros(X.shape[0], X.shape[2])

    @staticmethod
    def sample(m: int, batch: int) -> tuple[Tensor, Tensor]:
        """X (batch, 2m, m) and labels ±1 (batch, 2m) of a noisy plane."""
        generator = torch.Generator().manual_seed(0)
        X = torch.randn(batch, 2 * m, m, generator=generator, dtype=torch.float64)
        plane, noise = (torch.randn(batch, k, 1, generator=generator, dtype=torch.float64) for k in (m, 2 * m))
        return X, torch.where(X @ plane / m**0.5 + noise > 0, 1.0, -1.0).squeeze(-1).double()

    @staticmethod
    def instance(X: Array, t: Array) -> Instance:
        """The same for scipy."""
        signed = t[:, None] * X
        ridge = RIDGE * np.eye(X.shape[1])

        def value_and_gradient(y: Array) -> tuple[float, Array]:
            margin = signed @ y
            return float(np.logaddexp(0, -margin).sum() + 0.5 * RIDGE * (y @ y)), RIDGE * y - expit(-margin) @ signed

        def hessian(y: Array) -> Array:
            s = expit(-(signed @ y))
            return signed.T @ ((s * (1 - s))[:, None] * signed) + ridge

        return Instance(value_and_gradient, hessian, X.shape[1])


class RobustChain(DeclarativeNode):
    """Σ √(1 + (y − x)²) + ½ Σ (y_{i+1} − y_i)², with the structure of its Hessian declared."""

    label = "robust chain, Banded(1)"
    hessian_structure = Banded(1)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return (1 + (y - x).square()).sqrt().sum() + 0.5 * (y[1:] - y[:-1]).square().sum()

    def initial_guess(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    @staticmethod
    def sample(m: int, batch: int) -> tuple[Tensor]:
        """x (batch, m)."""
        return (2 * torch.randn(batch, m, generator=torch.Generator().manual_seed(0), dtype=torch.float64),)

    @staticmethod
    def instance(x: Array) -> Instance:
        """The same for scipy."""
        step = np.diff(np.eye(len(x)), axis=0)
        coupling = step.T @ step

        def value_and_gradient(y: Array) -> tuple[float, Array]:
            residual, jump = y - x, np.diff(y)
            root = np.sqrt(1 + residual * residual)
            gradient = residual / root
            gradient[1:] += jump
            gradient[:-1] -= jump
            return float(root.sum() + 0.5 * jump @ jump), gradient

        def hessian(y: Array) -> Array:
            return coupling + np.diag((1 + (y - x) ** 2) ** -1.5)

        return Instance(value_and_gradient, hessian, len(x))
