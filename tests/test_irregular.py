"""The gallery of irregular problems under every policy: the answer of the irregular sample is known, its neighbours stay exact."""

import pytest
import torch

from declarative import Implicit, IrregularPointError, SolverError, SolverWarning, Status, certify, verify
from declarative.layers import SimplexProjection
from declarative.solvers import UserSolve
from problems.irregular import irregular_catalogue
from problems.simplex import SimplexProjection as StatedSimplex

GALLERY = irregular_catalogue()
POLICIES = ("raise", "nan", "zero", "min_norm")
SIDES = ("inactive", "active", "raise", "nan", "zero")
MODES = ("reverse", "forward")


def of_kind(*kinds):
    return pytest.mark.parametrize("problem", [pytest.param(p, id=p.name) for p in GALLERY.values() if p.kind in kinds])


def jacobians(node, x, mode):
    """∂y/∂x (3, m, n) of each sample on its own input."""
    if mode == "reverse":
        x = x.clone().requires_grad_()
        y = node(x)
        rows = [torch.autograd.grad(y[:, i].sum(), x, retain_graph=True)[0] for i in range(y.shape[1])]
        return torch.stack(rows, 1)
    columns = [torch.func.jvp(node, (x,), (one.expand(x.shape),))[1] for one in torch.eye(x.shape[1], dtype=x.dtype)]
    return torch.stack(columns, 2)


def assert_neighbours_exact(problem, found):
    expected = problem.jacobian(problem.inputs)
    for i in (0, 2):
        torch.testing.assert_close(found[i], expected[i], rtol=1e-9, atol=1e-10)


def test_the_gallery_is_large_enough_and_distinct():
    assert len(GALLERY) >= 10
    assert {p.kind for p in GALLERY.values()} == {"matrix", "kink", "status", "certificate", "none"}


@of_kind("matrix", "kink", "status", "certificate", "none")
def test_the_certificate_names_the_cause_in_the_irregular_sample_only(problem):
    certificate = certify(problem.node(), problem.inputs)
    assert certificate.regular.tolist() == [True, problem.kind == "none", True]
    assert certificate.causes[0] == certificate.causes[2] == ()
    if problem.cause:
        assert any(problem.cause in cause for cause in certificate.causes[1])
        assert problem.cause in str(certificate)


@of_kind("matrix")
def test_by_default_a_singular_matrix_is_an_error_that_names_the_sample(problem):
    x = problem.inputs.clone().requires_grad_()
    y = problem.node()(x)
    with pytest.raises(IrregularPointError, match=r"1 of 3 samples \(1\)"):
        y.sum().backward()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("policy", POLICIES[1:])
@of_kind("matrix")
def test_singular_matrices_under_each_policy(problem, policy, mode):
    found = jacobians(problem.node(differentiation=Implicit(irregular=policy)), problem.inputs, mode)
    assert_neighbours_exact(problem, found)
    if policy == "nan":
        assert found[1].isnan().all()
    elif policy == "zero":
        assert (found[1] == 0).all()
    else:
        torch.testing.assert_close(found[1], problem.answer("min_norm"), rtol=1e-9, atol=1e-10)


@of_kind("matrix")
def test_what_was_applied_can_be_read_after_the_backward_pass(problem):
    x = problem.inputs.clone().requires_grad_()
    solution = problem.node(differentiation=Implicit(irregular="min_norm")).solution(x)
    assert solution.report.irregular == {}
    solution.y.sum().backward()
    assert solution.report.policy == "min_norm"
    assert list(solution.report.irregular) == [1]
    assert solution.report.irregular[1]


@of_kind("matrix")
def test_a_sample_that_nobody_asks_about_is_not_an_error_where_nan_is_the_policy(problem):
    x = problem.inputs.clone().requires_grad_()
    y = problem.node(differentiation=Implicit(irregular="nan"))(x)
    (gradient,) = torch.autograd.grad(y[[0, 2]].sum(), x)
    torch.testing.assert_close(gradient[[0, 2]], problem.jacobian(problem.inputs)[[0, 2]].sum(1), rtol=1e-9, atol=1e-10)
    assert (gradient[1] == 0).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", SIDES)
