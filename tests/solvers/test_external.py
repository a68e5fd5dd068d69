"""A function of numpy arrays as a solver: cvxpy and numpy, against InteriorPoint, closed forms and finite differences; failures one by one."""

import cvxpy
import numpy as np
import pytest
import torch

from declarative import DeclarativeNode, SolverError, SolverWarning, Status
from declarative.solvers import External, InteriorPoint
from tests.conformance.cases import close, weights
from tests.solvers.statements import F64, QP, Free, quadratic_programs

M, P, Q_ = 5, 2, 4


class Portfolio(DeclarativeNode):
    """A second-order cone: min cᵀy + ½‖y‖²  s.t.  Σy = 1, y ≥ 0, ‖Fy‖² ≤ r."""

    def objective(self, c, F, r, y):
        return c @ y + 0.5 * y @ y

    def equality_constraints(self, c, F, r, y):
        return y.sum() - 1

    def inequality_constraints(self, c, F, r, y):
        return torch.cat([-y, (F @ y).square().sum().reshape(1) - r])

    def initial_guess(self, c, F, r):
        return torch.full_like(c, 1 / c.shape[1])


class Parametrised:
    """One cvxpy problem, built once, its parameters set for each sample."""

    def __init__(self, multipliers):
        self.y, self.c, self.F, self.r = cvxpy.Variable(M), cvxpy.Parameter(M), cvxpy.Parameter((3, M)), cvxpy.Parameter(nonneg=True)
        self.constraints = [cvxpy.sum(self.y) == 1, -self.y <= 0, cvxpy.sum_squares(self.F @ self.y) <= self.r]
        self.problem = cvxpy.Problem(cvxpy.Minimize(self.c @ self.y + 0.5 * cvxpy.sum_squares(self.y)), self.constraints)
        self.multipliers = multipliers

    def __call__(self, c, F, r):
        self.c.value, self.F.value, self.r.value = c, F, float(r[0])
        self.problem.solve(solver="CLARABEL")
        if self.y.value is None or not self.multipliers:
            return self.y.value
        nu, *mu = (np.atleast_1d(constraint.dual_value) for constraint in self.constraints)
        return self.y.value, nu, np.concatenate(mu)


