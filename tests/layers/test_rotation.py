"""Rotations: against scipy, derivatives of every kind, matrices without a unique rotation, shapes, bad input."""

import pytest
import torch
from scipy.spatial.transform import Rotation as Known
from torch.func import jacfwd, jacrev, vmap

from declarative import Implicit, IrregularPointError, certify, verify
from declarative.layers import PointRotation, Rotation
from problems import rotation

F64 = torch.float64
pytestmark = pytest.mark.usefixtures("shapes_unchecked")


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def with_singular_values(*values, seed=0):
    """R P with P symmetric of these eigenvalues: a negative last one makes det M < 0."""
    R = torch.as_tensor(Known.random(random_state=seed).as_matrix())
    basis = torch.linalg.qr(normal(3, 3, seed=seed + 1)).Q
    return R @ (basis * torch.tensor(values, dtype=F64)) @ basis.mT, R


def test_scipy():
    p, q, w = normal(4, 6, 3), normal(4, 6, 3, seed=1), normal(4, 6, seed=2).square()
    R = PointRotation()(p, q, w)
    known = torch.stack([torch.as_tensor(Known.align_vectors(q[i], p[i], weights=w[i])[0].as_matrix()) for i in range(4)])
    torch.testing.assert_close(R, known)
    torch.testing.assert_close(Rotation()(q.mT @ (w.unsqueeze(2) * p)), known)


def test_the_worked_problem():
    (M,) = rotation.sample(6, torch.Generator().manual_seed(0), F64)
    assert bool((torch.linalg.det(M) < 0).any())
    torch.testing.assert_close(Rotation()(M), rotation.closed_form(M))
    torch.testing.assert_close(vmap(jacrev(Rotation()))(M), rotation.jacobian(M))
    node = rotation.Rotation(polish=5)
    ours, theirs = Rotation().solution(M), node.solution(M)
    torch.testing.assert_close(ours.y, theirs.y)
    torch.testing.assert_close(ours.equality_multipliers, theirs.equality_multipliers)


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_rotations_that_are_nearest(d):
    M = normal(8, d, d)
    R = Rotation()(M)
    eye = torch.eye(d, dtype=F64).expand(8, d, d)
    torch.testing.assert_close(R.mT @ R, eye)
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(8, dtype=F64))
    skew = normal(200, 1, d, d, seed=1)
    others = torch.linalg.matrix_exp(skew - skew.mT) @ R
    assert bool(((others - M).square().sum((2, 3)) >= (R - M).square().sum((1, 2)) - 1e-12).all())
    torch.testing.assert_close(Rotation()(R), R)


