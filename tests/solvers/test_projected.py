"""`Projected` against the interior point method and cvxpy."""

import cvxpy
import numpy as np
import pytest
import torch

from declarative import DeclarativeNode, SolverError, Status
from declarative.node import prepare
from declarative.problem import Layout
from declarative.projections import Ball, Box, NonNegative, Simplex
from declarative.solvers import InteriorPoint, Projected
from tests.conformance.cases import close

F64 = torch.float64


class Program(DeclarativeNode):
    """½yᵀQy + cᵀy over the simplex."""

    def objective(self, Q, c, y):
        return 0.5 * y @ Q @ y + c @ y

    def equality_constraints(self, Q, c, y):
        return y.sum() - 1

    def inequality_constraints(self, Q, c, y):
        return -y

    def initial_guess(self, Q, c):
        return torch.full_like(c, 1 / c.shape[-1])


class InOrthant(Program):
    def equality_constraints(self, Q, c, y):
        return None


class InBox(InOrthant):
    def inequality_constraints(self, Q, c, y):
        return torch.cat([y - 1, -1 - y])


class InBall(InOrthant):
    def inequality_constraints(self, Q, c, y):
        return y @ y - 1


class Entropic(InOrthant):
    """Not quadratic: Σ exp(y) + cᵀy + 0.1‖Ry‖⁴ in the unit box."""

    def objective(self, Q, c, y):
        return y.exp().sum() + 3 * c @ y + 0.1 * (y @ Q @ y).square()

    def inequality_constraints(self, Q, c, y):
        return torch.cat([y - 1, -1 - y])


CASES = [(Program, Simplex()), (InOrthant, NonNegative()), (InBox, Box(-1.0, 1.0)), (InBall, Ball()), (Entropic, Box(-1.0, 1.0))]
every_case = pytest.mark.parametrize(("node", "projection"), CASES, ids=lambda v: v.__name__ if isinstance(v, type) else type(v).__name__)


