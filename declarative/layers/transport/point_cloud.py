"""Entropic transport between large point clouds: values, losses and the divergence, without any n × m matrix.

Time grows as the product of the sizes, memory as their sum. `declarative.layers.sinkhorn_divergence` comes here for large clouds.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from declarative.errors import CapturedTensorError, SolverError, SolverWarning
from declarative.layers.transport.derivatives import loss, value
from declarative.layers.transport.ground import Cost, Given, Ground, SquaredEuclidean
from declarative.layers.transport.multiscale import Effort, Potentials, solve, spatial_order
from declarative.layers.transport.pair_kernel import PairKernel
from declarative.layers.transport.plan import balance
from declarative.layers.transport.reading import mass_tolerance
from declarative.layers.transport.tiles import Cloud
from declarative.solvers.base import ON_FAILURE_CHOICES
from declarative.transforms import is_wrapped, reject_mapped_and_dual, without_graph


@dataclass(frozen=True, kw_only=True)
class CloudOptions:
    """How large problems are solved.

    Args:
        tolerance: of the marginal error (‖P1 − r‖₁ + ‖Pᵀ1 − c‖₁) / Σr. None: 1e-10 in float64, 1e-5 in float32.
        max_iterations: passes over all pairs of a problem, at most.
        on_failure: where the tolerance is not reached, "raise" a `SolverError`, "warn" with a `SolverWarning`, or return "nan".
        tile: rows of a tile: memory is a few times tile × m. None: such that a tile has half a million numbers.
        coarsest: clouds of more points are first solved with neighbours merged.
    """

    tolerance: float | None = None
    max_iterations: int = 300
    on_failure: str = "warn"
    tile: int | None = None
    coarsest: int = 1500

    def __post_init__(self) -> None:
        if self.on_failure not in ON_FAILURE_CHOICES:
            raise ValueError(f"on_failure must be one of {ON_FAILURE_CHOICES}, got {self.on_failure!r}")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must be a number between 0 and 1, got {self.tolerance!r}")
        for name in ("max_iterations", "tile", "coarsest"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a positive int, got {value!r}")


DEFAULT = CloudOptions()
_FLAT = 3.0  # γ · range(M)


def cloud_value(
    x: Tensor, y: Tensor | None, a: Tensor | None, b: Tensor | None, epsilon: float | Tensor, cost: Cost | None = None, options: CloudOptions = DEFAULT
) -> Tensor:
    """The regularised value ⟨P, M⟩ + ε Σ P log(P / abᵀ) of the optimal plan between two clouds, ().

    Differentiable to any order in reverse mode, with respect to points, weights and epsilon; each derivative is made of passes over all pairs.

    Args:
        x, y: points (n, d) and (m, d). y None: the same cloud twice, which costs half.
        a, b: weights (n,) and (m,), nonnegative and of the same mass; None: 1/n and 1/m.
        epsilon: ε = 1/γ, a positive number or ().
        cost: (n, d), (m, d) -> (n, m), finite; None: ‖x − y‖², the fastest.

    Raises:
        ValueError, TypeError: shapes, dtypes, weights or epsilon that cannot be.
        SolverError: as `options.on_failure` says.

    >>> from declarative.layers.transport.point_cloud import cloud_value
    >>> x = torch.randn(400, 3, dtype=torch.float64, requires_grad=True)
    >>> y = torch.randn(300, 3, dtype=torch.float64)
    >>> cloud_value(x, y, None, None, epsilon=0.5).backward()
    >>> x.grad.shape
    torch.Size([400, 3])
    """
    kernel, inputs = _prepare(x, y, a, b, epsilon, cost, options)
    return value(kernel, *inputs).to(x.dtype)


def cloud_loss(
    x: Tensor, y: Tensor | None, a: Tensor | None, b: Tensor | None, epsilon: float | Tensor, cost: Cost | None = None, options: CloudOptions = DEFAULT
) -> Tensor:
    """The Sinkhorn loss ⟨P, M⟩ of the optimal plan, (). Its gradient solves a linear system by conjugate gradients. Arguments: `cloud_value`."""
    kernel, inputs = _prepare(x, y, a, b, epsilon, cost, options)
    return loss(kernel, *inputs).to(x.dtype)


def cloud_divergence(
    x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, epsilon: float | Tensor, cost: Cost | None = None, options: CloudOptions = DEFAULT
) -> Tensor:
    """The Sinkhorn divergence V(x, y) − ½V(x, x) − ½V(y, y), (). Arguments: `cloud_value`."""
    among_x, among_y = (cloud_value(z, None, w, None, epsilon, cost, options) for z, w in ((x, a), (y, b)))
    return cloud_value(x, y, a, b, epsilon, cost, options) - (among_x + among_y) / 2


def _prepare(
    x: Tensor, y: Tensor | None, a: Tensor | None, b: Tensor | None, epsilon: float | Tensor, cost: Cost | None, options: CloudOptions
) -> tuple[PairKernel, tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """The problem solved, and its differentiable inputs (x, y, r, c, γ) in float64."""
    one = y is None
    if y is None:
        y, b = x, a
    _check_points(x, y)
    gamma = 1 / torch.as_tensor(epsilon, dtype=torch.float64, device=x.device)
    rows, columns = _weights("a", a, x), _weights("b", b, y)
    reject_mapped_and_dual(
        "transport between tiled point clouds", x, y, rows, columns, gamma, batch="the leading dimensions", otherwise="the dense mode (tiled=False)"
    )
    first, second, r, c = (t.double() for t in (x, y, rows, columns))
    if cost is None:
        # The cost does not see a common shift; without it digits would be lost far from the origin.
        (shift,) = without_graph(lambda p, q: ((p.mean(0) + q.mean(0)) / 2,), first, second)
        ground: Ground = SquaredEuclidean()
        first, second = first - shift, second - shift
    else:
        _reject_captured(cost, x)
        ground = Given(cost, x.dtype)
    if max(x.shape[0], y.shape[0]) > options.coarsest:
        (order,) = without_graph(lambda p: (spatial_order(p),), first)
        (other,) = (order,) if one else without_graph(lambda p: (spatial_order(p),), second)
        first, r, second, c = first[order], r[order], second[other], c[other]
    inputs = (first, second, *balance(r, c), gamma)
    outcome: list[PairKernel] = []

    def find(*tensors: Tensor) -> tuple[Tensor]:
        *numbers, a, b = tensors
        _check_numbers(ground, numbers[0], numbers[1], numbers[4], a, b)
        outcome.append(_solve(ground, tuple(numbers), x.dtype, options, one and _is_symmetric(ground, numbers[0])))
        return (outcome[0].found.rows,)

    without_graph(find, *inputs, rows, columns)
    return outcome[0], inputs


def _solve(ground: Ground, numbers: tuple[Tensor, ...], dtype: torch.dtype, options: CloudOptions, symmetric: bool) -> PairKernel:
    """The potentials, also of points without weight, which the others do not feel."""
    x, y, r, c, gamma = numbers
    tolerance = options.tolerance or (1e-10 if dtype == torch.float64 else 1e-5)
    some, others = r > 0, c > 0
    core = Cloud(ground, x[some], y[others], r[some], c[others], gamma, options.tile)
    # Where γM is small, its sums of exponentials are near 1 and float32 would leave little of their logarithms.
    precise = dtype == torch.float64 or float(gamma * core.spread()) < _FLAT
    effort = Effort(tolerance, options.max_iterations, torch.float64 if precise else torch.float32, options.coarsest)
    found = _judge(solve(core, effort, symmetric), tolerance, options)
    phi, psi = torch.zeros_like(r), torch.zeros_like(c)
    phi[some], psi[others] = found.rows, found.columns
    if not bool(some.all()):
        phi[~some] = replace(core, x=x[~some], rows=r[~some]).sweep(phi[~some], found.columns, effort.dtype, sums=False)[0]
    if not bool(others.all()):
        psi[~others] = replace(core, y=y[~others], columns=c[~others]).transposed.sweep(psi[~others], found.rows, effort.dtype, sums=False)[0]
    complete = bool(some.all() & others.all())
    found = replace(found, rows=phi, columns=psi, near=found.near if complete else None)
    solves = max(tolerance, 1e-12 if dtype == torch.float64 else 1e-6)
    return PairKernel(ground, effort.dtype, options.tile, not bool(others.all()), symmetric, solves, found)


def _judge(found: Potentials, tolerance: float, options: CloudOptions) -> Potentials:
    if found.error <= tolerance:
        return found
    message = (
        f"entropic transport between point clouds: after {found.passes} passes the marginal error is {found.error:.1e}, {tolerance:.1e} was asked for. "
        "Raise epsilon, tolerance or max_iterations"
    )
    if options.on_failure == "raise":
        raise SolverError(message)
    if options.on_failure == "nan":
        return replace(found, rows=torch.full_like(found.rows, torch.nan))
    warnings.warn(message, SolverWarning, stacklevel=2)
    return found


def _weights(name: str, weights: Tensor | None, points: Tensor) -> Tensor:
    n = points.shape[0]
    if weights is None:
        return torch.full((n,), 1 / n, dtype=points.dtype, device=points.device)
    if weights.shape != (n,):
        raise ValueError(f"weights {name} of {n} points must have shape ({n},), got {tuple(weights.shape)}")
    if weights.dtype != points.dtype:
        raise TypeError(f"weights {name} must have the dtype of the points, {points.dtype}, got {weights.dtype}")
    return weights


def _check_points(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"point clouds must be x (n, d) and y (m, d), got {tuple(x.shape)} and {tuple(y.shape)}")
    if not x.shape[0] or not y.shape[0]:
        raise ValueError("a point cloud is empty: give each at least one point")
    if x.dtype != y.dtype or not x.dtype.is_floating_point:
        raise TypeError(f"both point clouds must have one floating-point dtype, got {x.dtype} and {y.dtype}")


def _check_numbers(ground: Ground, x: Tensor, y: Tensor, gamma: Tensor, a: Tensor, b: Tensor) -> None:
    for name, tensor in (("x", x), ("y", y), ("a", a), ("b", b)):
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} has entries that are not finite")
    if gamma.shape != () or not bool((gamma > 0) & torch.isfinite(gamma)):
        raise ValueError(f"epsilon must be one positive number, got 1 / {gamma.tolist()}")
    for name, weights in (("a", a), ("b", b)):
        if bool((weights < 0).any()) or not bool((weights > 0).any()):
            raise ValueError(f"weights {name} must be nonnegative, and some positive; the smallest is {float(weights.min()):.3g}")
    if abs(float(a.sum() - b.sum())) > mass_tolerance(a.dtype) * float(a.sum()):
        raise ValueError(f"weights a and b must have the same mass, got {float(a.sum()):.6g} and {float(b.sum()):.6g}: divide each by its sum")
    if isinstance(ground, Given):
        _check_cost(ground, x, y)


def _check_cost(ground: Given, x: Tensor, y: Tensor) -> None:
    few, some = x[:2].to(ground.dtype), y[:3].to(ground.dtype)
    costs = ground.cost(few, some)
    if not isinstance(costs, Tensor) or costs.shape != (few.shape[0], some.shape[0]):
        got = tuple(costs.shape) if isinstance(costs, Tensor) else type(costs).__name__
        raise ValueError(f"cost(x, y) of {few.shape[0]} and {some.shape[0]} points must have shape {(few.shape[0], some.shape[0])}, got {got}")


def _reject_captured(cost: Cost, x: Tensor) -> None:
    """Raise if the cost has parameters: only points, weights and epsilon get gradients."""
    made_up = torch.ones(2, x.shape[1], dtype=x.dtype, device=x.device)
    with torch.enable_grad():
        costs = cost(made_up, made_up)
    if isinstance(costs, Tensor) and (costs.requires_grad or is_wrapped(costs)):
        raise CapturedTensorError(
            "cost uses a tensor that requires grad besides the points: its gradient would be lost. Map the points before the call, or use the dense mode "
            "(tiled=False), or the tensor's .detach() if no gradient is wanted"
        )


def _is_symmetric(ground: Ground, x: Tensor) -> bool:
    """Whether cost(x, x) is symmetric, by some of the points."""
    if not isinstance(ground, Given):
        return True
    few = x[:: max(1, x.shape[0] // 64)].to(ground.dtype)
    costs = ground.cost(few, few)
    return bool(torch.allclose(costs, costs.mT, rtol=1e-4 if costs.dtype != torch.float64 else 1e-10))
