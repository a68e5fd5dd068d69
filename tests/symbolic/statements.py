"""Statements that a user would write, in index notation and by hand: without constraints. Those with constraints are in constrained.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from sympy import Idx, IndexedBase, Rational, Sum, exp, log, sqrt
from torch import Tensor

from declarative import DeclarativeNode
from declarative.symbolic import SymbolicNode

F64 = torch.float64
n, m, p = sympy.symbols("n m p", integer=True, positive=True)
i, j, k, l = Idx("i", n), Idx("j", m), Idx("k", p), Idx("l", n)  # i and l run over the same  # noqa: E741
w, x, y, A, P, M, Q, T, a, b, c, r, t = map(IndexedBase, "wxyAPMQTabcrt")
lam, gamma, mu, u, z = sympy.symbols("lambda gamma mu u z", positive=True)


def total(e: Any, *indices: Idx) -> Sum:
    """Over the whole range of these indices."""
    return Sum(e, *((s, s.lower, s.upper) for s in indices))


@dataclass
class Draw:
    """Numbers for a batch."""

    batch: int
    generator: torch.Generator

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.batch, *shape, generator=self.generator, dtype=F64)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(self.batch, *shape, generator=self.generator, dtype=F64)

    def positive_definite(self, size: int) -> Tensor:
        root = self.normal(size, size)
        return root @ root.mT / size + torch.eye(size, dtype=F64)

    def simplex(self, size: int) -> Tensor:
        return self.normal(size).softmax(1)


@dataclass
class Example:
    """One statement.

    Args:
        node: builds it; takes the options of every node.
        sample: (Draw, *size) -> the inputs of a batch.
        objective, equality, inequality: one instance in plain torch; the values of the constants come last.
        kind: the structure of H.
        sizes: two.
        constants: the names of the constants that are tensors.
        complement: the kind of S.
    """

    node: Callable[..., SymbolicNode]
    sample: Callable[..., tuple[Tensor, ...]]
    objective: Callable[..., Tensor]
    kind: str
    equality: Callable[..., Tensor] | None = None
    inequality: Callable[..., Tensor] | None = None
    sizes: tuple[tuple[int, ...], ...] = ((4,), (7,))
    constants: tuple[str, ...] = ()
    complement: str | None = None

    def inputs(self, batch: int = 2, size: int = 0, seed: int = 0) -> tuple[Tensor, ...]:
        return self.sample(Draw(batch, torch.Generator().manual_seed(seed)), *self.sizes[size])


class Plain(DeclarativeNode):
    """The same statement as an ordinary node."""

    def __init__(self, example: Example, twin: SymbolicNode, **options: Any):
        super().__init__(**options)
        self.example, self.twins, self.constants = example, [twin], twin.constants  # in a list: no submodule

    def held(self):
        return [getattr(self.constants, name) for name in self.example.constants]

    def objective(self, *inputs_and_y):
        return self.example.objective(*inputs_and_y, *self.held())

    def equality_constraints(self, *inputs_and_y):
        return None if self.example.equality is None else self.example.equality(*inputs_and_y, *self.held())

    def inequality_constraints(self, *inputs_and_y):
        return None if self.example.inequality is None else self.example.inequality(*inputs_and_y, *self.held())

    def initial_guess(self, *inputs):
        return self.twins[0].initial_guess(*inputs)


EXAMPLES: dict[str, Example] = {}


def example(**parts: Any) -> Callable[[Callable[[], dict[str, Any]]], None]:
    """Registers what a function returns, the arguments of SymbolicNode, under the function's name."""

    def register(function: Callable[[], dict[str, Any]]) -> None:
        EXAMPLES[function.__name__] = Example(lambda **options: SymbolicNode(**function(), **options), **parts)

    return register


# Pooling

_points = {"sample": lambda d, n: (d.normal(n),), "kind": "scaled identity", "sizes": ((5,), (8,))}


@example(objective=lambda x, y: ((1 + (y - x) ** 2).sqrt() - 1).sum(), **_points)
def pseudo_huber():
    return {"objective": total(sqrt(1 + (u - x[i]) ** 2) - 1, i), "variable": u, "inputs": (x[i],)}


