"""The pooling layer where it is easy to be wrong without a word: extreme data and scales, few points, odd layouts, models around it."""

import warnings

import pytest
import torch

from declarative import SolverWarning, Status
from declarative.layers import RobustPooling
from declarative.layers.pooling import Barron, Cauchy, GemanMcClure, Huber, Penalty, PseudoHuber, Quadratic, TruncatedQuadratic, Welsch
from declarative.layers.pooling.cloud import Cloud
from declarative.layers.pooling.descent import descend
from problems.robust_pooling import with_outliers

F64 = torch.float64
REDESCENDING = (Welsch, TruncatedQuadratic, GemanMcClure, Cauchy, lambda scale: Barron(-1.0, scale))
SCALED = (PseudoHuber, Huber, *REDESCENDING)
ALL = (Quadratic(), *(kind(1.5) for kind in SCALED))
every_penalty = pytest.mark.parametrize("penalty", ALL, ids=str)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def cluster(*shape, seed=0, dtype=F64):
    """One in five points far away."""
    return with_outliers(generator(seed), *shape).to(dtype)


def pulled(layer, *inputs, **options):
    """The point, and the gradients of its sum."""
    inputs = tuple(t.clone().requires_grad_() for t in inputs)
    u = layer(*inputs, **options)
    return u.detach(), *torch.autograd.grad(u.sum(), inputs)


# Numbers


