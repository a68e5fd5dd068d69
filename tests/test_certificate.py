"""Every number of a certificate against numpy; given points, batches, dtypes, the summary. Verdicts: test_certificate_verdicts.py."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from declarative import DeclarativeNode, Solution, SolverError, certify
from declarative.solvers import Newton
from tests.conformance.cases import close

F64 = torch.float64
NUMBERS = ("stationarity", "equality_violation", "inequality_violation", "complementarity", "licq_margin", "second_order_margin", "kkt_condition")


class Mixed(DeclarativeNode):
    """A quartic with one equality and two inequalities."""

    def objective(self, x, y):
        return 0.25 * (y**4).sum() + 0.5 * (y - x).square().sum() + y[0] * y[1]

    def equality_constraints(self, x, y):
        return y.sum() - x.sum().tanh()

    def inequality_constraints(self, x, y):
        return torch.stack([y @ y - 1, y[2] - 0.3 - y[0] ** 2])

    def initial_guess(self, x):
        return torch.zeros_like(x)


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(3), dtype=F64)


def by_numpy(node, x, y, nu, mu, active):
    """(stationarity, σ_min of active A, λ_min on null(A), cond K) of one instance, unscaled."""

    def rows(z):
        return torch.cat([node.equality_constraints(x, z).reshape(-1), node.inequality_constraints(x, z)[active]])

    def lagrangian(z):
        return node.objective(x, z) + nu @ node.equality_constraints(x, z).reshape(-1) + mu @ node.inequality_constraints(x, z)

    slope = torch.func.grad(lagrangian)(y).numpy()
    H, A = torch.func.hessian(lagrangian)(y).numpy(), torch.func.jacrev(rows)(y).numpy()
    _, values, vectors = np.linalg.svd(A)
    null = vectors[len(values) :].T
    K = np.block([[H, A.T], [A, np.zeros((len(A), len(A)))]])
    curvature = np.linalg.eigvalsh(null.T @ H @ null).min() if null.shape[1] else np.inf
    return np.abs(slope).max(), values.min(), curvature, np.linalg.cond(K)


def test_numbers_at_solutions():
    node = Mixed(polish=5)
    s = node.solution(X)
    c = certify(node, X)
    assert torch.equal(c.active, s.active)
    assert len({tuple(row) for row in c.active.tolist()}) > 1
    for i in range(5):
        slope, sigma, curvature, condition = by_numpy(node, X[i], s.y[i], s.equality_multipliers[i], s.inequality_multipliers[i], s.active[i])
        assert slope < 1e-12
        close(float(c.licq_margin[i]), sigma, 1e-9)
        close(float(c.second_order_margin[i]), curvature, 1e-9)
        close(float(c.kkt_condition[i]), condition, 1e-6)
    for name in NUMBERS[:4]:
        assert float(getattr(c, name).max()) < 1e-10
    assert bool(c.regular.all())
    assert c.causes == ((),) * 5


@given(seed=st.integers(0, 10**6), curvature=st.floats(1e-3, 1e3))
def test_residuals_anywhere(seed, curvature):
    """½c‖y‖² − xᵀy with wᵀy = 1 and y ≤ 1 at random points and multipliers: residuals relative to the terms that they are made of."""
    rng = np.random.default_rng(seed)
    w, x, y, nu, mu = rng.normal(size=3), rng.normal(size=3), 2 * rng.normal(size=3), rng.normal(), rng.normal(size=3)

    class Linear(DeclarativeNode):
        def objective(self, x, w, y):
            return 0.5 * curvature * y @ y - x @ y

        def equality_constraints(self, x, w, y):
            return w @ y - 1

        def inequality_constraints(self, x, w, y):
            return y - 1

    point = Solution(*(torch.tensor(value, dtype=F64).reshape(-1) for value in (y, nu, mu)))
    c = certify(Linear(), torch.tensor(x), torch.tensor(w), in_dims=None, y=point)
    size = np.abs(y) + np.finfo(float).eps ** 0.25 * (1 + np.abs(y).max())
    slope = curvature * y - x
    probe = np.cos(2.399963 * np.arange(3))
    terms = np.maximum(np.abs(slope), np.abs(curvature * size * probe))

    def balancing(row):  # the multiplier of a row that would balance the objective, as far as it points where the row moves
        moves = np.abs(row) * size
        return (terms * size * moves).sum() / moves.sum() ** 2

    rows, tiny = [w, *np.eye(3)], np.finfo(float).eps ** 0.25
    pulls = [np.abs(row) * (abs(lam) + tiny * balancing(row)) for row, lam in zip(rows, [nu, *mu], strict=True)]
    scale = np.maximum(terms, np.sum(pulls, 0))
    close(float(c.stationarity), max((np.abs(slope + nu * w + mu) / scale).max(), (-mu / scale).max()), 1e-12)
    close(float(c.equality_violation), abs(w @ y - 1) / (np.abs(w) @ size), 1e-12)
    close(float(c.inequality_violation), max(0.0, ((y - 1) / size).max()), 1e-12)
    close(float(c.complementarity), np.minimum(np.abs(y - 1) / size, np.abs(mu) / scale).max(), 1e-12)


def test_given_points():
    """y alone (multipliers are recovered), a Solution, a tuple; the same verdict as of the node's own solution."""
    node = Mixed(polish=5)
    s = node.solution(X)
    own = certify(node, X)
    for y in (s.y.detach(), s, Solution(s.y.detach())):
        given = certify(node, X, y=y)
        assert torch.equal(given.regular, own.regular)
        close(given.second_order_margin, own.second_order_margin, 1e-7)

    class Pair(DeclarativeNode):
        def objective(self, x, y):
            return 0.5 * (y[0] - x).square().sum() + 0.5 * (y[1] - 1) ** 2

        def initial_guess(self, x):
            return x, x[:, 0]

    one = torch.ones(5, dtype=F64)
    for y in ((X, one), Solution((X, one))):
        assert bool(certify(Pair(), X, y=y).regular.all())
    assert bool(certify(Pair(), X[0], in_dims=None, y=(X[0], one[0])).regular)
    assert not bool(certify(Pair(), X, y=(X, 0 * one)).minimiser.any())


