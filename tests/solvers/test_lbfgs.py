"""LBFGS against closed forms, scipy and Newton; each sample for itself; memory that grows like m."""

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.timing import peak_bytes
from declarative import DeclarativeNode, SolverError, Status
from declarative.engines.first_order import value_and_gradient
from declarative.node import prepare
from declarative.problem import Layout
from declarative.solvers import LBFGS, Newton
from tests.conformance.cases import close

F64 = torch.float64


class Rosenbrock(DeclarativeNode):
    """The chained valley; its minimum for x = 1 is y = 1."""

    def objective(self, x, y):
        return (100 * (y[1:] - y[:-1] ** 2) ** 2).sum() + ((x[0] - y[:-1]) ** 2).sum()

    def initial_guess(self, x):
        return torch.tensor([-1.2, 1.0], dtype=x.dtype).repeat(x.shape[1] // 2).expand(x.shape[0], x.shape[1])


class Logistic(DeclarativeNode):
    def objective(self, A, t, y):
        return torch.nn.functional.softplus(-t * (A @ y)).sum() + 0.05 * y @ y

    def initial_guess(self, A, t):
        return A.new_zeros(A.shape[0], A.shape[2])


class Quadratic(DeclarativeNode):
    """½ Σ dᵢyᵢ² − xᵀy: y = x / d. Not a number where x is not; unbounded where d < 0."""

    def objective(self, d, x, y):
        return 0.5 * (d * y * y).sum() - (x * y).sum()

    def initial_guess(self, d, x):
        return torch.zeros_like(x)


class Chain(DeclarativeNode):
    def objective(self, x, y):
        return 0.5 * (y - x).square().sum() + (1 + y.diff().square()).sqrt().sum()

    def initial_guess(self, x):
        return x


def logistic(batch=3, rows=40, m=7, dtype=F64):
    A = torch.randn(batch, rows, m, dtype=dtype)
    return A, torch.sign(A[:, :, 0] + torch.randn(batch, rows, dtype=dtype))


@pytest.mark.parametrize("m", [2, 6, 20])
def test_rosenbrock(m):
    x = torch.ones(2, m, dtype=F64)
    x[1, 0] = 0.7
    s = Rosenbrock(solver=LBFGS()).solution(x)
    close(s.y[0], torch.ones(m, dtype=F64), 1e-8)
    for i in range(2):
        start, c = np.tile([-1.2, 1.0], m // 2), float(x[i, 0])
        found = scipy.optimize.minimize(
            lambda y, c=c: (100 * (y[1:] - y[:-1] ** 2) ** 2).sum() + ((c - y[:-1]) ** 2).sum(), start, method="L-BFGS-B", options={"maxfun": 10**5}
        )
        np.testing.assert_allclose(s.y[i], found.x, atol=2e-3)
    close(s.y, Rosenbrock(solver=Newton()).solution(x, init=s.y).y, 1e-8)


def test_logistic_regression_against_scipy():
    A, t = logistic()
    y = Logistic(solver=LBFGS())(A, t)
    for i in range(3):
        a, sign = A[i].numpy(), t[i].numpy()

        def value(w, a=a, sign=sign):
            z = -sign * (a @ w)
            return np.logaddexp(0, z).sum() + 0.05 * w @ w, a.T @ (-sign / (1 + np.exp(-z))) + 0.1 * w

        found = scipy.optimize.minimize(value, np.zeros(7), jac=True, method="L-BFGS-B", options={"ftol": 0, "gtol": 1e-8})
        np.testing.assert_allclose(y[i], found.x, atol=1e-7)


@pytest.mark.parametrize("condition", [1e2, 1e4])
def test_an_ill_conditioned_quadratic(condition):
    d = torch.logspace(0, np.log10(condition), 12, dtype=F64).expand(3, 12)
    x = torch.randn(3, 12, dtype=F64)
    close(Quadratic(solver=LBFGS())(d, x) * d, x, 1e-7)


@given(seed=st.integers(0, 10**6), m=st.integers(1, 12), memory=st.integers(1, 15))
def test_quadratics_for_any_memory(seed, m, memory):
    generator = torch.Generator().manual_seed(seed)
    d, x = torch.rand(2, m, generator=generator, dtype=F64) + 0.1, torch.randn(2, m, generator=generator, dtype=F64)
    close(Quadratic(solver=LBFGS(memory))(d, x), x / d, 1e-8)


def test_two_loops():
    """The direction is that of the recursion as the books write it."""
    from declarative.solvers.lbfgs import inverse_product

    b, k, m, iteration = 3, 4, 6, 6
    S, g = torch.randn(b, k, m, dtype=F64), torch.randn(b, m, dtype=F64)
    root = torch.randn(b, m, m, dtype=F64)
    Y = S @ (root @ root.mT)
    valid = torch.tensor([[True] * 4, [True, False, True, True], [False] * 4])
    scale = torch.rand(b, dtype=F64) + 0.5
    state = {"steps": S, "changes": Y, "products": S @ Y.mT, "valid": valid, "gradient": g, "scale": scale}
    found = inverse_product(state, iteration)
    for i in range(b):
        oldest_first = [j for j in ((iteration + n) % k for n in range(k)) if valid[i, j]]
        q, alpha = g[i].clone(), {}
        for j in reversed(oldest_first):
            alpha[j] = S[i, j] @ q / (S[i, j] @ Y[i, j])
            q = q - alpha[j] * Y[i, j]
        r = scale[i] * q
        for j in oldest_first:
            r = r + S[i, j] * (alpha[j] - Y[i, j] @ r / (S[i, j] @ Y[i, j]))
        close(found[i], r, 1e-9 * float(r.abs().max()))


def test_many_variables_and_memory_like_m():
    """m = 20 000, where one m × m matrix is 3.2 GB."""
    x = 2 * torch.randn(1, 20_000, dtype=F64)
    s = Chain(solver=LBFGS()).solution(x)
    grad = s.y - x
    w = s.y.diff() / (1 + s.y.diff().square()).sqrt()
    grad[:, 1:] += w
    grad[:, :-1] -= w
    assert float(grad.abs().max()) < 1e-8
    node = Chain(solver=LBFGS(memory=5, max_iterations=12, on_failure="nan"))
    small, large = (peak_bytes(lambda m=m: node(x[:, :m])) for m in (2_000, 20_000))
    assert large < 11 * small
    assert large < 60 * 8 * 20_000


def test_gradients_equal_newtons():
    A, t = logistic()
    A.requires_grad_()
    weights = torch.randn(3, 7, dtype=F64)
    found = [torch.autograd.grad((Logistic(solver=solver)(A, t) * weights).sum(), A)[0] for solver in (LBFGS(), Newton())]
    close(*found, 1e-7)


def test_a_hard_neighbour_changes_nothing():
    x = torch.tensor([[1.0] * 4, [-3.0] * 4, [20.0] * 4], dtype=F64)
    together = Rosenbrock(solver=LBFGS()).solution(x)
    for i in range(3):
        alone = Rosenbrock(solver=LBFGS()).solution(x[i : i + 1])
        assert torch.equal(alone.y[0], together.y[i])
        assert int(alone.iterations) == int(together.iterations[i])
    assert len(set(together.iterations.tolist())) == 3


def test_single_precision():
    A, t = logistic()
    s = Logistic(solver=LBFGS()).solution(A.float(), t.float())
    assert s.y.dtype == torch.float32
    close(s.y.double(), Logistic()(A, t), 1e-4)
    close(Rosenbrock(solver=LBFGS())(torch.ones(1, 4)), torch.ones(1, 4), 5e-3)


def test_empty_batch_single_instance_and_shapes():
    A, t = logistic()
    node = Logistic(solver=LBFGS())
    assert node(A[:0], t[:0]).shape == (0, 7)
    close(node(A[0], t[0], in_dims=None), node(A, t)[0], 1e-9)

    class Pair(DeclarativeNode):
        def objective(self, x, y):
            return (y[0] - x).square().sum() + (y[1] - x.sum()) ** 4

        def initial_guess(self, x):
            return torch.zeros_like(x), x.new_zeros(x.shape[0])

    y = Pair(solver=LBFGS(tolerance=1e-6), polish=3)(torch.ones(2, 3, 2, dtype=F64) / 6)
    assert [tuple(part.shape) for part in y] == [(2, 3, 2), (2,)]


def test_failing_samples_are_marked_alone():
    d, x = torch.ones(4, 3, dtype=F64), torch.ones(4, 3, dtype=F64)
    x[1, 2] = torch.nan
    d[2, 0] = -1.0
    x[3] = torch.inf
    s = Quadratic(solver=LBFGS(on_failure="nan")).solution(d, x)
    assert s.status.tolist() == [Status.CONVERGED, Status.NON_FINITE, Status.UNBOUNDED, Status.NON_FINITE]
    close(s.y[0], x[0], 1e-12)
    linear = Quadratic(solver=LBFGS(on_failure="nan")).solution(torch.zeros(1, 3, dtype=F64), torch.ones(1, 3, dtype=F64))
    assert linear.status.tolist() == [Status.UNBOUNDED]


def test_a_kink_is_not_stationary():
    kink = type("Kink", (Quadratic,), {"objective": lambda self, d, x, y: (d * (y - x).abs()).sum() + (y[0] - y[1]).abs()})
    s = kink(solver=LBFGS(on_failure="nan")).solution(torch.tensor([[1.0, 2.0]], dtype=F64), torch.tensor([[0.3, 1.0]], dtype=F64))
    assert s.status.tolist() == [Status.NOT_STATIONARY]


def test_trial_points_outside_the_domain():
    barrier = type("Barrier", (Quadratic,), {"objective": lambda self, d, x, y: (x * y - d * y.log()).sum(), "initial_guess": lambda self, d, x: 30 * d})
    x = torch.tensor([[0.5, 2.0, 10.0], [1.0, 1.0, 100.0]], dtype=F64)
    close(barrier(solver=LBFGS())(torch.ones_like(x), x), 1 / x, 1e-9)


def test_a_concave_start_and_a_start_at_the_solution():
    well = type("Well", (Quadratic,), {"objective": lambda self, d, x, y: (y**4 / 4 - d * y**2 / 2).sum(), "initial_guess": lambda self, d, x: x})
    d, x = torch.tensor([[1.0, 4.0]], dtype=F64), torch.tensor([[0.05, -0.01]], dtype=F64)
    close(well(solver=LBFGS())(d, x), torch.tensor([[1.0, -2.0]], dtype=F64), 1e-9)
    s = well(solver=LBFGS()).solution(d, d.sqrt())
    assert s.iterations.tolist() == [1]
    assert torch.equal(s.y, d.sqrt())


def test_constants_cancel():
    """f ≈ 0 as a difference of terms of size 10⁸: ∇f sees the minimum where f does not."""
    offset = type("Offset", (Quadratic,), {"objective": lambda self, d, x, y: (d * (y - x) ** 2).sum() + 1e8 - (1e8 + 0 * y.sum())})
    d, x = torch.tensor([[1.0, 30.0, 100.0]], dtype=F64), torch.tensor([[1.0, -2.0, 3.0]], dtype=F64)
    close(offset(solver=LBFGS())(d, x), x, 1e-9)


@pytest.mark.parametrize("units", [1e-6, 1.0, 1e6])
def test_units_of_the_objective(units):
    A, t = logistic()
    scaled = type("Scaled", (Logistic,), {"objective": lambda self, A, t, y: units * Logistic.objective(self, A, t, y)})
    close(scaled(solver=LBFGS())(A, t), Logistic()(A, t), 1e-8)


def test_warm_start_tolerance_and_max_iterations():
    A, t = logistic()
    node = Logistic(solver=LBFGS())
    cold = node.solution(A, t)
    assert int(node.solution(A + 1e-6, t, init=cold).iterations.sum()) < int(cold.iterations.sum())
    loose = Logistic(solver=LBFGS(tolerance=1e-3)).solution(A, t)
    assert int(loose.iterations.sum()) < int(cold.iterations.sum())
    close(loose.y, cold.y, 1e-2)
    assert LBFGS(tolerance=1e-3).strict() == LBFGS()
    with pytest.raises(SolverError, match=r"Rosenbrock, solved by LBFGS: 1 of 1 sample \(0\): did not converge within max_iterations"):
        Rosenbrock(solver=LBFGS(max_iterations=3))(torch.ones(1, 4, dtype=F64))


def test_progress():
    lines = []
    s = Rosenbrock(solver=LBFGS(progress=lines.append)).solution(torch.ones(2, 4, dtype=F64))
    assert [line.iteration for line in lines] == list(range(1, int(s.iterations.max()) + 1))
    assert lines[0].solver == "LBFGS"
    assert lines[0].total == 2


def test_bad_input():
    for kind, instead in (("equality_constraints", "Newton"), ("inequality_constraints", "InteriorPoint")):
        held = type("Held", (Logistic,), {kind: lambda self, A, t, y: y.sum() - 1})
        with pytest.raises(ValueError, match=rf"Held has {kind.replace('_', ' ')}, which LBFGS\(\) does not handle; use {instead}"):
            held(solver=LBFGS())(*logistic())
    with pytest.raises(ValueError, match=r"memory=.*at least 1, got 0"):
        LBFGS(memory=0)
    with pytest.raises(TypeError, match="memory"):
        LBFGS(memory=2.5)


def test_value_and_gradient_can_be_differentiated():
    """By autograd and by torch.func; and records nothing where nothing asks for it."""
    A, t = logistic()
    y = torch.randn(3, 7, dtype=F64, requires_grad=True)
    problem = prepare(Logistic(), (A, t), 0)[0].with_layout(Layout(((7,),), False))
    value, gradient = value_and_gradient(problem, y)
    close(torch.autograd.grad(value.sum(), y, retain_graph=True)[0], gradient.detach(), 1e-12)
    twice = torch.autograd.grad(gradient.square().sum(), y)[0]
    close(torch.func.grad(lambda v: value_and_gradient(problem, v)[1].square().sum())(y.detach()), twice, 1e-10)
    with torch.no_grad():
        assert not any(part.requires_grad for part in value_and_gradient(problem, y))


def test_steps_can_be_differentiated():
    """Unrolled, their derivative tends to the solution's (more slowly than y does)."""
    x = torch.randn(2, 5, dtype=F64, requires_grad=True)
    node, solver = Chain(), LBFGS()
    problem = prepare(node, (x,), 0)[0].with_layout(Layout(((5,),), False))
    state = solver.begin(problem, x.detach(), ())
    for iteration in range(25):
        state = solver.step(problem, state, iteration)[0]
    unrolled = torch.autograd.grad(state["y"].square().sum(), x)[0]
    implicit = torch.autograd.grad(node(x).square().sum(), x)[0]
    close(unrolled, implicit, 1e-3)
