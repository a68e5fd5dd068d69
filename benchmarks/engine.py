"""The generic engine: a backward pass against a loop of gradient calls.

Timed is the backward call of a training step: the forward pass runs untimed before each, and its graph is there for the
first backward pass, as it is in training. The row marked "again" repeats a backward pass over a retained graph, which has to
build the statement's graph anew.

The peer with the target is the ancestor's method: every block, B and C included, row by row. "The loop for H and A only" is
the best that such a loop can be: m + p calls and one pull-back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.peers import loop
from benchmarks.report import Row, Target, timed
from benchmarks.statements import STATEMENTS, Prepared, Robust, prepare
from benchmarks.timing import FULL, QUICK, Effort, compare, measure

SUITE = "engine"
# (m, batch) and by how much the loop is to be beaten there.
SIZES = ((10, 16, 2.5), (100, 1, 10.0), (100, 128, 1.3), (200, 1, 30.0))
LIMIT_MS = 0.8  # a whole backward call at m = 10


def rows(quick: bool) -> Iterator[Row]:
    """The suite."""
    effort = QUICK if quick else FULL
    for m, batch, ratio in ((4, 3, 2.5), (5, 1, 10.0)) if quick else SIZES:
        for kind in STATEMENTS:
            yield from backward_rows(kind, m, batch, ratio, effort)
    for m, batch in ((4, 3),) if quick else ((10, 16), (100, 1)):
        yield from information_rows(m, batch, effort)


def difference(result: Tensor, reference: Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    return float((result - reference).abs().max() / reference.abs().max())


def backward_rows(kind: type[Prepared], m: int, batch: int, ratio: float, effort: Effort) -> Iterator[Row]:
    """One statement at one size against the loop."""
    node, x = prepare(kind, m, batch)
    v = torch.randn(batch, m, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = node.solution(x.detach())
    if not isinstance(found.y, Tensor) or found.equality_multipliers is None:
        raise RuntimeError("a solution has y and multipliers")
    solved = loop.Solved(x, found.y, found.equality_multipliers)

    def ours() -> Callable[[], Tensor]:
        y = node(x)
        return lambda: torch.autograd.grad(y, x, v)[0]

    def peer(*, form_blocks: bool = False) -> Callable[[], Tensor]:
        return lambda: loop.backward(node, solved, v, form_blocks=form_blocks)

    what = f"backward, {kind.label}, m={m}, b={batch}"
    result = ours()()
    comparison = compare(ours, lambda: peer(form_blocks=True), effort)
    yield timed(SUITE, what, comparison, Target(ratio=ratio), difference(result, peer(form_blocks=True)()))
    if m <= 10:
        yield Row(SUITE, f"{what}: whole call", "ms", comparison.ours.median, target=Target(ours=LIMIT_MS))
    stronger = compare(ours, peer, effort)
    yield timed(SUITE, f"{what}, the loop for H and A only", stronger, agreement=difference(result, peer()()))


def information_rows(m: int, batch: int, effort: Effort) -> Iterator[Row]:
    """Other derivatives of one statement."""
    node, x = prepare(Robust, m, batch)
    v = torch.ones(batch, m, dtype=torch.float64)
    size = f"{Robust.label}, m={m}, b={batch}"

    def again() -> Callable[[], object]:
        y = node(x)
        torch.autograd.grad(y, x, v, retain_graph=True)
        return lambda: torch.autograd.grad(y, x, v, retain_graph=True)

    def recorded() -> Callable[[], object]:
        y = node(x)
        return lambda: torch.autograd.grad(y, x, v, create_graph=True)

    def twice() -> Callable[[], object]:
        (gradient,) = torch.autograd.grad(node(x), x, v, create_graph=True)
        return lambda: torch.autograd.grad(gradient, x, v)

    cases: tuple[tuple[str, Callable[[], Callable[[], object]]], ...] = (
        ("forward with the solution given", lambda: lambda: node(x)),
        ("backward, again over a retained graph", again),
        ("backward, recorded (create_graph)", recorded),
        ("backward of the backward", twice),
        ("torch.func.jvp, forward included", lambda: lambda: torch.func.jvp(node, (x.detach(),), (v,))),
        ("torch.func.jacrev, forward included", lambda: lambda: torch.func.jacrev(node)(x.detach())),
    )
    for name, case in cases:
        yield Row(SUITE, f"{name}, {size}", "ms", measure(case, effort).median)
