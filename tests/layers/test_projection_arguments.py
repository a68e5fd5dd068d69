"""Projections: natural shapes, precisions, what is learned, bad input."""

import copy

import pytest
import torch
from torch import nn
from torch.func import vmap

from declarative import verify
from declarative.layers import (
    AffineProjection,
    BoxProjection,
    HalfSpaceProjection,
    L1BallProjection,
    L2BallProjection,
    SimplexProjection,
    Sparsemax,
)
from tests.layers.projections import F64, SIZED, normal

pytestmark = pytest.mark.usefixtures("shapes_unchecked")
sized = pytest.mark.parametrize("kind", SIZED)


@sized
def test_natural_shapes(kind):
    x, size = normal(2, 3, 4), torch.rand(2, 3, dtype=F64) + 0.2
    layer = kind(0.8)
    expected = torch.stack([layer(row) for row in x.reshape(6, 4)]).reshape(2, 3, 4)
    torch.testing.assert_close(layer(x), expected)
    for dim in (0, 1, 2, -1, -2, -3):
        torch.testing.assert_close(kind(0.8, dim=dim)(x.movedim(-1, dim)).movedim(dim, -1), expected)
    torch.testing.assert_close(layer(x.mT.contiguous().mT), expected)
    torch.testing.assert_close(layer(x.movedim(0, 1), in_dims=1), expected)
    torch.testing.assert_close(layer(x[0], in_dims=None), expected[0])
    torch.testing.assert_close(layer(x, size)[1, 2], kind(float(size[1, 2]))(x[1, 2]))
    torch.testing.assert_close(layer(x, size[:, :1]), layer(x, size[:, :1].expand(2, 3)))
    torch.testing.assert_close(layer(x[0, 0], size), layer(x[:1, :1].expand(2, 3, 4), size))  # one point, many sets
    torch.testing.assert_close(layer(x, **{kind.arguments[1]: 2}), kind(2.0)(x))
    s = layer.solution(x)
    assert s.status.shape == s.stationarity.shape == (2, 3)
    assert s.active.shape[:2] == s.equality_multipliers.shape[:2] == (2, 3)
    for empty in (x[:0], x[:, :0]):
        leaf = empty.clone().requires_grad_()
        layer(leaf).sum().backward()
        assert leaf.grad.shape == empty.shape
        assert layer.solution(empty).active.shape[:2] == empty.shape[:2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@sized
def test_precisions(kind, dtype):
    x = normal(3, 6, dtype=dtype).requires_grad_()
    y = kind(0.9)(x)
    y.float().square().sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), kind(0.9)(x.double()), rtol=4 * eps, atol=4 * eps)


def test_parts_of_sets_in_any_shape():
    x, a, b, A = normal(2, 3, 4), normal(3, 4, seed=1), normal(2, 1, seed=2), normal(2, 4, seed=3)
    y = HalfSpaceProjection()(x, a, b)
    torch.testing.assert_close(y[1, 2], HalfSpaceProjection(a[2], float(b[1, 0]))(x[1, 2]))
    y = AffineProjection(A, torch.zeros(2, dtype=F64))(x)
    torch.testing.assert_close(y @ A.mT, torch.zeros(2, 3, 2, dtype=F64))
    y = AffineProjection()(x, A, normal(3, 2, seed=4))
    torch.testing.assert_close((y @ A.mT)[1], normal(3, 2, seed=4))
    for layer, inputs in ((BoxProjection(), (x, -a.abs(), 0.5)), (HalfSpaceProjection(), (x, a, b)), (AffineProjection(), (x, A, normal(3, 2)))):
        assert layer(x[:0], *(t[:0] if isinstance(t, torch.Tensor) and t.shape[0] == 2 and t is not A else t for t in inputs[1:])).shape == (0, 3, 4)


@sized
def test_what_is_learned(kind):
    x = normal(16, 6)
    target = kind(1.5)(x)
    size = nn.Parameter(torch.tensor(0.6, dtype=F64))
    layer = kind(size)
    assert [name for name, _ in copy.deepcopy(layer).named_parameters()] == [kind.arguments[1]]
    assert "learned" in repr(layer)
    optimizer = torch.optim.Adam([size], lr=0.1)
    for _ in range(80):
        optimizer.zero_grad()
        (layer(x) - target).square().sum().backward()
        optimizer.step()
    assert abs(float(size.detach()) - 1.5) < 0.05


