"""Multipliers from y alone, the active set, the polishing steps and the units of it all: what is made of a point, whoever found it."""

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from declarative import DeclarativeNode, Solution, SolverError
from declarative.solvers import InteriorPoint, SciPy, UserSolve
from tests.conformance.cases import close, gradients, weights
from tests.solvers.statements import QP, kkt_residual, quadratic_programs

F64 = torch.float64


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_polish_mends_a_loose_solve(steps):
    """Solutions off by 1e-3: machine precision, gradients too, in at most three steps."""
    inputs = tuple(t.requires_grad_() for t in quadratic_programs(8))
    exact = QP(polish=5)(*inputs)

    class Loose(QP):
        def solve(self, *inputs):
            return exact.detach() + 1e-3 * weights(exact.shape)

    node = Loose(solver=UserSolve(tolerance=0.1), polish=steps)
    close(node(*inputs), exact, 1e-9)
    found = torch.autograd.grad((node(*inputs) * weights(exact.shape)).sum(), inputs)
    close(found, torch.autograd.grad((exact * weights(exact.shape)).sum(), inputs), 1e-8)


@given(seed=st.integers(0, 10**6), p=st.integers(0, 2), q=st.integers(1, 8))
def test_polish_finds_the_active_set_of_a_loose_solve(seed, p, q):
    """Any strictly convex programme in which no constraint is within 0.05 of changing its part."""
    inputs = quadratic_programs(seed, p=p, q=q)
    exact = QP(polish=5).solution(*inputs)
    gap = inputs[5] - (inputs[4] @ exact.y.unsqueeze(-1)).squeeze(-1)
    assume(float(torch.maximum(gap, exact.inequality_multipliers).min()) > 0.05)

    class Loose(QP):
        def solve(self, *inputs):
            return exact.y + 1e-3 * weights(exact.y.shape).sign()

    s = Loose(solver=UserSolve(tolerance=0.5), polish=3).solution(*inputs)
    assert torch.equal(s.active, exact.active)
    assert kkt_residual(*inputs, s) < 1e-10
    close(s.y, exact.y, 1e-10)


@pytest.mark.parametrize(("dtype", "off"), [(F64, 1e-11), (torch.float32, 1e-5)])
def test_active_set_of_a_slightly_wrong_solution(dtype, off):
    """Beside the sphere by what a solver leaves: the constraint counts, and the gradient is tangential."""

    class Ball(DeclarativeNode):
        def objective(self, x, y):
            return 0.5 * (y - x).square().sum()

        def inequality_constraints(self, x, y):
            return y @ y - 1

        def solve(self, x):
            return x / torch.linalg.vector_norm(x, dim=1, keepdim=True) * (1 - off)

    x = torch.tensor([[2.0, 0.0]], dtype=dtype)
    s = Ball().solution(x)
    assert s.active.tolist() == [[True]]
    close(s.inequality_multipliers, torch.tensor([[0.5]], dtype=dtype), 1e-3 if dtype == torch.float32 else 1e-8)
    (g,) = gradients(lambda x: Ball()(x).sum(), [x])
    close(g, torch.tensor([[0.0, 0.5]], dtype=dtype), 1e-3 if dtype == torch.float32 else 1e-8)


def test_recovered_multipliers_against_least_squares():
    """With y alone: ν and μ ≥ 0 by non-negative least squares."""
    inputs = quadratic_programs(6, batch=4)
    full = QP(polish=5).solution(*inputs)

    class Primal(QP):
        def solve(self, *inputs):
            return full.y.detach()

    s = Primal().solution(*inputs)
    for i in range(4):
        Q, c, A, _, G, d = (t[i].numpy() for t in inputs)
        y = full.y[i].detach().numpy()
        near = np.abs(G @ y - d) < 1e-7
        columns = np.hstack([A.T, -A.T, G[near].T])
        found, residual = scipy.optimize.nnls(columns, -(Q @ y + c))
        assert residual < 1e-7
        np.testing.assert_allclose(s.equality_multipliers[i].detach(), found[: len(A)] - found[len(A) : 2 * len(A)], atol=1e-6)
        np.testing.assert_allclose(s.inequality_multipliers[i].detach()[near], found[2 * len(A) :], atol=1e-6)


