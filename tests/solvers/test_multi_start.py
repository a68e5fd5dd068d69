"""MultiStart: the global minimum where one start finds a local one; each sample for itself; failing starts do not count."""

import itertools

import pytest
import torch

from declarative import DeclarativeNode, SolverError, Status
from declarative.projections import Box
from declarative.solvers import LBFGS, InteriorPoint, MultiStart, Newton, Projected, SciPy, UserSolve
from tests.conformance.cases import close

F64 = torch.float64


class DoubleWell(DeclarativeNode):
    """Σ (y² − 1)² + xy, from 1: minima near ±1, the lower one on the side opposite to x."""

    def objective(self, x, y):
        return ((y**2 - 1) ** 2 + x * y).sum()

    def initial_guess(self, x):
        return torch.ones_like(x)


class Rastrigin(DeclarativeNode):
    """Σ (y − x)² + a (1 − cos 2π(y − x)): about a hundred minima around, the global one at x."""

    def objective(self, x, y):
        return ((y - x) ** 2 + 2 * (1 - torch.cos(2 * torch.pi * (y - x)))).sum()

    def initial_guess(self, x):
        return torch.zeros_like(x)


class OnCircle(DeclarativeNode):
    """A tilted double well on the unit circle."""

    def objective(self, x, y):
        return x[0] * y[0] - y[0] ** 2

    def equality_constraints(self, x, y):
        return y @ y - 1

    def initial_guess(self, x):
        return torch.tensor([0.9, 0.1], dtype=x.dtype).expand(x.shape[0], 2)


class InBox(DoubleWell):
    def inequality_constraints(self, x, y):
        return torch.cat([y - 0.9, -0.9 - y])


SIGNS = torch.tensor([[0.3], [-0.3], [0.2]], dtype=F64)


def wells(x):
    """The global minimum, by Newton from both sides."""
    y = -torch.sign(x)
    for _ in range(50):
        y = y - (4 * y * (y**2 - 1) + x) / (12 * y**2 - 4)
    return y


@pytest.mark.parametrize("solver", [Newton(), LBFGS(), SciPy("BFGS")], ids=lambda s: type(s).__name__)
def test_the_lower_of_two_wells(solver):
    assert torch.equal(DoubleWell(solver=solver)(SIGNS) > 0, torch.ones_like(SIGNS, dtype=torch.bool))
    s = DoubleWell(solver=MultiStart(solver, spread=2.0)).solution(SIGNS)
    close(s.y, wells(SIGNS), 1e-7)
    assert s.status.tolist() == [Status.CONVERGED] * 3


def test_gradients_are_those_of_the_chosen_minimum():
    x = SIGNS.clone().requires_grad_()
    y = DoubleWell(solver=MultiStart(Newton(), spread=2.0))(x)
    close(torch.autograd.grad(y.sum(), x)[0], -1 / (12 * y.detach() ** 2 - 4), 1e-9)


def test_rastrigin():
    x = torch.tensor([[0.3, -0.2], [1.9, 1.2], [-2.3, 0.4]], dtype=F64)
    node = Rastrigin(solver=MultiStart(Newton(), starts=300, spread=1.5))
    close(node(x), x, 1e-8)
    assert float((Rastrigin()(x) - x).abs().max()) > 0.5
    assert torch.equal(node(x), node(x))


def test_equal_seeds_are_equal_and_others_are_not():
    x = torch.tensor([[1.3, -2.2]], dtype=F64)

    def run(**options):
        return Rastrigin(solver=MultiStart(Newton(), starts=4, **options))(x)

    assert torch.equal(run(seed=3), run(seed=3))
    assert len({tuple(run(seed=seed)[0].tolist()) for seed in range(6)}) > 1
    assert torch.equal(Rastrigin(solver=MultiStart(Newton(), starts=1))(x), Rastrigin()(x))


def test_equalities_with_newton():
    x = torch.tensor([[0.4], [-0.4]], dtype=F64)
    s = OnCircle(solver=MultiStart(Newton())).solution(x)
    close(s.y, torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=F64), 1e-8)
    # ∇f + ν∇h = 0 in the first coordinate.
    close(x + (2 * s.equality_multipliers - 2) * s.y[:, :1], torch.zeros_like(x), 1e-8)


@pytest.mark.parametrize("solver", [InteriorPoint(), Projected(Box(-0.9, 0.9))], ids=lambda s: type(s).__name__)
def test_inequalities(solver):
    s = InBox(solver=MultiStart(solver, spread=2.0)).solution(SIGNS)
    close(s.y, -0.9 * torch.sign(SIGNS), 1e-9)
    assert s.active.sum(1).tolist() == [1, 1, 1]
    slope = 4 * s.y * (s.y**2 - 1) + SIGNS
    close(slope + s.inequality_multipliers[:, :1] - s.inequality_multipliers[:, 1:], torch.zeros_like(slope), 1e-8)


def test_neighbours_change_nothing():
    x = torch.tensor([[1.3], [-2.2], [40.0]], dtype=F64)
    node = Rastrigin(solver=MultiStart(Newton(), starts=5))
    together = node.solution(x)
    for i in range(3):
        alone = node.solution(x[i : i + 1])
        assert torch.equal(alone.y[0], together.y[i])
        assert int(alone.iterations) == int(together.iterations[i])


