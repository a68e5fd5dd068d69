"""The relaxations: what they find against other ways to the same point, what every relaxed choice obeys, derivatives of every kind, bad input."""

import cvxpy as cp
import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import jacfwd, jacrev, jvp, vmap

from declarative import Status, certify, verify
from declarative.layers import EntropicTopK, EuclideanTopK
from problems.top_k import CHOSEN, capped, pair, sample_capped, sample_logits, sample_pairs

F64 = torch.float64
BOTH = (EntropicTopK, EuclideanTopK)
both = pytest.mark.parametrize("kind", BOTH)


def logits(*shape, seed=0, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def by_bisection(kind, x, k, temperature):
    """One row, by scipy's root finder on Σu − k."""
    squash = (lambda a: 1 / (1 + np.exp(-a))) if kind is EntropicTopK else (lambda a: np.clip(a, 0, 1))
    x = x.numpy()
    reach = 60 * temperature
    tau = scipy.optimize.brentq(lambda t: squash((x + t) / temperature).sum() - k, -x.max() - reach, -x.min() + reach, xtol=1e-15, rtol=1e-15)
    return torch.as_tensor(squash((x + tau) / temperature))


def by_cvxpy(kind, x, k, temperature):
    u, x = cp.Variable(len(x)), x.numpy()
    penalty = -cp.sum(cp.entr(u)) - cp.sum(cp.entr(1 - u)) if kind is EntropicTopK else 0.5 * cp.sum_squares(u)
    problem = cp.Problem(cp.Minimize(-x @ u + temperature * penalty), [cp.sum(u) == k, u >= 0, u <= 1])
    problem.solve(solver=cp.CLARABEL)
    return torch.as_tensor(u.value)


# Values


@both
@pytest.mark.parametrize(("n", "k", "temperature"), [(5, 2, 1.0), (9, 1, 0.3), (9, 8, 2.0), (40, 7, 0.05)])
def test_other_ways_to_the_same_point(kind, n, k, temperature):
    x = logits(3, n)
    u = kind(k, temperature)(x)
    for row, found in zip(x, u, strict=True):
        assert torch.allclose(found, by_bisection(kind, row, k, temperature), atol=1e-12)
        assert torch.allclose(found, by_cvxpy(kind, row, k, temperature), atol=1e-4)


def test_closed_forms():
    g = torch.Generator().manual_seed(0)
    x, temperature = sample_pairs(5, g, F64)
    assert torch.allclose(EntropicTopK(1)(x, temperature), pair(x, temperature), atol=1e-15)
    x, temperature = sample_capped(8, g, F64)
    assert torch.allclose(EuclideanTopK(CHOSEN)(x, temperature), capped(x, temperature), atol=1e-14)


@both
@given(n=st.integers(2, 12), seed=st.integers(0, 1000), temperature=st.floats(0.05, 20), shift=st.floats(-1e3, 1e3), data=st.data())
def test_what_every_relaxed_choice_obeys(kind, n, seed, temperature, shift, data):
    k = data.draw(st.integers(0, n))
    x, layer = logits(2, n, seed=seed), kind(k, temperature)
    u = layer(x)
    assert bool(((u >= 0) & (u <= 1)).all())
    assert bool(((u.sum(1) - k).abs() <= 1e-12).all())
    assert bool((u.gather(1, x.argsort(1)).diff(dim=1) >= -1e-15).all())  # in the logits' order
    assert torch.allclose(layer(x + shift), u, atol=1e-11)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(layer(x[:, order]), u[:, order], atol=1e-13)
    assert torch.allclose(kind(k, 3 * temperature)(3 * x), u, atol=1e-12)
    assert torch.allclose(1 - kind(n - k, temperature)(-x), u, atol=1e-12)
    more = x.clone()
    more[:, 0] += 0.5
    assert bool((layer(more)[:, 0] >= u[:, 0] - 1e-13).all())


@both
def test_temperatures_from_one_end_to_the_other(kind):
    x = logits(4, 7)
    hard = torch.zeros_like(x).scatter_(1, x.topk(3).indices, 1.0)
    for temperature in (1e-300, 1e-20, 1e-8, 1e-4):
        assert torch.allclose(kind(3, temperature)(x), hard, atol=1e-12)
    for temperature in (1e8, 1e300):
        assert torch.allclose(kind(3, temperature)(x), torch.full_like(x, 3 / 7), atol=1e-7)


@both
def test_sums_where_sizes_differ(kind):
    for n, k in ((10_000, 10), (100_000, 1000)):
        x = logits(2, n)
        for temperature in (1e-6, 1.0, 1e3):
            s = kind(k, temperature).solution(x)
            assert bool((s.violation <= 1e-12).all())
            assert s.status.tolist() == [Status.CONVERGED] * 2


@both
@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_masked_entries_and_huge_logits(kind, dtype, k):
    # In float32 the multiplier had no digits left around the kth largest, and the sum was another than k.
    for x in ([1e8, -1e8, 3.0, 4.0, -3e8], [1.0, 2.5, -1e9, 3.0, -1e9]):
        x = torch.tensor([x], dtype=dtype, requires_grad=True)
        u = kind(k)(x)
        assert torch.allclose(u.sum(1), torch.tensor([float(k)], dtype=dtype), atol=1e-6)
        (gradient,) = torch.autograd.grad((u * torch.arange(5.0)).sum(), x)
        assert bool(gradient.isfinite().all())


@both
def test_nothing_everything_and_single_entries(kind):
    for k, n, expected in ((0, 4, 0.0), (4, 4, 1.0), (0, 1, 0.0), (1, 1, 1.0)):
        x = logits(2, n).requires_grad_()
        temperature = torch.tensor([0.7, 2.0], dtype=F64, requires_grad=True)
        u = kind(k)(x, temperature)
        assert torch.equal(u, torch.full((2, n), expected, dtype=F64))
        for gradient in torch.autograd.grad(u.sum(), (x, temperature)):
            assert not bool(gradient.any())
    for n in (1, 4):
        assert torch.allclose(kind(1)(torch.ones(2, n, dtype=F64)), torch.full((2, n), 1 / n, dtype=F64))


@both
def test_k_for_each_sample(kind):
    x, k = logits(2, 3, 6), torch.tensor([[0, 1, 6], [2, 5, 3]])
    u = kind(k)(x)
    for i in range(2):
        for j in range(3):
            assert torch.allclose(u[i, j], kind(int(k[i, j]))(x[i, j]), atol=1e-13)
    assert torch.allclose(kind(1)(x, k=k), u)
    assert torch.allclose(kind(k)(x.movedim(-1, 1).contiguous().movedim(1, -1)), u)
    assert torch.allclose(kind(k, dim=1)(x.movedim(-1, 1)).movedim(1, -1), u)
    assert torch.allclose(kind(k, dim=0)(x.movedim(-1, 0)).movedim(0, -1), u)
    assert torch.allclose(kind(k[:, :1])(x).sum(-1), k[:, :1].expand(2, 3).double())
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):  # 200 does not fit into an int8
        small = torch.tensor([1, 100], dtype=dtype)
        assert torch.allclose(kind(small)(logits(2, 200)).sum(1), small.double())


