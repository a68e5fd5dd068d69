"""Transport between clouds in tiles, against a dense computation that iterates in the log domain and is differentiated by autograd."""

import math

import pytest
import torch

from benchmarks.timing import peak_bytes
from declarative.errors import CapturedTensorError, SolverError, SolverWarning
from declarative.layers import sinkhorn_divergence
from declarative.layers.transport import multiscale
from declarative.layers.transport.ground import SquaredEuclidean
from declarative.layers.transport.multiscale import coarsen, spatial_order
from declarative.layers.transport.point_cloud import CloudOptions, cloud_divergence, cloud_loss, cloud_value
from declarative.layers.transport.tiles import Cloud

F64 = torch.float64
EXACT = CloudOptions(tolerance=1e-13, tile=7)  # 7 divides neither 40 nor 30


def powers(x, y):
    """Σ |x − y|^1.5, smooth enough for second derivatives where points differ."""
    return (x.unsqueeze(-2) - y.unsqueeze(-3)).abs().pow(1.5).sum(-1)


def skewed(x, y):
    """A cost whose arguments may not be exchanged."""
    return (x.unsqueeze(-2) - 0.7 * y.unsqueeze(-3) + 0.1).square().sum(-1)


def instance(n=40, m=30, dtype=F64, epsilon=0.1):
    x, y = torch.rand(n, 3, dtype=F64), 0.3 + 0.8 * torch.rand(m, 3, dtype=F64)
    a, b = torch.rand(n, dtype=F64) + 0.1, torch.rand(m, dtype=F64) + 0.1
    inputs = (x, y, a / a.sum(), b / b.sum(), torch.tensor(epsilon, dtype=F64))
    return tuple(t.to(dtype).requires_grad_() for t in inputs)


def dense(x, y, a, b, epsilon, cost=None, loss=False, steps=100):
    costs = (x.unsqueeze(1) - y).square().sum(-1) if cost is None else cost(x, y)
    mass = (a.sum() + b.sum()) / 2
    a, b = a * mass / a.sum(), b * mass / b.sum()
    psi = torch.zeros_like(b)
    for _ in range(steps):
        phi = -epsilon * torch.logsumexp(b.log() + (psi - costs) / epsilon, 1)
        psi = -epsilon * torch.logsumexp((a.log() + phi / epsilon).unsqueeze(1) - costs / epsilon, 0)
    exponents = (phi.unsqueeze(1) + psi - costs) / epsilon
    plan = a.unsqueeze(1) * b * exponents.exp()
    return (plan * costs).sum() + (0 if loss else epsilon * (plan * exponents).sum())


def dense_divergence(x, y, a, b, epsilon, cost=None, steps=100):
    across, *among = (dense(p, q, r, c, epsilon, cost, False, steps) for p, q, r, c in ((x, y, a, b), (x, x, a, a), (y, y, b, b)))
    return across - sum(among) / 2


def assert_same(found, wanted, tolerance):
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        assert float((one - other).detach().abs().max()) <= tolerance * max(1e-3, float(other.detach().abs().max()))


def directions(inputs):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(t.shape, generator=generator, dtype=F64).to(t.dtype) for t in inputs]


def derivatives(value, inputs, order):
    """The gradient, its product with a direction differentiated again, and so on."""
    found = []
    for _ in range(order):
        gradient = torch.autograd.grad(value, inputs, create_graph=True)
        found.append(gradient)
        value = sum((g * v).sum() for g, v in zip(gradient, directions(inputs), strict=True))
    return found


@pytest.mark.parametrize(("loss", "order"), [(False, 3), (True, 2)])
@pytest.mark.parametrize("cost", [None, powers, skewed])
def test_derivatives_in_all_inputs(cost, loss, order):
    inputs = instance()
    value, wanted = (cloud_loss if loss else cloud_value)(*inputs, cost, EXACT), dense(*inputs, cost, loss)
    assert_same([value], [wanted], 1e-12)
    for found, gradient in zip(derivatives(value, inputs, order), derivatives(wanted, inputs, order), strict=True):
        assert_same(found, gradient, 1e-9)


