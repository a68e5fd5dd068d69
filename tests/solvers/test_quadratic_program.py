"""Quadratic programs solved by their constants: degenerate, singular, non-convex and without solution, side by side."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from declarative import Status
from declarative.solvers import InteriorPoint
from problems.simplex import SimplexProjection
from tests.conformance.cases import close
from tests.solvers.statements import F64, QP, kkt_residual, quadratic_programs


def quiet(**options):
    return QP(solver=InteriorPoint(on_failure="nan", **options))


def boxed(Q, c, bound=1.0):
    """½yᵀQy + cᵀy over −bound ≤ y ≤ bound, with an equation that says nothing: 0 = 0."""
    b, m = c.shape
    G = torch.cat([torch.eye(m, dtype=F64), -torch.eye(m, dtype=F64)]).expand(b, 2 * m, m)
    return Q, c, torch.zeros(b, 1, m, dtype=F64), torch.zeros(b, 1, dtype=F64), G, torch.full((b, 2 * m), bound, dtype=F64)


@pytest.mark.parametrize("margin", [0.0, 1e-15, -1e-15, 1e-12, 1e-9, -1e-9, 1e-6])
def test_rows_that_hold_and_do_not_push(margin):
    """Projection onto y ≤ x + margin, of x itself: neither active nor inactive, or only just."""
    x = torch.tensor([[1.0, 2.0, 3.0]], dtype=F64)
    eye, free = torch.eye(3, dtype=F64).unsqueeze(0), torch.zeros(1, 1, 3, dtype=F64)
    inputs = eye, -x, free, free[:, 0, :1], eye, x + margin
    s = QP().solution(*inputs)
    assert kkt_residual(*inputs, s) < 2e-9
    close(s.y, x + min(margin, 0.0), 1e-8)


def test_a_linear_program_at_a_degenerate_vertex():
    """H = 0 and more rows through the vertex than y has numbers; the optimal value is that of HiGHS."""
    generator = torch.Generator().manual_seed(1)
    c = torch.randn(6, 3, generator=generator, dtype=F64)
    G = torch.cat([torch.eye(3, dtype=F64), -torch.eye(3, dtype=F64), torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]], dtype=F64)])
    d = torch.tensor([1.0] * 6 + [3.0, 3.0], dtype=F64)
    inputs = torch.zeros(6, 3, 3, dtype=F64), c, torch.zeros(6, 1, 3, dtype=F64), torch.zeros(6, 1, dtype=F64), G.expand(6, 8, 3), d.expand(6, 8)
    s = QP().solution(*inputs)
    for i in range(6):
        found = linprog(c[i].numpy(), A_ub=G.numpy(), b_ub=d.numpy(), bounds=(None, None), method="highs")
        assert abs(float(c[i] @ s.y[i]) - found.fun) < 1e-9


def test_a_saddle_point_is_no_solution():
    """½(y₀² − κy₁²) + c₁y₁ in a box: stationary inside, minimal on the boundary, however small κ is."""
    kappa = torch.tensor([1.0, 1e-2, 1e-4, 1e-6], dtype=F64)
    Q = torch.diag_embed(torch.stack([torch.ones_like(kappa), -kappa], 1))
    c = torch.stack([0.3 * torch.ones_like(kappa), 0.1 * kappa], 1)
    s = QP().solution(*boxed(Q, c))
    close(s.y[:, 0], torch.full((4,), -0.3, dtype=F64), 1e-9)
    close(s.y[:, 1], -torch.ones(4, dtype=F64), 1e-9)


def test_a_singular_objective():
    """H of rank one: the minimisers are a face, and any point of it will do."""
    g = torch.tensor([[1.0, 2.0, -1.0], [0.5, -1.0, 1.0]], dtype=F64)
    inputs = boxed(g.unsqueeze(2) * g.unsqueeze(1), -0.7 * g)
    s = quiet().solution(*inputs)
    assert s.status.tolist() == [Status.CONVERGED] * 2
    assert kkt_residual(*inputs, s) < 1e-8
    close((g * s.y).sum(1), torch.full((2,), 0.7, dtype=F64), 1e-7)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_coordinates_and_rows_in_units_of_their_own(scale):
    """y = Dz, each row times a number of its own: the same solution."""
    Q, c, A, b, G, d = quadratic_programs(3)
    units = scale ** torch.linspace(-1, 1, 6, dtype=F64)
    rows = scale ** torch.linspace(1, -1, 7, dtype=F64)
    plain = QP().solution(Q, c, A, b, G, d)
    other = QP().solution(units[:, None] * Q * units, c * units, A * units, b, rows[:, None] * G * units, d * rows)
    close(other.y * units, plain.y, 1e-7)
    close(other.inequality_multipliers * rows, plain.inequality_multipliers, 1e-6)


def test_dependent_equations():
    """Each equation twice: the same y; the second one of them with another right-hand side: no solution."""
    Q, c, A, b, G, d = quadratic_programs(7)
    expected = QP().solution(Q, c, A, b, G, d)
    twice = torch.cat([A, -2 * A], 1)
    right = torch.cat([b, -2 * b], 1)
    right[1] += torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=F64)
    s = quiet().solution(Q, c, twice, right, G, d)
    assert s.status.tolist() == [Status.CONVERGED, Status.INFEASIBLE, Status.CONVERGED]
    close(s.y[[0, 2]], expected.y[[0, 2]], 1e-9)


def test_failed_samples_leave_their_neighbours_alone():
    """No feasible point, no minimum, NaN, non-convex, and three good ones: those come out as they do alone."""
    Q, c, A, b, G, d = (t.clone() for t in quadratic_programs(11, batch=7))
    G[1, 1], d[1, 0], d[1, 1] = -G[1, 0], -1.0, -1.0
    Q[2], G[2], A[2], b[2] = 0.0, 0.0, 0.0, 0.0
    d[2] = 1.0
    c[3, 0] = torch.nan
    Q[4] = -Q[4]
    inputs = Q, c, A, b, G, d
    s = quiet().solution(*inputs)
    assert s.status[[0, 5, 6]].tolist() == [Status.CONVERGED] * 3
    assert s.status[[1, 2, 3]].tolist() == [Status.INFEASIBLE, Status.UNBOUNDED, Status.NON_FINITE]
    for i in (0, 5, 6):
        alone = QP().solution(*(t[i : i + 1] for t in inputs))
        close(s.y[i : i + 1], alone.y, 1e-12)
        assert int(s.iterations[i]) == int(alone.iterations)


def test_samples_that_take_longer():
    """Most are done at once; those that are not go on, to the same point as alone."""
    Q, c, A, b, G, d = (t.clone() for t in quadratic_programs(13, batch=8))
    c[5], d[6] = 1e5 * c[5], d[6] + 1e5
    inputs = Q, c, A, b, G, d
    s = QP().solution(*inputs)
    for i in range(8):
        close(s.y[i : i + 1], QP().solution(*(t[i : i + 1] for t in inputs)).y, 1e-10)


def test_the_number_of_steps_is_bounded():
    inputs = quadratic_programs(17)
    for limit in (1, 2, 3):
        s = quiet(max_iterations=limit).solution(*inputs)
        assert int(s.iterations.max()) <= limit
    hopeless = (*inputs[:5], inputs[5] - 1e3)
    for limit in (5, 31, 40):
        assert int(quiet(max_iterations=limit).solution(*hopeless).iterations.max()) <= limit


def test_progress_goes_on():
    """Over samples that go on by steps where their constants have not served: it ends with none running."""
    seen = []
    Q, c, *_ = quadratic_programs(19)
    box = boxed(torch.cat([-Q[:1], Q[1:]]), c)
    QP(solver=InteriorPoint(progress=lambda p: seen.append(p.running), on_failure="nan")).solution(*box)
    assert seen
    assert seen[-1] == 0


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 2e-6), (F64, 1e-14)])
def test_projection_onto_the_simplex(dtype, allowed):
    """Against the formula by sorting (Held, Wolfe & Crowder 1974)."""
    x = torch.as_tensor(np.random.default_rng(0).normal(size=(40, 12)), dtype=dtype)
    ordered = x.sort(1, descending=True).values
    excess = (ordered.cumsum(1) - 1) / torch.arange(1, 13, dtype=dtype)
    count = (ordered > excess).sum(1, keepdim=True)
    close(SimplexProjection()(x), (x - excess.gather(1, count - 1)).clamp_min(0), allowed)