def test_a_number_as_temperature_of_one_call_counts():
    x = logits(3, 5)
    for kind in BOTH:
        assert torch.allclose(kind(2)(x, 0.3), kind(2, 0.3)(x), atol=1e-15)
        assert torch.allclose(kind(2).solution(x, 3).y, kind(2, 3.0)(x), atol=1e-15)
        with pytest.raises(ValueError, match="temperature must be positive and finite, got 0"):
            kind(2)(x, 0)


# Derivatives


@both
def test_derivatives_in_every_mode(kind):
    x, temperature = (sample_logits if kind is EntropicTopK else sample_capped)(3, torch.Generator().manual_seed(1), F64)
    temperature = temperature.expand(3).clone()
    layer = kind(torch.tensor([2, 2, 2]))
    inputs = (x.requires_grad_(), temperature.requires_grad_())
    assert torch.autograd.gradcheck(layer, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(layer, inputs, check_fwd_over_rev=True)
    reverse, forward = (mode(layer, argnums=(0, 1))(*(t.detach() for t in inputs)) for mode in (jacrev, jacfwd))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(reverse, forward, strict=True))
    x = x.detach()
    assert torch.allclose(vmap(kind(2))(x.expand(4, 3, -1)), kind(2)(x).expand(4, 3, -1), atol=1e-13)
    assert torch.allclose(jvp(kind(2), (x,), (torch.ones_like(x),))[1], torch.zeros_like(x), atol=1e-14)


@both
def test_the_multiplier_is_differentiable(kind):
    x, _ = sample_capped(2, torch.Generator().manual_seed(3), F64)
    assert torch.autograd.gradcheck(lambda x: kind(2, 0.8).solution(x).equality_multipliers, (x.requires_grad_(),))


@both
def test_verify(kind):
    x, temperature = sample_capped(3, torch.Generator().manual_seed(2), F64)
    for inputs in ((x,), (x, temperature)):
        report = verify(kind(CHOSEN, 0.9 * float(temperature.min())), *inputs)
        assert report.ok, str(report)
    assert bool(certify(kind(CHOSEN), x, temperature).regular.all())


@both
def test_a_temperature_is_learned(kind):
    x = logits(16, 8)
    target = kind(3, 0.5)(x)
    temperature = nn.Parameter(torch.tensor(1.5, dtype=F64))
    layer = kind(3, temperature)
    assert [name for name, _ in layer.named_parameters()] == ["temperature"]
    loss = lambda: (layer(x) - target).square().sum()  # noqa: E731
    (gradient,) = torch.autograd.grad(loss(), temperature)
    with torch.no_grad():
        values = []
        for step in (1e-6, -2e-6):
            temperature += step
            values.append(float(loss()))
        temperature += 1e-6
    assert abs((values[0] - values[1]) / 2e-6 - float(gradient)) <= 1e-5 * abs(float(gradient))
    optimizer = torch.optim.Adam([temperature], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert abs(float(temperature.detach()) - 0.5) < 0.05


def test_kinks_are_reported_and_one_sided():
    """u = (1, ½, ½, 0): the last entry touches its bound and does not push it, and so does the first."""
    x = torch.tensor([[1.5, 1.0, 1.0, 0.5], [3.0, 1.0, 1.0, -1.0]], dtype=F64)
    layer = EuclideanTopK(2)
    s = layer.solution(x)
    assert torch.allclose(s.y, torch.tensor([1.0, 0.5, 0.5, 0.0], dtype=F64).expand(2, 4))
    assert s.weakly_active.tolist() == [[False, False, False, True, True, False, False, False], [False] * 8]
    assert s.active.tolist() == [[False] * 8, [False, False, False, True, True, False, False, False]]
    jacobian = jacrev(layer)(x[0])
    inward, outward = torch.tensor([-1.0, 0, 0, 1.0], dtype=F64), torch.tensor([1.0, 0, 0, -1.0], dtype=F64)
    step = 1e-6
    assert torch.allclose((layer(x[0] + step * inward) - layer(x[0])) / step, jacobian @ inward, atol=1e-8)
    assert not bool((layer(x[0] + step * outward) - layer(x[0])).abs().gt(1e-12).any())
    assert not bool(jacrev(layer)(x[1])[[0, 3]].any())
