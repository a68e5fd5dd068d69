"""Other ways to give a combinatorial solver a gradient, behind the same interface, to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from declarative.layers.arguments import positive_number
from declarative.layers.combinatorial.base import Read, SolverLayer, repeated
from declarative.layers.combinatorial.identity import IdentityStep
from declarative.layers.combinatorial.noise import Noise, Normal
from declarative.layers.combinatorial.solvers import Combinatorial
from declarative.layers.combinatorial.top_k import top_k
from declarative.layers.formula import Formula, solved
from declarative.layers.projection import Projection
from declarative.layers.topk.reading import read
from declarative.layers.topk.relaxed import RelaxedTopK
from declarative.transforms import uncompiled, without_graph


@dataclass(frozen=True, eq=False)
class _Interpolation(Formula):
    """y(ω), and ω̄ = (y(ω + ε) − y(ω ∓ λv + ε))/λ ±: what blackbox interpolation and implicit MLE share (ε is part of ω here)."""

    find: Callable[[Tensor], Tensor]
    admissible: Callable[[Tensor], Tensor]
    strength: float
    sign: float
    live = 1

    def fresh(self) -> _Interpolation:
        return self

    def solve(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return (self.find(tensors[0]),)

    def pull_back(self, operands: Sequence[Tensor], cotangents: Sequence[Tensor | None], wanted: Sequence[bool]) -> Sequence[Tensor | None]:  # noqa: ARG002
        weights, y = operands
        (moved,) = without_graph(lambda w, v: (self.find(self.admissible(w - self.sign * self.strength * v)),), weights, torch.as_tensor(cotangents[0]))
        return (self.sign * (y - moved) / self.strength,)

    def push_forward(self, operands: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        raise NotImplementedError("blackbox interpolation and implicit MLE have no forward mode: use reverse mode")


class BlackboxSolver(SolverLayer):
    """y = argmax ⟨ω, y⟩ with ω̄ = (y(ω) − y(ω − λv))/λ: the gradient of a piecewise linear interpolation of the loss. One more solve.

    Args:
        solver, sense: as in `IdentitySolver`; for "min" ω̄ = (y(ω + λv) − y(ω))/λ.
        strength: λ > 0, the reach of the interpolation.

    Shapes:
        weights (…, *event) -> y (…, *event), as in `IdentitySolver`. Reverse mode alone, once.

    Raises:
        ValueError, TypeError: as `IdentitySolver`.

    Example:
        >>> w = torch.tensor([0.3, 0.9, 0.1], requires_grad=True)
        >>> torch.autograd.grad(BlackboxSolver(TopK(1))(w), w, torch.tensor([0.0, 1.0, 0.0]))[0]
        tensor([-1.,  1.,  0.])

    Source: Vlastelica, Paulus, Musil, Martius & Rolínek, "Differentiation of blackbox combinatorial solvers", ICLR 2020.
    """

    def __init__(self, solver: Combinatorial | Callable[[Any], Any], sense: str = "max", *, strength: float = 1.0) -> None:
        super().__init__(solver, sense)
        self.strength = positive_number("BlackboxSolver: strength", strength)

    @uncompiled
    def forward(self, weights: Tensor) -> Tensor:
        """y, of the weights' shape."""
        given = self._read(weights)
        frame = given.frame
        return given.shaped(solved(_Interpolation(lambda w: self._solve(frame, w), self.solver.admissible, self.strength, self.sign), given.flat)[0])


