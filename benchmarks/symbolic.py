"""The symbolic engine: derived layers against the handwritten ones at the same solution, and dense blocks against torch.func's.

Timed is the backward call. A derived layer is stated by its objective and constraints alone; the handwritten layer's solution is handed to it,
so that both differentiate at the same point.
"""

# sympy annotates most results as Basic.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import sympy
import torch
from torch import Tensor, nn

from benchmarks import machine
from benchmarks.contest import Judge, contest, difference, figure_row
from benchmarks.pooling import SIZES, clouds
from benchmarks.report import Point, Row, Target
from benchmarks.timing import FULL, QUICK, Effort
from benchmarks.topk import logits
from declarative import SymbolicNode
from declarative.engines.autodiff import autodiff, linearise
from declarative.layers import EntropicTopK, OptimalTransport, PseudoHuber, RobustPooling, Welsch
from declarative.node import prepare
from declarative.problem import Layout

SUITE = "symbolic"
SLOWER = 2.0  # than the handwritten layer, at most
AGREEMENT = 1e-12
SECONDS = 5.0
BETWEEN = (50, 200)  # sizes for the plot, where nothing was asked for
FLOOR_TEXT = """The floor of a derived layer is the handwritten one at the same solution: the same flops, in an autograd Function of its own. The floor of
dense blocks is one matrix product for each term of H."""

m, n, N, C = sympy.symbols("m n N C", integer=True, positive=True)
i, j, k, d = sympy.Idx("i", m), sympy.Idx("j", n), sympy.Idx("k", N), sympy.Idx("d", C)
P, M, r, c, u, x, y, Q, R, b = map(sympy.IndexedBase, ["P", "M", "r", "c", "u", "x", "y", "Q", "R", "b"])
gamma, alpha, count = sympy.symbols("gamma alpha k")


def rows(quick: bool) -> Iterator[Row]:
    """The suite."""
    effort = QUICK if quick else FULL
    yield from derivation_rows()
    for size in (6,) if quick else (50, 100, 200, 500):
        for strength in (10.0,) if size in BETWEEN else (1.0, 10.0, 50.0):
            yield transport_row(size, strength, effort)
    for shape in ((2, 3, 20),) if quick else SIZES:
        for name in ("PseudoHuber", "Welsch"):
            yield pooling_row(name, shape, effort)
    for shape in ((2, 8),) if quick else ((1, 10), (256, 100), (256, 1000)):
        yield top_k_row(shape, effort)
    for size in (4,) if quick else (10, 30, 100):
        for batch in (1, 16):
            yield from dense_rows(size, batch, effort)


def transport(strength: float, **options: Any) -> SymbolicNode:
    """Entropic transport, in six lines."""
    cost = M[i, j] * P[i, j] + P[i, j] * sympy.log(P[i, j] / (r[i] * c[j])) / gamma
    return SymbolicNode(
        objective=sympy.Sum(cost, (i, 0, m - 1), (j, 0, n - 1)),
        variable=P[i, j], inputs=(M[i, j], r[i], c[j]), constants={gamma: strength},
        equality=[sympy.Sum(P[i, j], (j, 0, n - 1)) - r[i], sympy.Sum(P[i, j], (i, 0, m - 1)) - c[j]], **options,
    )  # fmt: skip


def pooling(name: str, **options: Any) -> SymbolicNode:
    """Robust pooling with α = 1."""
    square = sympy.Sum((u[d] - x[d, k]) ** 2, (d, 0, C - 1))
    penalty = {"PseudoHuber": alpha**2 * (sympy.sqrt(1 + square / alpha**2) - 1), "Welsch": 1 - sympy.exp(-square / (2 * alpha**2))}[name]
    return SymbolicNode(objective=sympy.Sum(penalty, (k, 0, N - 1)), variable=u[d], inputs=(x[d, k],), constants={alpha: 1.0}, **options)


def top_k(number: int, **options: Any) -> SymbolicNode:
    """Entropic top-k at temperature 1."""
    entropy = y[j] * sympy.log(y[j]) + (1 - y[j]) * sympy.log(1 - y[j])
    return SymbolicNode(
        objective=sympy.Sum(entropy - x[j] * y[j], (j, 0, n - 1)),
        variable=y[j], inputs=(x[j],), constants={count: number}, equality=[sympy.Sum(y[j], (j, 0, n - 1)) - count], **options,
    )  # fmt: skip


def derivation_rows() -> Iterator[Row]:
    """From the statement to every block's code and the derivation as text."""
    for what, make in (("transport", lambda: transport(1.0)), ("pooling, pseudo-Huber", lambda: pooling("PseudoHuber")), ("top-k", lambda: top_k(3))):
        start = time.perf_counter()
        node = make()
        text = f"{node.to_source()}{node.derivation()}"
        seconds = time.perf_counter() - start
        found = node.form.complement
        note = f"H is {node.form.structure.words}{'' if found is None else f', S {found.kind}'}; {len(text.splitlines())} lines"
        yield figure_row(SUITE, f"derivation of {what}, its code and its text", "s", seconds, target=Target(ours=SECONDS), note=note)


def _backward(node: Callable[..., Tensor], moving: Tensor, *rest: Tensor) -> Callable[[], Callable[[], Tensor]]:
    # One forward pass for all: it takes a hundred times as long, and is not what is compared.
    leaf = moving.clone().requires_grad_()
    found = node(leaf, *rest)
    v = machine.here(torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=found.dtype))
    return lambda: lambda: torch.autograd.grad(found, leaf, v, retain_graph=True)[0]


