"""What the identity method is compared with: every formula recomputed by hand, averages against exact distributions, shapes, bad input."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from torch import nn

from declarative.layers import (
    Assignment,
    BlackboxSolver,
    FenchelYoungLoss,
    Gumbel,
    GumbelK,
    IdentitySolver,
    ImplicitMLE,
    Normal,
    PerturbedSolver,
    Ranking,
    ShortestPath,
    TopK,
)

F64 = torch.float64
SOLVERS = {"top-k": (TopK(2), (5,), "max"), "least": (TopK(2), (5,), "min"), "matching": (Assignment(), (3, 3), "min"), "path": (ShortestPath(), (3, 3), "min")}
every_solver = pytest.mark.parametrize(("solver", "event", "sense"), SOLVERS.values(), ids=SOLVERS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def weights(*shape, seed=0):
    return torch.rand(shape, generator=generator(seed), dtype=F64)


def gradient(layer, w, v, **options):
    w = w.detach().clone().requires_grad_()
    return torch.autograd.grad(layer(w, **options), w, v)[0]


def plain(solver, sense, w):
    """y; costs of paths that have been moved below zero count as zero."""
    return IdentitySolver(solver, sense)(w.clamp_min(0) if isinstance(solver, ShortestPath) else w)


# By hand


@every_solver
@pytest.mark.parametrize("strength", [0.5, 20.0])
def test_blackbox_interpolation(solver, event, sense, strength):
    w, v = weights(4, *event), torch.randn(4, *event, generator=generator(1), dtype=F64)
    layer = BlackboxSolver(solver, sense, strength=strength)
    assert torch.equal(layer(w), plain(solver, sense, w))
    if sense == "max":
        expected = (plain(solver, sense, w) - plain(solver, sense, w - strength * v)) / strength
    else:
        expected = (plain(solver, sense, w + strength * v) - plain(solver, sense, w)) / strength
    assert torch.allclose(gradient(layer, w, v), expected, atol=1e-14)
    assert bool(expected.any())


def test_blackbox_gradient_is_that_of_the_interpolated_loss():
    """f_λ(ω) = f(y_λ) + (⟨ω, y(ω)⟩ − ⟨ω, y_λ⟩)/λ with y_λ = y(ω − λv), v = ∂f/∂y, for a linear f: piecewise linear and continuous."""
    v, strength, solver = torch.randn(6, generator=generator(1), dtype=F64), 0.8, TopK(3)

    def interpolated(w):
        y, moved = plain(solver, "max", w), plain(solver, "max", w - strength * v)
        return float(v @ moved + (w @ y - w @ moved) / strength)

    w, step = weights(6), 1e-7
    found = gradient(BlackboxSolver(solver, strength=strength), w, v)
    for i in range(6):
        unit = torch.zeros(6, dtype=F64).index_fill(0, torch.tensor(i), step)
        assert abs((interpolated(w + unit) - interpolated(w - unit)) / (2 * step) - float(found[i])) < 1e-6


@every_solver
def test_implicit_mle(solver, event, sense):
    w, v = weights(4, *event), torch.randn(4, *event, generator=generator(1), dtype=F64)
    sign = 1 if sense == "max" else -1
    for noise in (Gumbel(0.3), Normal(0.2), GumbelK(2, 0.5)):
        layer = ImplicitMLE(solver, sense, noise=noise, strength=3.0)
        moved = w + sign * noise.sample(w.flatten(1), generator(5)).reshape(w.shape)
        y = plain(solver, sense, solver.admissible(moved))
        assert torch.equal(layer(w, generator=generator(5)), y)
        # The same noise in both solves.
        expected = sign * (y - plain(solver, sense, solver.admissible(moved - sign * 3.0 * v))) / 3
        assert torch.allclose(gradient(layer, w, v, generator=generator(5)), expected, atol=1e-14)
        several = layer(w, samples=7, generator=generator(1))
        assert several.shape == (7, 4, *event)
        assert bool((several != several[0]).any())
        layer.eval()
        assert torch.equal(layer(w), plain(solver, sense, w))
        assert torch.equal(layer(w, sample=True, generator=generator(5)), y)


def test_perturbed_average_and_its_jacobian_by_hand():
    w, v = weights(2, 5), torch.randn(2, 5, generator=generator(1), dtype=F64)
    layer = PerturbedSolver(TopK(2), deviation=0.4, samples=30)
    z = torch.randn(30, 2, 5, generator=generator(3), dtype=F64)
    y = plain(TopK(2), "max", w + 0.4 * z)
    assert torch.allclose(layer(w, generator=generator(3)), y.mean(0), atol=1e-15)
    centred = y - y.mean(0)
    jacobian = torch.einsum("sbi,sbj->bij", centred, z) / (29 * 0.4)
    assert torch.allclose(gradient(layer, w, v, generator=generator(3)), (v.unsqueeze(1) @ jacobian).squeeze(1), atol=1e-13)
    # S − 1 makes up for the sample's own mean: as good as E[y Zᵀ]/σ on average
    uncentred = torch.einsum("sbi,sbj->bij", y, z) / (30 * 0.4)
    assert float((jacobian - uncentred).abs().max()) < 1.5


def test_perturbed_gradient_is_the_slope_of_the_average():
    """Two entries, k = 1: P(y_1 = 1) = Φ((ω_1 − ω_2)/√2σ) exactly; more of them by differences of long averages with the same noise."""
    w, sigma = torch.tensor([0.3, 0.0], dtype=F64), 0.5
    layer = PerturbedSolver(TopK(1), deviation=sigma, samples=100_000)
    scale = math.sqrt(2) * sigma
    assert abs(float(layer(w, generator=generator())[0]) - 0.5 * (1 + math.erf(0.3 / scale / math.sqrt(2)))) < 5e-3
    density = math.exp(-0.5 * (0.3 / scale) ** 2) / math.sqrt(2 * math.pi) / scale
    found = gradient(layer, w, torch.tensor([1.0, 0.0], dtype=F64), generator=generator())
    assert torch.allclose(found, torch.tensor([density, -density], dtype=F64), atol=1e-2)
    w, v, step = weights(4), torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=F64), 0.05
    layer = PerturbedSolver(TopK(2), deviation=sigma, samples=200_000)
    found = gradient(layer, w, v, generator=generator(1))
    for i in range(4):
        unit = torch.zeros(4, dtype=F64).index_fill(0, torch.tensor(i), step)
        slope = float(v @ (layer(w + unit, generator=generator(2)) - layer(w - unit, generator=generator(2)))) / (2 * step)
        assert abs(slope - float(found[i])) < 0.03
    tangent = torch.func.jvp(lambda w: layer(w, generator=generator(1)), (w,), (v,))[1]
    assert torch.allclose(tangent, torch.stack([gradient(layer, w, e, generator=generator(1)) for e in torch.eye(4, dtype=F64)]) @ v, atol=1e-12)


@every_solver
def test_fenchel_young(solver, event, sense):
    """The gradient is ȳ − y* (with the other sign for "min"), the value E max ⟨ω + σZ, y⟩ − ⟨ω, y*⟩; it is convex along a line."""
    w, sign = weights(3, *event), 1 if sense == "max" else -1
    target = plain(solver, sense, weights(3, *event, seed=4))
    loss, average = FenchelYoungLoss(solver, sense, deviation=0.3, samples=40), PerturbedSolver(solver, sense, deviation=0.3, samples=40)
    value = loss(w, target, generator=generator(2))
    assert value.shape == (3,)
    mean = average(w, generator=generator(2))
    found = gradient(loss, w, torch.ones(3, dtype=F64), target=target, generator=generator(2))
    assert torch.allclose(found, sign * (mean - target), atol=1e-14)
    noise = 0.3 * torch.randn(40, 3, math.prod(event), generator=generator(2), dtype=F64).reshape(40, 3, *event)
    best = ((w + noise) * plain(solver, sense, w + noise)).flatten(2).sum(2).mean(0)
    assert torch.allclose(value, sign * (best - (w * target).flatten(1).sum(1)), atol=1e-13)
    if solver.why_not_centre:  # costs below zero count as zero, there alone the maximum is another
        return
    step = torch.randn(3, *event, generator=generator(9), dtype=F64)
    ends = [loss(w + t * step, target, generator=generator(2)) for t in (-1, 0, 1)]
    assert bool((ends[0] + ends[2] - 2 * ends[1] >= -1e-12).all())
    (to_target,) = torch.autograd.grad(loss(w, t := target.clone().requires_grad_(), generator=generator(2)).sum(), t)
    assert torch.allclose(to_target, -sign * w, atol=1e-14)


def test_fenchel_young_learns_the_target():
    target = torch.tensor([[0.0, 1, 0, 1, 0], [1, 0, 0, 0, 1]])
    w = nn.Parameter(torch.zeros(2, 5))
    loss = FenchelYoungLoss(TopK(2), deviation=0.3, samples=20)
    optimizer = torch.optim.SGD([w], lr=0.3)
    for _ in range(30):
        optimizer.zero_grad()
        loss(w, target, generator=generator()).sum().backward()
        optimizer.step()
    assert torch.equal(plain(TopK(2), "max", w.detach()), target)


def test_perturb_and_map_draws_subsets():
    """p(y) ∝ exp⟨ω, y⟩ for k = 1; for k > 1 between subsets that share no noise."""
    w = torch.tensor([1.0, 0.5, 0.0, -0.5], dtype=F64)
    draws = ImplicitMLE(TopK(1), noise=Gumbel())(w, samples=20_000, generator=generator())
    assert torch.allclose(draws.mean(0), w.softmax(0), atol=0.012)
    draws = ImplicitMLE(TopK(2), noise=GumbelK(2))(w, samples=20_000, generator=generator())
    assert torch.equal(draws.sum(1), torch.full((20_000,), 2.0, dtype=F64))
    # Of two subsets that have nothing in common the one with the larger perturbed sum follows the odds exp⟨ω, y − y'⟩/τ.
    for temperature in (1.0, 2.5):
        moved = w + GumbelK(2, temperature, terms=50).sample(w.expand(20_000, 4), generator())
        share = (moved[:, 0] + moved[:, 1] > moved[:, 2] + moved[:, 3]).double().mean()
        assert abs(float(share) - 1 / (1 + math.exp(-2.0 / temperature))) < 0.01


# One interface


def layers():
    return [
        IdentitySolver(TopK(2), projection="standardise"),
        BlackboxSolver(TopK(2)),
        ImplicitMLE(TopK(2), noise=GumbelK(2)),
        PerturbedSolver(TopK(2), samples=4),
    ]


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: type(layer).__name__)
def test_shapes_dtypes_and_copies(layer):
    w = weights(2, 3, 5)
    for x in (w, w[0], w[0, 0], w[:0], w.mT.contiguous().mT, *(w.to(d) for d in (torch.float32, torch.float16, torch.bfloat16))):
        y = layer(x)
        slope = gradient(layer, x, torch.ones_like(x).cumsum(-1))
        assert y.shape == slope.shape == x.shape
        assert y.dtype == slope.dtype == x.dtype
        assert torch.allclose(y.double().sum(-1), torch.full(x.shape[:-1], 2.0, dtype=F64), atol=1e-2)
        assert bool(slope.isfinite().all())
    layer.solver, whole = TopK(torch.tensor([0, 2, 5])), layer.solver
    assert torch.allclose(layer(w).sum(-1), torch.tensor([0.0, 2, 5], dtype=F64).expand(2, 3), atol=1e-12)
    layer.solver = whole
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.manual_seed(0)
        expected = layer(w)
        torch.manual_seed(0)
        assert torch.equal(other(w), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its own making
        compiled = torch.compile(nn.Sequential(nn.Linear(5, 5).double(), layer), backend="eager")
        assert compiled(w).shape == w.shape
    with pytest.raises(ValueError, match="weights must be finite"):
        layer(w * math.nan)
    with pytest.raises(TypeError, match="weights must be a floating tensor"):
        layer([1.0, 2.0])


def test_bad_options():
    w = weights(2, 5)
    for make, message in (
        (lambda: BlackboxSolver(TopK(2), strength=0), "BlackboxSolver: strength must be a positive number, got 0"),
        (lambda: ImplicitMLE(TopK(2), noise=Gumbel(), strength=math.nan), "ImplicitMLE: strength must be a positive"),
        (lambda: PerturbedSolver(TopK(2), deviation=-1.0), "PerturbedSolver: deviation must be a positive"),
        (lambda: FenchelYoungLoss(TopK(2), deviation=0.0), "FenchelYoungLoss: deviation must be a positive"),
        (lambda: PerturbedSolver(TopK(2), samples=1), "samples must be an int, 2 or more, got 1"),
        (lambda: ImplicitMLE(TopK(2), noise=Gumbel())(w, samples=0), "samples must be a positive int, got 0"),
        (lambda: ImplicitMLE(TopK(2), noise=Gumbel())(w, samples=1.5), "samples must be a positive int, got 1.5"),
        (lambda: FenchelYoungLoss(TopK(2))(w, w[0]), r"target must be a tensor of the weights' shape \(2, 5\), got \(5,\)"),
        (lambda: FenchelYoungLoss(TopK(2))(w, [1, 0]), "target must be a tensor .* got list"),
        (lambda: BlackboxSolver(Ranking(), "least"), "sense must be 'max' or 'min'"),
        (lambda: BlackboxSolver(ShortestPath(), "min")(-torch.ones(2, 2)), "costs that are not negative"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match="noise must be an object such as GumbelK"):
        ImplicitMLE(TopK(2), noise=0.1)


def test_what_has_no_forward_mode_says_so():
    w = weights(5)
    for layer in (BlackboxSolver(TopK(2)), ImplicitMLE(TopK(2), noise=Gumbel()).eval()):
        with pytest.raises(NotImplementedError, match="no forward mode: use reverse mode"):
            torch.func.jvp(layer, (w,), (w,))
    with pytest.raises(NotImplementedError, match=r"cannot run under torch.func.vmap"):
        torch.func.vmap(PerturbedSolver(TopK(2), samples=3), randomness="different")(weights(2, 3, 5))