def test_single_instance_float32_and_batch_of_one():
    node = Mixed(polish=5)
    s = node.solution(X)
    whole = certify(node, X, y=s)
    for i in range(5):
        one = certify(node, X[i], in_dims=None, y=Solution(*(t[i] for t in (s.y, s.equality_multipliers, s.inequality_multipliers))))
        assert one.active.shape == (2,)
        for name in (*NUMBERS, "active", "minimiser", "regular"):
            close(getattr(one, name), getattr(whole, name)[i], 1e-9)
    assert "a single instance: 1 of 1 samples are regular" in str(one)
    assert certify(node, X[1:2]).regular.tolist() == [True]
    single = certify(node, X.float())
    assert single.second_order_margin.dtype == torch.float32
    assert torch.equal(single.active, whole.active)
    assert bool(single.regular.all())
    close(single.second_order_margin.double(), whole.second_order_margin, 1e-4)


def test_a_solve_that_failed_is_certified_and_not_raised():
    node = Mixed(solver=Newton(max_iterations=1))
    node.inequality_constraints = DeclarativeNode.inequality_constraints.__get__(node)
    with pytest.raises(SolverError):
        node(X)
    c = certify(node, X)
    assert not bool(c.minimiser.any())
    assert all(any("not stationary" in cause for cause in causes) for causes in c.causes)


def test_bad_points():
    node = Mixed()
    with pytest.raises(ValueError, match="cannot certify an empty batch"):
        certify(node, X[:0])
    for y, shape in ((X[:2], r"\(2, 4\)"), (X[:, :3], r"\(5, 3\)"), (X[0, 0], r"\(\)"), ((X, X), r"\[\(5, 4\), \(5, 4\)\]")):
        with pytest.raises(ValueError, match=f"Mixed: .*got .*{shape}"):
            certify(node, X, y=y)
    with pytest.raises(ValueError, match=r"inequality_multipliers has shape \(5, 3\), expected \(5, 2\)"):
        certify(node, X, y=Solution(X, X[:, :1], X[:, :3]))
    for y in ("y", [X.tolist()], X.numpy()):
        with pytest.raises(TypeError, match=r"Mixed: .* tensor"):
            certify(node, X, y=y)
    with pytest.raises(TypeError, match="node must be a DeclarativeNode, got Linear"):
        certify(torch.nn.Linear(2, 2), X)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.complex128])
def test_points_of_another_dtype_are_refused(dtype):
    """Converted in silence, a float32 point would be judged by the tolerances of float64, and half a complex one not at all."""
    with pytest.raises(TypeError, match=str(dtype)):
        certify(Mixed(), X, y=X.to(dtype))


def test_summary_names_the_worst_and_the_causes():
    class Ball(DeclarativeNode):
        def objective(self, x, y):
            return 0.5 * (y - x).square().sum()

        def inequality_constraints(self, x, y):
            return y @ y - 1

        def initial_guess(self, x):
            return 0 * x

    x = torch.eye(3, dtype=F64)[torch.arange(200) % 3] * torch.where(torch.arange(200) % 10 == 0, 1.0, 2.0).unsqueeze(1)
    y = torch.nn.functional.normalize(x)
    y[7] *= 1.5
    y[8], x[8] = torch.tensor([0.0, 0.0, -1.0]), 0.0
    text = str(certify(Ball(), x, y=y))
    assert "Ball, 200 samples: 178 of 200 samples are regular minimisers" in text
    assert "20 of 200 samples (0, 10, 20, 30, 40, 50, 60, 70, …): inequality 0 is weakly active; the derivative is one-sided there" in text
    assert "1 of 200 samples (7): infeasible: inequality 0 is violated" in text
    assert "1 of 200 samples (8): the multiplier of inequality 0 has the wrong sign" in text
    (violation,) = (line for line in text.splitlines() if "inequality violation" in line)
    assert "2.78e-01  (sample 7)" in violation  # 1.25 of the change that a move by y's own size brings, 3 · 1.5
    assert len(text.splitlines()) < 14
    assert max(map(len, text.splitlines())) < 160


def test_nothing_is_recorded_or_changed():
    node = Mixed()
    x = X.clone().requires_grad_()
    c = certify(node, x)
    assert not any(getattr(c, name).requires_grad for name in NUMBERS)
    assert x.grad is None
    assert torch.equal(x, X)
