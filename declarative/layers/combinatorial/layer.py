"""`IdentitySolver` and `IdentityTopK`: a combinatorial solver whose backward pass is that of a projection and the identity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from declarative.layers.arguments import HALF
from declarative.layers.combinatorial.noise import Noise, Normal
from declarative.layers.combinatorial.solvers import Combinatorial, Function
from declarative.layers.combinatorial.top_k import TopK, top_k
from declarative.layers.formula import Formula, solved
from declarative.layers.projection import Projection, QuadraticSurrogate, centred, named, sign_of
from declarative.layers.topk.reading import K, check_finite, read
from declarative.transforms import uncompiled


@dataclass(frozen=True, eq=False)
class Read:
    """Weights (…, *event) as a flat batch.

    Args:
        flat: (b, n), a differentiable function of what the caller passed.
        solver: for these samples.
        lead, event: the leading dimensions and the shape of one instance.
        dtype: what the caller works in; half precisions are computed in float32.
    """

    flat: Tensor
    solver: Combinatorial
    lead: tuple[int, ...]
    event: tuple[int, ...]
    dtype: torch.dtype

    def instances(self, flat: Tensor) -> Tensor:
        """(b', n) as (b', *event)."""
        return flat.reshape((flat.shape[0], *self.event))

    def shaped(self, flat: Tensor) -> Tensor:
        """(b, n) as (…, *event), in the caller's precision."""
        return flat.to(self.dtype).reshape((*self.lead, *self.event))


class SolverLayer(nn.Module):
    """What all layers around a combinatorial solver share.

    Args:
        solver: `TopK(k)`, `Ranking()`, `Assignment()`, `ShortestPath()`, `SpanningTree(edges)`, or a function of one instance, an array.
        sense: whether the solver maximises or minimises ⟨ω, y⟩.
    """

    def __init__(self, solver: Combinatorial | Callable[[Any], Any], sense: str = "max") -> None:
        super().__init__()
        self.sign, self.sense = sign_of(sense), sense
        if isinstance(solver, type) or not (isinstance(solver, Combinatorial) or callable(solver)):
            raise TypeError(f"{type(self).__name__}: solver must be an object such as Assignment(), or a function of one instance, got {solver!r}")
        self.solver = solver if isinstance(solver, Combinatorial) else Function(solver)

    def _read(self, weights: Any) -> Read:
        dims = self.solver.event_dims
        if not isinstance(weights, Tensor) or not weights.is_floating_point():
            raise TypeError(f"weights must be a floating tensor, got {weights.dtype if isinstance(weights, Tensor) else type(weights).__name__}")
        if weights.ndim < dims or not all(weights.shape[-dims:]):
            raise ValueError(
                f"weights must have at least {dims} dimension{'s' * (dims > 1)} for {type(self.solver).__name__}, none empty, got {tuple(weights.shape)}"
            )
        lead, event = tuple(weights.shape[: weights.ndim - dims]), tuple(weights.shape[weights.ndim - dims :])
        self.solver.check(event, self.sense)
        flat = weights.reshape(int(torch.Size(lead).numel()), int(torch.Size(event).numel()))
        return Read(flat.float() if flat.dtype in HALF else flat, self.solver.spread(flat, lead), lead, event, weights.dtype)

    def _solve(self, given: Read, flat: Tensor) -> Tensor:
        """y (b', n) of weights (b', n), as numbers."""
        check_finite(flat, "weights")
        if not flat.shape[0]:
            return torch.zeros_like(flat)
        return given.solver.solve(given.instances(flat), self.sense).reshape(flat.shape)

    def extra_repr(self) -> str:
        """For `print`."""
        return f"{type(self.solver).__name__}, sense={self.sense!r}"


