"""The solvers and each of their options, against closed forms, scipy and cvxpy."""

import warnings

import cvxpy
import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st

from declarative import DeclarativeNode, SolverError, SolverWarning, Status
from declarative.solvers import InteriorPoint, Newton, SciPy, UserSolve
from tests.conformance.cases import close, gradients, weights

F64 = torch.float64


class QP(DeclarativeNode):
    """½yᵀQy + cᵀy  s.t.  Ay = b, Gy ≤ d."""

    def objective(self, Q, c, A, b, G, d, y):
        return 0.5 * y @ Q @ y + c @ y

    def equality_constraints(self, Q, c, A, b, G, d, y):
        return A @ y - b

    def inequality_constraints(self, Q, c, A, b, G, d, y):
        return G @ y - d

    def initial_guess(self, Q, c, A, b, G, d):
        return torch.zeros_like(c)


def quadratic_programs(seed, batch=3, m=6, p=2, q=7):
    generator = torch.Generator().manual_seed(seed)
    root, c, A, G, inside, slack = (torch.randn(batch, *shape, generator=generator, dtype=F64) for shape in ((m, m), (m,), (p, m), (q, m), (m,), (q,)))
    feasible = inside.unsqueeze(-1)
    return root @ root.mT / m + 0.1 * torch.eye(m, dtype=F64), 3 * c, A, (A @ feasible).squeeze(-1), G, (G @ feasible).squeeze(-1) + slack.abs()


def kkt_residual(Q, c, A, b, G, d, s):
    """Largest violation of the optimality conditions of a batch."""
    y, nu, mu = s.y, s.equality_multipliers, s.inequality_multipliers
    slope = (Q @ y.unsqueeze(-1) + A.mT @ nu.unsqueeze(-1) + G.mT @ mu.unsqueeze(-1)).squeeze(-1) + c
    h, g = (A @ y.unsqueeze(-1)).squeeze(-1) - b, (G @ y.unsqueeze(-1)).squeeze(-1) - d
    return max(float(part.max()) if part.numel() else 0.0 for part in (slope.abs(), h.abs(), g.clamp_min(0), (-mu).clamp_min(0), (mu * g).abs()))


@given(seed=st.integers(0, 10**6), q=st.integers(1, 12), p=st.integers(0, 3))
def test_quadratic_programs_satisfy_their_conditions(seed, q, p):
    inputs = quadratic_programs(seed, q=q, p=p)
    assert kkt_residual(*inputs, QP().solution(*inputs)) < 1e-8


@pytest.mark.parametrize("solver", [None, InteriorPoint(), SciPy("SLSQP"), SciPy("trust-constr")], ids=str)
def test_quadratic_programs_against_cvxpy(solver):
    inputs = quadratic_programs(5, batch=2)
    s = QP(solver=solver, polish=3).solution(*inputs)
    for i in range(2):
        Q, c, A, b, G, d = (t[i].numpy() for t in inputs)
        y = cvxpy.Variable(len(c))
        constraints = [A @ y == b, G @ y <= d]
        cvxpy.Problem(cvxpy.Minimize(0.5 * cvxpy.quad_form(y, cvxpy.psd_wrap(Q)) + c @ y), constraints).solve(solver="CLARABEL")
        np.testing.assert_allclose(s.y[i].detach(), y.value, atol=1e-6)
        np.testing.assert_allclose(s.equality_multipliers[i].detach(), constraints[0].dual_value, atol=1e-5)
        np.testing.assert_allclose(s.inequality_multipliers[i].detach(), constraints[1].dual_value, atol=1e-5)


class Rosenbrock(DeclarativeNode):
    """Curved valley with its minimum at (x, x²)."""

    def objective(self, x, y):
        return (x[0] - y[0]) ** 2 + 100 * (y[1] - y[0] ** 2) ** 2

    def initial_guess(self, x):
        return torch.tensor([-1.2, 1.0], dtype=x.dtype).expand(x.shape[0], 2)


@pytest.mark.parametrize(
    "solver", [None, Newton(), *(SciPy(name) for name in ("BFGS", "Newton-CG", "trust-exact", "trust-ncg", "L-BFGS-B", "Nelder-Mead"))], ids=str
)
def test_rosenbrock(solver):
    x = torch.tensor([[1.0], [0.7], [-0.5]], dtype=F64, requires_grad=True)
    y = Rosenbrock(solver=solver, polish=4)(x)
    close(y, torch.cat([x, x**2], 1), 1e-7)
    close(torch.autograd.grad(y[:, 1].sum(), x)[0], 2 * x.detach(), 1e-6)


class Barrier(DeclarativeNode):
    """min xy − log y: the logarithm of a trial point that is too far is NaN."""

    def objective(self, x, y):
        return (x * y - torch.log(y)).sum()

    def initial_guess(self, x):
        return torch.full_like(x, 30.0)


def test_trial_points_outside_the_domain():
    x = torch.tensor([[0.5, 2.0, 10.0], [1.0, 1.0, 100.0]], dtype=F64)
    close(Barrier()(x), 1 / x, 1e-10)


@pytest.mark.parametrize("units", [1e-6, 1e-3, 1.0, 1e6])
def test_units_of_y(units):
    """Projection onto a ball of that size, to the same number of digits; far below 1, where tolerances are absolute, it says that it failed."""

    class Ball(DeclarativeNode):
        def objective(self, x, y):
            return 0.5 * (y - x).square().sum()

        def inequality_constraints(self, x, y):
            return y @ y / units**2 - 1

        def initial_guess(self, x):
            return 0.1 * x

    x = units * torch.tensor([[3.0, 4.0], [0.3, 0.4]], dtype=F64)
    node, expected = Ball(polish=2), torch.tensor([[0.6, 0.8], [0.3, 0.4]], dtype=F64)
    if units == 1e-6:
        with pytest.raises(SolverError, match=r"1 of 2 samples \(0\)"):
            node(x)
    else:
        close(node(x) / units, expected, 1e-8)


