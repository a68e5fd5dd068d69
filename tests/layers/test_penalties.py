"""Penalties of the pooling layer: κ₁ and κ₂ are what autodiff makes of φ, limits of the general loss, small and large distances, domains."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from declarative.layers import RobustPooling
from declarative.layers.pooling import Barron, Cauchy, GemanMcClure, Huber, Penalty, PseudoHuber, Quadratic, TruncatedQuadratic, Welsch

F64 = torch.float64
SCALED = (PseudoHuber, Huber, Welsch, TruncatedQuadratic, GemanMcClure, Cauchy)
SHAPES = (2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -2.0, -20.0, -math.inf)
ALL = (Quadratic(), *(kind(1.3) for kind in SCALED), *(Barron(shape, 1.3) for shape in SHAPES))
every_penalty = pytest.mark.parametrize("penalty", ALL, ids=str)


def numbers(*values):
    return torch.tensor(values, dtype=F64)


def by_autodiff(penalty, s, *values):
    """κ₁ and κ₂ of φ alone."""
    return Penalty.kappa1(penalty, s, *values), Penalty.kappa2(penalty, s, None, *values)


def second(penalty, s, *values):
    found = penalty.kappa2(s, penalty.kappa1(s, *values), *values)
    return torch.zeros_like(s) if found is None else found


@every_penalty
@given(z=st.floats(1e-3, 1e2))
def test_kappas_are_the_derivatives_of_phi(penalty, z):
    s, values = numbers(z * z, 0.3, 1.5, 2.0), penalty.values()
    expected = by_autodiff(penalty, s, *values)
    assert torch.allclose(penalty.kappa1(s, *values), expected[0], rtol=1e-9, atol=1e-14)
    assert torch.allclose(second(penalty, s, *values), expected[1], rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize("penalty", [p for p in ALL if not {2.0, -math.inf} & set(p.values())], ids=str)
def test_tensors_are_numbers(penalty):
    s, values = torch.logspace(-6, 4, 30, dtype=F64), penalty.values()
    as_tensors = [numbers(v) for v in values]
    assert torch.allclose(penalty.phi(s, *as_tensors), penalty.phi(s, *values), rtol=1e-12)
    assert torch.allclose(penalty.kappa1(s, *as_tensors), penalty.kappa1(s, *values), rtol=1e-12)
    assert torch.allclose(second(penalty, s, *as_tensors), second(penalty, s, *values), rtol=1e-12)
    assert penalty.is_convex(*as_tensors) == penalty.is_convex(*values)


@every_penalty
def test_no_cancellation_at_small_distances(penalty):
    """φ = κ₁(0) s/2 there, to all digits; in float32 as well."""
    for dtype, accuracy in ((F64, 1e-14), (torch.float32, 1e-6)):
        s = torch.tensor([1e-18, 1e-16, 1e-25], dtype=dtype)
        values = penalty.values()
        assert torch.allclose(2 * penalty.phi(s, *values) / s, penalty.kappa1(torch.zeros_like(s), *values), rtol=accuracy)
        assert float(penalty.phi(s.new_zeros(1), *values)) == 0.0


@every_penalty
def test_finite_at_the_ends(penalty):
    for dtype in (F64, torch.float32):
        s = torch.tensor([0.0, 1e-30, 1e12, 1e30], dtype=dtype)
        for value in (penalty.phi(s, *penalty.values()), penalty.kappa1(s, *penalty.values()), second(penalty, s, *penalty.values())):
            assert bool(torch.isfinite(value).all())


@every_penalty
def test_flags_say_what_is_so(penalty):
    """φ never falls; κ₁ falls iff concave in s; convex in z iff κ₁ + κ₂z² ≥ 0 everywhere; the kink is where κ₁ or κ₂ jumps."""
    z, values = torch.linspace(0.0, 20.0, 2001, dtype=F64), penalty.values()
    s = z.square()
    kappa1, kappa2 = penalty.kappa1(s, *values), second(penalty, s, *values)
    assert bool((kappa1 >= 0).all())
    assert penalty.concave == bool((kappa1.diff() <= 1e-15).all())
    jumps_down = bool((kappa1.diff() < -0.5).any())
    assert penalty.is_convex(*values) == (bool((kappa1 + kappa2 * s >= -1e-12).all()) and not jumps_down)
    assert penalty.is_quadratic(*values) == bool((kappa1 == kappa1[0]).all())
    kink = penalty.kink(*values)
    assert (kink is None) == (not isinstance(penalty, Huber | TruncatedQuadratic))
    if kink is not None:
        at = (numbers(kink) * (1 + numbers(-1e-9, 0.0, 1e-9))).square()
        slopes = penalty.kappa1(at, *values) + second(penalty, at, *values) * at
        assert float(slopes[0]) == pytest.approx(float(slopes[1]), rel=1e-6)  # on the boundary a point counts as near
        assert float((slopes[2] - slopes[1]).abs()) > 0.5


# The general loss


@pytest.mark.parametrize(
    ("shape", "special"), [(2.0, Quadratic()), (1.0, PseudoHuber(1.3)), (0.0, None), (-2.0, None), (-math.inf, Welsch(1.3))], ids=lambda v: str(v)
)
def test_special_shapes(shape, special):
    """In units of σ²; the general loss stretches Cauchy's and Geman and McClure's scale: βσ² in place of α²."""
    s = torch.logspace(-8, 4, 40, dtype=F64)
    special = special or {0.0: Cauchy(1.3 * 2**0.5), -2.0: GemanMcClure(1.3 * 2)}[shape]
    unit = 1.0 if isinstance(special, Welsch) else 1.3**2
    expected = special.phi(s, *special.values()) / unit
    if shape == -2.0:  # (z²/2)/(1 + z²/4σ²)
        assert torch.allclose(expected, 0.5 * s / 1.69 / (1 + s / (4 * 1.69)), rtol=1e-12)
    assert torch.allclose(Barron(shape, 1.3).phi(s, shape, 1.3), expected, rtol=1e-12)


@pytest.mark.parametrize(("limit", "near"), [(2.0, 2 - 1e-7), (1.0, 1 + 1e-8), (0.0, 1e-8), (0.0, -1e-8), (-2.0, -2 + 1e-8), (-math.inf, -1e8)])
def test_shapes_are_continuous(limit, near):
    s = torch.logspace(-6, 2, 40, dtype=F64)
    for alpha in (near, numbers(near)):
        at, there = (Barron(1.0).phi(s, a, 0.7) for a in (limit, alpha))
        assert torch.allclose(at, there, rtol=1e-5)
        assert torch.allclose(Barron(1.0).kappa1(s, limit, 0.7), Barron(1.0).kappa1(s, alpha, 0.7), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("shape", [1.9, 1.0, 1e-4, 1e-9, 0.0, -1e-9, -1.0, -8.0])
def test_derivative_in_the_shape(shape):
    s = torch.logspace(-3, 2, 12, dtype=F64)
    for function in (Barron().phi, Barron().kappa1):
        found = torch.func.jacfwd(lambda a, f=function: f(s, a, 0.7))(numbers(shape))[:, 0]
        h = 1e-4
        ahead = [function(s, numbers(shape + k * h), 0.7) for k in (-2, -1, 1, 2)]
        assert torch.allclose(found, (8 * (ahead[2] - ahead[1]) - (ahead[3] - ahead[0])) / (12 * h), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", SCALED)
@given(alpha=st.floats(1e-3, 1e3), z=st.floats(1e-2, 1e2))
def test_derivative_in_alpha(kind, alpha, z):
    """φ(z; α) = α² φ(z/α; 1), Welsch's without the factor: the derivative follows from κ₁."""
    if abs(z - 1) < 1e-6:
        z = 1.1
    s, at = numbers((alpha * z) ** 2), numbers(alpha).requires_grad_()
    penalty = kind(1.0)
    (found,) = torch.autograd.grad(penalty.phi(s, at).sum(), at)
    influence = z * z * penalty.kappa1(numbers(z * z), 1.0)
    expected = -influence / alpha if kind is Welsch else alpha * (2 * penalty.phi(numbers(z * z), 1.0) - influence)
    assert torch.allclose(found, expected, rtol=1e-7, atol=1e-9 * alpha)


