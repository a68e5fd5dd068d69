"""One call of a node on its way through autograd: the problem, the options, and what its forward pass leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from declarative.problem import Problem
from declarative.solution import DerivativeReport

if TYPE_CHECKING:
    from declarative.differentiation.base import Forward
    from declarative.differentiation.implicit import Implicit


@dataclass
class Record:
    """What a forward pass leaves for its backward pass, besides tensors."""

    report: DerivativeReport
    layout: Any = None
    any_failed: bool = False
    all_failed: bool = False
    workspace: Any = None
    weakly_active: list[int] = field(default_factory=list)
    most_active: int = 0
    linearisation: Any = None


@dataclass(frozen=True)
class Call:
    """The problem and what is to be done with it; `init` of its tensors are a warm start."""

    options: Implicit
    problem: Problem  # without tensors: those go through the Function
    solve: Forward
    init: int
    record: Record

    def split(self, tensors: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """(the problem's tensors, the warm start's)."""
        count = len(tensors) - self.init
        return tensors[:count], tensors[count:]

    def folded(self, size: int, dims: tuple[int | None, ...], tensors: tuple[Tensor, ...]) -> tuple[Call, list[Tensor]]:
        """This call with one more dimension (vmap's) folded into the batch.

        A tensor that the batch shares but vmap maps needs one copy a sample of its slice.
        """
        batch = self.problem.batch
        in_dims = (*self.problem.in_dims, *([0] * self.init))
        new_dims: list[int | None] = []
        new_tensors: list[Tensor] = []
        for tensor, dim, in_dim in zip(tensors, dims, in_dims, strict=True):
            if dim is None and in_dim is None:
                new_dims.append(None)
                new_tensors.append(tensor)
                continue
            outer = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            if in_dim is None:
                outer = outer.unsqueeze(1).expand(size, batch, *outer.shape[1:])
            new_dims.append(0)
            new_tensors.append(outer.reshape(size * batch, *outer.shape[2:]))
        problem = replace(self.problem, in_dims=tuple(new_dims[: len(self.problem.in_dims)]), batch=size * batch)
        return replace(self, problem=problem), new_tensors
