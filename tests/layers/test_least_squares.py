"""Least squares: against numpy and the worked problem, derivatives of every kind, matrices without full rank, shapes, bad input."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import jacfwd, jacrev, vmap

from declarative import Implicit, IrregularPointError, verify
from declarative.layers import LeastSquares
from problems import least_squares

F64 = torch.float64
pytestmark = pytest.mark.usefixtures("shapes_unchecked")


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def positive(*shape, seed=5):
    return normal(*shape, seed=seed).square() + 0.2


def test_numpy():
    A, b, w = normal(7, 4), normal(7, seed=1), positive(7)
    torch.testing.assert_close(LeastSquares()(A, b), torch.as_tensor(np.linalg.lstsq(A, b, rcond=None)[0]))
    root = w.sqrt()
    torch.testing.assert_close(LeastSquares()(A, b, w), torch.as_tensor(np.linalg.lstsq(root[:, None] * A, root * b, rcond=None)[0]))


def test_the_worked_problem():
    b, A, w, ridge = least_squares.sample(4, torch.Generator().manual_seed(0), F64)
    torch.testing.assert_close(LeastSquares()(A, b, w, ridge), least_squares.closed_form(b, A, w, ridge))
    found = vmap(jacrev(LeastSquares(), argnums=1))(A, b, w, ridge)
    torch.testing.assert_close(found, least_squares.jacobian(b, A, w, ridge))


def test_badly_conditioned():
    """Not by the normal equations: those lose everything here."""
    A, y = torch.linalg.qr(normal(8, 4)).Q * torch.logspace(0, -7, 4, dtype=F64) @ torch.linalg.qr(normal(4, 4, seed=1)).Q, normal(4, seed=2)
    torch.testing.assert_close(LeastSquares()(A, A @ y), y, rtol=1e-7, atol=1e-7)
    b = (A @ y).requires_grad_()
    gradient = torch.autograd.grad(LeastSquares()(A, b)[0], b)[0]
    expected = torch.linalg.pinv(A)[0]
    assert float((gradient - expected).norm() / expected.norm()) < 1e-2


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_derivatives_in_every_mode(ridge):
    inputs = normal(2, 5, 3), normal(2, 5, seed=1), positive(2, 5), torch.full((2, 3), 0.1, dtype=F64) * (ridge > 0)
    count = 4 if ridge else 3
    layer, leaves = LeastSquares(ridge), tuple(t.clone().requires_grad_() for t in inputs[:count])
    assert torch.autograd.gradcheck(layer, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(layer, leaves, check_fwd_over_rev=True)
    for a, b in zip(*(mode(layer, argnums=tuple(range(count)))(*inputs[:count]) for mode in (jacrev, jacfwd)), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(vmap(layer)(*inputs[:count]), layer(*inputs[:count]))
    # One matrix for all samples, with vmap over it, over b, and over both.
    A, b = inputs[0][0], inputs[1]
    torch.testing.assert_close(vmap(layer, in_dims=(None, 0))(A, b), layer(A, b))
    torch.testing.assert_close(vmap(jacrev(layer), in_dims=(None, 0))(A, b), torch.stack([jacrev(layer)(A, row) for row in b]))


def test_one_matrix_for_all():
    A, b = normal(6, 3), normal(2, 5, 6, seed=1)
    expected = (torch.linalg.pinv(A) @ b.unsqueeze(3)).squeeze(3)
    torch.testing.assert_close(LeastSquares()(A, b), expected)
    leaves = A.clone().requires_grad_(), b.clone().requires_grad_()
    assert torch.autograd.gradcheck(LeastSquares(0.1), leaves)
    several = LeastSquares(columns=True)
    torch.testing.assert_close(several(A, b.mT), expected.mT)
    torch.testing.assert_close(several(A.expand(2, 6, 3), b.mT), expected.mT)
    assert torch.autograd.gradgradcheck(lambda A: several(A, b[:, :2].mT), (leaves[0],))


def test_verify():
    A, b, w = normal(3, 5, 3), normal(3, 5, seed=1), positive(3, 5)
    for layer, inputs in (
        (LeastSquares(), (A, b)),
        (LeastSquares(0.5), (A, b, w)),
        (LeastSquares(), (A[:, :2], b[:, :2], w[:, :2], positive(3, 3))),  # more unknowns than equations
        (LeastSquares(nn.Parameter(torch.tensor(0.3, dtype=F64))), (A, b)),
        (LeastSquares(nn.Parameter(positive(3))), (A, b)),
        (LeastSquares(columns=True), (A, normal(3, 5, 2))),
    ):
        report = verify(layer, *inputs)
        assert report.ok, str(report)
    assert verify(LeastSquares(), A[0], b, in_dims=(None, 0)).ok
    assert verify(LeastSquares(), A[0], b[0], in_dims=None).ok


def test_matrices_without_full_rank():
    A, b = normal(3, 5, 3), normal(3, 5, seed=1)
    A[1, :, 2] = A[1, :, 0] - A[1, :, 1]
    with pytest.raises(IrregularPointError, match=r'not unique, at 1 of 3 samples \(1\). Pass a ridge > 0, or .*"min_norm"'):
        LeastSquares()(A, b)
    with pytest.raises(IrregularPointError, match="not unique"):
        LeastSquares()(A[0, :2], b[0, :2])
    shortest = LeastSquares(differentiation=Implicit(irregular="min_norm"))
    torch.testing.assert_close(shortest(A, b), (torch.linalg.pinv(A) @ b.unsqueeze(2)).squeeze(2))
    torch.testing.assert_close(shortest(A[::2], b[::2]), shortest(A, b)[::2], rtol=0.0, atol=1e-15)
    torch.testing.assert_close(vmap(jacrev(shortest, argnums=1))(A, b), torch.linalg.pinv(A))
    leaf = b.clone().requires_grad_()
    for policy, expected in (("nan", torch.nan), ("zero", 0.0)):
        (gradient,) = torch.autograd.grad(LeastSquares(differentiation=Implicit(irregular=policy))(A, leaf).sum(), leaf)
        torch.testing.assert_close(gradient[1], torch.full((5,), expected, dtype=F64), equal_nan=True)
        torch.testing.assert_close(gradient[0], torch.linalg.pinv(A[0]).sum(0))
    assert bool(torch.isfinite(LeastSquares(0.1)(A, b)).all())  # a ridge is enough
    ridge = torch.tensor([0.0, 0.0, 0.2], dtype=F64, requires_grad=True)  # as it is for one coefficient
    (gradient,) = torch.autograd.grad(LeastSquares(ridge)(A, b).sum(), ridge)
    assert bool(torch.isfinite(gradient).all())
    tiny = LeastSquares(differentiation=Implicit(irregular="min_norm"))(1e-30 * A[0], 1e-30 * b[0])  # scale is no rank
    torch.testing.assert_close(tiny, LeastSquares()(A[0], b[0]))


def test_natural_shapes():
    A, b = normal(2, 1, 5, 3), normal(4, 5, seed=1)
    y = LeastSquares(0.1)(A, b)
    assert y.shape == (2, 4, 3)
    torch.testing.assert_close(y[1, 2], LeastSquares(0.1)(A[1, 0], b[2]))
    torch.testing.assert_close(LeastSquares(0.1)(A.mT.contiguous().mT, b), y)
    each = torch.tensor([[0.1], [0.7]], dtype=F64)
    torch.testing.assert_close(LeastSquares()(A[:, 0], b[:2], ridge=each)[1], LeastSquares(0.7)(A[1, 0], b[1]))
    for empty in ((A[:0, 0], b[:0]), (A[0, 0], b[:0])):
        leaf = empty[0].clone().requires_grad_()
        out = LeastSquares(0.1)(leaf, empty[1])
        assert out.shape == (0, 3)
        out.sum().backward()
        assert leaf.grad.shape == leaf.shape
    s = LeastSquares(0.1).solution(A, b)
    assert s.stationarity.shape == (2, 4)
    assert s.equality_multipliers.shape == (2, 4, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_precisions(dtype):
    A, b = normal(3, 6, 3, dtype=dtype), normal(3, 6, seed=1, dtype=dtype)
    y = LeastSquares(0.1)(A, b)
    assert y.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), LeastSquares(0.1)(A.double(), b.double()), rtol=8 * eps, atol=8 * eps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(LeastSquares(0.1)(A.float(), b.float()), LeastSquares(0.1)(A.double(), b.double()).float())


def test_a_ridge_is_learned():
    """The ridge that generalises best, found by its gradient; it is near the ratio of variances."""
    truth = normal(64, 6)
    A, noise = normal(64, 8, 6, seed=1), 0.8 * normal(64, 8, seed=2)
    b = (A @ truth.unsqueeze(2)).squeeze(2) + noise
    logarithm = nn.Parameter(torch.tensor(-3.0, dtype=F64))
    layer, optimizer = LeastSquares(), torch.optim.Adam([logarithm], lr=0.1)
    for _ in range(80):
        optimizer.zero_grad()
        (layer(A, b, ridge=logarithm.exp()) - truth).square().mean().backward()
        optimizer.step()
    assert 0.4 < float(logarithm.detach().exp()) < 1.0  # 0.8² = 0.64


BAD = [
    (lambda: LeastSquares()(normal(3), normal(3)), r"A must be a tensor \(…, m, n\), got \(3,\)"),
    (lambda: LeastSquares()(normal(3, 2), normal(3, 2)), r"b must be \(…, m\) with m = 3.*got shape \(3, 2\); pass columns=True"),
    (lambda: LeastSquares()(normal(3, 2), normal(3), normal(2)), r"weights must be \(…, m\) with m = 3"),
    (lambda: LeastSquares()(normal(3, 2), normal(3), -positive(3)), "weights must be 0 or more"),
    (lambda: LeastSquares(-1.0)(normal(3, 2), normal(3)), "ridge must be 0 or more"),
    (lambda: LeastSquares(torch.ones(3, dtype=F64))(normal(3, 2), normal(3)), r"ridge must be a number or \(…, n\), n = 2, got shape \(3,\)"),
    (lambda: LeastSquares("much"), "ridge must be a number, a tensor"),
    (lambda: LeastSquares()(normal(3, 2)), "b must be a tensor with a floating dtype, got NoneType"),
    (lambda: LeastSquares()(normal(3, 2), normal(3).float()), "b is torch.float32 on cpu, A is torch.float64"),
    (lambda: LeastSquares()(normal(2, 3, 2), normal(5, 3)), r"b of shape \(5, 3\) has leading dimensions \(5,\), which do not broadcast with \(2,\)"),
    (lambda: LeastSquares()(normal(2, 3, 2) / 0, normal(3)), r"A must be finite.*2 of 2 samples \(0, 1\)"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
