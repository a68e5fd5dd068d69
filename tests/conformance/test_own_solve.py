"""A node with a `solve` of its own: whatever it does inside, derivatives come from the statement."""

import numpy as np
import pytest
import scipy.optimize
import torch

from declarative import DeclarativeNode, Solution, SolverError
from problems.ball import BallProjection
from problems.cubic_root import CubicRoot
from problems.simplex import SimplexProjection
from tests.conformance.cases import CATALOGUE, case, close, gradients, loss, weights

F64 = torch.float64


class NumpySimplex(SimplexProjection):
    """By sorting, in numpy."""

    def solve(self, x):
        assert not torch.is_grad_enabled()
        values = x.numpy()  # fails if x requires grad
        rows = []
        for row in values:
            descending = np.sort(row)[::-1]
            excess = np.cumsum(descending) - 1
            count = int((descending * np.arange(1, len(row) + 1) > excess).sum())
            rows.append(np.maximum(row - excess[count - 1] / count, 0))
        return torch.from_numpy(np.stack(rows))


class ScipySqueeze(DeclarativeNode):
    """min Σ cosh(y − x) + ½y², by scipy, with a start that has nothing to do with x."""

    def objective(self, x, y):
        return (y - x).cosh().sum() + 0.5 * y.square().sum()

    def solve(self, x):
        found = [
            scipy.optimize.minimize(
                lambda y, r=r: np.cosh(y - r).sum() + 0.5 * (y**2).sum(), np.zeros_like(r), jac=lambda y, r=r: np.sinh(y - r) + y, options={"gtol": 1e-12}
            ).x
            for r in x.numpy()
        ]
        return torch.from_numpy(np.stack(found))


class WrongPath(CubicRoot):
    """Computes y in torch by a path whose own derivative is another: nothing of it may leak."""

    def solve(self, x):
        return x.detach() ** (1 / 3) + 0 * x**3 + (x - x.detach())


class WithMultipliers(BallProjection):
    """Knows its multipliers, and says so."""

    def solve(self, x):
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        return Solution(x / norm.clamp_min(1), inequality_multipliers=(norm / 2 - 0.5).clamp_min(0))


def test_numpy_solve():
    example = case("simplex", batch=4)
    node, x = NumpySimplex(), example.inputs[0].clone().requires_grad_()
    y = node(x)
    close(y, example.known(*example.inputs), 1e-12)
    v = weights(y.shape)
    close(torch.autograd.grad((y * v).sum(), x)[0], (example.problem.jacobian(x.detach()) @ v.unsqueeze(2)).squeeze(2), 1e-9)
    close(torch.func.jacfwd(node)(x.detach()), torch.func.jacrev(node)(x.detach()), 1e-10)


def test_scipy_solve():
    """y″ and y′ from the condition sinh(y − x) + y = 0."""
    x = torch.linspace(-1, 2, 6, dtype=F64).reshape(2, 3).requires_grad_()
    y = ScipySqueeze(polish=3)(x)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    c, s = (y - x).cosh().detach(), (y - x).sinh().detach()
    close(slope, c / (1 + c), 1e-9)
    # c (y′ − 1) + y′ = 0, and once more: s (y′ − 1)² + (c + 1) y″ = 0
    close(curvature, -s * (slope.detach() - 1) ** 2 / (1 + c), 1e-8)


def test_nothing_leaks_from_a_solve():
    x = torch.tensor([0.7, 1.0, 2.0], dtype=F64, requires_grad=True)
    y = WrongPath()(x)
    for expected in (x ** (-2 / 3) / 3, -2 / 9 * x ** (-5 / 3), 10 / 27 * x ** (-8 / 3)):
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        close(y, expected, 1e-10)


def test_solve_that_knows_its_multipliers():
    example = case("ball", batch=4)
    node, x = WithMultipliers(), example.inputs[0]
    s = node.solution(x)
    close(s.y, example.known(x), 1e-13)
    close(s.inequality_multipliers, example.node.solution(x).inequality_multipliers, 1e-8)
    close(gradients(lambda z: loss(node(z)), [x]), gradients(lambda z: loss(example.known(z)), [x]), 1e-9)


def nearly(name, size):
    """The problem's node with a solve that is off by `size` in every entry."""

    def solve(self, *inputs):
        shared = [x if dim == 0 else x[0] for x, dim in zip(inputs, CATALOGUE[name].in_dims, strict=True)]
        y = CATALOGUE[name].closed_form(*shared)
        return y + size * weights(y.shape, seed=4).to(y).sign()

    base = type(CATALOGUE[name].node())
    return type(base.__name__, (base,), {"solve": solve})


@pytest.mark.parametrize(("dtype", "off", "allowed"), [(F64, 1e-11, 1e-8), (torch.float32, 1e-5, 1e-3)], ids=["float64", "float32"])
@pytest.mark.parametrize("name", ["simplex", "ball", "quadratic_program", "sphere", "hyperplane"])
@pytest.mark.parametrize("polish", [0, 3])
def test_slightly_wrong_solution_keeps_its_constraints(name, dtype, off, allowed, polish):
    """Constraints that hold to the accuracy of a solve are active, and gradients are those of the constrained problem."""
    example = case(name, batch=5, dtype=dtype)
    node = nearly(name, off)(polish=polish)
    s = node.solution(*example.inputs, in_dims=example.in_dims)
    exact = case(name, batch=5)
    assert torch.equal(s.active, exact.node.solution(*exact.inputs, in_dims=exact.in_dims).active)
    found = gradients(lambda *x: loss(node(*x, in_dims=example.in_dims)), example.inputs)
    for mine, theirs in zip(found, gradients(lambda *x: loss(exact.known(*x)), exact.inputs), strict=True):
        close(mine.double(), theirs, allowed * max(1.0, float(theirs.abs().max())))


def test_wrong_solution_is_refused():
    """A solve that returns something else than a minimiser does not pass."""
    example = case("sphere")
    node = nearly("sphere", 0.3)()
    with pytest.raises(SolverError, match="3 of 3"):
        node(*example.inputs)