@pytest.mark.parametrize("cost", [None, skewed])
def test_divergence(cost):
    inputs = instance()
    value, wanted = cloud_divergence(*inputs, cost, EXACT), dense_divergence(*inputs, cost)
    assert_same([value], [wanted], 1e-12)
    for found, gradient in zip(derivatives(value, inputs, 2), derivatives(wanted, inputs, 2), strict=True):
        assert_same(found, gradient, 1e-9)


@pytest.mark.parametrize("function", [cloud_value, cloud_loss, cloud_divergence])
def test_finite_differences(function):
    inputs = instance(9, 8, epsilon=0.3)
    torch.autograd.gradcheck(lambda *t: function(*t, None, EXACT), inputs, eps=1e-5, atol=1e-8, rtol=1e-6)


def test_float32():
    inputs = instance(dtype=torch.float32)
    exact = [t.detach().to(F64).requires_grad_() for t in inputs]
    for function, wanted in ((cloud_value, dense(*exact)), (cloud_loss, dense(*exact, None, True)), (cloud_divergence, dense_divergence(*exact))):
        value = function(*inputs, None, CloudOptions(tolerance=2e-6, tile=7))
        assert value.dtype == torch.float32
        assert abs(float(value.detach()) - float(wanted.detach())) < 1e-5
        for one, other in zip(derivatives(value, inputs, 2), derivatives(wanted, exact, 2), strict=True):
            assert_same(one, [t.float() for t in other], 5e-4)


def test_single_points():
    for n, m in ((1, 1), (1, 5), (6, 1)):
        x, y, *_ = instance(n, m)
        value = cloud_value(x, y, None, None, 0.1)
        expected = (x.unsqueeze(1) - y).square().sum(-1).mean()
        assert_same([value], [expected], 1e-12)
        assert_same(torch.autograd.grad(value, (x, y)), torch.autograd.grad(expected, (x, y)), 1e-12)


def test_points_without_weight():
    """They change nothing, and their weights have the gradient that the weights of points of nearly no weight tend to."""
    x, y, a, b, epsilon = (t.detach() for t in instance())
    a[[0, 7]], b[[3, 29]] = 0, 0
    x[7] = y[3] = 30.0  # far from all that has weight, like points that pad a cloud
    a, b = a / a.sum(), b / b.sum()
    some, others = a > 0, b > 0
    inputs = [t.clone().requires_grad_() for t in (x, y, a, b, epsilon)]
    kept = [t.clone().requires_grad_() for t in (x[some], y[others], a[some], b[others], epsilon)]
    for function, reference in ((cloud_value, dense), (cloud_loss, lambda *t: dense(*t, None, True))):
        value, wanted = function(*inputs, None, EXACT), reference(*kept)
        assert_same([value], [wanted], 1e-12)
        order = derivatives(value, inputs, 1)[0], derivatives(wanted, kept, 1)[0]
        assert_same([order[0][0][some], order[0][1][others], order[0][2][some], order[0][3][others], order[0][4]], order[1], 1e-9)
        assert not bool(order[0][0][~some].any())
    near = [t.clone() for t in (x, y, a, b, epsilon)]
    near[2][0], near[3][29] = 1e-9, 1e-9
    step = 1e-6
    moved = [near[2].clone(), near[2].clone()]
    moved[0][0] += step
    moved[1][5] += step
    far = [float(cloud_loss(near[0], near[1], t / t.sum(), near[3] / near[3].sum(), epsilon.detach(), None, EXACT)) for t in moved]
    (gradient,) = torch.autograd.grad(cloud_loss(*inputs, None, EXACT), inputs[2])
    assert abs((far[0] - far[1]) / step - float(gradient[0] - gradient[5])) < 1e-4


