"""Projections against their definition and cvxpy."""

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from declarative.projections import Ball, Box, NonNegative, Simplex
from tests.conformance.cases import close

F64 = torch.float64

SETS = {
    "simplex": (Simplex(2.0), lambda y: [y >= 0, cvxpy.sum(y) == 2.0]),
    "orthant": (NonNegative(), lambda y: [y >= 0]),
    "box": (Box(-0.3, 0.5), lambda y: [y >= -0.3, y <= 0.5]),
    "ball": (Ball(0.7, 0.2), lambda y: [cvxpy.norm(y - 0.2) <= 0.7]),
}
every_set = pytest.mark.parametrize("name", SETS)


@every_set
def test_projections_against_cvxpy(name):
    projection, constraints = SETS[name]
    x = 2 * torch.randn(3, 6, dtype=F64)
    for found, point in zip(projection.project(x), x, strict=True):
        y = cvxpy.Variable(6)
        cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(y - point.numpy())), constraints(y)).solve(solver="CLARABEL")
        np.testing.assert_allclose(found, y.value, atol=1e-5)


@every_set
@given(seed=st.integers(0, 10**6), m=st.integers(1, 9), size=st.sampled_from([1e-3, 1.0, 1e3]))
def test_nearest_points(name, seed, m, size):
    """Π is idempotent, and ⟨x − Πx, z − Πx⟩ ≤ 0 for every z of the set: that is what nearest means. Samples do not mix."""
    projection = SETS[name][0]
    x, z = size * torch.randn(2, 5, m, generator=torch.Generator().manual_seed(seed), dtype=F64)
    y, inside = projection.project(x), projection.project(z)
    close(projection.project(y), y, 1e-12)
    assert float(((x - y) * (inside - y)).sum(1).max()) <= 1e-12 * (1 + size * size)
    assert torch.equal(projection.project(x[2:3]), y[2:3])


@every_set
def test_projections_are_differentiable(name):
    x = 2 * torch.randn(3, 5, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(SETS[name][0].project, x)
    assert bool(torch.autograd.grad(Ball().project(torch.zeros_like(x, requires_grad=True) + 0 * x).sum(), x)[0].isfinite().all())


def test_closed_forms():
    x = torch.tensor([[3.0, -1.0, 0.5], [1e8, 1e8, -1e8]], dtype=F64)
    close(Simplex().project(x), torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]], dtype=F64), 1e-15)
    box = Box(torch.tensor([4.0, -2.0, -torch.inf]), torch.tensor([torch.inf, 1.0, 0.0]))
    close(box.project(x), torch.tensor([[4.0, -1.0, 0.0], [1e8, 1.0, -1e8]], dtype=F64), 0)
    close(Box(-0.1, 0.1).project(x), 0.1 * x.sign(), 0)
    close(Ball(1e-20, 0.1).project(x), torch.full_like(x, 0.1), 0)
    close(Ball(2.0, torch.tensor([3.0, -1.0, 3.5])).project(x[:1]), torch.tensor([[3.0, -1.0, 1.5]], dtype=F64), 1e-15)
    assert bool(Simplex().project(torch.tensor([[torch.nan, 1.0], [0.0, 1.0]]))[1].isfinite().all())


def test_projections_reject_bad_arguments():
    for make in (lambda: Simplex(-1.0), lambda: Ball(0.0), lambda: Box(1.0, 0.0), lambda: Box(torch.nan, 1.0), lambda: Simplex(torch.inf)):
        with pytest.raises(ValueError, match=r"positive|lower must not exceed upper"):
            make()
    with pytest.raises(ValueError, match=r"shared by the batch, got shape \(3, 2\)"):
        Box(torch.zeros(3, 2), 1.0)
    with pytest.raises(ValueError, match=r"shared by the batch, got shape \(3, 2\)"):
        Ball(1.0, torch.zeros(3, 2))
    for make in (lambda: Box("0", 1.0), lambda: Ball(1.0, "0"), lambda: Ball("1"), lambda: Simplex(True)):
        with pytest.raises(TypeError, match=r"must be a number"):
            make()
