"""The Hock-Schittkowski collection: published optima from published starts, and derivatives that hold up there."""

import pytest
import torch

from declarative import Implicit, IrregularPointError, SolverError, Status, verify
from declarative.solvers import InteriorPoint
from problems.hock_schittkowski import hock_schittkowski

F64 = torch.float64
COLLECTION = hock_schittkowski()
REGULAR = [name for name, problem in COLLECTION.items() if not problem.irregular]
NO_MULTIPLIERS = "HS13"
FLAT = ("HS26", "HS46", "HS49")  # singular on null(A)
STENCIL = torch.tensor([0.0, -2.0, -1.0, 1.0, 2.0], dtype=F64)
WEIGHTS = torch.tensor([0.0, 1.0, -8.0, 8.0, -1.0], dtype=F64) / 12


def vector(numbers):
    return torch.tensor(numbers, dtype=F64)


def violation(problem, x, y):
    """The largest violation of a constraint, absolute."""
    node = problem.node()
    h, g = node.equality_constraints(x, y), node.inequality_constraints(x, y)
    return max([0.0, *([] if h is None else h.abs().tolist()), *([] if g is None else g.tolist())])


def lagrangian(problem, x, solution):
    """L(x, y, ν, μ) of the first instance of a batch, its y and multipliers held fixed."""
    node, x, y = problem.node(), x[0], solution.y[0].detach()
    h, g = node.equality_constraints(x, y), node.inequality_constraints(x, y)
    value = node.objective(x, y)
    value = value if h is None else value + solution.equality_multipliers[0].detach() @ h
    return value if g is None else value + solution.inequality_multipliers[0].detach() @ g


def warm(problem, x, **options):
    """The batch x solved from the published minimiser."""
    return problem.node(**options).solution(x, init=vector(problem.solution).expand(x.shape[0], -1).clone())


def jacobian(y, x):
    """∂y/∂x (n,) of the first instance of a batch, by reverse mode."""
    return torch.stack([torch.autograd.grad(part, x, retain_graph=True)[0][0] for part in y[0]])


def test_the_collection_is_varied():
    assert len(COLLECTION) >= 24
    nodes = [(problem, problem.node()) for problem in COLLECTION.values()]
    x = vector(1.0)
    kinds = {(n.equality_constraints(x, vector(p.start)) is None, n.inequality_constraints(x, vector(p.start)) is None) for p, n in nodes}
    assert kinds == {(True, False), (False, True), (False, False)}
    assert {len(p.start) for p in COLLECTION.values()} >= {2, 3, 4, 5, 6, 7, 10}


@pytest.mark.parametrize("name", COLLECTION)
def test_the_published_figures_agree_with_each_other(name):
    """f(y*) = f*, and y* is feasible, as far as the printed digits of y* go."""
    problem = COLLECTION[name]
    y = vector(problem.solution).requires_grad_()
    f = problem.node().objective(vector(problem.x), y)
    (gradient,) = torch.autograd.grad(f, y)
    digits = 1e-6 * (1 + float(y.detach().abs().max()))
    assert abs(float(f.detach()) - problem.optimum) <= digits * (1 + float(gradient.abs().sum()))
    constraints = [c for c in (problem.node().equality_constraints, problem.node().inequality_constraints) if c(vector(problem.x), y) is not None]
    slope = max(float(torch.autograd.functional.jacobian(lambda y, c=c: c(vector(problem.x), y), y).abs().sum(1).max()) for c in constraints)
    assert violation(problem, vector(problem.x), y.detach()) <= digits * slope


@pytest.mark.parametrize("name", [name for name in COLLECTION if name != NO_MULTIPLIERS])
def test_the_published_optimum_from_the_published_start(name):
    problem = COLLECTION[name]
    x = vector(problem.x)
    solution = problem.node().solution(x, in_dims=None)
    y = solution.y
    f = float(problem.node().objective(x, y))
    assert solution.status == Status.CONVERGED
    assert violation(problem, x, y) <= 1e-8
    found = min((problem.optimum, *problem.local), key=lambda value: abs(value - f))
    assert abs(f - found) <= 1e-6 * (1 + abs(found))
    if problem.unique and found == problem.optimum:
        published = vector(problem.solution)
        # f is quartic or of sixth order about the flat ones: y is not found better than f's rounding lets it.
        tolerance = 1e-2 if name in FLAT else 1e-5
        assert float((y - published).abs().max()) <= tolerance * (1 + float(published.abs().max()))