@pytest.mark.parametrize("d", [2, 3, 4])
def test_derivatives_in_every_mode(d):
    M = normal(3, d, d)
    layer, leaf = Rotation(), M.clone().requires_grad_()
    assert torch.autograd.gradcheck(layer, (leaf,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(layer, (leaf,), check_fwd_over_rev=True)
    torch.testing.assert_close(jacrev(layer)(M), jacfwd(layer)(M))
    torch.testing.assert_close(vmap(layer)(M), layer(M))
    torch.testing.assert_close(vmap(jacrev(layer))(M), torch.stack([jacrev(layer)(m) for m in M]))
    torch.testing.assert_close(jacfwd(jacfwd(layer))(M[0]), jacrev(jacrev(layer))(M[0]))
    assert torch.autograd.gradcheck(lambda M: layer.solution(M).equality_multipliers, (leaf,))


@pytest.mark.parametrize("centre", [False, True])
def test_derivatives_in_points_and_weights(centre):
    leaves = normal(2, 5, 3).requires_grad_(), normal(2, 5, 3, seed=1).requires_grad_(), (normal(2, 5, seed=2).square() + 0.2).requires_grad_()
    layer = PointRotation(centre=centre)
    assert torch.autograd.gradcheck(layer, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(layer, leaves)


def test_equal_singular_values_do_not_matter():
    """torch.linalg.svd has no gradient there."""
    for values in ((1.0, 1.0, 1.0), (2.0, 2.0, -1.0), (2.0, 1.0, 0.0)):
        M, R = with_singular_values(*values)
        torch.testing.assert_close(Rotation()(M), R)
        assert torch.autograd.gradcheck(Rotation(), (M.clone().requires_grad_(),))
        assert torch.autograd.gradgradcheck(Rotation(), (M.clone().requires_grad_(),))


def test_verify():
    for values in ((2.0, 1.0, 0.5), (2.0, 1.0, -0.5), (1.0, 1.0, 1.0)):
        M = with_singular_values(*values)[0].unsqueeze(0)
        report = verify(Rotation(), M)
        assert report.ok, str(report)
        assert bool(certify(Rotation(), M).regular.all())
    for layer, inputs in (
        (Rotation(), (normal(3, 2, 2),)),
        (PointRotation(), (normal(2, 4, 3), normal(2, 4, 3, seed=1), normal(2, 4, seed=2).square())),
        (PointRotation(centre=True), (normal(2, 4, 3), normal(2, 4, 3, seed=1))),
    ):
        report = verify(layer, *inputs, directions=1)
        assert report.ok, str(report)


def test_points_that_were_moved():
    p = normal(2, 7, 3)
    R = torch.stack([with_singular_values(1.0, 1.0, 1.0, seed=s)[1] for s in range(2)])
    q = p @ R.mT + normal(2, 1, 3, seed=4)
    torch.testing.assert_close(PointRotation(centre=True)(p, q), R)
    torch.testing.assert_close(PointRotation()(p, p @ R.mT), R)
    q[:, 0] = 100.0  # an outlier of no weight
    weights = torch.ones(7, dtype=F64)
    weights[0] = 0.0
    torch.testing.assert_close(PointRotation(centre=True)(p, q, weights), R)


def test_matrices_without_a_unique_rotation():
    M = torch.stack([with_singular_values(*v)[0] for v in ((2.0, 1.0, 0.5), (2.0, 1.0, -1.0), (1.0, 0.0, 0.0), (0.0, 0.0, 0.0))])
    leaf = M.clone().requires_grad_()
    R = Rotation()(leaf)
    torch.testing.assert_close(R.mT @ R, torch.eye(3, dtype=F64).expand(4, 3, 3))
    with pytest.raises(IrregularPointError, match=r"3 of 4 samples \(1, 2, 3\): the two smallest singular values"):
        R.sum().backward()
    for policy, expected in (("nan", torch.nan), ("zero", 0.0)):
        (gradient,) = torch.autograd.grad(Rotation(differentiation=Implicit(irregular=policy))(leaf).sum(), leaf)
        torch.testing.assert_close(gradient[1:], torch.full((3, 3, 3), expected, dtype=F64), equal_nan=True)
        assert bool(torch.isfinite(gradient[0]).all())
    (gradient,) = torch.autograd.grad(Rotation(differentiation=Implicit(irregular="min_norm"))(leaf).sum(), leaf)
    assert bool((gradient.abs() < 10).all())
    line = torch.linspace(-1, 1, 5, dtype=F64).unsqueeze(1) * normal(3)
    with pytest.raises(IrregularPointError):
        PointRotation()(line.clone().requires_grad_(), line).sum().backward()


def test_natural_shapes_and_precisions():
    M = normal(2, 3, 3, 3)
    expected = torch.stack([Rotation()(m) for m in M.reshape(6, 3, 3)]).reshape(2, 3, 3, 3)
    torch.testing.assert_close(Rotation()(M), expected)
    torch.testing.assert_close(Rotation()(M.mT.contiguous().mT), expected)
    torch.testing.assert_close(Rotation()(M.movedim(0, 1), in_dims=1), expected)
    assert Rotation().solution(M).equality_multipliers.shape == (2, 3, 6)
    leaf = M[:, :0].clone().requires_grad_()
    Rotation()(leaf).sum().backward()
    assert leaf.grad.shape == (2, 0, 3, 3)
    p, q = normal(4, 3), normal(2, 5, 4, 3, seed=1)
    torch.testing.assert_close(PointRotation()(p, q)[1, 2], PointRotation()(p, q[1, 2]))
    for dtype in (torch.float32, torch.float16):
        R = Rotation()(M.to(dtype))
        assert R.dtype == dtype
        torch.testing.assert_close(R.double(), Rotation()(M.to(dtype).double()), rtol=0.0, atol=20 * torch.finfo(dtype).eps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(PointRotation()(p.float(), q.float()), PointRotation()(p, q).float(), rtol=0.0, atol=1e-4)


BAD = [
    (lambda: Rotation()(normal(2, 3)), r"M must be a tensor \(…, d, d\), got \(2, 3\)"),
    (lambda: Rotation()(normal(2, 3, 3) / 0), r"M must be finite.*2 of 2 samples"),
    (lambda: PointRotation()(normal(3), normal(3)), r"source must be a tensor \(…, N, d\), got \(3,\)"),
    (lambda: PointRotation()(normal(4, 3), normal(5, 3)), r"target must have instances \(4, 3\), as source \(4, 3\) has, got shape \(5, 3\)"),
    (lambda: PointRotation()(normal(4, 3), normal(4, 3), normal(3)), r"weights must have instances \(4,\)"),
    (lambda: PointRotation()(normal(4, 3), normal(4, 3), torch.zeros(4, dtype=F64)), "weights must be 0 or more, and not zero throughout"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
