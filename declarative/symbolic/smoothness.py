"""Kinks: where |z|, max, sign or a case of a Piecewise makes a slope jump, at a point that a minimiser may sit at.

Each candidate is tried: the expression it stands in, as a function of one entry, just left and just right of the place where z = 0. A Huber
function or a squared hinge passes. So does, in an objective, a kink whose slope jumps downwards (a truncated quadratic): no minimiser is there.
"""

# sympy annotates most results as Basic.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false, reportGeneralTypeIssues=false, reportAssignmentType=false
from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import sympy
from sympy import Dummy, Expr, Product, Sum, Symbol
from sympy.core.relational import Relational

from declarative.symbolic.functions import Cases, logsumexp
from declarative.symbolic.statement import Statement
from declarative.symbolic.terms import as_numbers

_TRIES, _STEP, _TOLERANCE = 24, 1e-4, 2e-3
_NUMERIC = [{"logistic": lambda z: 1 / (1 + np.exp(-z)), "softplus": lambda z: np.logaddexp(0, z)}, "scipy", "numpy"]


def check_smooth(statement: Statement) -> None:
    """Raise a ValueError that names the first expression without a derivative."""
    variables = {v.label for v in statement.variables}
    _check("the objective", statement.objective, 1, variables, statement)
    for k, c in enumerate(statement.constraints):
        _check(f"constraint {k}", c.expression, 0, variables, statement)


def _check(label: str, e: Expr, sign: int, variables: set[Symbol], statement: Statement) -> None:
    """sign: 1 where the objective grows with e, −1 where it falls, 0 where that is not known."""
    atoms = as_numbers(e)
    plain = e.xreplace(atoms)
    moving = {z for atom, z in atoms.items() if variables & atom.free_symbols}
    for kink, gap in _kinks(plain):
        through = sorted(moving & gap.free_symbols, key=str)
        if not through:
            continue
        found = _jump(plain, gap, through[0], list(atoms.values()), atoms)
        if found is None:
            continue
        jump, what = found
        if what == "slope" and jump * sign < 0:
            continue
        back = {z: atom for atom, z in atoms.items()}
        names = {s: Symbol(statement.indices.original.get(s, s.name)) for s in statement.indices.ranges}
        shown, where = (sympy.sstr(x.xreplace(back).xreplace(names)) for x in (kink, gap))
        raise ValueError(
            f"{label}: {shown} is not differentiable where {where} = 0: the {what} jumps by {jump:+.2g} there. Smooth it, as sqrt(z**2 + eps) does |z|; "
            "write the cases as a Piecewise with matching slopes (Huber); or use an inequality and a variable more"
        )
    for atom, z in atoms.items():
        inner = atom.args[0] if isinstance(atom, logsumexp) else atom
        if isinstance(inner, Sum | Product) and variables & atom.free_symbols:
            _check(label, inner.function, sign * _direction(plain, z, atoms) if isinstance(inner, Sum) else 0, variables, statement)


def _kinks(e: sympy.Basic) -> Iterator[tuple[sympy.Basic, Expr]]:
    """(what is written, the expression that vanishes at the kink)"""
    for part in sympy.preorder_traversal(e):
        if isinstance(part, sympy.Abs | sympy.sign | sympy.Heaviside):
            yield part, part.args[0]  # pyright: ignore[reportReturnType]
        elif isinstance(part, sympy.Max | sympy.Min):
            for other in part.args[1:]:
                yield part, part.args[0] - other  # pyright: ignore[reportReturnType, reportOperatorIssue]
        elif isinstance(part, Cases):
            for _, condition in part.pairs:
                for relation in condition.atoms(Relational):
                    yield part, relation.lhs - relation.rhs


def _numeric(e: Expr) -> Expr:
    """With sympy's own cases, which it can evaluate."""
    return e.replace(lambda x: isinstance(x, Cases), lambda x: x.as_piecewise()).replace(lambda x: isinstance(x, sympy.DiracDelta), lambda x: sympy.S.Zero)  # noqa: ARG005


def _samples(atoms: dict[sympy.Basic, Dummy], generator: np.random.Generator) -> dict[Dummy, float]:
    """Entries of either sign; sums are mostly of squares, and scalars mostly scales."""
    drawn = {}
    for atom, z in atoms.items():
        size = float(generator.uniform(0.2, 2.0))
        drawn[z] = size if isinstance(atom, Sum | Product | Symbol) or generator.random() < 0.5 else -size
    return drawn


def _jump(e: Expr, gap: Expr, z: Dummy, order: list[Dummy], atoms: dict[sympy.Basic, Dummy]) -> tuple[float, str] | None:
    """By how much ∂e/∂z (or e) jumps, in the direction of growing z, at points with gap = 0; None: nowhere that was found."""
    value, distance = (sympy.lambdify(order, _numeric(x), _NUMERIC) for x in (e, gap))
    generator, worst = np.random.default_rng(0), None
    for _ in range(_TRIES):
        at = _samples(atoms, generator)

        def along(function: Callable[..., float], t: float, at: dict[Dummy, float] = at) -> float:
            with np.errstate(all="ignore"):
                return float(np.real(function(*({**at, z: t}[s] for s in order))))

        for root in _roots(lambda t: along(distance, t)):
            points = [along(value, root + k * _STEP) for k in (-2, -1, 1, 2)]
            if not np.isfinite(points).all():
                continue
            left, right = (points[1] - points[0]) / _STEP, (points[3] - points[2]) / _STEP
            across = (points[2] - points[1]) / (2 * _STEP)
            scale = 1 + abs(left) + abs(right)
            broken = abs(across - (left + right) / 2) > 10 * _TOLERANCE * scale + abs(right - left)  # the value itself jumps
            if broken:
                return points[2] - points[1], "value"
            if abs(right - left) > _TOLERANCE * scale and (worst is None or right - left > worst[0]):
                worst = right - left, "slope"
    return worst


def _roots(function: Callable[[float], float]) -> list[float]:
    grid = np.linspace(-4.0, 4.0, 162)
    values = np.array([function(t) for t in grid])
    found = []
    for k in np.flatnonzero(np.isfinite(values[:-1]) & np.isfinite(values[1:]) & (np.sign(values[:-1]) != np.sign(values[1:]))):
        low, high = grid[k], grid[k + 1]
        for _ in range(60):
            middle = 0.5 * (low + high)
            if np.sign(function(middle)) == np.sign(values[k]):
                low = middle
            else:
                high = middle
        found.append(0.5 * (low + high))
    return found


def _direction(e: Expr, z: Dummy, atoms: dict[sympy.Basic, Dummy]) -> int:
    """The sign of ∂e/∂z, 0 if it has both."""
    slope = sympy.lambdify(list(atoms.values()), _numeric(sympy.diff(e, z)), _NUMERIC)
    generator, signs = np.random.default_rng(1), set()
    for _ in range(8):
        with np.errstate(all="ignore"):
            drawn = _samples(atoms, generator)
            value = float(np.real(slope(*(drawn[z] for z in atoms.values()))))
            if np.isfinite(value):
                signs.add(int(np.sign(value)))
    signs -= {0}
    return signs.pop() if len(signs) == 1 else 0
