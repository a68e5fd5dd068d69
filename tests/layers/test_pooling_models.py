"""The pooling layer inside of other code: layouts, copies, autocast, compiled and trained models."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from declarative import Status
from declarative.layers import RobustPooling
from declarative.layers.pooling import Barron, Cauchy, GemanMcClure, Huber, PseudoHuber, Quadratic, TruncatedQuadratic, Welsch
from problems.robust_pooling import with_outliers

F64 = torch.float64
ALL = (Quadratic(), *(kind(1.5) for kind in (PseudoHuber, Huber, Welsch, TruncatedQuadratic, GemanMcClure, Cauchy)))
every_penalty = pytest.mark.parametrize("penalty", ALL, ids=str)


def cluster(*shape, dtype=F64):
    """One in five points far away."""
    return with_outliers(torch.Generator().manual_seed(0), *shape).to(dtype)


def pulled(layer, *inputs):
    """The point, and the gradients of its sum."""
    inputs = tuple(t.clone().requires_grad_() for t in inputs)
    u = layer(*inputs)
    return u.detach(), *torch.autograd.grad(u.sum(), inputs)


@every_penalty
def test_layouts_in_memory(penalty):
    x, layer = cluster(3, 4, 10), RobustPooling(penalty, tolerance=1e-13)
    assert torch.allclose(layer(x.mT.contiguous().mT), layer(x), atol=1e-11)
    shared = x[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(shared.expand(3, 4, 10)).sum(), shared)
    assert torch.allclose(gradient, 3 * pulled(layer, x[:1])[1], atol=1e-11)
    before = x.clone()
    pulled(layer, x)
    assert torch.equal(x, before)


def test_copies_and_states():
    alpha = nn.Parameter(torch.tensor(1.4, dtype=F64))
    layer, x = RobustPooling(Welsch(alpha), restarts=2), cluster(2, 3, 9)
    assert list(layer.state_dict()) == ["penalty.alpha"]
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
    other = RobustPooling(Welsch(nn.Parameter(torch.tensor(9.0, dtype=F64))), restarts=2)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    bound = torch.func.functional_call(layer, {"penalty.alpha": torch.tensor(1.1, dtype=F64)}, (x,))
    assert torch.allclose(bound, RobustPooling(Welsch(1.1), restarts=2)(x), atol=1e-9)


@every_penalty
def test_under_autocast(penalty):
    x = cluster(3, 4, 10, dtype=torch.float32)
    expected = pulled(RobustPooling(penalty), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pulled(RobustPooling(penalty), x)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_model_around_it_compiles():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Conv1d(3, 2, 1).double()
            self.pool = RobustPooling(Huber(nn.Parameter(torch.tensor(0.7, dtype=F64))))

        def forward(self, x):
            return self.pool(torch.tanh(self.mix(x))).square().sum()

    net, x = Net(), cluster(2, 3, 9)
    plain = torch.autograd.grad(net(x), tuple(net.parameters()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its own making
        compiled = torch.autograd.grad(torch.compile(net, backend="eager")(x), tuple(net.parameters()))
    assert all(torch.allclose(a, b, atol=1e-14) for a, b in zip(plain, compiled, strict=True))


def test_a_learned_scale_is_trained():
    """The scale that makes the pooled point the cluster's mean."""
    g = torch.Generator().manual_seed(0)
    x = torch.cat([0.3 * torch.randn(8, 2, 12, generator=g, dtype=F64), 4 + torch.randn(8, 2, 4, generator=g, dtype=F64)], 2)
    log_alpha = nn.Parameter(torch.tensor(2.0, dtype=F64))
    optimizer = torch.optim.Adam([log_alpha], lr=0.2)
    losses = []
    for _ in range(25):
        loss = (RobustPooling(PseudoHuber())(x, alpha=log_alpha.exp()) - x[:, :, :12].mean(2)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert log_alpha.item() < 1.0


def test_saddles_are_passed_by():
    # Reweighted steps alone creep past the saddles between the points of such sparse sets: one in a thousand took more than 100.
    x = 0.5 * torch.randn(2000, 2, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for penalty in (Welsch(0.3), GemanMcClure(0.3), Barron(-1.0, 0.2)):
        solution = RobustPooling(penalty).solution(x)
        assert bool((solution.status == Status.CONVERGED).all())
        assert int(solution.iterations.max()) <= 40


def test_default_dtype_of_the_caller_plays_no_part():
    x = torch.tensor([[[-1.0, 1.0]]], dtype=torch.float32)
    expected = RobustPooling(Welsch(0.5))(x)
    torch.set_default_dtype(torch.float64)
    try:
        found = RobustPooling(Welsch(0.5))(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
