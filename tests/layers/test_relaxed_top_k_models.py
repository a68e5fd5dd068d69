"""The relaxations inside of other code: precisions, layouts, copies, compiled models, bad input."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from declarative.layers import EntropicTopK, EuclideanTopK, StraightThrough

F64 = torch.float64
both = pytest.mark.parametrize("kind", [EntropicTopK, EuclideanTopK])


def logits(*shape, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=F64).to(dtype)


def pulled(layer, x):
    x = x.detach().clone().requires_grad_()
    u = layer(x)
    return u.detach(), torch.autograd.grad((u * torch.arange(u.shape[-1], dtype=u.dtype)).sum(), x)[0]


@both
@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 1e-5), (torch.float16, 2e-2), (torch.bfloat16, 6e-2)])
def test_other_dtypes(kind, dtype, accuracy):
    x = logits(4, 9).to(dtype)
    found, expected = pulled(kind(3, 0.8), x), pulled(kind(3, 0.8), x.double())
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        assert torch.allclose(a.double(), b, atol=accuracy)
    parameter = nn.Parameter(torch.tensor(0.8, dtype=dtype))
    assert kind(3, parameter)(x).dtype == dtype


@both
def test_shapes_and_layouts(kind):
    x = logits(2, 3, 5)
    layer = kind(2)
    u = layer(x)
    for i in range(2):
        assert torch.allclose(layer(x[i]), u[i], atol=1e-14)
        assert torch.allclose(layer(x[i, 0]), u[i, 0], atol=1e-14)
    assert torch.allclose(kind(2, dim=1)(x.mT), u.mT, atol=1e-14)
    assert torch.allclose(kind(2, dim=0)(x.permute(2, 0, 1)), u.permute(2, 0, 1), atol=1e-14)
    before = x.clone()
    pulled(layer, x)
    assert torch.equal(x, before)
    for k in (2, torch.zeros(0, dtype=torch.int64)):
        empty, gradient = pulled(kind(k), torch.zeros(0, 5))
        assert empty.shape == gradient.shape == (0, 5)
    temperature = torch.tensor([[0.5], [2.0]], dtype=F64)
    assert torch.allclose(layer(x, temperature)[1, 2], kind(2, 2.0)(x[1, 2]), atol=1e-14)


@both
def test_copies_states_and_models(kind):
    layer, x = kind(2, nn.Parameter(torch.tensor(0.7, dtype=F64))), logits(3, 6)
    assert list(layer.state_dict()) == ["temperature"]
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
    other = kind(2, nn.Parameter(torch.tensor(9.0, dtype=F64)))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    expected = pulled(kind(2), x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pulled(kind(2), x.float())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    net = nn.Sequential(nn.Linear(6, 6).double(), layer)
    plain = torch.autograd.grad(net(x).square().sum(), tuple(net.parameters()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its own making
        compiled = torch.autograd.grad(torch.compile(net, backend="eager")(x).square().sum(), tuple(net.parameters()))
    assert all(torch.allclose(a, b, atol=1e-14) for a, b in zip(plain, compiled, strict=True))


@both
def test_straight_through(kind):
    x = logits(3, 4, 7)
    for k in (3, torch.tensor([0, 1, 2, 7])):
        layer = StraightThrough(kind(k, 0.6))
        y, gradient = pulled(layer, x)
        assert torch.equal(y.unique(), torch.tensor([0.0, 1.0], dtype=F64))
        assert torch.equal(y.sum(-1), (torch.as_tensor(k).expand(4)).double().expand(3, 4))
        assert torch.equal(gradient, pulled(layer.relaxed, x)[1])
    assert torch.equal(StraightThrough(kind(2, dim=0))(x).sum(0), torch.full((4, 7), 2.0, dtype=F64))
    with pytest.raises(TypeError, match="relaxed must be EntropicTopK"):
        StraightThrough(2)


@both
def test_bad_k(kind):
    for k in (2.0, True, -1, "2", None):
        with pytest.raises(ValueError, match="k must be an int, 0 or more, or an integer tensor, got"):
            kind(k)
    for k in (torch.tensor(2.0), torch.tensor(True)):
        with pytest.raises(TypeError, match="k must be an integer tensor, got torch"):
            kind(k)
        with pytest.raises(TypeError, match="k must be an integer tensor, got torch"):
            kind(1)(logits(2, 3), k=k)
    with pytest.raises(ValueError, match="between 0 and the number of entries, 3, got 4"):
        kind(4)(logits(2, 3))
    with pytest.raises(ValueError, match=r"number of entries, 3: 2 of 4 samples \(0, 2\), -1 in the first"):
        kind(torch.tensor([-1, 3, 4, 0]))(logits(4, 3))
    with pytest.raises(ValueError, match=r"k must broadcast to \(2,\), one for each sample, got \(3,\)"):
        kind(torch.tensor([1, 1, 1]))(logits(2, 3))


@both
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_bad_logits(kind, bad):
    x = logits(3, 4)
    x[1, 2] = bad
    for k in (0, 2, 4):
        with pytest.raises(ValueError, match=r"logits must be finite: NaN or inf in 1 of 3 samples \(1\)"):
            kind(k)(x)
    with pytest.raises(TypeError, match=r"floating tensor \(…, n\), got torch.int64"):
        kind(1)(torch.tensor([1, 2]))
    with pytest.raises(TypeError, match="got list"):
        kind(1)([1.0, 2.0])
    with pytest.raises(ValueError, match="no entries along dim=-1"):
        kind(0)(torch.zeros(3, 0))
    for dim in (2, -3, 1.0):
        with pytest.raises(ValueError, match="is no dimension of logits of shape"):
            kind(1, dim=dim)(logits(2, 3))


@both
def test_bad_temperatures(kind):
    for temperature in (0, -1.0, float("nan"), float("inf"), True, "1"):
        with pytest.raises(ValueError, match="temperature must be positive and finite, got"):
            kind(1, temperature)
    x = logits(2, 3)
    for values in ([1.0, -1.0], [0.0, 1.0], [1.0, torch.nan], [1.0, torch.inf]):
        with pytest.raises(ValueError, match=r"temperature must be positive and finite, got .* Learn its logarithm"):
            kind(1)(x, torch.tensor(values, dtype=F64))
    with pytest.raises(ValueError, match=r"temperature must broadcast to \(2,\), one for each sample, got \(3,\)"):
        kind(1)(x, torch.ones(3, dtype=F64))
    with pytest.raises(TypeError, match=r"temperature is torch.float32 on cpu, the logits are torch.float64"):
        kind(1)(x, torch.ones(2))


@both
def test_gradients_at_temperatures_where_logits_over_temperature_overflow(kind):
    for dtype, temperature in ((F64, 1e-308), (torch.float32, 1e-38), (torch.float32, 1e-9)):
        x = torch.tensor([20.0, 1.0, 0.0, -1e30], dtype=dtype, requires_grad=True)
        t = torch.tensor(temperature, dtype=dtype, requires_grad=True)
        u = kind(2)(x, t)
        assert u.tolist() == [1, 1, 0, 0]
        for gradient in torch.autograd.grad((u * torch.arange(4.0)).sum(), (x, t)):
            assert not bool(gradient.any())  # was NaN: a derivative of zero times infinity


@both
def test_straight_through_under_transforms(kind):
    x = logits(2, 3, 5)
    for k in (2, torch.tensor([0, 2, 4])):
        layer = StraightThrough(kind(k))
        assert torch.equal(torch.func.vmap(layer)(x), layer(x))
        assert torch.allclose(torch.func.jacrev(layer)(x[0]), torch.func.jacrev(layer.relaxed)(x[0]), atol=1e-14)
        assert torch.allclose(torch.func.jacfwd(layer)(x[0]), torch.func.jacrev(layer.relaxed)(x[0]), atol=1e-14)
