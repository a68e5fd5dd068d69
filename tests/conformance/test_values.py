"""Solutions: against closed forms, and against the optimality conditions written out here a second time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from declarative import Status
from problems import catalogue
from tests.conformance.cases import CATALOGUE, case, close, every_problem, flat, with_closed_form


def instance_lagrangian(node, inputs, nu, mu):
    """y ↦ L(y) of one instance, from the statement alone."""

    def value(y):
        total = node.objective(*inputs, y)
        for constraint, multipliers in ((node.equality_constraints, nu), (node.inequality_constraints, mu)):
            rows = constraint(*inputs, y)
            if rows is not None:
                total = total + multipliers @ rows.reshape(-1)
        return total

    return value


def rows_of(constraint, *arguments):
    rows = constraint(*arguments)
    return torch.zeros(0, dtype=torch.float64) if rows is None else rows.reshape(-1)


def nth(y, i):
    return tuple(part[i] for part in y) if isinstance(y, tuple) else y[i]


@with_closed_form
def test_equals_the_closed_form(name):
    example = case(name, batch=6, polish=0)
    y = example.node(*example.inputs, in_dims=example.in_dims)
    expected = example.problem.closed_form(*example.inputs)
    assert isinstance(y, tuple) == isinstance(expected, tuple)
    close(y, expected, 1e-7)
    close(case(name, batch=6).y(*example.inputs), flat(expected), 1e-11)


@with_closed_form
@settings(max_examples=4)
@given(seed=st.integers(1, 10**6), batch=st.integers(1, 4))
def test_equals_the_closed_form_on_any_instance(name, seed, batch):
    example = case(name, batch=batch, seed=seed)
    close(example.y(*example.inputs), example.known(*example.inputs), 1e-9)


@every_problem
def test_satisfies_the_optimality_conditions(name):
    example = case(name, batch=5)
    s = example.node.solution(*example.inputs, in_dims=example.in_dims)
    for i in range(example.batch):
        inputs, y, nu, mu = example.single(i), nth(s.y, i), s.equality_multipliers[i].detach(), s.inequality_multipliers[i].detach()
        y = tuple(part.detach() for part in y) if isinstance(y, tuple) else y.detach()
        slope = torch.func.grad(instance_lagrangian(example.node, inputs, nu, mu))(y)
        for part in slope if isinstance(slope, tuple) else (slope,):
            close(part.detach(), torch.zeros_like(part), 1e-9)
        h, g = rows_of(example.node.equality_constraints, *inputs, y), rows_of(example.node.inequality_constraints, *inputs, y)
        assert (h.shape, g.shape) == (nu.shape, mu.shape)
        close(h, torch.zeros_like(h), 1e-9)
        assert bool((g <= 1e-9).all())
        assert bool((mu >= 0).all())
        close(mu * g, torch.zeros_like(g), 1e-9)


@every_problem
def test_is_a_minimum(name):
    """No feasible point nearby is better: points of the null space of the active constraints, to second order."""
    example = case(name, batch=3)
    s = example.node.solution(*example.inputs, in_dims=example.in_dims)
    for i in range(example.batch):
        y, nu, mu = nth(s.y, i), s.equality_multipliers[i].detach(), s.inequality_multipliers[i].detach()
        inputs = example.single(i)
        parts = [part.detach() for part in (y if isinstance(y, tuple) else (y,))]
        sizes = [part.numel() for part in parts]

        def shaped(z, y=y, parts=parts, sizes=sizes):
            pieces = tuple(piece.reshape(part.shape) for piece, part in zip(z.split(sizes), parts, strict=True))
            return pieces if isinstance(y, tuple) else pieces[0]

        def held(z, shaped=shaped, inputs=inputs, active=s.active[i]):
            h, g = (rows_of(c, *inputs, shaped(z)) for c in (example.node.equality_constraints, example.node.inequality_constraints))
            return torch.cat([h, g[active]])

        z = torch.cat([part.reshape(-1) for part in parts])
        value = instance_lagrangian(example.node, inputs, nu, mu)
        H = torch.func.jacrev(torch.func.grad(lambda z, value=value, shaped=shaped: value(shaped(z))))(z).detach()
        A = torch.func.jacrev(held)(z)
        null = torch.eye(len(z), dtype=z.dtype)
        if len(A):
            _, values, vectors = torch.linalg.svd(A)
            null = vectors[int((values > 1e-9).sum()) :].T
        assert bool((torch.linalg.eigvalsh(null.T @ H @ null) > 1e-6).all())


@every_problem
def test_reports_how_the_solve_went(name):
    example = case(name, batch=5, polish=0)
    s = example.node.solution(*example.inputs, in_dims=example.in_dims)
    assert bool((s.status == Status.CONVERGED).all())
    assert s.status.shape == s.iterations.shape == s.stationarity.shape == s.violation.shape == (5,)
    assert bool((s.iterations >= 1).all())
    assert bool((s.stationarity <= 1e-8).all())
    assert bool((s.violation <= 1e-8).all())
    assert s.active.shape == s.weakly_active.shape == s.inequality_multipliers.shape
    assert not bool(s.weakly_active.any())
    assert torch.equal(s.active, s.inequality_multipliers > 0)


def multipliers_known(name, example):
    """ν and μ by formula, for the problems that have one."""
    x = example.inputs[0]
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    formulas = {
        "hyperplane": lambda: ((x.sum(1, keepdim=True) - 1) / x.shape[1], None),
        "row_sums": lambda: ((x.sum(2) - example.inputs[1]) / x.shape[2], None),
        "sphere": lambda: ((norm - 1) / 2, None),
        "ball": lambda: (None, ((norm - 1) / 2).clamp_min(0)),
        "singular_hessian": lambda: (torch.zeros(len(x), 1, dtype=x.dtype), None),
        "softmax": lambda: (x.logsumexp(1, keepdim=True) - 1, None),
    }
    return formulas[name]()


@pytest.mark.parametrize("name", ["hyperplane", "row_sums", "sphere", "ball", "singular_hessian", "softmax"])
def test_multipliers_by_formula(name):
    example = case(name, batch=5)
    s = example.node.solution(*example.inputs, in_dims=example.in_dims)
    nu, mu = multipliers_known(name, example)
    if nu is not None:
        close(s.equality_multipliers, nu, 1e-10)
    if mu is not None:
        close(s.inequality_multipliers, mu, 1e-10)


def test_samples_are_mixed():
    """The catalogue is worth conforming to: active sets that differ within one batch, and every kind of statement."""
    for name in ("simplex", "ball", "quadratic_program"):
        example = case(name, batch=6)
        active = example.node.solution(*example.inputs, in_dims=example.in_dims).active
        assert len({tuple(row) for row in active.tolist()}) > 1
    assert set(CATALOGUE) == set(catalogue())
    assert len(CATALOGUE) >= 19


@every_problem
def test_warm_start(name):
    """The same solution, from y alone and from an earlier solution: that in fewer steps."""
    example = case(name, batch=4)
    s = example.node.solution(*example.inputs, in_dims=example.in_dims)
    close(flat(example.node.solution(*example.inputs, in_dims=example.in_dims, init=s.y).y), flat(s.y), 1e-9)
    again = example.node.solution(*example.inputs, in_dims=example.in_dims, init=s)
    close(flat(again.y), flat(s.y), 1e-9)
    assert bool((again.iterations <= s.iterations.clamp_min(1)).all())
