"""The interior point method against cvxpy, scipy and closed forms."""

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st

from declarative import DeclarativeNode, SolverError, Status
from declarative.solvers import InteriorPoint
from tests.conformance.cases import close
from tests.solvers.statements import F64, QP, DoubleWell, Rosenbrock, compare_with_cvxpy, kkt_residual, quadratic_programs


@given(seed=st.integers(0, 10**6), q=st.integers(1, 12), p=st.integers(0, 3))
def test_quadratic_programs_satisfy_their_conditions(seed, q, p):
    inputs = quadratic_programs(seed, q=q, p=p)
    assert kkt_residual(*inputs, QP().solution(*inputs)) < 1e-8


@pytest.mark.parametrize("solver", [None, InteriorPoint()], ids=str)
def test_quadratic_programs_against_cvxpy(solver):
    inputs = quadratic_programs(5, batch=2)
    s = QP(solver=solver, polish=3).solution(*inputs)
    compare_with_cvxpy(s, inputs)


@pytest.mark.parametrize("units", [1e-10, 1e-8, 1e-6, 1e-3, 1.0, 1e6, 1e10])
def test_units_of_y(units):
    """Projection onto a ball of that size, to the same number of digits; far below 1, where "1 +" is all there is to the scale, it says that it failed."""

    class Ball(DeclarativeNode):
        def objective(self, x, y):
            return 0.5 * (y - x).square().sum()

        def inequality_constraints(self, x, y):
            return y @ y / units**2 - 1

        def initial_guess(self, x):
            return 0.1 * x

    x = units * torch.tensor([[3.0, 4.0], [0.3, 0.4]], dtype=F64)
    node, expected = Ball(polish=2), torch.tensor([[0.6, 0.8], [0.3, 0.4]], dtype=F64)
    if units == 1e-10:
        with pytest.raises(SolverError, match="the point is not a minimiser"):
            node(x)
    else:
        close(node(x) / units, expected, 1e-8)


class Soft(DeclarativeNode):
    """log Σ exp(y) + ½‖y − x‖², with y in a ball and on one side of a plane."""

    def objective(self, x, y):
        return y.logsumexp(0) + 0.5 * (y - x).square().sum()

    def inequality_constraints(self, x, y):
        return torch.stack([y @ y - 1, y[0] - 0.2])

    def initial_guess(self, x):
        return torch.zeros_like(x)


@given(seed=st.integers(0, 10**6))
def test_curved_constraints_against_scipy(seed):
    x = 2 * torch.randn(1, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)
    z = x[0].numpy()
    found = scipy.optimize.minimize(
        lambda y: np.logaddexp.reduce(y) + 0.5 * ((y - z) ** 2).sum(),
        np.zeros(3),
        method="SLSQP",
        constraints=[{"type": "ineq", "fun": lambda y: 1 - y @ y}, {"type": "ineq", "fun": lambda y: 0.2 - y[0]}],
        options={"ftol": 1e-14},
    )
    np.testing.assert_allclose(Soft()(x)[0], found.x, atol=2e-5)


def test_rosenbrock_in_a_disk():
    """A curved valley against a curved constraint: the textbook solution, and the conditions that it obeys."""
    disk = type("Disk", (Rosenbrock,), {"inequality_constraints": lambda self, x, y: y @ y - 1})
    s = disk().solution(torch.ones(1, 1, dtype=F64))
    close(s.y, torch.tensor([[0.7864, 0.6177]], dtype=F64), 1e-4)
    (a, b), mu = s.y[0].tolist(), float(s.inequality_multipliers)
    assert abs(a * a + b * b - 1) < 1e-12
    assert abs(-2 * (1 - a) - 400 * a * (b - a * a) + 2 * mu * a) < 1e-8
    assert abs(200 * (b - a * a) + 2 * mu * b) < 1e-8
    assert mu > 0


def test_a_start_at_a_maximum_is_not_called_nan():
    """¼y⁴ − ½xy² from y = 0: the values are finite everywhere, and so is what comes back."""
    well = {"objective": lambda self, x, y: (y**4 / 4 - x * y**2 / 2).sum(), "inequality_constraints": lambda self, x, y: y - 10}
    node = type("Well", (DoubleWell,), well | {"initial_guess": lambda self, x: torch.zeros_like(x)})(solver=InteriorPoint(on_failure="nan"))
    assert Status.NON_FINITE not in node.solution(torch.tensor([[1.0], [0.1], [0.01]], dtype=F64)).status.tolist()