def test_second_derivatives_without_weight():
    x, y, a, b, epsilon = (t.detach() for t in instance(12, 10))
    a[4], b[2] = 0, 0
    inputs = [t.requires_grad_() for t in (x, y, a / a.sum(), b / b.sum(), epsilon)]

    def gradients(*tensors):
        return torch.autograd.grad(cloud_value(*tensors, None, EXACT), tensors, create_graph=True)

    v = directions(inputs)
    v[2][4], v[3][2] = abs(v[2][4]), abs(v[3][2])  # weights stay nonnegative
    found = torch.autograd.grad(sum((g * d).sum() for g, d in zip(gradients(*inputs), v, strict=True)), inputs)
    step = 1e-6
    far = [gradients(*((t + k * step * d).detach().requires_grad_() for t, d in zip(inputs, v, strict=True))) for k in (1, 2)]
    near = gradients(*inputs)
    # One-sided, of second order.
    wanted = [(4 * one - two - 3 * zero) / (2 * step) for zero, one, two in zip(near, *far, strict=True)]
    assert_same(found, wanted, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-3, 10.0, 1e4])
def test_extreme_epsilon(dtype, epsilon):
    inputs = instance(dtype=dtype, epsilon=epsilon)
    value = cloud_value(*inputs, None, CloudOptions(tile=7))
    costs = (inputs[0].unsqueeze(1) - inputs[1]).square().sum(-1).detach()
    assert 0 <= float(value.detach()) < float((inputs[2] @ costs @ inputs[3]).detach()) * (1 + 1e-5)
    for gradient in torch.autograd.grad(value, inputs):
        assert bool(torch.isfinite(gradient).all())
    if epsilon == 1e4:
        assert_same([value], [inputs[2] @ costs @ inputs[3]], 1e-4)


def test_extreme_costs():
    """Far from the origin, and one point far from all others, whose scalings leave every floating-point range."""
    x, y, a, b, epsilon = (t.detach() for t in instance())
    x[3] = 100.0
    near = cloud_value(x, y, a, b, epsilon)
    far = cloud_value(x + 1e4, y + 1e4, a, b, epsilon)
    assert_same([near, far], [dense(x, y, a, b, epsilon), near], 1e-9)


def test_coarse_to_fine():
    inputs = instance(301, 250)
    options = CloudOptions(tolerance=1e-12, coarsest=20)
    assert_same([cloud_divergence(*inputs, None, options)], [dense_divergence(*inputs)], 1e-10)
    assert_same([cloud_value(*inputs, skewed, options)], [dense(*inputs, skewed)], 1e-10)


def test_merging():
    points, weights = torch.rand(301, 3, dtype=F64), torch.rand(301, dtype=F64)
    order = spatial_order(points)
    assert order.sort().values.tolist() == list(range(301))
    assert (points[order][1:] - points[order][:-1]).norm(dim=1).mean() < 0.5 * (points[1:] - points[:-1]).norm(dim=1).mean()
    for average in (True, False):
        merged, mass, group = coarsen(points[order], weights[order], average)
        assert merged.shape == (76, 3)
        assert_same([mass.sum()], [weights.sum()], 1e-14)
        assert bool((group[1:] >= group[:-1]).all())
        assert (points[order] - merged[group]).norm(dim=1).mean() < 0.25
        if average:
            assert_same([mass @ merged], [weights @ points], 1e-13)


def test_sweep_finds_its_own_scale():
    """However wrong the expected φ: rows are met."""
    x, y, a, b, epsilon = (t.detach() for t in instance())
    cloud = Cloud(SquaredEuclidean(), x, y, a, b, 1 / epsilon, 7)
    psi = torch.randn(30, dtype=F64)
    wanted, sums = cloud.sweep(torch.zeros(40, dtype=F64), psi, F64)
    for dtype, tolerance in ((F64, 1e-10), (torch.float32, 1e-5)):
        for offset in (-1e3, 30.0, 1e5):
            found = cloud.sweep(torch.full((40,), offset, dtype=F64), psi, dtype)
            assert_same(found, (wanted, sums), tolerance)
    assert_same([sums.sum()], [a.sum()], 1e-12)


