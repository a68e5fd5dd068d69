"""Points where careless formulas break: singular H, redundant constraints, kinks."""

import pytest
import torch

from declarative import Implicit, IrregularPointError
from problems.ball import BallProjection
from problems.redundant import RedundantConstraints
from tests.conformance.cases import case, close, gradients, weights

F64 = torch.float64


def test_singular_hessian():
    """H = diag(1, 0) and a regular KKT matrix: y = (x, 1 − x)."""
    node = case("singular_hessian").node
    x = torch.tensor([-2.0, 0.0, 3.0], dtype=F64)
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        J = torch.stack([transform(lambda z: node(z, in_dims=None))(z) for z in x])
        close(J, torch.tensor([[1.0, -1.0]] * 3, dtype=F64), 1e-12)
    s = node.solution(x)
    close(s.equality_multipliers, torch.zeros(3, 1, dtype=F64), 1e-12)


def test_projection_onto_a_hyperplane():
    """∂y/∂x = I − 11ᵀ/n, and its derivative is zero."""
    node = case("hyperplane").node
    for n in (1, 2, 5):
        x = weights((n,))
        close(torch.func.jacrev(lambda z: node(z, in_dims=None))(x), torch.eye(n, dtype=F64) - 1 / n, 1e-12)
        close(torch.func.hessian(lambda z: node(z, in_dims=None).square().sum())(x), 2 * (torch.eye(n, dtype=F64) - 1 / n), 1e-11)


def test_redundant_constraints_are_named():
    """By default an error, in both modes, that says which samples and why."""
    node = RedundantConstraints()
    x, total = weights((3, 4)).requires_grad_(), weights((3,))
    y = node(x, total)
    with pytest.raises(IrregularPointError, match=r"3 of 3 samples \(0, 1, 2\).*redundant.*rank 1, not 2"):
        y.sum().backward()
    with pytest.raises(IrregularPointError, match="redundant"):
        torch.func.jvp(lambda x: node(x, total), (x.detach(),), (torch.ones_like(x),))


def test_redundant_constraints_solved():
    """min_norm: as if the constraint were written once, and the report says that it was needed."""
    node = RedundantConstraints(differentiation=Implicit(irregular="min_norm"))
    x, total = weights((3, 4)).requires_grad_(), weights((3,)).requires_grad_()
    v = weights((3, 4), seed=2)
    s = node.solution(x, total)
    found = torch.autograd.grad((s.y * v).sum(), (x, total))
    close(found[0], v - v.mean(1, keepdim=True), 1e-12)
    close(found[1], v.mean(1), 1e-12)
    assert s.report.policy == "min_norm"
    assert sorted(s.report.irregular) == [0, 1, 2]
    assert all("redundant" in cause for cause in s.report.irregular.values())


@pytest.mark.parametrize(("choice", "value"), [("nan", torch.nan), ("zero", 0.0)])
def test_redundant_constraints_given_up(choice, value):
    node = RedundantConstraints(differentiation=Implicit(irregular=choice))
    (g,) = gradients(lambda x: (node(x, torch.ones(2, dtype=F64)) * weights((2, 4))).sum(), [weights((2, 4))])
    assert torch.equal(g.nan_to_num(nan=7.0), torch.full_like(g, value).nan_to_num(nan=7.0))


BALL = torch.tensor([[0.3, 0.2, -0.1], [1.5, -1.0, 0.5], [0.6, 0.8, 0.0]], dtype=F64)  # inside, outside, on the sphere


def tangential(x):
    y = x / torch.linalg.vector_norm(x)
    return torch.eye(3, dtype=F64) - torch.outer(y, y)


def ball_jacobian(transform, **options):
    node = BallProjection(differentiation=Implicit(**options), polish=10)
    full = transform(node)(BALL)
    return torch.stack([full[i, :, i] for i in range(3)])


@pytest.mark.parametrize("transform", [torch.func.jacrev, torch.func.jacfwd], ids=["jacrev", "jacfwd"])
@pytest.mark.parametrize("choice", ["inactive", "active", "zero", "nan"])
def test_ball_inside_outside_and_between(choice, transform):
    """One batch with a regular, a constrained and a weakly active sample; only the last depends on the choice."""
    eye = torch.eye(3, dtype=F64)
    boundary = {"inactive": eye, "active": tangential(BALL[2]), "zero": torch.zeros(3, 3, dtype=F64), "nan": torch.full((3, 3), torch.nan, dtype=F64)}
    J = ball_jacobian(transform, weakly_active=choice)
    close(J[0], eye, 1e-8)
    close(J[1], tangential(BALL[1]) / torch.linalg.vector_norm(BALL[1]), 1e-8)
    if choice == "nan":
        assert bool(J[2].isnan().all())
    else:
        close(J[2], boundary[choice], 1e-6)


def test_ball_marks_the_kink():
    s = BallProjection(polish=10).solution(BALL)
    assert s.active.tolist() == [[False], [True], [False]]
    assert s.weakly_active.tolist() == [[False], [False], [True]]
    close(s.y[2], BALL[2], 1e-8)


def test_ball_kink_raises_where_it_is_asked_to():
    node = BallProjection(differentiation=Implicit(weakly_active="raise"))
    y = node(BALL.clone().requires_grad_())
    with pytest.raises(IrregularPointError, match=r"weakly active at 1 of 3 samples \(2\)"):
        y.sum().backward()
    x = BALL[:2].clone().requires_grad_()
    node(x).sum().backward()  # nothing to complain of
    close(x.grad[0], torch.ones(3, dtype=F64), 1e-8)


@pytest.mark.parametrize("distance", [1e-3, 1e-5])
def test_ball_near_the_kink(distance):
    """Close to the sphere, on either side, is not on it."""
    unit = BALL[2]
    x = torch.stack([unit * (1 - distance), unit * (1 + distance)])
    node = BallProjection(polish=10)
    assert node.solution(x).weakly_active.tolist() == [[False], [False]]
    J = torch.func.jacrev(node)(x)
    close(J[0, :, 0], torch.eye(3, dtype=F64), 1e-8)
    close(J[1, :, 1], tangential(unit) / (1 + distance), 1e-7)


def test_unused_input_and_parameter():
    """Zeros of the right shape, never None, in every mode."""
    node = case("idle_input").node
    x, idle = weights((2, 3)).abs().requires_grad_(), weights((2, 2)).requires_grad_()
    y = node(x, idle)
    found = torch.autograd.grad(y.sum(), (idle, node.spare), retain_graph=True)
    assert [tuple(g.shape) for g in found] == [(2, 2), (2,)]
    assert not any(bool(g.any()) for g in found)
    y.sum().backward()
    assert torch.equal(idle.grad, torch.zeros_like(idle))
    assert torch.equal(node.spare.grad, torch.zeros_like(node.spare))
    zero = torch.func.jvp(lambda z: node(x.detach(), z), (idle.detach(),), (torch.ones_like(idle),))[1]
    assert torch.equal(zero, torch.zeros(2, 3, dtype=F64))