class Known(DeclarativeNode):
    """½‖y − x‖² under rows of constraints; the solution is handed in, the multipliers are to be found."""

    def __init__(self, y, h=None, g=None, **known):
        super().__init__()
        self.y, self.h, self.g, self.known = y, h, g, known

    def objective(self, x, y):
        return 0.5 * (y - x).square().sum()

    def equality_constraints(self, x, y):
        return None if self.h is None else self.h(y)

    def inequality_constraints(self, x, y):
        return None if self.g is None else self.g(y)

    def solve(self, x):
        return Solution(self.y.expand(x.shape), **self.known)


def vector(*numbers, dtype=F64):
    return torch.tensor([numbers], dtype=dtype)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_multipliers_are_in_units_of_their_constraint(scale, dtype):
    """The nearest point of the unit ball: (‖x‖ − 1)/2 for ‖y‖² ≤ 1, as often as the constraint is made smaller."""
    x = vector(3.0, 4.0, dtype=dtype)
    s = Known(x / 5, g=lambda y: scale * (y @ y - 1)).solution(x)
    close(s.inequality_multipliers * scale, vector(2.0, dtype=dtype), 1e-5 if dtype == torch.float32 else 1e-12)
    assert s.active.tolist() == [[True]]


def test_redundant_equalities_share_the_least_multipliers():
    """The same row once and doubled: (1, 2)ν with the least norm, as lstsq has it."""
    x = vector(1.0, 2.0, 4.0)
    y = x - x.mean()
    s = Known(y, h=lambda y: torch.stack([y.sum(), 2 * y.sum()])).solution(x)
    rows = np.array([[1.0, 1, 1], [2, 2, 2]])
    expected = np.linalg.lstsq(rows.T, (x - y)[0].numpy(), rcond=None)[0]
    nu = s.equality_multipliers[0].detach().numpy()
    np.testing.assert_allclose(rows.T @ nu, (x - y)[0], atol=1e-12)
    np.testing.assert_allclose(nu[0] + 2 * nu[1], expected[0] + 2 * expected[1], atol=1e-12)
    assert np.linalg.norm(nu * [1, 2]) < 1.5 * np.linalg.norm(expected * [1, 2])


def test_the_same_inequality_twice():
    """Any split of the push is right; none may be negative, and they add up."""
    s = Known(vector(1.0, 0.0), g=lambda y: torch.stack([y[0] - 1, y[0] - 1, y[1] - 1])).solution(vector(3.0, 0.0))
    assert bool((s.inequality_multipliers >= 0).all())
    close(s.inequality_multipliers[:, :2].sum(1), vector(2.0)[0], 1e-12)
    assert float(s.inequality_multipliers[0, 2]) == 0


def test_a_vertex_with_more_constraints_than_dimensions():
    """Three lines through one point: least squares alone would give one of them a negative multiplier."""
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=F64)
    x = vector(3.0, 0.5)
    s = Known(vector(0.0, 0.0), g=lambda y: rows @ y).solution(x)
    mu = s.inequality_multipliers[0].detach()
    assert bool((mu >= 0).all())
    close(rows.T @ mu, x[0], 1e-12)
    assert (rows.T @ torch.linalg.lstsq(rows.T, x[0]).solution - x[0]).abs().max() < 1e-12


def test_what_is_known_is_kept():
    """With ν given, μ is found for that ν; a wrong ν is not mended but refused."""
    x = vector(2.0, 0.0, -1.0)
    y = vector(1.0, 0.0, 0.0)  # on the simplex: ν = 1 makes y − x + ν − μ = 0 with μ = (0, 1, 2)

    def simplex(**known):
        return Known(y, h=lambda y: y.sum() - 1, g=lambda y: -y, **known)

    for known in ({}, {"equality_multipliers": vector(1.0)}, {"inequality_multipliers": vector(0.0, 1.0, 2.0)}):
        s = simplex(**known).solution(x)
        close(s.equality_multipliers, vector(1.0), 1e-12)
        close(s.inequality_multipliers, vector(0.0, 1.0, 2.0), 1e-12)
    with pytest.raises(SolverError, match="not a minimiser"):
        simplex(equality_multipliers=vector(1.7)).solution(x)


