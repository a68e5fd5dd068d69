"""The transport layer where it is easy to be wrong without a word: extreme marginals and costs, odd starts, failed samples, autocast."""

from typing import Any

import pytest
import torch

from declarative.layers import DualLBFGS, DualNewton, OptimalTransport, Sinkhorn, SinkhornLoss, sinkhorn_divergence

F64 = torch.float64


def instance(*shape, seed=0, dtype=F64):
    """Costs in [0, 1] and marginals of mass 1."""
    g = torch.Generator().manual_seed(seed)
    *lead, m, n = shape
    M, r, c = (torch.rand(*lead, *s, generator=g, dtype=F64) for s in ((m, n), (m,), (n,)))
    r, c = r + 0.2, c + 0.2
    return tuple(t.to(dtype) for t in (M, r / r.sum(-1, keepdim=True), c / c.sum(-1, keepdim=True)))


def tracked(*tensors):
    return tuple(t.clone().requires_grad_() for t in tensors)


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


def with_first(marginal, value):
    """The marginal with this share of the mass in its first entry."""
    rest = torch.cat([marginal.new_zeros(1), marginal[1:]])
    return rest * ((1 - value) / rest.sum()) + torch.nn.functional.one_hot(torch.tensor(0), marginal.shape[0]).to(marginal) * value


# Marginals


@pytest.mark.parametrize("method", [None, Sinkhorn(), DualNewton()])
@pytest.mark.parametrize(("dtype", "share"), [(F64, 1e-12), (torch.float32, 1e-9)])
@pytest.mark.parametrize("side", [1, 2])
def test_gradient_beside_an_entry_of_tiny_mass_is_that_of_no_mass(method, dtype, share, side):
    """∂P is continuous in the marginals, zero included: a share of 1e-12 moves it by about 1e-12."""
    found = []
    for value in (share, 0.0):
        inputs = list(instance(6, 5, dtype=dtype))
        inputs[side] = with_first(inputs[side], value)
        inputs = tracked(*inputs)
        V = torch.linspace(-1, 1, 30, dtype=dtype).reshape(6, 5).sin()
        found.append(torch.autograd.grad((OptimalTransport(10.0, method=method)(*inputs) * V).sum(), inputs))
    assert max(relative(a, b) for a, b in zip(*found, strict=True)) < (1e-8 if dtype == F64 else 1e-4)


def test_second_derivatives_and_forward_mode_beside_an_entry_of_tiny_mass():
    M, r, c = instance(4, 5)
    layer, V = OptimalTransport(5.0, tolerance=1e-14), torch.linspace(-1, 1, 20, dtype=F64).reshape(4, 5).sin()
    found = []
    for share in (1e-13, 0.0):
        at = with_first(c, share)
        hessian = torch.func.jacrev(torch.func.grad(lambda M, c: (layer(M, r, c).square() * V).sum(), argnums=1))(M, at)
        found.append((hessian, torch.func.jacfwd(lambda c: layer(M, r, c))(at)))
    assert max(relative(a, b) for a, b in zip(*found, strict=True)) < 1e-7


