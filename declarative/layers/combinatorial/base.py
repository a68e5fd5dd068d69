"""What all layers around a combinatorial solver share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from declarative.layers.arguments import positive_int
from declarative.layers.combinatorial.solvers import Combinatorial, Function
from declarative.layers.projection import sign_of
from declarative.layers.topk.reading import check_finite
from declarative.node import HALF


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

    @property
    def frame(self) -> Read:
        """The same without the weights, for what outlives the call: a graph would keep them."""
        return replace(self, flat=self.flat.new_empty(0))

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


def repeated(weights: Any, samples: Any) -> Tensor:
    """As many views of the weights, along a new first dimension."""
    positive_int("samples", samples)
    if not isinstance(weights, Tensor):
        raise TypeError(f"a floating tensor is needed, got {type(weights).__name__}")
    return weights.unsqueeze(0).expand(samples, *weights.shape)
