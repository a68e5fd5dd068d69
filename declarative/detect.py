"""`detect_structure`: which tag would fit a node, from dense blocks at several points. It proposes; it never applies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from declarative.checks import Checks
from declarative.node import DeclarativeNode, InDims, prepare
from declarative.structure.tags import Banded, BlockDiagonal, Diagonal, LowRankUpdate, ScaledIdentity, Tag
from declarative.structure_checks import Place, places


@dataclass(frozen=True)
class Detection:
    """What `detect_structure` saw.

    Args:
        hessian_structure: the cheapest tag that fits H everywhere it was looked at; None: H is dense.
        constraint_structure: the line for A, as text; None: nothing to declare.
        mixed_structure: the line for B, as text; None: nothing to declare.
        lines: what to paste into the class.
        seen: what the proposal rests on, in words.
    """

    hessian_structure: Tag | None
    constraint_structure: str | None
    mixed_structure: str | None
    lines: tuple[str, ...]
    seen: str

    def __str__(self) -> str:
        if not self.lines:
            return f"{self.seen}\nnothing to declare: H is dense, A is neither constant nor sparse"
        return "\n".join([self.seen, "paste into the class, and let verify() check it:", *(f"    {line}" for line in self.lines)])


def detect_structure(node: DeclarativeNode, *inputs: Tensor, in_dims: InDims = 0, points: int = 3, seed: int = 0) -> Detection:
    """Look for structure in H, A and B at the solutions and at random points beside them.

    Forms dense blocks (m products a point), so use it on a small instance of the problem. What it sees there need not hold
    everywhere: `verify` checks a declared tag at whatever inputs you give it.

    Args:
        inputs, in_dims: as in calling the node; a batch of a few samples is best.
        points: random points for each sample, besides the solution.
        seed: of the points.

    Returns:
        a `Detection`; print it for the lines to paste.

    Raises:
        ValueError, TypeError: inputs that do not fit the node.

    Example:
        >>> "hessian_structure" in str(detect_structure(Projection(), torch.randn(4, 6, dtype=torch.float64)))  # print it
        True
    """
    if not isinstance(node, DeclarativeNode):
        raise TypeError(f"node must be a DeclarativeNode, got {type(node).__name__}")
    if not isinstance(points, int) or points < 1:
        raise ValueError(f"points must be a positive int, got {points!r}")
    problem, _, _ = prepare(node, inputs, in_dims)
    if problem.batch == 0:
        raise ValueError(f"{problem.name}: cannot look for structure in an empty batch; pass at least one sample")
    checks = Checks(node, tuple(x.detach().clone() for x in inputs), in_dims, 1, seed)
    found = list(places(checks, points))
    with torch.no_grad():
        hessians = torch.cat([place.at.hessian() for place in found])
        jacobians = torch.stack([place.at.jacobian() for place in found])
    m, k = hessians.shape[1], jacobians.shape[2]
    tag = _hessian_tag(hessians)
    constraint = _constraint_line(jacobians) if k else None
    mixed = _mixed_line(checks, found)
    lines = [f"hessian_structure = {tag}"] if tag is not None else []
    lines += [f"constraint_structure = {constraint}"] if constraint else []
    lines += [f"mixed_structure = {mixed}"] if mixed else []
    seen = f"{problem.name}: y of {m} numbers, {k} constraints, {problem.batch} samples at {len(found)} points each"
    return Detection(tag, constraint, mixed, tuple(lines), seen)


def _nonzero(blocks: Tensor, tolerance: float) -> Tensor:
    """(r, c) bool: entries that are not negligible beside the largest of their matrix, in any of the matrices (…, r, c)."""
    flat = blocks.reshape(-1, *blocks.shape[-2:])
    size = flat.abs().amax((1, 2), keepdim=True)
    return (flat.abs() > tolerance * size).any(0)


def _tolerance(like: Tensor) -> float:
    return torch.finfo(like.dtype).eps ** 0.75


def _hessian_tag(hessians: Tensor) -> Tag | None:
    """The cheapest tag whose operator, made from H's own products, is H again."""
    m = hessians.shape[1]
    fitting = [tag for tag in _candidates(_nonzero(hessians, _tolerance(hessians))) if _fits(tag, hessians)]
    worthwhile = [tag for tag in fitting if tag.products(m) < m]
    return min(worthwhile, key=lambda tag: tag.products(m)) if worthwhile else None


def _candidates(mask: Tensor) -> Iterator[Tag]:
    m = mask.shape[0]
    yield ScaledIdentity()
    yield Diagonal()
    rows, columns = mask.nonzero(as_tuple=True)
    reach = int((rows - columns).abs().max()) if rows.numel() else 0
    if reach > 0 and 2 * reach + 1 < m:
        yield Banded(reach)
    for size in range(2, m // 2 + 1):
        if m % size == 0 and bool((rows // size == columns // size).all()):
            yield BlockDiagonal(size)
            break
    rank = 1
    while 3 * rank <= m and 3 * rank + 1 < m:
        yield LowRankUpdate(rank)
        rank += 1


def _fits(tag: Tag, hessians: Tensor) -> bool:
    products = (hessians @ tag.directions(hessians.shape[1], hessians).mT).mT
    rebuilt = tag.operator(products).to_dense()
    size = hessians.abs().amax((1, 2), keepdim=True)
    return bool(((rebuilt - hessians).abs() <= torch.finfo(hessians.dtype).eps ** 0.5 * size).all())


def _constraint_line(jacobians: Tensor) -> str | None:
    """jacobians: (points, b, k, m)."""
    mask = _nonzero(jacobians, _tolerance(jacobians))
    constant = bool(((jacobians - jacobians[:1, :1]).abs() <= _tolerance(jacobians) * jacobians.abs().amax()).all())
    sparse = int(mask.sum()) <= mask.numel() // 4
    if constant:
        return "Constant(Sparse())" if sparse else "Constant()"
    return "Sparse(pattern)  # pattern: a (k, m) bool tensor, True where A may differ from zero" if sparse else None


def _mixed_line(checks: Checks, found: list[Place]) -> str | None:
    """An input whose B is a multiple of the identity and that no constraint uses."""
    m = found[0].at.gradient.shape[1]
    for k in range(checks.problem.inputs):
        tensor, dim = checks.problem.tensors[k], checks.problem.in_dims[k]
        if (tensor[0] if dim == 0 else tensor).numel() != m or dim is None:
            continue
        scales = []
        for place in found:
            t = checks._random(place.problem.tensors[k])
            dy, rows = place.at.push_forward({k: t})
            flat = t.reshape(t.shape[0], m)
            scale = (dy * flat).sum() / (flat * flat).sum()
            rest = torch.cat([(dy - scale * flat).flatten(), rows.flatten()])
            if float(rest.abs().max()) > _tolerance(dy) * float(dy.abs().max()):
                break
            scales.append(float(scale))
        else:
            if scales and scales[0] != 0 and max(scales) - min(scales) <= 1e-9 * abs(scales[0]):
                return f"ScaledIdentityInput(input={k}, scale={scales[0]:.12g})"
    return None
