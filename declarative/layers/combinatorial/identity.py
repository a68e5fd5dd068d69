"""`IdentitySolver`: a combinatorial solver whose backward pass is that of a projection and the identity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from declarative.layers.combinatorial.base import Read, SolverLayer
from declarative.layers.combinatorial.noise import Normal
from declarative.layers.combinatorial.solvers import Combinatorial
from declarative.layers.formula import Formula, solved
from declarative.layers.projection import Projection, named
from declarative.layers.topk.reading import check_finite, for_batch
from declarative.transforms import uncompiled


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
        return torch.where(for_batch(self.fixed, product.shape[0]).unsqueeze(1), 0.0, product)

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
        worse, frame = self._worse(given, target), given.frame

        def find(flat: Tensor, *worse: Tensor) -> Tensor:
            check_finite(flat, "weights")
            z = projection.apply(flat)
            for change in worse:
                check_finite(change, "target")
                z = frame.solver.admissible(z - self.sign * change)
            if self.training and self.noise:
                z = frame.solver.admissible(z + Normal(self.noise).sample(z, generator))
            return self._solve(frame, z)

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

    def extra_repr(self) -> str:
        """For `print`."""
        return f"{super().extra_repr()}, projection={self.projection!r}, margin={self.margin:g}, noise={self.noise:g}"
