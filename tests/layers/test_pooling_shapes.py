"""The pooling layer's shapes: dimensions, channels on their own, weights, masks; what it refuses."""

import pytest
import torch
from torch import nn

from declarative.differentiation import Implicit
from declarative.layers import RobustPooling
from declarative.layers.pooling import Cauchy, Huber, Quadratic, TruncatedQuadratic, Welsch
from problems.robust_pooling import with_outliers

F64 = torch.float64
TIGHT = 1e-13


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def points(*shape):
    """One in five is an outlier."""
    return with_outliers(generator(), *shape)


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


# Bad input


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
