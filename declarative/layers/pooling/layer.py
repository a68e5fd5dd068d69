"""`RobustPooling`: the point that a penalty of distances to the data likes best."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from declarative.differentiation.implicit import Implicit
from declarative.errors import SolverError, SolverWarning, lost_gradient, name_samples
from declarative.layers.arguments import mask_to_front, positive_int, present, to_front, tolerance_or_none
from declarative.layers.formula import solved
from declarative.layers.pooling.cloud import Cloud
from declarative.layers.pooling.forward import find
from declarative.layers.pooling.penalties import Huber
from declarative.layers.pooling.penalty import Penalty, Value, as_penalty
from declarative.layers.pooling.pooled import Pooling
from declarative.layers.pooling.reading import Dims, Read, check, read
from declarative.layers.pooling.stated import StatedPooling
from declarative.node import InDims
from declarative.solution import DerivativeReport, Solution, Status
from declarative.solvers.base import ON_FAILURE_CHOICES
from declarative.transforms import uncompiled

_NAMES = ("weights", "alpha")


@dataclass(frozen=True, eq=False)
class Pooled:
    """What `RobustPooling.solution` knows beside the point; leading dimensions as there.

    Args:
        objective: Σ wφ, (…).
        tied: (…) bool: of the minima that were found another one, elsewhere, is as good, so that the result jumps where the data moves a
            little. More `restarts` find more.
        weights: w κ₁ / Σ wκ₁ (…, N): the share of each point in the reweighted mean that u is; zero for points that count no more.
    """

    objective: Tensor
    tied: Tensor
    weights: Tensor


class RobustPooling(StatedPooling):
    """u = argmin_u Σ_i w_i φ(‖u − x_i‖): pool a set of feature vectors so that outliers do not move the result.

    Differentiable in x, in the weights and in the penalty's parameters, to any order, in reverse and forward mode and under torch.func.
    Each sample is solved on its own, to a stationary point, whatever else is in the batch.

    Args:
        penalty: φ: `Quadratic()`, `PseudoHuber(α)`, `Huber(α)`, `Welsch(α)`, `TruncatedQuadratic(α)`, `GemanMcClure(α)`, `Cauchy(α)`,
            `Barron(α, σ)`, a `Penalty` of one's own, or a function of s = z² (or a module, a network for one, whose parameters are then learned).
        restarts: how many points of the data to start from, beside the mean, the spatial median and graduated non-convexity; the best
            minimum is kept. Only for penalties that are not convex, whose minima are many.
        scalar: pool each channel on its own.
        dims: the dimensions to pool; the last one that stays is the channel. None: all after the channel in torch's layout, (C, N) or (b, C, N…).
            `RobustPooling(dims=(-2, -1), keepdim=True)` takes the place of `nn.AdaptiveAvgPool2d(1)`; more leading dimensions: dims=-1.
        keepdim: keep pooled dimensions, with size 1.
        tolerance: of the gradient, relative to the size of its terms, ‖Σ wκ₁d‖ / Σ wκ₁‖d‖. None: 1e-12 in float64, so
            that finite differences agree (gradcheck), 1e-6 in float32.
        max_iterations: of each descent.
        on_failure: what to do about samples where it stays above, where no point pulls (`Status.NO_INLIERS`, zero gradient) or
            where x is not finite (NaN): "warn" (a `SolverWarning`), "raise" a `SolverError`, or "nan".
        differentiation: `Implicit(irregular=...)` says what to return where the minimum is degenerate (H singular).

    Shapes:
        x (…, C, N…), as `dims` says -> u (…, C). Weights (…, N…) ≥ 0, one for each point, broadcast; with scalar=True also one for each
        channel of a point. Parameters of the penalty: numbers, or tensors that broadcast with (…), with scalar=True with (…, C). `mask` as weights, True
        where there is a point: what it leaves out may hold anything.

    Raises:
        ValueError, TypeError: shapes, dtypes, dims, negative weights, parameters outside of their domain.
        SolverError: with on_failure="raise". IrregularPointError: by the backward pass, where H is singular.

    Example:
        >>> x = torch.tensor([[0.0, 1.0, 2.0, 100.0]])
        >>> RobustPooling(Huber(1.0))(x)
        tensor([1.5000])

    Source: Gould, Hartley & Campbell, "Deep declarative networks", IEEE TPAMI 44(8), 2022, section 5.2; gradient: Gould et al., "Exploiting
    problem structure in deep declarative networks", OT-SDM at AAAI 2022.
    """

    def __init__(
        self,
        penalty: Penalty | nn.Module | Callable[[Tensor], Tensor] | None = None,
        restarts: int = 0,
        *,
        scalar: bool = False,
        dims: Dims = None,
        keepdim: bool = False,
        tolerance: float | None = None,
        max_iterations: int = 100,
        on_failure: str = "warn",
        differentiation: Implicit | None = None,
    ) -> None:
        if differentiation is not None and not isinstance(differentiation, Implicit):
            raise TypeError(f"RobustPooling is differentiated by Implicit(irregular=...), got {differentiation!r}")
        super().__init__(differentiation=differentiation)
        if not _is_int(restarts) or restarts < 0:
            raise ValueError(f"RobustPooling: restarts must be a number of starts, 0 or more, got {restarts!r}")
        if not (dims is None or _is_int(dims) or (isinstance(dims, tuple) and dims and all(_is_int(d) for d in dims))):
            raise TypeError(f"RobustPooling: dims must be an int or a tuple of ints, got {dims!r}")
        tolerance_or_none("RobustPooling", tolerance)
        positive_int("RobustPooling: max_iterations", max_iterations)
        if on_failure not in ON_FAILURE_CHOICES:
            raise ValueError(f"RobustPooling(on_failure=...) must be one of {ON_FAILURE_CHOICES}, got {on_failure!r}")
        self.penalty = Huber(1.0) if penalty is None else as_penalty(penalty)
        self.restarts, self.scalar, self.dims, self.keepdim = restarts, bool(scalar), dims, bool(keepdim)
        self.tolerance, self.max_iterations, self.on_failure = tolerance, max_iterations, on_failure

    @uncompiled
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Tensor,
        weights: Tensor | None = None,
        alpha: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        init: Any = None,
        in_dims: InDims = 0,
    ) -> Tensor:
        """u (…, C).

        Args:
            x, weights: points (…, C, N…) and their weights (…, N…), ones where None.
            alpha: in place of the penalty's own first parameter.
            mask: (…, N…) bool, True where there is a point.
            init: one more start: a `Solution` of this layer, or u (…, C).
            in_dims: as in every node, where the batch dimension is not the first; None for a single instance. That of x counts for the mask.
        """
        inputs = (x, weights, alpha)
        if self.vjp is None:  # a copy that is to do without the structure
            return super().forward(*present(inputs, ("x", *_NAMES)), in_dims=in_dims)  # pyright: ignore[reportReturnType]
        given, (u, *_, status), _ = self._find(inputs, mask, init, in_dims)
        return self._out(given, self._marked(u, status), in_dims)

    @uncompiled
    def solution(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Tensor,
        weights: Tensor | None = None,
        alpha: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        init: Any = None,
        in_dims: InDims = 0,
    ) -> Solution:
        """u and all that is known about it.

        `workspace` is a `Pooled`: objective, ties, the share of each point. `stationarity` is relative, as `tolerance` measures it, and
        zero where rounding of u explains it. For penalties with a kink `active` (…, N) says which points lie beyond it, and
        `weakly_active` which lie on it, so that the derivative is one-sided. Arguments as in calling the layer.
        """
        inputs = (x, weights, alpha)
        if self.vjp is None:
            return super().solution(*present(inputs, ("x", *_NAMES)), in_dims=in_dims)
        given, (u, stationarity, iterations, tied, status), call = self._find(inputs, mask, init, in_dims)
        value, shares, beyond, on = self._points(given, u.detach())
        fields = {
            "active": beyond,
            "weakly_active": on,
            "status": status,
            "iterations": iterations,
            "stationarity": stationarity,
            "violation": torch.zeros_like(value),
        }
        shown = {name: self._each(given, field, in_dims) for name, field in fields.items()}
        multipliers = self._each(given, u.new_zeros(u.shape[0], 0), in_dims)  # there are no constraints
        details = Pooled(*(self._each(given, field, in_dims) for field in (value, tied, shares)))
        y = self._out(given, self._marked(u, status), in_dims)
        return Solution(y, multipliers, multipliers, **shown, report=call.report, workspace=details)

    def _out(self, given: Read, u: Tensor, in_dims: InDims) -> Tensor:
        shaped = given.shaped(u, self.keepdim)
        return shaped.squeeze(0) if _single(in_dims) else shaped

    @staticmethod
    def _each(given: Read, field: Tensor, in_dims: InDims) -> Tensor:
        shaped = given.for_each(field)
        return shaped.squeeze(0) if _single(in_dims) else shaped

    def _read(self, inputs: tuple[Any, ...], mask: Any = None) -> Read:
        x, weights, alpha = (*inputs, *([None] * (3 - len(inputs))))
        values: tuple[Value, ...] = self.penalty.values()
        if alpha is not None:
            if not self.penalty.names:
                raise TypeError(f"alpha was given, but {type(self.penalty).__name__} has no parameter")
            if not isinstance(alpha, Tensor):
                raise TypeError(f"alpha must be a tensor, got {type(alpha).__name__}; give a number to the penalty itself")
            values = (alpha, *values[1:])
        return read(x, weights, mask, self.penalty, values, self.dims, self.scalar)

    def _find(self, inputs: tuple[Tensor | None, ...], mask: Tensor | None, init: Any, in_dims: InDims) -> tuple[Read, tuple[Tensor, ...], Pooling]:
        if _single(in_dims):
            inputs, mask = tuple(x if x is None else x.unsqueeze(0) for x in inputs), mask if mask is None else mask.unsqueeze(0)
        else:
            inputs, mask = to_front(inputs, in_dims), mask_to_front(mask, in_dims)
        given = self._read(inputs, mask)
        self._refuse_captured(given)
        call, tensors = self._call(given, init)
        return given, solved(call, *tensors), call

    def _call(self, given: Read, init: Any, tight: bool = False) -> tuple[Pooling, tuple[Tensor, ...]]:
        cloud = given.cloud
        start = None if init is None else given.flat("init", init.y if isinstance(init, Solution) else init)
        tolerance = self.tolerance or (1e-6 if cloud.x.dtype == torch.float32 else 1e-12)
        tight = tight or bool(self.polish)
        if tight:
            tolerance = min(tolerance, 16 * torch.finfo(cloud.x.dtype).eps)

        def forward(problem: Cloud) -> tuple[Tensor, ...]:
            check(problem)
            found = find(problem, self.restarts, start, tolerance, self.max_iterations)
            if not tight and self.on_failure != "nan":
                _, stationarity, *_, status = found
                self._report_failures(status, stationarity)
            return found

        numbers = tuple(None if isinstance(v, Tensor) else v for v in cloud.values)
        tensors = [cloud.x, *([] if cloud.weights is None else [cloud.weights]), *(v for v in cloud.values if isinstance(v, Tensor))]
        policies = self.differentiation if isinstance(self.differentiation, Implicit) else Implicit()
        report = DerivativeReport(policies.irregular)
        return Pooling(cloud.penalty, cloud.weights is not None, numbers, forward, policies.irregular, report), tuple(tensors)

    def _refuse_captured(self, given: Read) -> None:
        """A function that uses a tensor of its own would lose that tensor's gradient."""
        if type(self.penalty).kappa1 is not Penalty.kappa1 or not torch.is_grad_enabled():
            return
        with torch.enable_grad():
            s = torch.zeros(1, 1, dtype=given.cloud.x.dtype, device=given.cloud.x.device)
            values = (v.detach() if isinstance(v, Tensor) else v for v in self.penalty.values())
            if self.penalty.phi(s, *values).requires_grad:
                raise lost_gradient("RobustPooling", "a tensor in its penalty")

    def _points(self, given: Read, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The objective (b,); (b, N) each point's share, whether it lies beyond the penalty's kink, and whether on it; (b, 0) without one."""
        cloud = given.cloud
        with torch.no_grad():
            at = cloud.at(u)
            shares = at.kappa1 / torch.where(at.mass > 0, at.mass, 1.0).unsqueeze(1)
            kink = cloud.penalty.kink(*cloud.values)
            if kink is None:
                none = torch.zeros(u.shape[0], 0, dtype=torch.bool, device=u.device)
                return at.value, shares, none, none
            excess = at.squared.sqrt() / kink - 1
            on = excess.abs() <= (1e-9 if u.dtype == torch.float64 else 1e-5)
            if cloud.weights is not None:
                on = on & (cloud.weights > 0)
            return at.value, shares, (excess > 0) & ~on, on

    def _marked(self, u: Tensor, status: Tensor) -> Tensor:
        """NaN where that is asked for: added, so that what does not use these samples gets no NaN as gradient."""
        if self.on_failure != "nan" or self.polish:
            return u
        return u + torch.where(status == Status.CONVERGED, 0.0, torch.nan).to(u.dtype).unsqueeze(1)

    def _report_failures(self, status: Tensor, stationarity: Tensor) -> None:
        bad = status != Status.CONVERGED
        if not bool(bad.any()):
            return
        parts = []
        for kind in status[bad].unique().tolist():
            of_kind = status == kind
            named = name_samples(of_kind.nonzero().squeeze(1).tolist(), status.shape[0])
            more = f", at a relative gradient of {float(stationarity[of_kind].max()):.1e}" if kind == Status.MAX_ITERATIONS else ""
            parts.append(f"{named}: {Status(kind).meaning}{more}")
        advice = {
            Status.NO_INLIERS: "raise the penalty's scale, or restarts",
            Status.NON_FINITE: "check x, and that the penalty is smooth at s = 0",
            Status.MAX_ITERATIONS: "raise max_iterations or tolerance",
        }
        hints = [advice[kind] for kind in advice if bool((status == kind).any())]
        message = f"{type(self).__name__}: {'; '.join([*parts, *hints])}. solution(...).status tells the samples"
        if self.on_failure == "raise":
            raise SolverError(message)
        warnings.warn(message, SolverWarning, stacklevel=2)


def _single(in_dims: InDims) -> bool:
    return in_dims is None or (isinstance(in_dims, tuple) and all(d is None for d in in_dims))


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
