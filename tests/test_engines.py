"""Both evaluators of the engine against torch.autograd.functional, and against each other."""

import pytest
import torch

from declarative import DeclarativeNode
from declarative.engines import nested
from declarative.engines.autodiff import GraphLinearisation
from declarative.engines.functional import FunctionalLinearisation
from declarative.node import prepare
from declarative.problem import Layout
from tests.conformance.cases import close, weights

F64 = torch.float64
B, M, P, Q = 3, 4, 2, 1


class Everything(DeclarativeNode):
    """Curved in y, x and s, with constraints that are too."""

    def objective(self, x, s, y):
        return (y**4).sum() / 4 + (x * y.sin()).sum() + s * y[0] * y[1] * y[2]

    def equality_constraints(self, x, s, y):
        return torch.stack([y @ y - x[0] ** 2, (s * y).sum() - x.sum()])

    def inequality_constraints(self, x, s, y):
        return (y[0] * y[3] - x[1] * s).reshape(1)


X, S, Y = weights((B, M), 1), weights((), 2), weights((B, M), 3)
NU, MU = weights((B, P), 4), weights((B, Q), 5)


def problem_of(node=None, in_dims=(0, None)):
    problem, _, _ = prepare(node or Everything(), (X, S) if in_dims == (0, None) else (X,), in_dims)
    return problem.with_layout(Layout(((M,),), False))


def graph(wanted=(0, 1)):
    with torch.no_grad():
        return GraphLinearisation(problem_of(), Y, NU, MU, wanted)


both = pytest.mark.parametrize("make", [graph, lambda: FunctionalLinearisation(problem_of(), Y, NU, MU)], ids=["graph", "functional"])


def lagrangian(i):
    node = Everything()
    return lambda x, s, y: node.objective(x, s, y) + NU[i] @ node.equality_constraints(x, s, y) + MU[i] @ node.inequality_constraints(x, s, y)


def rows(x, s, y):
    node = Everything()
    return torch.cat([node.equality_constraints(x, s, y), node.inequality_constraints(x, s, y)])


def blocks(i):
    """H, A, [B for x, B for s], [C for x, C for s] of sample i."""
    hessian = torch.autograd.functional.hessian(lagrangian(i), (X[i], S, Y[i]))
    jacobian = torch.autograd.functional.jacobian(rows, (X[i], S, Y[i]))
    return hessian[2][2], jacobian[2], hessian[2][:2], jacobian[:2]


@both
def test_blocks(make):
    at = make()
    for i in range(B):
        H, A, _, _ = blocks(i)
        close(at.hessian()[i], H, 1e-12)
        close(at.jacobian()[i], A, 1e-12)
        close(at.gradient[i], torch.autograd.functional.jacobian(lambda y, i=i: lagrangian(i)(X[i], S, y), Y[i]), 1e-12)
        close(at.constraints[i], rows(X[i], S, Y[i]), 1e-13)
        close(at.objective[i], Everything().objective(X[i], S, Y[i]), 1e-13)


@both
def test_products(make):
    at, d, u, w = make(), weights((B, M), 6), weights((B, M), 7), weights((B, P + Q), 8)
    close(at.hessian_product(d), (at.hessian() @ d.unsqueeze(2)).squeeze(2), 1e-12)
    x_bar, s_bar = at.pull_back(u, w, [0, 1])
    total = torch.zeros((), dtype=F64)
    for i in range(B):
        _, _, B_blocks, C_blocks = blocks(i)
        close(x_bar[i], B_blocks[0].T @ u[i] + C_blocks[0].T @ w[i], 1e-12)
        total = total + B_blocks[1] @ u[i] + C_blocks[1] @ w[i]
    close(s_bar, total, 1e-12)
    tangents = {0: weights((B, M), 9), 1: weights((), 10)}
    du, dw = at.push_forward(tangents)
    close((du * u).sum() + (dw * w).sum(), (x_bar * tangents[0]).sum() + s_bar * tangents[1], 1e-11)


class Flat(DeclarativeNode):
    """Linear in y, with a constraint that depends on nothing."""

    def objective(self, x, y):
        return (x * y).sum()

    def equality_constraints(self, x, y):
        return torch.zeros(2, dtype=y.dtype)


@pytest.mark.parametrize("functional", [False, True])
def test_what_does_not_depend(functional):
    problem = problem_of(Flat(), in_dims=(0,))
    with torch.no_grad():
        at = FunctionalLinearisation(problem, Y, NU, MU[:, :0]) if functional else GraphLinearisation(problem, Y, NU, MU[:, :0], [0])
        assert not bool(at.hessian().any())
        assert not bool(at.jacobian().any())
        assert at.jacobian().shape == (B, 2, M)
        close(at.gradient, X)
        (x_bar,) = at.pull_back(Y, NU, [0])
        close(x_bar, Y)
        du, dw = at.push_forward({0: Y})
        close(du, Y)
        close(dw, torch.zeros(B, 2, dtype=F64))


def test_other_multipliers_on_the_same_graph():
    at = graph().with_multipliers(2 * NU, MU + 1)
    with torch.no_grad():
        expected = GraphLinearisation(problem_of(), Y, 2 * NU, MU + 1, (0, 1))
    close(at.hessian(), expected.hessian(), 1e-12)
    close(at.pull_back(Y, weights((B, 3), 8), [0, 1]), expected.pull_back(Y, weights((B, 3), 8), [0, 1]), 1e-12)


