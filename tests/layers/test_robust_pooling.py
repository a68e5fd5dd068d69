"""The pooling layer: what it finds against other ways to the same point, what every pooled point obeys, shapes, options, bad input."""

import math
import warnings

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from declarative import SolverError, SolverWarning, Status
from declarative.differentiation import Implicit
from declarative.layers import RobustPooling
from declarative.layers.pooling import Barron, Cauchy, GemanMcClure, Huber, Pooled, PseudoHuber, Quadratic, TruncatedQuadratic, Welsch
from problems.robust_pooling import huber_on_a_line, lines, with_outliers

F64 = torch.float64
TIGHT = 1e-13
CONVEX = (PseudoHuber(0.8), Huber(0.8), Barron(1.5, 0.7))
REDESCENDING = (Welsch(1.2), TruncatedQuadratic(1.5), GemanMcClure(1.5), Cauchy(0.6), Barron(-1.0, 1.2), Barron(0.5, 0.7), Barron(-math.inf, 1.2))
every_penalty = pytest.mark.parametrize("penalty", [Quadratic(), *CONVEX, *REDESCENDING], ids=str)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def points(*shape, seed=0, far=6.0):
    """One in five is an outlier."""
    batch, channels, count = shape
    return with_outliers(generator(seed), batch, channels, count, far)


def objective(penalty, x, u, weights=None):
    """Σ wφ for one sample, as numpy and scipy want it."""
    s = (x - torch.as_tensor(u, dtype=F64).unsqueeze(1)).square().sum(0)
    phi = penalty.phi(s, *penalty.values())
    return float((phi if weights is None else weights * phi).sum())


def slope(penalty, x, u, weights=None):
    """Its gradient, and the size of the terms."""
    toward = u.unsqueeze(2) - x
    s = toward.square().sum(1)
    kappa1 = penalty.kappa1(s, *penalty.values()) * (1.0 if weights is None else weights)
    return (toward * kappa1.unsqueeze(1)).sum(2), (kappa1 * s.sqrt()).sum(1)


# Values


@every_penalty
@pytest.mark.parametrize("shape", [(5, 3, 20), (5, 1, 11), (5, 12, 6)])
def test_stationary_and_told_so(penalty, shape):
    x = points(*shape) * (0.3 if shape[1] > 3 else 1.0)
    w = torch.rand(shape[0], shape[2], generator=generator(1), dtype=F64) + 0.1
    s = RobustPooling(penalty).solution(x, w)
    gradient, size = slope(penalty, x, s.y, w)
    assert bool((s.status == Status.CONVERGED).all())
    assert bool((s.stationarity <= 1e-10).all())
    assert bool((gradient.norm(dim=1) <= 1e-10 * size + 1e-14).all())
    assert isinstance(s.workspace, Pooled)
    values = torch.tensor([objective(penalty, *sample) for sample in zip(x, s.y, w, strict=True)], dtype=F64)
    assert torch.allclose(s.workspace.objective, values, rtol=1e-12)
    assert torch.allclose((s.workspace.weights.unsqueeze(1) * x).sum(2), s.y, atol=1e-8)  # the reweighted mean that it is
    assert torch.allclose(s.workspace.weights.sum(1), torch.ones(5, dtype=F64))


@pytest.mark.parametrize("penalty", CONVEX, ids=str)
def test_convex_penalties_against_scipy(penalty):
    x = points(4, 3, 12)
    u, found = RobustPooling(penalty)(x), RobustPooling(penalty).solution(x).workspace.objective
    for sample, mine, value in zip(x, u, found, strict=True):
        best = scipy.optimize.minimize(lambda at, sample=sample: objective(penalty, sample, at), sample.mean(1).numpy(), method="BFGS", tol=1e-10)
        assert float(value) <= best.fun + 1e-12
        assert np.allclose(mine, best.x, atol=1e-5)


