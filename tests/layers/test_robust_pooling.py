"""The pooling layer: what it finds against other ways to the same point, what every pooled point obeys, shapes, options, bad input."""

import math
import warnings

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st

from declarative import SolverError, SolverWarning, Status
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


# Statuses


def test_failure_policies():
    x = points(3, 2, 20)
    x[1] = 1.0
    hard = {"max_iterations": 1, "tolerance": 1e-12}
    with pytest.warns(SolverWarning, match=r"2 of 3 samples \(0, 2\): did not converge within max_iterations, at a relative gradient of"):
        s = RobustPooling(Cauchy(0.3), **hard).solution(x)
    assert s.status.tolist() == [Status.MAX_ITERATIONS, Status.CONVERGED, Status.MAX_ITERATIONS]
    assert s.iterations.tolist() == [1, 0, 1]
    with pytest.raises(SolverError, match="raise max_iterations"):
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


def test_no_warning_where_nothing_is_wrong():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for penalty in (*CONVEX, *REDESCENDING):
            RobustPooling(penalty, restarts=2)(points(3, 2, 9) * 0.4)
