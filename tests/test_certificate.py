"""Every number of a certificate against numpy, every verdict against a point that was made to deserve it."""

import numpy as np
import pytest
import torch

from declarative import DeclarativeNode, Solution, certify
from tests.conformance.cases import close

F64 = torch.float64


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


def test_numbers():
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
    for name in ("stationarity", "equality_violation", "inequality_violation", "complementarity"):
        assert float(getattr(c, name).max()) < 1e-10
    assert bool(c.regular.all())
    assert c.causes == ((),) * 5


def test_violations_are_distances():
    """0.1 outside a unit ball is 0.1 off, relative to 1 + |y|; and so is 0.1 beside a plane of any steepness."""

    class Far(DeclarativeNode):
        def objective(self, x, y):
            return 0.5 * (y - x).square().sum()

        def equality_constraints(self, x, y):
            return 50 * (y[0] - 1)

        def inequality_constraints(self, x, y):
            return 1e-3 * (y[1] - 1)

        def initial_guess(self, x):
            return x

    x = torch.zeros(1, 2, dtype=F64)
    c = certify(Far(), x, y=torch.tensor([[1.1, 1.1]], dtype=F64))
    close(float(c.equality_violation), 0.1 / 2.1, 1e-6)
    close(float(c.inequality_violation), 0.1 / 2.1, 1e-6)
    assert any("violated" in cause or "feasible" in cause for cause in c.causes[0])
    assert not bool(c.minimiser)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_units_change_no_verdict(factor):
    """Objective, constraints and y in other units."""

    class Scaled(Mixed):
        def objective(self, x, y):
            return factor * super().objective(x, y)

        def equality_constraints(self, x, y):
            return super().equality_constraints(x, y) / factor

    y = Mixed(polish=5)(X)
    plain, scaled = certify(Mixed(), X, y=y), certify(Scaled(), X, y=y)
    assert torch.equal(plain.active, scaled.active)
    assert torch.equal(plain.regular, scaled.regular)
    assert scaled.causes == plain.causes


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

    c = certify(Pair(), X, y=(X, torch.ones(5, dtype=F64)))
    assert bool(c.regular.all())
    assert not bool(certify(Pair(), X, y=(X, torch.zeros(5, dtype=F64))).minimiser.any())


def test_single_instance_float32_and_batch_of_one():
    node = Mixed(polish=5)
    whole = certify(node, X)
    one = certify(node, X[1], in_dims=None)
    assert one.regular.shape == ()
    assert one.active.shape == (2,)
    close(one.second_order_margin, whole.second_order_margin[1], 1e-8)
    assert "a single instance: 1 of 1 samples are regular" in str(one)
    assert certify(node, X[1:2]).regular.tolist() == [True]
    single = certify(node, X.float())
    assert single.second_order_margin.dtype == torch.float32
    assert torch.equal(single.active, whole.active)
    assert bool(single.regular.all())


def test_bad_points():
    node = Mixed()
    with pytest.raises(ValueError, match="cannot certify an empty batch"):
        certify(node, X[:0])
    with pytest.raises(ValueError, match=r"init must have the leading batch dimension 5, got shape \(2, 4\)"):
        certify(node, X, y=X[:2])
    with pytest.raises(TypeError, match="node must be a DeclarativeNode, got Linear"):
        certify(torch.nn.Linear(2, 2), X)


def test_summary_names_the_worst_and_the_causes():
    class Ball(DeclarativeNode):
        def objective(self, x, y):
            return 0.5 * (y - x).square().sum()

        def inequality_constraints(self, x, y):
            return y @ y - 1

        def initial_guess(self, x):
            return 0 * x

    x = torch.eye(3, dtype=F64)[torch.arange(32) % 3] * torch.where(torch.arange(32) % 10 == 0, 1.0, 2.0).unsqueeze(1)
    text = str(certify(Ball(), x))
    assert "32 samples: 28 of 32 samples are regular minimisers" in text
    assert "4 of 32 samples (0, 10, 20, 30): inequality 0 is weakly active; the derivative is one-sided there" in text
    assert len(text.splitlines()) < 12


def test_nothing_is_recorded_or_changed():
    node = Mixed()
    x = X.clone().requires_grad_()
    c = certify(node, x)
    assert not c.stationarity.requires_grad
    assert x.grad is None
    assert torch.equal(x, X)