@pytest.mark.parametrize("name", REGULAR)
def test_derivatives_of_solution_and_optimal_value(name):
    """∂y/∂x is that of finite differences; so is df(x, y(x))/dx, which is ∂L/∂x at fixed y, ν, μ (the envelope theorem)."""
    problem = COLLECTION[name]
    step = 1e-3 * (abs(problem.x) or 1.0)
    x = (problem.x + step * STENCIL).requires_grad_()
    node = problem.node()
    solution = node.solution(x)
    f = torch.stack([node.objective(*pair) for pair in zip(x, solution.y, strict=True)])
    slopes, total = jacobian(solution.y, x), torch.autograd.grad(f[0], x, retain_graph=True)[0][0]
    (partial,) = torch.autograd.grad(lagrangian(problem, x, solution), x)
    assert float((total - partial[0]).abs()) <= 1e-9 * (1 + float(partial[0].abs()))
    values = torch.cat([solution.y, f.unsqueeze(1)], 1).detach()
    differences = WEIGHTS @ values / step
    noise = 1e-13 * values.abs().amax(0) / step
    assert float((slopes - differences[:-1]).abs().max()) <= 1e-6 * float(differences[:-1].abs().max()) + 1e-9 + float(noise[:-1].max())
    assert float((total - differences[-1]).abs()) <= 1e-6 * float(differences[-1].abs()) + 1e-9 + float(noise[-1])


@pytest.mark.parametrize("name", [name for name in REGULAR if COLLECTION[name].unique])
def test_a_warm_start_at_the_published_minimiser_stays_there(name):
    """Also where a solve from the published start ends in another local minimum."""
    problem = COLLECTION[name]
    y, published = warm(problem, vector([problem.x])).y[0], vector(problem.solution)
    assert float((y - published).abs().max()) <= 1e-5 * (1 + float(published.abs().max()))


def test_verify():
    report = verify(COLLECTION["HS14"].node(), vector([COLLECTION["HS14"].x]))
    assert report.ok, str(report)


@pytest.mark.parametrize("name", FLAT)
def test_no_curvature(name):
    """The implicit function theorem says nothing of y; the optimal value still moves by the envelope theorem."""
    problem = COLLECTION[name]
    x = vector([problem.x]).requires_grad_()
    solution = problem.node().solution(x)
    with pytest.raises(IrregularPointError, match="not isolated"):
        torch.autograd.grad(solution.y.sum(), x)
    (partial,) = torch.autograd.grad(lagrangian(problem, x, solution), x)
    assert abs(float(partial)) <= 1e-6  # f* = 0 for every x


def test_redundant_constraints_make_a_kink():
    """HS30: y₁² + y₂² ≥ x next to y₁ ≥ 1. f* = max(1, x); y stays for x < 1, and any point of an arc will do for x > 1."""
    node = COLLECTION["HS30"].node()
    x = vector([0.9, 1.0, 1.1]).requires_grad_()
    y = node(x)
    values = torch.stack([node.objective(*pair) for pair in zip(x, y, strict=True)])
    torch.testing.assert_close(values, vector([1.0, 1.0, 1.1]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(y[:2], vector([[1.0, 0.0, 0.0]] * 2), rtol=1e-9, atol=1e-7)
    for single, message in ((1.0, "redundant"), (1.1, "not isolated")):
        x = vector([single]).requires_grad_()
        with pytest.raises(IrregularPointError, match=message):
            torch.autograd.grad(node(x).sum(), x)
    x = vector([0.9]).requires_grad_()
    assert float(torch.autograd.grad(node(x).sum(), x)[0].abs()) <= 1e-9


@pytest.mark.parametrize(("side", "sign", "slope"), [("inactive", -1, 0.0), ("active", 1, -1.0)])
def test_a_weakly_active_constraint_makes_a_kink(side, sign, slope):
    """HS17: y₂ ≤ y₁² − x and y₁ ≤ y₂². y₂ stays at 0 for x < 0 and gives way, by −x, for x > 0."""
    problem = COLLECTION["HS17"]
    x = vector([problem.x]).requires_grad_()
    solution = warm(problem, x, differentiation=Implicit(weakly_active=side))
    assert solution.weakly_active[0].nonzero().tolist() == [[1]]
    at, step = solution.y[0], 1e-4
    torch.testing.assert_close(jacobian(solution.y, x), vector([0.0, slope]), rtol=1e-9, atol=1e-9)
    ahead = warm(problem, vector([sign * step, 2 * sign * step])).y
    one_sided = sign * (4 * ahead[0] - ahead[1] - 3 * at.detach()) / (2 * step)
    torch.testing.assert_close(one_sided, vector([0.0, slope]), rtol=1e-6, atol=1e-6)


def test_a_minimiser_without_multipliers_is_not_claimed():
    """HS13: (1, 0) is a cusp of the feasible set, which is not empty. No multipliers exist, so no solve can converge there."""
    problem = COLLECTION[NO_MULTIPLIERS]
    with pytest.raises(SolverError):
        problem.node()(vector([problem.x]))
    solution = problem.node(solver=InteriorPoint(on_failure="nan")).solution(vector([problem.x]))
    assert int(solution.status[0]) in (Status.MAX_ITERATIONS, Status.NOT_STATIONARY)
