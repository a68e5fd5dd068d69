"""The checks behind `verify`: each compares two ways to the same number and yields rows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from declarative.differentiation.implicit import Implicit
from declarative.finite_differences import Direction, differentiate, noise_and_step
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


class Checks:
    """A node, the point to check it at, and one method for each check."""

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

    def of(self, node: DeclarativeNode) -> Checks:
        """The same checks of another node."""
        other = copy.copy(self)
        other.node = node
        other.problem = replace(self.problem, node=node)
        return other

    @property
    def policies(self) -> Implicit:
        """What the node wants done where derivatives break."""
        return self.node.differentiation if isinstance(self.node.differentiation, Implicit) else Implicit()

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
        return torch.randn(like.shape, generator=self.generator, dtype=torch.float64, device="cpu").to(like)

    def _kinks(self, solution: Solution) -> Tensor:
        """(b,) samples with a weakly active constraint."""
        return torch.as_tensor(solution.weakly_active).reshape(self.problem.batch, -1).any(1)

    def _chooses_no_side(self) -> bool:
        return self.policies.weakly_active not in ("inactive", "active")

    def _counted(self, solution: Solution) -> Tensor:
        """(b, q) the inequalities that the derivative counts as equations."""
        active, weakly = (torch.as_tensor(mask).reshape(self.problem.batch, -1).bool() for mask in (solution.active, solution.weakly_active))
        return active | weakly if self.policies.weakly_active == "active" else active

    def _cotangent(self) -> Tensor:
        """(b, m) random; zero in samples at a kink if neither side was chosen there."""
        solution = self._solve(self.leaves)
        v = self._random(self._flat(self.leaves))
        return v * (~self._kinks(solution)).to(v.dtype).unsqueeze(1) if self._chooses_no_side() else v

    def _tight(self) -> Checks:
        """The same checks on a float64 copy of the node that solves to rounding."""
        node = copy.deepcopy(self.node).double()
        node.polish, node.differentiation = max(node.polish, 10), self.policies
        return Checks(node, tuple(x.double() for x in self.inputs), self.in_dims, self.directions, 0)

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

    def _least(self, v: Tensor) -> float:
        """A size of gradients, for this cotangent, below which differences count as those of zeros: rounding of numbers of order one is then allowed."""
        return 64 * self.exact * float(v.abs().max())

    def dense(self) -> list[Row]:
        solution = self._solve(self.leaves)
        v = self._cotangent()
        mine = self._vjp(self.leaves, v)
        constraints = torch.as_tensor(solution.inequality_multipliers).shape[-1]  # layers also say which of their points lie beyond a kink
        reference = dense_vjp(self.node, self.problem, self.single, solution, self._counted(solution)[:, :constraints], v)
        moved = [_batch_first(g, self.dims[i], self.single) if i < len(self.inputs) else g for i, g in enumerate(mine)]
        names = {name: position for position, names in enumerate(self.problem.lifted, len(self.inputs)) for name in names}
        positions = [*range(len(self.inputs)), *(names[name] for name in self.parameters)]
        error = max((relative_error(a.double(), reference[k], self._least(v)) for a, k in zip(moved, positions, strict=True)), default=0.0)
        return [Row("vjp = dense formula", error, self.exact, "K, B, C formed by torch.func on one instance at a time")]

    def finite_differences(self) -> list[Row]:
        tight, v = self._tight(), self._cotangent()
        return [self._worst(f"vjp = finite differences, {name}", lambda k=k: self._against_difference(tight, v, k)) for k, name in enumerate(self.names)]

    def _against_difference(self, tight: Checks, v: Tensor, k: int) -> Row:
        """One random direction of leaf k."""
        direction = Direction(k, self._random(tight.leaves[k]))

        def values(leaves: Sequence[Tensor]) -> Tensor:
            return (tight._flat(leaves) * v.double()).sum(1)

        noise, step = noise_and_step(values, tight.leaves, direction)
        sides, lost = tight._sides(direction, step)
        kept = (~lost).to(v.dtype)
        difference, uncertainty = differentiate(values, tight.leaves, direction, noise, step, sides)
        gradient = self._vjp(self.leaves, v * kept.unsqueeze(1))[k]
        one_sided = int(((sides != 0) & ~lost).sum())
        notes = [f"one-sided at {one_sided} kinks"] * (one_sided > 0) + [f"{int(lost.sum())} samples at kinks left out"] * bool(lost.any())
        return self._row(float((difference * kept).sum()), float((uncertainty * kept).sum()), gradient, direction, "; ".join(notes), self._least(v))

    def _row(self, difference: float, uncertainty: float, gradient: Tensor, direction: Direction, note: str, least: float = 0.0) -> Row:
        product = float((gradient.double() * direction.vector).sum())
        size = float((torch.linalg.vector_norm(gradient.double()) + least) * torch.linalg.vector_norm(direction.vector))
        scale = size + abs(difference) + 1e3 * uncertainty + 1e-30
        return Row("", abs(product - difference) / scale, self.allowed + uncertainty / scale, note)

    def _worst(self, name: str, compare: Callable[[], Row]) -> Row:
        rows = [compare() for _ in range(self.directions)]
        worst = max(rows, key=lambda row: row.error / row.allowed if row.error == row.error else float("inf"))
        return Row(name, worst.error, worst.allowed, worst.note)

    def _sides(self, direction: Direction, step: float) -> tuple[Tensor, Tensor]:
        """(b,) the side on which the derivative that was chosen at a kink holds (0: both), and the samples where it holds on neither."""
        base = self._solve(self.leaves)
        kinks = self._kinks(base)
        sides = torch.zeros(kinks.shape, dtype=torch.int64, device=kinks.device)
        if not bool(kinks.any()) or self._chooses_no_side():
            return sides, kinks
        here = self._counted(base)
        ahead, behind = ((self._counted(self._solve(direction.moved(self.leaves, t))) == here).all(1) for t in (step, -step))
        sides = torch.where(kinks & ~behind, 1, torch.where(kinks & ~ahead, -1, 0))
        return sides, kinks & ~ahead & ~behind

    def forward_mode(self) -> list[Row]:
        v = self._cotangent()
        gradients = self._vjp(self.leaves, v)
        tangents = tuple(self._random(leaf) for leaf in self.leaves)
        if not isinstance(self.node.differentiation, Implicit):  # the others have no forward mode, and say so
            return []
        dy: Tensor = torch.func.jvp(lambda *leaves: self._flat(leaves), self.leaves, tangents)[1]
        dy = torch.where(v == 0, 0.0, dy)  # samples that are left out may have NaN
        forward = float((v.double() * dy.double()).sum())
        backward = sum(float((g.double() * t.double()).sum()) for g, t in zip(gradients, tangents, strict=True))
        moved = max(float(torch.linalg.vector_norm(t.double())) for t in tangents)
        scale = float(torch.linalg.vector_norm(v.double()) * torch.linalg.vector_norm(dy.double())) + self._least(v) * moved + 1e-30
        return [Row("jvp = vjp", abs(forward - backward) / scale, self.exact)]

    def second_order(self) -> list[Row]:
        tight = self._tight()
        solution = tight._solve(tight.leaves)
        kinks = tight._kinks(solution)
        v = self._random(tight._flat(tight.leaves)) * (~kinks).double().unsqueeze(1)
        directions = [self._random(leaf) for leaf in tight.leaves]

        def slope(leaves: Sequence[Tensor], *, create_graph: bool = False) -> Tensor:
            gradients = tight._vjp(leaves, v, create_graph=create_graph)
            return torch.stack([(g * d).sum() for g, d in zip(gradients, directions, strict=True)]).sum().reshape(1)

        variables = [leaf.clone().requires_grad_() for leaf in tight.leaves]
        value = slope(variables, create_graph=True)
        if not value.requires_grad:
            return [Row("second order = finite differences", 0.0, self.allowed, "the gradient is constant")]
        seconds = torch.autograd.grad(value.sum(), variables, allow_unused=True, materialize_grads=True)

        def compare(k: int) -> Row:
            direction = Direction(k, self._random(tight.leaves[k]))
            noise, step = noise_and_step(slope, tight.leaves, direction)
            difference, uncertainty = differentiate(slope, tight.leaves, direction, noise, step)
            return self._row(float(difference), float(uncertainty), seconds[k], direction, "")

        rows = [self._worst("", lambda k=k: compare(k)) for k in range(len(self.names))]
        worst = max(rows, key=lambda row: row.error / row.allowed if row.error == row.error else float("inf"))
        return [Row("second order = finite differences", worst.error, worst.allowed)]

    def samples_alone(self) -> list[Row]:
        if self.single or self.problem.batch == 1:
            return []
        y, v = self._flat(self.leaves), self._cotangent()
        gradients = self._vjp(self.leaves, v)
        worst, alone_dims = 0.0, tuple(None for _ in self.dims)
        for i in range(self.problem.batch):
            inputs = tuple(x if dim is None else x.select(dim, i) for x, dim in zip(self.inputs, self.dims, strict=True))
            alone = Checks(self.node, inputs, alone_dims, 1, 0)
            worst = max(worst, relative_error(alone._flat(alone.leaves)[0], y[i]))
            own = alone._vjp(alone.leaves, v[i : i + 1])
            for k, dim in enumerate(self.dims):
                if dim is not None:
                    worst = max(worst, relative_error(own[k], gradients[k].select(dim, i), self._least(v)))
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


def relative_error(a: Tensor, b: Tensor, floor: float = 1e-30) -> float:
    """‖a − b‖∞ relative to the larger of the two, and not less than `floor`."""
    if not a.numel():
        return 0.0
    return float((a - b).abs().max() / torch.maximum(a.abs().max(), b.abs().max()).clamp_min(floor))