def programs(batch=4, m=8, seed=0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    root, c = (torch.randn(batch, *shape, generator=generator, dtype=F64) for shape in ((m, m), (m,)))
    return (root @ root.mT / m + 0.1 * torch.eye(m, dtype=F64)).to(dtype), c.to(dtype)


@every_case
def test_solutions_multipliers_and_gradients_equal_the_interior_points(node, projection):
    Q, c = programs()
    weights = torch.randn(4, 8, dtype=F64)
    found = []
    for solver in (Projected(projection), InteriorPoint()):
        Q, c = Q.detach().requires_grad_(), c.detach().requires_grad_()
        s = node(solver=solver, polish=4).solution(Q, c)
        found.append((s, torch.autograd.grad((s.y * weights).sum(), (Q, c))))
    (a, slopes), (b, expected) = found
    for name in ("y", "equality_multipliers", "inequality_multipliers"):
        close(getattr(a, name), getattr(b, name), 1e-8)
    assert torch.equal(a.active, b.active)
    for slope, other in zip(slopes, expected, strict=True):
        close(slope, other, 1e-8)


@every_case
def test_without_polish(node, projection):
    Q, c = programs()
    s = node(solver=Projected(projection)).solution(Q, c)
    close(s.y, node(solver=InteriorPoint()).solution(Q, c).y, 1e-8)
    assert s.status.tolist() == [Status.CONVERGED] * 4
    close(s.y, projection.project(s.y), 1e-14)


def test_against_cvxpy():
    Q, c = programs(batch=2)
    found = Program(solver=Projected(Simplex()))(Q, c)
    for i in range(2):
        y = cvxpy.Variable(8)
        objective = cvxpy.Minimize(0.5 * cvxpy.quad_form(y, cvxpy.psd_wrap(Q[i].numpy())) + c[i].numpy() @ y)
        cvxpy.Problem(objective, [y >= 0, cvxpy.sum(y) == 1]).solve(solver="CLARABEL")
        np.testing.assert_allclose(found[i], y.value, atol=1e-6)


def test_momentum_pays(shapes_unchecked):
    """√κ log(1/ε) steps: a condition of 10⁴ in 1600, where plain projected gradients take 10⁵."""
    Q, c = torch.diag(torch.logspace(0, 4, 10, dtype=F64)).expand(2, 10, 10), 10 * torch.randn(2, 10, dtype=F64)
    s = InOrthant(solver=Projected(NonNegative())).solution(Q, c)
    close(s.y, (-c / Q.diagonal(dim1=1, dim2=2)).clamp_min(0), 1e-7)
    assert int(s.iterations.max()) < 3000


def test_a_function_as_projection():
    Q, c = programs()
    close(Program(solver=Projected(Simplex().project))(Q, c), Program(solver=Projected(Simplex()))(Q, c), 0)


def test_a_concave_objective_ends_at_a_vertex():
    Q, c = programs()
    y = Program(solver=Projected(Simplex()))(-Q, c)
    close(y.amax(1), torch.ones(4, dtype=F64), 1e-9)


def test_a_hard_neighbour_changes_nothing():
    Q, c = programs()
    Q[1] = torch.diag(torch.logspace(0, 3, 8, dtype=F64))
    node = InBox(solver=Projected(Box(-1.0, 1.0)))
    together = node.solution(Q, c)
    for i in range(4):
        alone = node.solution(Q[i : i + 1], c[i : i + 1])
        close(alone.y[0], together.y[i], 1e-12)
        assert abs(int(alone.iterations) - int(together.iterations[i])) <= 2


def test_failing_samples_are_marked_alone():
    Q, c = programs()
    c[1, 0] = torch.nan
    Q[2], c[2] = -torch.eye(8, dtype=F64), -1.0
    s = InOrthant(solver=Projected(NonNegative(), on_failure="nan")).solution(Q, c)
    assert s.status.tolist() == [Status.CONVERGED, Status.NON_FINITE, Status.UNBOUNDED, Status.CONVERGED]
    close(s.y[[0, 3]], InOrthant()(Q[[0, 3]], c[[0, 3]]), 1e-8)


def test_off_the_domain():
    """min xᵀy − Σ log y over the simplex: momentum may step to where the logarithm is not defined."""
    logs = type("Logs", (Program,), {"objective": lambda self, Q, c, y: (c * y).sum() - (y + 1e-3).log().sum()})
    Q, c = programs(seed=3)
    close(logs(solver=Projected(Simplex()), polish=3)(Q, 40 * c), logs()(Q, 40 * c), 1e-8)


def test_single_precision_empty_batch_and_single_instance():
    Q, c = programs()
    node = Program(solver=Projected(Simplex()))
    y = node(Q.float(), c.float())
    assert y.dtype == torch.float32
    close(y.double(), node(Q, c), 1e-4)
    assert node(Q[:0], c[:0]).shape == (0, 8)
    close(node(Q[0], c[0], in_dims=None), node(Q, c)[0], 1e-10)


def test_warm_start_tolerance_and_max_iterations():
    Q, c = programs()
    node = InBox(solver=Projected(Box(-1.0, 1.0)))
    cold = node.solution(Q, c)
    assert int(node.solution(Q, c + 1e-6, init=cold).iterations.sum()) < int(cold.iterations.sum())
    loose = InBox(solver=Projected(Box(-1.0, 1.0), tolerance=1e-3)).solution(Q, c)
    assert int(loose.iterations.sum()) < int(cold.iterations.sum())
    close(loose.y, cold.y, 1e-2)
    with pytest.raises(SolverError, match=r"InBox, solved by Projected: .* did not converge within max_iterations"):
        InBox(solver=Projected(Box(-1.0, 1.0), max_iterations=2))(Q, c)
    lines = []
    InBox(solver=Projected(Box(-1.0, 1.0), progress=lines.append))(Q, c)
    assert len(lines) == int(cold.iterations.max())


def test_the_statement_and_the_projection_must_agree():
    Q, c = programs()
    with pytest.raises(ValueError, match=r"Program: its constraints and Projected\(Simplex\(total=2.0\)\) disagree: sample 0"):
        Program(solver=Projected(Simplex(2.0)))(Q, c)
    with pytest.raises(ValueError, match=r"InBox: its constraints and Projected\(.*\) disagree"):
        InBox(solver=Projected(Box(-9.0, 9.0)))(Q, 9 * c)
    free = type("FreeProgram", (InOrthant,), {"inequality_constraints": lambda self, Q, c, y: None})
    with pytest.raises(ValueError, match="FreeProgram states no constraints"):
        free(solver=Projected(NonNegative()))(Q, c)
    # A smaller set than the one stated: its solution is not stationary for the statement.
    s = InBox(solver=Projected(Box(-0.1, 0.1), on_failure="nan")).solution(Q, 9 * c)
    assert s.status.tolist() == [Status.NOT_STATIONARY] * 4


def test_bad_projections():
    for wrong in (Simplex, 3, "simplex", None):
        with pytest.raises(TypeError, match=r"Projected"):
            Projected(wrong)
    with pytest.raises(ValueError, match=r"must keep shape and dtype of flat y, \(4, 8\)"):
        Program(solver=Projected(lambda y: y[:, :3]))(*programs())
    with pytest.raises(TypeError, match=r"must return a tensor \(b, m\), got tuple"):
        Program(solver=Projected(lambda y: (y,)))(*programs())


def test_steps_can_be_differentiated():
    Q, c = programs()
    c.requires_grad_()
    solver = Projected(Simplex())
    problem = prepare(Program(), (Q, c), 0)[0].with_layout(Layout(((8,),), False))
    state = solver.begin(problem, torch.full_like(c, 0.125).detach(), ())
    for iteration in range(60):
        state = solver.step(problem, state, iteration)[0]
    weights = torch.randn(4, 8, dtype=F64)
    unrolled = torch.autograd.grad((state["y"] * weights).sum(), c)[0]
    close(unrolled, torch.autograd.grad((Program()(Q, c) * weights).sum(), c)[0], 1e-3)
