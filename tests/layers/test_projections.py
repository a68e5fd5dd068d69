"""Projections: against other ways to the same point, the plain statements of `problems/`, what every projection obeys, derivatives of every kind."""

import cvxpy as cp
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import jacfwd, jacrev, vmap

from declarative import Implicit, Status, Unrolled, certify, verify
from declarative.layers import (
    AffineProjection,
    BoxProjection,
    HalfSpaceProjection,
    L1BallProjection,
    L1SphereProjection,
    L2BallProjection,
    L2SphereProjection,
    LInfBallProjection,
    LInfSphereProjection,
    SimplexProjection,
    Sparsemax,
)
from declarative.projections import Ball, Box, Simplex
from problems import catalogue
from tests.layers.projections import BALLS, F64, NORMS, SIZED, SPHERES, normal

pytestmark = pytest.mark.usefixtures("shapes_unchecked")
# layer -> the worked problem with the same inputs
STATED = {
    L1BallProjection: "l1_ball",
    L1SphereProjection: "l1_sphere",
    LInfBallProjection: "linf_ball",
    LInfSphereProjection: "linf_sphere",
    BoxProjection: "box",
    HalfSpaceProjection: "half_space",
    AffineProjection: "affine_subspace",
}
sized = pytest.mark.parametrize("kind", SIZED)
stated = pytest.mark.parametrize("kind", STATED)


def instances(kind, batch=4, seed=0):
    problem = catalogue()[STATED[kind]]
    return problem, problem.sample(batch, torch.Generator().manual_seed(seed), F64)


# Values


@stated
def test_the_closed_forms_of_the_worked_problems(kind):
    for seed in range(5):
        problem, inputs = instances(kind, 6, seed)
        torch.testing.assert_close(kind()(*inputs), problem.closed_form(*inputs), rtol=1e-12, atol=1e-12)


@stated
def test_the_generic_engine_on_the_worked_problems(kind):
    """Values, multipliers and active sets, of the same statement solved by iterations."""
    problem, inputs = instances(kind)
    node = problem.node()
    node.polish = 5
    ours, theirs = kind().solution(*inputs), node.solution(*inputs, in_dims=problem.in_dims)
    for name in ("y", "equality_multipliers", "inequality_multipliers"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-9, atol=1e-9)
    assert torch.equal(ours.active, theirs.active)
    assert not bool(ours.weakly_active.any())
    assert bool((ours.stationarity <= 1e-14).all())
    assert bool((ours.violation <= 1e-14).all())
    assert ours.status.tolist() == [Status.CONVERGED] * 4