@pytest.mark.parametrize("penalty", REDESCENDING, ids=str)
@pytest.mark.parametrize("channels", [1, 2])
def test_other_penalties_against_many_starts(penalty, channels):
    """A cluster of seven among ten points: no start of scipy's ends lower."""
    x = torch.cat([0.5 * points(3, channels, 7, far=0.0), points(3, channels, 3, seed=1)], 2)
    found = RobustPooling(penalty).solution(x).workspace.objective
    for sample, value in zip(x, found, strict=True):
        starts = [sample[:, k].numpy() for k in range(10)]
        best = min(scipy.optimize.minimize(lambda at, sample=sample: objective(penalty, sample, at), u, method="Nelder-Mead").fun for u in starts)
        assert float(value) <= best + 1e-9


def all_windows(x, alpha, w):
    """The scalar truncated quadratic by brute force: the best weighted mean of any run of neighbours, judged by the objective itself."""
    order = np.argsort(x)
    x, w = x[order], w[order]
    means = [np.average(x[i:j], weights=w[i:j]) for i in range(len(x)) for j in range(i + 1, len(x) + 1)]
    return min((w * np.minimum((m - x) ** 2, alpha**2) / 2).sum() for m in means)


@given(x=st.lists(st.integers(-30, 30), min_size=1, max_size=9), alpha=st.floats(0.1, 20), seed=st.integers(0, 9))
def test_scalar_truncated_quadratic_is_exact(x, alpha, seed):
    x = np.array(x) / 3 + 0.01 * np.random.default_rng(seed).standard_normal(len(x))
    w = np.random.default_rng(seed).uniform(0.5, 1.5, len(x))
    layer = RobustPooling(TruncatedQuadratic(alpha))
    s = layer.solution(torch.from_numpy(x)[None, None], torch.from_numpy(w)[None])
    assert float(s.workspace.objective) <= all_windows(x, alpha, w) + 1e-9
    assert float(s.workspace.objective) == pytest.approx(objective(layer.penalty, torch.from_numpy(x)[None], s.y[0], torch.from_numpy(w)), abs=1e-12)


@given(seed=st.integers(0, 10**6))
def test_huber_on_a_line_by_sorting(seed):
    x, alpha = lines(4, generator(seed), F64)
    assert torch.allclose(RobustPooling(Huber(), tolerance=TIGHT)(x, alpha=alpha), huber_on_a_line(x, alpha), atol=1e-12)
    many, wide = points(1, 1, 301, seed=seed), torch.tensor([0.7], dtype=F64)
    assert torch.allclose(RobustPooling(Huber(0.7), tolerance=TIGHT)(many), huber_on_a_line(many, wide), atol=1e-12)


def test_limits():
    x = points(3, 2, 11)
    for kind in (PseudoHuber, Huber, Welsch, TruncatedQuadratic, GemanMcClure, Cauchy):
        assert torch.allclose(RobustPooling(kind(1e6))(x), x.mean(2), atol=1e-9)
    assert torch.equal(RobustPooling(Quadratic())(x), x.mean(2))
    assert torch.allclose(RobustPooling(Huber(1e-6), scalar=True)(x), x.median(2).values, atol=1e-5)
    assert torch.allclose(RobustPooling(Barron(-math.inf, 1.2))(x), RobustPooling(Welsch(1.2))(x), atol=1e-9)


# What every pooled point obeys