@given(off=st.floats(-1e-11, 1e-11), scale=st.sampled_from([1e-4, 1.0, 1e4]))
def test_activity_does_not_depend_on_the_units_of_a_constraint(off, scale):
    """Three bounds: one that pushes, one that is far, one that is a little way off and does not push."""
    y = vector(1.0 + off, 0.0, 0.5)
    s = Known(y, g=lambda y: scale * (y - torch.tensor([1.0, 1.0, 0.51], dtype=F64))).solution(vector(2.0, 0.0, 0.5))
    assert s.active.tolist() == [[True, False, False]]
    assert s.weakly_active.tolist() == [[False, False, False]]
    close(s.inequality_multipliers * scale, vector(1.0, 0.0, 0.0), 1e-9)


@pytest.mark.parametrize("units_f", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("units_g", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("units_y", [1.0, 1e6])
@pytest.mark.usefixtures("shapes_unchecked")
def test_units_of_everything(units_f, units_g, units_y):
    """f, the constraints and y each in units of their own: the same digits."""
    Q, c, A, b, G, d = quadratic_programs(3)
    expected = QP(polish=5).solution(Q, c, A, b, G, d)
    scaled = (units_f / units_y**2 * Q, units_f / units_y * c, units_g / units_y * A, units_g * b, units_g / units_y * G, units_g * d)
    s = QP().solution(*scaled)
    close(s.y / units_y, expected.y, 1e-9)
    close(s.inequality_multipliers * units_g / units_f, expected.inequality_multipliers, 1e-9)
    assert torch.equal(s.active, expected.active)


class Units(DeclarativeNode):
    """Each coordinate of y has a unit of its own: min ½‖(y − x)/u‖² s.t. y ≤ u is min(x, u)."""

    def __init__(self, ratio, **options):
        super().__init__(**options)
        self.register_buffer("u", torch.tensor([1 / ratio, 1.0, ratio], dtype=F64))

    def objective(self, x, y):
        return 0.5 * ((y - x) / self.u).square().sum()

    def initial_guess(self, x):
        return torch.zeros_like(x)


class BoundedUnits(Units):
    def inequality_constraints(self, x, y):
        return y / self.u - 1


@pytest.mark.parametrize("solver", [InteriorPoint(), SciPy()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("ratio", [10.0, 100.0, 1000.0])
def test_units_that_differ_between_coordinates(ratio, solver):
    """Solution, active set and gradient: y is in metres here and in millimetres there."""
    node = BoundedUnits(ratio, solver=solver, polish=3)
    x = (torch.tensor([[1.5, 2.0, 3.0], [-1.0, 0.5, 2.0]], dtype=F64) * node.u).requires_grad_()
    s = node.solution(x)
    close(s.y / node.u, torch.minimum(x, node.u) / node.u, 1e-6)
    assert torch.equal(s.active, x > node.u)
    close(torch.autograd.grad(s.y.sum(), x)[0], (x < node.u).to(F64), 1e-6)


@pytest.mark.parametrize("ratio", [10.0, 1000.0, 1e6])
def test_units_that_differ_do_not_hide_a_wrong_solution(ratio):
    """Half a unit beside the minimum in one coordinate is not a minimiser, whatever the others are measured in."""
    close(Units(ratio)(Units(ratio).u.unsqueeze(0)), Units(ratio).u.unsqueeze(0), 1e-12)
    wrong = type("Wrong", (Units,), {"solve": lambda self, x: x + 0.5 * self.u * torch.tensor([0.0, 0.0, 1.0], dtype=F64)})
    with pytest.raises(SolverError, match="not a minimiser"):
        wrong(ratio)(wrong(ratio).u.unsqueeze(0))