@dataclass(frozen=True, eq=False)
class IdentityStep(Formula):
    """y(ω), and ω̄ = ± Jᵀv with the projection's Jacobian J.

    Args:
        find: ω (b, n) -> y (b, n). It may take more tensors, which are constants of differentiation.
        projection: of the weights, before the solver.
        sign: 1 where ⟨ω, y⟩ is maximised, −1 where it is minimised.
        fixed: (b,) samples whose solution does not depend on ω at all, or None.
    """

    find: Callable[..., Tensor]
    projection: Projection
    sign: float
    fixed: Tensor | None = None
    live = 1

    def fresh(self) -> IdentityStep:
        return self

    def solve(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return (self.find(*tensors),)

    def _moved(self, weights: Tensor, vector: Tensor) -> Tensor:
        product = self.projection.times(weights, vector)
        if self.sign < 0:
            product = -product
        if self.fixed is None:
            return product
        fixed = self.fixed if self.fixed.shape[0] == product.shape[0] else self.fixed.repeat(product.shape[0] // self.fixed.shape[0])
        return torch.where(fixed.unsqueeze(1), 0.0, product)

    def pull_back(self, operands: Sequence[Tensor], cotangents: Sequence[Tensor | None], wanted: Sequence[bool]) -> Sequence[Tensor | None]:
        return self._moved(operands[0], torch.as_tensor(cotangents[0])), *[None] * (len(wanted) - 1)

    def push_forward(self, operands: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        tangent = tangents[0]
        return (self._moved(operands[0], torch.zeros_like(operands[0]) if tangent is None else tangent),)


class IdentitySolver(SolverLayer):
    """y = argmax ⟨ω, y⟩ (or argmin) over a finite set, with the backward pass of a projection and ± the identity.

    The true derivative of y is zero wherever it exists. In its place stands that of argmin_y ½‖y‖² ∓ ⟨z(ω), y⟩ (H = I, B = ∓I): ω̄ = ± Jᵀv, with J the
    Jacobian of the projection z. A projection onto what the solver distinguishes removes what would only let the weights drift:
    "centre" where a constant does not matter, "scale" always, "standardise" for both. `QuadraticSurrogate` is the statement of it that `verify` proves.

    Args:
        solver: `TopK(k)`, `Ranking()`, `Assignment()`, `ShortestPath()`, `SpanningTree(edges)`, `Function(...)`, or a function of one instance, an array.
            A solver in torch, for whole batches on any device, is a subclass of `Combinatorial`.
        sense: whether the solver maximises or minimises ⟨ω, y⟩.
        projection: None, "centre", "scale" or "standardise"; centring for matching is by row and column.
        margin: in training, with a target y*: weights are made worse by margin/2 where y* = 1 and better by as much where it is 0, so that the target
            must win by a margin.
        noise: in training: standard deviation of normal noise added to the (projected) weights. Margin and noise change y alone: where the loss is
            linear in y, as the Hamming distance is, its gradient does not see them; (y − y*)² has the same values and does.

    Shapes:
        weights (…, *event) with the solver's event: (n,) for top-k, ranking and trees (edges), (n, m) for assignment, (h, w) for paths. y as weights.
        Any device: solvers run on the CPU, in threads if they have `workers`.

    Raises:
        ValueError: a projection that would change the solution; NaN or inf; a solver's result of the wrong shape, or infeasible.

    Example:
        >>> w = torch.tensor([[2.0, 1.0], [3.0, 0.5]], requires_grad=True)
        >>> IdentitySolver(Assignment(), sense="min", projection="standardise")(w)
        tensor([[1., 0.],
                [0., 1.]], grad_fn=<ViewBackward0>)

    Source: Sahoo, Paulus, Vlastelica, Musil, Kuleshov & Martius, "Backpropagation through combinatorial algorithms: identity with projection
    works", ICLR 2023.
    """

    def __init__(
        self,
        solver: Combinatorial | Callable[[Any], Any],
        sense: str = "max",
        projection: str | None = None,
        *,
        margin: float = 0.0,
        noise: float = 0.0,
    ) -> None:
        super().__init__(solver, sense)
        for name, value in (("margin", margin), ("noise", noise)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ValueError(f"IdentitySolver: {name} must be a number, 0 or more, got {value!r}")
        named(projection, None if self.solver.why_not_centre else self._centre(()), self.solver.why_not_centre)
        self.projection, self.margin, self.noise = projection, float(margin), float(noise)

    @uncompiled
    def forward(self, weights: Tensor, target: Tensor | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """y, of the weights' shape.

        Args:
            weights: ω (…, *event).
            target: y* of the same shape, for the margin.
            generator: of the noise.
        """
        given = self._read(weights)
        projection = self._projection(given.event)
        worse = self._worse(given, target)

        def find(flat: Tensor, *worse: Tensor) -> Tensor:
            check_finite(flat, "weights")
            z = projection.apply(flat)
            for change in worse:
                check_finite(change, "target")
                z = given.solver.admissible(z - self.sign * change)
            if self.training and self.noise:
                z = given.solver.admissible(z + Normal(self.noise).sample(z, generator))
            return self._solve(given, z)

        tensors = (given.flat,) if worse is None else (given.flat, worse)
        return given.shaped(solved(IdentityStep(find, projection, self.sign), *tensors)[0])

    def _worse(self, given: Read, target: Tensor | None) -> Tensor | None:
        if not self.training or not self.margin:
            return None
        if target is None:
            raise ValueError("with a margin the layer needs the target in training: layer(weights, target)")
        if not isinstance(target, Tensor):
            raise TypeError(f"target must be a tensor that broadcasts to the weights' shape, got {type(target).__name__}")
        try:
            y = target.detach().to(given.flat).expand((*given.lead, *given.event)).reshape(given.flat.shape)
        except RuntimeError as error:
            raise ValueError(f"target must broadcast to the weights' shape {(*given.lead, *given.event)}, got {tuple(target.shape)}") from error
        return 0.5 * self.margin * (2 * y - 1)

    def _projection(self, event: tuple[int, ...]) -> Projection:
        return named(self.projection, None if self.solver.why_not_centre else self._centre(event), self.solver.why_not_centre)

    def _centre(self, event: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
        return lambda flat: self.solver.centre(flat, event)


class IdentityTopK(nn.Module):
    """A k-hot vector with ones at the k largest logits, or a sample of such, with the identity method's backward pass.

    Exactly k ones, also where logits are equal. The logits (and their noise) are projected first, and the projection's Jacobian is part of the backward pass;
    since the k largest are the same before and after, the forward pass need not compute it. k = 0 and k = n leave nothing to choose: their gradient is
    zero, and so is that of constant logits under "standardise", which have no direction.

    Args:
        k: an int, or an integer tensor that broadcasts with the dimensions other than `dim`.
        projection: "standardise", "centre", "scale" or None.
        noise: None, or `GumbelK(k)`, `Gumbel()`, `Normal()`: added to the logits in training. In evaluation the layer is deterministic.
        ties: which of equal logits are taken where not all can be, the "first" or "random" ones.
        dim: the dimension to select along.

    Shapes:
        logits (…, n) -> (…, n), of the same dtype. With `samples=S` at the call (S, …, n).

    Raises:
        ValueError, TypeError: k out of range or no integer, logits that are not finite.

    Example:
        >>> IdentityTopK(2)(torch.tensor([0.3, 0.9, 0.1, 0.9]))
        tensor([0., 1., 0., 1.])

    Source: Sahoo, Paulus et al., "Backpropagation through combinatorial algorithms: identity with projection works", ICLR 2023.
    """

    def __init__(self, k: K, projection: str | None = "standardise", noise: Noise | None = None, *, ties: str = "first", dim: int = -1) -> None:
        super().__init__()
        TopK(k, ties)
        named(projection, centred, "")
        if noise is not None and not isinstance(noise, Noise):
            raise TypeError(f"IdentityTopK: noise must be an object such as GumbelK(k), got {noise!r}")
        if isinstance(k, Tensor):
            self.register_buffer("k", k, persistent=False)
        else:
            self.k = k
        self.projection, self.noise, self.ties, self.dim = projection, noise, ties, dim

    @uncompiled
    def forward(
        self, logits: Tensor, k: K | None = None, *, sample: bool | None = None, samples: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The k-hot vectors.

        Args:
            logits: (…, n), n along `dim`.
            k: in place of the layer's own.
            sample: whether to add noise; None: in training, if the layer has noise.
            samples: how many samples for each logit: a new first dimension.
            generator: of the noise and of random ties.
        """
        noise = self.noise if (self.training if sample is None else sample) else None
        if sample and noise is None:
            raise ValueError("sample=True needs a layer with noise, IdentityTopK(k, noise=GumbelK(k)) for one")
        dim = self.dim
        if samples is not None:
            dim = dim if dim < 0 else dim + 1
            logits = repeated(logits, samples)
        given = read(logits, self.k if k is None else k, dim)
        x = given.x if noise is None else given.x + noise.sample(given.x.detach(), generator)
        n = x.shape[1]
        if isinstance(given.k, int):
            fixed = torch.ones(x.shape[0], dtype=torch.bool, device=x.device) if given.k in (0, n) else None
        else:
            fixed = (given.k == 0) | (given.k == n)

        def find(flat: Tensor) -> Tensor:
            return top_k(flat, given.k, self.ties, generator)

        return given.shaped(solved(IdentityStep(find, named(self.projection, centred, ""), 1.0, fixed), x)[0])

    @property
    def surrogate(self) -> QuadraticSurrogate:
        """The declarative node whose derivative the backward pass is: `verify(layer.surrogate, logits)` proves it."""
        return QuadraticSurrogate(self.projection)

    def extra_repr(self) -> str:
        """For `print`."""
        return f"k={self.k}, projection={self.projection!r}, noise={type(self.noise).__name__ if self.noise else None}, dim={self.dim}"


def repeated(weights: Any, samples: Any) -> Tensor:
    """As many views of the weights, along a new first dimension."""
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ValueError(f"samples must be a positive int, got {samples!r}")
    if not isinstance(weights, Tensor):
        raise TypeError(f"a floating tensor is needed, got {type(weights).__name__}")
    return weights.unsqueeze(0).expand(samples, *weights.shape)
