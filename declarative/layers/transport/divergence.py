"""`sinkhorn_divergence`: a distance between weighted point clouds, smooth in points and weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from declarative.layers.transport.layer import OptimalTransport

Cost = Callable[[Tensor, Tensor], Tensor]


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """‖x_i − y_j‖² (…, n, m) of x (…, n, d), y (…, m, d)."""
    return (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)


def sinkhorn_divergence(
    x: Tensor,
    y: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    epsilon: float | Tensor = 0.1,
    *,
    cost: Cost | None = None,
    **options: Any,
) -> Tensor:
    """S_ε(a, b) = OT_ε(a, b) − ½ OT_ε(a, a) − ½ OT_ε(b, b), with OT_ε the regularised value and ε = 1/γ.

    Nonnegative, zero where the clouds agree. Differentiable in points, weights and ε: the gradient by the envelope theorem, the
    Hessian by implicit second order (`torch.func.hessian`), one linear system for all its columns.

    Args:
        x, y: points (…, n, d) and (…, m, d).
        a, b: weights (…, n) and (…, m) of the same mass; uniform where None. The gradient with respect to weights is that
            of `OptimalTransport`.
        epsilon: ε > 0: a float, or a tensor (…,).
        cost: cost(x, y) -> (…, n, m); None: squared Euclidean distances ‖x − y‖².
        options: of `OptimalTransport`.

    Shapes:
        -> (…,). Leading dimensions broadcast.

    Raises:
        ValueError, TypeError, SolverError: as `OptimalTransport`.

    Example:
        >>> x, y = torch.zeros(3, 2), torch.ones(4, 2)
        >>> sinkhorn_divergence(x, y)
        tensor(2.)

    Source: Genevay, Peyré & Cuturi, "Learning generative models with Sinkhorn divergences", AISTATS 2018; Feydy et al., AISTATS 2019.
    """
    _check_points("x", x, "y", y)
    measure = squared_distances if cost is None else cost
    gamma = 1 / epsilon
    transport = OptimalTransport(1.0 if isinstance(gamma, Tensor) else gamma, **options)

    def value(x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor:
        return transport.value(measure(x, y), a, b, gamma if isinstance(gamma, Tensor) else None)

    return value(x, y, a, b) - 0.5 * (value(x, x, a, a) + value(y, y, b, b))


def _check_points(x_name: str, x: Any, y_name: str, y: Any) -> None:
    for name, value in ((x_name, x), (y_name, y)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"{name} must be a floating tensor (…, points, d), got {value.dtype if isinstance(value, Tensor) else type(value).__name__}")
        if value.ndim < 2 or not value.shape[-2]:
            raise ValueError(f"{name} must have shape (…, points, d) with at least one point, got {tuple(value.shape)}")
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"{x_name} and {y_name} must have points of the same dimension, got {tuple(x.shape)} and {tuple(y.shape)}")
