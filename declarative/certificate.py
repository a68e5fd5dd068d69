"""`certify`: is this point a regular minimiser? Per sample, in numbers and in words.

The derivative of a solution exists, and is what `Implicit` computes, where the point is a KKT point, no active constraint
is weakly active, the active constraints' gradients are independent (LICQ) and the Hessian of the Lagrangian is positive
definite on their null space (second-order sufficiency). Each of these can fail; each is measured here. (Nocedal & Wright,
ch. 12; Gould, Hartley & Campbell, 2022, on non-regular solutions.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from declarative.errors import name_samples
from declarative.node import DeclarativeNode, InDims, choose_solver, prepare, read_init
from declarative.problem import Problem
from declarative.regularity import Regularity, Tolerances, assess
from declarative.solution import Solution
from declarative.solvers.finish import find_point
from declarative.solvers.multipliers import recover
from declarative.solvers.optimality import Optimality


@dataclass(frozen=True, eq=False)
class Certificate:
    """What `certify` found; tensors with one entry (or row) a sample, without the batch dimension for a single instance.

    Args:
        stationarity: (b,) ‖∇_y L‖∞ relative to the size of its terms; a multiplier of the wrong sign counts as its size.
        equality_violation, inequality_violation: (b,) largest violation, as a distance in y relative to 1 + ‖y‖∞.
        complementarity: (b,) largest min(slack, push), both relative: zero where each inequality is either tight or free.
        active, weakly_active: (b, q) bool, as in `Solution`.
        licq_margin: (b,) σ_min of the Jacobian of the constraints that hold with equality; inf where there are none.
        second_order_margin: (b,) λ_min of H on null(A); inf where that space is {0}, as at a vertex.
        kkt_condition: (b,) condition number of K.
        minimiser: (b,) bool: feasible, stationary, and no negative curvature along a feasible direction.
        regular: (b,) bool: all of the above are in order, so that the derivative exists and is unique.
        causes: for each sample, in words, what is not in order.
    """

    stationarity: Tensor
    equality_violation: Tensor
    inequality_violation: Tensor
    complementarity: Tensor
    active: Tensor
    weakly_active: Tensor
    licq_margin: Tensor
    second_order_margin: Tensor
    kkt_condition: Tensor
    minimiser: Tensor
    regular: Tensor
    causes: tuple[tuple[str, ...], ...]
    title: str = "certificate"

    def __str__(self) -> str:
        total = len(self.causes)
        regular = torch.atleast_1d(self.regular)
        lines = [f"{self.title}: {int(regular.sum())} of {total} samples are regular minimisers"]
        grouped: dict[str, list[int]] = {}
        for i, causes in enumerate(self.causes):
            for cause in causes:
                grouped.setdefault(cause, []).append(i)
        lines += [f"  {name_samples(members, total)}: {cause}" for cause, members in sorted(grouped.items(), key=lambda item: -len(item[1]))]
        for name, worst_is_largest in (
            ("stationarity", True),
            ("equality_violation", True),
            ("inequality_violation", True),
            ("complementarity", True),
            ("licq_margin", False),
            ("second_order_margin", False),
            ("kkt_condition", True),
        ):
            values = torch.atleast_1d(getattr(self, name))
            if values.numel():
                place = int(values.argmax() if worst_is_largest else values.argmin())
                lines.append(f"  {name.replace('_', ' '):<22} worst {float(values[place]):9.2e}  (sample {place})")
        return "\n".join(lines)


def certify(node: DeclarativeNode, *inputs: Tensor, in_dims: InDims = 0, y: Solution | Tensor | tuple[Tensor, ...] | None = None) -> Certificate:
    """Certify the solutions of a node, or given points.

    Args:
        inputs, in_dims: as in calling the node.
        y: points to examine in place of the node's solutions: y alone (multipliers are recovered), or a `Solution`.

    Returns:
        a `Certificate`; `print` it for a summary that names samples and causes. Nothing is raised for a point that is not
        a minimiser: that is what the certificate says.

    Raises:
        ValueError, TypeError: inputs, or a y, that do not fit the node.

    Example:
        >>> certify(Projection(), torch.tensor([[2.0, 0.5, 0.0]])).regular  # print it for the causes; Projection: see DeclarativeNode
        tensor([True])
    """
    if not isinstance(node, DeclarativeNode):
        raise TypeError(f"node must be a DeclarativeNode, got {type(node).__name__}")
    problem, single, _ = prepare(node, inputs, in_dims)
    problem = problem.with_tensors([t.detach() for t in problem.tensors])
    if problem.batch == 0:
        raise ValueError(f"{problem.name}: cannot certify an empty batch; pass at least one sample")
    with torch.no_grad():
        problem, point, equality, inequality = _locate(node, problem, y, single)
        optimality = Optimality(problem, point)
        rows = assess(optimality, equality, inequality, Tolerances.of(point.dtype))
    return _gather(f"{problem.name}, {'a single instance' if single else f'{problem.batch} samples'}", rows, single)


def _locate(node: DeclarativeNode, problem: Problem, y: Any, single: bool) -> tuple[Problem, Tensor, Tensor, Tensor]:
    """(problem with its layout, flat y, ν, μ)."""
    if y is None:
        solved = find_point(problem, (), (), choose_solver(node, problem), node.polish, False)
        return problem.with_layout(solved.layout), solved.point.y, solved.point.equality, solved.point.inequality
    (flat, nu, mu), layout = read_init(problem, y, single)
    if layout is not None:
        problem = problem.with_layout(layout)
    known = isinstance(y, Solution) and y.equality_multipliers is not None and y.inequality_multipliers is not None
    if not known:
        optimality = Optimality(problem, flat)
        nu, mu = recover(optimality, torch.finfo(flat.dtype).eps ** (1 / 3), None, None)
    return problem, flat.detach(), nu.detach(), mu.detach()


def _gather(title: str, rows: list[Regularity], single: bool) -> Certificate:
    def stacked(name: str) -> Tensor:
        whole = torch.stack([getattr(row, name) for row in rows])
        return whole[0] if single else whole

    tensors = {name: stacked(name) for name in Certificate.__dataclass_fields__ if name not in ("causes", "title")}
    return Certificate(**tensors, causes=tuple(row.causes for row in rows), title=title)