@pytest.mark.parametrize(("kind", "norm"), [(L1BallProjection, 1), (L2BallProjection, 2), (LInfBallProjection, "inf"), (SimplexProjection, None)])
def test_cvxpy(kind, norm):
    for row in normal(3, 6):
        u = cp.Variable(6)
        constraints = [cp.sum(u) == 0.8, u >= 0] if norm is None else [cp.norm(u, norm) <= 0.8]
        cp.Problem(cp.Minimize(cp.sum_squares(u - row.numpy())), constraints).solve(solver=cp.CLARABEL)
        torch.testing.assert_close(kind(0.8)(row), torch.as_tensor(u.value), rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("kind", SPHERES)
def test_no_point_of_the_sphere_is_nearer(kind):
    x = normal(6, 3) * torch.tensor([0.1, 0.3, 0.6, 1.0, 2.0, 3.0], dtype=F64).unsqueeze(1)
    others = normal(1, 200_000, 3, seed=1)
    others = others / torch.linalg.vector_norm(others, NORMS[kind], dim=2, keepdim=True)
    nearest = torch.linalg.vector_norm(x.unsqueeze(1) - others, dim=2).amin(1)
    assert bool((torch.linalg.vector_norm(x - kind()(x), dim=1) <= nearest + 1e-14).all())


def test_the_projections_of_the_solvers():
    x = normal(5, 7)
    torch.testing.assert_close(SimplexProjection(2.0)(x), Simplex(2.0).project(x), rtol=0.0, atol=1e-15)
    torch.testing.assert_close(L2BallProjection(0.5)(x), Ball(0.5).project(x), rtol=0.0, atol=1e-15)
    torch.testing.assert_close(BoxProjection(-0.5, 0.3)(x), Box(-0.5, 0.3).project(x), rtol=0.0, atol=0.0)


@sized
@given(n=st.integers(1, 9), seed=st.integers(0, 1000), size=st.floats(0.01, 100), unit=st.sampled_from([1e-6, 1.0, 1e6]))
def test_what_every_projection_obeys(kind, n, seed, size, unit):
    x, layer = normal(3, n, seed=seed), kind(size)
    y = layer(x)
    rounding = 1e-13 * max(1.0, size)
    if kind is SimplexProjection:
        assert bool((y >= 0).all())
        assert bool(((y.sum(1) - size).abs() <= rounding).all())
    else:
        norm = torch.linalg.vector_norm(y, NORMS[kind], dim=1)
        assert bool((norm <= size + rounding).all())
        assert kind in BALLS or bool((norm >= size - rounding).all())
    torch.testing.assert_close(layer(y), y, rtol=1e-12, atol=rounding)
    torch.testing.assert_close(kind(unit * size)(unit * x), unit * y, rtol=1e-11, atol=rounding * unit)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(layer(x[:, order]), y[:, order], rtol=1e-12, atol=rounding)
    if kind not in (SimplexProjection, *SPHERES):  # nearer to every point of the set than x is, and never further apart than the inputs
        other = normal(3, n, seed=seed + 1)
        assert bool((torch.linalg.vector_norm(layer(other) - y, dim=1) <= torch.linalg.vector_norm(other - x, dim=1) + rounding).all())


def test_sparsemax_is_the_projection_onto_the_probability_simplex():
    x = normal(2, 3, 5)
    assert torch.equal(Sparsemax()(x), SimplexProjection()(x))
    assert torch.equal(Sparsemax(dim=1)(x), SimplexProjection(dim=1)(x))
    assert torch.allclose(Sparsemax(1)(x).sum(1), torch.ones(2, 5, dtype=F64))


def test_masked_logits():
    x = normal(3, 6)
    masked = x.clone()
    masked[:, [1, 4]] = -torch.inf
    masked.requires_grad_()
    s = Sparsemax().solution(masked)
    keep = [0, 2, 3, 5]
    torch.testing.assert_close(s.y[:, keep], Sparsemax()(x[:, keep]), rtol=0.0, atol=1e-15)
    assert not bool(s.y[:, [1, 4]].any())
    assert all(bool(torch.isfinite(t).all()) for t in (s.inequality_multipliers, s.stationarity))
    (gradient,) = torch.autograd.grad(s.y.square().sum(), masked)
    assert not bool(gradient[:, [1, 4]].any())
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_far_from_the_origin(dtype):
    """The support is decided where rounding of x is no smaller than what lies between its entries."""
    x = torch.tensor([[1e6, 1e6 + 0.5, 1e6 - 3.0, -1e30]], dtype=dtype, requires_grad=True)
    y = Sparsemax()(x)
    torch.testing.assert_close(y, torch.tensor([[0.25, 0.75, 0.0, 0.0]], dtype=dtype))
    (gradient,) = torch.autograd.grad(y[0, 0], x)
    torch.testing.assert_close(gradient, torch.tensor([[0.5, -0.5, 0.0, 0.0]], dtype=dtype))


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_large_supports(dtype):
    x = 1e-3 * normal(2, 20_000, dtype=dtype)
    y = SimplexProjection(200.0)(x)
    torch.testing.assert_close(y, x - x.mean(1, keepdim=True) + 0.01, rtol=0.0, atol=1e-6 if dtype == torch.float32 else 1e-14)


# Derivatives


@stated
def test_derivatives_in_every_mode(kind):
    _, inputs = instances(kind)
    if kind is AffineProjection:
        inputs = (inputs[0], inputs[1].expand(4, -1, -1).contiguous(), inputs[2])
    layer, leaves = kind(), tuple(t.clone().requires_grad_() for t in inputs)
    assert torch.autograd.gradcheck(layer, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(layer, leaves, check_fwd_over_rev=True)
    places = tuple(range(len(inputs)))
    for a, b in zip(*(mode(layer, argnums=places)(*inputs) for mode in (jacrev, jacfwd)), strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(vmap(layer)(*inputs), layer(*inputs), rtol=0.0, atol=1e-14)
    alone = vmap(jacrev(layer, argnums=places))(*inputs)
    together = jacrev(layer, argnums=places)(*inputs)
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, torch.stack([b[i, :, i] for i in range(4)]), rtol=0.0, atol=1e-13)


@sized
def test_radii_and_totals(kind):
    x, size = normal(3, 5), torch.tensor([0.4, 1.1, 2.0], dtype=F64)
    leaves = x.clone().requires_grad_(), size.clone().requires_grad_()
    assert torch.autograd.gradcheck(kind(), leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(kind(), leaves)


@stated
def test_jacobians_of_the_worked_problems(kind):
    problem, inputs = instances(kind)
    found = vmap(jacrev(kind()), in_dims=problem.in_dims)(*inputs)
    torch.testing.assert_close(found, problem.jacobian(*inputs), rtol=0.0, atol=1e-12)


@stated
def test_multipliers_are_differentiable(kind):
    _, (x, *others) = instances(kind)

    def multipliers(x):
        s = kind().solution(x, *others)
        return torch.cat([s.equality_multipliers, s.inequality_multipliers], 1)

    assert torch.autograd.gradcheck(multipliers, (x.clone().requires_grad_(),))


@pytest.mark.parametrize("kind", [SimplexProjection, *STATED])
def test_verify(kind):
    inputs = (normal(3, 5),) if kind is SimplexProjection else instances(kind, 3)[1]
    dims = (0, None, 0) if kind is AffineProjection else 0
    report = verify(kind(), *inputs, in_dims=dims)
    assert report.ok, str(report)
    assert {"vjp hook = generic", "hessian_structure ScaledIdentity() = H"} <= {row.name for row in report.rows}
    assert bool(certify(kind(), *inputs, in_dims=dims).regular.all())


@pytest.mark.parametrize("kind", [L2BallProjection, L2SphereProjection])
def test_verify_with_radii(kind):
    report = verify(kind(), normal(4, 3), torch.tensor([0.5, 1.0, 2.0, 9.0], dtype=F64))
    assert report.ok, str(report)
    report = verify(kind(nn.Parameter(torch.tensor(0.7, dtype=F64))), normal(2, 3))
    assert report.ok, str(report)


def test_the_vjp_hook():
    x, v = normal(3, 4), normal(3, 4, seed=1)
    layer = L1BallProjection(1.2)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(layer.vjp((x,), layer.solution(x), v)[0], torch.autograd.grad(layer(leaf), leaf, v)[0])


@pytest.mark.parametrize("differentiation", [Implicit(damping=1e-9), Unrolled()])
def test_other_ways_to_differentiate_go_by_the_statement(differentiation):
    x = normal(2, 3, 4)
    for kind in (SimplexProjection, L2BallProjection, L1SphereProjection):
        leaves = [x.movedim(2, 1).clone().requires_grad_() for _ in range(2)]
        found = [layer(leaf) for layer, leaf in zip((kind(dim=1), kind(dim=1, differentiation=differentiation)), leaves, strict=True)]
        torch.testing.assert_close(*found)
        torch.testing.assert_close(*(torch.autograd.grad(y[:, 0].sum(), leaf)[0] for y, leaf in zip(found, leaves, strict=True)), rtol=0.0, atol=1e-6)