def _against(
    what: str, derived: SymbolicNode, layer: nn.Module, effort: Effort, *inputs: Tensor, point: Point | None = None, asked: bool = True
) -> Row:  # fmt: skip
    mine, theirs = _backward(derived, *inputs), _backward(layer, *inputs)
    handwritten = theirs()()
    target = Target(ratio=1 / SLOWER, error=AGREEMENT) if asked else None
    cause = "the way through the generic node: some small operations and calls that a handwritten Function omits"
    judge: Judge = lambda result: difference(result, handwritten)  # noqa: E731 - the handwritten layer is the reference
    return contest(SUITE, f"backward, {what}", mine, "handwritten layer", theirs, effort, target, judge=judge, errors="gradient", point=point, cause=cause)


def transport_row(size: int, strength: float, effort: Effort) -> Row:
    """One transport problem."""
    cost = machine.here(torch.rand(1, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    even = cost.new_full((1, size), 1 / size)
    layer = OptimalTransport(gamma=strength)
    point = Point("Entropic transport, γ = 10: derived and handwritten backward pass", "n", size, "ours, derived") if strength == 10 else None
    what = f"transport, n={size}, γ={strength:g}"
    return _against(what, transport(strength, solve=layer), layer, effort, cost, even, even, point=point, asked=size not in BETWEEN)


def pooling_row(name: str, shape: tuple[int, int, int], effort: Effort) -> Row:
    """One batch of clouds."""
    layer = RobustPooling({"PseudoHuber": PseudoHuber(), "Welsch": Welsch()}[name])
    return _against(f"pooling, {name}, {' x '.join(map(str, shape))}", pooling(name, solve=layer), layer, effort, clouds(shape, torch.float64))


def top_k_row(shape: tuple[int, int], effort: Effort) -> Row:
    """One batch of logits."""
    layer = EntropicTopK(3)
    return _against(f"entropic top-k, {shape[0]} x {shape[1]}", top_k(3, solve=layer), layer, effort, logits(shape, torch.float64))


def dense() -> SymbolicNode:
    """½ yᵀQy + Σ log(1 + exp(Ry)) − bᵀy on a sphere."""
    l = sympy.Idx("l", n)  # noqa: E741
    curved = sympy.Sum(sympy.log(1 + sympy.exp(sympy.Sum(R[i, j] * y[j], (j, 0, n - 1)))), (i, 0, m - 1))
    form = sympy.Sum(Q[j, l] * y[j] * y[l], (j, 0, n - 1), (l, 0, n - 1)) / 2 - sympy.Sum(b[j] * y[j], (j, 0, n - 1))
    return SymbolicNode(
        objective=curved + form, variable=y[j], inputs=(Q[j, l], R[i, j], b[j]), equality=[sympy.Sum(y[j] ** 2, (j, 0, n - 1)) - 1]
    )  # fmt: skip


def dense_rows(size: int, batch: int, effort: Effort) -> Iterator[Row]:
    """∇L, H and A of a dense random problem: in closed form, by torch.func, and by our own autodiff engine."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return machine.here(torch.randn(shape, generator=generator, dtype=torch.float64))

    node = dense()
    inputs = (normal(batch, size, size), normal(batch, 2 * size, size), normal(batch, size))
    point, nu = normal(batch, size), normal(batch, 1)
    problem = prepare(node, inputs, 0)[0].with_layout(Layout(((size,),), False))

    def lagrangian(Q: Tensor, R: Tensor, b: Tensor, y: Tensor, nu: Tensor) -> Tensor:
        return 0.5 * y @ Q @ y + torch.logaddexp(R @ y, y.new_zeros(())).sum() - b @ y + nu[0] * (y @ y - 1)

    def constraint(y: Tensor) -> Tensor:
        return (y @ y - 1).reshape(1)

    def closed() -> tuple[Tensor, Tensor, Tensor]:
        at = linearise(problem, point, nu, point.new_zeros(batch, 0))
        return at.gradient, at.hessian(), at.jacobian()

    def functional() -> tuple[Tensor, Tensor, Tensor]:
        gradient = torch.func.vmap(torch.func.grad(lagrangian, 3))(*inputs, point, nu)
        hessian: Any = torch.func.vmap(torch.func.hessian(lagrangian, 3))(*inputs, point, nu)
        jacobian: Any = torch.func.vmap(torch.func.jacrev(constraint))(point)
        return gradient, hessian, jacobian

    def generic() -> tuple[Tensor, Tensor, Tensor]:
        at = autodiff(problem, point, nu, point.new_zeros(batch, 0))
        return at.gradient, at.hessian(), at.jacobian()

    with torch.no_grad():
        reference = functional()
        judge: Judge = lambda found: max(difference(a, b) for a, b in zip(found, reference, strict=True))  # noqa: E731
        for name, peer, target in (("torch.func", functional, Target(ratio=1.0, error=1e-9)), ("our autodiff engine", generic, Target(ratio=1.0))):
            curve = Point("∇L, H and A of a dense problem, batch of one", "m", size, "ours, closed form") if batch == 1 else None
            what = f"∇L, H and A of a dense problem in closed form, m={size}, b={batch}"
            yield contest(SUITE, what, lambda: closed, name, lambda peer=peer: peer, effort, target, judge=judge, errors="blocks", point=curve)
