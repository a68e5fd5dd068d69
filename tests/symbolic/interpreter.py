"""Statements in index notation computed the slow way: entry by entry, with Python loops, in plain torch. It shares nothing with the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import sympy
import torch
from torch import Tensor

from declarative.node import prepare
from declarative.problem import Layout
from declarative.symbolic import Cases

FUNCTIONS: dict[Any, Callable[..., Tensor]] = {
    sympy.exp: torch.exp,
    sympy.log: torch.log,
    sympy.sin: torch.sin,
    sympy.cos: torch.cos,
    sympy.tanh: torch.tanh,
    sympy.atan: torch.atan,
    sympy.erf: torch.erf,
    sympy.asinh: torch.asinh,
    sympy.cosh: torch.cosh,
    sympy.loggamma: torch.lgamma,
    sympy.Abs: torch.abs,
}


def number(e: Any, env: Mapping[Any, int]) -> int:
    """An index, a limit or a size."""
    return int(sympy.sympify(e).xreplace({k: sympy.Integer(v) for k, v in env.items()}))


def evaluate(e: sympy.Basic, env: Mapping[Any, int], tensors: Mapping[sympy.Symbol, Tensor], first: Mapping[sympy.Symbol, int] | None = None) -> Tensor:  # noqa: C901
    """The value () of an expression.

    Args:
        env: the numbers that sizes and indices stand for.
        tensors: the arrays, by their labels.
        first: the first index of arrays that do not begin at 0.
    """
    first = first or {}

    def value(part: sympy.Basic, more: Mapping[Any, int] | None = None) -> Tensor:
        return evaluate(part, {**env, **(more or {})}, tensors, first)

    if isinstance(e, sympy.Sum | sympy.Product):
        found = [value(e.function, point) for point in points(e.limits, env)]
        total = torch.stack(found) if found else torch.zeros(0, dtype=torch.float64)
        return total.sum() if isinstance(e, sympy.Sum) else total.prod()
    if isinstance(e, sympy.Indexed):
        begin = first.get(e.base.label, 0)
        return tensors[e.base.label][tuple(number(k, env) - begin for k in e.indices)]
    if e in env:
        return torch.tensor(float(env[e]), dtype=torch.float64)
    if isinstance(e, sympy.Symbol):
        return tensors[e]
    if isinstance(e, sympy.KroneckerDelta):
        return torch.tensor(float(number(e.args[0] - e.args[1], env) == 0), dtype=torch.float64)
    if e.is_number:
        return torch.tensor(float(e), dtype=torch.float64)
    if isinstance(e, sympy.Add):
        return torch.stack([value(a) for a in e.args]).sum()
    if isinstance(e, sympy.Mul):
        return torch.stack([value(a) for a in e.args]).prod()
    if isinstance(e, sympy.Pow):
        base, exponent = value(e.base), e.exp
        return base ** (float(exponent) if exponent.is_number else value(exponent))
    if isinstance(e, sympy.Max):
        return torch.stack([value(a) for a in e.args]).amax()
    if isinstance(e, sympy.Piecewise | Cases):
        return next(value(branch) for branch, condition in e.args if holds(condition, value))
    return FUNCTIONS[type(e)](*(value(a) for a in e.args))


def holds(condition: Any, value: Callable[[sympy.Basic], Tensor]) -> bool:
    """Whether a branch is taken."""
    if isinstance(condition, sympy.logic.boolalg.BooleanAtom):
        return bool(condition)
    if isinstance(condition, sympy.And | sympy.Or):
        return (all if isinstance(condition, sympy.And) else any)(holds(c, value) for c in condition.args)
    names = {sympy.Lt: "lt", sympy.Le: "le", sympy.Gt: "gt", sympy.Ge: "ge", sympy.Eq: "eq", sympy.Ne: "ne"}
    left, right = (value(a) for a in condition.args)
    return bool(getattr(left, names[type(condition)])(right))


def points(limits: Sequence[Any], env: Mapping[Any, int]) -> list[dict[Any, int]]:
    """Every combination of index values."""
    ranges = [range(number(low, env), number(high, env) + 1) for _, low, high in limits]
    return [dict(zip((limit[0] for limit in limits), at, strict=True)) for at in product(*ranges)]


@dataclass
class Reference:
    """A statement at fixed sizes, as functions of the tensors of one instance.

    Args:
        objective: the expression.
        constraints: (expression, limits of its free indices), equalities first.
        labels: of the inputs, and then of the variables.
        env: the sizes.
        held: the constants.
    """

    objective: Any
    constraints: Sequence[tuple[Any, Sequence[Any]]]
    labels: Sequence[sympy.Symbol]
    env: Mapping[Any, int]
    held: Mapping[sympy.Symbol, Tensor]

    def f(self, *tensors: Tensor) -> Tensor:
        return evaluate(self.objective, self.env, {**self.held, **dict(zip(self.labels, tensors, strict=True))})

    def a(self, *tensors: Tensor) -> Tensor:
        values = {**self.held, **dict(zip(self.labels, tensors, strict=True))}
        rows = [evaluate(e, {**self.env, **at}, values) for e, free in self.constraints for at in points(free, self.env)]
        return torch.stack(rows) if rows else tensors[-1].new_zeros(0)


def packed(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([p.reshape(-1) for p in parts])


def reference_blocks(f: Any, a: Any, inputs: Sequence[Tensor], y: Sequence[Tensor], multipliers: Tensor) -> dict[str, Tensor]:
    """f, a, ∇L, H, A, B and C of one instance, by torch.func. B and C have a column for each number of each input."""
    shapes = [t.shape for t in (*inputs, *y)]

    def unpacked(flat: Tensor) -> list[Tensor]:
        return [p.reshape(s) for p, s in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]

    def lagrangian(flat: Tensor) -> Tensor:
        tensors = unpacked(flat)
        return f(*tensors) + (multipliers * a(*tensors)).sum()

    flat = packed([*inputs, *y])
    count = sum(t.numel() for t in inputs)
    gradient, second = torch.func.grad(lagrangian)(flat), torch.autograd.functional.hessian(lagrangian, flat)
    rows = torch.autograd.functional.jacobian(lambda z: a(*unpacked(z)), flat) if multipliers.numel() else flat.new_zeros(0, flat.numel())
    found = {"f": f(*unpacked(flat)), "a": a(*unpacked(flat)), "∇L": gradient[count:], "H": second[count:, count:], "B": second[count:, :count]}
    return found | {"A": rows[:, count:], "C": rows[:, :count]}


def node_blocks(node: Any, inputs: Sequence[Tensor], y: Sequence[Tensor], multipliers: Tensor, is_tuple: bool = False) -> dict[str, Tensor]:
    """The same of a symbolic node: dense H and A, those of its structure, and those of its products, which must be one thing."""
    batched = [x.unsqueeze(0) for x in inputs]
    problem, _, _ = prepare(node, tuple(batched), 0)
    problem = problem.with_layout(Layout(tuple(tuple(p.shape) for p in y), is_tuple))
    flat = packed(y).unsqueeze(0)
    p = node.blocks.linearise(problem, flat, None, None).equalities
    at = node.blocks.linearise(problem, flat, multipliers[None, :p], multipliers[None, p:])
    m, k = flat.shape[1], multipliers.shape[0]
    wanted = list(range(len(inputs)))
    eye_m, eye_k = torch.eye(m, dtype=flat.dtype), torch.eye(k, dtype=flat.dtype)

    def pulled(u: Tensor, w: Tensor) -> Tensor:
        return packed(at.pull_back(u.unsqueeze(0), w.unsqueeze(0), wanted))

    found = {"f": at.objective[0], "a": at.constraints[0], "∇L": at.gradient[0], "H": at.hessian()[0], "A": at.jacobian()[0]}
    found["H, its operator"] = at.hessian_operator().to_dense()[0]
    found["H, its products"] = at.hessian_products(eye_m)[0]
    found["B"] = torch.stack([pulled(e, eye_k.new_zeros(k)) for e in eye_m])
    found["C"] = torch.stack([pulled(eye_m.new_zeros(m), e) for e in eye_k]) if k else found["B"].new_zeros(0, found["B"].shape[1])
    tangents = [{position: e.reshape(x.shape)} for position, x in enumerate(batched) for e in torch.eye(x.numel(), dtype=x.dtype)]
    pushed = [torch.cat([part[0] for part in at.push_forward(tangent)]) for tangent in tangents]
    found["B, forward"], found["C, forward"] = torch.stack(pushed, 1).split([m, k])
    if k:
        found["A, its operator"] = at.jacobian_operator().to_dense()[0]
        found["A, its products"] = torch.stack([at.jacobian_product(e.unsqueeze(0))[0] for e in eye_m], 1)
        found["A, its transposed products"] = at.jacobian_products(eye_k)[0]
    return found


def compare(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-9) -> None:
    for name, value in found.items():
        wanted = expected[name.split(",")[0]]
        assert value.shape == wanted.shape, f"{name}: shape {tuple(value.shape)}, expected {tuple(wanted.shape)}"
        scale = 1 + wanted.abs().max().item() if wanted.numel() else 1.0
        assert torch.isfinite(value).all(), f"{name} = {value} is not finite, expected {wanted}"
        assert (value - wanted).abs().max().item() <= tolerance * scale if value.numel() else True, f"{name} = {value}, expected {wanted}"