def portfolios(batch=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    c, F = (torch.randn(batch, *s, generator=generator, dtype=F64) for s in ((M,), (3, M)))
    return c, F, 0.2 + (F.mean(2) ** 2).sum(1, keepdim=True)  # the even portfolio is feasible


@pytest.mark.parametrize("multipliers", [True, False], ids=["reported", "recovered"])
def test_cvxpy_on_a_cone_program(multipliers):
    """Solution, multipliers and gradients of InteriorPoint, and of solving again."""
    inputs = [t.requires_grad_() for t in portfolios()]
    node, other = Portfolio(solver=External(Parametrised(multipliers), multipliers=multipliers), polish=4), Portfolio(solver=InteriorPoint(), polish=4)
    s, t = node.solution(*inputs), other.solution(*inputs)
    assert s.status.tolist() == [Status.CONVERGED] * 3
    assert bool(s.active[:, -1].any())
    assert bool(s.active[:, :-1].any())
    found, expected = (torch.cat([k.y, k.equality_multipliers, k.inequality_multipliers], 1) for k in (s, t))
    close(found, expected, 1e-9)
    v = weights(found.shape)
    gradients = torch.autograd.grad((found * v).sum(), inputs)
    for gradient, same in zip(gradients, torch.autograd.grad((expected * v).sum(), inputs), strict=True):
        close(gradient, same, 1e-7)
    data = [k.detach() for k in inputs]

    def total(position, moved):
        k = node.solution(*(moved if i == position else d for i, d in enumerate(data)))
        return (torch.cat([k.y, k.equality_multipliers, k.inequality_multipliers], 1) * v).sum()

    for position, gradient in enumerate(gradients):
        direction, h = weights(data[position].shape, seed=position), 1e-5
        difference = (total(position, data[position] + h * direction) - total(position, data[position] - h * direction)) / (2 * h)
        close((gradient * direction).sum(), difference, 1e-7)


def test_cvxpy_reports_multipliers_in_our_signs():
    """Unpolished, and none recovered: those of the dual variables, to cvxpy's accuracy."""
    c, F, r = portfolios()
    s = Portfolio(solver=External(Parametrised(True), multipliers=True)).solution(c, F, r)
    close(s.inequality_multipliers, Portfolio().solution(c, F, r).inequality_multipliers, 1e-4)
    wrong = External(lambda *x: [k if i == 0 else -k for i, k in enumerate(Parametrised(True)(*x))], multipliers=True)
    with pytest.raises(SolverError, match=r"3 of 3 samples .* the point is not a minimiser"):
        Portfolio(solver=wrong)(c, F, r)


def by_active_set(Q, c, A, b, G, d):
    """A quadratic program in numpy, by trying which inequalities hold with equality."""
    for bits in range(2 ** len(d)):
        rows = [i for i in range(len(d)) if bits >> i & 1]
        border = np.vstack([A, G[rows]])
        if len(border) > len(c):
            continue
        k = np.block([[Q, border.T], [border, np.zeros((len(border),) * 2)]])
        z = np.linalg.solve(k, np.concatenate([-c, b, d[rows]]))
        y, nu, mu = z[: len(c)], z[len(c) : len(c) + len(b)], np.zeros(len(d))
        mu[rows] = z[len(c) + len(b) :]
        if (mu >= -1e-12).all() and (G @ y <= d + 1e-12).all():
            return y, nu, mu
    return None


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_numpy_with_inputs_that_the_batch_shares(dtype):
    """Q, A and G come without a batch dimension, all in float64; y comes back in the dtype of the inputs."""
    seen = []
    Q, c, A, b, G, d = (t.to(dtype) for t in quadratic_programs(1, batch=4, m=M, p=P, q=Q_))
    shared, dims = (Q[0], c, A[0], b, G[0], d + 3), (None, 0, None, 0, None, 0)

    def solve(*arrays):
        seen.append([(array.shape, array.dtype) for array in arrays])
        result = by_active_set(*arrays)
        for array in arrays:
            array[...] = np.nan  # its own copies
        return result

    node = QP(solver=External(solve, multipliers=True))
    leaves = [t.clone().requires_grad_() for t in shared]
    s = node.solution(*leaves, in_dims=dims)
    shapes = [(M, M), (M,), (P, M), (P,), (Q_, M), (Q_,)]
    assert seen == [[(shape, np.dtype(np.float64)) for shape in shapes]] * 4
    assert s.y.dtype == s.inequality_multipliers.dtype == dtype
    exact = QP(solver=InteriorPoint(), polish=3)
    same = [t.double().clone().requires_grad_() for t in shared]
    tolerance = 1e-8 if dtype == F64 else 1e-3
    close(s.y.double(), exact(*same, in_dims=dims), tolerance)
    found = torch.autograd.grad(s.y.sum(), leaves)
    for mine, theirs in zip(found, torch.autograd.grad(exact(*same, in_dims=dims).sum(), same), strict=True):
        close(mine.double(), theirs, tolerance)


class Pair(DeclarativeNode):
    """y = (a vector, a scalar): (x, Σx)."""

    def objective(self, x, y):
        return 0.5 * (y[0] - x).square().sum() + 0.5 * (y[1] - x.sum()) ** 2


def test_a_decision_variable_of_several_parts():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=F64, requires_grad=True)
    vector, scalar = Pair(solver=External(lambda x: (x, x.sum())))(x)
    close(vector, x.detach(), 0.0)
    close(scalar, x.detach().sum(1), 0.0)
    close(torch.autograd.grad(scalar.sum(), x)[0], torch.ones(2, 2, dtype=F64), 1e-12)


def test_coarse_results_are_polished():
    """Good to a digit, then to rounding; unpolished it is refused."""
    x = torch.tensor([[1.5, 0.4], [-2.0, 0.1]], dtype=F64)
    rough = External(lambda z: np.round([min(np.roots([0.4, 0, 1, -v]), key=lambda r: abs(r.imag)).real for v in z], 1) + 0.04)
    y = Free(solver=rough, polish=4)(x)
    close(y + 0.4 * y**3, x, 1e-13)
    with pytest.raises(SolverError, match="Free, solved by External: 2 of 2 samples"):
        Free(solver=rough)(x)


# Failures.


class Kept(Free):
    """y ≥ x₀ and y ≤ 1: infeasible where x₀ > 1."""

    def objective(self, x, y):
        return 0.5 * (y - x).square().sum()

    def inequality_constraints(self, x, y):
        return torch.cat([y - 1, x[0] - y])


def project(x):
    y, low = cvxpy.Variable(2), float(x[0])
    cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(y - x)), [y <= 1, y >= low]).solve(solver="CLARABEL")
    return y.value


def moody(x):
    if x[0] > 1:
        raise ArithmeticError("too large")
    return np.clip(x, x[0], 1)


X = torch.tensor([[0.5, 0.7], [2.0, 0.1], [0.2, 3.0]], dtype=F64)


