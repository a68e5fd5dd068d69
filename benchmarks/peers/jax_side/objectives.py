"""The unconstrained statements of benchmarks/statements.py, of one instance, in jax. The names are those of the classes there."""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def robust(x: Any, y: Any) -> Any:
    """Σ √(1 + (y − x)²) + ½ Σ (y_{i+1} − y_i)²"""
    return jnp.sqrt(1 + (y - x) ** 2).sum() + 0.5 * ((y[1:] - y[:-1]) ** 2).sum()


def log_sum_exp(x: Any, y: Any) -> Any:
    """log Σ exp y + ½ ‖y − x‖²"""
    return jax.nn.logsumexp(y) + 0.5 * ((y - x) ** 2).sum()


def quartic(x: Any, y: Any) -> Any:
    """Σ (¼ y⁴ + ½ y² − x y) + ½ (mean y)²"""
    return (0.25 * y**4 + 0.5 * y**2 - x * y).sum() + 0.5 * y.mean() ** 2


OBJECTIVES: dict[str, Callable[[Any, Any], Any]] = {"Robust": robust, "LogSumExp": log_sum_exp, "Quartic": quartic}


def stationarity(kind: str) -> Callable[[Any, Any], Any]:
    """(y, x) -> ∇_y f, zero at the solution."""
    by_y = jax.grad(OBJECTIVES[kind], argnums=1)
    return lambda y, x: by_y(x, y)


def start(x: Any) -> Any:
    """x/‖x‖, where the nodes start as well."""
    return x / jnp.linalg.norm(x)
