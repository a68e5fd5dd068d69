"""The pooling layer's derivative where it is one-sided, where H is singular, and where no point pulls."""

import pytest
import torch

from declarative import SolverWarning, Status
from declarative.differentiation import Implicit
from declarative.errors import IrregularPointError
from declarative.layers import RobustPooling
from declarative.layers.pooling import Huber, PseudoHuber, TruncatedQuadratic
from problems.robust_pooling import one_cluster
from tests.layers.test_pooling_derivatives import ALL, F64, TIGHT


def tracked(*tensors):
    return tuple(t.clone().requires_grad_() for t in tensors)


def pulled_ones(layer, x):
    t = tracked(x)
    return torch.autograd.grad(layer(*t).sum(), t)[0]


def test_at_a_kink_of_huber_the_derivative_is_that_of_the_near_side():
    x = torch.tensor([[[0.0, 0.0, 0.0, 1.2]]], dtype=F64)  # u = 0.3, and the last point is 0.9 away
    s = RobustPooling(Huber(0.9), tolerance=TIGHT).solution(*(t := tracked(x)))
    assert s.y.item() == pytest.approx(0.3, abs=1e-14)
    assert s.weakly_active.tolist() == [[False, False, False, True]]
    assert not bool(s.active.any())
    (slope,) = torch.autograd.grad(s.y.sum(), t)
    h = 1e-6
    nearer = (RobustPooling(Huber(0.9), tolerance=TIGHT)(x - h * (x > 1)) - 0.3) / -h
    assert torch.allclose(slope, torch.full_like(x, 0.25), atol=1e-12)
    assert nearer.item() == pytest.approx(float(slope[0, 0, 3]), abs=1e-8)
    farther = RobustPooling(Huber(0.9)).solution(x + 0.1 * (x > 1))
    assert farther.active.tolist() == [[False, False, False, True]]
    assert not bool(farther.weakly_active.any())


def test_on_the_boundary_of_truncation_a_point_is_near():
    """Three near points hold u at 0, where two more are 1 away; without them it would stay, so that it is a tie, and reported as on the boundary."""
    x = torch.tensor([[[0.0, 0.0, 0.0, -1.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0]]], dtype=F64)
    s = RobustPooling(TruncatedQuadratic(1.0)).solution(*(t := tracked(x)))
    assert s.y.tolist() == [[0.0, 0.0]]
    assert s.weakly_active.tolist() == [[False, False, False, True, True]]
    assert not bool(s.active.any())
    assert torch.allclose(torch.autograd.grad(s.y.sum(), t)[0], torch.full_like(x, 0.2))
    masked = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]], dtype=F64)
    assert not bool(RobustPooling(TruncatedQuadratic(1.0)).solution(x, masked).weakly_active.any())


FLAT = torch.tensor([[[-5.0, -4.9, 5.0, 5.1]]], dtype=F64)  # any point in between is a minimum of Huber's


@pytest.mark.parametrize("x", [FLAT, 1e9 * torch.tensor([[[-1.0, 1.0]]], dtype=F64)])
@pytest.mark.parametrize("policy", ["raise", "zero", "nan", "min_norm"])
def test_policies_where_the_minimum_is_not_isolated(policy, x):
    """With one channel H is zero to rounding in both: exactly, and where its terms cancel."""
    penalty = Huber(1.0) if x is FLAT else PseudoHuber(1.0)
    s = RobustPooling(penalty, differentiation=Implicit(irregular=policy)).solution(*(t := tracked(x)))
    assert s.status.item() == Status.CONVERGED
    if policy == "raise":
        with pytest.raises(IrregularPointError, match=r"1 of 1 sample \(0\).*not isolated"):
            torch.autograd.grad(s.y.sum(), t)
        return
    (slope,) = torch.autograd.grad(s.y.sum(), t)
    assert "not isolated" in s.report.irregular[0]
    assert bool(torch.isnan(slope).all()) if policy == "nan" else torch.equal(slope, torch.zeros_like(x))


def test_min_norm_moves_along_what_is_regular():
    """Four points far away on a line in the plane: nothing holds u along the line, all of them hold it across."""
    x = torch.cat([FLAT, torch.zeros_like(FLAT)], 1)
    V = torch.tensor([[1.0, 1.0]], dtype=F64)
    t = tracked(x)
    layer = RobustPooling(Huber(1.0), differentiation=Implicit(irregular="min_norm"))
    (slope,) = torch.autograd.grad(layer(*t), t, V)
    distances = (x - layer(x).unsqueeze(2)).norm(dim=1)
    assert torch.allclose(slope[0, 1], (1 / distances / (1 / distances).sum())[0], atol=1e-9)
    assert torch.allclose(slope[0, 0], torch.zeros(4, dtype=F64), atol=1e-9)


def test_other_samples_keep_their_derivatives():
    healthy = torch.tensor([[[0.0, 0.2, 0.4, 3.0]]], dtype=F64)
    layer = RobustPooling(Huber(1.0), differentiation=Implicit(irregular="zero"))
    (slope,) = torch.autograd.grad(layer(*(t := tracked(torch.cat([healthy, FLAT])))).sum(), t)
    assert torch.equal(slope[:1], pulled_ones(layer, healthy))


@pytest.mark.parametrize("penalty", ALL, ids=str)
def test_no_inliers_have_zero_gradient(penalty):
    x, w = one_cluster(2, torch.Generator().manual_seed(0), F64)[0], torch.ones(2, 9, dtype=F64)
    w[0] = 0.0
    with pytest.warns(SolverWarning, match=r"1 of 2 samples \(0\): no point is near enough to pull"):
        s = RobustPooling(penalty).solution(*(t := tracked(x, w)))
    assert s.status.tolist() == [Status.NO_INLIERS, Status.CONVERGED]
    slopes = torch.autograd.grad(s.y.square().sum(), t, create_graph=True)
    assert all(torch.equal(g[0], torch.zeros_like(g[0])) and bool(torch.isfinite(g).all()) for g in slopes)
    second = torch.autograd.grad(sum(g.square().sum() for g in slopes), t, allow_unused=True, materialize_grads=True)
    assert all(torch.equal(g[0], torch.zeros_like(g[0])) and bool(torch.isfinite(g).all()) for g in second)