# Domains


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf])
def test_scales_are_positive(kind, bad):
    with pytest.raises(ValueError, match=f"{kind.__name__}: alpha must be positive and finite"):
        kind(bad)
    layer, x = RobustPooling(kind(numbers(1.0, bad))), torch.zeros(2, 3, 4, dtype=F64)
    with pytest.raises(ValueError, match="alpha must be positive and finite, got a tensor"):
        layer(x)


def test_domains_of_the_general_loss():
    with pytest.raises(ValueError, match="alpha must be at most 2"):
        Barron(2.1)
    with pytest.raises(ValueError, match="scale must be positive"):
        Barron(1.0, 0.0)
    x = torch.zeros(1, 2, 3, dtype=F64)
    with pytest.raises(ValueError, match="below 2 as a tensor"):
        RobustPooling(Barron(numbers(2.0)))(x)
    with pytest.raises(ValueError, match="scale must be positive and finite, got a tensor with entries from -1 to -1"):
        RobustPooling(Barron(1.0, numbers(-1.0)))(x)


@pytest.mark.parametrize("bad", ["1", None, True, math.nan, [1.0]])
def test_parameters_are_numbers_or_tensors(bad):
    with pytest.raises(TypeError, match=r"Huber\(alpha=...\) must be a number, a tensor"):
        Huber(bad)


def test_parameters_are_where_modules_keep_them():
    learned, fixed = Huber(nn.Parameter(numbers(1.0))), Huber(numbers(1.0))
    assert [name for name, _ in learned.named_parameters()] == ["alpha"]
    assert [name for name, _ in fixed.named_buffers()] == ["alpha"]
    assert repr(learned) == "Huber(alpha=1 (learned))"
    assert repr(Huber(0.5)) == "Huber(alpha=0.5)"
    assert repr(Barron(numbers(1.0, 0.5))) == "Barron(alpha=tensor of shape (2,), scale=1)"


def test_a_penalty_without_phi_says_so():
    class Nothing(Penalty):
        pass

    with pytest.raises(TypeError, match="Nothing must define phi"):
        RobustPooling(Nothing())(torch.zeros(1, 2, 3))


@pytest.mark.parametrize("bad", [Huber, 3.0, "huber"])
def test_what_is_no_penalty(bad):
    with pytest.raises(TypeError, match="penalty must be an object such as Huber"):
        RobustPooling(bad)


def test_phi_must_be_elementwise():
    with pytest.raises(ValueError, match="phi must be elementwise"):
        RobustPooling(lambda s: s.sum())(torch.zeros(1, 2, 3))
