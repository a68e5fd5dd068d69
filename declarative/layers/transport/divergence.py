"""`sinkhorn_divergence`: a distance between weighted point clouds, smooth in points and weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from declarative.layers.transport.layer import OptimalTransport
from declarative.layers.transport.point_cloud import CloudOptions, cloud_divergence

_SMALL = 64  # up to here calls cost more than numbers, and three problems are best solved as one batch
_LARGE = 4_000_000  # pairs from which on the divergence works in tiles
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
    tiled: bool | None = None,
    **options: Any,
) -> Tensor:
    """S_ε(a, b) = OT_ε(a, b) − ½ OT_ε(a, a) − ½ OT_ε(b, b), with OT_ε the regularised value and ε = 1/γ.

    Nonnegative, zero where the clouds agree. Differentiable in points, weights and ε: the gradient by the envelope theorem, the
    Hessian by implicit second order (`torch.func.hessian`), one linear system for all its columns.

    Large clouds are treated in tiles: nothing of the size n × m is ever stored, in either pass, and second derivatives are products
    with the Hessian (reverse mode twice). Forward mode and torch.func.vmap need `tiled=False`.

    Args:
        x, y: points (…, n, d) and (…, m, d).
        a, b: weights (…, n) and (…, m) of the same mass; uniform where None. The gradient with respect to weights is that
            of `OptimalTransport`.
        epsilon: ε > 0: a float, or a tensor (…,).
        cost: cost(x, y) -> (…, n, m); None: squared Euclidean distances ‖x − y‖².
        tiled: True: no n × m matrix is stored; each is computed anew, in tiles, whenever it is needed. Time grows with n·m, memory with
            n + m. Reverse mode only, to any order: gradients and Hessian-vector products, one sample after another; finite costs without
            parameters of their own. None: from four million pairs on, if the options allow it.
        options: of `OptimalTransport`; in tiles those of `CloudOptions`: tolerance, max_iterations, on_failure, tile, coarsest.

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
    _check_points(x, y)
    _check_weights(x, y, a, b)
    n, m = x.shape[-2], y.shape[-2]
    unknown = sorted(options.keys() - {field.name for field in fields(CloudOptions)})
    if tiled is None:
        tiled = n * m >= _LARGE and not unknown
    if tiled:
        if unknown:
            raise TypeError(f"in tiles the divergence knows no option {', '.join(unknown)}: leave it out, or use tiled=False")
        return _in_tiles(x, y, a, b, epsilon, cost, CloudOptions(**options))
    measure = squared_distances if cost is None else cost
    transport = OptimalTransport(1.0 if isinstance(epsilon, Tensor) else 1 / _positive(epsilon), **options)
    gamma = 1 / epsilon if isinstance(epsilon, Tensor) else None
    pairs = ((x, y, a, b), (x, x, a, a), (y, y, b, b))
    if max(n, m) > _SMALL and 2 * max(n, m) ** 2 > n * n + m * m + n * m:
        across, first, second = (transport.value(measure(p, q), r, c, gamma) for p, q, r, c in pairs)
    else:
        across, first, second = _together(transport, [(measure(p, q), r, c) for p, q, r, c in pairs], gamma)
    return across - 0.5 * (first + second)


def _in_tiles(x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, epsilon: float | Tensor, cost: Cost | None, options: CloudOptions) -> Tensor:
    """One sample after the other."""
    epsilon = epsilon if isinstance(epsilon, Tensor) else x.new_tensor(_positive(epsilon))
    given = [(x, 2), (y, 2), (a, 1), (b, 1), (epsilon, 0)]
    try:
        lead = torch.broadcast_shapes(*(t.shape[: t.ndim - k] for t, k in given if t is not None))
    except RuntimeError as error:
        shapes = ", ".join(str(tuple(t.shape)) for t, _ in given if t is not None)
        raise ValueError(f"the leading dimensions of points, weights and epsilon do not broadcast: {shapes}") from error
    count = int(torch.Size(lead).numel())
    flat = [None if t is None else t.expand((*lead, *t.shape[t.ndim - k :])).reshape((count, *t.shape[t.ndim - k :])) for t, k in given]
    samples = zip(*([None] * count if t is None else t for t in flat), strict=True)
    values = [cloud_divergence(p, q, r, c, e, cost, options) for p, q, r, c, e in samples]  # pyright: ignore[reportArgumentType]
    return torch.stack(values).reshape(lead) if values else x.new_zeros(lead)


def _positive(epsilon: Any) -> float:
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float):
        raise TypeError(f"epsilon must be a number or a tensor, got {type(epsilon).__name__}")
    if not 0 < epsilon < float("inf"):
        raise ValueError(f"epsilon must be positive and finite, got {epsilon}")
    return epsilon


def _together(transport: OptimalTransport, problems: list[tuple[Tensor, Tensor | None, Tensor | None]], gamma: Tensor | None) -> tuple[Tensor, ...]:
    """The values of three problems by one batch, padded with points of no weight: a third of the calls."""
    size = max(max(cost.shape[-2:]) for cost, _, _ in problems)
    # γ belongs to samples; were it not part of this, its leading dimension could meet that of the three problems.
    own = () if gamma is None else gamma.shape
    lead = torch.broadcast_shapes(own, *(t.shape[:-k] for cost, r, c in problems for t, k in ((cost, 2), (r, 1), (c, 1)) if t is not None))
    costs, rows, columns, empty = [], [], [], 0
    for cost, r, c in problems:
        m, n = cost.shape[-2:]
        r = cost.new_full((m,), 1 / m) if r is None else r
        c = cost.new_full((n,), 1 / n) if c is None else c
        costs.append(pad(cost, (0, size - n, 0, size - m)).expand((*lead, size, size)))
        rows.append(pad(r, (0, size - m)).expand((*lead, size)))
        columns.append(pad(c, (0, size - n)).expand((*lead, size)))
        empty += (2 * size - m - n) * int(torch.Size(lead).numel())
    values = transport.padded_value(torch.stack(costs), torch.stack(rows), torch.stack(columns), gamma, empty)
    return values.unbind(0)


def _check_points(x: Any, y: Any) -> None:
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"{name} must be a floating tensor (…, points, d), got {value.dtype if isinstance(value, Tensor) else type(value).__name__}")
        if value.ndim < 2 or not value.shape[-2]:
            raise ValueError(f"{name} must have shape (…, points, d) with at least one point, got {tuple(value.shape)}")
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"x and y must have points of the same dimension, got {tuple(x.shape)} and {tuple(y.shape)}")


def _check_weights(x: Tensor, y: Tensor, a: Any, b: Any) -> None:
    for name, weights, points in (("a", a, x), ("b", b, y)):
        if weights is None:
            continue
        if not isinstance(weights, Tensor):
            raise TypeError(f"{name} must be a tensor of weights, got {type(weights).__name__}")
        if weights.ndim < 1 or weights.shape[-1] != points.shape[-2]:
            raise ValueError(f"{name} must have shape (…, {points.shape[-2]}), one weight for each point, got {tuple(weights.shape)}")