@pytest.mark.parametrize(
    ("function", "status"),
    [
        (project, Status.NO_SOLUTION),
        (moody, Status.NO_SOLUTION),
        (lambda x: Status.INFEASIBLE if x[0] > 1 else np.clip(x, x[0], 1), Status.INFEASIBLE),
        (lambda x: Status.CONVERGED if x[0] > 1 else np.clip(x, x[0], 1), Status.NO_SOLUTION),
        (lambda x: x * np.nan if x[0] > 1 else np.clip(x, x[0], 1), Status.NON_FINITE),
    ],
)
@pytest.mark.parametrize("polish", [0, 2])
def test_failed_samples_leave_their_neighbours_alone(function, status, polish):
    x = X.clone().requires_grad_()
    s = Kept(solver=External(function, on_failure="nan"), polish=polish).solution(x)
    assert s.status.tolist() == [0, status, 0]
    assert bool(s.y[1].isnan().all())
    close(s.y[[0, 2]], torch.tensor([[0.5, 0.7], [0.2, 1.0]], dtype=F64), 1e-12 if polish else 1e-3)
    rows = torch.autograd.grad(s.y[2].sum(), x)[0]
    close(rows[2], torch.tensor([1.0, 0.0], dtype=F64), 1e-9)


def test_what_a_failure_says():
    with pytest.raises(SolverError, match=r"Kept: External\(function\) raised ArithmeticError in sample 1 of 3: too large") as caught:
        Kept(solver=External(moody))(X)
    assert isinstance(caught.value.__cause__, ArithmeticError)
    with pytest.warns(SolverWarning) as warned:
        s = Kept(solver=External(moody, on_failure="warn")).solution(X)
    assert [str(w.message)[:40] for w in warned] == ["Kept: External(function) raised Arithmet", "Kept, solved by External: 1 of 3 samples"]
    assert s.status.tolist() == [0, Status.NO_SOLUTION, 0]
    with pytest.raises(SolverError, match=r"1 of 3 samples \(1\): the solver came back without a solution"):
        Kept(solver=External(project))(X)


def test_no_sample_has_a_solution():
    """The shape of y is that of initial_guess; where there is none, nobody knows it."""
    s = Kept(solver=External(lambda x: None, on_failure="nan")).solution(X)
    assert s.y.shape == (3, 2)
    assert s.status.tolist() == [Status.NO_SOLUTION] * 3
    with pytest.raises(SolverError, match=r"Pair: External.* found no solution of any sample, and without initial_guess"):
        Pair(solver=External(lambda x: None, on_failure="nan"))(X)


def test_empty_batch():
    x = torch.zeros(0, 2, dtype=F64, requires_grad=True)
    y = Kept(solver=External(project))(x)
    assert y.shape == (0, 2)
    assert torch.autograd.grad(y.sum(), x)[0].shape == (0, 2)
    with pytest.raises(TypeError, match="Pair has no initial_guess"):
        Pair(solver=External(project))(x)


@pytest.mark.parametrize(
    ("function", "multipliers", "error", "message"),
    [
        (lambda x: "far", False, TypeError, r"must return y as an array of numbers, got str for sample 0"),
        (lambda x: object(), False, TypeError, r"must return y as an array of numbers, got object"),
        (lambda x: np.zeros(1 + int(x[0])), False, ValueError, r"returned y of different shapes: \['\(\(1,\),\)', '\(\(3,\),\)'\]"),
        (lambda x: x, True, ValueError, r"multipliers=True\) must return \(y, ν, μ\), got ndarray for sample 0"),
        (lambda x: (x, None), True, ValueError, r"must return \(y, ν, μ\), got tuple of length 2"),
        (lambda x: (x, None, x), True, ValueError, r"returned μ of shape \(2,\) for sample 0; expected \(4,\)"),
        (lambda x: (x, x, None), True, ValueError, r"returned ν of shape \(2,\) for sample 0; expected \(0,\)"),
        (lambda x: (x, None, "no"), True, TypeError, r"must return μ as an array of numbers, got str"),
    ],
)
def test_wrong_results(function, multipliers, error, message):
    """Mistakes of the function's author are raised under every policy."""
    for policy in ("raise", "nan"):
        with pytest.raises(error, match=message):
            Kept(solver=External(function, multipliers=multipliers, on_failure=policy))(X)


@pytest.mark.usefixtures("shapes_unchecked")
def test_bad_arguments():
    with pytest.raises(TypeError, match=r"External\(function\) must be callable with the numpy arrays of one instance, got 3"):
        External(3)
    with pytest.raises(TypeError, match=r"External\(multipliers=...\) must be True or False, got 1"):
        External(project, multipliers=1)
    with pytest.raises(ValueError, match="takes no warm start; leave init=None"):
        Kept(solver=External(project)).solution(X, init=X)
