"""Combinatorial problems over ⟨ω, y⟩, and what adding a constant to ω does to each."""

from __future__ import annotations

import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import dijkstra, minimum_spanning_tree
from torch import Tensor

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
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise ValueError(f"workers must be a positive int, got {workers!r}")
        self.workers = workers

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


class ShortestPath(OnCPU):
    """y (h, w) marks the cells of the cheapest path from the top left to the bottom right corner of a grid with costs ω ≥ 0 of its cells.

    Only in the sense "min". Paths differ in length, so that a constant added to ω changes them, and costs turned negative have no cheapest path.
    Where noise, a margin or an interpolation step takes costs below zero, they count as zero.

    Args:
        diagonal: whether steps may be diagonal.
        workers: how many threads share a batch.

    Example:
        >>> IdentitySolver(ShortestPath(), sense="min")(torch.tensor([[1.0, 9.0], [1.0, 1.0]]))
        tensor([[1., 0.],
                [0., 1.]])
    """

    event_dims: int = 2
    why_not_centre: str = "paths differ in length, so that a constant added to the costs changes the cheapest, and centred costs turn negative"

    def __init__(self, diagonal: bool = True, workers: int = 1) -> None:
        super().__init__(workers)
        self.diagonal = bool(diagonal)

    def check(self, shape: tuple[int, ...], sense: str) -> None:  # noqa: ARG002
        """Only the cheapest path can be found."""
        if sense != "min":
            raise ValueError("ShortestPath has the sense 'min'; the longest path cannot be found in reasonable time")

    def admissible(self, weights: Tensor) -> Tensor:
        """Not negative."""
        return weights.clamp_min(0.0)

    def solve_one(self, weights: Any, sense: str) -> Any:  # noqa: ARG002
        if weights.min() < 0:
            raise ValueError(f"ShortestPath needs costs that are not negative, got {weights.min():g} among them; pass them through softplus or abs")
        h, w = weights.shape
        cell = np.arange(h * w).reshape(h, w)
        steps = [(0, 1), (1, 0), (0, -1), (-1, 0)] + ([(1, 1), (1, -1), (-1, 1), (-1, -1)] if self.diagonal else [])
        sources, targets = [], []
        for down, right in steps:
            rows, columns = slice(max(0, -down), h - max(0, down)), slice(max(0, -right), w - max(0, right))
            sources.append(cell[rows, columns].ravel())
            targets.append(cell[max(0, down) : h + min(0, down), max(0, right) : w + min(0, right)].ravel())
        start, end = np.concatenate(sources), np.concatenate(targets)
        # A stored zero would be no edge.
        # Relative to the largest no sum can overflow.
        costs = np.maximum(weights.ravel()[end] / (weights.max() or 1.0), np.finfo(float).tiny)
        graph = csr_array((costs, (start, end)), shape=(h * w, h * w))
        before = dijkstra(graph, indices=0, return_predecessors=True)[1]
        y, at = np.zeros(h * w), h * w - 1
        while at >= 0:
            y[at], at = 1.0, before[at]
        return y.reshape(h, w)


class SpanningTree(OnCPU):
    """y marks the edges of the heaviest (or, in the sense "min", the lightest) spanning tree of a graph; ω has one weight for each edge.

    Args:
        edges: pairs of nodes 0 … n − 1, each pair once; they must connect all nodes.
        workers: how many threads share a batch.

    Example:
        >>> IdentitySolver(SpanningTree([(0, 1), (1, 2), (0, 2)]), sense="min")(torch.tensor([1.0, 3.0, 2.0]))
        tensor([1., 0., 1.])
    """

    def __init__(self, edges: Sequence[tuple[int, int]] | Tensor, workers: int = 1) -> None:
        super().__init__(workers)
        try:
            pairs = np.asarray(edges.tolist() if isinstance(edges, Tensor) else edges)
        except ValueError as error:  # rows of different length
            raise ValueError("SpanningTree: edges must be pairs of node numbers") from error
        if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.issubdtype(pairs.dtype, np.integer) or pairs.min(initial=0) < 0:
            raise ValueError(f"SpanningTree: edges must be pairs of node numbers, 0 or more, got an array of shape {pairs.shape} of {pairs.dtype}")
        ordered = np.sort(pairs, axis=1)
        if (ordered[:, 0] == ordered[:, 1]).any() or len(np.unique(ordered, axis=0)) != len(ordered):
            raise ValueError("SpanningTree: edges must join two different nodes, each pair once")
        self.edges, self.nodes = ordered, int(ordered.max(initial=0)) + 1
        self._place = {(int(i), int(j)): k for k, (i, j) in enumerate(ordered)}
        if int(self.solve_one(np.ones(len(ordered)), "min").sum()) != self.nodes - 1:
            raise ValueError(f"SpanningTree: the edges do not connect all nodes 0 … {self.nodes - 1}, so that there is no spanning tree")

    def check(self, shape: tuple[int, ...], sense: str) -> None:  # noqa: ARG002
        """One weight for each edge."""
        if shape != (len(self.edges),):
            raise ValueError(f"SpanningTree: weights must be (…, {len(self.edges)}), one for each edge, got instances of shape {shape}")

    def solve_one(self, weights: Any, sense: str) -> Any:
        # Only the order of the weights matters, so that their places in it do as well: 1, 2, …, none of them a stored zero, which would be no edge.
        costs = np.empty(len(weights))
        costs[np.argsort(-weights if sense == "max" else weights, kind="stable")] = np.arange(1, len(weights) + 1)
        tree = coo_array(minimum_spanning_tree(csr_array((costs, self.edges.T), shape=(self.nodes, self.nodes))))
        y = np.zeros(len(self.edges))
        y[[self._place[min(i, j), max(i, j)] for i, j in zip(*(c.tolist() for c in tree.coords), strict=True)]] = 1.0
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
        if isinstance(event_dims, bool) or not isinstance(event_dims, int) or event_dims < 1:
            raise ValueError(f"Function: event_dims must be a positive int, got {event_dims!r}")
        self.function, self.feasible = function, feasible
        self.event_dims = event_dims
        if not constant_sum:
            self.why_not_centre = "nothing says that all solutions have the same sum; pass Function(..., constant_sum=True) if they do"

    def solve_one(self, weights: Any, sense: str) -> Any:  # noqa: ARG002
        y = self.function(weights.copy())  # it may write into its argument, which may be the caller's tensor
        if self.feasible is not None and not self.feasible(y):
            raise ValueError(f"Function: the solver returned an infeasible point, one for which feasible(y) is not true: {reprlib.repr(y)}")
        return y