@every_penalty
@given(seed=st.integers(0, 10**6))
def test_equivariance(penalty, seed):
    """Turned, moved or permuted data turn and move the point; a point twice is a weight of 2; a mask leaves out."""
    x = points(2, 3, 10, seed=seed) * torch.tensor([0.4], dtype=F64)
    layer = RobustPooling(penalty, restarts=3, tolerance=TIGHT)
    u = layer(x)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator(seed), dtype=F64)).Q
    shift = torch.tensor([[3.0], [-2.0], [7.0]], dtype=F64)
    assert torch.allclose(layer(turn @ x), u @ turn.mT, atol=1e-8)
    assert torch.allclose(layer(x + shift), u + shift.squeeze(1), atol=1e-8)
    assert torch.allclose(layer(x[:, :, torch.randperm(10, generator=generator(seed))]), u, atol=1e-8)
    twice = torch.ones(2, 10, dtype=F64)
    twice[:, 3] = 2.0
    assert torch.allclose(layer(torch.cat([x, x[:, :, 3:4]], 2)), layer(x, twice), atol=1e-8)
    mask = torch.arange(10).expand(2, 10) != 4
    assert torch.allclose(layer(x, mask=mask), layer(x[:, :, mask[0]]), atol=1e-8)
    assert torch.allclose(layer(x, 3.0 * twice), layer(x, twice), atol=1e-8)


@pytest.mark.parametrize("kind", [PseudoHuber, Huber, Welsch, TruncatedQuadratic, GemanMcClure, Cauchy, lambda scale: Barron(-1.0, scale)])
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 50.0, 1e6])
def test_scale_of_data_and_penalty(kind, scale):
    x = points(3, 2, 12)
    assert torch.allclose(RobustPooling(kind(1.3 * scale))(x * scale) / scale, RobustPooling(kind(1.3))(x), atol=1e-8)


@every_penalty
@pytest.mark.parametrize(("scale", "of_alpha"), [(50.0, 1.0), (1e-3, 1e-3)])
def test_scaling_63_of_64_samples_changes_no_other_result(penalty, scale, of_alpha):
    x, alpha = points(64, 3, 20), torch.full((64,), 1.2, dtype=F64)
    changed, scales = x * scale, alpha * of_alpha
    changed[17], scales[17] = x[17], alpha[17]
    named = {} if not penalty.names or isinstance(penalty, Barron) else {"alpha": alpha}
    layer = RobustPooling(penalty, restarts=2, on_failure="nan")
    (one, two), slopes = (x.clone().requires_grad_(), changed.clone().requires_grad_()), []
    for at, given_alpha in ((one, alpha), (two, scales)):
        u = layer(at, **({"alpha": given_alpha} if named else {}))
        slopes.append((u[17].detach(), torch.autograd.grad(u[17].sum(), at)[0][17]))
    assert torch.equal(slopes[0][0], slopes[1][0])
    assert torch.equal(slopes[0][1], slopes[1][1])


def test_restarts_find_what_is_off_the_way_and_report_ties():
    """Three clusters, the one with most points far from mean and median."""
    g = generator(3)
    centres = torch.tensor([[-8.0, 0.0], [0.0, 0.5], [0.4, -0.5], [9.0, 9.0]], dtype=F64)
    x = torch.cat([c.unsqueeze(1) + 0.1 * torch.randn(2, n, generator=g, dtype=F64) for c, n in zip(centres, (4, 4, 4, 5), strict=True)], 1)[None]
    values = [float(RobustPooling(Welsch(0.3), restarts=r).solution(x).workspace.objective) for r in (0, 8, 17, 100)]
    assert values == sorted(values, reverse=True)
    assert torch.allclose(RobustPooling(Welsch(0.3), restarts=17)(x), centres[3:], atol=0.2)
    half = 0.1 * torch.randn(1, 2, 6, generator=g, dtype=F64) + 5.0
    for penalty in REDESCENDING:
        s = RobustPooling(penalty, restarts=4).solution(torch.cat([torch.cat([half, -half], 2), torch.cat([half, 0.9 * half], 2)]))
        assert s.workspace.tied.tolist() == [True, False]
    s = RobustPooling(TruncatedQuadratic(1.0)).solution(torch.tensor([[[-5.0, -4.9, 4.9, 5.0]], [[-5.0, -4.9, 5.0, 9.0]]], dtype=F64))
    assert s.workspace.tied.tolist() == [True, False]


