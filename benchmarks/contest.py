"""Two sides of a row: their results judged against a reference, their memory, their times in alternation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import Point, Row, Target
from benchmarks.timing import Effort, Prepare, Side, Spread, compare, measure, peak_bytes

Judge = Callable[[Any], float]
"""The error of a result."""


def difference(result: Tensor, reference: Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    return float((result - reference).abs().max() / reference.abs().max())


def gradient_error(exact: Tensor | Sequence[Tensor]) -> Judge:
    """The judge of gradients, given exact ones: the largest difference relative to the largest entry, of the samples that the reference has."""
    references = [exact] if isinstance(exact, Tensor) else list(exact)

    def judge(result: Any) -> float:
        results = [result] if isinstance(result, Tensor) else list(result)
        return max(difference(r.detach()[: len(e)].to(e), e) for r, e in zip(results, references, strict=True))

    return judge


def backward_of(layer: Callable[..., Tensor], x: Tensor, v: Tensor, *rest: Tensor) -> Prepare:
    """The backward pass alone: v pulled back to x through layer(x, *rest)."""

    def prepared() -> Callable[[], Tensor]:
        y = layer(x, *rest)
        return lambda: torch.autograd.grad(y, x, v)[0]

    return prepared


def contest(
    suite: str, what: str, ours: Prepare, against: str, peer: Prepare | Side, effort: Effort, target: Target | None = None, *,
    judge: Judge | None = None, errors: str = "", weigh: str = "both", peer_error: float | None = None,
    point: Point | None = None, note: str = "", cause: str = "",
) -> Row:  # fmt: skip
    """The row of a timed comparison.

    Args:
        judge, errors: the error of a result, and what it is an error of. Of a peer in another process, `peer_error` is given.
        weigh: whose tensors are counted: "both", "ours" where a peer's memory is not torch's, "none" where counting takes too long.
    """
    error = None if judge is None else judge(ours()())
    if judge is not None and callable(peer):
        peer_error = judge(peer()())
    memory = None if weigh == "none" else _peak(ours)
    peer_memory = _peak(peer) if weigh == "both" and callable(peer) else getattr(peer, "memory", lambda: None)()
    times = compare(ours, peer, effort)
    return Row(
        suite, what, "ms", times.ours.median, against, times.peer.median, times.ratio, target, error, peer_error, errors, memory, peer_memory,
        point, note, cause,
    )  # fmt: skip


def alone(
    suite: str, what: str, ours: Prepare, effort: Effort, target: Target | None = None, *, against: str = "",
    judge: Judge | None = None, errors: str = "", weigh: bool = True, point: Point | None = None, note: str = "",
) -> Row:  # fmt: skip
    """The row of our side, where there is no peer, or where it is missing."""
    error = None if judge is None else judge(ours()())
    memory = _peak(ours) if weigh else None
    return Row(suite, what, "ms", measure(ours, effort).median, against, None, None, target, error, None, errors, memory, None, point, note)


def figure_row(suite: str, what: str, unit: str, ours: float, against: str = "", peer: float | None = None, target: Target | None = None, **more: Any) -> Row:
    """The row of two numbers that were not timed: how many times as much the peer's is."""
    ratio = None if peer is None or not ours else Spread(peer / ours, peer / ours, peer / ours)
    return Row(suite, what, unit, ours, against, peer, ratio, target, **more)


def _peak(prepare: Prepare) -> int:
    return peak_bytes(prepare(), slack=0.01)
