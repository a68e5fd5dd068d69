"""Linear programs by HiGHS: solutions, multipliers, derivatives and statuses, against cvxpy, finite differences and scipy's assignment."""

import cvxpy
import numpy as np
import pytest
import scipy.optimize
import torch

from declarative import DeclarativeNode, Implicit, IrregularPointError, SolverError, Status
from declarative.solvers import InteriorPoint, SciPy
from declarative.solvers.linear_program import METHODS
from tests.conformance.cases import close, weights
from tests.solvers.statements import F64


class LP(DeclarativeNode):
    """cᵀy  s.t.  Ay = b, Gy ≤ d, with y a matrix of two rows."""

    def objective(self, c, A, b, G, d, y):
        return c @ y.flatten() + 3

    def equality_constraints(self, c, A, b, G, d, y):
        return A @ y.flatten() - b

    def inequality_constraints(self, c, A, b, G, d, y):
        return G @ y.flatten() - d

    def initial_guess(self, c, A, b, G, d):
        return torch.ones_like(c).reshape(len(c), 2, -1)


def programs(batch=3, m=6, p=2, q=12, seed=0):
    """Feasible, and bounded: −c is a combination of the rows, positive in G."""
    generator = torch.Generator().manual_seed(seed)
    A, G, inside, slack, nu, mu = (torch.randn(batch, *s, generator=generator, dtype=F64) for s in ((p, m), (q, m), (m, 1), (q,), (p, 1), (q, 1)))
    c = -(A.mT @ nu + G.mT @ mu.abs()).squeeze(-1)
    return c, A, (A @ inside).squeeze(-1), G, (G @ inside).squeeze(-1) + slack.abs()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("workers", [1, 2])
def test_solutions_and_multipliers_against_cvxpy(method, workers):
    inputs = programs()
    s = LP(solver=SciPy(method.upper(), workers=workers)).solution(*inputs)
    assert s.y.shape == (3, 2, 3)
    for i in range(3):
        c, A, b, G, d = (t[i].numpy() for t in inputs)
        y = cvxpy.Variable(len(c))
        constraints = [A @ y == b, G @ y <= d]
        cvxpy.Problem(cvxpy.Minimize(c @ y), constraints).solve(solver="CLARABEL")
        np.testing.assert_allclose(s.y[i].flatten(), y.value, atol=1e-6)
        np.testing.assert_allclose(s.equality_multipliers[i], constraints[0].dual_value, atol=1e-6)
        np.testing.assert_allclose(s.inequality_multipliers[i], constraints[1].dual_value, atol=1e-6)
    assert s.active.sum(1).tolist() == [4, 4, 4]
    assert float(torch.maximum(s.stationarity, s.violation).max()) < 1e-12


def test_the_solution_is_that_of_the_interior_point_method():
    inputs = programs(seed=3)
    exact, other = LP(solver=SciPy("highs")).solution(*inputs), LP(solver=InteriorPoint()).solution(*inputs)
    close(exact.y, other.y, 1e-7)
    close(exact.inequality_multipliers, other.inequality_multipliers, 1e-7)


def outputs(inputs):
    """y, ν, μ by scipy alone, each sample for itself."""
    rows = []
    for c, A, b, G, d in zip(*(t.numpy() for t in inputs), strict=True):
        r = scipy.optimize.linprog(c, A_ub=G, b_ub=d, A_eq=A, b_eq=b, bounds=(None, None))
        rows.append(np.concatenate([r.x, -r.eqlin.marginals, -r.ineqlin.marginals]))
    return torch.from_numpy(np.stack(rows))


