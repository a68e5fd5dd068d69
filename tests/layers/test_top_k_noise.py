"""Sampling k-hot vectors: noise with the right moments, samples, generators, training and evaluation, random ties."""

import math

import torch

from declarative.layers import Gumbel, GumbelK, IdentityTopK, Normal
from tests.layers.test_identity_top_k import F64, generator, logits, pulled


def moments(sample):
    return float(sample.mean()), float(sample.var())


def test_the_sum_of_k_is_gumbel():
    euler = 0.57721566
    for k, temperature in ((1, 1.0), (3, 0.5), (6, 2.0)):
        mean, variance = moments(GumbelK(k, temperature, terms=50).sample(torch.zeros(20_000, k, dtype=F64), generator(k)).sum(1))
        assert abs(mean - temperature * euler) < 0.03 * temperature
        assert abs(variance - temperature**2 * math.pi**2 / 6) < 0.06 * temperature**2
    total = GumbelK(3, terms=100).sample(torch.zeros(20_000, 3, dtype=F64), generator()).sum(1)
    for x in (-1.0, 0.0, 1.0, 3.0):  # the whole distribution
        assert abs(float((total <= x).double().mean()) - math.exp(-math.exp(-x))) < 0.012
    # With few terms what is missing is the tail Σ_{i>m} 1/i² of the variance.
    mean, variance = moments(GumbelK(2, terms=2).sample(torch.zeros(40_000, 2, dtype=F64), generator()).sum(1))
    assert abs(variance - 1.25) < 0.06
    assert abs(mean - euler) < 0.03


def test_gumbel_and_normal():
    x = torch.tensor([1.0, 0.0, -1.0], dtype=F64)
    for temperature in (1.0, 0.5):
        mean, variance = moments(Gumbel(temperature).sample(torch.zeros(100_000, dtype=F64), generator()))
        assert abs(mean - 0.57721566 * temperature) < 0.02 * temperature
        assert abs(variance - (math.pi * temperature) ** 2 / 6) < 0.03
        draws = IdentityTopK(1, noise=Gumbel(temperature))(x, samples=20_000, generator=generator())
        assert torch.allclose(draws.mean(0), (x / temperature).softmax(0), atol=0.015)
    mean, variance = moments(Normal(0.3).sample(torch.zeros(100_000), generator()))
    assert abs(mean) < 0.005
    assert abs(variance - 0.09) < 0.002


def test_samples_modes_and_generators():
    x = logits(3, 4, 6)
    for k in (2, torch.tensor([0, 1, 2, 6])):
        layer = IdentityTopK(k, noise=GumbelK(2))
        y = layer(x, samples=5, generator=generator(1))
        assert y.shape == (5, 3, 4, 6)
        assert torch.equal(y.sum(-1), torch.as_tensor(k).double().expand(5, 3, 4))
        assert torch.equal(y, layer(x, samples=5, generator=generator(1)))
        assert not torch.equal(y, layer(x, samples=5, generator=generator(2)))
        assert not torch.equal(layer(x, generator=generator(1)), layer(x, sample=False))
        hard = IdentityTopK(k)(x)
        layer.eval()
        assert torch.equal(layer(x), hard)
        assert torch.equal(layer(x, samples=2), hard.expand(2, 3, 4, 6))
        assert not torch.equal(layer(x, sample=True, generator=generator(1)), hard)
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(layer(x, samples=3, sample=True).square().sum(), x)
        assert gradient.shape == x.shape
        x = x.detach()
    for dim in (0, 1, -2):
        y = IdentityTopK(2, noise=Gumbel(), dim=dim)(x, samples=4)
        assert torch.equal(y.sum(dim + 1 if dim >= 0 else dim).unique(), torch.tensor([2.0], dtype=F64))
    noise = GumbelK(2).sample(x, generator(3))
    given = IdentityTopK(2, noise=GumbelK(2))
    assert torch.equal(given(x, generator=generator(3)), IdentityTopK(2)(x + noise))
    # The projection is that of the perturbed logits.
    assert torch.allclose(pulled(given, x, generator=generator(3))[1], pulled(IdentityTopK(2), x + noise)[1], atol=1e-14)


def test_random_ties_are_fair_and_seeded():
    x = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0]).expand(3000, 5)
    layer = IdentityTopK(2, ties="random")
    shares = layer(x, generator=generator()).mean(0)
    assert torch.allclose(shares, torch.tensor([1.0, 1 / 3, 1 / 3, 1 / 3, 0.0]), atol=0.03)
    assert torch.equal(layer(x, generator=generator(5)), layer(x, generator=generator(5)))
