"""`sinkhorn_divergence`: a distance between weighted point clouds, smooth in points and weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from declarative.layers.transport.layer import OptimalTransport
from declarative.layers.transport.point_cloud import CloudOptions, cloud_divergence
from declarative.layers.transport.reading import positive

_SMALL = 64  # up to here calls cost more than numbers, and three problems are best solved as one batch
_LARGE = 4_000_000  # pairs from which on the divergence works in tiles
_IN_TILES = {field.name for field in fields(CloudOptions)}
_OF_TILES = {"tile", "coarsest"}  # those that mean nothing elsewhere
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
            parameters of their own. None: from four million pairs on, or where `tile` or `coarsest` is given, if the other options allow it.
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
    if isinstance(epsilon, Tensor) and epsilon.dtype != x.dtype:
        raise TypeError(f"epsilon has dtype {epsilon.dtype}, the points have {x.dtype}; convert one of them")
    if cost is not None and not callable(cost):
        raise TypeError(f"cost must be a function of (x, y), got {cost!r}")
    n, m = x.shape[-2], y.shape[-2]
    if _chooses_tiles(tiled, n * m, options.keys()):
        return _in_tiles(x, y, a, b, epsilon, cost, CloudOptions(**options))
    transport = OptimalTransport(1.0 if isinstance(epsilon, Tensor) else 1 / positive("epsilon", epsilon), **options)
    gamma = 1 / epsilon if isinstance(epsilon, Tensor) else None
    pairs = ((x, y, a, b), (x, x, a, a), (y, y, b, b))
    if max(n, m) > _SMALL and 2 * max(n, m) ** 2 > n * n + m * m + n * m:
        across, first, second = (_apart(transport, _costs(cost, p, q), r, c, gamma) for p, q, r, c in pairs)
    else:
        across, first, second = _together(transport, [(_costs(cost, p, q), r, c) for p, q, r, c in pairs], gamma)
    return across - 0.5 * (first + second)


def _chooses_tiles(tiled: bool | None, pairs: int, options: Set[str]) -> bool:
    unknown, own = sorted(options - _IN_TILES), sorted(options & _OF_TILES)
    if tiled is None:
        tiled = (pairs >= _LARGE or bool(own)) and not unknown
    if tiled and unknown:
        raise TypeError(f"in tiles the divergence knows no option {', '.join(unknown)}: leave it out, or use tiled=False")
    if not tiled and own:
        raise TypeError(
            f"without tiles the divergence knows no option {', '.join(own)}: leave it out, or use tiled=True with the options of `CloudOptions` alone"
        )
    return tiled


def _costs(cost: Cost | None, x: Tensor, y: Tensor) -> Tensor:
    if cost is None:
        return squared_distances(x, y)
    costs, expected = cost(x, y), (x.shape[-2], y.shape[-2])
    if not isinstance(costs, Tensor) or costs.shape[-2:] != expected:
        got = tuple(costs.shape) if isinstance(costs, Tensor) else type(costs).__name__
        raise ValueError(f"cost(x, y) of {expected[0]} and {expected[1]} points must have shape (…, {expected[0]}, {expected[1]}), got {got}")
    return costs


@contextmanager
def _explained() -> Iterator[None]:
    """The layer's complaints in words that the caller can place."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"sinkhorn_divergence, in the problems (x, y), (x, x), (y, y) with M the costs, r and c the weights, gamma = 1/epsilon: {error}"
        ) from error


def _in_tiles(x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, epsilon: float | Tensor, cost: Cost | None, options: CloudOptions) -> Tensor:
    """One sample after the other."""
    epsilon = epsilon if isinstance(epsilon, Tensor) else x.new_tensor(positive("epsilon", epsilon))
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


def _apart(transport: OptimalTransport, cost: Tensor, r: Tensor | None, c: Tensor | None, gamma: Tensor | None) -> Tensor:
    with _explained():
        return transport.value(cost, r, c, gamma)


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
    with _explained():
        return transport.padded_value(torch.stack(costs), torch.stack(rows), torch.stack(columns), gamma, empty).unbind(0)


def _check_points(x: Any, y: Any) -> None:
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"{name} must be a floating tensor (…, points, d), got {value.dtype if isinstance(value, Tensor) else type(value).__name__}")
        if value.ndim < 2 or not value.shape[-2]:
            raise ValueError(f"{name} must have shape (…, points, d) with at least one point, got {tuple(value.shape)}")
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"x and y must have points of the same dimension, got {tuple(x.shape)} and {tuple(y.shape)}")
    if x.dtype != y.dtype:
        raise TypeError(f"x and y must have the same dtype, got {x.dtype} and {y.dtype}; convert one of them")


def _check_weights(x: Tensor, y: Tensor, a: Any, b: Any) -> None:
    for name, weights, points in (("a", a, x), ("b", b, y)):
        if weights is None:
            continue
        if not isinstance(weights, Tensor):
            raise TypeError(f"{name} must be a tensor of weights, got {type(weights).__name__}")
        if weights.ndim < 1 or weights.shape[-1] != points.shape[-2]:
            raise ValueError(f"{name} must have shape (…, {points.shape[-2]}), one weight for each point, got {tuple(weights.shape)}")
        if weights.dtype != points.dtype:
            raise TypeError(f"{name} has dtype {weights.dtype}, the points have {points.dtype}; convert one of them")