def test_init_is_one_more_start():
    x = torch.cat([points(1, 2, 5, far=0.0) * 0.1, points(1, 2, 4, far=0.0) * 0.1 + 8.0], 2)
    layer = RobustPooling(PseudoHuber(0.5))
    s = layer.solution(x)
    again = layer.solution(x, init=s)
    assert int(again.iterations) <= 1 < int(s.iterations)
    assert torch.allclose(again.y, s.y, atol=1e-9)
    lonely = torch.full((1, 2, 12), 8.0, dtype=F64) * torch.tensor([-1.0, 1.0] * 6, dtype=F64)
    with pytest.warns(SolverWarning, match="no point is near enough"):
        assert RobustPooling(TruncatedQuadratic(1.0)).solution(lonely).status.item() == Status.NO_INLIERS
    assert torch.allclose(RobustPooling(TruncatedQuadratic(1.0))(lonely, init=torch.tensor([[8.0, 8.1]], dtype=F64)), lonely[:, :, 1])


# Shapes


def test_dims_in_place_of_adaptive_average_pooling():
    x = torch.randn(2, 3, 4, 5, generator=generator(), dtype=F64)
    assert torch.allclose(RobustPooling(Quadratic(), dims=(-2, -1), keepdim=True)(x), nn.AdaptiveAvgPool2d(1)(x))
    layer, flat = RobustPooling(Cauchy(0.7)), x.flatten(2)
    u = layer(flat)
    assert u.shape == (2, 3)
    assert torch.allclose(layer(x), u)
    assert torch.allclose(layer(flat[0]), u[0])
    assert torch.allclose(RobustPooling(Cauchy(0.7), dims=(1, 2))(x.movedim(1, -1)), u, atol=1e-12)
    assert torch.allclose(RobustPooling(Cauchy(0.7), dims=-2)(flat.mT), u, atol=1e-12)
    assert RobustPooling(Cauchy(0.7), dims=(1, 2), keepdim=True)(x.movedim(1, -1)).shape == (2, 1, 1, 3)
    deep = flat.reshape(2, 1, 3, 20).expand(2, 4, 3, 20)
    assert torch.allclose(RobustPooling(Cauchy(0.7), dims=-1)(deep), u.unsqueeze(1).expand(2, 4, 3), atol=1e-12)
    assert torch.allclose(layer(flat.movedim(0, 2), in_dims=2), u, atol=1e-12)
    assert torch.allclose(layer(flat[1], in_dims=None), u[1])
    assert torch.allclose(RobustPooling(Cauchy(0.7), scalar=True, dims=0)(flat[0, 0]), layer(flat[:1, :1])[0, 0])


def test_scalar_pools_each_channel():
    x, w = points(2, 3, 9), torch.rand(2, 9, generator=generator(), dtype=F64)
    each, mask = torch.rand(2, 3, 9, generator=generator(), dtype=F64), torch.rand(2, 3, 9, generator=generator(), dtype=F64) > 0.3
    layer, one = RobustPooling(Welsch(1.2), scalar=True, tolerance=TIGHT), RobustPooling(Welsch(1.2), tolerance=TIGHT)
    s = layer.solution(x, w)
    assert s.y.shape == s.status.shape == s.workspace.objective.shape == (2, 3)
    assert s.workspace.weights.shape == (2, 3, 9)
    for c in range(3):
        assert torch.allclose(s.y[:, c : c + 1], one(x[:, c : c + 1], w), atol=1e-10)
        assert torch.allclose(layer(x, each)[:, c : c + 1], one(x[:, c : c + 1], each[:, c]), atol=1e-10)
        assert torch.allclose(layer(x, mask=mask)[:, c : c + 1], one(x[:, c : c + 1], mask=mask[:, c]), atol=1e-10)
        alpha = torch.tensor([1.0, 1.2, 1.4], dtype=F64)
        assert torch.allclose(layer(x, alpha=alpha)[:, c : c + 1], one(x[:, c : c + 1], alpha=alpha[c]), atol=1e-10)


