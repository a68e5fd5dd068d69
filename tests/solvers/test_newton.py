"""Newton near minima and away from them: maxima, saddle points, flat models; and what becomes of problems without a solution."""

import pytest
import torch

from declarative import DeclarativeNode, Solution, SolverError, Status, certify
from declarative.solvers import InteriorPoint, Newton
from problems import catalogue
from tests.conformance.cases import close, weights
from tests.solvers.statements import F64, Rosenbrock

ZERO = torch.zeros(2, 2, dtype=F64)


def node_of(objective, equalities=None, inequalities=None, start=lambda x: x.clone(), **options):
    """A node of functions of y alone, which starts at its input."""
    methods = {"objective": lambda self, x, y: objective(y), "initial_guess": lambda self, x: start(x)}
    if equalities:
        methods["equality_constraints"] = lambda self, x, y: equalities(y)
    if inequalities:
        methods["inequality_constraints"] = lambda self, x, y: inequalities(y)
    return type("Made", (DeclarativeNode,), methods)(**options)


@pytest.mark.parametrize("solver", [None, Newton()], ids=str)
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


WELLS = {
    "maximum": (lambda y: (y**4 / 4 - y**2 / 2).sum(), [[0.0, 0.0], [1e-9, 0.3]]),
    "saddle": (lambda y: y[0] ** 2 + (y[1] ** 2 - 1) ** 2, [[0.0, 0.0], [3.0, 0.0]]),
    "monkey": (lambda y: y[0] ** 4 + y[1] ** 4 - 3 * y[0] * y[1], [[0.0, 0.0], [0.0, 1e-3]]),
}


@pytest.mark.parametrize("name", WELLS)
def test_leaves_points_that_are_stationary_and_no_minimum(name):
    objective, starts = WELLS[name]
    node, start = node_of(objective), torch.tensor(starts, dtype=F64)
    s = node.solution(start)
    c = certify(node, start, y=s)
    assert bool(c.minimiser.all()), str(c)
    assert float(torch.func.vmap(objective)(s.y.detach()).max()) < -1e-3 or name == "saddle"


def test_the_largest_eigenvector_is_not_the_smallest():
    """min yᵀMy on the sphere, from the maximum: the curvature that tells is that of L with the multiplier of that point."""
    root = weights((4, 4), 3)
    values, vectors = torch.linalg.eigh(root + root.T)
    M = root + root.T
    for column in (3, 2, 1):
        s = node_of(lambda y: y @ M @ y, lambda y: (y @ y - 1).reshape(1)).solution(vectors[:, column].unsqueeze(0))
        close(s.y[0].abs(), vectors[:, 0].abs(), 1e-9)
        close(s.equality_multipliers[0, 0], -values[0], 1e-9)


def test_a_warm_start_with_multipliers_takes_two_steps():
    sphere = node_of(lambda y: y[0] + 0.5 * y[1], lambda y: (y @ y - 1).reshape(1))
    start = torch.tensor([[-1.0, 0.2]], dtype=F64)
    cold = sphere.solution(start)
    assert int(sphere.solution(start, init=cold).iterations) <= 2 < int(cold.iterations)


NOWHERE = {
    "planes": (None, lambda y: torch.stack([y.sum() - 1, y.sum() - 2])),
    "sphere and plane": (None, lambda y: torch.stack([y @ y - 1, y.sum() - 5])),
    "imaginary sphere": (None, lambda y: (y @ y + 1).reshape(1)),
    "discs": (lambda y: torch.stack([y @ y - 1, (y - 3) @ (y - 3) - 1]), None),
    "half planes": (lambda y: torch.stack([y[0] - 1, 2 - y[0]]), None),
    "disc and line": (lambda y: (y @ y - 1).reshape(1), lambda y: (y.sum() - 3).reshape(1)),
}


@pytest.mark.parametrize("name", NOWHERE)
def test_no_feasible_point(name):
    """Reported as such, in bounded time, linear or not."""
    g, h = NOWHERE[name]
    solver = InteriorPoint if g else Newton
    for start in (ZERO, torch.tensor([[2.0, -1.0], [0.3, 0.4]], dtype=F64)):
        s = node_of(lambda y: y[0] + y @ y, h, g, solver=solver(on_failure="nan")).solution(start)
        assert s.status.tolist() == [Status.INFEASIBLE] * 2
        assert int(s.iterations.max()) <= 100
    with pytest.raises(SolverError, match="no point satisfies the constraints"):
        node_of(lambda y: y[0] + y @ y, h, g)(ZERO)