@example(objective=lambda x, y: (1 - (-((y - x) ** 2) / 18).exp()).sum(), **_points)
def welsch():
    return {"objective": total(1 - exp(-((u - x[i]) ** 2) / 18), i), "variable": u, "inputs": (x[i],)}


@example(objective=lambda x, s, y: (1 + ((y - x) / s) ** 2).log().sum(), **_points | {"sample": lambda d, n: (d.normal(n), d.uniform(3, 4))})
def cauchy():
    return {"objective": total(log(1 + ((u - x[i]) / gamma) ** 2), i), "variable": u, "inputs": (x[i], gamma)}


@example(objective=lambda x, y: torch.nn.functional.huber_loss(y.expand_as(x), x, reduction="sum", delta=0.8), **_points)
def huber():
    d, rho = sympy.Abs(u - x[i]), Rational(4, 5)
    cases = sympy.Piecewise(((u - x[i]) ** 2 / 2, d <= rho), (rho * (d - rho / 2), True))
    return {"objective": total(cases, i), "variable": u, "inputs": (x[i],)}


@example(
    sample=lambda d, n, m: (d.normal(n, m),),
    objective=lambda x, y: ((1e-2 + ((y - x) ** 2).sum(1)).sqrt()).sum(),
    kind="diagonal + low rank",
    sizes=((4, 3), (7, 2)),
)
def geometric_median():
    distance = sqrt(Rational(1, 100) + total((y[j] - x[i, j]) ** 2, j))
    return {"objective": total(distance, i), "variable": y[j], "inputs": (x[i, j],)}


# Regression


@example(
    sample=lambda d, n, m: (d.normal(n, m), d.normal(n), d.uniform(0.5, 1)),
    objective=lambda A, b, s, y: 0.5 * ((A @ y - b) ** 2).sum() + 0.5 * s * (y**2).sum(),
    kind="diagonal + low rank",
    sizes=((2, 6), (7, 3)),
)
def ridge():
    residual = total(A[i, j] * y[j], j) - b[i]
    return {"objective": total(residual**2, i) / 2 + lam / 2 * total(y[j] ** 2, j), "variable": y[j], "inputs": (A[i, j], b[i], lam)}


@example(
    sample=lambda d, n, m: (d.normal(n, m), d.normal(n).sign()),
    objective=lambda x, t, y, s: torch.nn.functional.softplus(-t * (x @ y)).sum() + 0.5 * s * (y**2).sum(),
    kind="diagonal + low rank",
    sizes=((6, 3), (9, 5)),
    constants=("lambda_",),
)
def logistic_regression():
    margin = t[i] * total(x[i, j] * w[j], j)
    return {
        "objective": total(log(1 + exp(-margin)), i) + lam / 2 * total(w[j] ** 2, j),
        "variable": w[j],
        "inputs": (x[i, j], t[i]),
        "constants": {lam: torch.nn.Parameter(torch.tensor(0.3, dtype=F64))},
    }


@example(
    sample=lambda d, n, m: (d.normal(n, m), d.normal(n)),
    objective=lambda x, t, y: 0.5 * ((x @ y[0] + y[1] - t) ** 2).sum() + 0.5 * (y[0] ** 2).sum(),
    kind="dense",
    sizes=((6, 3), (9, 5)),
)
def affine_fit():
    residual = total(x[i, j] * w[j], j) + z - t[i]
    return {"objective": total(residual**2, i) / 2 + total(w[j] ** 2, j) / 2, "variable": (w[j], z), "inputs": (x[i, j], t[i])}


@example(
    sample=lambda d, n, m: (d.normal(n, m), d.normal(n).sign()),
    objective=lambda x, t, y: ((1 - t * (x @ y)).clamp_min(0) ** 2).sum() + 0.5 * (y**2).sum(),
    kind="diagonal + low rank",
    sizes=((6, 3), (9, 5)),
)
def squared_hinge():
    hinge = sympy.Max(0, 1 - t[i] * total(x[i, j] * w[j], j))
    return {"objective": total(hinge**2, i) + total(w[j] ** 2, j) / 2, "variable": w[j], "inputs": (x[i, j], t[i])}
