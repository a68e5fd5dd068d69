"""What a node declares about its blocks, compared with the blocks themselves: at the solution and at random points near it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from declarative.checks import Checks, Row, relative_error
from declarative.engines.autodiff import linearise
from declarative.engines.base import Linearisation
from declarative.engines.blocks import closed_hessian, hessian_operator, is_structured, jacobian_operator, read_solution
from declarative.kkt.bordered import IrregularPolicy, solve_bordered
from declarative.kkt.schur import solve_structured
from declarative.node import DeclarativeNode
from declarative.problem import Layout, Problem
from declarative.solution import Solution


@dataclass(frozen=True)
class Place:
    """The problem's blocks at one point of each sample."""

    name: str
    problem: Problem
    at: Linearisation
    solution: Solution
    point: tuple[Tensor, Tensor, Tensor]

    @property
    def closed(self) -> Linearisation:
        """The blocks as the node computes them."""
        return self.at if self.problem.node.blocks is None else self.problem.node.blocks.linearise(self.problem, *self.point)

    def hessian(self) -> Tensor:
        """H as declared, dense."""
        return hessian_operator(self.problem, self.closed, self.solution).to_dense()

    def jacobian(self) -> Tensor | None:
        """A as declared, dense."""
        operator = jacobian_operator(self.problem, self.closed, self.solution)
        return None if operator is None else operator.to_dense()


def structure_rows(checks: Checks) -> list[Row]:
    """Rows for each declaration that the node makes; none if it makes none."""
    node = checks.node
    declared_rows = node.constraint_structure is not None or node.constraint_jacobian is not None
    hooks = (node.mixed_structure, node.solve_kkt, node.vjp, node.blocks)
    if not is_structured(node) and not declared_rows and all(hook is None for hook in hooks):
        return []
    found = list(places(checks))
    # Found without the declarations, compared with them.
    found = [replace(place, problem=replace(place.problem, node=node)) for place in found]
    rows = [] if node.blocks is None else _closed_rows(found, checks)
    if is_structured(node):
        rows.append(_worst(f"{_declaration(node)} = H", [(p, p.hessian(), p.at.hessian()) for p in found], checks.exact))
    if declared_rows and found[0].at.constraints.shape[1]:
        label = "constraint_jacobian hook" if node.constraint_jacobian is not None else f"constraint_structure {_short(node.constraint_structure)}"
        pairs = []
        for place in found:
            declared = place.jacobian()
            if declared is not None:
                pairs.append((place, declared, place.at.jacobian()))
        rows.append(_worst(f"{label} = A", pairs, checks.exact))
    if node.mixed_structure is not None:
        rows.append(_mixed_row(node.mixed_structure, found, checks))
    if is_structured(node):
        rows.append(_kkt_row(found[0], checks))
    if node.solve_kkt is not None or node.vjp is not None:
        rows.append(_hook_row("vjp hook" if node.vjp is not None else "solve_kkt hook", checks))
    return rows


def _declaration(node: DeclarativeNode) -> str:
    """What says how H is structured."""
    if node.hessian is not None:
        return "hessian hook"
    closed = closed_hessian(node)
    if closed is not None:
        return f"structure of blocks ({closed.description[0]})"
    return f"hessian_structure {node.hessian_structure}"


def undeclared(node: DeclarativeNode) -> DeclarativeNode:
    """A copy of the node that says nothing of its structure."""
    other = copy.copy(node)
    for name in ("hessian_structure", "constraint_structure", "mixed_structure", "hessian", "constraint_jacobian", "solve_kkt", "vjp", "blocks"):
        other.__dict__[name] = None
    return other


def _short(tag: object) -> str:
    text = str(tag)
    return text if len(text) < 40 else f"{type(tag).__name__}(…)"


def places(checks: Checks, points: int = 3) -> Iterator[Place]:
    """The solution, and points beside it: inputs, y and multipliers all moved. Solved without the declarations, which may be wrong."""
    checks = checks.of(undeclared(checks.node))
    s = checks._solve(checks.leaves)
    single, counted = checks.single, checks._counted(s)

    def whole(value: object) -> Tensor:
        tensor = torch.as_tensor(value).detach()
        return tensor.unsqueeze(0) if single else tensor

    parts = tuple(whole(part) for part in (s.y if isinstance(s.y, tuple) else (s.y,)))
    layout = Layout(tuple(tuple(part.shape[1:]) for part in parts), isinstance(s.y, tuple))
    y, nu, mu = layout.pack(parts), whole(s.equality_multipliers), whole(s.inequality_multipliers)
    problem = checks.problem.with_layout(layout).with_tensors([t.detach() for t in checks.problem.tensors])
    for count in range(points + 1):

        def moved(t: Tensor, count: int = count) -> Tensor:
            # Mostly in proportion, so that signs and domains (a logarithm's, a square root's) are kept.
            if count == 0 or not t.is_floating_point():
                return t
            return t * (1 + 0.1 * checks._random(t)) + 1e-3 * checks._random(t).abs()

        here = problem.with_tensors([moved(t) if k < problem.inputs else t for k, t in enumerate(problem.tensors)])
        point, equality, inequality = moved(y), moved(nu), moved(mu)
        with torch.no_grad():
            at = linearise(here, point, equality, inequality, range(here.inputs))
            finite = bool(torch.isfinite(at.gradient).all())
            if count == 0 or finite:
                name = "at the solution" if count == 0 else f"at random point {count}"
                yield Place(name, here, at, read_solution(here, point, equality, inequality, counted), (point, equality, inequality))


