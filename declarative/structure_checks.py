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
from declarative.engines.blocks import hessian_operator, is_structured, jacobian_operator, read_solution
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


def structure_rows(checks: Checks) -> list[Row]:
    """Rows for each declaration that the node makes; none if it makes none."""
    node = checks.node
    declared_rows = node.constraint_structure is not None or node.constraint_jacobian is not None
    if not is_structured(node) and not declared_rows and node.mixed_structure is None and node.solve_kkt is None and node.vjp is None:
        return []
    found = list(places(checks))
    rows = []
    # Found without the declarations, compared with them.
    found = [replace(place, problem=replace(place.problem, node=node)) for place in found]
    if is_structured(node):
        label = "hessian hook" if node.hessian is not None else f"hessian_structure {node.hessian_structure}"
        rows.append(_worst(f"{label} = H", [(p, hessian_operator(p.problem, p.at, p.solution).to_dense(), p.at.hessian()) for p in found], checks.exact))
    if declared_rows and found[0].at.constraints.shape[1]:
        label = "constraint_jacobian hook" if node.constraint_jacobian is not None else f"constraint_structure {_short(node.constraint_structure)}"
        pairs = []
        for place in found:
            operator = jacobian_operator(place.problem, place.at, place.solution)
            if operator is not None:
                pairs.append((place, operator.to_dense(), place.at.jacobian()))
        rows.append(_worst(f"{label} = A", pairs, checks.exact))
    if node.mixed_structure is not None:
        rows.append(_mixed_row(node.mixed_structure, found, checks))
    if is_structured(node):
        rows.append(_kkt_row(found[0], checks))
    if node.solve_kkt is not None or node.vjp is not None:
        rows.append(_hook_row("vjp hook" if node.vjp is not None else "solve_kkt hook", checks))
    return rows


def undeclared(node: DeclarativeNode) -> DeclarativeNode:
    """A copy of the node that says nothing of its structure."""
    other = copy.copy(node)
    for name in ("hessian_structure", "constraint_structure", "mixed_structure", "hessian", "constraint_jacobian", "solve_kkt", "vjp"):
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
                yield Place(name, here, at, read_solution(here, point, equality, inequality, counted))


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
    hessian, jacobian = hessian_operator(problem, at, place.solution), jacobian_operator(problem, at, place.solution)
    fast = torch.cat(solve_structured(policy, hessian, jacobian, weights, v, r), 1)
    slow = torch.cat(solve_bordered(policy, at.hessian(), at.jacobian(), weights, v, r), 1)
    error = float(((fast - slow).abs().amax(1) / slow.abs().amax(1).clamp_min(1e-30)).max()) if fast.numel() else 0.0
    return Row("structured KKT solve = dense", error, checks.exact)