def test_what_is_hard_to_reach_is_not_called_infeasible():
    """One step is not enough for anything; the points exist."""
    for h, g in ((lambda y: (y @ y - 4).reshape(1), None), (None, lambda y: torch.stack([1 - y @ y, y @ y - 9]))):
        solver = (InteriorPoint if g else Newton)(max_iterations=1, on_failure="nan")
        s = node_of(lambda y: (y + 1).square().sum(), h, g, solver=solver).solution(ZERO + 0.1)
        assert int(s.iterations.max()) == 1
        assert Status.INFEASIBLE not in s.status.tolist()


UNBOUNDED = {
    "linear": (lambda y: -y.sum(), None, None),
    "concave": (lambda y: -(y @ y), None, None),
    "linear program": (lambda y: -y.sum(), None, lambda y: -y),
    "along a line": (lambda y: y[0], lambda y: (y[0] - y[1]).reshape(1), None),
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_no_lowest_point(name):
    objective, h, g = UNBOUNDED[name]
    s = node_of(objective, h, g, solver=(InteriorPoint if g else Newton)(on_failure="nan")).solution(ZERO)
    assert s.status.tolist() == [Status.UNBOUNDED] * 2


def test_progress_is_reported_after_each_step():
    seen = []
    node = node_of(lambda y: (y - 3).square().sum() + (y**4).sum(), solver=Newton(progress=seen.append))
    s = node.solution(torch.tensor([[0.0, 0.0], [50.0, -50.0]], dtype=F64))
    assert [p.iteration for p in seen] == list(range(1, int(s.iterations.max()) + 1))
    assert [p.running for p in seen] == [int((s.iterations > k).sum()) for k in range(1, len(seen) + 1)]
    assert seen[-1].residual == 0.0 < seen[0].residual
    assert str(seen[0]).startswith("Newton    1: 2 of 2 samples running")
    with pytest.raises(TypeError, match=r"Newton\(progress=\.\.\.\) must be a function"):
        Newton(progress=True)


def test_warm_start_from_y_alone_recovers_the_multipliers():
    """As good as from the whole solution; and from far away no worse than a cold start."""
    c = torch.tensor([[1.0, 0.3], [0.2, -2.0]], dtype=F64)
    node = node_of(lambda y: (y + 1).square().sum(), None, lambda y: torch.cat([-y, (y.sum() - 1).reshape(1)]))
    cold = node.solution(c)
    whole, alone = node.solution(c, init=cold), node.solution(c, init=cold.y.detach())
    assert int(alone.iterations.max()) <= int(whole.iterations.max()) + 1 < int(cold.iterations.max())
    close(alone.inequality_multipliers, cold.inequality_multipliers, 1e-9)
    far = node.solution(c, init=Solution(cold.y.detach() + 5, cold.equality_multipliers, cold.inequality_multipliers))
    assert int(far.iterations.max()) <= 2 * int(cold.iterations.max())


class Lowest(DeclarativeNode):
    """cᵀy on a circle: H of the objective is zero, and that of the Lagrangian too, as long as ν is."""

    def objective(self, c, start, y):
        return c @ y

    def equality_constraints(self, c, start, y):
        return torch.stack([y @ y - 1, y[1]])

    def initial_guess(self, c, start):
        return start


def test_no_curvature_but_that_of_a_constraint():
    """From every start: rounding where H vanishes on null(A) is not taken for curvature."""
    c = torch.tensor([1.0, 0.0, 0.1], dtype=F64)
    start = torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    y = Lowest(solver=Newton())(c, start, in_dims=(None, 0))
    close(y, (-c / c.norm()).expand(100, 3), 1e-8)


def test_a_merit_whose_terms_cancel():
    """Logarithms of both signs: f is small and its rounding is not, so that it cannot judge the last steps. They are taken all the same."""
    problem = catalogue()["analytic_centre"]
    inputs = problem.sample(150, torch.Generator().manual_seed(105), F64)
    node = problem.node()
    node.solver = Newton()
    s = node.solution(*inputs, in_dims=problem.in_dims)
    assert int(s.iterations.max()) <= 12  # two of them took all 100
    assert float(s.stationarity.max()) < 1e-12
