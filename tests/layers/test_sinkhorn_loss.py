"""Losses and divergences of transport: closed forms of their gradients, independent solvers, Hessians against unrolling."""

import ot
import pytest
import torch

from declarative import SolverWarning
from declarative.layers import OptimalTransport, SinkhornLoss, sinkhorn_divergence
from tests.layers.test_optimal_transport import F64, TIGHT, instance, tracked


def clouds(n=15, m=17, d=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.rand(n, d, generator=g, dtype=F64), torch.rand(m, d, generator=g, dtype=F64)
    a, b = torch.rand(n, generator=g, dtype=F64) + 0.1, torch.rand(m, generator=g, dtype=F64) + 0.1
    return x, y, a / a.sum(), b / b.sum()


def free_of_constants(H):
    H = H - H.mean(0, keepdim=True)
    return H - H.mean(1, keepdim=True)


# SinkhornLoss


@pytest.mark.parametrize("regularised", [False, True])
def test_gradients_of_every_order_and_mode(regularised):
    loss, inputs = SinkhornLoss(regularised=regularised, tolerance=TIGHT), tracked(*instance(2, 4, 3))
    assert torch.autograd.gradcheck(loss, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, inputs)


def test_values_are_those_of_another_solver():
    M, r, c, gamma = (t[0] for t in instance(1, 6, 5))
    plan = torch.from_numpy(ot.sinkhorn(r.numpy(), c.numpy(), M.numpy(), 1 / float(gamma), method="sinkhorn_log", stopThr=1e-14, numItermax=10000))
    linear = (plan * M).sum()
    entropy = (plan * (plan / (r[:, None] * c)).log()).sum() / gamma
    assert torch.allclose(SinkhornLoss()(M, r, c, gamma), linear, rtol=1e-9)
    assert torch.allclose(SinkhornLoss(regularised=True)(M, r, c, gamma), linear + entropy, rtol=1e-9)


def test_analytic_gradient_of_the_loss():
    """∂S/∂M = P − γP∘(M − w_r 1ᵀ − 1 w_cᵀ), with w from the least-norm solution of the singular system."""
    M, r, c, gamma = instance(2, 5, 4)
    x = M.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(SinkhornLoss(tolerance=TIGHT)(x, r, c, gamma).sum(), x)
    P = OptimalTransport(tolerance=TIGHT)(M, r, c, gamma)
    K = torch.cat([torch.cat([torch.diag_embed(P.sum(2)), P], 2), torch.cat([P.mT, torch.diag_embed(P.sum(1))], 2)], 1)
    w = (torch.linalg.pinv(K, hermitian=True) @ torch.cat([(P * M).sum(2), (P * M).sum(1)], 1).unsqueeze(2)).squeeze(2)
    expected = P - gamma[:, None, None] * P * (M - w[:, :5, None] - w[:, None, 5:])
    assert torch.allclose(gradient, expected, atol=1e-12)


def test_envelope_gradient_is_the_plan():
    M, r, c, gamma = instance(2, 5, 4)
    x = M.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(SinkhornLoss(regularised=True, tolerance=TIGHT)(x, r, c, gamma).sum(), x)
    assert torch.allclose(gradient, OptimalTransport(tolerance=TIGHT)(M, r, c, gamma), atol=1e-14)


def test_learned_gamma_masks_and_affinities():
    M, r, c, _ = instance(2, 5, 4)
    for regularised in (False, True):
        loss = SinkhornLoss(torch.nn.Parameter(torch.tensor(4.0, dtype=F64)), regularised=regularised)
        loss(M, r, c).sum().backward()
        assert loss.transport.gamma.grad is not None
        assert float(loss.transport.gamma.grad) != 0.0
        mask = torch.ones(5, 4, dtype=torch.bool)
        mask[4], mask[:, 3] = False, False
        padded = SinkhornLoss(4.0, regularised=regularised, tolerance=1e-13)(M, mask=mask)
        assert torch.allclose(padded, SinkhornLoss(4.0, regularised=regularised, tolerance=1e-13)(M[:, :4, :3]), rtol=1e-11)
        affinity = SinkhornLoss(4.0, regularised=regularised, input="affinity")((-M).exp(), r, c)
        assert torch.allclose(affinity, SinkhornLoss(4.0, regularised=regularised)(M, r, c), rtol=1e-9)


def test_options_are_those_of_the_layer():
    with pytest.raises(ValueError, match="gradient"):
        SinkhornLoss(gradient="none")
    with pytest.raises(TypeError, match="regularised must be"):
        SinkhornLoss(regularised="yes")  # pyright: ignore[reportArgumentType]
    M, r, c, gamma = instance(2, 4, 3)
    found = [SinkhornLoss(gradient=g, tolerance=1e-13)(M, r, c, gamma) for g in ("implicit", "unrolled")]
    assert torch.allclose(*found, atol=1e-12)


# The divergence


def test_divergence_is_its_definition_by_another_solver():
    x, y, a, b = clouds()

    def value(p, q, r, c):
        M = torch.cdist(p, q).square()
        plan = torch.from_numpy(ot.sinkhorn(r.numpy(), c.numpy(), M.numpy(), 0.1, method="sinkhorn_log", stopThr=1e-13, numItermax=20000))
        return (plan * M).sum() + 0.1 * (plan * (plan / (r[:, None] * c)).log()).sum()

    expected = value(x, y, a, b) - 0.5 * (value(x, x, a, a) + value(y, y, b, b))
    assert torch.allclose(sinkhorn_divergence(x, y, a, b), expected, atol=1e-10)
    assert torch.allclose(sinkhorn_divergence(x, y, a, b, tiled=True), expected, atol=1e-10)


def test_divergence_vanishes_on_equal_clouds_only():
    x, y, a, b = clouds()
    order = torch.randperm(15)
    assert sinkhorn_divergence(x, x[order], a, a[order]).abs() < 1e-12
    assert sinkhorn_divergence(x, y, a, b) > 1e-3
    assert torch.allclose(sinkhorn_divergence(x, y, a, b), sinkhorn_divergence(y, x, b, a), atol=1e-12)
    assert torch.allclose(sinkhorn_divergence(x + 5, y + 5, a, b), sinkhorn_divergence(x, y, a, b), atol=1e-10)


@pytest.mark.parametrize("sizes", [(6, 6), (7, 4), (70, 12)])
def test_gradients_of_the_divergence(sizes):
    x, y, a, b = clouds(*sizes)
    inputs = tracked(x, y, a, b, torch.tensor(0.2, dtype=F64))
    if sizes[0] < 10:
        assert torch.autograd.gradcheck(lambda *t: sinkhorn_divergence(*t, tolerance=TIGHT), inputs, check_forward_ad=True)
    unrolled = torch.autograd.grad(sinkhorn_divergence(*inputs, tolerance=1e-13, gradient="unrolled"), inputs)
    for tiled in (False, True):
        found = torch.autograd.grad(sinkhorn_divergence(*inputs, tolerance=1e-12, tiled=tiled), inputs)
        for k, (one, other) in enumerate(zip(found, unrolled, strict=True)):
            if k in (2, 3):
                one, other = one - one.mean(), other - other.mean()
            assert torch.allclose(one, other, atol=1e-8)


@pytest.mark.parametrize("which", [0, 1])
def test_hessians_are_those_of_unrolling(which):
    """Weights up to constants. (benchmarks/divergence.py does it at 15 and 17 points.)"""
    x, y, a, b = clouds(5, 6)

    def value(a, x, **options):
        return sinkhorn_divergence(x, y, a, b, 0.3, **options)

    implicit = torch.func.hessian(lambda a, x: value(a, x, tolerance=1e-13), argnums=which)(a, x)
    arguments = [a, x]

    def unrolled(t):
        arguments[which] = t
        return value(*arguments, tolerance=1e-12, gradient="unrolled")

    expected = torch.autograd.functional.hessian(unrolled, (a, x)[which].clone())
    assert isinstance(expected, torch.Tensor)
    if which == 0:
        implicit, expected = free_of_constants(implicit), free_of_constants(expected)
    assert (implicit - expected).abs().max() <= 1e-8 * expected.abs().max()


def test_batches_costs_and_epsilons():
    x, y, a, b = clouds()
    xs, epsilons = torch.stack([x, x * 0.9]), torch.tensor([0.1, 0.3], dtype=F64)
    city = []
    for tiled in (False, True):
        together = sinkhorn_divergence(xs, y, a, b, epsilons, tiled=tiled)
        assert together.shape == (2,)
        assert torch.allclose(together[1], sinkhorn_divergence(xs[1], y, a, b, 0.3), atol=1e-9)
        city.append(sinkhorn_divergence(x, y, a, b, cost=lambda p, q: (p.unsqueeze(-2) - q.unsqueeze(-3)).abs().sum(-1), tiled=tiled))
    assert torch.allclose(*city, atol=1e-9)
    assert (city[0] - sinkhorn_divergence(x, y, a, b)).abs() > 1e-3
    assert torch.func.vmap(lambda x: sinkhorn_divergence(x, y, a, b))(xs).shape == (2,)
    assert sinkhorn_divergence(x[:0].reshape(0, 5, 3), y).shape == (0,)


def test_zero_weights_are_no_points():
    x, y, a, b = clouds(6, 5)
    more = torch.cat([x, torch.full((2, 3), 7.0, dtype=F64)])
    padded = torch.cat([a, torch.zeros(2, dtype=F64)])
    mine, plain = tracked(more, padded), tracked(x, a)
    one, other = sinkhorn_divergence(mine[0], y, mine[1], b, tolerance=TIGHT), sinkhorn_divergence(plain[0], y, plain[1], b, tolerance=TIGHT)
    assert torch.allclose(one, other, atol=1e-13)
    (gx, ga), (hx, ha) = torch.autograd.grad(one, mine), torch.autograd.grad(other, plain)
    assert torch.allclose(gx[:6], hx, atol=1e-11)
    assert bool((gx[6:] == 0).all())
    assert torch.allclose(ga[:6] - ga[0], ha - ha[0], atol=1e-10)
    assert bool(torch.isfinite(ga).all())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.zeros(3)}, ValueError, "x must have shape"),
        ({"x": torch.zeros(3, 2, dtype=torch.int64)}, TypeError, "x must be a floating tensor"),
        ({"y": torch.zeros(4, 3)}, ValueError, "same dimension"),
        ({"epsilon": 0.0}, ValueError, "epsilon must be positive"),
        ({"epsilon": "small"}, TypeError, "epsilon must be a number"),
        ({"a": torch.ones(3) / 3, "b": torch.ones(4)}, ValueError, "same mass"),
        ({"a": torch.ones(4) / 4}, ValueError, "must have shape"),
        ({"epsilon": torch.tensor(-1.0)}, ValueError, "epsilon.* must be positive|epsilon must be"),
        ({"epsilon": torch.tensor(1.0, dtype=F64)}, TypeError, "epsilon has dtype"),
        ({"y": torch.zeros(4, 2, dtype=F64)}, TypeError, "same dtype"),
        ({"a": torch.ones(3, dtype=F64) / 3}, TypeError, "a has dtype torch.float64"),
        ({"cost": "l1"}, TypeError, "cost must be a function"),
        ({"cost": lambda x, y: (x @ y.mT).unsqueeze(-1)}, ValueError, r"cost\(x, y\) of . and . points must have shape"),
    ],
)
@pytest.mark.parametrize("tiled", [False, True])
def test_bad_input(arguments, error, message, tiled):
    with pytest.raises(error, match=message):
        sinkhorn_divergence(**({"x": torch.zeros(3, 2), "y": torch.ones(4, 2)} | arguments), tiled=tiled)