def test_under_autocast_and_compile():
    x, A, b = normal(3, 4, dtype=torch.float32), normal(2, 4, dtype=torch.float32), torch.zeros(2)
    layer = AffineProjection(A, b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(x), layer(x.clone()))
        assert layer(x).dtype == torch.float32
    torch.testing.assert_close(layer(x) @ A.mT, torch.zeros(3, 2), rtol=0.0, atol=1e-5)
    torch.testing.assert_close(torch.compile(nn.Sequential(Sparsemax()), backend="eager")(x), Sparsemax()(x))


BAD = [
    (lambda: SimplexProjection(0.0)(normal(2, 3)), "total must be positive and finite"),
    (lambda: L1BallProjection()(normal(2, 3), torch.tensor([1.0, -1.0], dtype=F64)), r"radius must be positive and finite.*1 of 2 samples \(1\)"),
    (lambda: L2BallProjection()(torch.tensor([[1.0], [torch.nan]])), r"x must be finite.*1 of 2 samples \(1\)"),
    (lambda: Sparsemax()(torch.full((1, 3), -torch.inf)), "−inf throughout"),
    (
        lambda: L1BallProjection()(normal(2, 3), torch.ones(5, dtype=F64)),
        r"radius of shape \(5,\) has leading dimensions \(5,\), which do not broadcast",
    ),
    (lambda: L1BallProjection()([1.0, 2.0]), "x must be a tensor"),
    (lambda: L1BallProjection()(torch.arange(3)), "x must be a tensor with a floating dtype, got torch.int64"),
    (lambda: L1BallProjection("one"), "radius must be a number, a tensor or a torch.nn.Parameter, got 'one'"),
    (lambda: L1BallProjection(torch.tensor(1.0))(normal(2, 3)), "radius is torch.float32 on cpu, x is torch.float64"),
    (lambda: L1BallProjection(dim=2)(normal(2, 3)), r"x of shape \(2, 3\) has no dimension dim=2"),
    (lambda: L1BallProjection()(torch.ones(2, 0)), "has no entries along dim=-1"),
    (lambda: L1BallProjection()(normal(2, 3), 1.0, 2.0), r"takes 2 inputs \(x, radius\), got 3"),
    (lambda: L1BallProjection()(normal(2, 3), 1.0, radius=2.0), "got radius twice"),
    (lambda: L1BallProjection()(normal(2, 3), size=2.0), "got size besides"),
    (lambda: BoxProjection(1.0, 0.0)(normal(2, 3)), "lower must not exceed upper"),
    (lambda: BoxProjection(torch.zeros(4, dtype=F64))(normal(2, 3)), r"lower of shape \(4,\) does not broadcast with x of shape \(2, 3\)"),
    (lambda: HalfSpaceProjection()(normal(2, 3)), "a is missing; pass it to the layer, or in the call"),
    (lambda: HalfSpaceProjection(torch.zeros(3, dtype=F64), 1.0)(normal(2, 3)), "a must not be zero"),
    (lambda: HalfSpaceProjection(torch.ones(4, dtype=F64), 1.0)(normal(2, 3)), "a must have as many entries as x, 3, got 4"),
    (lambda: AffineProjection()(normal(2, 3), normal(2, 4), normal(2)), "must fit together"),
    (lambda: AffineProjection()(normal(2, 3), normal(3), normal(2)), r"A must be a matrix \(…, m, n\) for each sample"),
    (lambda: verify(Sparsemax(), normal(2, 2, 3)), "flatten leading dimensions"),
    (lambda: Sparsemax().solution(normal(2, 3), init=normal(2, 3)), "takes no warm start"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_bad_numbers_are_named_under_vmap():
    with pytest.raises(ValueError, match="radius must be positive"):
        vmap(L1BallProjection())(normal(2, 3), torch.tensor([1.0, -1.0], dtype=F64))
