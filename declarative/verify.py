"""`verify`: does a node's derivative hold up? Every path against the dense formula, and that against finite differences."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from declarative.errors import IrregularPointError, SolverError
from declarative.finite_differences import Direction, central_difference
from declarative.node import DeclarativeNode, InDims, prepare
from declarative.reference import dense_vjp
from declarative.solution import Solution, Status


@dataclass(frozen=True)
class Row:
    """One check: what was compared, the largest relative error over samples and directions, what was allowed."""

    name: str
    error: float
    allowed: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the error is within what was allowed; NaN is not."""
        return self.error <= self.allowed


@dataclass(frozen=True)
class Report:
    """What `verify` found. `print(report)` shows a table; `report.ok`; `report.raise_if_failed()`."""

    title: str
    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether every row is."""
        return all(row.ok for row in self.rows)

    def raise_if_failed(self) -> None:
        """An AssertionError with the table, unless every row is ok."""
        if not self.ok:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [f"  {'ok  ' if row.ok else 'FAIL'}  {row.name:<{width}}  {row.error:8.1e} ≤ {row.allowed:7.1e}  {row.note}".rstrip() for row in self.rows]
        failed = sum(not row.ok for row in self.rows)
        verdict = "all checks passed" if not failed else f"{failed} of {len(self.rows)} checks FAILED"
        return "\n".join([self.title, *lines, verdict])


def verify(node: DeclarativeNode, *inputs: Tensor, in_dims: InDims = 0, directions: int = 2, seed: int = 0) -> Report:
    """Check a node's solutions and derivatives at the given inputs.

    Finite differences are taken in float64, of problems solved anew and polished to rounding, whatever the dtype of the
    inputs; so they measure the derivative and not the solver.

    Args:
        inputs, in_dims: as in calling the node. A batch of a few samples is best: each is checked on its own.
        directions: random directions for each input and parameter that requires grad.
        seed: of the directions; global random state is left alone.

    Returns:
        a `Report` with rows for the solution (status, stationarity, feasibility), the vector–Jacobian product (against
        the dense formula built one instance at a time, and against finite differences), the Jacobian–vector product,
        second derivatives, the batch against its samples one by one, and side effects.

    Raises:
        ValueError, TypeError: inputs that do not fit the node. Anything that goes wrong numerically is a failed row.

    Example:
        >>> print(verify(Projection(), torch.randn(8, 5, dtype=torch.float64)))  # doctest: +SKIP
    """
    if not isinstance(node, DeclarativeNode):
        raise TypeError(f"node must be a DeclarativeNode, got {type(node).__name__}")
    if not isinstance(directions, int) or directions < 1:
        raise ValueError(f"directions must be a positive int, got {directions!r}")
    problem, single, _ = prepare(node, inputs, in_dims)
    if problem.batch == 0:
        raise ValueError(f"{problem.name}: cannot verify on an empty batch; pass at least one sample")
    shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
    title = f"verify {problem.name}: {'a single instance' if single else f'{problem.batch} samples'}, inputs {shapes}, {inputs[0].dtype}"
    checks = _Checks(node, tuple(x.detach().clone() for x in inputs), in_dims, directions, seed)
    rows: list[Row] = []
    for check in (
        checks.solution,
        checks.dense,
        checks.finite_differences,
        checks.forward_mode,
        checks.second_order,
        checks.samples_alone,
        checks.side_effects,
    ):
        try:
            rows.extend(check())
        except (SolverError, IrregularPointError) as error:
            rows.append(Row(check.__name__.replace("_", " "), float("nan"), 0.0, str(error)))
            if check == checks.solution:  # nothing else can be measured without a solution
                break
    return Report(title, tuple(rows))


class _Checks:
    def __init__(self, node: DeclarativeNode, inputs: tuple[Tensor, ...], in_dims: InDims, directions: int, seed: int) -> None:
        self.node, self.inputs, self.in_dims = node, inputs, in_dims
        # Not the seed itself: a caller who seeded torch with it would find the cotangent equal to the input.
        self.directions, self.generator = directions, torch.Generator().manual_seed(seed + 7_919)
        self.problem, self.single, _ = prepare(node, inputs, in_dims)
        self.dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(inputs)
        self.parameters = {name: p.detach() for name, p in node.named_parameters() if p.requires_grad}
        self.leaves = (*inputs, *self.parameters.values())
        self.names = (*(f"input {i}" for i in range(len(inputs))), *self.parameters)
        eps = torch.finfo(inputs[0].dtype).eps
        self.exact = eps**0.5
        self.allowed = max(2e-6, eps**0.5)

    # Calling the node as a function of its leaves.

    def _solve(self, leaves: Sequence[Tensor]) -> Solution:
        count = len(self.inputs)
        parameters = dict(zip(self.parameters, leaves[count:], strict=True))
        return torch.func.functional_call(
            _AsSolution(self.node), {f"node.{k}": v for k, v in parameters.items()}, tuple(leaves[:count]), {"in_dims": self.in_dims}
        )

    def _flat(self, leaves: Sequence[Tensor]) -> Tensor:
        """(b, m)"""
        y = self._solve(leaves).y
        parts = y if isinstance(y, tuple) else (y,)
        batch = self.problem.batch
        return torch.cat([part.reshape(batch, -1) for part in parts], 1)

    def _random(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=torch.float64).to(like)

    def _tight(self) -> _Checks:
        """The same checks on a float64 copy of the node that solves to rounding."""
        node = copy.deepcopy(self.node).double()
        node.polish = max(node.polish, 10)
        return _Checks(node, tuple(x.double() for x in self.inputs), self.in_dims, self.directions, 0)

    # The checks. Each yields rows.

    def solution(self) -> list[Row]:
        s = self.node.solution(*self.inputs, in_dims=self.in_dims)
        status = torch.as_tensor(s.status).reshape(-1)
        failed = int((status != Status.CONVERGED).sum())
        stationarity, violation = (float(torch.as_tensor(v).max()) for v in (s.stationarity, s.violation))
        note = "" if max(stationarity, violation) <= self.exact else "the solve is loose: pass polish=3 to the node, or a smaller tolerance to its solver"
        weak = int(torch.as_tensor(s.weakly_active).sum())
        return [
            Row("samples that failed", failed, 0.0, "" if not failed else f"status {sorted({Status(int(i)).name for i in status})}"),
            Row("stationarity of the Lagrangian", stationarity, self.exact, note),
            Row("feasibility", violation, self.exact, f"{weak} weakly active constraints: the derivative is one-sided there" if weak else ""),
        ]

    def _vjp(self, leaves: Sequence[Tensor], v: Tensor, *, create_graph: bool = False) -> list[Tensor]:
        variables = [leaf if leaf.requires_grad else leaf.detach().requires_grad_() for leaf in leaves]
        y = self._flat(variables)
        return list(torch.autograd.grad(y, variables, v, create_graph=create_graph, allow_unused=True, materialize_grads=True))

    def dense(self) -> list[Row]:
        y = self._flat(self.leaves)
        v = self._random(y)
        mine = self._vjp(self.leaves, v)
        solution = self._solve(self.leaves)
        reference = dense_vjp(self.node, self.problem, self.single, solution, v)
        moved = [_batch_first(g, self.dims[i], self.single) if i < len(self.inputs) else g for i, g in enumerate(mine)]
        names = {name: position for position, names in enumerate(self.problem.lifted, len(self.inputs)) for name in names}
        positions = [*range(len(self.inputs)), *(names[name] for name in self.parameters)]
        floor = 1e-6 * float(v.abs().max())
        error = max((_relative(a.double(), reference[k], floor) for a, k in zip(moved, positions, strict=True)), default=0.0)
        return [Row("vjp = dense formula", error, self.exact, "K, B, C formed by torch.func on one instance at a time")]

    def finite_differences(self) -> list[Row]:
        tight = self._tight()
        kinks = _any_row(torch.as_tensor(tight._solve(tight.leaves).weakly_active), self.problem.batch)
        y = self._flat(self.leaves)
        v = self._random(y) * (~kinks).to(y.dtype).unsqueeze(1)
        gradients = self._vjp(self.leaves, v)
        note = f"{int(kinks.sum())} samples with weakly active constraints left out" if bool(kinks.any()) else ""
        return [
            self._compare(f"vjp = finite differences, {name}", tight, lambda leaves: (tight._flat(leaves) * v.double()).sum(), k, gradients[k], note)
            for k, name in enumerate(self.names)
        ]

    def _compare(self, name: str, tight: _Checks, function: Callable[[Sequence[Tensor]], Tensor], k: int, gradient: Tensor, note: str) -> Row:
        worst = Row(name, 0.0, self.allowed, note)
        for _ in range(self.directions):
            direction = Direction(k, self._random(tight.leaves[k]))
            difference, uncertainty = central_difference(function, tight.leaves, direction)
            product = float((gradient.double() * direction.vector).sum())
            scale = float(torch.linalg.vector_norm(gradient.double()) * torch.linalg.vector_norm(direction.vector)) + abs(difference) + 1e-30
            row = Row(name, abs(product - difference) / scale, self.allowed + uncertainty / scale, note)
            # NaN compares false and must win.
            if not row.error / row.allowed <= worst.error / worst.allowed:
                worst = row
        return worst

    def forward_mode(self) -> list[Row]:
        y = self._flat(self.leaves)
        v = self._random(y)
        gradients = self._vjp(self.leaves, v)
        tangents = tuple(self._random(leaf) for leaf in self.leaves)
        dy: Tensor = torch.func.jvp(lambda *leaves: self._flat(leaves), self.leaves, tangents)[1]
        forward = float((v.double() * dy.double()).sum())
        backward = sum(float((g.double() * t.double()).sum()) for g, t in zip(gradients, tangents, strict=True))
        scale = float(torch.linalg.vector_norm(v.double()) * torch.linalg.vector_norm(dy.double())) + 1e-30
        return [Row("jvp = vjp", abs(forward - backward) / scale, self.exact)]

    def second_order(self) -> list[Row]:
        tight = self._tight()
        solution = tight._solve(tight.leaves)
        kinks = _any_row(torch.as_tensor(solution.weakly_active), self.problem.batch)
        v = self._random(tight._flat(tight.leaves)) * (~kinks).double().unsqueeze(1)
        directions = [self._random(leaf) for leaf in tight.leaves]

        def slope(leaves: Sequence[Tensor], *, create_graph: bool = False) -> Tensor:
            gradients = tight._vjp(leaves, v, create_graph=create_graph)
            return torch.stack([(g * d).sum() for g, d in zip(gradients, directions, strict=True)]).sum()

        variables = [leaf.clone().requires_grad_() for leaf in tight.leaves]
        value = slope(variables, create_graph=True)
        if not value.requires_grad:
            return [Row("second order = finite differences", 0.0, self.allowed, "the gradient is constant")]
        seconds = torch.autograd.grad(value, variables, allow_unused=True, materialize_grads=True)
        rows = [self._compare("second", tight, slope, k, seconds[k], "") for k in range(len(self.names))]
        worst = max(rows, key=lambda row: row.error / row.allowed if row.error == row.error else float("inf"))
        return [Row("second order = finite differences", worst.error, worst.allowed)]

    def samples_alone(self) -> list[Row]:
        if self.single or self.problem.batch == 1:
            return []
        y = self._flat(self.leaves)
        v = self._random(y)
        gradients = self._vjp(self.leaves, v)
        worst, alone_dims = 0.0, tuple(None for _ in self.dims)
        for i in range(self.problem.batch):
            inputs = tuple(x if dim is None else x.select(dim, i) for x, dim in zip(self.inputs, self.dims, strict=True))
            alone = _Checks(self.node, inputs, alone_dims, 1, 0)
            worst = max(worst, _relative(alone._flat(alone.leaves)[0], y[i]))
            own = alone._vjp(alone.leaves, v[i : i + 1])
            for k, dim in enumerate(self.dims):
                if dim is not None:
                    worst = max(worst, _relative(own[k], gradients[k].select(dim, i), 1e-6 * float(v.abs().max())))
        return [Row("batch = its samples one by one", worst, self.exact)]

    def side_effects(self) -> list[Row]:
        before = [t.clone() for t in (*self.inputs, *self.node.parameters(), *self.node.buffers())]
        training, flags = self.node.training, [p.requires_grad for p in self.node.parameters()]
        y = self.node(*self.inputs, in_dims=self.in_dims)
        parts = y if isinstance(y, tuple) else (y,)
        after = [*self.inputs, *self.node.parameters(), *self.node.buffers()]
        changed = sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        changed += training != self.node.training or flags != [p.requires_grad for p in self.node.parameters()]
        kinds = sum(part.dtype != self.inputs[0].dtype or part.device != self.inputs[0].device for part in parts)
        return [Row("inputs and node left unchanged", changed, 0.0), Row("dtype and device kept", kinds, 0.0)]


class _AsSolution(torch.nn.Module):
    """The node as a module whose forward is `solution`, for functional_call."""

    def __init__(self, node: DeclarativeNode) -> None:
        super().__init__()
        self.node = node

    def forward(self, *inputs: Tensor, in_dims: InDims) -> Solution:
        return self.node.solution(*inputs, in_dims=in_dims)


def _batch_first(gradient: Tensor, dim: Any, single: bool) -> Tensor:
    if single:
        return gradient.unsqueeze(0)
    return gradient if dim is None else gradient.movedim(dim, 0)


def _any_row(mask: Tensor, batch: int) -> Tensor:
    return mask.reshape(batch, -1).any(1)


def _relative(a: Tensor, b: Tensor, floor: float = 1e-30) -> float:
    """‖a − b‖∞ relative to the larger of the two, and not less than `floor`."""
    if not a.numel():
        return 0.0
    return float((a - b).abs().max() / torch.maximum(a.abs().max(), b.abs().max()).clamp_min(floor))