@of_kind("kink")
def test_kinks_under_each_choice_of_side(problem, side, mode):
    node = problem.node(differentiation=Implicit(weakly_active=side, irregular="min_norm"))
    if side == "raise":
        with pytest.raises(IrregularPointError, match=r"weakly active at 1 of 3 samples \(1\)"):
            jacobians(node, problem.inputs, mode)
        return
    found = jacobians(node, problem.inputs, mode)
    assert_neighbours_exact(problem, found)
    if side == "nan":
        assert found[1].isnan().all()
    elif side == "zero":
        assert (found[1] == 0).all()
    else:
        torch.testing.assert_close(found[1], problem.answer(side), rtol=1e-9, atol=1e-9)


@of_kind("kink")
def test_the_solution_marks_weak_activity(problem):
    solution = problem.node().solution(problem.inputs)
    assert solution.weakly_active.any(1).tolist() == [False, True, False]
    assert (solution.status == Status.CONVERGED).all()


@of_kind("kink")
def test_verify_takes_differences_on_the_side_that_was_chosen(problem):
    for side in ("inactive", "active"):
        node = problem.node(differentiation=Implicit(weakly_active=side, irregular="min_norm"))
        report = verify(node, problem.inputs)
        assert report.ok, str(report)
    assert not report.certificate.regular[1]
    assert str(report).startswith(str(report.certificate))


@of_kind("certificate", "none")
@pytest.mark.parametrize("policy", POLICIES)
def test_a_regular_matrix_is_differentiated_under_every_policy(problem, policy):
    for mode in MODES:
        found = jacobians(problem.node(differentiation=Implicit(irregular=policy)), problem.inputs, mode)
        assert_neighbours_exact(problem, found)
        torch.testing.assert_close(found[1], problem.answer("formal"), rtol=1e-9, atol=1e-10)


@of_kind("certificate")
def test_verify_fails_where_the_point_is_not_a_minimiser(problem):
    report = verify(problem.node(), problem.inputs)
    failed = [row.name for row in report.rows if not row.ok]
    assert failed == ["samples that are not minimisers"]
    assert report.certificate.minimiser.tolist() == [True, False, True]


@of_kind("status")
def test_a_point_that_is_not_stationary_follows_on_failure(problem):
    with pytest.raises(SolverError, match=r"1 of 3 samples \(1\).*not a minimiser"):
        problem.node()(problem.inputs)
    with pytest.warns(SolverWarning, match="not a minimiser"):
        y = problem.node(solver=UserSolve(on_failure="warn"))(problem.inputs)
    assert y.isfinite().all()
    for mode in MODES:
        found = jacobians(problem.node(solver=UserSolve(on_failure="nan")), problem.inputs, mode)
        assert_neighbours_exact(problem, found)
        assert found[1].isnan().all()
    status = problem.node(solver=UserSolve(on_failure="nan")).solution(problem.inputs).status
    assert status.tolist() == [Status.CONVERGED, Status.NOT_STATIONARY, Status.CONVERGED]


