"""What `EntropicTopK` and `EuclideanTopK` have in common: reading, solving, the statement's constraint."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from declarative.differentiation.implicit import Implicit
from declarative.errors import SolverWarning, name_samples
from declarative.layers.arguments import fits, present, to_front
from declarative.layers.formula import solved
from declarative.layers.topk.reading import K, Read, check_finite, check_k, for_batch, largest, numbers_of, positive, read, reference_of, temperature_like
from declarative.layers.topk.relaxation import Relaxation
from declarative.layers.topk.root import increasing_root
from declarative.node import DeclarativeNode, InDims
from declarative.solution import DerivativeReport, Solution, Status
from declarative.structure import Constant
from declarative.transforms import uncompiled

_STEPS = 200  # Newton's method takes less than ten; bisection, its last resort, as many as there are bits
_FAR = 1e4  # a sigmoid at so many temperatures from its middle is 0 or 1


class RelaxedTopK(DeclarativeNode):
    """What both have in common: u = argmin −⟨x, u⟩ + T Ω(u) subject to Σu = k."""

    constraint_structure = Constant()

    def __init__(self, k: K, temperature: float | Tensor = 1.0, *, dim: int = -1) -> None:
        # At a vertex, where all bounds hold, the equation is redundant and the pseudo-inverse gives the derivative: zero.
        super().__init__(differentiation=Implicit(irregular="min_norm"))
        self.dim = dim
        check_k(k)
        if isinstance(k, Tensor):
            self.register_buffer("k", k, persistent=False)
        else:
            self.k = k
        if not isinstance(temperature, Tensor):
            self.temperature: float | Tensor = positive(temperature)
        elif isinstance(temperature, nn.Parameter):
            self.temperature = temperature
        else:
            self.register_buffer("temperature", temperature)

    @staticmethod
    def _range(x: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Smallest and largest logit, and by how much a bracket must exceed them for rounding not to matter."""
        low, high = x.amin(1), x.amax(1)
        return low, high, temperature + torch.finfo(x.dtype).eps * torch.maximum(low.abs(), high.abs())

    # What the two differ in.

    @abstractmethod
    def _start(self, x: Tensor, k: Tensor, temperature: Tensor, most: int) -> tuple[Any, Tensor, Tensor, Tensor]:
        """What `_evaluate` needs, and τ's bracket and start."""

    @abstractmethod
    def _evaluate(self, prepared: Any, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """An increasing function of τ whose root is wanted, its slope, and where it is as good as zero."""

    @staticmethod
    @abstractmethod
    def _inverse(a: Tensor) -> Tensor:
        """s(a)"""

    @staticmethod
    @abstractmethod
    def _slope(a: Tensor) -> Tensor:
        """s'(a)"""

    # Using it.

    @uncompiled
    def forward(self, logits: Tensor, temperature: float | Tensor | None = None, *, k: K | None = None, in_dims: InDims = 0) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """u, of the logits' shape, in [0, 1] with sums k.

        Args:
            logits: x (…, n), n along `dim`.
            temperature, k: in place of the layer's own; both broadcast with the other dimensions.
            in_dims: as in every node, where the batch dimension is not the first.
        """
        temperature = temperature_like(temperature, logits)
        if self.vjp is None:  # a copy that is to do without the structure
            return super().forward(*present((logits, temperature), ("logits", "temperature")), in_dims=in_dims)  # pyright: ignore[reportReturnType]
        given, (u, *_), *_ = self._find((logits, temperature), k, in_dims)
        return given.shaped(u)

    @uncompiled
    def solution(self, logits: Tensor, temperature: float | Tensor | None = None, *, k: K | None = None, in_dims: InDims = 0) -> Solution:  # pyright: ignore[reportIncompatibleMethodOverride]
        """u and its multipliers: ν of Σu = k, which is differentiable, and those of the bounds; `violation` is |Σu − k|."""
        temperature = temperature_like(temperature, logits)
        if self.vjp is None:
            return super().solution(*present((logits, temperature), ("logits", "temperature")), in_dims=in_dims)
        return self._details((logits, temperature), k, in_dims)

    def extra_repr(self) -> str:
        """For `print`."""
        learned = isinstance(self.temperature, nn.Parameter)
        return f"k={self.k}, temperature={'learned' if learned else self.temperature}, dim={self.dim}"

    def _details(self, inputs: tuple[Tensor | None, ...], k: K | None, in_dims: InDims) -> Solution:
        given, (u, shift, converged, iterations), temperature, reference = self._find(inputs, k, in_dims)
        scale = self._scale(given, temperature).detach()
        multipliers, active, weakly = self._bounds(given.x.detach(), u.detach(), shift.detach(), scale)
        fields = {
            "equality_multipliers": reference - shift.unsqueeze(1),
            "inequality_multipliers": multipliers,
            "active": active,
            "weakly_active": weakly,
            "status": torch.where(converged, int(Status.CONVERGED), int(Status.MAX_ITERATIONS)),
            "iterations": iterations,
            "stationarity": torch.zeros_like(shift),
            "violation": (u.detach().sum(1) - given.counts()).abs(),
        }
        return Solution(given.shaped(u), **{name: given.for_each(field) for name, field in fields.items()}, report=DerivativeReport(method="closed form"))

    def _bounds(self, x: Tensor, u: Tensor, shift: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG002
        """μ, and which bounds are active and weakly active: none where there are no inequalities."""
        none = u.new_zeros(u.shape[0], 0)
        return none, none.bool(), none.bool()

    def _given(self, inputs: tuple[Tensor | None, ...], k: K | None = None) -> tuple[Read, Tensor | None]:
        """The logits, and T (b,) where it is a tensor."""
        logits, temperature = (*inputs, None)[:2]
        given = read(logits, self.k if k is None else k, self.dim)
        value = self.temperature if temperature is None else temperature
        if not isinstance(value, Tensor):
            return given, None
        if not fits(value, given.dtype, given.x.dtype) or value.device != given.x.device:
            raise TypeError(f"temperature is {value.dtype} on {value.device}, the logits are {given.dtype} on {given.x.device}; convert one of them")
        try:
            return given, value.to(given.x.dtype).expand(given.lead).reshape(-1)
        except RuntimeError as error:
            raise ValueError(f"temperature must broadcast to {given.lead}, one for each sample, got {tuple(value.shape)}") from error

    def _scale(self, given: Read, temperature: Tensor | None) -> Tensor:
        """T (b,)"""
        return torch.full_like(given.x[:, 0], float(self.temperature)) if temperature is None else temperature

    def _find(self, inputs: tuple[Tensor | None, ...], k: K | None, in_dims: InDims) -> tuple[Read, tuple[Tensor, ...], Tensor | None, Tensor]:
        """The logits relative to a reference (b, 1), what was found with them, T where it is a tensor, and the reference."""
        given, temperature = self._given(to_front(inputs, in_dims), k)
        # A constant in the logits does not matter, but would cost digits of x + τ where it counts: around the kth largest.
        reference = reference_of(given.x.detach(), given.k)
        given = replace(given, x=given.x - reference)
        call, tensors = self._call(given, temperature)
        return given, solved(call, *tensors), temperature, reference

    def _call(self, given: Read, temperature: Tensor | None) -> tuple[Relaxation, tuple[Tensor, ...]]:
        number = None if temperature is not None else float(self.temperature)
        tensors = (given.x,) if temperature is None else (given.x, temperature)
        return Relaxation(partial(self._solved, given.k), self._slope, number), tensors

    def _solved(self, k: K, x: Tensor, temperature: Tensor) -> tuple[Tensor, ...]:
        """u (b, n), τ (b,), converged, iterations."""
        check_finite(x)
        if not bool(((temperature > 0) & torch.isfinite(temperature)).all()):
            raise ValueError(f"temperature must be positive and finite, got {float(temperature.min()):g} among them. Learn its logarithm if it may cross zero")
        k = k if isinstance(k, int) else for_batch(k, x.shape[0])
        counts = numbers_of(k, x)
        n = x.shape[1]
        if not x.shape[0]:
            return x.clone(), temperature.clone(), temperature > 0, counts.long()
        prepared, low, high, start = self._start(x, counts, temperature, min(largest(k), n - 1))
        shift, converged, iterations = increasing_root(partial(self._evaluate, prepared), low, high, start, _STEPS)
        # Nothing and everything: the multiplier is any number that is far enough.
        none, all_of_them = counts == 0, counts == n
        low, high = x.amin(1), x.amax(1)
        shift = torch.where(none, -high - _FAR * temperature, torch.where(all_of_them, -low + _FAR * temperature, shift))
        u = self._inverse((x + shift.unsqueeze(1)) / temperature.unsqueeze(1))
        converged = converged | none | all_of_them
        if not bool(converged.all()):
            named = name_samples((~converged).nonzero().squeeze(1).tolist(), x.shape[0])
            warnings.warn(f"{type(self).__name__}: {named} did not converge", SolverWarning, stacklevel=2)
        return u, shift, converged, torch.where(none | all_of_them, 0, iterations)

    # The statement for one instance, and the structure for `certify`, `explain` and `verify`.

    def equality_constraints(self, *inputs_and_u: Tensor) -> Tensor:
        """Σu = k."""
        *inputs, u = inputs_and_u
        given, _ = self._given(tuple(x.unsqueeze(0) for x in inputs))
        return u.reshape(given.x.shape).sum(1) - given.counts()

    def _stated(self, inputs: list[Tensor], u: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
        """x and u (1, n), and T."""
        given, temperature = self._given(tuple(x.unsqueeze(0) for x in inputs))
        return given.x, u.reshape(given.x.shape), self.temperature if temperature is None else temperature.unsqueeze(1)

    def solve(self, *inputs: Tensor) -> Solution:
        """u and its multipliers."""
        found = self._details(inputs, None, 0)
        return Solution(found.y, found.equality_multipliers, found.inequality_multipliers, status=found.status, iterations=found.iterations)

    def vjp(self, inputs: tuple[Tensor, ...], solution: Solution, cotangent: Tensor) -> tuple[Tensor, ...]:
        """The whole backward pass."""
        given, temperature = self._given(inputs)
        call, tensors = self._call(given, temperature)
        shift = -torch.as_tensor(solution.equality_multipliers)[:, 0]
        wanted = [k < len(inputs) for k in range(len(tensors))]
        found = call.pull_back((*tensors, torch.as_tensor(solution.y), shift), (cotangent, None), wanted)
        return tuple(torch.as_tensor(g).reshape(x.shape) for g, x in zip(found, inputs, strict=False))
