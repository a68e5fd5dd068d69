"""Every method of scipy.optimize.minimize, each option, threads, dtypes, failures; against closed forms, cvxpy and scipy itself."""

import threading
import warnings

import numpy as np
import pytest
import scipy.optimize
import torch

from declarative import DeclarativeNode, SolverError, SolverWarning, Status
from declarative.solvers import SciPy
from tests.conformance.cases import close
from tests.solvers.statements import CONTRADICTIONS, F64, QP, ROOTS, Box, DoubleWell, Free, Rosenbrock, Sphere, compare_with_cvxpy, quadratic_programs

FREE = ("Nelder-Mead", "Powell", "CG", "BFGS", "Newton-CG", "L-BFGS-B", "TNC", "dogleg", "trust-ncg", "trust-krylov", "trust-exact", "COBYQA")
HELD = ("SLSQP", "trust-constr", "COBYLA")
KINDS = [(Free, None), *((Free, m) for m in FREE), (Box, None), *((Box, m) for m in (*HELD, "COBYQA")), (Sphere, None), *((Sphere, m) for m in HELD)]
X = ROOTS + 0.4 * ROOTS**3
EXPECTED = {Free: ROOTS, Box: ROOTS.clamp(-1, 1), Sphere: X / torch.linalg.vector_norm(X, dim=1, keepdim=True)}


def named(value):
    return value.__name__ if isinstance(value, type) else str(value)


@pytest.mark.parametrize(("node", "method"), KINDS, ids=named)
def test_each_kind_of_problem_by_each_method(node, method):
    """To the accuracy of the method and, polished, to rounding."""
    s = node(solver=SciPy(method)).solution(X)
    close(s.y, EXPECTED[node], 2e-5)
    close(node(solver=SciPy(method), polish=4)(X), EXPECTED[node], 1e-12)
    assert s.status.tolist() == [Status.CONVERGED] * 2
    assert int(s.iterations.min()) > 0


@pytest.mark.parametrize(("node", "method"), KINDS, ids=named)
def test_float32_is_solved_to_its_own_precision(node, method):
    """The optimality conditions to 10√eps, in no more steps than float64 takes or so; polished, y to rounding."""
    s = node(solver=SciPy(method)).solution(X.float())
    wide = node(solver=SciPy(method)).solution(X)
    assert s.y.dtype == torch.float32
    assert float(torch.maximum(s.stationarity, s.violation).max()) < torch.finfo(torch.float32).eps ** 0.5 * 10
    assert int(s.iterations.max()) <= 4 * int(wide.iterations.max())
    close(s.y.double(), EXPECTED[node], 2e-3)
    close(node(solver=SciPy(method), polish=4)(X.float()).double(), EXPECTED[node], 1e-6)


@pytest.mark.parametrize("method", ["BFGS", "Newton-CG", "trust-exact", "trust-ncg", "L-BFGS-B", "Nelder-Mead"])
def test_rosenbrock(method):
    x = torch.tensor([[1.0], [0.7], [-0.5]], dtype=F64, requires_grad=True)
    y = Rosenbrock(solver=SciPy(method), polish=4)(x)
    close(y, torch.cat([x, x**2], 1), 1e-7)
    close(torch.autograd.grad(y[:, 1].sum(), x)[0], 2 * x.detach(), 1e-6)


@pytest.mark.parametrize("method", ["SLSQP", "trust-constr"])
def test_multipliers_against_cvxpy(method):
    inputs = quadratic_programs(5, batch=2)
    s = QP(solver=SciPy(method), polish=3).solution(*inputs)
    compare_with_cvxpy(s, inputs)


def test_multipliers_of_a_known_solution():
    """min ½‖y − x‖² on y₀ + y₁ = 1, y₀ ≤ ¼, y ≥ −9: y = (¼, ¾), ν = x₁ − ¾, μ₀ = x₀ − ¼ − ν; scipy's own reports agree."""

    class Corner(DeclarativeNode):
        def objective(self, x, y):
            return 0.5 * (y - x).square().sum()

        def equality_constraints(self, x, y):
            return y.sum() - 1

        def inequality_constraints(self, x, y):
            return torch.cat([y[:1] - 0.25, -9 - y])

        def initial_guess(self, x):
            return torch.zeros_like(x)

    x = torch.tensor([[2.0, 1.0], [1.0, -0.5]], dtype=F64)
    nu = x[:, 1:] - 0.75
    mu = torch.cat([x[:, :1] - 0.25 - nu, torch.zeros(2, 2, dtype=F64)], 1)
    for method in (*HELD, "COBYQA"):
        s = Corner(solver=SciPy(method), polish=3 if method == "trust-constr" else 0).solution(x)
        close(s.equality_multipliers, nu, 1e-7)
        close(s.inequality_multipliers, mu, 1e-7)
    z = x[0].numpy()
    linear = [scipy.optimize.LinearConstraint([[1, 1]], 1, 1), scipy.optimize.LinearConstraint([[1, 0]], -np.inf, 0.25)]
    theirs = scipy.optimize.minimize(
        lambda y: 0.5 * ((y - z) ** 2).sum(), np.zeros(2), jac=lambda y: y - z, hess=lambda _: np.eye(2), method="trust-constr", constraints=linear, tol=1e-10
    )
    np.testing.assert_allclose(np.concatenate(theirs.v), [float(nu[0, 0]), float(mu[0, 0])], atol=1e-3)