@of_kind("matrix", "kink", "certificate", "none")
def test_second_derivatives_of_the_neighbours_do_not_notice(problem):
    node = problem.node(differentiation=Implicit(irregular="zero", weakly_active="inactive"))
    alone = problem.inputs[[0]].clone().requires_grad_()
    x = problem.inputs.clone().requires_grad_()
    seconds = []
    for leaf in (alone, x):
        y = node(leaf)
        (gradient,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
        seconds.append(torch.autograd.grad(gradient[0].square().sum(), leaf)[0][0] if gradient.requires_grad else torch.zeros_like(leaf[0]))
    torch.testing.assert_close(seconds[1], seconds[0], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("tau", [1e-3, 0.1, 2.0])
def test_smoothing_is_the_derivative_of_the_central_path_of_the_positive_part(tau):
    """min ½(y − x)² − τ log y has y = (x + √(x² + 4τ))/2."""
    x = torch.tensor([[-1.5], [0.0], [0.7]], dtype=torch.float64)
    node = GALLERY["relu"].node(differentiation=Implicit(smoothing=tau))
    for mode in MODES:
        found = jacobians(node, x, mode)
        torch.testing.assert_close(found.reshape(-1), 0.5 * (1 + x / (x * x + 4 * tau).sqrt()).reshape(-1))


def test_smoothing_gives_a_vertex_something_to_learn_from_and_vanishes_with_tau():
    problem = GALLERY["lp_vertex"]
    sizes = []
    for tau in (1e-1, 1e-2, 1e-3, 0.0):
        found = jacobians(problem.node(differentiation=Implicit(smoothing=tau)), problem.inputs, "reverse")
        assert found.sum(1).abs().max() < 1e-12  # the coordinates still sum to one
        assert all(found[i, k, k] <= 0 for i in range(3) for k in range(3))  # what gets dearer is used less
        sizes.append(float(found.abs().max()))
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3] == 0


def test_smoothing_is_recorded():
    problem = GALLERY["relu"]
    solution = problem.node(differentiation=Implicit(smoothing=0.5)).solution(problem.inputs.clone().requires_grad_())
    assert solution.report.smoothing == 0.5


def test_damping_is_off_by_default_and_reports_the_residual_of_the_undamped_system():
    x = torch.tensor([[-1.0, 0.5], [1.0, 0.5]], dtype=torch.float64)
    flat, v = GALLERY["flat"], torch.ones(2, 2, dtype=torch.float64)
    for damping, expected in ((0.0, None), (1e-2, 1e-2 / 1.01)):
        leaf = x.clone().requires_grad_()
        solution = flat.node(differentiation=Implicit(damping=damping, irregular="zero")).solution(leaf)
        (gradient,) = torch.autograd.grad(solution.y, leaf, v)
        if expected is None:
            assert solution.report.damping == 0
            torch.testing.assert_close(gradient[0], v[0])
            continue
        # H = I: u = v/(1 + δ), residual of the undamped system δ/(1 + δ). H = diag(1, 0): u₁ = v₁/δ, residual 1.
        torch.testing.assert_close(gradient[0], v[0] / (1 + damping))
        torch.testing.assert_close(solution.report.residual, torch.tensor([expected, 1.0], dtype=torch.float64))


def test_the_backward_residual_is_measured():
    problem = GALLERY["ball_boundary"]
    x = problem.inputs.clone().requires_grad_()
    solution = problem.node().solution(x)
    assert solution.report.residual is None
    solution.y.sum().backward()
    assert solution.report.residual.shape == (3,)
    assert float(solution.report.residual.max()) < 1e-14


@pytest.mark.parametrize("option", [{"irregular": "ignore"}, {"weakly_active": "both"}, {"smoothing": -1.0}, {"damping": float("nan")}])
def test_options_that_do_not_exist_are_refused(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        Implicit(**option)


class SharesWithBounds(StatedSimplex):
    """Solved by its formula: one equation over all entries, and nearly as many bounds that hold."""

    def solve(self, x):
        return SimplexProjection()(x)


@pytest.mark.parametrize("n", [300, 1000])
def test_many_bounds_in_float32(n):
    """K has a condition number of a few thousand, which float32 can take: it is not called singular, and the derivative is that of the formula."""
    x, v = torch.randn(2, 2, n, generator=torch.Generator().manual_seed(0))
    x = x.requires_grad_()
    (found,), (expected,) = (torch.autograd.grad(node(x), x, v) for node in (SharesWithBounds(), SimplexProjection()))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