class ImplicitMLE(SolverLayer):
    """Perturb and MAP: y = argmax ⟨ω + ε, y⟩ (argmin ⟨ω − ε, y⟩) with ω̄ = (y(ω + ε) − y(ω − λv + ε))/λ, the same noise in both. One more solve.

    Args:
        solver, sense: as in `IdentitySolver`.
        strength: λ > 0, the step to the target distribution.
        noise: `GumbelK(k)` for k-subsets, `Gumbel()`, `Normal()`. Added in training; in evaluation the layer is deterministic.

    Shapes:
        weights (…, *event) -> y (…, *event), with `samples=S` (S, …, *event). Reverse mode alone, once.

    Raises:
        ValueError, TypeError: as `IdentitySolver`.

    Example:
        >>> ImplicitMLE(TopK(2), noise=GumbelK(2)).eval()(torch.tensor([0.3, 0.9, 0.1]))
        tensor([1., 1., 0.])

    Source: Niepert, Minervini & Franceschi, "Implicit MLE: backpropagating through discrete exponential family distributions", NeurIPS 2021.
    """

    def __init__(self, solver: Combinatorial | Callable[[Any], Any], sense: str = "max", *, noise: Noise, strength: float = 1.0) -> None:
        super().__init__(solver, sense)
        if not isinstance(noise, Noise):
            raise TypeError(f"ImplicitMLE: noise must be an object such as GumbelK(k), got {noise!r}")
        self.noise, self.strength = noise, positive_number("ImplicitMLE: strength", strength)

    @uncompiled
    def forward(self, weights: Tensor, *, sample: bool | None = None, samples: int | None = None, generator: torch.Generator | None = None) -> Tensor:
        """y, of the weights' shape; with `samples=S` S of them, as a new first dimension. `sample` overrides whether there is noise."""
        given = self._read(weights if samples is None else repeated(weights, samples))
        frame, flat, noisy = given.frame, given.flat, self.training if sample is None else sample
        if noisy:
            flat = flat + self.sign * self.noise.sample(flat.detach(), generator)  # −ω + ε is perturbed where −ω is maximised

        def find(w: Tensor) -> Tensor:
            return self._solve(frame, self.solver.admissible(w) if noisy else w)

        return given.shaped(solved(_Interpolation(find, self.solver.admissible, self.strength, self.sign), flat)[0])