def test_derivatives_are_those_of_solving_again():
    """Of y and the multipliers with respect to costs, matrices and right-hand sides; y does not feel the costs."""
    inputs = [t.clone().requires_grad_() for t in programs(seed=1)]
    s = LP(solver=SciPy("highs")).solution(*inputs)
    found = torch.cat([s.y.flatten(1), s.equality_multipliers, s.inequality_multipliers], 1)
    v = weights(found.shape)
    gradients = torch.autograd.grad((found * v).sum(), inputs, retain_graph=True)
    data = [t.detach() for t in inputs]
    for k, gradient in enumerate(gradients):
        direction = weights(data[k].shape, seed=k)
        moved = [outputs([t + h * direction if i == k else t for i, t in enumerate(data)]) for h in (1e-5, -1e-5)]
        expected = (v * (moved[0] - moved[1])).sum() / 2e-5
        close((gradient * direction).sum(), expected, 1e-6)
    towards_costs = torch.autograd.grad(s.y.sum(), inputs[0])[0]
    assert float(towards_costs.abs().max()) < 1e-12


def test_no_bounds_but_those_of_the_statement():
    """scipy's default is y ≥ 0."""

    class Below(DeclarativeNode):
        def objective(self, x, y):
            return -y.sum()

        def inequality_constraints(self, x, y):
            return y - x

        def initial_guess(self, x):
            return torch.zeros_like(x)

    x = torch.tensor([[-3.0, -4.0]], dtype=F64, requires_grad=True)
    y = Below(solver=SciPy("highs"))(x)
    close(y, x.detach(), 1e-14)
    close(torch.autograd.grad(y.sum(), x)[0], torch.ones(1, 2, dtype=F64), 1e-14)


class Assignment(DeclarativeNode):
    """The cheapest doubly stochastic matrix, a vertex of the Birkhoff polytope: a permutation."""

    def objective(self, cost, y):
        return (cost * y).sum()

    def equality_constraints(self, cost, y):
        return torch.cat([y.sum(0) - 1, y.sum(1) - 1])

    def inequality_constraints(self, cost, y):
        return -y

    def initial_guess(self, cost):
        return torch.full_like(cost, 1 / cost.shape[-1])


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-12), (torch.float32, 1e-5)], ids=["float64", "float32"])
def test_assignment(dtype, tolerance):
    """The permutation of scipy's Hungarian method. One row of constraints too many: no multipliers are unique, no derivative is."""
    cost = torch.rand(4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=dtype).requires_grad_()
    node = Assignment(solver=SciPy("highs"))
    y = node(cost)
    for i in range(4):
        rows, columns = scipy.optimize.linear_sum_assignment(cost[i].detach().double())
        expected = np.zeros((6, 6))
        expected[rows, columns] = 1
        np.testing.assert_allclose(y[i].detach(), expected, atol=tolerance)
    with pytest.raises(IrregularPointError):
        y.square().sum().backward()
    relaxed = Assignment(solver=SciPy("highs"), differentiation=Implicit(irregular="min_norm"))
    assert float(torch.autograd.grad(relaxed(cost).square().sum(), cost)[0].abs().max()) < 10 * tolerance


def test_transport_that_balances_only_to_rounding():
    """Masses that sum to one up to float32 are no contradiction; that they differ by a thousandth is one."""

    class Transport(DeclarativeNode):
        def objective(self, a, b, y):
            return ((torch.arange(3).unsqueeze(1) - torch.arange(3)).square().to(y) * y).sum()

        def equality_constraints(self, a, b, y):
            return torch.cat([y.sum(1) - a, y.sum(0) - b])

        def inequality_constraints(self, a, b, y):
            return -y

        def initial_guess(self, a, b):
            return a.unsqueeze(2) * b.unsqueeze(1)

    a, b = torch.tensor([[0.1, 0.2, 0.7]] * 2), torch.tensor([[1 / 3, 1 / 3, 1 / 3 + 1e-7]] * 2)
    b[1, 0] += 1e-3
    assert float(a[0].double().sum() - b[0].double().sum()) != 0
    s = Transport(solver=SciPy("highs", on_failure="nan")).solution(a, b)
    assert s.status.tolist() == [Status.CONVERGED, Status.INFEASIBLE]
    close(s.y[0].sum(1), a[0], 1e-5)


