"""What a review by use found in the pooling and top-k layers: arguments, far outliers, memory."""

import gc
import weakref

import pytest
import torch
from torch import nn

from declarative import SolverWarning, Status
from declarative.layers import (
    Assignment,
    EntropicTopK,
    Function,
    Gumbel,
    Huber,
    IdentitySolver,
    IdentityTopK,
    ImplicitMLE,
    OptimalTransport,
    Penalty,
    RobustPooling,
    TopK,
    TruncatedQuadratic,
    Welsch,
)

F64 = torch.float64


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def test_mask_follows_the_batch_dimension():
    x, mask = normal(2, 5, 5), (normal(5, 5, seed=1) < 0.5) | torch.eye(5).bool()
    layer = RobustPooling(Huber(1.0))
    torch.testing.assert_close(layer(x, mask=mask, in_dims=1), layer(x.movedim(1, 0), mask=mask.movedim(1, 0)))


def test_mask_of_transport_follows_the_batch_dimension():
    M, mask = normal(4, 4, 4), (normal(4, 4, 4, seed=1) < 0.5) | torch.eye(4).bool()
    layer = OptimalTransport(2.0)
    torch.testing.assert_close(layer(M, mask=mask, in_dims=1), layer(M.movedim(1, 0), mask=mask.movedim(1, 0)))


def test_batch_dimensions_that_are_not_there_are_named():
    with pytest.raises(ValueError, match=r"input 0 has shape \(3, 4\); in_dims asks for dimension 9"):
        EntropicTopK(2)(normal(3, 4), in_dims=9)
    with pytest.raises(TypeError, match="in_dims must be an int or None, got 'a'"):
        RobustPooling()(normal(2, 3, 4), in_dims="a")


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("far", [1e3, 1e6, 1e8])
def test_windows_beside_far_outliers(far, dtype):
    x = normal(20, 1, 30, dtype=dtype)
    x[:, :, :6] = far * (1 + 1e-3 * normal(20, 1, 6, seed=1, dtype=dtype))
    penalty = TruncatedQuadratic(0.3)

    def objective(u):
        return penalty.phi((x.double() - u.unsqueeze(2)).square().sum(1), 0.3).sum(1)

    ours, ordered = objective(RobustPooling(penalty)(x).double()), x.double().sort(2).values
    windows = [objective(ordered[:, :, i : j + 1].mean(2)) for i in range(30) for j in range(i, 30)]
    assert bool((ours <= torch.stack(windows).amin(0) * (1 + (1e-4 if dtype == torch.float32 else 1e-12))).all())


def test_noise_of_minimisers_is_mirrored():
    w = torch.tensor([0.0, 0.5, 2.0])
    layer = ImplicitMLE(TopK(1), sense="min", noise=Gumbel())
    share = layer(w, samples=100_000, generator=torch.Generator().manual_seed(0)).mean(0)
    torch.testing.assert_close(share, torch.softmax(-w, 0), atol=0.01, rtol=0.0)


def test_starts_that_are_no_points():
    x, layer = normal(3, 2, 9), RobustPooling(Welsch(1.0))
    start = torch.full((3, 2), torch.nan, dtype=F64)
    torch.testing.assert_close(layer(x, init=start), layer(x))
    with pytest.raises(ValueError, match=r"init must have shape \(3, 2\)"):
        layer(x, init=start.T)


def test_rounding_of_a_double_centring_counts_as_zero():
    M = (torch.tensor([0.0, 1.3, 2.7])[:, None] + torch.tensor([0.0, 0.1, 0.7])).requires_grad_()
    (gradient,) = torch.autograd.grad(IdentitySolver(Assignment(), projection="standardise")(M)[0, 1], M)
    assert float(gradient.abs().max()) == 0.0


def test_cotangents_are_not_written_to():
    class Views(Function):
        def centre(self, weights, shape):
            return weights.reshape(-1, *shape).reshape(weights.shape)

    x, v = normal(4, 6).requires_grad_(), normal(4, 6, seed=1)
    kept = v.clone()
    torch.autograd.grad(IdentitySolver(Views(lambda w: w == w.max(), constant_sum=True), projection="standardise")(x), x, v)
    torch.testing.assert_close(v, kept, rtol=0.0, atol=0.0)


def test_learned_parameters_under_autocast():
    x, alpha = normal(2, 3, 8, dtype=torch.bfloat16), nn.Parameter(torch.tensor(1.0))
    RobustPooling(Huber(alpha))(x).float().sum().backward()
    EntropicTopK(2, alpha)(x).float().square().sum().backward()
    assert alpha.grad is not None
    assert bool(torch.isfinite(alpha.grad))
    assert bool(torch.isfinite(EntropicTopK(2)(x.half(), 1e-8)).all())


def test_single_numbers_have_no_batch_dimension():
    x = normal(3, 4)
    torch.testing.assert_close(EntropicTopK(2)(x, 0.5, in_dims=1), EntropicTopK(2, 0.5)(x.T))
    torch.testing.assert_close(RobustPooling()(normal(2, 3, 4), None, torch.tensor(1.0, dtype=F64), in_dims=1), RobustPooling()(normal(2, 3, 4).movedim(1, 0)))


@pytest.mark.parametrize("layer", [IdentityTopK(2), IdentitySolver(TopK(2)), ImplicitMLE(TopK(2), noise=Gumbel())], ids=lambda layer: type(layer).__name__)
def test_weights_are_let_go_after_the_backward_pass(layer):
    leaf = normal(3, 6).requires_grad_()
    weights = 2 * leaf
    seen = weakref.ref(weights)
    y = layer(weights)
    y.sum().backward()
    del weights
    gc.collect()
    assert seen() is None
    assert y.shape == (3, 6)


def test_what_a_penalty_takes():
    class Student(Penalty):
        def phi(self, s, nu):
            return torch.log1p(s / nu)

    assert Student(nu=3.0).values() == (3.0,)
    for wrong in ({"mu": 3.0}, {}, {"nu": 1.0, "mu": 2.0}):
        with pytest.raises(TypeError, match="by name and in this order: nu"):
            Student(**wrong)


def test_a_penalty_with_infinite_slope_at_zero_is_named():
    with pytest.warns(SolverWarning, match="smooth at s = 0"):
        solution = RobustPooling(lambda s: s.sqrt(), restarts=1).solution(torch.tensor([[[0.0, 0.0, 0.0, 1.0, 5.0]]]))
    assert solution.status.tolist() == [Status.NON_FINITE]
