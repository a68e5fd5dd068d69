"""S = A W Aᵀ for a diagonal W = H⁻¹, block by block: which blocks are diagonal, and whether S is that of row and column sums."""

# sympy annotates most results as Basic.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sympy import Symbol

from declarative.symbolic.arrays import Array
from declarative.symbolic.source import Output
from declarative.symbolic.statement import Statement
from declarative.symbolic.terms import Term, Terms, on_diagonal, product

if TYPE_CHECKING:
    from declarative.symbolic.closed_form import ClosedForm


@dataclass(frozen=True)
class Complement:
    """The blocks of S.

    Args:
        kind: "diagonal": one family, each constraint with entries of its own; "marginals": the sums over two complementary groups of
            axes; "eliminated": a diagonal block is eliminated; "dense".
        blocks: the terms of each block, (family, family) -> terms of (free, copied free).
        columns: the copied free indices of each family.
        diagonal: which families have a diagonal block of their own.
        axes: of "marginals", the axes of y that the first family keeps.
        signs: of "marginals", the entry of A of each family, 1 or −1.
        weights: W, as arrays.
    """

    kind: str
    blocks: dict[tuple[int, int], Terms]
    columns: tuple[tuple[Symbol, ...], ...]
    diagonal: tuple[int, ...]
    weights: tuple[Array, ...]
    axes: tuple[int, ...] = ()
    signs: tuple[int, ...] = ()


def complement(form: ClosedForm) -> Complement | None:
    """None where H is not diagonal or there are no constraints."""
    statement, b = form.statement, form.blocks
    families, indices = statement.constraints, statement.indices
    if not families or not form.structure.is_diagonal:
        return None
    weights = form.weights
    columns = tuple(indices.copies(c.free) for c in families)
    blocks: dict[tuple[int, int], Terms] = {}
    for k in range(len(families)):
        for j in range(len(families)):
            found: Terms = []
            for v, q in enumerate(b.columns):
                weighted = [Term(t.coefficient * weights[v].at(q), t.bound, t.deltas, t.guards) for t in b.jacobian[k, v]]
                names = dict(zip(families[j].free, columns[j], strict=True))
                found += product(weighted, [t.renamed(names) for t in b.jacobian[j, v]], q, indices)
            blocks[k, j] = found
    diagonal = tuple(k for k, c in enumerate(families) if _is_diagonal(blocks[k, k], c.free, columns[k]))
    marginal = _marginals(form)
    if marginal is not None:
        return Complement("marginals", blocks, columns, diagonal, weights, *marginal)
    if len(families) == 1 and diagonal:
        return Complement("diagonal", blocks, columns, diagonal, weights)
    return Complement("eliminated" if diagonal else "dense", blocks, columns, diagonal, weights)


def _is_diagonal(terms: Terms, rows: tuple[Symbol, ...], columns: tuple[Symbol, ...]) -> bool:
    wanted = {frozenset(pair) for pair in zip(rows, columns, strict=True)}
    return all({frozenset(d) for d in t.deltas} == wanted for t in terms)


def _marginals(form: ClosedForm) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """(axes that the first family keeps, signs) where two families are the sums over the axes that the other keeps."""
    b, families = form.blocks, form.statement.constraints
    if len(families) != 2 or len(b.rows) != 1 or not all(c.equality for c in families):
        return None
    kept, signs = [], []
    for k, c in enumerate(families):
        terms = b.jacobian[k, 0]
        if len(terms) != 1 or terms[0].coefficient not in (1, -1) or terms[0].bound or terms[0].guards:
            return None
        pairs = {frozenset(d) for d in terms[0].deltas}
        axes = [next((a for a, q in enumerate(b.columns[0]) if frozenset((s, q)) in pairs), None) for s in c.free]
        if len(pairs) != len(c.free) or None in axes or axes != sorted(a for a in axes if a is not None):
            return None
        kept.append(tuple(a for a in axes if a is not None))
        signs.append(int(terms[0].coefficient))
    every = set(range(len(b.columns[0])))
    if not kept[0] or not kept[1] or set(kept[0]) & set(kept[1]) or set(kept[0]) | set(kept[1]) != every:
        return None
    return kept[0], tuple(signs)


def complement_outputs(found: Complement, statement: Statement) -> list[Output]:
    """The blocks of the upper triangle."""
    families = statement.constraints
    outputs: list[Output] = []
    for k, c in enumerate(families):
        for j in range(k, len(families)):
            if j == k and k in found.diagonal:
                outputs.append(([on_diagonal(t, found.columns[k]) for t in found.blocks[k, k]], c.free))
            else:
                outputs.append((found.blocks[k, j], (*c.free, *found.columns[j])))
    return outputs
