"""The interior point method by the structure of H: the same iterates, at the cost of the structure."""

import pytest
import torch

from declarative import DeclarativeNode
from declarative.solvers import InteriorPoint
from declarative.solvers.condensed import condensed
from declarative.structure import (
    Banded,
    BandedOperator,
    BlockDiagonal,
    BlockDiagonalOperator,
    Constant,
    Diagonal,
    DiagonalOperator,
    LowRankUpdate,
    LowRankUpdateOperator,
    ScaledIdentity,
)
from tests.conformance.cases import close, weights

pytestmark = pytest.mark.usefixtures("shapes_unchecked")

M = 24
X = weights((3, M), 4)


class Base(DeclarativeNode):
    def objective(self, x, y):
        return (y.cosh() - x * y).sum()

    def initial_guess(self, x):
        return torch.zeros_like(x)


def bounds(self, x, y):
    return torch.cat([y - 0.5, -0.4 - y])


def rising(self, x, y):
    return y[:-1] - y[1:]


def chain(self, x, y):
    return (y.cosh() - x * y).sum() + (y[1:] - y[:-1]).square().sum()


def blocks(self, x, y):
    return (y.reshape(-1, 3).square().sum(1) + 1).sqrt().sum() + 0.5 * (y - x).square().sum()


def update(self, x, y):
    return (y.cosh() - x * y).sum() + 0.5 * y.sum() ** 2


def total(self, x, y):
    return y.sum() - 1


def identity(self, x, y):
    return 0.5 * (y - x).square().sum()


def wells(self, x, y):
    return (0.25 * y**4 - 0.5 * y * y + 0.2 * x * y).sum()


# objective, tag, inequalities, equalities, the operator that is expected
CASES = {
    "diagonal, bounds": (Base.objective, Diagonal(), bounds, None, DiagonalOperator),
    "diagonal, bounds, a sum": (Base.objective, Diagonal(), bounds, total, DiagonalOperator),
    "identity, bounds": (identity, ScaledIdentity(), bounds, total, DiagonalOperator),
    "diagonal, rising": (Base.objective, Diagonal(), rising, None, BandedOperator),
    "chain, bounds": (chain, Banded(1), bounds, total, BandedOperator),
    "chain, rising": (chain, Banded(1), rising, total, BandedOperator),
    "blocks, bounds": (blocks, BlockDiagonal(3), bounds, total, BlockDiagonalOperator),
    "update, bounds": (update, LowRankUpdate(1), bounds, None, LowRankUpdateOperator),
    "blocks, rising": (blocks, BlockDiagonal(3), rising, None, None),
    "not convex": (wells, Diagonal(), bounds, total, DiagonalOperator),
}


def made(objective, g, h, **tags):
    methods = {"objective": objective, "inequality_constraints": g, **({"equality_constraints": h} if h else {}), **tags}
    return type("Made", (Base,), methods)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("constant", [False, True])
def test_the_same_solution(name, constant):
    objective, tag, g, h, _ = CASES[name]
    tags = {"hessian_structure": tag, **({"constraint_structure": Constant()} if constant else {})}
    plain, declared = made(objective, g, h), made(objective, g, h, **tags)
    x = X.clone().requires_grad_()
    solutions = [node().solution(x) for node in (plain, declared)]
    gradients = [torch.autograd.grad((weights(s.y.shape, 9) * s.y).sum(), x)[0] for s in solutions]
    close(solutions[1].y, solutions[0].y, 1e-9)
    close(solutions[1].inequality_multipliers, solutions[0].inequality_multipliers, 1e-9)
    close(solutions[1].equality_multipliers, solutions[0].equality_multipliers, 1e-9)
    close(gradients[1], gradients[0], 1e-9)
    # A quadratic program without structure is left some steps early, for the equations of its active rows.
    assert int((solutions[1].iterations - solutions[0].iterations).abs().max()) <= (8 if name != "not convex" else 40)


@pytest.mark.parametrize("name", CASES)
def test_the_condensed_matrix(name):
    """H + Gᵀ diag(w) G, entry by entry, and kept in the form that H has."""
    objective, _, g, _, kind = CASES[name]
    hessian = torch.func.vmap(torch.func.hessian(lambda y, x: objective(None, x, y)))(weights((3, M), 5), X)
    operators = {
        DiagonalOperator: lambda: DiagonalOperator(hessian.diagonal(dim1=1, dim2=2)),
        BandedOperator: lambda: BandedOperator(
            torch.stack([torch.nn.functional.pad(hessian.diagonal(d, 1, 2), (max(0, -d), max(0, d))) for d in (-1, 0, 1)], 1), 1, 1
        ),
        BlockDiagonalOperator: lambda: BlockDiagonalOperator(torch.stack([hessian[:, i : i + 3, i : i + 3] for i in range(0, M, 3)], 1)),
        LowRankUpdateOperator: lambda: LowRankUpdateOperator(DiagonalOperator(hessian.diagonal(dim1=1, dim2=2) - 1), torch.ones(3, M, 1, dtype=torch.float64)),
    }
    own = operators[BlockDiagonalOperator if kind is None else DiagonalOperator if "diagonal" in name else kind]()
    rows = torch.func.vmap(torch.func.jacrev(lambda y, x: g(None, x, y)))(weights((3, M), 5), X)
    amounts = weights((3, rows.shape[1]), 6).abs()
    found = condensed(own, rows, amounts)
    if kind is None:
        assert found is None
        return
    assert isinstance(found, kind)
    close(found.to_dense(), own.to_dense() + rows.mT @ (amounts.unsqueeze(-1) * rows), 1e-12)


def test_a_band_that_would_fill_the_matrix_is_none():
    rows = torch.zeros(1, 1, M, dtype=torch.float64)
    rows[0, 0, 0] = rows[0, 0, -1] = 1
    assert condensed(DiagonalOperator(torch.ones(1, M, dtype=torch.float64)), rows, torch.ones(1, 1, dtype=torch.float64)) is None


def test_projection_onto_a_large_simplex():
    """Against sorting, at a size where a dense factorisation would show."""

    class Projection(Base):
        hessian_structure = ScaledIdentity()
        constraint_structure = Constant()
        objective = identity
        equality_constraints = total

        def inequality_constraints(self, x, y):
            return -y

    x = weights((2, 600), 8)
    s = Projection(solver=InteriorPoint()).solution(x)
    ordered = x.sort(1, descending=True).values
    sums = (ordered.cumsum(1) - 1) / torch.arange(1, 601)
    shift = sums.gather(1, ((ordered > sums).sum(1, keepdim=True) - 1))
    close(s.y, (x - shift).clamp_min(0), 1e-10)
    assert int(s.iterations.max()) < 40
