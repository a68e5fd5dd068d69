"""Every number of a certificate against numpy, every verdict against a point that was made to deserve it."""

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


def node_of(objective, equalities=None, inequalities=None):
    """A node of functions of y alone; its input x has the shape of y and no say."""
    methods = {"objective": lambda self, x, y: objective(y), "initial_guess": lambda self, x: torch.zeros_like(x)}
    if equalities:
        methods["equality_constraints"] = lambda self, x, y: torch.stack(equalities(y))
    if inequalities:
        methods["inequality_constraints"] = lambda self, x, y: torch.stack(inequalities(y))
    return type("Made", (DeclarativeNode,), methods)()


def at(node, *point):
    y = torch.tensor([point], dtype=F64)
    return certify(node, torch.zeros_like(y), y=y)


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


def test_margins_where_there_is_nothing_to_measure():
    """No constraint: no gradient to depend on another. A vertex: no direction to curve along. Three lines in a plane: always dependent."""
    free = at(node_of(lambda y: (y * y).sum()), 0.0, 0.0)
    assert float(free.licq_margin) == np.inf
    vertex = at(node_of(lambda y: -y.sum(), None, lambda y: [y[0], 2 * y[1]]), 0.0, 0.0)
    assert float(vertex.second_order_margin) == np.inf
    assert float(vertex.licq_margin) == 1.0
    assert bool(vertex.regular)
    crowded = at(node_of(lambda y: -y.sum(), None, lambda y: [y[0], y[1], y[0] + y[1]]), 0.0, 0.0)
    assert float(crowded.licq_margin) == 0.0
    assert float(crowded.kkt_condition) > 1e14


def half_square(*goal):
    return lambda y: 0.5 * ((y - torch.tensor(goal, dtype=y.dtype)) ** 2).sum()


# name: objective, equalities, inequalities, point, every cause, whether it is a minimiser
VERDICTS = {
    "regular": (half_square(2.0, 0.5), None, lambda y: [y[0] - 1], (1.0, 0.5), (), True),
    "curved": (lambda y: y[0], lambda y: [y @ y - 1], None, (-1.0, 0.0), (), True),
    "twice": (half_square(0.0, 0.0), lambda y: [y[0] - 1, 1 - y[0]], None, (1.0, 0.0), ("equality 0 and equality 1 are redundant",), True),
    "across": (half_square(1.0, 0.0), lambda y: [y[0]], lambda y: [y[0]], (0.0, 0.0), ("equality 0 and inequality 0 are red",), True),
    "of three": (half_square(0.0, 0.0, 0.0), lambda y: [y[0] - 1, y[1] - 1, y[0] + y[1] - 2], None, (1.0, 1.0, 0.0), ("the 3 constraints", "linearly"), True),
    "cusp": (half_square(0.0, 0.0), lambda y: [y[0] ** 2], None, (0.0, 0.0), ("the gradient of equality 0 vanishes",), True),
    "weak": (half_square(0.0, 1.0), None, lambda y: [y[1] - 3, y[0]], (0.0, 1.0), ("inequality 1 is weakly active",), True),
    "trough": (lambda y: (y[0] - y[1]) ** 2, None, None, (1.0, 1.0), ("not an isolated minimiser",), True),
    "saddle": (lambda y: y[0] ** 2 - y[1] ** 2, None, None, (0.0, 0.0), ("a saddle point, not a minimiser",), False),
    "top": (lambda y: -(y @ y), None, None, (0.0, 0.0), ("a maximiser, not a minimiser",), False),
    "top of a circle": (lambda y: y[0], lambda y: [y @ y - 1], None, (1.0, 0.0), ("a maximiser, not a minimiser",), False),
    "saddle that is cut": (lambda y: y[0] ** 2 - y[1] ** 2, lambda y: [y[1]], None, (0.0, 0.0), (), True),
    "slope": (half_square(0.0, 0.0), None, lambda y: [y[0] - 5], (1.0, 0.0), ("not stationary",), False),
    "pull": (half_square(-1.0, 0.0), None, lambda y: [y[0]], (0.0, 0.0), ("the multiplier of inequality 0 has the wrong sign",), False),
    "off a line": (half_square(0.0, 0.5), lambda y: [y[1] - 0.5, y[0] - 1], None, (0.0, 0.5), ("infeasible: equality 1 is violated",), False),
    "outside": (half_square(0.0, 0.0), None, lambda y: [y[0] - 5, 1 - y[1]], (0.0, 0.0), ("infeasible: inequality 1 is violated",), False),
    "off the domain": (lambda y: y.log().sum(), None, None, (1.0, -1.0), ("NaN or inf",), False),
}


@pytest.mark.parametrize("name", VERDICTS)
@given(exponents=st.tuples(*[st.integers(-6, 6)] * 3))
def test_verdicts_in_any_units(name, exponents):
    """The causes, all of them, and whether it is a minimiser: the same if objective and constraints are written in other units."""
    objective, equalities, inequalities, point, causes, minimiser = VERDICTS[name]
    factor, *factors = (10.0**e for e in exponents)

    def rescaled(rows):
        return None if rows is None else lambda y: [(factors[i % 2]) * row for i, row in enumerate(rows(y))]

    plain = at(node_of(objective, equalities, inequalities), *point)
    scaled = at(node_of(lambda y: factor * objective(y), rescaled(equalities), rescaled(inequalities)), *point)
    for c in (plain, scaled):
        said = " | ".join(c.causes[0])
        assert all(cause in said for cause in causes), said
        assert len(c.causes[0]) == sum("linearly" not in cause for cause in causes), said
        assert c.minimiser.tolist() == [minimiser]
        assert c.regular.tolist() == [not causes]
    for number in NUMBERS[:4]:
        close(getattr(scaled, number), getattr(plain, number), 1e-7, equal_nan=True)
    if np.isfinite(float(plain.second_order_margin)) and not equalities and not inequalities:
        close(scaled.second_order_margin, factor * plain.second_order_margin, 1e-12 * factor)


def test_a_constraint_that_is_slack_cannot_push():
    """½(y − 1)² with y ≤ 2 at y = 0, kept there by a multiplier of 1: stationary, feasible, and not a minimiser."""
    node = node_of(half_square(1.0), None, lambda y: [y[0] - 2])
    zero, one = torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64)
    c = certify(node, zero, y=Solution(zero, zero[:, :0], one))
    close(float(c.complementarity), 1.0, 1e-3)
    assert not bool(c.minimiser)
    assert not bool(c.regular)
    assert c.causes != ((),)


def test_a_violated_constraint_does_not_hold_with_equality():
    c = at(node_of(half_square(0.0, 0.0), None, lambda y: [1 - y[1]]), 0.0, 0.0)
    assert not bool(c.active.any() | c.weakly_active.any())


def test_a_point_that_is_nan_is_called_so():
    c = at(node_of(half_square(0.0, 0.0)), float("nan"), 0.0)
    assert "NaN" in c.causes[0][0]
    assert not bool(c.minimiser)


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
