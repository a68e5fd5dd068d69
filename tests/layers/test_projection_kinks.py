"""Projections where derivatives are one-sided or not unique: as the engine has them; redundant equations, fixed entries."""

import pytest
import torch
from torch.func import jacfwd, jacrev, vmap

from declarative import Implicit, IrregularPointError, SolverError, verify
from declarative.layers import (
    AffineProjection,
    BoxProjection,
    HalfSpaceProjection,
    L1BallProjection,
    L1SphereProjection,
    L2BallProjection,
    L2SphereProjection,
    LInfBallProjection,
    LInfSphereProjection,
    SimplexProjection,
)
from problems import linear_projections, norm_projections
from problems.ball import BallProjection
from problems.simplex import SimplexProjection as StatedSimplex
from problems.sphere import SphereProjection
from tests.layers.projections import F64, NORMS, normal

pytestmark = pytest.mark.usefixtures("shapes_unchecked")


@pytest.mark.parametrize("choice", ["inactive", "active", "nan", "zero"])
@pytest.mark.parametrize(
    ("kind", "node", "x"),
    [
        (L2BallProjection, BallProjection, [0.6, 0.8, 0.0]),
        (SimplexProjection, StatedSimplex, [0.7, 0.5, 0.1, -1.0]),
        (LInfBallProjection, norm_projections.LInfBall, [1.0, -0.4, 3.0, -1.0]),
        (L1BallProjection, norm_projections.L1Ball, [1.2, -1.0, 0.6, 0.1]),
        (BoxProjection, linear_projections.Box, [1.0, -0.4, 3.0, -1.0]),
        (HalfSpaceProjection, linear_projections.HalfSpace, [1.0, -0.5, 0.5]),
    ],
)
def test_kinks_as_the_engine_has_them(kind, node, x, choice):
    policy = Implicit(weakly_active=choice)
    x = torch.tensor([x, [0.3] * len(x)], dtype=F64)
    ones = torch.ones_like(x)
    further = {
        BoxProjection: (-ones, ones),
        HalfSpaceProjection: (ones, torch.ones(2, dtype=F64)),
    }.get(kind, () if node in (BallProjection, StatedSimplex) else (torch.ones(2, dtype=F64),))
    stated = node(differentiation=policy, polish=5)
    known = {BoxProjection: linear_projections.box, HalfSpaceProjection: linear_projections.half_space}.get(kind)
    stated.solve = lambda *inputs: kind()(*inputs) if known is None else known(*inputs)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    v = normal(*x.shape)
    ours, theirs = kind(differentiation=policy)(leaves[0], *further), stated(leaves[1], *further)
    torch.testing.assert_close(ours, theirs)
    assert bool(kind().solution(x, *further).weakly_active[0].any())
    a, b = (torch.autograd.grad(y, leaf, v)[0] for y, leaf in zip((ours, theirs), leaves, strict=True))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_kinks_are_refused_if_asked():
    x = torch.tensor([[0.0, 0.5], [1.0, 0.0]], dtype=F64, requires_grad=True)
    y = L2BallProjection(differentiation=Implicit(weakly_active="raise"))(x)
    with pytest.raises(IrregularPointError, match=r"1 of 2 samples \(1\)"):
        y.sum().backward()


NOT_UNIQUE = [
    (L2SphereProjection, [0.0, 0.0, 0.0]),
    (LInfSphereProjection, [0.5, -0.5, 0.1]),
    (LInfSphereProjection, [0.0, 0.0, 0.0]),
    (L1SphereProjection, [0.2, 0.0, 0.3]),
]


