"""Eigenvectors: against torch, derivatives of every kind, repeated eigenvalues, shapes, bad input."""

import pytest
import torch
from torch.func import jacfwd, jacrev, vmap

from declarative import Implicit, IrregularPointError, certify, verify
from declarative.layers import Eigenvector
from problems import eigenvector

F64 = torch.float64
pytestmark = pytest.mark.usefixtures("shapes_unchecked")
EACH = [(1, True), (2, True), (3, False), (1, False)]
each = pytest.mark.parametrize(("k", "largest"), EACH)


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def with_eigenvalues(*values, seed=0):
    basis = torch.linalg.qr(normal(len(values), len(values), seed=seed)).Q
    return (basis * torch.tensor(values, dtype=F64)) @ basis.mT, basis


@each
def test_eigh(k, largest):
    X = normal(6, 4, 4)
    y = Eigenvector(k, largest=largest)(X)
    values, vectors = torch.linalg.eigh(0.5 * (X + X.mT))
    at = 4 - k if largest else k - 1
    torch.testing.assert_close((y * vectors[:, :, at]).sum(1).abs(), torch.ones(6, dtype=F64))
    torch.testing.assert_close((0.5 * (X + X.mT) @ y.unsqueeze(2)).squeeze(2), values[:, at : at + 1] * y)
    assert bool((y.gather(1, y.abs().argmax(1, keepdim=True)) > 0).all())


def test_the_multiplier_is_the_eigenvalue():
    X = normal(3, 4, 4).requires_grad_()
    values = torch.linalg.eigvalsh(0.5 * (X + X.mT))
    nu = Eigenvector().solution(X).equality_multipliers
    torch.testing.assert_close(nu[:, 0], values[:, -1])
    torch.testing.assert_close(*(torch.autograd.grad(t.sum(), X)[0] for t in (nu, values[:, -1])))
    torch.testing.assert_close(Eigenvector(largest=False).solution(X).equality_multipliers[:, 0], -values[:, 0])


def test_the_worked_problem():
    (X,) = eigenvector.sample(4, torch.Generator().manual_seed(0), F64)
    y = Eigenvector()(X)
    torch.testing.assert_close(y, eigenvector.closed_form(X))
    torch.testing.assert_close(vmap(jacrev(Eigenvector()))(X), eigenvector.jacobian(X))


@each
def test_derivatives_in_every_mode(k, largest):
    X = normal(2, 4, 4)
    layer, leaf = Eigenvector(k, largest=largest), X.clone().requires_grad_()
    assert torch.autograd.gradcheck(layer, (leaf,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(layer, (leaf,), check_fwd_over_rev=True)
    torch.testing.assert_close(jacrev(layer)(X), jacfwd(layer)(X))
    torch.testing.assert_close(vmap(layer)(X), layer(X))
    torch.testing.assert_close(vmap(jacrev(layer))(X), torch.stack([jacrev(layer)(x) for x in X]))
    torch.testing.assert_close(jacfwd(jacfwd(layer))(X[0]), jacrev(jacrev(layer))(X[0]))


@each
def test_verify(k, largest):
    report = verify(Eigenvector(k, largest=largest), normal(3, 4, 4))
    assert report.ok, str(report)
    assert bool(certify(Eigenvector(k, largest=largest), normal(3, 4, 4)).regular.all())


def test_other_eigenvalues_may_coincide():
    """torch.linalg.eigh has no gradient there."""
    X, basis = with_eigenvalues(1.0, 1.0, 1.0, 3.0)
    leaf = X.clone().requires_grad_()
    assert torch.autograd.gradcheck(Eigenvector(), (leaf,))
    v = normal(4)
    (gradient,) = torch.autograd.grad(Eigenvector()(leaf), leaf, v)
    y = basis[:, 3] * basis[:, 3][basis[:, 3].abs().argmax()].sign()
    u = (v - y * (y @ v)) / 2
    torch.testing.assert_close(gradient, 0.5 * (torch.outer(u, y) + torch.outer(y, u)))


def test_repeated_eigenvalues():
    X = torch.stack([with_eigenvalues(1.0, 2.0, 3.0)[0], with_eigenvalues(1.0, 3.0, 3.0)[0], torch.eye(3, dtype=F64)])
    leaf = X.clone().requires_grad_()
    y = Eigenvector()(leaf)
    torch.testing.assert_close((X @ y.unsqueeze(2)).squeeze(2), torch.tensor([[3.0], [3.0], [1.0]], dtype=F64) * y)
    with pytest.raises(IrregularPointError, match=r"2 of 3 samples \(1, 2\): the eigenvalue is repeated"):
        y.sum().backward()
    with pytest.raises(IrregularPointError):
        vmap(jacrev(Eigenvector()))(X)
    for policy, expected in (("nan", torch.nan), ("zero", 0.0)):
        (gradient,) = torch.autograd.grad(Eigenvector(differentiation=Implicit(irregular=policy))(leaf).sum(), leaf)
        torch.testing.assert_close(gradient[1:], torch.full((2, 3, 3), expected, dtype=F64), equal_nan=True)
        torch.testing.assert_close(gradient[0], torch.autograd.grad(Eigenvector()(leaf)[0].sum(), leaf)[0][0])
    # The pseudo-inverse moves y towards the eigenspaces of other eigenvalues alone.
    (gradient,) = torch.autograd.grad(Eigenvector(differentiation=Implicit(irregular="min_norm"))(leaf), leaf, normal(3, 3))
    first = with_eigenvalues(1.0, 3.0, 3.0)[1][:, 0]
    u = first * (first @ normal(3, 3)[1]) / 2
    torch.testing.assert_close(gradient[1], 0.5 * (torch.outer(u, y[1]) + torch.outer(y[1], u)).detach())
    assert float(gradient[2].abs().max()) < 1e-12
    assert not bool(Eigenvector(largest=False).solution(X[:2]).report.irregular)


def test_natural_shapes_and_precisions():
    X = normal(2, 3, 4, 4)
    layer = Eigenvector(2)
    expected = torch.stack([layer(x) for x in X.reshape(6, 4, 4)]).reshape(2, 3, 4)
    torch.testing.assert_close(layer(X), expected)
    torch.testing.assert_close(layer(X.movedim(0, -1), in_dims=-1), expected)
    torch.testing.assert_close(layer(X.movedim(0, 1).contiguous().movedim(1, 0)), expected)
    assert layer.solution(X).status.shape == (2, 3)
    leaf = X[:0].clone().requires_grad_()
    layer(leaf).sum().backward()
    assert leaf.grad.shape == (0, 3, 4, 4)
    assert Eigenvector()(torch.full((1, 1), -2.0)).tolist() == [1.0]
    for dtype in (torch.float32, torch.float16):
        y = Eigenvector()(X.to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), Eigenvector()(X.to(dtype).double()), rtol=0.0, atol=20 * torch.finfo(dtype).eps)


BAD = [
    (lambda: Eigenvector(0), "k must be a positive int, got 0"),
    (lambda: Eigenvector(5)(normal(4, 4)), "k must be between 1 and n = 4, got 5"),
    (lambda: Eigenvector()(normal(3, 4)), r"X must be a tensor \(…, n, n\), got \(3, 4\)"),
    (lambda: Eigenvector()(normal(2, 4, 4) * torch.tensor([1.0, torch.inf])[:, None, None]), r"X must be finite.*1 of 2 samples \(1\)"),
    (lambda: Eigenvector()(torch.ones(3, 3, dtype=torch.int64)), "X must be a tensor with a floating dtype, got torch.int64"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
