"""The generic engine: a backward pass against a loop of gradient calls, against the implicit differentiation of others, and against its own arithmetic.

Timed is the backward call of a training step: the forward pass runs untimed before each, and its graph is there for the
first backward pass, as it is in training. The row marked "again" repeats a backward pass over a retained graph, which has to
build the statement's graph anew. Errors are those of the gradient.

The peer with the target is the ancestor's method: every block, B and C included, row by row. "The loop for H and A only" is
the best that such a loop can be: m + p calls and one pull-back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.bare import dense_backward
from benchmarks.contest import Judge, alone, backward_of, contest, gradient_error
from benchmarks.exact import gradient
from benchmarks.peers import jaxopt, loop, optimistix, torchopt
from benchmarks.report import FLOOR, Point, Row, Target
from benchmarks.statements import STATEMENTS, LogSumExp, Prepared, Quartic, Robust, prepare
from benchmarks.timing import FULL, QUICK, Effort, Prepare

SUITE = "engine"
# (m, batch) and by how much the loop is to be beaten there.
SIZES = ((10, 16, 2.5), (100, 1, 10.0), (100, 128, 1.3), (200, 1, 30.0))
SCALES = (10, 30, 100, 300)
LIMIT_MS = 0.6  # a whole backward call at m = 10
PEERS = {"jaxopt": jaxopt.ways, "optimistix": optimistix.ways, "torchopt": torchopt.ways}
SLOW = Effort(blocks=5, seconds=0.0, runs=2, warm_up=1)
CALLS = "single calls into torch of 5–30 µs each: 1 for the graph, 1 for H, 1–3 to factorise and solve, 1 to pull back; the rest checks and orders"
FLOOR_TEXT = """A dense backward pass needs m products with H (here in one batched sweep over a graph that the forward pass left), p with A, one
factorisation of (m + p)³/3 to 2(m + p)³/3 flops a sample, and one product with Bᵀ and Cᵀ. The rows against the bare arithmetic do exactly that in
a few lines of torch (`benchmarks/bare.py`), from a graph that is there. At m ≤ 100 both sides are calls, not flops: a call of `torch.autograd.grad`
costs 20–60 µs whatever it holds. The compiled jax peers run the same formulas for one known statement as one XLA program, without a look at whether the
solve went well, and need no Python in between: at these sizes they are several times as fast, and no eager torch comes near them."""


def rows(quick: bool) -> Iterator[Row]:
    """The suite."""
    effort = QUICK if quick else FULL
    for m, batch, ratio in ((4, 3, 2.5), (5, 1, 10.0)) if quick else SIZES:
        for kind in STATEMENTS:
            yield from backward_rows(Case.of(kind, m, batch), ratio, effort if m * batch <= 1000 else min(effort, SLOW, key=lambda e: e.blocks))
    for m, batch in ((4, 3),) if quick else ((10, 16), (100, 1), (100, 128)):
        for kind in (Robust, LogSumExp, Quartic):
            yield from implicit_rows(Case.of(kind, m, batch), min(effort, SLOW, key=lambda e: e.blocks))
    for m in (4, 8) if quick else SCALES:
        yield scale_row(Case.of(LogSumExp, m, 1), QUICK if quick else FULL if m <= 100 else SLOW)
    for m, batch in ((4, 3),) if quick else ((10, 16), (100, 1)):
        yield from information_rows(m, batch, effort)


@dataclass(frozen=True)
class Case:
    """A statement with its solution at inputs, a cotangent, and the judge of gradients."""

    kind: type[Prepared]
    node: Prepared
    solved: loop.Solved
    v: Tensor
    judge: Judge

    @classmethod
    def of(cls, kind: type[Prepared], m: int, batch: int) -> Case:
        """x (batch, m)."""
        node, x = prepare(kind, m, batch)
        v = machine.here(torch.randn(batch, m, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
        found = node.solution(x.detach())
        if not isinstance(found.y, Tensor) or found.equality_multipliers is None:
            raise RuntimeError("a solution has y and multipliers")
        exact = gradient(node, x, found.y, found.equality_multipliers, v)
        return cls(kind, node, loop.Solved(x, found.y, found.equality_multipliers), v, gradient_error(exact))

    @property
    def size(self) -> str:
        return f"{self.kind.label}, m={self.v.shape[1]}, b={self.v.shape[0]}"

    def ours(self) -> Callable[[], Tensor]:
        """The backward call, after a forward pass."""
        return backward_of(self.node, self.solved.x, self.v)()

    def by_loop(self, form_blocks: bool) -> Prepare:
        """The ancestor's, or the better one that forms H and A only."""
        return lambda: partial(loop.backward, self.node, self.solved, self.v, form_blocks=form_blocks)

    def bare(self) -> Callable[[], Tensor]:
        """The arithmetic alone."""
        return dense_backward(self.node, self.solved, self.v)


def backward_rows(case: Case, ratio: float, effort: Effort) -> Iterator[Row]:
    """One statement at one size against the loop."""
    what, judged = f"backward, {case.size}", {"judge": case.judge, "errors": "gradient"}
    row = contest(SUITE, what, case.ours, "ancestor's loop", case.by_loop(True), effort, Target(ratio=ratio), **judged, cause=CALLS)
    yield row
    if case.v.shape[1] <= 10:
        yield Row(SUITE, f"{what}: whole call", "ms", row.ours, target=Target(ours=LIMIT_MS), cause=CALLS)
    yield contest(SUITE, what, case.ours, "loop for H and A only", case.by_loop(False), effort, **judged)
    yield contest(SUITE, what, case.ours, FLOOR, case.bare, effort, **judged)


def implicit_rows(case: Case, effort: Effort) -> Iterator[Row]:
    """Others' implicit differentiation at the same solution."""
    what = f"backward, {case.size}"
    for name, ways in PEERS.items():
        if name != "torchopt" and not machine.on_cpu():
            continue
        try:
            found = ways(case.kind.__name__, case.solved.x.detach(), case.solved.y.detach(), case.v)
        except ImportError as error:
            yield alone(SUITE, what, case.ours, effort, against=name, note=f"{name} skipped: {error}")
            continue
        for way in found:
            error = case.judge(way.result())
            yield contest(SUITE, what, case.ours, way.name, way.side, effort, judge=case.judge, errors="gradient", peer_error=error, note=way.note)


def scale_row(case: Case, effort: Effort) -> Row:
    """For the plot."""
    point = Point("Dense backward pass, log-sum-exp, batch of one", "m", case.v.shape[1])
    what = f"backward against size, {case.size}"
    return contest(SUITE, what, case.ours, "ancestor's loop", case.by_loop(True), effort, judge=case.judge, errors="gradient", point=point)


def information_rows(m: int, batch: int, effort: Effort) -> Iterator[Row]:
    """Other derivatives of one statement."""
    node, x = prepare(Robust, m, batch)
    v = torch.ones_like(x)
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

    cases: tuple[tuple[str, Prepare], ...] = (
        ("forward with the solution given", lambda: lambda: node(x)),
        ("backward, again over a retained graph", again),
        ("backward, recorded (create_graph)", recorded),
        ("backward of the backward", twice),
        ("torch.func.jvp, forward included", lambda: lambda: torch.func.jvp(node, (x.detach(),), (v,))),
        ("torch.func.jacrev, forward included", lambda: lambda: torch.func.jacrev(node)(x.detach())),
    )
    for name, case in cases:
        yield alone(SUITE, f"{name}, {size}", case, effort)