@pytest.mark.parametrize(("kind", "point"), NOT_UNIQUE)
def test_points_with_several_nearest_points(kind, point):
    x = torch.tensor([[0.3, 0.5, -0.2], point], dtype=F64)
    y = kind()(x)
    torch.testing.assert_close(torch.linalg.vector_norm(y, NORMS[kind], dim=1), torch.ones(2, dtype=F64))
    leaf = x.clone().requires_grad_()
    with pytest.raises(IrregularPointError, match=r"1 of 2 samples \(1\).*irregular="):
        kind()(leaf).sum().backward()
    with pytest.raises(IrregularPointError):
        jacfwd(kind())(x)
    with pytest.raises(IrregularPointError):
        vmap(jacrev(kind()))(x)
    torch.autograd.grad(kind()(leaf)[0].sum(), leaf)  # nothing is asked of the other
    for policy, expected in (("nan", torch.nan), ("zero", 0.0)):
        s = kind(differentiation=Implicit(irregular=policy)).solution(leaf)
        (gradient,) = torch.autograd.grad(s.y.sum(), leaf)
        torch.testing.assert_close(gradient[1], torch.full((3,), expected, dtype=F64), equal_nan=True)
        assert bool(torch.isfinite(gradient[0]).all())
        assert list(s.report.irregular) == [1]
    (gradient,) = torch.autograd.grad(kind(differentiation=Implicit(irregular="min_norm"))(leaf).sum(), leaf)
    assert bool(torch.isfinite(gradient).all())


def test_the_pseudo_inverse_at_the_centre_of_the_sphere():
    class Solved(SphereProjection):
        def solve(self, x):
            return L2SphereProjection()(x)

    x, v = torch.zeros(1, 3, dtype=F64), normal(1, 3)
    found = []
    for kind in (L2SphereProjection, Solved):
        leaf = x.clone().requires_grad_()
        found += torch.autograd.grad(kind(differentiation=Implicit(irregular="min_norm"))(leaf), leaf, v)
    torch.testing.assert_close(*found)


# Affine subspaces and boxes


def test_redundant_equations():
    A, x = normal(2, 2, 4), normal(2, 4)
    A[1, 1] = 2 * A[1, 0]
    b = (A @ normal(2, 4, 1, seed=3)).squeeze(2)
    y = AffineProjection()(x, A, b)
    torch.testing.assert_close((A @ y.unsqueeze(2)).squeeze(2), b)
    one = AffineProjection()(x[1], A[1, :1], b[1, :1])
    torch.testing.assert_close(y[1], one)
    leaf = x.clone().requires_grad_()
    with pytest.raises(IrregularPointError, match=r"1 of 2 samples \(1\): rows of A depend"):
        AffineProjection()(leaf, A, b).sum().backward()
    shortest = AffineProjection(differentiation=Implicit(irregular="min_norm"))
    jacobian = jacrev(shortest)(x, A, b)[1, :, 1]
    a = A[1, 0]
    torch.testing.assert_close(jacobian, torch.eye(4, dtype=F64) - torch.outer(a, a) / a.square().sum())
    with pytest.raises(SolverError, match=r"contradict each other in b: no point satisfies A y = b in 1 of 2 samples \(1\)"):
        AffineProjection()(x, A, b + torch.tensor([[0.0, 0.0], [0.0, 1.0]], dtype=F64))


def test_half_open_boxes_and_fixed_entries():
    x = normal(3, 4)
    assert torch.equal(BoxProjection(lower=0.0)(x), x.clamp_min(0))
    assert torch.equal(BoxProjection(upper=torch.inf, lower=-torch.inf)(x), x)
    report = verify(BoxProjection(-0.2, torch.inf), x)
    assert report.ok, str(report)
    lower = torch.tensor([0.5, -1.0], dtype=F64, requires_grad=True)
    upper = torch.tensor([0.5, 1.0], dtype=F64, requires_grad=True)
    y = BoxProjection()(torch.tensor([[0.5, 0.0], [-3.0, 0.0]], dtype=F64), lower, upper)
    assert y[:, 0].tolist() == [0.5, 0.5]
    assert [g.tolist() for g in torch.autograd.grad(y.sum(), (lower, upper))] == [[1.0, 0.0], [1.0, 0.0]]
