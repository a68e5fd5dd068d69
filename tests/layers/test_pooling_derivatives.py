"""Derivatives of the pooling layer: proofs by `verify`, every order and mode, against the generic path, at kinks and where H is singular."""

import math

import pytest
import torch
from torch import nn

from declarative import certify, verify
from declarative.layers import RobustPooling
from declarative.layers.pooling import Barron, Cauchy, GemanMcClure, Huber, Penalty, PseudoHuber, Quadratic, TruncatedQuadratic, Welsch
from declarative.layers.pooling.curvature import Curvature, dense
from problems.robust_pooling import huber_on_a_line, lines, mean, one_cluster, weighted_clouds, with_outliers

# The same statements are solved very often here; other tests check shapes on the way.
pytestmark = pytest.mark.usefixtures("shapes_unchecked")

F64 = torch.float64
TIGHT = 1e-14
ALL = (
    Quadratic(),
    PseudoHuber(0.8),
    Huber(0.8),
    Welsch(1.4),
    TruncatedQuadratic(2.5),
    GemanMcClure(2.0),
    Cauchy(0.8),
    *(Barron(shape, 1.2) for shape in (2.0, 1.5, 0.0, -1.0, -math.inf)),
)
every_penalty = pytest.mark.parametrize("penalty", ALL, ids=str)
smooth = pytest.mark.parametrize("penalty", [p for p in ALL if p.names], ids=str)


class Plain(RobustPooling):
    """Without its structure: the generic engine, by autodiff of the objective."""

    vjp = None
    hessian = None
    polish = 10


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def cluster(batch, seed=0):
    return one_cluster(batch, generator(seed), F64)[0]


def tracked(*tensors):
    return tuple(t.clone().requires_grad_() for t in tensors)


def parameters(penalty, batch, seed=1):
    """One for each sample, near the penalty's own."""
    own = penalty.values()[0]
    own = -0.5 if isinstance(penalty, Barron) and own in (2.0, -math.inf) else own
    return own + 0.2 * torch.rand(batch, generator=generator(seed), dtype=F64) - 0.1


def pulled(layer, *inputs, **options):
    inputs = tracked(*inputs)
    y = layer(*inputs, **options)
    V = torch.linspace(-1, 2, y.numel(), dtype=F64).sin().reshape(y.shape)
    return torch.autograd.grad(y, inputs, V)


# Proof


@every_penalty
def test_verify_is_green(penalty):
    x = cluster(2)
    verify(RobustPooling(penalty), x).raise_if_failed()
    w = torch.rand(2, 9, generator=generator(), dtype=F64) + 0.3
    if penalty.names:
        verify(RobustPooling(penalty), x, w, parameters(penalty, 2)).raise_if_failed()
    else:
        verify(RobustPooling(penalty), x, w).raise_if_failed()


@pytest.mark.parametrize("shape", [(4, 3), (3, 1), (1, 5)])
@pytest.mark.parametrize("penalty", [Huber(0.8), Welsch(2.0), TruncatedQuadratic(4.0)], ids=str)
def test_verify_is_green_for_few_points(penalty, shape):
    """Fewer points than channels, and weights that are not 1."""
    x = torch.randn(2, *shape, generator=generator(), dtype=F64)
    verify(RobustPooling(penalty), x, torch.rand(2, shape[1], generator=generator(), dtype=F64) + 0.5).raise_if_failed()


def test_verify_of_options():
    x = cluster(2)
    images = x.reshape(2, 2, 3, 3)
    verify(RobustPooling(Welsch(1.4), scalar=True), x).raise_if_failed()
    verify(RobustPooling(Huber(0.7), dims=(-2, -1)), images).raise_if_failed()
    verify(RobustPooling(Cauchy(nn.Parameter(torch.tensor(0.9, dtype=F64)))), x).raise_if_failed()
    verify(RobustPooling(Huber(0.7)), x[0], in_dims=None).raise_if_failed()
    verify(RobustPooling(lambda s: torch.log1p(s) + 0.01 * s), x).raise_if_failed()