@pytest.mark.parametrize("method", [None, "BFGS"])
def test_a_start_where_the_objective_is_concave(method):
    x = torch.tensor([[1.0], [4.0], [0.4]], dtype=F64)
    y = DoubleWell(solver=SciPy(method), polish=3)(x)
    for found, a in zip(y.flatten().tolist(), x.flatten().tolist(), strict=True):
        roots = np.roots([1, 0, -a, 0.1])
        minima = roots[(abs(roots.imag) < 1e-12) & (3 * roots.real**2 - a > 0)].real
        assert abs(minima - found).min() < 1e-10


@pytest.mark.parametrize("kind", ["inequalities", "bounds", "mixed"])
def test_contradictory_constraints(kind):
    """The first sample is infeasible (x₀ = 2), the second is not (x₀ = ½) and does not notice."""
    base = type("Contradictory", (Free,), CONTRADICTIONS[kind])
    x = torch.tensor([[2.0, 0.1, 0.2], [0.5, 0.6, 0.7]], dtype=F64)
    s, alone = (base(solver=SciPy(on_failure="nan")).solution(z) for z in (x, x[1:]))
    assert s.status.tolist() == [Status.INFEASIBLE, Status.CONVERGED]
    close(s.y[1], alone.y[0], 1e-10)
    with pytest.raises(SolverError, match=r"1 of 2 samples \(0\): no point satisfies the constraints"):
        base(solver=SciPy())(x)


@pytest.mark.parametrize("method", [None, "BFGS", "highs"])
def test_empty_batch(method):
    linear = {"objective": lambda self, x, y: x @ y} if method == "highs" else {}
    base = type("Node", (Free if method == "BFGS" else Box,), linear)
    x = torch.zeros(0, 2, dtype=F64, requires_grad=True)
    s = base(solver=SciPy(method)).solution(x)
    assert s.y.shape == (0, 2)
    assert s.inequality_multipliers.shape == s.active.shape == (0, 0 if method == "BFGS" else 4)
    assert torch.autograd.grad(s.y.sum(), x)[0].shape == (0, 2)


# Options.


@pytest.mark.parametrize(("node", "method"), [kind for kind in KINDS if kind[1]], ids=named)
def test_unknown_options_are_refused(node, method):
    """By name, before anything is solved; those that scipy knows pass, and change the outcome: one step is too few."""
    with pytest.raises(ValueError, match=rf"SciPy\(method='{method.lower()}'\) has no option 'gtoll'; print\(scipy.optimize.show_options\('minimize'"):
        SciPy(method, options={"disp": False, "gtoll": 1e-3})
    assert SciPy(method, options={"disp": False}).options == {"disp": False}
    statement = Rosenbrock if method == "Powell" else node  # one sweep of Powell's solves what is separable
    s = statement(solver=SciPy(method, max_iterations=1 if method not in ("COBYLA", "TNC") else 4, on_failure="nan")).solution(X)
    assert s.status.tolist() == [Status.MAX_ITERATIONS] * 2
    assert bool(s.y.isnan().all())


def test_unknown_options_of_the_default_method():
    """Which one that is the statement decides."""
    solver = SciPy(options={"max_trust_radius": 10.0})
    close(Free(solver=solver)(X), ROOTS, 1e-7)
    with pytest.raises(ValueError, match=r"SciPy\(method='slsqp'\) has no option 'max_trust_radius'"):
        Box(solver=solver)(X)
    with pytest.raises(ValueError, match=r"SciPy\(method='highs'\) has no option 'gtol'; print\(scipy.optimize.show_options\('linprog', 'highs'"):
        SciPy("highs", options={"gtol": 1e-3})


