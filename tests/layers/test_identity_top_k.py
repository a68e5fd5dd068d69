"""Hard top-k with the identity method: exactly k ones, the backward pass by its formulas, layouts, models, bad input."""

import copy
import itertools
import math
import pickle
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import jacfwd, jacrev, jvp, vmap

from declarative import verify
from declarative.layers import Gumbel, GumbelK, IdentityTopK, Normal

F64 = torch.float64
PROJECTIONS = ("standardise", "centre", "scale", None)
every_projection = pytest.mark.parametrize("projection", PROJECTIONS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def logits(*shape, seed=0, dtype=F64):
    return torch.randn(shape, generator=generator(seed), dtype=F64).to(dtype)


def jacobian(projection, x):
    """Of one row, written out."""
    n = len(x)
    p = torch.eye(n, dtype=x.dtype) - (1 / n if projection in ("centre", "standardise") else 0.0)
    if projection in (None, "centre"):
        return p
    norm = (p @ x).norm()
    z = p @ x / norm
    return (p - torch.outer(z, z)) / norm


def pulled(layer, x, v=None, *arguments, **options):
    x = x.detach().clone().requires_grad_()
    y = layer(x, *arguments, **options)
    v = torch.arange(y.numel(), dtype=y.dtype).reshape(y.shape).sin() if v is None else v
    return y.detach(), torch.autograd.grad(y, x, v)[0]


# Values and gradients


@given(n=st.integers(1, 9), seed=st.integers(0, 100), levels=st.integers(1, 4), ties=st.sampled_from(["first", "random"]), data=st.data())
def test_exactly_k_ones_at_the_largest_with_and_without_ties(n, seed, levels, ties, data):
    k = data.draw(st.integers(0, n))
    x = torch.randint(levels, (5, n), generator=generator(seed)).double()
    y = IdentityTopK(k, ties=ties)(x)
    assert bool(((y == 0) | (y == 1)).all())
    assert y.sum(1).tolist() == [k] * 5
    row = x[0].tolist()
    assert float((x[0] * y[0]).sum()) == max(sum(row[i] for i in places) for places in itertools.combinations(range(n), k))
    if ties == "first":
        order = x.argsort(dim=1, descending=True, stable=True)[:, :k]
        assert torch.equal(y, torch.zeros_like(x).scatter_(1, order, 1.0))
    per_sample = torch.randint(n + 1, (5,), generator=generator(seed))
    assert torch.equal(IdentityTopK(per_sample, ties=ties)(x).sum(1), per_sample.double())


@every_projection
def test_backward_is_the_jacobian_of_the_projection(projection):
    x, v = logits(3, 6), logits(3, 6, seed=1)
    layer = IdentityTopK(2, projection)
    _, gradient = pulled(layer, x, v)
    for i in range(3):
        assert torch.allclose(gradient[i], jacobian(projection, x[i]) @ v[i], atol=1e-14)
    _, k_each = pulled(IdentityTopK(torch.tensor([0, 2, 6]), projection), x, v)
    assert torch.allclose(k_each, gradient * torch.tensor([[0.0], [1.0], [0.0]]), atol=1e-14)
    # ... and so a step along −v changes the choice toward a smaller ⟨v, y⟩
    assert float((v * layer(x - 100 * gradient)).sum()) < float((v * layer(x)).sum())


@every_projection
def test_it_is_the_dense_gradient_of_the_surrogate(projection):
    x, v = logits(3, 6), logits(3, 6, seed=1)
    layer = IdentityTopK(2, projection)
    report = verify(layer.surrogate, x)
    assert report.ok, str(report)
    assert "vjp = dense formula" in str(report)
    assert torch.allclose(pulled(layer.surrogate, x, v)[1], pulled(layer, x, v)[1], atol=1e-9)


@every_projection
def test_every_mode_of_differentiation(projection):
    x, v = logits(2, 5), logits(2, 5, seed=1)
    layer = IdentityTopK(2, projection)
    reverse = jacrev(layer)(x)
    assert torch.allclose(jacfwd(layer)(x), reverse, atol=1e-14)
    assert torch.allclose(torch.stack([reverse[i, :, i] for i in range(2)]), torch.stack([jacobian(projection, row) for row in x]), atol=1e-14)
    assert torch.allclose(jvp(layer, (x,), (v,))[1], pulled(layer, x, v)[1], atol=1e-14)  # symmetric
    assert torch.equal(vmap(layer)(x), layer(x))
    assert torch.allclose(vmap(jacrev(layer))(x), torch.stack([jacobian(projection, row) for row in x]), atol=1e-14)
    assert torch.equal(vmap(IdentityTopK(torch.tensor([1, 3])))(x.expand(4, 2, 5)).sum(-1), torch.tensor([1.0, 3.0], dtype=F64).expand(4, 2))

    def backward(x):
        return torch.autograd.grad(layer(x), x, v, create_graph=True)[0]

    assert torch.autograd.gradcheck(backward, (x.clone().requires_grad_(),))  # J(x)v has a derivative of its own


@every_projection
def test_what_has_no_choice_or_no_direction(projection):
    for k in (0, 5):
        y, gradient = pulled(IdentityTopK(k, projection), logits(2, 5))
        assert torch.equal(y, torch.full((2, 5), k / 5, dtype=F64))
        assert not bool(gradient.any())
    for x in (torch.zeros(3, 5), torch.full((3, 5), 0.1), torch.full((3, 5), -1e8), torch.ones(3, 1), 1e-8 + torch.full((3, 7), 1e3)):
        y, gradient = pulled(IdentityTopK(1, projection), x)
        assert y.sum(1).tolist() == [1.0] * 3
        assert bool(gradient.isfinite().all())
        if projection == "standardise" or x.shape[1] == 1:
            assert not bool(gradient.any())
    huge = torch.tensor([[3e38, -3e38, 1.0, 0.0], [1e-30, 2e-30, 0.0, 0.0], [-1e9, 3.0, 1.0, -1e9]])
    y, gradient = pulled(IdentityTopK(2, projection), huge)
    assert y.tolist() == [[1, 0, 1, 0], [1, 1, 0, 0], [0, 1, 1, 0]]
    assert bool(gradient.isfinite().all())


# Layouts and models


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_dtypes(dtype):
    x = logits(4, 9).to(dtype)
    y, gradient = pulled(IdentityTopK(3), x)
    expected = pulled(IdentityTopK(3), x.double())
    assert y.dtype == gradient.dtype == dtype
    assert torch.equal(y.double(), expected[0])
    assert torch.allclose(gradient.double(), expected[1], atol=1e-6 if dtype == torch.float32 else 2e-2)


def test_dimensions_layouts_and_empty_batches():
    x = logits(2, 3, 5)
    y, gradient = pulled(IdentityTopK(2), x, torch.ones(2, 3, 5).cumsum(2).double())
    for dim in (0, 1, -1, -2):
        moved = x.movedim(-1, dim)
        found, slope = pulled(IdentityTopK(2, dim=dim), moved, torch.ones(2, 3, 5).cumsum(2).double().movedim(-1, dim))
        assert torch.equal(found, y.movedim(-1, dim))
        assert torch.allclose(slope, gradient.movedim(-1, dim), atol=1e-14)
    assert torch.equal(IdentityTopK(2)(x[0, 0]), y[0, 0])
    assert torch.equal(IdentityTopK(1)(x, 2), y)
    for k in (2, torch.zeros(0, dtype=torch.int64)):
        empty, gradient = pulled(IdentityTopK(k), torch.zeros(0, 5))
        assert empty.shape == gradient.shape == (0, 5)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        small = torch.tensor([0, 1, 100], dtype=dtype)
        for values in (logits(3, 200), torch.zeros(3, 200)):
            assert IdentityTopK(small)(values).sum(1).tolist() == [0, 1, 100]


def test_copies_and_models():
    layer, x = IdentityTopK(torch.tensor([1, 2, 3]), noise=GumbelK(2), ties="random"), logits(3, 6)
    assert not layer.state_dict()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x, generator=generator()), layer(x, generator=generator()))
    expected = pulled(IdentityTopK(2), x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(pulled(IdentityTopK(2), x.float()), expected, strict=True))
    net = nn.Sequential(nn.Linear(6, 6).double(), IdentityTopK(2), nn.Linear(6, 1).double())
    plain = torch.autograd.grad(net(x).sum(), tuple(net.parameters()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its own making
        compiled = torch.autograd.grad(torch.compile(net, backend="eager")(x).sum(), tuple(net.parameters()))
    assert all(torch.allclose(a, b, atol=1e-14) for a, b in zip(plain, compiled, strict=True))
    weights = nn.Parameter(torch.zeros(6))
    optimizer = torch.optim.SGD([weights], lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        (IdentityTopK(2, "centre")(weights) - torch.tensor([0.0, 0, 1, 0, 0, 1])).square().sum().backward()
        optimizer.step()
    assert IdentityTopK(2)(weights).tolist() == [0, 0, 1, 0, 0, 1]


# Bad input


def test_bad_input():
    for bad in (torch.nan, torch.inf, -torch.inf):
        x = logits(3, 4)
        x[1, 2] = bad
        for k in (0, 1, 4, torch.tensor([0, 1, 4])):
            # Infinite logits passed, and standardising gave NaN gradients.
            with pytest.raises(ValueError, match=r"logits must be finite: NaN or inf in 1 of 3 samples \(1\)"):
                IdentityTopK(k)(x)
    for k, error, message in (
        (2.0, ValueError, "must be an int, 0 or more, or an integer tensor, got 2.0"),
        (True, ValueError, "got True"),
        (-1, ValueError, "got -1"),
        (torch.tensor(2.0), TypeError, "must be an integer tensor, got torch.float32"),
    ):
        with pytest.raises(error, match=f"k must be|{message}"):
            IdentityTopK(k)
    x = logits(2, 4)
    for k, message in ((5, "entries, 4, got 5"), (torch.tensor([1, 7]), r"1 of 2 samples \(1\), 7 in"), (torch.ones(3).long(), r"broadcast to \(2,\)")):
        with pytest.raises(ValueError, match=f"k must .*{message}"):
            IdentityTopK(1)(x, k)
    for options, error, message in (
        ({"projection": "center"}, ValueError, "projection must be one of"),
        ({"ties": "last"}, ValueError, "ties must be one of .'first', 'random'., got 'last'"),
        ({"noise": GumbelK}, TypeError, "noise must be an object such as"),
    ):
        with pytest.raises(error, match=message):
            IdentityTopK(1, **options)
    for options, message in (({"samples": 0}, "samples must be a positive int, got 0"), ({"sample": True}, "needs a layer with noise")):
        with pytest.raises(ValueError, match=message):
            IdentityTopK(1)(x, **options)
    for make in (lambda: GumbelK(0), lambda: GumbelK(1.0), lambda: GumbelK(2, 0.0), lambda: GumbelK(2, terms=0), lambda: Gumbel(-1), lambda: Normal(math.nan)):
        with pytest.raises(ValueError, match="must be a positive"):
            make()