def test_torch_func():
    x, y, a, b, epsilon = (t.detach() for t in instance(4, 3, epsilon=0.3))

    def tiled(x, b):
        return sinkhorn_divergence(x, y, a, b / b.sum(), epsilon, tiled=True, tolerance=1e-12)

    def stored(k, t):
        inputs = (t, y, a, b) if k == 0 else (x, y, a, t / t.sum())
        return dense_divergence(*inputs, epsilon, None, 200)

    for k in (0, 1):
        found = torch.func.jacrev(torch.func.grad(tiled, argnums=k), argnums=k)(x, b)
        rows = torch.autograd.functional.hessian(lambda t, k=k: stored(k, t), (x, b)[k])
        assert_same([found], [rows], 1e-9)


@pytest.mark.parametrize("transform", [torch.func.jacfwd, torch.func.hessian, torch.func.vmap])
def test_refused_by_name(transform):
    x, y, *_ = (t.detach() for t in instance(6, 5))
    with pytest.raises(NotImplementedError, match="tiled"):
        transform(lambda t: cloud_value(t, y, None, None, 0.1))(x.expand(2, 6, 3) if transform is torch.func.vmap else x)


def test_batches():
    x, y, a, b, _ = instance()
    clouds, epsilon = torch.stack([x, 0.5 * x]), torch.tensor([[0.1], [0.2], [0.3]], dtype=F64)
    wanted = [[dense_divergence(cloud, y, a, b, e) for cloud in clouds] for e in epsilon]
    for tiled in (True, False):
        found = sinkhorn_divergence(clouds, y, a, b, epsilon, tiled=tiled)
        assert_same([found], [torch.stack([torch.cat(row) for row in wanted])], 1e-9)
    assert sinkhorn_divergence(clouds[:0], y, a, b, tiled=True).shape == (0,)
    with pytest.raises(ValueError, match="broadcast"):
        sinkhorn_divergence(clouds, y.expand(3, 30, 3), tiled=True)


def test_large_clouds_are_tiled():
    x, y = torch.rand(2100, 2), torch.rand(2000, 2)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(sinkhorn_divergence(leaf, y, epsilon=0.1), leaf)
    (stored,) = torch.autograd.grad(sinkhorn_divergence(leaf, y, epsilon=0.1, tiled=False), leaf)
    assert_same([gradient], [stored], 2e-3)
    with pytest.raises(TypeError, match="no option method"):
        sinkhorn_divergence(x, y, tiled=True, method=None)


@pytest.mark.parametrize("cost", [None, powers])
def test_memory(cost):
    """Three times the points, three times the memory; all pairs at once would take nine."""

    def run(n):
        x, y = torch.rand(n, 3), torch.rand(n, 3)
        x.requires_grad_()

        def to_second_order():
            options = CloudOptions(tile=20, coarsest=100)
            (gradient,) = torch.autograd.grad(cloud_value(x, y, None, None, 0.3, cost, options), x, create_graph=True)
            return torch.autograd.grad(gradient.square().sum(), x)

        return peak_bytes(to_second_order, slack=0.05)

    small, large = run(300), run(900)
    assert large < 3.5 * small
    assert large < 900 * 900 * 8


def test_tolerance_is_reported():
    inputs = instance(epsilon=0.001)
    with pytest.warns(SolverWarning, match="marginal error is"):
        cloud_value(*inputs, None, CloudOptions(max_iterations=1))
    with pytest.raises(SolverError, match="was asked for"):
        cloud_value(*inputs, None, CloudOptions(max_iterations=1, on_failure="raise"))
    assert math.isnan(float(cloud_value(*inputs, None, CloudOptions(max_iterations=1, on_failure="nan")).detach()))


