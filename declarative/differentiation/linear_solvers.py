"""How the KKT system of the backward pass is solved: chosen by the caller, or by `Auto`, which can be asked why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from declarative.engines.blocks import closed_hessian
from declarative.structure.base import Operator
from declarative.structure.tags import Dense, Tag

Preconditioner = Callable[[Any], Operator]
# Matrix-free pays where forming H costs many sweeps; below, one dense factorisation is cheaper than a few products.
# Measured on two cores: docs/architecture.md.
_MATRIX_FREE_SIZE = 400
_MATRIX_FREE_WORK = 2_000_000


@dataclass(frozen=True)
class Direct:
    """Factorise: the Schur complement of a declared H, else the bordered matrix, dense."""


@dataclass(frozen=True, kw_only=True)
class _Iterative:
    tolerance: float | None = None
    max_iterations: int | None = None
    preconditioner: Preconditioner | None = None

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise ValueError(f"{name}(tolerance=...) must be a relative residual between 0 and 1, got {self.tolerance!r}")
        if self.max_iterations is not None and self.max_iterations < 1:
            raise ValueError(f"{name}(max_iterations=...) must be at least 1, got {self.max_iterations!r}")
        if self.preconditioner is not None and not callable(self.preconditioner):
            raise TypeError(f"{name}(preconditioner=...) must be a function of the solution that returns an operator, got {self.preconditioner!r}")


@dataclass(frozen=True, kw_only=True)
class ConjugateGradients(_Iterative):
    """Conjugate gradients on the null space of A: H is never formed, only multiplied with. For H positive definite there.

    A is formed (p + q products) and orthogonalised. (Gould, Hribar & Nocedal, 2001.) Samples that do not converge are solved
    densely, and the report says so.

    Args:
        tolerance: relative residual. Default eps^¾.
        max_iterations: default 2 m.
        preconditioner: solution -> an operator (b, m, m) near H that is cheap to solve with, positive definite.
    """


@dataclass(frozen=True, kw_only=True)
class MINRES(_Iterative):
    """The minimal residual method on the whole KKT matrix: nothing is formed at all. For any symmetric K, H indefinite or not.

    (Paige & Saunders, 1975.) Samples that do not converge are solved densely, and the report says so.

    Args:
        tolerance: relative residual. Default eps^¾.
        max_iterations: default 4 (m + p + q).
        preconditioner: solution -> a positive definite operator (b, n, n), n = m + p + q, cheap to solve with.
    """


@dataclass(frozen=True)
class Auto:
    """Chooses by what is declared and by size: Schur complement, dense, or conjugate gradients with a dense fallback."""

    def choose(self, tag: Tag | None, hook: bool, batch: int, m: int, k: int, exact_rows: bool) -> tuple[Direct | ConjugateGradients, str]:
        """(solver, reason).

        Args:
            tag, hook: what the node declares of H.
            batch, m, k: sizes; k = p + q.
            exact_rows: every constraint either counts as an equation or does not (no smoothing, no damping).
        """
        if hook:
            return Direct(), "H comes from the node's hook, and is solved with by its structure"
        if tag is not None and not isinstance(tag, Dense):
            return Direct(), f"H is declared {tag}, and is solved with by its structure"
        if m < _MATRIX_FREE_SIZE and (m < _MATRIX_FREE_SIZE // 2 or batch * m * m < _MATRIX_FREE_WORK):
            return Direct(), f"nothing is declared about H, and at m = {m}, batch {batch} forming it costs less than a few dozen products one after the other"
        if 4 * k > m:
            return Direct(), f"{k} constraints on {m} numbers: projecting onto their null space would cost as much as a factorisation"
        if not exact_rows:
            return Direct(), "smoothing and damping need the matrix itself"
        return (
            ConjugateGradients(max_iterations=max(40, m // 6)),
            f"nothing is declared about H, and at m = {m}, batch {batch} a few dozen products cost less than forming it; samples that converge slowly go dense",
        )


LinearSolver = Auto | Direct | ConjugateGradients | MINRES


def choose(solver: LinearSolver | None, node: Any, batch: int, m: int, k: int, exact_rows: bool) -> tuple[Direct | ConjugateGradients | MINRES, str]:
    """What serves a node at this size, and why."""
    if solver is None or isinstance(solver, Auto):
        closed = closed_hessian(node)
        if closed is not None and closed.structured:
            return Direct(), f"H is {closed.description[0]} by its formula, and is solved with by its structure"
        return (solver or Auto()).choose(node.hessian_structure, node.hessian is not None, batch, m, k, exact_rows)
    if not exact_rows and not isinstance(solver, Direct):
        raise ValueError(f"{type(solver).__name__} cannot be combined with smoothing or damping, which need the matrix itself; use Direct() or Auto()")
    return solver, "chosen by the caller"