def test_certify_knows_a_minimum():
    certificate = certify(RobustPooling(Welsch(1.4)), cluster(3))
    assert bool(certificate.minimiser.all() & certificate.regular.all())


# Every order and mode


@every_penalty
def test_gradients_of_every_order_and_mode(penalty):
    x, w, _ = weighted_clouds(2, generator(), F64)
    inputs = tracked(0.5 * x, w, *([parameters(penalty, 2)] if penalty.names else []))
    layer = RobustPooling(penalty, tolerance=TIGHT)
    assert torch.autograd.gradcheck(layer, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(layer, inputs)


@pytest.mark.parametrize("penalty", [PseudoHuber(0.8), Welsch(1.4), TruncatedQuadratic(2.5), Barron(0.5, 1.2)], ids=str)
def test_under_torch_func(penalty):
    x, w = cluster(1)[0], torch.rand(9, generator=generator(), dtype=F64) + 0.3
    layer, alpha = RobustPooling(penalty, tolerance=TIGHT), parameters(penalty, 1)[0]
    reverse, forward = (jacobian(layer, argnums=(0, 1, 2))(x, w, alpha) for jacobian in (torch.func.jacrev, torch.func.jacfwd))
    for a, b in zip(reverse, forward, strict=True):
        assert torch.allclose(a, b, atol=1e-11)

    def value(x):
        return layer(x, w, alpha).pow(3).sum()

    hessian = torch.func.hessian(value)(x)
    assert torch.allclose(hessian, torch.func.jacrev(torch.func.jacrev(value))(x), atol=1e-9)
    assert torch.allclose(hessian, torch.func.jacfwd(torch.func.jacfwd(value))(x), atol=1e-9)


@every_penalty
def test_vmap_is_the_batch(penalty):
    x, w = cluster(3), torch.rand(3, 9, generator=generator(), dtype=F64) + 0.3
    mask = torch.arange(9) < torch.tensor([[9], [7], [8]])
    layer = RobustPooling(penalty, tolerance=TIGHT)
    assert torch.allclose(torch.func.vmap(layer)(x, w), layer(x, w), atol=1e-13)
    assert torch.allclose(torch.func.vmap(layer, in_dims=(None, 0))(x[0], w), layer(x[:1].expand(3, 2, 9), w), atol=1e-13)
    assert torch.allclose(torch.func.vmap(lambda x, m: layer(x, mask=m))(x, mask), layer(x, mask=mask), atol=1e-13)
    slopes = torch.func.vmap(torch.func.grad(lambda x, w: layer(x, w).square().sum(), argnums=(0, 1)))(x, w)
    for mine, theirs in zip(slopes, torch.autograd.grad(layer(*(t := tracked(x, w))).square().sum(), t), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-11)


def test_forward_mode_in_a_learned_scale_without_torch_func():
    """Torch's own dual numbers do not nest."""
    import torch.autograd.forward_ad as forward_ad

    x, alpha = cluster(1), torch.tensor(1.3, dtype=F64)
    with forward_ad.dual_level():
        y = RobustPooling(Welsch())(x, alpha=forward_ad.make_dual(alpha, torch.ones_like(alpha)))
        tangent = forward_ad.unpack_dual(y).tangent
    ahead, behind = (RobustPooling(Welsch(1.3 + h), tolerance=TIGHT)(x) for h in (1e-5, -1e-5))
    assert torch.allclose(tangent, (ahead - behind) / 2e-5, atol=1e-8)


# Against other ways to the same numbers


@every_penalty
@pytest.mark.parametrize("shape", [(3, 7), (5, 3), (4, 1)])
def test_equals_the_generic_path(penalty, shape):
    x = 0.4 * torch.randn(2, *shape, generator=generator(), dtype=F64) + 3.0
    w = torch.rand(2, shape[1], generator=generator(), dtype=F64) + 0.3
    inputs = (x, w, *([parameters(penalty, 2)] if penalty.names else []))
    mine, generic = pulled(RobustPooling(penalty, tolerance=TIGHT), *inputs), pulled(Plain(penalty), *inputs)
    for a, b in zip(mine, generic, strict=True):
        assert (a - b).abs().max() <= 1e-10 * b.abs().max() + 1e-14


@pytest.mark.parametrize("shape", [(30, 40), (40, 30)])
@pytest.mark.parametrize("penalty", [PseudoHuber(0.8), Huber(0.8), Welsch(2.0), GemanMcClure(2.5)], ids=str)
def test_equals_the_generic_path_by_conjugate_gradients(penalty, shape):
    x = torch.randn(1, *shape, generator=generator(), dtype=F64) / shape[0] ** 0.5
    layer = RobustPooling(penalty, tolerance=TIGHT)
    s = layer.solution(*tracked(x))
    s.y.sum().backward()
    assert "conjugate gradients" in s.report.method
    assert (pulled(layer, x)[0] - (other := pulled(Plain(penalty), x)[0])).abs().max() <= 1e-10 * other.abs().max()


@pytest.mark.parametrize(
    ("channels", "points", "method"),
    [(1, 9, "number"), (6, 20, "factor of 6×6"), (20, 6, "6×6, by Woodbury"), (7, 1, "1×1, by Woodbury"), (30, 40, "factor of 30"), (40, 30, "by Woodbury")],
)
def test_ways_to_solve_with_the_curvature(channels, points, method):
    """H = kI + D diag(κ₂) Dᵀ close to singular, so that conjugate gradients give up where both sizes are large."""
    g = generator()
    D = torch.randn(2, channels, points, generator=g, dtype=F64) * torch.logspace(0, 2, channels, dtype=F64).unsqueeze(1)
    kappa2 = -torch.rand(2, points, generator=g, dtype=F64)
    lowest = torch.linalg.eigvalsh((D * kappa2.unsqueeze(1)) @ D.mT)[:, 0]
    mass, v = -lowest * 1.0001, torch.randn(2, channels, generator=g, dtype=F64)
    curvature = Curvature(D, D.square().sum(1), mass, kappa2, concave=True)
    expected = torch.linalg.solve(dense(D, mass, kappa2), v)
    assert torch.allclose(curvature.solve(v), expected, rtol=1e-7, atol=1e-9 * float(expected.abs().max()))
    assert method in curvature.method
    assert bool(curvature.definite().all())
    assert not bool(Curvature(D, D.square().sum(1), 0.999 * mass, kappa2, concave=True).definite().any())


def test_closed_forms():
    x = with_outliers(generator(), 4, 3, 7)
    V = torch.linspace(-1, 1, 12, dtype=F64).reshape(4, 3)
    for layer in (RobustPooling(Quadratic()), RobustPooling(Huber(1e3)), RobustPooling(Barron(2.0))):
        mine, exact = tracked(x), tracked(x)
        for a, b in zip(torch.autograd.grad(layer(*mine), mine, V), torch.autograd.grad(mean(*exact, V), exact, V), strict=True):
            assert torch.allclose(a, b, rtol=1e-12)
    x, alpha = lines(6, generator(), F64)
    mine, exact = tracked(x, alpha), tracked(x, alpha)
    y, u = RobustPooling(Huber(), tolerance=TIGHT)(mine[0], alpha=mine[1]), huber_on_a_line(*exact)
    assert torch.allclose(y, u, atol=1e-13)
    for a, b in zip(torch.autograd.grad(y.sum(), mine), torch.autograd.grad(u.sum(), exact), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@smooth
def test_recomputed_with_finite_differences(penalty):
    """∂u/∂x and ∂u/∂α from solves nearby."""
    x, alpha, h = cluster(2), parameters(penalty, 2), 1e-5
    layer = RobustPooling(penalty, tolerance=TIGHT)
    V = torch.tensor([1.0, -0.4], dtype=F64)
    slopes = torch.autograd.grad((layer(*(t := tracked(x, torch.ones(2, 9, dtype=F64), alpha))) * V).sum(), t)
    ones = torch.ones(2, 9, dtype=F64)
    for k, direction in enumerate((torch.randn(x.shape, generator=generator(), dtype=F64), torch.rand(2, 9, generator=generator(), dtype=F64), ones[:, 0])):
        values = []
        for step in (h, -h):
            at = [x, ones, alpha]
            at[k] = at[k] + step * direction
            values.append(float((layer(*at) * V).sum()))
        assert float((slopes[k] * direction).sum()) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-6, abs=1e-9)


def test_learned_parameters():
    """One for all, one for each channel, a network's: gradients add up, and the forward pass leaves everything as it was."""
    x = cluster(3)
    alpha = nn.Parameter(torch.tensor(1.3, dtype=F64))
    each = torch.full((3,), 1.3, dtype=F64, requires_grad=True)
    (one,) = torch.autograd.grad(RobustPooling(Welsch(alpha))(x).square().sum(), alpha)
    (many,) = torch.autograd.grad(RobustPooling(Welsch())(x, alpha=each).square().sum(), each)
    assert torch.allclose(one, many.sum())
    channel = nn.Parameter(torch.tensor([1.3, 1.5], dtype=F64))
    layer = RobustPooling(Welsch(channel), scalar=True, tolerance=TIGHT)
    (found,) = torch.autograd.grad(layer(x).sum(), channel)
    for k in range(2):
        own = channel[k].detach().clone().requires_grad_()
        alone = RobustPooling(Welsch(), tolerance=TIGHT)(x[:, k : k + 1], alpha=own)
        assert torch.allclose(torch.autograd.grad(alone.sum(), own)[0], found[k], atol=1e-11)
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    layer(x)
    assert all(torch.equal(t, before[name]) for name, t in layer.state_dict().items())


def test_a_network_as_penalty_learns():
    class Rising(nn.Module):
        """Grows with s and fades: softplus weights make it so."""

        def __init__(self):
            super().__init__()
            self.raw = nn.Parameter(torch.tensor([0.3, -0.2, 0.5], dtype=F64))

        def forward(self, s):
            return (nn.functional.softplus(self.raw) * torch.log1p(s.unsqueeze(-1) * torch.tensor([0.1, 1.0, 5.0], dtype=F64))).sum(-1)

    layer, x = RobustPooling(Rising(), tolerance=TIGHT), cluster(2)
    verify(layer, x).raise_if_failed()
    ((name, raw),) = layer.named_parameters()

    def value(at):
        return torch.func.functional_call(layer, {name: at}, (x,)).square().sum()

    (found,) = torch.autograd.grad(layer(x).square().sum(), raw)
    h = 1e-5
    expected = torch.stack([(value(raw.detach() + h * e) - value(raw.detach() - h * e)) / (2 * h) for e in torch.eye(3, dtype=F64)])
    assert torch.allclose(found, expected, rtol=1e-6)
    assert torch.allclose(torch.func.grad(value)(raw.detach()), found, atol=1e-12)


def test_a_captured_tensor_is_refused():
    scale = torch.tensor(1.0, dtype=F64, requires_grad=True)
    with pytest.raises(Exception, match="a tensor in its penalty"):
        RobustPooling(lambda s: torch.log1p(s * scale))(cluster(1))


def test_a_penalty_of_ones_own_has_parameters():
    class Student(Penalty):
        def phi(self, s, nu):
            return torch.log1p(s / nu)

    x, nu = cluster(2), nn.Parameter(torch.tensor(1.5, dtype=F64))
    cauchy = RobustPooling(Cauchy(), tolerance=TIGHT)
    mine, theirs = RobustPooling(Student(nu=nu), tolerance=TIGHT)(x), cauchy(x, alpha=(root := nu.detach().clone().requires_grad_()).sqrt())
    assert torch.allclose(mine, theirs, atol=1e-12)
    assert torch.allclose(torch.autograd.grad(mine.sum(), nu)[0], torch.autograd.grad(theirs.sum(), root)[0], atol=1e-11)
