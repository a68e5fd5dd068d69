"""Samples with different active sets among many inequalities: inactive rows are left out of the KKT matrix, and nothing else changes."""

import pytest
import torch

from declarative import DeclarativeNode, Implicit, Status
from declarative.kkt import bordered
from declarative.solvers import InteriorPoint
from tests.conformance.cases import close, weights

pytestmark = pytest.mark.usefixtures("shapes_unchecked")

F64 = torch.float64
FACES = torch.nn.functional.normalize(torch.as_tensor(weights((6, 4), 11)), dim=1)
X = torch.as_tensor(weights((4, 4), 3)) * torch.tensor([[0.1], [0.8], [2.0], [3.0]], dtype=F64)


class Polytope(DeclarativeNode):
    """A smooth objective on a box cut by planes and a sphere that moves with x: 15 inequalities, 1 equality."""

    def objective(self, x, y):
        return 0.5 * (y - x).square().sum() + 0.1 * (y[1:] - y[:-1]).cosh().sum()

    def equality_constraints(self, x, y):
        return y.sum() - 0.1 * x[0]

    def inequality_constraints(self, x, y):
        return torch.cat([y - 0.6, -0.5 - y, FACES @ y - 0.7 - 0.02 * x[1], (y @ y - 0.8).reshape(1)])

    def initial_guess(self, x):
        return torch.zeros_like(x)


def node_of(**options):
    return Polytope(solver=InteriorPoint(), polish=4, differentiation=Implicit(**options))


def flat(s):
    return torch.cat([s.y, s.equality_multipliers, s.inequality_multipliers], 1)


def functional(s):
    """Each sample's number, in which y and the multipliers mix."""
    z = flat(s)
    return ((z + 0.3 * z**2) * torch.as_tensor(weights(z.shape[1:], 7))).sum(1)


def gradient(node, x):
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(functional(node.solution(x)).sum(), x)[0]


def second_order(node, x):
    x = x.detach().clone().requires_grad_()
    (first,) = torch.autograd.grad(functional(node.solution(x)).sum(), x, create_graph=True)
    return torch.autograd.grad((first * torch.as_tensor(weights(x.shape[1:], 9))).sum(), x)[0]


def one_by_one(function, x=X):
    return torch.cat([function(x[i : i + 1]) for i in range(x.shape[0])])


def differences(function, x, h=1e-5):
    """∂function/∂x of each sample's own number."""
    columns = [(function(x + h * e) - function(x - h * e)) / (2 * h) for e in torch.eye(x.shape[1], dtype=F64)]
    return torch.stack(columns, 1)


@pytest.fixture
def masked(monkeypatch):
    """A switch: from here on, inactive rows are masked, not left out."""
    return lambda: monkeypatch.setattr(bordered, "_MANY_ROWS", 10**9)


OPTIONS = [{}, {"smoothing": 1e-3}, {"damping": 1e-2}, {"smoothing": 1e-3, "damping": 1e-2}]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: " ".join(o) or "exact")


def test_solutions():
    s = node_of().solution(X)
    assert s.status.tolist() == [Status.CONVERGED] * 4
    assert s.active.shape[1] >= 12
    counts = s.active.sum(1).tolist()
    assert 0 in counts
    assert len(set(counts)) > 2
    assert len({tuple(row) for row in s.active.tolist()}) == 4
    close(flat(s), one_by_one(lambda x: flat(node_of().solution(x))), 1e-11)


@every_option
@pytest.mark.parametrize("order", [gradient, second_order], ids=lambda f: f.__name__)
def test_derivatives_of_a_batch_are_those_of_its_samples(options, order, masked):
    node = node_of(**options)
    found, alone = order(node, X), one_by_one(lambda x: order(node, x))
    close(found, alone, 1e-10 * float(alone.abs().max()))
    masked()
    close(found, order(node, X), 1e-10 * float(alone.abs().max()))


def test_derivatives_against_differences():
    node = node_of()
    close(gradient(node, X), differences(lambda x: functional(node.solution(x)), X), 1e-8)
    v = torch.as_tensor(weights(X.shape[1:], 9))
    close(second_order(node, X), differences(lambda x: (gradient(node, x) * v).sum(1), X), 1e-7)


@every_option
def test_transforms(options):
    node = node_of(**options)

    def outputs(x):
        return flat(node.solution(x))

    whole = torch.func.jacrev(outputs)(X)
    alone = one_by_one(lambda x: torch.func.jacrev(outputs)(x)[:, :, 0])
    close(whole.diagonal(dim1=0, dim2=2).movedim(-1, 0), alone, 1e-10)
    assert float(whole.abs().sum((1, 3)).fill_diagonal_(0).max()) == 0
    several = torch.stack([X, X.flip(0), 0.9 * X])
    close(torch.func.vmap(outputs)(several), torch.stack([outputs(x) for x in several]), 1e-10)
    mapped = torch.func.vmap(torch.func.grad(lambda x: functional(node.solution(x)).sum()))(several)
    close(mapped, torch.stack([gradient(node, x) for x in several]), 1e-9)