@dataclass(frozen=True, eq=False)
class _Perturbed(Formula):
    """ȳ = (1/S) Σ_s y(ω + σZ_s), J = (1/Sσ) Σ_s y_s Z_sᵀ."""

    find: Callable[[Tensor], Tensor]
    deviation: float
    noise: Tensor  # Z (S, b, n)
    found: list[Tensor] = field(default_factory=list)
    live = 1

    def fresh(self) -> _Perturbed:
        raise NotImplementedError("PerturbedSolver cannot run under torch.func.vmap: its noise is drawn for the batch that it was called with")

    def solve(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        several = tensors[0] + self.deviation * self.noise
        y = self.find(several.flatten(0, 1)).reshape(several.shape)
        # Without its mean y has the same expected product with Z, and less variance.
        self.found[:] = [y - y.mean(0)]
        return (y.mean(0),)

    def pull_back(self, operands: Sequence[Tensor], cotangents: Sequence[Tensor | None], wanted: Sequence[bool]) -> Sequence[Tensor | None]:  # noqa: ARG002
        along = (self.found[0] * torch.as_tensor(cotangents[0])).sum(2, keepdim=True)
        return ((along * self.noise).sum(0) / (self._degrees() * self.deviation),)

    def push_forward(self, operands: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> tuple[Tensor, ...]:  # noqa: ARG002
        along = (self.noise * torch.as_tensor(tangents[0])).sum(2, keepdim=True)
        return ((along * self.found[0]).sum(0) / (self._degrees() * self.deviation),)

    def _degrees(self) -> int:
        return max(1, self.noise.shape[0] - 1)


class PerturbedSolver(SolverLayer):
    """ȳ = E argmax ⟨ω + σZ, y⟩, Z normal: smooth, with the Jacobian E[y Zᵀ]/σ, both by Monte Carlo.

    Args:
        solver, sense: as in `IdentitySolver`.
        deviation: σ > 0.
        samples: how many draws; 2 or more.

    Shapes:
        weights (…, *event) -> ȳ (…, *event).

    Raises:
        ValueError, TypeError: as `IdentitySolver`.

    Example:
        >>> soft = PerturbedSolver(TopK(2), deviation=0.5)(torch.tensor([0.3, 0.9, 0.1]))  # entries in [0, 1], sum 2

    Its gradient can be taken once: y counts as a constant in it. Draws are made in evaluation, too. No vmap.

    Source: Berthet, Blondel, Teboul, Cuturi, Vert & Bach, "Learning with differentiable perturbed optimizers", NeurIPS 2020.
    """

    def __init__(self, solver: Combinatorial | Callable[[Any], Any], sense: str = "max", *, deviation: float = 1.0, samples: int = 100) -> None:
        super().__init__(solver, sense)
        self.deviation = positive_number(f"{type(self).__name__}: deviation", deviation)
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 2:
            raise ValueError(f"{type(self).__name__}: samples must be an int, 2 or more, got {samples!r}")
        self.samples = samples

    def _noise(self, given: Read, generator: torch.Generator | None) -> Tensor:
        flat = given.flat.detach()
        return Normal().sample(flat.expand(self.samples, *flat.shape), generator)

    @uncompiled
    def forward(self, weights: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """ȳ, of the weights' shape."""
        given = self._read(weights)
        frame = given.frame
        call = _Perturbed(lambda w: self._solve(frame, self.solver.admissible(w)), self.deviation, self._noise(given, generator))
        return given.shaped(solved(call, given.flat)[0])


class FenchelYoungLoss(PerturbedSolver):
    """E max_y ⟨ω + σZ, y⟩ − ⟨ω, y*⟩, whose gradient is ȳ − y*: a convex loss for weights whose solution should be y*.

    Args:
        solver, sense, deviation, samples: as in `PerturbedSolver`; for "min" both terms change sign.

    Shapes:
        weights and target (…, *event) -> (…).

    Its gradient can be taken once: its second derivative comes out as zero.

    Source: Berthet et al., 2020; Blondel, Martins & Niculae, "Learning with Fenchel–Young losses", JMLR 2020.
    """

    @uncompiled
    def forward(self, weights: Tensor, target: Tensor, *, generator: torch.Generator | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The loss of each sample."""
        given = self._read(weights)
        if not isinstance(target, Tensor) or target.shape != weights.shape:
            came = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
            raise ValueError(f"target must be a tensor of the weights' shape {tuple(weights.shape)}, got {came}")
        noise = self.deviation * self._noise(given, generator)
        (y,) = without_graph(lambda w: (self._solve(given, self.solver.admissible((w + noise).flatten(0, 1))).reshape(noise.shape),), given.flat)
        # By the envelope theorem y counts as a constant.
        value = ((given.flat + noise) * y).sum(2).mean(0) - (given.flat * target.to(given.flat).reshape(given.flat.shape)).sum(1)
        return (self.sign * value).to(given.dtype).reshape(given.lead)


class StraightThrough(nn.Module):
    """The hard top-k forward, a relaxation's gradient backward.

    Args:
        relaxed: `EntropicTopK(k)` or `EuclideanTopK(k)`.

    Example:
        >>> StraightThrough(EntropicTopK(2))(torch.tensor([0.3, 0.9, 0.1, 0.8]))
        tensor([0., 1., 0., 1.])
    """

    def __init__(self, relaxed: RelaxedTopK) -> None:
        super().__init__()
        if not isinstance(relaxed, RelaxedTopK):
            raise TypeError(f"StraightThrough: relaxed must be EntropicTopK(k) or EuclideanTopK(k), got {relaxed!r}")
        self.relaxed = relaxed

    @uncompiled
    def forward(self, logits: Tensor, temperature: Tensor | None = None) -> Tensor:
        """k-hot vectors of the logits' shape."""
        u = self.relaxed(logits, temperature)
        given = read(logits.detach(), self.relaxed.k, self.relaxed.dim)
        step = IdentityStep(lambda x: top_k(x, given.k, "first"), Projection(None, False), 1.0)
        return given.shaped(solved(step, given.x)[0]) + (u - u.detach())