def test_options_of_tiles():
    x, y, a, b = clouds()
    stored = sinkhorn_divergence(x, y, a, b)
    for options in ({"tile": 4}, {"coarsest": 10}, {"tile": 4, "tiled": True}):
        assert torch.allclose(sinkhorn_divergence(x, y, a, b, **options), stored, atol=1e-9)
    with pytest.raises(TypeError, match="without tiles the divergence knows no option tile"):
        sinkhorn_divergence(x, y, tiled=False, tile=4)
    with pytest.raises(TypeError, match="without tiles the divergence knows no option tile"):
        sinkhorn_divergence(x, y, tile=4, gradient="implicit")
    with pytest.raises(TypeError, match="in tiles the divergence knows no option gradient"):
        sinkhorn_divergence(x, y, tiled=True, gradient="implicit")


def test_complaints_name_what_the_caller_gave():
    with pytest.raises(ValueError, match=r"sinkhorn_divergence.*r and c the weights.*r must be nonnegative"):
        sinkhorn_divergence(torch.zeros(3, 2), torch.ones(4, 2), torch.tensor([1.5, -0.5, 0.0]))


def test_a_loose_solve_warns():
    x, y, a, b = clouds()
    with pytest.warns(SolverWarning, match="marginal error"):
        sinkhorn_divergence(x, y, a, b, 1e-3, max_iterations=1)
