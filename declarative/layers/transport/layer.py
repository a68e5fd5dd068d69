"""`OptimalTransport`: entropic optimal transport as a declarative node, with its structure in closed form."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from declarative.errors import SolverError, SolverWarning, name_samples
from declarative.layers.arguments import mask_to_front, positive_int, present, to_front, tolerance_or_none
from declarative.layers.transport.auto import Auto
from declarative.layers.transport.kernel import spread
from declarative.layers.transport.methods import Method
from declarative.layers.transport.plan import Call, Record, balance, complete, transport_plan
from declarative.layers.transport.reading import Read, check, positive, read
from declarative.layers.transport.stated import Potentials, StatedTransport, multipliers_of, stationarity
from declarative.layers.transport.statement import Found, Transport, no_iterations
from declarative.layers.transport.unrolled import unrolled_plan
from declarative.layers.transport.value import transport_value
from declarative.node import InDims
from declarative.solution import Solution, Status
from declarative.solvers.base import ON_FAILURE_CHOICES
from declarative.solvers.iterative import Progress
from declarative.transforms import uncompiled

GRADIENTS = ("implicit", "approximate", "unrolled")
INPUTS = ("cost", "affinity")
_NAMES = ("M", "r", "c", "gamma")
_FAR = 1e3  # potentials farther apart than this many times the costs are no start


class OptimalTransport(StatedTransport):
    """P = argmin_P ⟨P, M⟩ + (1/γ) KL(P ‖ r cᵀ)  subject to  P1 = r, Pᵀ1 = c.

    Differentiable in M, r, c and γ, to any order, in reverse and forward mode and under torch.func; memory does not depend on the
    iterations. One Cholesky factor of min(m, n) rows with one right-hand side (or conjugate gradients, or the factor of the forward
    pass's last Newton step) makes the whole backward pass.

    Args:
        gamma: γ > 0: a float, a tensor that broadcasts with the leading dimensions, or a `torch.nn.Parameter` to be learned. May
            be given at the call instead.
        method: how P is found: `Auto()` (None), `Sinkhorn(...)`, `DualNewton(...)` or `DualLBFGS(...)`.
        tolerance: of the relative marginal error (‖P1 − r‖₁ + ‖Pᵀ1 − c‖₁) / Σr. None: 1e-10 in float64, 1e-5 in float32.
        max_iterations: of the method.
        gradient: "implicit": that of the solution. "approximate": with the potentials held fixed, as if there were no constraints.
            "unrolled": through Sinkhorn's iterations from a cold start, whose memory grows with them; `method`, `init` and `progress` play no
            part then.
        on_failure: what to do about samples whose error stays above the tolerance: "warn" (a `SolverWarning`; their gradient is
            that of a problem with slightly different marginals), "raise" a `SolverError`, or "nan".
        input: "cost": the input is M. "affinity": the input is Q ≥ 0 with M = −log Q; 0 forbids a pair.
        progress: called with a `declarative.solvers.Progress` now and then: `print`, for example.

    Shapes:
        M (…, m, n); r (…, m), c (…, n), nonnegative and of the same mass, uniform where None; γ (…,). Leading dimensions
        broadcast. P (…, m, n). Costs may have any sign; +inf forbids a pair, and so does `mask` (…, m, n) where it is False (rows that
        it empties get no mass by default: padded problems).

        r and c matter as distributions of one mass s = (Σr + Σc)/2: P1 = r s/Σr and Pᵀ1 = c s/Σc, so each has a gradient of its
        own. Masses may differ by 1e-4, relatively (rounding, finite differences; in half precision 1e-2); more is an error.

    Raises:
        ValueError, TypeError: shapes, dtypes, NaN, negative marginals, masses that differ, rows with mass and nowhere to go.
        SolverError: with on_failure="raise".

    Example:
        >>> M = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> OptimalTransport(gamma=2.0)(M)
        tensor([[0.4404, 0.0596],
                [0.0596, 0.4404]])

    Source: Cuturi, "Sinkhorn distances", NeurIPS 2013; Gould et al., "Exploiting problem structure in deep declarative networks: two
    case studies", OT-SDM at AAAI 2022.
    """

    def __init__(
        self,
        gamma: float | Tensor = 1.0,
        *,
        method: Method | None = None,
        tolerance: float | None = None,
        max_iterations: int = 1000,
        gradient: str = "implicit",
        on_failure: str = "warn",
        input: str = "cost",  # noqa: A002
        progress: Callable[[Progress], object] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(gamma, Tensor):
            positive("OptimalTransport: gamma", gamma)
        for name, value, choices in (("gradient", gradient, GRADIENTS), ("on_failure", on_failure, ON_FAILURE_CHOICES), ("input", input, INPUTS)):
            if value not in choices:
                raise ValueError(f"OptimalTransport({name}=...) must be one of {choices}, got {value!r}")
        if method is not None and not isinstance(method, Method):
            raise TypeError(f"OptimalTransport: method must be Auto(), Sinkhorn(), DualNewton() or DualLBFGS(), got {method!r}")
        tolerance_or_none("OptimalTransport", tolerance)
        positive_int("OptimalTransport: max_iterations", max_iterations)
        if progress is not None and not callable(progress):
            raise TypeError(f"OptimalTransport: progress must be a function of a Progress, such as print, got {progress!r}")
        if isinstance(gamma, Tensor) and not isinstance(gamma, nn.Parameter):
            self.register_buffer("gamma", gamma)
        else:
            self.gamma = gamma
        self.method, self.tolerance, self.max_iterations = method or Auto(), tolerance, max_iterations
        self.gradient, self.on_failure, self.input, self.progress = gradient, on_failure, input, progress

    # Using it.

    @uncompiled
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        M: Tensor,
        r: Tensor | None = None,
        c: Tensor | None = None,
        gamma: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        init: Any = None,
        in_dims: InDims = 0,
    ) -> Tensor:
        """P (…, m, n).

        Args:
            M, r, c, gamma: costs (…, m, n), marginals (…, m) and (…, n), uniform where None, and γ (…,) in place of the layer's own.
            mask: (…, m, n) bool, True where something may be sent.
            init: potentials to start from: a `Solution` of this layer, `Potentials`, or a pair (φ, ψ).
            in_dims: as in every node, where the batch dimension is not the first.
        """
        if self.vjp is None:  # a copy that is to do without the structure
            return super().forward(*present((M, r, c, gamma), _NAMES), in_dims=in_dims)  # pyright: ignore[reportReturnType]
        given, (plan, *_, converged), _ = self._find((M, r, c, gamma), mask, init, in_dims)
        return given.shaped(self._marked(plan, converged))

    @uncompiled
    def solution(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        M: Tensor,
        r: Tensor | None = None,
        c: Tensor | None = None,
        gamma: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        init: Any = None,
        in_dims: InDims = 0,
    ) -> Solution:
        """P and all that is known about it.

        `workspace` holds the `Potentials`; `violation` the marginal error, as `tolerance` measures it; `stationarity` is relative to
        the largest cost. The multipliers ν are those of the statement above: m rows, then n − 1 columns.
        """
        if self.vjp is None:
            return super().solution(*present((M, r, c, gamma), _NAMES), in_dims=in_dims)
        given, (plan, phi, psi, error, iterations, converged), call = self._find((M, r, c, gamma), mask, init, in_dims)
        found = self._potentials(given, phi, psi, call.record)
        none, mask_none = plan.new_zeros(plan.shape[0], 0), torch.zeros(plan.shape[0], 0, dtype=torch.bool, device=plan.device)
        fields = {
            "y": self._marked(plan, converged),
            "equality_multipliers": self._marked(multipliers_of(found.rows, found.columns, given.gamma), converged),
            "inequality_multipliers": none,
            "active": mask_none,
            "weakly_active": mask_none,
            "status": torch.where(converged, int(Status.CONVERGED), int(Status.MAX_ITERATIONS)),
            "iterations": iterations,
            "stationarity": stationarity(given, plan, found),
            "violation": error,
        }
        shown = Potentials(given.shaped(found.rows), given.shaped(found.columns))
        return Solution(**{k: given.shaped(v) for k, v in fields.items()}, report=call.record.report, workspace=shown)

    @uncompiled
    def potentials(
        self,
        M: Tensor,
        r: Tensor | None = None,
        c: Tensor | None = None,
        gamma: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        init: Any = None,
        in_dims: InDims = 0,
    ) -> Potentials:
        """φ (…, m) and ψ (…, n), differentiable, with P_ij = r_i c_j exp(γ(φ_i + ψ_j − M_ij)) and ⟨φ, r⟩ = ⟨ψ, c⟩."""
        given, (_, phi, psi, *_, converged), call = self._find((M, r, c, gamma), mask, init, in_dims)
        found = self._potentials(given, phi, psi, call.record)
        return Potentials(*(given.shaped(self._marked(t, converged)) for t in (found.rows, found.columns)))

    @uncompiled
    def value(
        self,
        M: Tensor,
        r: Tensor | None = None,
        c: Tensor | None = None,
        gamma: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        init: Any = None,
        in_dims: InDims = 0,
    ) -> Tensor:
        """The optimal value ⟨P, M⟩ + (1/γ) KL(P ‖ r cᵀ), (…,): differentiable to any order; its gradient solves no linear system."""
        return self._value(*self._find((M, r, c, gamma), mask, init, in_dims))

    @uncompiled
    def padded_value(self, M: Tensor, r: Tensor, c: Tensor, gamma: Tensor | None, empty: int) -> Tensor:
        """`value` of problems with so many entries of r and c, in all, that are zero because they pad; their own gradients are not needed."""
        return self._value(*self._find((M, r, c, gamma), None, None, 0, empty))

    def _value(self, given: Read, outputs: tuple[Tensor, ...], call: Call) -> Tensor:
        plan, phi, psi, *_, converged = outputs
        if self.gradient == "unrolled":
            return given.shaped(self._marked((plan * (phi.unsqueeze(2) + psi.unsqueeze(1))).sum((1, 2)), converged))
        rows, columns = balance(given.rows, given.columns)
        if call.record.empty:
            phi, psi = complete(given.cost, rows, columns, given.gamma, phi, psi)
        return given.shaped(self._marked(transport_value(given.cost, rows, columns, given.gamma, plan, phi, psi), converged))

    def _given(self, inputs: tuple[Tensor | None, ...], mask: Tensor | None = None) -> Read:
        M, r, c, gamma = (*inputs, *([None] * (4 - len(inputs))))
        return read(M, r, c, self.gamma if gamma is None else gamma, mask, self.input == "affinity")

    def _find(
        self, inputs: tuple[Tensor | None, ...], mask: Tensor | None, init: Any, in_dims: InDims, padding: int = 0
    ) -> tuple[Read, tuple[Tensor, ...], Call]:
        given = self._given(to_front(inputs, in_dims), mask_to_front(mask, in_dims))
        call = self._call(given, init, inputs, padding)
        run = unrolled_plan if self.gradient == "unrolled" else transport_plan
        return given, run(call, given.cost, given.rows, given.columns, given.gamma), call

    def _call(self, given: Read, init: Any, inputs: tuple[Tensor | None, ...], padding: int = 0) -> Call:
        start = None if init is None else _read_init(init, given)
        own = any(x is not None for x in inputs[1:3])
        tolerance = self.tolerance
        if tolerance is None:
            tolerance = 1e-5 if given.cost.dtype == torch.float32 else 1e-10
        if self.polish:
            tolerance = min(tolerance, 64 * torch.finfo(given.cost.dtype).eps)

        record = Record()
        # Finite differences (`verify`, which polishes) step to masses that differ: `balance` defines what they find.
        apart = torch.inf if self.polish else given.mass_tolerance

        def prepare(problem: Transport) -> Transport:
            check(problem, "Q" if self.input == "affinity" else "M", marginals=own, apart=apart)
            if not own:
                return problem
            rows, columns = balance(problem.rows, problem.columns)
            record.empty = int((rows == 0).sum() + (columns == 0).sum()) > padding
            return replace(problem, rows=rows, columns=columns)

        def solve(problem: Transport) -> Found:
            if not problem.gamma.shape[0]:
                return Found(torch.zeros_like(problem.cost), problem.rows, problem.columns, problem.gamma, no_iterations(problem), problem.gamma > 0)
            init = None if start is None else _usable(start, problem)
            return self.method.solve(problem, init, tolerance=tolerance, max_iterations=self.max_iterations, progress=self.progress)

        def finish(found: Found) -> Found:
            return found if bool(found.converged.all()) or self.polish else self._failed(found, tolerance)

        return Call(prepare, solve, finish, self.gradient != "approximate", tolerance, self.max_iterations, record)

    def _marked(self, result: Tensor, converged: Tensor) -> Tensor:
        """NaN where the method failed, if that is what was asked for: added, so that what does not use these samples gets no NaN as gradient."""
        if self.on_failure != "nan" or self.polish:
            return result
        return result + torch.where(converged, 0.0, torch.nan).to(result.dtype).reshape(-1, *[1] * (result.ndim - 1))

    def _failed(self, found: Found, tolerance: float) -> Found:
        bad = ~found.converged
        if self.on_failure == "nan":
            return found
        worst, by = float(found.error[bad].max()), "unrolled iterations" if self.gradient == "unrolled" else type(self.method).__name__
        message = (
            f"{type(self).__name__}, by {by}: {name_samples(bad.nonzero().squeeze(1).tolist(), bad.shape[0])} stopped at a relative "
            f"marginal error of {worst:.1e}, above the tolerance {tolerance:.0e}, after {int(found.iterations[bad].max())} iterations. Raise max_iterations or "
            "tolerance, lower gamma, or check that a plan exists (mask)"
        )
        if self.on_failure == "raise":
            raise SolverError(message)
        warnings.warn(message, SolverWarning, stacklevel=2)
        return found

    @staticmethod
    def _potentials(given: Read, phi: Tensor, psi: Tensor, record: Record) -> Potentials:
        """The potentials in a definite gauge, and differentiable where a marginal is zero, too."""
        rows, columns = balance(given.rows, given.columns)
        if record.empty:
            phi, psi = complete(given.cost, rows, columns, given.gamma, phi, psi)
        shift = 0.5 * ((phi * rows).sum(1, keepdim=True) - (psi * columns).sum(1, keepdim=True)) / rows.sum(1, keepdim=True)
        return Potentials(phi - shift, psi + shift)


def _read_init(init: Any, given: Read) -> tuple[Tensor, Tensor]:
    value = init.workspace if isinstance(init, Solution) else init
    pair = (value.rows, value.columns) if isinstance(value, Potentials) else value
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise TypeError(f"init must be a Solution of this layer, Potentials or a pair (φ, ψ), got {type(init).__name__}")
    return given.flat("init φ", pair[0], given.rows.shape[1]), given.flat("init ψ", pair[1], given.columns.shape[1])


def _usable(start: tuple[Tensor, Tensor], problem: Transport) -> tuple[Tensor, Tensor]:
    """The start of each sample, without a constant; a cold one where it is not finite, or so large that rounding would change the costs."""
    limit = _FAR * (spread(problem.cost).flatten() + 1 / problem.gamma).unsqueeze(1)
    centred = [x - x.mean(1, keepdim=True) for x in start]
    near = [torch.where((x.abs() <= limit).all(1, keepdim=True), x, 0.0) for x in centred]
    return near[0], near[1]
