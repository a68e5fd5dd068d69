"""From a node's tags and hooks to the operators H and A at a point, forming only what they need."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from declarative.engines.autodiff import linearise
from declarative.engines.base import ClosedForm
from declarative.errors import StructureError
from declarative.problem import Problem
from declarative.solution import Solution
from declarative.structure.base import Operator
from declarative.structure.constraints import Constant, ScaledIdentityInput, Sparse
from declarative.structure.elementary import DenseOperator
from declarative.structure.sparse import SparseOperator
from declarative.structure.tags import Tag
from declarative.transforms import is_recorded, is_wrapped

_constants: weakref.WeakKeyDictionary[Any, dict[Any, tuple[DenseOperator | SparseOperator, Any]]] = weakref.WeakKeyDictionary()


def closed_hessian(node: Any) -> ClosedForm | None:
    """The closed form that H comes from; None where the node says otherwise, by a hook or a tag, or has none."""
    return node.blocks if node.hessian is None and node.hessian_structure is None else None


def closed_jacobian(node: Any) -> ClosedForm | None:
    """The same for A."""
    return node.blocks if node.constraint_jacobian is None and node.constraint_structure is None else None


def is_structured(node: Any) -> bool:
    """Whether anything is known about H."""
    closed = closed_hessian(node)
    return node.hessian_structure is not None or node.hessian is not None or (closed is not None and closed.structured)


def hessian_operator(problem: Problem, at: Any, solution: Solution) -> Operator:
    """H (b, m, m), by the node's hook, its tag, or dense."""
    node, m = problem.node, solution_size(problem)
    if node.hessian is not None:
        return _from_hook(problem, "hessian", solution, (problem.batch, m, m))
    tag = node.hessian_structure
    if tag is None:
        return DenseOperator(at.hessian()) if closed_hessian(node) is None else at.hessian_operator()
    if not isinstance(tag, Tag):
        raise TypeError(f"{problem.name}.hessian_structure must be a tag from declarative.structure, such as Diagonal(), got {tag!r}")
    return tag.operator(at.hessian_products(tag.directions(m, at.gradient)))


def jacobian_operator(problem: Problem, at: Any, solution: Solution) -> Operator | None:
    """A (b, k, m), likewise; None without constraints."""
    node = problem.node
    if closed_jacobian(node) is not None:
        return at.jacobian_operator()
    m, k = solution_size(problem), at.constraints.shape[1]
    if k == 0:
        return None
    if node.constraint_jacobian is not None:
        return _from_hook(problem, "constraint_jacobian", solution, (problem.batch, k, m))
    tag = node.constraint_structure
    if tag is None:
        return DenseOperator(at.jacobian())
    if isinstance(tag, Constant):
        constant = _constant_jacobian(problem, tag, k, m)
        return DenseOperator(at.jacobian()) if constant is None else _repeated(constant, problem.batch)
    if not isinstance(tag, Sparse):
        raise TypeError(f"{problem.name}.constraint_structure must be Constant(...) or Sparse(...) from declarative.structure, got {tag!r}")
    colouring = tag.colouring(k, m, at.constraints.device)
    products = at.jacobian_products(colouring.groups.to(at.constraints.dtype))
    return SparseOperator(products[:, colouring.group, colouring.pattern.columns], colouring.pattern)


def check_mixed(problem: Problem, tag: Any) -> None:
    """A TypeError or `StructureError` unless the node's mixed_structure fits its inputs."""
    if not isinstance(tag, ScaledIdentityInput):
        raise TypeError(f"{problem.name}.mixed_structure must be ScaledIdentityInput(...) from declarative.structure, got {tag!r}")
    m = solution_size(problem)
    fits = 0 <= tag.input < problem.inputs
    if fits:
        x = problem.tensors[tag.input]
        fits = x.numel() == (m if problem.in_dims[tag.input] is None else m * problem.batch)
    if not fits:
        raise StructureError(f"{problem.name}.mixed_structure = {tag}: input {tag.input} must be one of the {problem.inputs}, with as many numbers as y ({m})")


def mixed_identity(problem: Problem, tag: ScaledIdentityInput, u: Tensor) -> Tensor:
    """x̄ = −Bᵀu of the input whose B is declared a multiple of the identity."""
    shared = problem.in_dims[tag.input] is None
    return (-tag.scale * (u.sum(0) if shared else u)).reshape(problem.tensors[tag.input].shape)