def test_loss_at_a_row_without_mass_has_a_one_sided_gradient():
    """New mass there has to pay the row's own costs."""
    M, r, c = instance(4, 3)
    loss, r = SinkhornLoss(5.0, tolerance=1e-14), with_first(r, 0.0)
    x = r.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(M, x, c), x)
    step = torch.tensor([1e-5, -1e-5, 0.0, 0.0], dtype=F64)
    values = [float(loss(M, r + k * step, c)) for k in (0, 1, 2)]
    assert float(gradient[0] - gradient[1]) == pytest.approx((4 * values[1] - 3 * values[0] - values[2]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize(("first", "second"), [("r", "r"), ("r", "c"), ("c", "c"), ("M", "r")])
def test_second_derivatives_in_entries_without_mass_are_one_sided(first, second):
    """The gradient's rate, as mass comes to an empty row or an empty column, in reverse and forward mode."""
    M, r, c = instance(4, 5)
    layer, V = OptimalTransport(5.0, method=DualNewton(), tolerance=1e-15), torch.linspace(-1, 1, 20, dtype=F64).reshape(4, 5).sin()
    at = {"M": M, "r": with_first(r, 0.0), "c": with_first(c, 0.0)}
    names = list(at)
    toward = {"r": torch.tensor([1.0, -1, 0, 0], dtype=F64), "c": torch.tensor([1.0, 0, 0, -1, 0], dtype=F64), "M": V.cos()}

    def value(*inputs):
        return (layer(*inputs) * V).sum()

    def slope(step):
        moved = [at[k] + step * toward[k] if k == second else at[k] for k in names]
        return float((torch.func.grad(value, names.index(first))(*moved) * toward[first]).sum())

    h = 1e-4
    expected = (-11 * slope(0) + 18 * slope(h) - 9 * slope(2 * h) + 2 * slope(3 * h)) / (6 * h)
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        found = jacobian(jacobian(value, names.index(first)), names.index(second))(*at.values())
        assert float((found @ toward[second] * toward[first]).sum()) == pytest.approx(expected, rel=1e-5)


def test_a_mask_that_forbids_every_pair_is_refused():
    mask = torch.ones(2, 3, 3, dtype=torch.bool)
    mask[1] = False
    with pytest.raises(ValueError, match=r"every pair is forbidden \(mask\): 1 of 2 samples \(1\)"):
        OptimalTransport()(torch.zeros(2, 3, 3), mask=mask)


# Costs


@pytest.mark.parametrize(("dtype", "offset", "accuracy"), [(F64, 1e6, 1e-9), (torch.float32, 1e3, 1e-4)])
def test_a_constant_in_the_costs_costs_no_digits(dtype, offset, accuracy):
    """P does not change with M + t, and neither may its derivatives, that in γ included: in reverse and forward mode."""
    M, r, c = instance(7, 5, dtype=dtype)
    shifted = M + offset
    V = torch.linspace(-1, 1, 35, dtype=dtype).reshape(7, 5).sin()
    layer, gamma, found = OptimalTransport(), torch.tensor(10.0, dtype=dtype), []
    for costs in (shifted, shifted - offset):
        inputs = tracked(costs, r, c, gamma)
        gradients = torch.autograd.grad((layer(*inputs) * V).sum(), inputs)
        found.append((*gradients, torch.func.jvp(lambda g, costs=costs: layer(costs, r, c, g), (gamma,), (torch.ones_like(gamma),))[1]))
    assert max(relative(a, b) for a, b in zip(*found, strict=True)) < accuracy


def test_approximate_gradient_in_gamma_holds_the_potentials():
    """P = r cᵀ∘exp(γ(φ + ψ − M)) at these φ and ψ; a constant in the costs does not matter."""
    M, r, c = instance(4, 3)
    V, layer = torch.linspace(-1, 1, 12, dtype=F64).reshape(4, 3), OptimalTransport(gradient="approximate", tolerance=1e-13)
    gamma, plain = tracked(torch.tensor(4.0, dtype=F64), torch.tensor(4.0, dtype=F64))
    found = layer.potentials(M, r, c, plain.detach())
    P = r[:, None] * c * torch.exp(plain * (found.rows[:, None] + found.columns - M))
    (expected,) = torch.autograd.grad((P * V).sum(), plain)
    for offset in (0.0, 3.0):
        assert float(torch.autograd.grad((layer(M + offset, r, c, gamma) * V).sum(), gamma)[0]) == pytest.approx(float(expected), rel=1e-9)


def test_what_a_mask_hides_has_no_gradient_whatever_it_is():
    M, r, c = instance(4, 3)
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[0, 0] = False
    for layer, given in ((SinkhornLoss(5.0), M), (SinkhornLoss(5.0, input="affinity"), (-M).exp())):
        for hidden in (torch.nan, torch.inf, -1.0, 0.0):
            x = torch.where(mask, given, hidden).requires_grad_()
            value = layer(x, r, c, mask=mask)
            (gradient,) = torch.autograd.grad(value, x)
            assert value.item() == pytest.approx(float(SinkhornLoss(5.0)(torch.where(mask, M, torch.inf), r, c)), rel=1e-9)
            assert bool(torch.isfinite(gradient).all())
            assert float(gradient[0, 0]) == 0.0


# Starts


@pytest.mark.parametrize("method", [None, Sinkhorn(), DualNewton(), DualLBFGS()])
@pytest.mark.parametrize("wrong", [torch.nan, 1e10, 1e308])
def test_a_useless_start_does_no_harm(method, wrong):
    M, r, c = instance(3, 8, 7)
    layer = OptimalTransport(10.0, method=method)
    good = layer.solution(M, r, c)
    phi, psi = good.workspace.rows.clone(), good.workspace.columns.clone()
    phi[1, ::2] = psi[1, ::2] = wrong
    found = layer.solution(M, r, c, init=(phi, psi))
    assert bool((found.status == 0).all())
    assert relative(found.y, OptimalTransport(10.0, tolerance=1e-14)(M, r, c)) < 1e-8


def test_a_constant_in_the_start_does_no_harm():
    M, r, c = instance(2, 8, 7)
    good = OptimalTransport(10.0).solution(M, r, c)
    start = (good.workspace.rows - 1e10, good.workspace.columns + 1e10)
    assert relative(OptimalTransport(10.0)(M, r, c, init=start), good.y) < 1e-4
    assert relative(OptimalTransport(10.0, tolerance=1e-12)(M, r, c, init=start), OptimalTransport(10.0, tolerance=1e-14)(M, r, c)) < 1e-10


# Failed samples


def test_failed_samples_leave_shared_inputs_their_gradient():
    """With on_failure="nan", a loss that leaves them out has the gradient of the others."""
    M, r, c = instance(20, 20)
    gamma = torch.tensor([200.0, 1.0, 300.0], dtype=F64)
    layer = OptimalTransport(method=Sinkhorn(over_relaxation=1.0, scaling=None), max_iterations=30, on_failure="nan")
    calls: tuple[Any, ...] = (layer, layer.value, lambda *x: layer.potentials(*x).rows)
    for call in calls:
        inputs, alone = tracked(M, r, torch.ones((), dtype=F64)), tracked(M, r, torch.ones((), dtype=F64))
        found = call(*inputs[:2], c, gamma * inputs[2])
        assert [bool(torch.isnan(f).all()) for f in found] == [True, False, True]
        expected = torch.autograd.grad(call(*alone[:2], c, gamma[1] * alone[2]).sum(), alone)
        for a, b in zip(torch.autograd.grad(found[1].sum(), inputs), expected, strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


# Autocast


@pytest.mark.parametrize("method", [None, Sinkhorn(), DualNewton(), DualLBFGS()])
def test_autocast_changes_nothing(method):
    """Sinkhorn's products in half precision would be no plan, and the linear system no derivative."""
    inputs = instance(2, 20, 19, dtype=torch.float32)
    layer = OptimalTransport(50.0, method=method)
    plain, cast = tracked(*inputs), tracked(*inputs)
    P = layer(*plain)
    expected = (P, *torch.autograd.grad(P.square().sum(), plain))
    with torch.autocast("cpu", torch.bfloat16):
        Q = layer(*cast)
        found = (Q, *torch.autograd.grad(Q.square().sum(), cast), torch.func.jvp(layer, inputs, inputs)[1])
    for a, b in zip(found, (*expected, torch.func.jvp(layer, inputs, inputs)[1]), strict=True):
        assert torch.equal(a, b)


def test_divergence_under_autocast():
    x, y = torch.rand(9, 2), torch.rand(7, 2) + 0.3
    expected = sinkhorn_divergence(x, y, epsilon=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sinkhorn_divergence(x, y, epsilon=0.3), expected)
