"""Combinatorial solvers inside of other code: functions of one's own that misbehave, bad input, copies, compiled and trained models."""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from declarative.layers import Assignment, Function, IdentitySolver, ShortestPath, SpanningTree, TopK
from tests.layers.test_combinatorial import EDGES, pulled, weights


@pytest.mark.parametrize("cast", [lambda y: y, lambda y: y.astype(int), lambda y: y.tolist(), torch.as_tensor, lambda y: y.astype(np.float16)])
def test_what_a_function_may_return(cast):
    w = weights(4, 5)
    y = IdentitySolver(lambda w: cast(w == w.max()))(w)
    assert torch.equal(y, IdentitySolver(TopK(1))(w))


def test_functions_that_write_where_they_should_not():
    w = weights(4, 5)
    before, buffer = w.clone(), np.zeros(5)

    def careless(w):
        buffer[:] = w == w.max()
        w.sort()
        return buffer

    assert torch.equal(IdentitySolver(careless)(w), IdentitySolver(TopK(1))(w))
    assert torch.equal(w, before)


def test_functions_that_fail():
    w = weights(4, 5)
    for function, error, message in (
        (lambda w: np.ones(4), ValueError, r"the weights' shape \(5,\), got \(4,\)"),
        (lambda w: 1.0, ValueError, r"shape \(5,\), got \(\)"),
        (lambda w: None, TypeError, r"real numbers of shape \(5,\), got NoneType"),
        (lambda w: [1, [2], 3, 4, 5], TypeError, "got list"),
        (lambda w: "y", TypeError, "got str"),
        (lambda w: w * 1j, TypeError, "real numbers"),
        (lambda w: w * math.nan, ValueError, "returned NaN or inf"),
        (lambda w: 1 // 0, ZeroDivisionError, "by zero"),
        (Function(lambda w: w, feasible=lambda y: bool(y.sum() == 1)), ValueError, "infeasible point, one for which feasible"),
        (Function(lambda w: 1 // 0, workers=2), ZeroDivisionError, "by zero"),
    ):
        with pytest.raises(error, match=message):
            IdentitySolver(function)(w)
    for make in (lambda: Function(3), lambda: IdentitySolver(None), lambda: IdentitySolver(Assignment)):
        with pytest.raises(TypeError, match="must"):
            make()
    with pytest.raises(ValueError, match="event_dims must be a positive int, got 0"):
        Function(np.sign, 0)


def test_bad_weights_and_options():
    layer = IdentitySolver(Assignment())
    for bad in (math.nan, math.inf, -math.inf):
        w = weights(3, 2, 2)
        w[1, 0, 1] = bad
        with pytest.raises(ValueError, match=r"weights must be finite: NaN or inf in 1 of 3 samples \(1\)"):
            layer(w)
    for w, error, message in (
        (torch.ones(3), ValueError, r"at least 2 dimensions for Assignment, none empty, got \(3,\)"),
        (torch.ones(2, 0, 3), ValueError, "none empty"),
        (torch.ones(2, 2, dtype=torch.int64), TypeError, "floating tensor, got torch.int64"),
        ([[1.0]], TypeError, "floating tensor, got list"),
    ):
        with pytest.raises(error, match=message):
            layer(w)
    with pytest.raises(ValueError, match="costs that are not negative, got -1 among them; pass them through softplus"):
        IdentitySolver(ShortestPath(), "min")(-torch.ones(2, 2))
    with pytest.raises(ValueError, match="the longest path cannot be found"):
        IdentitySolver(ShortestPath())(torch.ones(2, 2))
    for options in ({"margin": -1.0}, {"noise": math.nan}, {"margin": "1"}):
        with pytest.raises(ValueError, match="must be a number, 0 or more, got"):
            IdentitySolver(TopK(1), **options)
    layer = IdentitySolver(TopK(1), margin=1.0)
    for target, error in ((None, ValueError), ([1, 0], TypeError), (torch.ones(3), ValueError), (torch.tensor([math.nan, 0.0]), ValueError)):
        with pytest.raises(error, match="target"):
            layer(torch.ones(2), target)


def test_costs_next_to_the_largest_number():
    """Their sums overflowed, and the path had lost all but its end."""
    layer, costs = IdentitySolver(ShortestPath(), "min"), weights(3, 4, 4, positive=True)
    for size in (1e308, 1.7e308):
        assert torch.equal(layer(costs * size), layer(costs))


@pytest.mark.parametrize("edges", [[], [(0, 1), (2, 3)], [(0, 0)], [(0, 1), (1, 0)], [(0.0, 1.0)], [(-1, 0)], [(0, 1), (1, 2, 3)], [0, 1], [(0, 2)]])
def test_bad_edges(edges):
    with pytest.raises(ValueError, match="SpanningTree: "):
        SpanningTree(edges)
    tree = SpanningTree(torch.tensor(EDGES))
    with pytest.raises(ValueError, match=r"weights must be \(…, 7\), one for each edge, got instances of shape \(6,\)"):
        IdentitySolver(tree)(torch.ones(2, 6))


def test_copies_and_models():
    w = weights(3, 4, 4, positive=True)
    layer = IdentitySolver(ShortestPath(workers=2), "min", "scale")
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(w), layer(w))
    assert not layer.state_dict()
    net = nn.Sequential(nn.Linear(4, 4).double(), nn.Softplus(), layer)
    plain = torch.autograd.grad(net(w)[..., 0].sum(), tuple(net.parameters()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its own making
        compiled = torch.autograd.grad(torch.compile(net, backend="eager")(w)[..., 0].sum(), tuple(net.parameters()))
    assert all(torch.allclose(a, b, atol=1e-14) for a, b in zip(plain, compiled, strict=True))
    expected = pulled(layer, w.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(pulled(layer, w.float()), expected, strict=True))
    costs = nn.Parameter(torch.ones(3, 3))
    target = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 1]])
    optimizer = torch.optim.SGD([costs], lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        (IdentitySolver(ShortestPath(), "min", margin=0.1)(costs.abs(), target) - target).square().sum().backward()
        optimizer.step()
    assert torch.equal(IdentitySolver(ShortestPath(), "min")(costs.abs()), target)
