"""Quadratic programs are recognised by their graphs, linearised once, and never taken for what they are not."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from declarative import DeclarativeNode, Unrolled
from declarative.engines.autodiff import linearise
from declarative.engines.quadratic import Quadratic, is_quadratic
from declarative.node import prepare
from declarative.problem import Layout, Problem
from declarative.solvers import InteriorPoint
from declarative.vectors import times
from tests.conformance.cases import close, weights

pytestmark = pytest.mark.usefixtures("shapes_unchecked")

F64 = torch.float64
W = torch.as_tensor(weights((4, 4)))
X = torch.as_tensor(weights((3, 4), 2))

QUADRATIC = {
    "power": lambda x, y: ((y - x) ** 2).sum(),
    "square, mean": lambda x, y: (y - x).square().mean(),
    "matrix": lambda x, y: y @ W @ y + x @ y,
    "einsum": lambda x, y: torch.einsum("i,ij,j", y, W, y),
    "neighbours": lambda x, y: (y[1:] - y[:-1]).square().sum(),
    "reshaped": lambda x, y: (y.reshape(2, 2).sum(0) ** 2).sum(),
    "linear": lambda x, y: x @ y,
    "weighted": lambda x, y: (x.exp() * y * y).sum(),
    "layer": lambda x, y: torch.nn.functional.linear(y, W).square().sum(),
}
CURVED = {
    "quartic": lambda x, y: (y**4).sum(),
    "cubic": lambda x, y: (y * y * y).sum(),
    "exponential": lambda x, y: y.exp().sum(),
    "norm": lambda x, y: (1 + y @ y).sqrt(),
    "quotient": lambda x, y: (1 / (3 + y)).sum(),
}


def node_of(objective, **methods):
    methods = {name: lambda self, x, y, method=method: method(x, y) for name, method in methods.items()}
    body = {"objective": lambda self, x, y: objective(x, y), "initial_guess": lambda self, x: torch.zeros_like(x)}
    return type("Made", (DeclarativeNode,), body | methods)


def linearised(node, y):
    problem = prepare(node, (X,), 0)[0].with_layout(Layout(((4,),), False))
    with torch.no_grad():
        return problem, linearise(problem, y)


@pytest.mark.parametrize("name", [*QUADRATIC, *CURVED])
def test_objectives(name):
    """At a point where the third derivative of y⁴ vanishes, too; and the constants reproduce f, g and ∇f anywhere."""
    objective = (QUADRATIC | CURVED)[name]
    for y in (torch.zeros_like(X), X):
        problem, at = linearised(node_of(objective, inequality_constraints=lambda x, y: W @ y - 1)(), y)
        assert is_quadratic(at) == (name in QUADRATIC)
        if name in QUADRATIC:
            known = Quadratic(y, at.gradient, at.constraints, at.hessian(), at.jacobian())
            elsewhere = torch.as_tensor(weights((3, 4), 5))
            step = elsewhere - y
            f, rows = at.objective + ((known.slope + 0.5 * times(known.hessian, step)) * step).sum(1), known.constraints + times(known.jacobian, step)
            for mine, theirs in zip((f, rows[:, :0], rows), problem.evaluate(elsewhere), strict=True):
                close(mine, theirs, 1e-12)
            with torch.no_grad():
                there = linearise(problem, elsewhere)
            close(known.gradient(elsewhere), there.gradient, 1e-12)
            assert bool(known.agrees(there, elsewhere).all())


def test_a_curved_constraint():
    for constraint in (lambda x, y: y @ y - 1, lambda x, y: y[0] * y[1]):
        assert not is_quadratic(linearised(node_of(QUADRATIC["power"], inequality_constraints=constraint)(), X)[1])
    assert is_quadratic(linearised(node_of(QUADRATIC["power"], inequality_constraints=lambda x, y: x * y - 1)(), X)[1])


PIECES = {
    "where": lambda x, y: torch.where(y > 0.3, 4 * (y - 0.3) ** 2, (y - 0.3) ** 2).sum() - x @ y,
    "mask": lambda x, y: ((y > 0.3) * 3 * (y - 0.3) ** 2 + (y - 0.3) ** 2).sum() - x @ y,
    "relu": lambda x, y: (3 * torch.relu(y - 0.3) ** 2 + (y - 0.3) ** 2).sum() - x @ y,
}


@pytest.mark.parametrize("name", PIECES)
def test_several_quadratic_pieces(name):
    """(1 or 4)(y − 0.3)² − xy with y ≤ 0.45: the start lies on the piece that is flatter, half of the solutions do not."""
    node = node_of(PIECES[name], inequality_constraints=lambda x, y: y - 0.45)(polish=2)
    x = X.clone().requires_grad_()
    y = node(x)
    expected = torch.minimum(torch.where(x > 0, 0.3 + x / 8, 0.3 + x / 2), torch.tensor(0.45, dtype=F64))
    close(y, expected, 1e-9)
    close(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(expected.sum(), x)[0], 1e-9)


class Counted(DeclarativeNode):
    """A quadratic program that counts how often it is evaluated."""

    calls = 0

    def objective(self, x, y):
        type(self).calls += 1
        return 0.5 * y @ (W @ W.T + torch.eye(4, dtype=F64)) @ y - x @ y

    def equality_constraints(self, x, y):
        return y.sum() - 1

    def inequality_constraints(self, x, y):
        return -y

    def initial_guess(self, x):
        return torch.full_like(x, 0.25)


def test_it_is_linearised_once():
    """The number of evaluations does not depend on the number of steps; the solution is that of SLSQP."""
    counts = []
    for limit in (2, 50):
        Counted.calls = 0
        node = Counted(solver=InteriorPoint(max_iterations=limit, on_failure="nan"))
        s = node.solution(X)
        counts.append(Counted.calls)
    assert int(s.iterations.min()) > 3
    assert counts[1] <= counts[0]
    Q = (W @ W.T + torch.eye(4, dtype=F64)).numpy()
    for i, x in enumerate(X.numpy()):
        found = minimize(
            lambda y, x=x: 0.5 * y @ Q @ y - x @ y,
            np.full(4, 0.25),
            jac=lambda y, x=x: Q @ y - x,
            method="SLSQP",
            bounds=[(0, None)] * 4,
            constraints={"type": "eq", "fun": lambda y: y.sum() - 1},
            options={"ftol": 1e-15},
        )
        close(s.y[i].detach().numpy(), found.x, 1e-6)


def test_unrolled_steps_of_a_quadratic_program():
    """The derivative of the iterate itself, when H, A and the slope hang on x."""

    class Weighted(Counted):
        def objective(self, x, y):
            return 0.5 * (x.exp() * y * y).sum() - x @ y

    node = Weighted(differentiation=Unrolled(3))
    x, v = X[:1].clone().requires_grad_(), torch.as_tensor(weights((1, 4), 9))
    (slope,) = torch.autograd.grad((node(x) * v).sum(), x)
    for i in range(4):
        step = 1e-5 * torch.eye(4, dtype=F64)[i]
        difference = ((node(X[:1] + step) - node(X[:1] - step)) * v).sum() / 2e-5
        close(slope[0, i], difference, 1e-7)


def test_a_warm_start_and_a_batch_of_mixed_ends():
    node = Counted()
    cold = node.solution(X)
    warm = node.solution(X + 1e-3, init=cold)
    assert int(warm.iterations.max()) <= int(cold.iterations.max())
    close(warm.y, node(X + 1e-3), 1e-10)
    assert isinstance(prepare(node, (X,), 0)[0], Problem)