def _worst(name: str, pairs: list[tuple[Place, Tensor, Tensor]], allowed: float) -> Row:
    """The largest difference of an entry, relative to the largest entry of its matrix, and where it is."""
    worst, note = 0.0, ""
    for place, declared, true in pairs:
        size = true.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(true.dtype).tiny)
        error = ((declared - true).abs() / size).nan_to_num(float("inf"))
        if error.numel() and float(error.max()) > worst:
            worst = float(error.max())
            i, row, column = (int(k) for k in torch.unravel_index(error.argmax(), error.shape))
            if worst > allowed:
                values = (float(matrix[i, row, column]) for matrix in (declared, true))
                note = "entry ({}, {}) of sample {} {}: declared {:.4g}, is {:.4g}".format(row, column, i, place.name, *values)
    return Row(name, worst, allowed, note)


def _closed_rows(found: list[Place], checks: Checks) -> list[Row]:
    """Each block in formulas against autodiff's: values, gradient, H, A, and products with B and C in both directions."""
    pairs: dict[str, list[tuple[Place, Tensor, Tensor]]] = {}
    for place in found:
        closed, at, problem = place.closed, place.at, place.problem
        dx = {k: checks._random(problem.tensors[k]) for k in range(problem.inputs)}
        u, w = checks._random(at.gradient), checks._random(at.constraints)
        pulled = zip(closed.pull_back(u, w, list(dx)), at.pull_back(u, w, list(dx)), strict=True)
        (dy, rows), (true_dy, true_rows) = closed.push_forward(dx), at.push_forward(dx)
        compared = {
            "f": (closed.objective.unsqueeze(1), at.objective.unsqueeze(1)),
            "a": (closed.constraints, at.constraints),
            "∇L": (closed.gradient, at.gradient),
            "H": (closed.hessian(), at.hessian()),
            "A": (closed.jacobian(), at.jacobian()),
            "B dx": (dy, true_dy),
            "C dx": (rows, true_rows),
            **{f"Bᵀu + Cᵀw, input {k}": pair for k, pair in enumerate(pulled)},
        }
        for name, (mine, theirs) in compared.items():
            # At the solution ∇L and a are nothing but rounding.
            if theirs.numel() and not (place is found[0] and name in ("a", "∇L")):
                first, second = (t.reshape(1, 1, -1) if name.startswith("Bᵀu") else t.reshape(t.shape[0], -1, t.shape[-1]) for t in (mine, theirs))
                pairs.setdefault(name, []).append((place, first, second))
    return [_worst(f"block {name} = autodiff", compared, checks.exact) for name, compared in pairs.items()]


def _mixed_row(tag: Any, found: list[Place], checks: Checks) -> Row:
    """B dx and C dx of the input, for a random dx."""
    worst, note, k = 0.0, "", tag.input
    for place in found:
        t = checks._random(place.problem.tensors[k])
        dy, rows = place.at.push_forward({k: t})
        claimed = tag.scale * t.reshape(-1, dy.shape[1]).expand_as(dy)
        error = float(torch.cat([(dy - claimed).flatten(), rows.flatten()]).abs().max() / torch.maximum(dy.abs().max(), claimed.abs().max()))
        if error > worst:
            worst = error
            note = "" if error <= checks.exact else f"{place.name}: B is not {tag.scale:g} I, or a constraint uses input {k}"
    return Row(f"mixed_structure {tag} = B", worst, checks.exact, note)


def _hook_row(label: str, checks: Checks) -> Row:
    """The node's vjp with its hooks against that without them."""
    v = checks._cotangent()
    plain = checks.of(undeclared(checks.node))
    try:
        fast = checks._vjp(checks.leaves, v)
    except (ValueError, TypeError) as error:
        return Row(f"{label} = generic", float("nan"), checks.exact, str(error))
    slow = plain._vjp(checks.leaves, v)
    errors = [relative_error(a, b, 1e-6 * float(v.abs().max())) for a, b in zip(fast, slow, strict=True)]
    worst = max(range(len(errors)), key=errors.__getitem__)
    return Row(f"{label} = generic", errors[worst], checks.exact, "" if errors[worst] <= checks.exact else f"worst for {checks.names[worst]}")


def _kkt_row(place: Place, checks: Checks) -> Row:
    """The structured solve against the dense one, on a random right-hand side."""
    problem, at = place.problem, place.at
    options, m = checks.policies, at.gradient.shape[1]
    weights = None
    if place.solution.active is not None and place.solution.active.shape[1]:
        equality = torch.as_tensor(place.solution.equality_multipliers)
        weights = torch.cat([torch.ones_like(equality), place.solution.active.to(equality.dtype)], 1)
    v, r = checks._random(at.gradient), checks._random(at.constraints)
    policy = IrregularPolicy("min_norm" if options.irregular == "min_norm" else "zero", m, problem.batch, problem.name, options.damping)
    hessian, jacobian = hessian_operator(problem, place.closed, place.solution), jacobian_operator(problem, place.closed, place.solution)
    fast = torch.cat(solve_structured(policy, hessian, jacobian, weights, v, r), 1)
    slow = torch.cat(solve_bordered(policy, at.hessian(), at.jacobian(), weights, v, r), 1)
    error = float(((fast - slow).abs().amax(1) / slow.abs().amax(1).clamp_min(1e-30)).max()) if fast.numel() else 0.0
    return Row("structured KKT solve = dense", error, checks.exact)