def test_a_hard_neighbour_changes_nothing():
    easy, hard = torch.tensor([[1.0]], dtype=F64), torch.tensor([[-30.0], [25.0]], dtype=F64)
    node = Rosenbrock()
    alone, together = node.solution(easy), node.solution(torch.cat([hard, easy]))
    assert int(alone.iterations[0]) == int(together.iterations[2]) < int(together.iterations.max())
    assert torch.equal(alone.y[0], together.y[2])


def test_max_iterations():
    x = torch.tensor([[1.0], [-3.0]], dtype=F64)
    with pytest.raises(SolverError, match=r"Rosenbrock, solved by Newton: 2 of 2 samples \(0, 1\): did not converge within max_iterations"):
        Rosenbrock(solver=Newton(max_iterations=2))(x)
    s = Rosenbrock(solver=Newton(max_iterations=2, on_failure="nan")).solution(x)
    assert s.status.tolist() == [Status.MAX_ITERATIONS] * 2
    assert s.iterations.tolist() == [2, 2]
    assert bool(s.y.isnan().all())
    with pytest.warns(SolverWarning, match="did not converge"):
        s = Rosenbrock(solver=Newton(max_iterations=2, on_failure="warn")).solution(x)
    assert bool(s.y.isfinite().all())


def test_tolerance():
    """Looser is cheaper; strict is the default."""
    inputs, x = quadratic_programs(2), torch.tensor([[0.5]], dtype=F64)
    for solutions in (
        [Rosenbrock(solver=Newton(tolerance=t)).solution(x) for t in (1e-3, None)],
        [QP(solver=InteriorPoint(tolerance=t)).solution(*inputs) for t in (1e-2, None)],
    ):
        loose, tight = solutions
        assert int(loose.iterations.sum()) < int(tight.iterations.sum())
        close(loose.y, tight.y, 0.1)


class Linear(DeclarativeNode):
    """A linear objective on a box that may be empty or half open."""

    def objective(self, c, low, y):
        return c @ y

    def inequality_constraints(self, c, low, y):
        return torch.cat([low - y, (y.sum() - 1).reshape(1)])

    def initial_guess(self, c, low):
        return torch.zeros_like(c)


def test_infeasible_and_unbounded_samples_are_marked():
    """One of each beside regular ones, which do not notice."""
    c = torch.tensor([[1.0, 2.0], [1.0, 1.0], [2.0, 1.0]], dtype=F64)
    low = torch.tensor([[0.0, 0.0], [2.0, 2.0], [0.0, 0.0]], dtype=F64)
    node = Linear(solver=InteriorPoint(on_failure="nan"))
    s = node.solution(c, low)
    assert s.status.tolist() == [Status.CONVERGED, Status.INFEASIBLE, Status.CONVERGED]
    close(s.y[[0, 2]], torch.zeros(2, 2, dtype=F64), 1e-9)

    class Slope(DeclarativeNode):
        def objective(self, x, y):
            return (x * y).sum() + (y**2).sum() * (x > 0).to(x.dtype).sum()

        def initial_guess(self, x):
            return torch.zeros_like(x)

    s = Slope(solver=Newton(on_failure="nan")).solution(torch.tensor([[2.0], [-1.0]], dtype=F64))
    assert s.status.tolist()[0] == Status.CONVERGED
    assert s.status.tolist()[1] in (Status.UNBOUNDED, Status.NOT_STATIONARY, Status.MAX_ITERATIONS)
    close(s.y[0], torch.tensor([-1.0], dtype=F64), 1e-9)
    contradiction = type("No", (Rosenbrock,), {"equality_constraints": lambda self, x, y: torch.stack([y[0] - 1, y[0] - 2])})
    assert contradiction(solver=Newton(on_failure="nan")).solution(torch.ones(1, 1, dtype=F64)).status.tolist() == [Status.INFEASIBLE]


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


def test_warm_start_saves_steps():
    inputs = quadratic_programs(4)
    s = QP().solution(*inputs)
    near = (inputs[0], inputs[1] + 1e-4, *inputs[2:])
    assert int(QP().solution(*near, init=s).iterations.sum()) <= int(QP().solution(*near).iterations.sum())
    start = Rosenbrock().solution(torch.tensor([[1.0]], dtype=F64))
    again = Rosenbrock().solution(torch.tensor([[1.001]], dtype=F64), init=start)
    assert int(again.iterations) < int(start.iterations)


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


def test_scipy_options_reach_scipy():
    x = torch.tensor([[1.0]], dtype=F64)
    with pytest.raises(SolverError):
        Rosenbrock(solver=SciPy("BFGS", max_iterations=1))(x)
    close(Rosenbrock(solver=SciPy("BFGS", options={"gtol": 1e-12}), polish=3)(x), torch.ones(1, 2, dtype=F64), 1e-8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Rosenbrock(solver=SciPy("BFGS", max_iterations=1, on_failure="warn"))(x)
    assert [w.category for w in caught] == [SolverWarning]


@pytest.mark.parametrize("solver", [Newton(), SciPy("BFGS")], ids=str)
def test_empty_batch(solver):
    assert Rosenbrock(solver=solver)(torch.zeros(0, 1)).shape == (0, 2)
