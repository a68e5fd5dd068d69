"""Steps of first-order solvers, unrolled, their lengths held: on the way to the derivative of the solution."""

import pytest
import torch

from declarative import DeclarativeNode, Implicit, OneStep, Unrolled
from declarative.projections import Ball, Box, Simplex
from declarative.solvers import LBFGS, Projected
from tests.conformance.cases import close, weights
from tests.test_unrolled import Free

pytestmark = pytest.mark.usefixtures("shapes_unchecked")

X = 1.3 * weights((2, 3), 3)
V = weights((2, 3), 7)


class OnBox(Free):
    def inequality_constraints(self, x, y):
        return torch.cat([y - 0.6, -0.7 - y])


class OnBall(Free):
    def inequality_constraints(self, x, y):
        return y @ y - 1


class OnSimplex(Free):
    def equality_constraints(self, x, y):
        return y.sum() - 1

    def inequality_constraints(self, x, y):
        return -y


CASES = [(Free, LBFGS()), (OnBox, Projected(Box(-0.7, 0.6))), (OnBall, Projected(Ball())), (OnSimplex, Projected(Simplex()))]
every_case = pytest.mark.parametrize(("kind", "solver"), CASES, ids=[kind.__name__ for kind, _ in CASES])


def of_y(node, x):
    return (V * node(x)).sum()


def gradient(node):
    x = X.clone().requires_grad_()
    return torch.autograd.grad(of_y(node, x), x)[0]


@every_case
def test_tends_to_the_implicit_derivative(kind, solver):
    """Slower than y itself, as first-order methods do: y is exact long before its derivative is."""
    exact = gradient(kind(solver=solver, differentiation=Implicit()))
    errors = [float((gradient(kind(solver=solver, differentiation=Unrolled(k))) - exact).abs().max() / exact.abs().max()) for k in (2, 60)]
    assert errors[1] < 2e-3
    assert errors[1] < 0.2 * errors[0]


@every_case
def test_one_step_keeps_the_solution_and_approximates_the_derivative(kind, solver):
    """Off by at most the rate at which the step contracts."""
    node = kind(solver=solver, differentiation=OneStep())
    close(node(X), kind(solver=solver)(X), 1e-12)
    exact, found = gradient(kind(solver=solver)), gradient(node)
    assert bool(torch.isfinite(found).all())
    assert float((found - exact).abs().max()) < float(exact.abs().max())


def test_one_step_of_a_gradient_method_is_the_formula():
    """A step y − t∇f from the solution, with t held: the derivative is −t B. On a quadratic B = −I."""

    class Quadratic(DeclarativeNode):
        def objective(self, x, y):
            return (torch.tensor([1.0, 2.0, 4.0], dtype=y.dtype) * y * y).sum() / 2 - x @ y

        def inequality_constraints(self, x, y):
            return y.abs().reshape(-1) - 100

        def initial_guess(self, x):
            return torch.zeros_like(x)

    slope = gradient(Quadratic(solver=Projected(Box(-100.0, 100.0)), differentiation=OneStep()))
    ratio = slope / V
    close(ratio, ratio[:, :1].expand_as(ratio), 1e-9)  # one length t for all coordinates of a sample
    assert bool(((ratio > 0) & (ratio <= 1.01)).all())