def test_weights_and_masks_broadcast():
    x = points(2, 3, 20)
    images, layer = x.reshape(2, 3, 4, 5), RobustPooling(Huber(0.7), tolerance=TIGHT)
    w = torch.rand(4, 5, generator=generator(), dtype=F64)
    assert torch.allclose(layer(images, w), layer(x, w.reshape(1, 20).expand(2, 20)), atol=1e-12)
    rows = torch.tensor([[True], [False], [True], [True]])
    assert torch.allclose(layer(images, mask=rows), layer(images[:, :, [0, 2, 3]]), atol=1e-12)
    channels_last = RobustPooling(Huber(0.7), dims=(1, 2), tolerance=TIGHT)
    assert torch.allclose(channels_last(images.movedim(1, 3), w), layer(images, w), atol=1e-12)


@pytest.mark.parametrize("penalty", [Quadratic(), Huber(0.7), Welsch(1.2), TruncatedQuadratic(1.5)], ids=str)
def test_what_a_mask_leaves_out_may_hold_anything(penalty):
    x, w = points(3, 2, 8), torch.rand(3, 8, generator=generator(), dtype=F64) + 0.2
    mask = torch.arange(8) < torch.tensor([[8], [5], [1]])
    ragged = torch.where(mask.unsqueeze(1), x, torch.nan).requires_grad_()
    layer = RobustPooling(penalty, tolerance=TIGHT)
    u = layer(ragged, w, mask=mask)
    (gradient,) = torch.autograd.grad(u.square().sum(), ragged)
    for k, count in enumerate((8, 5, 1)):
        own = x[k : k + 1, :, :count].clone().requires_grad_()
        alone = layer(own, w[k : k + 1, :count])
        assert torch.allclose(u[k], alone[0], atol=1e-11)
        assert torch.allclose(gradient[k, :, :count], torch.autograd.grad(alone.square().sum(), own)[0][0], atol=1e-9)
        assert torch.equal(gradient[k, :, count:], torch.zeros(2, 8 - count, dtype=F64))


# Statuses, options, bad input


def test_failure_policies():
    x = points(3, 2, 20)
    x[1] = 1.0
    hard = {"max_iterations": 1, "tolerance": 1e-12}
    with pytest.warns(SolverWarning, match=r"2 of 3 samples \(0, 2\): did not converge within max_iterations, at a relative gradient of"):
        s = RobustPooling(Cauchy(0.3), **hard).solution(x)
    assert s.status.tolist() == [Status.MAX_ITERATIONS, Status.CONVERGED, Status.MAX_ITERATIONS]
    assert s.iterations.tolist() == [1, 0, 1]
    with pytest.raises(SolverError, match="Raise max_iterations"):
        RobustPooling(Cauchy(0.3), on_failure="raise", **hard)(x)
    u = RobustPooling(Cauchy(0.3), on_failure="nan", **hard)(at := x.clone().requires_grad_())
    assert torch.isnan(u).all(1).tolist() == [True, False, True]
    (gradient,) = torch.autograd.grad(u[1].sum(), at)
    assert bool(torch.isfinite(gradient).all())
    loose = RobustPooling(Cauchy(0.3), tolerance=1e-2).solution(x)
    assert bool((loose.stationarity <= 1e-2).all() & (loose.iterations <= RobustPooling(Cauchy(0.3)).solution(x).iterations).all())


@every_penalty
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_sample_that_is_not_finite_stays_alone(penalty, bad):
    x = points(3, 2, 9)
    expected = RobustPooling(penalty)(x)
    x[1, 0, 2] = bad
    with pytest.warns(SolverWarning, match=r"1 of 3 samples \(1\): NaN or inf"):
        s = RobustPooling(penalty).solution(at := x.clone().requires_grad_())
    assert s.status.tolist() == [Status.CONVERGED, Status.NON_FINITE, Status.CONVERGED]
    assert torch.equal(s.y[[0, 2]], expected[[0, 2]])
    assert bool(s.y[1].isnan().all())
    (gradient,) = torch.autograd.grad(s.y[[0, 2]].square().sum(), at)
    assert bool(gradient.isfinite().all())