@every_penalty
@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 1e-4), (torch.float16, 2e-2), (torch.bfloat16, 1e-1)])
def test_other_dtypes(penalty, dtype, accuracy):
    x = cluster(3, 4, 20, seed=1)
    u, gradient = pulled(RobustPooling(penalty), x.to(dtype))
    assert u.dtype == gradient.dtype == dtype
    assert torch.allclose(u.double(), RobustPooling(penalty)(x.to(dtype).double()), atol=accuracy)
    assert torch.allclose(gradient.double(), pulled(RobustPooling(penalty), x.to(dtype).double())[1], atol=accuracy)


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize(("dtype", "accuracy"), [(F64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("scale", [1e-8, 1e-6, 1e6, 1e8])
def test_units_do_not_matter(kind, dtype, accuracy, scale):
    x = cluster(3, 3, 20, seed=2, dtype=dtype)
    expected, slopes = pulled(RobustPooling(kind(1.3)), x)
    u, gradient = pulled(RobustPooling(kind(1.3 * scale)), x * scale)
    assert torch.allclose(u / scale, expected, atol=accuracy)
    assert torch.allclose(gradient, slopes, atol=100 * accuracy)


@every_penalty
@pytest.mark.parametrize(("dtype", "small", "accuracy"), [(F64, 1e-150, 1e-9), (torch.float32, 1e-18, 1e-4), (torch.float32, 1e-25, 1e-4)])
def test_weights_may_all_be_tiny_or_huge(penalty, dtype, small, accuracy):
    """Their size has no influence on the point, nor on how exactly it is found."""
    x, w = cluster(3, 4, 9, dtype=dtype), torch.rand(3, 9, generator=generator(1), dtype=dtype) + 0.1
    for scale in (small, 1 / small):
        for a, b in zip(pulled(RobustPooling(penalty), x, w * scale)[:2], pulled(RobustPooling(penalty), x, w)[:2], strict=True):
            assert torch.allclose(a, b, atol=accuracy)


@pytest.mark.parametrize("kind", SCALED)
def test_units_in_which_the_curvature_overflows(kind):
    """α⁻⁴ does in float32: the point is found all the same."""
    x = cluster(3, 3, 20, seed=2, dtype=torch.float32)
    assert torch.allclose(RobustPooling(kind(1.3e-12))(x * 1e-12) / 1e-12, RobustPooling(kind(1.3))(x), atol=1e-4)


@every_penalty
@pytest.mark.parametrize(("dtype", "offset"), [(F64, 1e6), (torch.float32, 1e6)])
def test_far_from_the_origin(penalty, dtype, offset):
    """Good to a few roundings of the offset."""
    x = (cluster(3, 3, 20) + offset).to(dtype)
    s = RobustPooling(penalty).solution(x)
    assert bool((s.status == Status.CONVERGED).all())
    exact = RobustPooling(penalty)(x.double() - offset)
    assert (s.y.double() - offset - exact).abs().max() <= 8 * torch.finfo(dtype).eps * offset


@pytest.mark.parametrize("kind", [*REDESCENDING, PseudoHuber, Huber])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_outliers_a_million_away(kind, dtype):
    x = cluster(3, 3, 20, seed=4).clamp(-2.5, 2.5)
    x[:, :, :3] = 1e6
    s = RobustPooling(kind(3.0)).solution(x.to(dtype))
    assert bool((s.status == Status.CONVERGED).all())
    assert bool((s.y.abs() < 2).all())
    assert bool((s.workspace.weights[:, :3] < 1e-4).all())


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_scales_far_from_that_of_the_data(kind, dtype):
    x = cluster(3, 2, 12, seed=5, dtype=dtype)
    u, gradient = pulled(RobustPooling(kind(1e5)), x)
    assert torch.allclose(u, x.mean(2), atol=1e-4)
    assert torch.allclose(gradient, torch.full_like(gradient, 1 / 12), atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SolverWarning)  # no point may be near enough
        u, gradient = pulled(RobustPooling(kind(1e-5)), x)
    assert bool(u.isfinite().all() & gradient.isfinite().all())
    if kind not in (PseudoHuber, Huber):
        u = RobustPooling(kind(1e-5), restarts=12)(x)  # α sees one point at a time
        assert bool(((x - u.unsqueeze(2)).norm(dim=1).amin(1) < 1e-4).all())


# Sets


@every_penalty
@pytest.mark.parametrize("channels", [1, 4])
def test_one_point_is_its_own(penalty, channels):
    x, w = cluster(3, channels, 1), torch.tensor([[0.3], [1.0], [7.0]], dtype=F64)
    s = RobustPooling(penalty).solution(x, w)
    assert torch.allclose(s.y, x.squeeze(2), rtol=1e-15)
    assert bool((s.stationarity <= 1e-10).all())
    for row in range(channels):
        at = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(RobustPooling(penalty)(at, w)[:, row].sum(), at)
        assert torch.allclose(slope, torch.eye(channels, dtype=F64)[row].reshape(1, -1, 1).expand(3, -1, 1), atol=1e-14)


@pytest.mark.parametrize("kind", REDESCENDING)
def test_where_one_point_alone_pulls_the_pooled_point_is_that_one(kind):
    """The gradient is stationary to rounding of u, and said to be."""
    x = cluster(5, 5, 3, seed=1)
    s = RobustPooling(kind(1e-3), restarts=3).solution(x)
    assert bool((s.status == Status.CONVERGED).all())
    assert bool((s.stationarity <= 1e-10).all())
    assert bool(((x - s.y.unsqueeze(2)).norm(dim=1).amin(1) <= 1e-5).all())


@every_penalty
@pytest.mark.parametrize("value", [0.0, 2.0, 1e6 + 0.3])
def test_all_points_identical(penalty, value):
    u, gradient = pulled(RobustPooling(penalty, restarts=2), torch.full((2, 3, 10), value, dtype=F64))
    assert torch.allclose(u, torch.full((2, 3), value, dtype=F64), rtol=1e-15)
    assert torch.allclose(gradient, torch.full((2, 3, 10), 0.1, dtype=F64), atol=1e-14)


@every_penalty
def test_the_pooled_point_is_a_data_point(penalty):
    """Symmetric around one of them."""
    half = torch.randn(2, 3, 4, generator=generator(), dtype=F64)
    x = torch.cat([half, -half, torch.zeros(2, 3, 1, dtype=F64)], 2) * 0.3
    u, gradient = pulled(RobustPooling(penalty), x)
    assert torch.allclose(u, torch.zeros(2, 3, dtype=F64), atol=1e-9)
    assert bool(gradient.isfinite().all())
    assert torch.allclose(gradient.sum(2), torch.ones(2, 3, dtype=F64), atol=1e-8)  # moved data move the point


@every_penalty
def test_collinear_points(penalty):
    line, direction = torch.tensor([-2.0, -1.5, -0.6, 0.1, 0.3, 0.9, 4.0], dtype=F64), torch.tensor([2.0, 1.0, -2.0], dtype=F64) / 3
    u, gradient = pulled(RobustPooling(penalty), (direction.unsqueeze(1) * line)[None])
    assert torch.allclose(u @ direction, RobustPooling(penalty)(line[None, None]).squeeze(1), atol=1e-8)
    assert torch.allclose(u - (u @ direction).unsqueeze(1) * direction, torch.zeros(1, 3, dtype=F64), atol=1e-12)
    assert torch.allclose(gradient.sum(2), torch.ones(1, 3, dtype=F64), atol=1e-9)


@pytest.mark.parametrize("penalty", [Huber(0.8), Welsch(1.5), TruncatedQuadratic(1.5), Cauchy(0.8)], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 30000), (2, 1, 30000), (2, 1500, 4)])
def test_many_points_or_channels(penalty, shape):
    x = cluster(*shape, seed=7) if shape[1] < 10 else 0.01 * cluster(*shape, seed=7)
    s = RobustPooling(penalty).solution(at := x.clone().requires_grad_())
    (gradient,) = torch.autograd.grad(s.y.sum(), at)
    assert bool((s.status == Status.CONVERGED).all() & (s.stationarity <= 1e-10).all())
    assert torch.allclose(gradient.sum(2), torch.ones(shape[:2], dtype=F64), atol=1e-8)


@every_penalty
def test_empty_batches(penalty):
    x = torch.zeros(0, 3, 5, dtype=F64)
    u, gradient = pulled(RobustPooling(penalty, restarts=2), x)
    assert u.shape == (0, 3)
    assert gradient.shape == x.shape
    assert RobustPooling(penalty).solution(x).status.shape == (0,)
    assert RobustPooling(penalty, scalar=True)(torch.zeros(0, 3, 5, dtype=F64)).shape == (0, 3)


@every_penalty
def test_a_point_without_weight_has_a_gradient_in_its_weight_only(penalty):
    """−κ₁⟨d, H⁻¹v⟩: what it would do with some."""
    x, w = cluster(1, 2, 9, seed=3) * 0.3, torch.ones(1, 9, dtype=F64)
    w[0, 2] = 0.0
    layer = RobustPooling(penalty, tolerance=1e-14)
    _, of_x, of_w = pulled(layer, x, w)
    assert torch.equal(of_x[:, :, 2], torch.zeros(1, 2, dtype=F64))
    ahead = []
    for step in (1e-5, 2e-5):
        more = w.clone()
        more[0, 2] = step
        ahead.append(float((layer(x, more) - layer(x, w)).sum()) / step)
    assert float(of_w[0, 2]) == pytest.approx(2 * ahead[0] - ahead[1], rel=1e-4, abs=1e-7)


# The descent


@pytest.mark.parametrize("penalty", [*ALL[1:], Barron(1.5, 0.5)], ids=str)
def test_the_objective_never_rises(penalty):
    """Cut off after every number of iterations, from a start far off."""
    x = cluster(4, 3, 15, seed=2)
    cloud = Cloud(x, None, penalty, penalty.values())
    start = x[:, :, 1] + 0.5
    values = torch.stack([cloud.at(start).value, *(cloud.at(descend(cloud, start, 1e-12, n).u).value for n in range(1, 25))])
    assert bool((values.diff(dim=0) <= 1e-13 * values[0]).all())


@pytest.mark.parametrize("phi", [lambda s: s**2, lambda s: s + 2 * s.sin(), lambda s: (s + 1e-6) ** 0.75, torch.tanh, lambda s: -torch.exp(-s)])
@pytest.mark.parametrize("restarts", [0, 4])
def test_functions_of_ones_own(phi, restarts):
    """Also those that are not concave in s, for which reweighted means alone may go up."""
    x = 0.5 * cluster(3, 2, 9)
    s = RobustPooling(phi, restarts=restarts).solution(at := x.clone().requires_grad_())
    assert bool((s.status == Status.CONVERGED).all())
    u = s.y.detach().clone().requires_grad_()
    values = phi((x - u.unsqueeze(2)).square().sum(1)).sum(1)
    (slope,) = torch.autograd.grad(values.sum(), u)
    assert slope.abs().max() < 1e-8
    nearby = [phi((x - (u + 0.01 * d).unsqueeze(2)).square().sum(1)).sum(1) for d in torch.randn(20, 3, 2, generator=generator(), dtype=F64)]
    assert all(bool((value >= values - 1e-12).all()) for value in nearby)
    assert bool(torch.autograd.grad(s.y.sum(), at)[0].isfinite().all())


def test_convex_by_ones_word():
    class Steep(Penalty):
        convex = True

        def phi(self, s):
            return s + 0.1 * s**2

    x = 0.5 * cluster(3, 2, 9)
    s = RobustPooling(Steep()).solution(x)
    assert torch.allclose(s.y, RobustPooling(lambda s: s + 0.1 * s**2)(x), atol=1e-8)
    assert bool((s.status == Status.CONVERGED).all())


def test_a_saddle_point_is_left():
    """Two clusters, and a start exactly in the middle."""
    x = torch.tensor([[[-1.0, -1.1, 1.0, 1.1], [0.0, 0.1, 0.0, 0.1]]], dtype=F64)
    cloud, start = Cloud(x, None, Welsch(0.8), (0.8,)), torch.tensor([[0.0, 0.05]], dtype=F64)
    found = descend(cloud, start, 1e-12, 100)
    assert bool(found.converged.all())
    assert float(found.u[0, 0].abs()) > 0.8
    assert float(cloud.at(found.u).value) < float(cloud.at(start).value) - 0.1
