"""Problems on graphs: cheapest paths on grids, spanning trees."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import dijkstra, minimum_spanning_tree
from torch import Tensor

from declarative.layers.combinatorial.solvers import OnCPU


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
        start, end = _steps(h, w, self.diagonal)
        # Relative to the largest no sum can overflow; a stored zero would be no edge.
        costs = np.maximum(weights.ravel()[end] / (weights.max() or 1.0), np.finfo(float).tiny)
        graph = csr_array((costs, (start, end)), shape=(h * w, h * w))
        before = dijkstra(graph, indices=0, return_predecessors=True)[1]
        y, at = np.zeros(h * w), h * w - 1
        while at >= 0:
            y[at], at = 1.0, before[at]
        return y.reshape(h, w)


@lru_cache(maxsize=8)
def _steps(h: int, w: int, diagonal: bool) -> tuple[Any, Any]:
    """From which cell to which one may step, in a grid of this size: the same for every instance."""
    cell = np.arange(h * w).reshape(h, w)
    steps = [(0, 1), (1, 0), (0, -1), (-1, 0)] + ([(1, 1), (1, -1), (-1, 1), (-1, -1)] if diagonal else [])
    sources, targets = [], []
    for down, right in steps:
        rows, columns = slice(max(0, -down), h - max(0, down)), slice(max(0, -right), w - max(0, right))
        sources.append(cell[rows, columns].ravel())
        targets.append(cell[max(0, down) : h + min(0, down), max(0, right) : w + min(0, right)].ravel())
    return np.concatenate(sources), np.concatenate(targets)


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
