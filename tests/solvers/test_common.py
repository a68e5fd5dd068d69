"""What Newton and the interior point method share: batches, tolerances, warm starts, and what becomes of samples that fail."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from declarative import DeclarativeNode, SolverError, SolverWarning, Status
from declarative.solvers import InteriorPoint, Newton
from tests.conformance.cases import close
from tests.solvers.statements import CONTRADICTIONS, F64, QP, ROOTS, Box, DoubleWell, Free, Rosenbrock, Sphere, quadratic_programs


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


def test_warm_start_saves_steps():
    inputs = quadratic_programs(4)
    s = QP().solution(*inputs)
    near = (inputs[0], inputs[1] + 1e-4, *inputs[2:])
    assert int(QP().solution(*near, init=s).iterations.sum()) < int(QP().solution(*near).iterations.sum())
    start = Rosenbrock().solution(torch.tensor([[1.0]], dtype=F64))
    again = Rosenbrock().solution(torch.tensor([[1.001]], dtype=F64), init=start)
    assert int(again.iterations) < int(start.iterations)


METHODS = {Free: [Newton(), InteriorPoint()], Box: [InteriorPoint()], Sphere: [Newton(), InteriorPoint()]}


@pytest.mark.parametrize(
    ("node", "solver"),
    [(node, solver) for node, solvers in METHODS.items() for solver in solvers],
    ids=lambda v: v.__name__ if isinstance(v, type) else type(v).__name__,
)
def test_each_kind_of_problem_by_each_method(node, solver):
    """To the accuracy of the method and, polished, to rounding; scipy's methods do so in tests/solvers."""
    x = ROOTS + 0.4 * ROOTS**3
    expected = {Free: ROOTS, Box: ROOTS.clamp(-1, 1), Sphere: x / torch.linalg.vector_norm(x, dim=1, keepdim=True)}[node]
    s = node(solver=solver).solution(x)
    close(s.y, expected, 2e-5)
    close(node(solver=solver, polish=4)(x), expected, 1e-12)
    assert s.status.tolist() == [Status.CONVERGED] * 2


@pytest.mark.parametrize("solver", [Newton(), InteriorPoint()], ids=lambda s: type(s).__name__)
def test_a_start_where_the_objective_is_concave(solver):
    x = torch.tensor([[1.0], [4.0], [0.4]], dtype=F64)
    held = {"inequality_constraints": lambda self, x, y: y - 10} if isinstance(solver, InteriorPoint) else {}
    y = type("Held", (DoubleWell,), held)(solver=solver, polish=3)(x)
    for found, a in zip(y.flatten().tolist(), x.flatten().tolist(), strict=True):
        roots = np.roots([1, 0, -a, 0.1])
        minima = roots[(abs(roots.imag) < 1e-12) & (3 * roots.real**2 - a > 0)].real
        assert abs(minima - found).min() < 1e-10


@pytest.mark.parametrize(
    ("kind", "solver"),
    [
        ("equalities", Newton),
        ("mixed", InteriorPoint),
        ("inequalities", InteriorPoint),
        ("bounds", InteriorPoint),
    ],
)
def test_contradictory_constraints(kind, solver):
    """The first sample is infeasible (x₀ = 2), the second is not (x₀ = ½) and does not notice."""
    base = type("Contradictory", (Free,), CONTRADICTIONS[kind])
    x = torch.tensor([[2.0, 0.1, 0.2], [0.5, 0.6, 0.7]], dtype=F64)
    s, alone = (base(solver=solver(on_failure="nan")).solution(z) for z in (x, x[1:]))
    assert s.status.tolist() == [Status.INFEASIBLE, Status.CONVERGED]
    close(s.y[1], alone.y[0], 1e-10)
    with pytest.raises(SolverError, match=r"1 of 2 samples \(0\): no point satisfies the constraints"):
        base(solver=solver())(x)


def test_unbounded_samples():
    """min cᵀy over y ≥ −5 runs away where c < 0."""
    half = type("Half", (Free,), {"objective": lambda self, x, y: x @ y, "inequality_constraints": lambda self, x, y: -5 - y})
    s = half(solver=InteriorPoint(on_failure="nan")).solution(torch.tensor([[1.0, 2.0], [1.0, -1.0]], dtype=F64))
    assert s.status.tolist() == [Status.CONVERGED, Status.UNBOUNDED]
    close(s.y[0], torch.full((2,), -5.0, dtype=F64), 1e-9)
    concave = type("Concave", (Free,), {"objective": lambda self, x, y: (x * y**2 + y).sum()})
    s = concave(solver=Newton(on_failure="nan")).solution(torch.tensor([[1.0], [-1.0]], dtype=F64))
    assert s.status.tolist() == [Status.CONVERGED, Status.UNBOUNDED]


@given(seed=st.integers(0, 10**6))
def test_each_sample_is_solved_as_if_alone(seed):
    """Solutions and iteration counts, whoever the neighbours are and wherever in the batch."""
    inputs = quadratic_programs(seed, batch=4)
    inputs = (*inputs[:5], inputs[5] + torch.tensor([[0.0], [30.0], [1.0], [0.1]], dtype=F64))
    together = QP().solution(*inputs)
    for i in range(4):
        alone = QP().solution(*(t[[i]] for t in inputs))
        assert int(alone.iterations) == int(together.iterations[i])
        close(alone.y[0], together.y[i], 1e-11)


@pytest.mark.parametrize("node", [Free(), Sphere(), Box(), Box(solver=InteriorPoint())])
def test_empty_batch(node):
    x = torch.zeros(0, 2, dtype=F64, requires_grad=True)
    s = node.solution(x)
    assert s.y.shape == (0, 2)
    assert s.inequality_multipliers.shape == s.active.shape == (0, 4 if type(node) is Box else 0)
    assert s.equality_multipliers.shape == (0, 1 if type(node) is Sphere else 0)
    assert torch.autograd.grad(s.y.sum(), x)[0].shape == (0, 2)