class Corner(DeclarativeNode):
    """min xᵀy over y₀ ≥ |y₁|, and y₀ ≤ limit."""

    def objective(self, x, limit, y):
        return x @ y

    def inequality_constraints(self, x, limit, y):
        return torch.stack([y[1] - y[0], -y[1] - y[0], y[0] - limit[0]])

    def initial_guess(self, x, limit):
        return torch.zeros_like(x)


@pytest.mark.parametrize("method", METHODS)
def test_statuses(method):
    """Infeasible, NaN and unbounded samples beside regular ones, which do not notice."""
    x = torch.tensor([[-1.0, 0.0], [2.0, 1.0], [2.0, 1.0], [torch.nan, 1.0]], dtype=F64)
    limit = torch.tensor([[5.0], [-1.0], [1.0], [1.0]], dtype=F64)
    s = Corner(solver=SciPy(method, on_failure="nan")).solution(x, limit)
    assert s.status.tolist() == [0, Status.INFEASIBLE, 0, Status.NON_FINITE]
    close(s.y[0, 0], torch.tensor(5.0, dtype=F64), 1e-12)
    close(s.y[2], torch.zeros(2, dtype=F64), 1e-12)
    assert bool(s.y[[1, 3]].isnan().all())
    with pytest.raises(SolverError, match=r"1 of 1 sample \(0\): no point satisfies the constraints"):
        Corner(solver=SciPy(method))(x[1:2], limit[1:2])
    cone = type("Cone", (Corner,), {"inequality_constraints": lambda self, x, limit, y: torch.stack([y[1] - y[0], -y[1] - y[0]])})
    s = cone(solver=SciPy(method, on_failure="nan")).solution(x[:3], limit[:3])
    assert s.status.tolist() == [Status.UNBOUNDED, 0, 0]


def test_limits():
    inputs = programs(m=12, p=4, q=40)
    solver = SciPy("highs-ds", max_iterations=1, options={"presolve": False}, on_failure="nan")
    s = LP(solver=solver).solution(*inputs)
    assert s.status.tolist() == [Status.MAX_ITERATIONS] * 3
    assert int(LP(solver=SciPy("highs-ds", options={"presolve": False})).solution(*inputs).iterations.min()) > 1
    assert LP(solver=SciPy("highs", options={"time_limit": 0.0, "presolve": False}, on_failure="nan")).solution(*inputs).status.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("methods", "part"),
    [
        ({"objective": lambda self, x, limit, y: x @ y + 1e-3 * y @ y}, "objective"),
        ({"objective": lambda self, x, limit, y: (x * y.abs()).sum()}, "objective"),
        ({"objective": lambda self, x, limit, y: x @ y.relu()}, "objective"),
        ({"equality_constraints": lambda self, x, limit, y: y[0] * y[1]}, "equality_constraints"),
        ({"inequality_constraints": lambda self, x, limit, y: torch.cat([-y, (y @ y - limit)])}, "inequality_constraints"),
    ],
)
def test_what_is_not_linear_is_refused(methods, part):
    x = torch.tensor([[1.0, 2.0]] * 2, dtype=F64)
    node = type("Curved", (Corner,), methods)(solver=SciPy("highs"))
    with pytest.raises(ValueError, match=rf"SciPy\(method='highs'\) solves linear programs, and Curved.{part} is not linear in y \(2 of 2 samples \(0, 1\)\)"):
        node(x, x[:, :1])


def test_the_sample_that_is_not_linear_is_named():
    bent = type("Bent", (Corner,), {"objective": lambda self, x, limit, y: (y + x[1] * y**2).sum()})(solver=SciPy("highs"))
    x, limit = torch.tensor([[1.0, 0.0], [1.0, 3.0]], dtype=F64), torch.ones(2, 1, dtype=F64)
    close(bent(x[:1], limit[:1]), torch.zeros(1, 2, dtype=F64), 1e-12)
    with pytest.raises(ValueError, match=r"Bent.objective is not linear in y \(1 of 2 samples \(1\)\)"):
        bent(x, limit)