def test_options_reach_scipy():
    x = torch.tensor([[1.0]], dtype=F64)
    with pytest.raises(SolverError):
        Rosenbrock(solver=SciPy("BFGS", max_iterations=1))(x)
    with pytest.raises(SolverError, match="did not converge within max_iterations"):
        Rosenbrock(solver=SciPy("BFGS", options={"maxiter": 2}))(x)
    close(Rosenbrock(solver=SciPy("BFGS", options={"gtol": 1e-12}), polish=3)(x), torch.ones(1, 2, dtype=F64), 1e-8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Rosenbrock(solver=SciPy("BFGS", max_iterations=1, on_failure="warn"))(x)
    assert [w.category for w in caught] == [SolverWarning]


def test_tolerance():
    x = torch.tensor([[0.5]], dtype=F64)
    loose, tight = (Rosenbrock(solver=SciPy("BFGS", tolerance=t)).solution(x) for t in (1e-2, None))
    assert int(loose.iterations) < int(tight.iterations)
    assert float(tight.stationarity) < 1e-9 < float(loose.stationarity) < 1e-2


@pytest.mark.parametrize(("node", "method"), [(Rosenbrock, "BFGS"), (Rosenbrock, "trust-exact"), (Rosenbrock, "trust-constr"), (Box, "SLSQP")], ids=named)
def test_warm_start_saves_steps(node, method):
    """From an earlier solution, multipliers and all, and from y alone."""
    x = torch.tensor([[1.0]], dtype=F64)
    s, near = node(solver=SciPy(method)).solution(x), x + 1e-4
    cold = node(solver=SciPy(method)).solution(near)
    for init in (s, s.y.detach()):
        warm = node(solver=SciPy(method)).solution(near, init=init)
        assert int(warm.iterations) < int(cold.iterations)
        close(warm.y, cold.y, 1e-5)


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "2", None])
@pytest.mark.usefixtures("shapes_unchecked")
def test_bad_workers(workers):
    with pytest.raises(ValueError, match=r"SciPy\(workers=...\) must be a number of threads, 1 or more, got"):
        SciPy(workers=workers)


# Threads.


@pytest.mark.parametrize(("node", "method"), [(Free, "trust-exact"), (Free, "BFGS"), (Box, "SLSQP"), (Sphere, "trust-constr")], ids=named)
@pytest.mark.usefixtures("shapes_unchecked")
def test_threads_change_nothing(node, method):
    """Bit for bit, solution and derivative, whoever has a failing neighbour."""
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    x[2, 1] = torch.nan

    def outcome(workers):
        leaf = x.clone().requires_grad_()
        s = node(solver=SciPy(method, workers=workers, on_failure="nan")).solution(leaf)
        kept = s.y[s.status == Status.CONVERGED]
        return s.y.nan_to_num(7.0), s.status, s.iterations, torch.autograd.grad(kept.square().sum(), leaf)[0].nan_to_num(7.0)

    alone = outcome(1)
    assert alone[1].tolist() == [0, 0, Status.NON_FINITE, 0, 0, 0, 0]
    for workers in (2, 3, 50):
        assert all(torch.equal(a, b) for a, b in zip(alone, outcome(workers), strict=True))


@pytest.mark.usefixtures("shapes_unchecked")
def test_threads_share_the_samples():
    """Each sample in one thread, and both threads at once: they wait for each other."""
    barrier, seen = threading.Barrier(2), {}

    class Meeting(Free):
        def objective(self, x, y):
            name = threading.current_thread().name
            if name not in seen and threading.current_thread() is not threading.main_thread():
                seen[name] = torch.is_grad_enabled()
                barrier.wait(timeout=60)
            return super().objective(x, y)

    close(Meeting(solver=SciPy("BFGS", workers=2))(X), ROOTS, 1e-7)
    assert len(seen) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_of_the_statement_are_raised(workers):
    """Not swallowed by a thread, nor taken for a sample that failed."""

    class Broken(Free):
        def objective(self, x, y):
            if threading.current_thread() is not threading.main_thread() or workers == 1:
                raise KeyError("mine")
            return super().objective(x, y)

    with pytest.raises(KeyError, match="mine"):
        Broken(solver=SciPy("BFGS", workers=workers))(X)


class Edge(DeclarativeNode):
    """−log(1 − y²) + ½(y − x)²: NaN outside of |y| < 1, where a first step lands if x is large."""

    def objective(self, x, y):
        return (-torch.log(1 - y**2) + 0.5 * (y - x) ** 2).sum()

    def initial_guess(self, x):
        return torch.zeros_like(x)


@pytest.mark.parametrize("method", [m for m in FREE if m not in ("COBYQA", "Powell")])  # which leave the domain in the second sample too
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.usefixtures("shapes_unchecked")
def test_trial_points_outside_the_domain_concern_one_sample(method, workers):
    """Whatever becomes of the first, the second is solved: 2y/(1 − y²) + y = x."""
    x = torch.tensor([[1e4], [0.3]], dtype=F64)
    s = Edge(solver=SciPy(method, workers=workers, on_failure="nan"), polish=5).solution(x)
    assert int(s.status[1]) == Status.CONVERGED
    y = float(s.y[1])
    assert abs(2 * y / (1 - y**2) + y - 0.3) < 1e-9
    if int(s.status[0]) == Status.CONVERGED:
        y = float(s.y[0])
        assert abs(2 * y / (1 - y**2) + y - 1e4) < 1e-3