def test_iterations_are_those_of_all_starts():
    starts = torch.tensor([[[0.9]], [[-1.2]], [[2.0]]], dtype=F64)
    x = SIGNS[:1]
    s = DoubleWell(solver=MultiStart(Newton(), starts=lambda x: starts)).solution(x)
    singles = [DoubleWell().solution(x, init=start) for start in starts]
    assert int(s.iterations) == sum(int(single.iterations) for single in singles)
    best = min(singles, key=lambda single: float(DoubleWell().objective(x[0], single.y[0])))
    assert torch.equal(s.y, best.y)


def test_given_starts():
    """The function sees batched inputs, also those that the batch shares."""
    seen = []

    def around(x):
        seen.append(tuple(x.shape))
        corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=2)), dtype=x.dtype)
        return corners.unsqueeze(1) * torch.ones_like(x)

    x = torch.tensor([0.3, -0.2], dtype=F64)
    y = DoubleWell(solver=MultiStart(LBFGS(), starts=around))(x, in_dims=None)
    close(y, wells(x), 1e-7)
    assert seen == [(1, 2)]

    class Pair(DoubleWell):
        def objective(self, x, y):
            return DoubleWell.objective(self, x, y[0]) + y[1].square().sum()

        def initial_guess(self, x):
            return torch.ones_like(x), x.new_ones(x.shape[0], 2)

    pair = Pair(solver=MultiStart(Newton(), starts=lambda x: (torch.stack([x.sign(), -x.sign()]), x.new_ones(2, x.shape[0], 2))))(SIGNS)
    close(pair[0], wells(SIGNS), 1e-8)


def test_a_warm_start_is_the_first():
    x = torch.tensor([[1.3, -2.2]], dtype=F64)
    s = Rastrigin(solver=MultiStart(Newton(), starts=1)).solution(x, init=x + 0.01)
    close(s.y, x, 1e-9)
    s = Rastrigin(solver=MultiStart(Newton(), starts=lambda x: torch.zeros(1, *x.shape, dtype=x.dtype))).solution(x, init=x + 0.01)
    close(s.y, x, 1e-9)


def test_failing_starts_are_ignored():
    """Off the domain, unbounded, or at a saddle point: a sample fails only if all its starts do."""

    class Barrier(DeclarativeNode):
        def objective(self, x, y):
            return (x * y - y.log()).sum()

        def initial_guess(self, x):
            return -torch.ones_like(x)

    x = torch.tensor([[0.5], [2.0]], dtype=F64)
    assert Barrier(solver=Newton(on_failure="nan")).solution(x).status.tolist() == [Status.NON_FINITE] * 2
    close(Barrier(solver=MultiStart(Newton(), spread=2.0))(x), 1 / x, 1e-10)
    lost = MultiStart(Newton(on_failure="nan"), starts=lambda x: torch.stack([-x, torch.where(x > 1, x, -x)]))
    s = Barrier(solver=lost).solution(x)
    assert s.status.tolist() == [Status.NON_FINITE, Status.CONVERGED]
    assert bool(s.y[0].isnan().all())
    cubic = type("Cubic", (DoubleWell,), {"objective": lambda self, x, y: (y**3 - x * y).sum(), "initial_guess": lambda self, x: -5 * torch.ones_like(x)})
    close(cubic(solver=MultiStart(Newton(), starts=12, spread=2.0))(3 * torch.ones(1, 1, dtype=F64)), torch.ones(1, 1, dtype=F64), 1e-8)


def test_options_are_the_inner_solvers():
    solver = MultiStart(LBFGS(tolerance=1e-3, on_failure="nan", max_iterations=7))
    assert (solver.tolerance, solver.max_iterations, solver.on_failure) == (1e-3, 7, "nan")
    assert solver.strict() == MultiStart(LBFGS(on_failure="nan", max_iterations=7))
    assert solver.accepted(1e-16) == solver.solver.accepted(1e-16)
    x = torch.tensor([[1.3, -2.2]], dtype=F64)
    with pytest.raises(SolverError, match=r"Rastrigin, solved by MultiStart: 1 of 1 sample \(0\): did not converge within max_iterations"):
        Rastrigin(solver=MultiStart(LBFGS(max_iterations=1)))(x)


def test_empty_batch_and_single_precision():
    node = DoubleWell(solver=MultiStart(Newton(), spread=2.0))
    assert node(SIGNS[:0]).shape == (0, 1)
    y = node(SIGNS.float())
    assert y.dtype == torch.float32
    close(y.double(), wells(SIGNS), 1e-5)


def test_bad_input():
    with pytest.raises(TypeError, match=r"solver"):
        MultiStart("newton")
    with pytest.raises(ValueError, match=r"cannot be UserSolve"):
        MultiStart(UserSolve())
    with pytest.raises(ValueError, match=r"starts=.*at least 1, got 0"):
        MultiStart(Newton(), starts=0)
    with pytest.raises(ValueError, match=r"seed=.*at least 0, got -1"):
        MultiStart(Newton(), seed=-1)
    for spread in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"spread=.*positive"):
            MultiStart(Newton(), spread=spread)
    for starts, message in (
        (lambda x: torch.zeros(2, 5, 1, dtype=F64), r"DoubleWell.starts must return a batch"),
        (lambda x: torch.zeros(3, dtype=F64), r"must return \(k, b, \*y_shape\)"),
        (lambda x: torch.zeros(0, 3, 1, dtype=F64), r"must return \(k, b, \*y_shape\) with k ≥ 1"),
    ):
        with pytest.raises(ValueError, match=message):
            DoubleWell(solver=MultiStart(Newton(), starts=starts))(SIGNS)
    with pytest.raises(TypeError, match=r"must return a tensor \(k, b, \*y_shape\)"):
        DoubleWell(solver=MultiStart(Newton(), starts=lambda x: [1.0]))(SIGNS)