def test_captured_parameters():
    scale = torch.ones(3, dtype=F64, requires_grad=True)
    x, y, *_ = instance()
    with pytest.raises(CapturedTensorError, match="tiled=False"):
        cloud_value(x, y, None, None, 0.1, lambda x, y: powers(x * scale, y))
    with pytest.raises(CapturedTensorError, match="tiled=False"):
        torch.func.grad(lambda s: cloud_value(x.detach(), y.detach(), None, None, 0.1, lambda x, y: powers(x * s, y)))(scale.detach())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.rand(4)}, ValueError, r"x \(n, d\)"),
        ({"y": torch.rand(4, 2)}, ValueError, r"got \(4, 3\) and \(4, 2\)"),
        ({"y": torch.rand(0, 3)}, ValueError, "empty"),
        ({"y": torch.rand(4, 3, dtype=F64)}, TypeError, "dtype"),
        ({"x": torch.full((4, 3), math.nan)}, ValueError, "x has entries"),
        ({"a": torch.rand(5)}, ValueError, r"shape \(4,\), got \(5,\)"),
        ({"a": torch.rand(4, dtype=F64)}, TypeError, "weights a must have the dtype"),
        ({"a": torch.tensor([0.5, 0.5, 0.5, -0.5])}, ValueError, "nonnegative"),
        ({"b": torch.zeros(4)}, ValueError, "some positive"),
        ({"b": torch.ones(4)}, ValueError, "same mass, got 1 and 4"),
        ({"epsilon": 0.0}, ValueError, "epsilon"),
        ({"epsilon": -1.0}, ValueError, "epsilon"),
        ({"epsilon": torch.ones(2)}, ValueError, "epsilon"),
        ({"cost": lambda x, y: x @ y.mT.sum(1)}, ValueError, r"shape \(2, 3\), got \(2,\)"),
        ({"cost": lambda x, y: (x @ y.mT) * math.nan}, ValueError, "not finite"),
    ],
)
def test_bad_input(change, error, message):
    given = {"x": torch.rand(4, 3), "y": torch.rand(4, 3), "a": None, "b": None, "epsilon": 0.1, "cost": None} | change
    with pytest.raises(error, match=message):
        cloud_value(**given)


@pytest.mark.parametrize("change", [{"tolerance": -1.0}, {"on_failure": "ignore"}, {"tile": 0}, {"max_iterations": 1.5}])
def test_bad_options(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        CloudOptions(**change)


def test_pairs_without_weight_are_left_out(monkeypatch):
    """Which changes nothing to the tolerance, in any derivative."""
    monkeypatch.setattr(multiscale, "_MANY", 1)
    surveys = []
    survey = Cloud.survey

    def watched(cloud, phi, psi, least, stride=1):
        surveys.append(survey(cloud, phi, psi, least, stride))
        return surveys[-1]

    monkeypatch.setattr(Cloud, "survey", watched)
    inputs = instance(120, 100, epsilon=0.01)
    options = CloudOptions(tolerance=1e-11, tile=5, coarsest=60)
    for function, loss in ((cloud_divergence, False), (cloud_loss, True)):
        value = function(*inputs, None, options)
        assert sum(len(columns) for columns in surveys[-1]) < 120 * len(surveys[-1])
        monkeypatch.setattr(multiscale, "_MANY", 1 << 40)
        wanted = function(*inputs, None, options)
        monkeypatch.setattr(multiscale, "_MANY", 1)
        assert_same([value], [wanted], 1e-10)
        for found, gradient in zip(derivatives(value, inputs, 1 + (not loss)), derivatives(wanted, inputs, 1 + (not loss)), strict=True):
            assert_same(found, gradient, 1e-7)