def test_a_penalty_that_falls_has_no_minimum():
    with pytest.warns(SolverWarning, match="unbounded below"):
        s = RobustPooling(lambda s: -s).solution(points(2, 2, 5))
    assert s.status.tolist() == [Status.UNBOUNDED] * 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": [[1.0]]}, TypeError, "x must be a floating tensor"),
        ({"x": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "x must be a floating tensor"),
        ({"x": torch.zeros(3)}, ValueError, "x must have shape"),
        ({"x": torch.zeros(2, 3, 0)}, ValueError, "no points to pool"),
        ({"x": torch.zeros(2, 0, 3)}, ValueError, "no channels to pool"),
        ({"weights": [1.0]}, TypeError, "weights must be a tensor"),
        ({"weights": torch.ones(4, dtype=F64)}, TypeError, "weights has dtype torch.float64"),
        ({"weights": torch.ones(5)}, ValueError, r"weights must broadcast to \(2, 4\)"),
        ({"weights": -torch.ones(4)}, ValueError, "weights must be finite and not negative, got -1"),
        ({"weights": torch.full((4,), torch.nan)}, ValueError, "weights must be finite"),
        ({"mask": torch.ones(4)}, TypeError, "mask must be a bool tensor"),
        ({"mask": torch.ones(5, dtype=torch.bool)}, ValueError, "mask must broadcast"),
        ({"alpha": 1.0}, TypeError, "alpha must be a tensor"),
        ({"alpha": torch.zeros(())}, ValueError, "alpha must be positive"),
        ({"alpha": torch.ones(3)}, ValueError, r"alpha must broadcast to \(2,\)"),
        ({"alpha": torch.ones((), dtype=F64)}, TypeError, "alpha has dtype"),
        ({"init": [0.0]}, TypeError, "init must be a tensor"),
        ({"init": torch.zeros(2)}, ValueError, r"init must have shape \(2, 3\)"),
        ({"in_dims": (0, 0)}, None, ""),
    ],
)
def test_bad_calls(arguments, error, message):
    arguments = {"x": torch.zeros(2, 3, 4)} | arguments
    if error is None:
        assert torch.equal(RobustPooling()(**arguments), torch.zeros(2, 3))
        return
    with pytest.raises(error, match=message):
        RobustPooling()(**arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"restarts": -1}, ValueError, "restarts must be"),
        ({"restarts": True}, ValueError, "restarts must be"),
        ({"dims": "all"}, TypeError, "dims must be"),
        ({"dims": ()}, TypeError, "dims must be"),
        ({"tolerance": 0.0}, ValueError, "tolerance must be"),
        ({"max_iterations": 0}, ValueError, "max_iterations must be"),
        ({"on_failure": "ignore"}, ValueError, "on_failure=...* must be one of"),
        ({"differentiation": "implicit"}, TypeError, "differentiated by Implicit"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        RobustPooling(**options)
    assert isinstance(RobustPooling(differentiation=Implicit()).differentiation, Implicit)


@pytest.mark.parametrize(("dims", "message"), [(3, "which has shape"), ((-1, 2), "twice"), ((0, 1, 2), "leaves no channels")])
def test_dims_that_do_not_fit(dims, message):
    with pytest.raises(ValueError, match=message):
        RobustPooling(dims=dims)(torch.zeros(2, 3, 4))


def test_no_warning_where_nothing_is_wrong():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for penalty in (*CONVEX, *REDESCENDING):
            RobustPooling(penalty, restarts=2)(points(3, 2, 9) * 0.4)
