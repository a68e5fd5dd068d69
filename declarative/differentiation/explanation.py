"""What the backward pass of a node will form and solve, and what that costs: `node.explain(*inputs)`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from declarative.differentiation.implicit import Implicit
from declarative.differentiation.linear_solvers import MINRES, ConjugateGradients, choose
from declarative.engines.blocks import closed_hessian, closed_jacobian
from declarative.structure.constraints import Constant, Sparse
from declarative.structure.tags import Dense


@dataclass(frozen=True)
class Explanation:
    """The plan of one backward pass. `print` it.

    Args:
        hessian, constraints: what is formed of H and A.
        solver: how the KKT system is solved.
        reason: why that was chosen.
        products: matrix-vector products with H and A that are formed in all; for an iteration: per step.
        flops: of the linear algebra, for the batch, roughly; for an iteration: per step, besides the products.
        memory: numbers held by H, A and the factors, for the batch.
        dense_products, dense_flops, dense_memory: the same if nothing were declared or chosen.
    """

    title: str
    hessian: str
    constraints: str
    solver: str
    reason: str
    products: int
    flops: float
    memory: float
    dense_products: int
    dense_flops: float
    dense_memory: float

    def __str__(self) -> str:
        per = " a step" if "gradients" in self.solver or "MINRES" in self.solver else ""
        return "\n".join(
            [
                self.title,
                f"  H       {self.hessian}",
                f"  A       {self.constraints}",
                f"  solve   {self.solver}: {self.reason}",
                f"  cost    {self.products} products{per} (dense: {self.dense_products}), {self.flops:.1e} flops{per} (dense: {self.dense_flops:.1e}), "
                f"{self.memory:.1e} numbers (dense: {self.dense_memory:.1e})",
            ]
        )


def explain(node: Any, name: str, batch: int, m: int, k: int) -> Explanation:
    """The plan for `batch` samples of m numbers and k constraints."""
    options = node.differentiation
    if not isinstance(options, Implicit):
        raise TypeError(f"{name}: explain describes the backward pass of Implicit(); this node is differentiated by {options!r}, which solves no KKT system")
    title = f"{name}: the backward pass for {batch} samples, y of {m} numbers, {k} constraints"
    dense = (m + k, batch * 2 / 3 * (m + k) ** 3, float(batch * (m + k) ** 2))
    if node.vjp is not None:
        return Explanation(title, "not formed", "not formed", "the node's vjp", "the node does the whole backward pass by hand", 0, 0.0, 0.0, *dense)
    constraints, a_products, a_memory = _constraints(node, batch, m, k)
    if node.solve_kkt is not None:
        products = 1 + (3 if k else 0)
        return Explanation(title, "not formed", "not formed", "the node's solve_kkt", "its residual is measured with products", products, 0.0, 0.0, *dense)
    choice, reason = choose(options.linear_solver, node, batch, m, k, not (options.smoothing or options.damping))
    if isinstance(choice, ConjugateGradients):
        formed = constraints if k else "there is none"
        flops, memory = batch * (10.0 * m + 4 * k * m), batch * (5.0 * m + k * m)
        return Explanation(title, "not formed", formed, "conjugate gradients on null(A)", reason, 1, flops, memory, *dense)
    if isinstance(choice, MINRES):
        flops, memory = batch * 16.0 * (m + k), batch * 8.0 * (m + k)
        return Explanation(title, "not formed", "not formed", "MINRES", reason, 4 if k else 1, flops, memory, *dense)
    tag, closed = node.hessian_structure, closed_hessian(node)
    if closed is not None and closed.structured and not options.damping:
        (hessian, rows), (flops, memory) = closed.description, closed.cost(m, k)
        solver = "Schur complement of H, by its own structure" if k else "H by its structure"
        return Explanation(title, f"{hessian}, in closed form", rows if k else constraints, solver, reason, 0, batch * flops, batch * memory, *dense)
    if node.hessian is not None:
        hessian, products, one = "the node's hook", 0, float(m)
    elif tag is None or isinstance(tag, Dense) or options.damping:
        formed = f"dense, from {m} products" if closed is None else f"{closed.description[0]}, in closed form"
        return Explanation(title, formed, constraints, "LU of the bordered matrix", reason, m + a_products, dense[1], dense[2], *dense)
    else:
        products, one = tag.products(m), tag.solve_flops(m)
        hessian = f"{tag} from {products} product{'s' if products > 1 else ''}"
    flops = batch * (one * (k + 2) + 2.0 * k * k * m + 2 / 3 * k**3)
    memory = batch * (float(products or 1) * m + k * k) + a_memory
    solver = f"Schur complement of H ({k} x {k})" if k else "H by its structure"
    return Explanation(title, hessian, constraints, solver, reason, products + a_products, flops, memory, *dense)


def _constraints(node: Any, batch: int, m: int, k: int) -> tuple[str, int, float]:
    """(in words, products, numbers)"""
    if not k:
        return "there is none", 0, 0.0
    if closed_jacobian(node) is not None:
        return "in closed form", 0, float(batch * k * m)
    if node.constraint_jacobian is not None:
        return "the node's hook", 0, float(batch * k * m)
    tag = node.constraint_structure
    if isinstance(tag, Constant):
        return f"constant{', its nonzeros' if tag.structure is not None else ', dense'}: formed once and kept", 0, float(k * m)
    if isinstance(tag, Sparse):
        found = tag.colouring(k, m, torch.device("cpu"))
        count, entries = found.groups.shape[0], len(found.group)
        return f"sparse, {entries} entries from {count} products", count, float(batch * entries)
    return f"dense, from {k} products", k, float(batch * k * m)