def test_multipliers_added_to_a_graph_without():
    with torch.no_grad():
        at = GraphLinearisation(problem_of(), Y, None, None, (0, 1)).with_multipliers(NU, MU)
    u, w = weights((B, M), 7), weights((B, 3), 8)
    close(at.gradient, graph().gradient, 1e-12)
    close(at.hessian(), graph().hessian(), 1e-12)
    close(at.pull_back(u, w, [0, 1]), graph().pull_back(u, w, [0, 1]), 1e-12)


class OfEachSample(DeclarativeNode):
    """The same with one s a sample, and an input that nothing depends on."""

    def objective(self, x, s, nothing, y):
        return Everything().objective(x, s, y)

    def equality_constraints(self, x, s, nothing, y):
        return Everything().equality_constraints(x, s, y)

    def inequality_constraints(self, x, s, nothing, y):
        return Everything().inequality_constraints(x, s, y)


@pytest.mark.parametrize("wanted", [(0, 1, 2), (0,), (1, 2)])
@pytest.mark.parametrize("formed", ["H", "A", "both"])
def test_mixed_blocks_that_come_with_the_others(wanted, formed):
    # Both ways to x̄: by B and C, which were formed beside H and A, and by a pull-back through the graph.
    inputs = X, weights((B,), 2), weights((B, 2, 2), 9)
    problem = prepare(OfEachSample(), inputs, 0)[0].with_layout(Layout(((M,),), False))
    u, w = weights((B, M), 7), weights((B, 3), 8)
    with torch.no_grad():
        at, plain = (GraphLinearisation(problem, Y, NU, MU, wanted) for _ in range(2))
        if formed != "A":
            at.hessian()
        if formed != "H":
            at.jacobian()
    assert formed == "A" or at._mixed
    close(at.pull_back(u, w, wanted), plain.pull_back(u, w, wanted), 1e-12)
    close(at.input_gradients(u, w, wanted[:1]), plain.input_gradients(u, w, wanted[:1]), 1e-12)
    other = at.with_multipliers(2 * NU, MU)
    other.hessian()
    close(other.pull_back(u, w, wanted), plain.with_multipliers(2 * NU, MU).pull_back(u, w, wanted), 1e-12)


def test_no_mixed_blocks_of_what_the_batch_shares():
    at = graph()
    at.hessian()
    assert not at._mixed


@pytest.mark.parametrize("functional", [False, True])
def test_large_batches_are_cut_up(functional):
    """More numbers than go into one sweep."""

    class Square(DeclarativeNode):
        def objective(self, x, y):
            return (y**4).sum() / 12 + (x * y).sum() ** 2 / 2

    b, m = 900, 90
    x, y = weights((b, m), 1), weights((b, m), 2)
    problem, _, _ = prepare(Square(), (x,), 0)
    problem = problem.with_layout(Layout(((m,),), False))
    with torch.no_grad():
        at = FunctionalLinearisation(problem, y, None, None) if functional else GraphLinearisation(problem, y, None, None, ())
        H = at.hessian()
    close(H, torch.diag_embed(y**2) + x.unsqueeze(2) * x.unsqueeze(1), 1e-11)


def test_blocks_are_differentiable():
    """With grad mode on: derivatives of H and A in y and x."""

    def of(x, y):
        problem = problem_of().with_tensors((x, S))
        at = GraphLinearisation(problem, y, NU, MU, (0,))
        return at.hessian(), at.jacobian(), *at.pull_back(NU.sum() * y, weights((B, 3), 8), [0])

    assert torch.autograd.gradcheck(of, (X.clone().requires_grad_(), Y.clone().requires_grad_()))


class Matrices(DeclarativeNode):
    """Each sample has matrices of its own, the node one that all share; H and A depend on y and λ."""

    def __init__(self):
        super().__init__()
        self.shared = torch.nn.Parameter(weights((6, 6), 8))

    def objective(self, Q, t, y):
        return torch.nn.functional.softplus(-t * (Q @ y)).sum() + 0.5 * y @ self.shared @ y

    def equality_constraints(self, Q, t, y):
        return (y @ (self.shared @ y) - 1).reshape(1)

    def inequality_constraints(self, Q, t, y):
        return (Q @ y).square() - 2


@pytest.mark.parametrize("chunk", [1, 40, 10**9])
def test_directions_inside_instances(chunk, monkeypatch):
    """H and A formed the two ways: a batch of matrices makes the difference in time, not in numbers."""
    monkeypatch.setattr(nested, "_NUMBERS_A_CHUNK", chunk)
    inputs = weights((5, 7, 6), 11), weights((5, 7), 12)
    problem = prepare(Matrices(), inputs, 0)[0].with_layout(Layout(((6,),), False))
    y, nu, mu = weights((5, 6), 13), weights((5, 1), 14), weights((5, 7), 15)
    found = {}
    for worth in (0, 10**12):
        monkeypatch.setattr(nested, "_WORTH", worth)
        with torch.no_grad():
            for multipliers in ((nu, mu), (None, None)):
                at = GraphLinearisation(problem, y, *multipliers, ())
                found[worth, multipliers[0] is None] = at.hessian(), at.jacobian()
    for plain in (False, True):
        for inside, outside in zip(found[0, plain], found[10**12, plain], strict=True):
            close(inside, outside, 1e-13)
            assert not inside.requires_grad
    assert not torch.equal(found[0, True][0], found[0, False][0])
