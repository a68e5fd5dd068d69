"""Combinatorial problems over ⟨ω, y⟩, and what adding a constant to ω does to each."""

from __future__ import annotations

import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from declarative.layers.arguments import positive_int
from declarative.layers.projection import centred


class Combinatorial(ABC):
    """A problem max (or min) ⟨ω, y⟩ over a finite set of y, each of ω's shape.

    Its solution does not change when ω is multiplied by a positive number. Where all y have the same sum (or the same sums of rows), it does not change
    either when a constant is added, and ω may be centred.
    """

    event_dims: int = 1
    """How many of the last dimensions of ω are one instance."""

    why_not_centre: str = ""
    """Why centring changes the solution; empty if it does not."""

    def centre(self, weights: Tensor, shape: tuple[int, ...]) -> Tensor:  # noqa: ARG002
        """(b, n) without what does not matter to the solution; instances have this shape."""
        return centred(weights)

    def check(self, shape: tuple[int, ...], sense: str) -> None:  # noqa: B027 (most have nothing to check)
        """A ValueError for instances of a shape, or a sense, that the problem cannot have."""

    def spread(self, weights: Tensor, lead: tuple[int, ...]) -> Combinatorial:  # noqa: ARG002
        """The same for a batch (b, n) with these leading dimensions: where options differ between samples, one for each."""
        return self

    def admissible(self, weights: Tensor) -> Tensor:
        """Weights to which noise, a margin or a step has been added, brought back to where the problem can be solved."""
        return weights

    @abstractmethod
    def solve(self, weights: Tensor, sense: str) -> Tensor:
        """y of finite ω (b, *event), without a graph."""


class OnCPU(Combinatorial):
    """One that is solved one instance at a time, by numpy.

    Args:
        workers: how many threads share a batch.
    """

    def __init__(self, workers: int = 1) -> None:
        self.workers = positive_int("workers", workers)

    @abstractmethod
    def solve_one(self, weights: Any, sense: str) -> Any:
        """y, as an array, of ω (*event), a float64 array."""

    def solve(self, weights: Tensor, sense: str) -> Tensor:
        instances = weights.detach().double().cpu().numpy()
        result = torch.empty(weights.shape, dtype=weights.dtype)

        def one(i: int) -> None:
            # Read at once: the next call may write into the same array.
            result[i] = _as_tensor(type(self).__name__, self.solve_one(instances[i], sense), tuple(weights.shape[1:]))

        if self.workers == 1 or len(instances) < 2:
            for i in range(len(instances)):
                one(i)
        else:
            with ThreadPoolExecutor(self.workers) as pool:
                list(pool.map(one, range(len(instances))))
        return result.to(weights.device)


def _as_tensor(name: str, y: Any, shape: tuple[int, ...]) -> Tensor:
    """A solver's result, checked."""
    try:
        if y is None or np.iscomplexobj(y):
            raise TypeError("no real numbers")
        tensor = torch.as_tensor(np.asarray(y, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: the solver must return an array of real numbers of shape {shape}, got {type(y).__name__}") from error
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: the solver must return an array of the weights' shape {shape}, got {tuple(tensor.shape)}")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name}: the solver returned NaN or inf")
    return tensor


class Ranking(Combinatorial):
    """y = ranks 1 … n: in the sense "max" the largest weight has rank n, in the sense "min" rank 1. Equal weights in order of place.

    Example:
        >>> IdentitySolver(Ranking(), sense="min")(torch.tensor([0.3, 0.9, 0.1]))
        tensor([2., 1., 3.])
    """

    def solve(self, weights: Tensor, sense: str) -> Tensor:
        order = weights.argsort(dim=1, descending=sense == "min", stable=True)
        ranks = torch.arange(1, weights.shape[1] + 1, dtype=weights.dtype, device=weights.device)
        return torch.empty_like(weights).scatter_(1, order, ranks.expand(weights.shape))


class Assignment(OnCPU):
    """y (n, m) matches rows and columns one to one (`scipy.optimize.linear_sum_assignment`); with n ≠ m the smaller side is matched wholly.

    A constant for each row, and one for each column, does not matter (on the larger side, where some stay unmatched, it does).

    Example:
        >>> IdentitySolver(Assignment(), projection="centre")(torch.tensor([[1.0, 2.0], [0.0, 3.0]]))
        tensor([[1., 0.],
                [0., 1.]])
    """

    event_dims: int = 2

    def centre(self, weights: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Without row means and column means."""
        matrices = weights.reshape(-1, *shape)
        if shape[0] <= shape[1]:
            matrices = matrices - matrices.mean(2, keepdim=True)
        if shape[1] <= shape[0]:
            matrices = matrices - matrices.mean(1, keepdim=True)
        return matrices.reshape(weights.shape)

    def solve_one(self, weights: Any, sense: str) -> Any:
        rows, columns = linear_sum_assignment(weights, maximize=sense == "max")
        y = np.zeros_like(weights)
        y[rows, columns] = 1.0
        return y


class Function(OnCPU):
    """A solver of one's own: one instance, an array ω, to an array y of its shape.

    Args:
        function: ω -> y, with max or min ⟨ω, y⟩ as the layer's `sense` says.
        event_dims: how many of the last dimensions are one instance.
        constant_sum: whether all y have the same sum, so that a constant added to ω does not matter.
        feasible: y -> whether it is a point of the set; an infeasible one is an error.
        workers: how many threads share a batch.

    Example:
        >>> largest = Function(lambda w: w == w.max(), constant_sum=True)
        >>> IdentitySolver(largest, projection="centre")(torch.tensor([0.3, 0.9, 0.1]))
        tensor([0., 1., 0.])
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        event_dims: int = 1,
        *,
        constant_sum: bool = False,
        feasible: Callable[[Any], bool] | None = None,
        workers: int = 1,
    ) -> None:
        super().__init__(workers)
        if not callable(function):
            raise TypeError(f"Function: function must map an array to an array, got {function!r}")
        self.function, self.feasible = function, feasible
        self.event_dims = positive_int("Function: event_dims", event_dims)
        if not constant_sum:
            self.why_not_centre = "nothing says that all solutions have the same sum; pass Function(..., constant_sum=True) if they do"

    def solve_one(self, weights: Any, sense: str) -> Any:  # noqa: ARG002
        y = self.function(weights.copy())  # it may write into its argument, which may be the caller's tensor
        if self.feasible is not None and not self.feasible(y):
            raise ValueError(f"Function: the solver returned an infeasible point, one for which feasible(y) is not true: {reprlib.repr(y)}")
        return y