def hook_vjp(problem: Problem, solution: Solution, v: Tensor, wanted: Sequence[int]) -> list[Tensor]:
    """x̄ of these inputs from the node's `vjp`, summed where the batch shares an input."""
    if problem.layout is None:
        raise RuntimeError(f"{problem.name}: the shape of y is not known yet")
    gradients = problem.call_batched("vjp", solution, problem.layout.unpack(v), packed=True)
    if not isinstance(gradients, tuple | list) or len(gradients) != problem.inputs:
        raise TypeError(f"{problem.name}.vjp must return one gradient for each of {problem.inputs} inputs, as a tuple, got {type(gradients).__name__}")
    results = []
    for k in wanted:
        x, dim = problem.tensors[k], problem.in_dims[k]
        expected = tuple(x.shape) if dim == 0 else (problem.batch, *x.shape)
        if not isinstance(gradients[k], Tensor) or tuple(gradients[k].shape) != expected:
            came = tuple(gradients[k].shape) if isinstance(gradients[k], Tensor) else type(gradients[k]).__name__
            raise StructureError(f"{problem.name}.vjp: the gradient of input {k} must have shape {expected} (batch first), got {came}")
        results.append(gradients[k] if dim == 0 else gradients[k].sum(0))
    return results


def solution_size(problem: Problem) -> int:
    """m"""
    if problem.layout is None:
        raise RuntimeError(f"{problem.name}: the shape of y is not known yet")
    return problem.layout.size


def _from_hook(problem: Problem, hook: str, solution: Solution, expected: tuple[int, int, int]) -> Operator:
    operator = problem.call_batched(hook, solution)
    if not isinstance(operator, Operator):
        raise TypeError(f"{problem.name}.{hook} must return an operator of declarative.structure, such as DiagonalOperator(d), got {type(operator).__name__}")
    if operator.shape != expected:
        raise StructureError(f"{problem.name}.{hook} returned a {type(operator).__name__} of shape {operator.shape}; expected {expected} (b, rows, columns)")
    return operator


def _repeated(operator: DenseOperator | SparseOperator, batch: int) -> Operator:
    if isinstance(operator, SparseOperator):
        return operator.repeated(batch)
    return DenseOperator(operator.matrix.expand(batch, -1, -1))


def _constant_jacobian(problem: Problem, tag: Constant, k: int, m: int) -> DenseOperator | SparseOperator | None:
    """A of one made-up instance, (1, k, m), kept for the node; None where its parameters are being transformed or A's derivative is recorded."""
    lifted = problem.tensors[problem.inputs :]
    if any(is_wrapped(t) or is_recorded(t) or dim is not None for t, dim in zip(lifted, problem.in_dims[problem.inputs :], strict=True)):
        return None
    like = problem.like
    shapes = tuple(tuple(t.shape[1:] if dim == 0 else t.shape) for t, dim in zip(problem.tensors[: problem.inputs], problem.in_dims, strict=False))
    # A parameter that is set anew, or changed in place, makes another entry.
    versions = tuple((id(t), t._version) for t in lifted)
    key = (tag, k, m, shapes, like.dtype, like.device, problem.layout, versions)
    known = _constants.setdefault(problem.node, {})
    if key not in known:
        generator = np.random.default_rng(0)  # numpy's: torch's own is forbidden under vmap
        made_up = [torch.as_tensor(generator.uniform(0.5, 1.5, shape), dtype=like.dtype, device=like.device) for shape in (*shapes, (1, m))]
        one = replace(problem, in_dims=tuple(None for _ in problem.in_dims), batch=1).with_tensors([*made_up[:-1], *(t.detach() for t in lifted)])
        with torch.no_grad():
            matrix = linearise(one, made_up[-1]).jacobian().detach()
        if not bool(torch.isfinite(matrix).all()):
            raise ValueError(f"{problem.name}.constraint_structure = Constant(...): the Jacobian is not finite at a made-up point, so it is not constant")
        known.clear()
        # With the tensors themselves, so that their ids stay theirs.
        known[key] = (DenseOperator(matrix) if tag.structure is None else SparseOperator.from_dense(matrix).repeated(1)), lifted
    return known[key][0]


def read_solution(problem: Problem, y: Tensor, equality: Tensor, inequality: Tensor, active: Tensor) -> Solution:
    """What a hook sees: y in the user's shape, and the multipliers."""
    if problem.layout is None:
        raise RuntimeError(f"{problem.name}: the shape of y is not known yet")
    return Solution(problem.layout.unpack(y), equality, inequality, active)
