"""Centring, scaling and standardising as declarative nodes: structured products against the generic path, written-out Jacobians, sizes, shapes."""

import pytest
import torch
from torch.func import jacfwd, jacrev, vmap

from declarative import verify
from declarative.layers import Assignment, Centre, IdentitySolver, QuadraticSurrogate, Ranking, ShortestPath, Standardise, TopK

F64 = torch.float64
both = pytest.mark.parametrize("kind", [Centre, Standardise])


def points(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def written_out(kind, x):
    """P, or (P − zzᵀ)/‖Px‖, P = I − 11ᵀ/n."""
    n = len(x)
    p = torch.eye(n, dtype=F64) - torch.ones(n, n, dtype=F64) / n
    if kind is Centre:
        return p
    z = p @ x / (p @ x).norm()
    return (p - torch.outer(z, z)) / (p @ x).norm()


@both
def test_values_and_jacobians(kind):
    x = points(4, 6)
    z = kind()(x)
    assert torch.allclose(z.sum(1), torch.zeros(4, dtype=F64), atol=1e-14)
    if kind is Standardise:
        assert torch.allclose(z.norm(dim=1), torch.ones(4, dtype=F64), atol=1e-14)
    node = kind()
    for i in range(4):
        expected = written_out(kind, x[i])
        assert torch.allclose(jacrev(lambda x: node(x.unsqueeze(0)).squeeze(0))(x[i]), expected, atol=1e-13)
        assert torch.allclose(jacfwd(lambda x: node(x.unsqueeze(0)).squeeze(0))(x[i]), expected, atol=1e-13)
        (product,) = node.vjp((x[i : i + 1],), node.solution(x[i : i + 1]), points(1, 6, seed=1))
        assert torch.allclose(product[0], expected @ points(6, seed=1), atol=1e-13)
    assert torch.allclose(vmap(node)(x.expand(2, 4, 6)), z.expand(2, 4, 6), atol=1e-14)


@both
def test_structured_is_generic(kind):
    report = verify(kind(), points(3, 5))
    assert report.ok, str(report)
    rows = {row.name for row in report.rows}
    assert {"vjp = dense formula", "jvp = vjp"} <= rows
    assert torch.autograd.gradcheck(kind(), (points(2, 5).requires_grad_(),), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(kind(), (points(2, 5).requires_grad_(),))


@pytest.mark.parametrize("projection", [None, "centre", "scale", "standardise"])
@pytest.mark.parametrize("sense", ["max", "min"])
def test_the_identity_step_is_the_gradient_of_its_surrogate(projection, sense):
    x, v = points(3, 5), points(3, 5, seed=1)
    report = verify(QuadraticSurrogate(projection, sense), x)
    assert report.ok, str(report)
    gradients = []
    for layer in (QuadraticSurrogate(projection, sense), IdentitySolver(TopK(2), sense, projection), IdentitySolver(Ranking(), sense, projection)):
        leaf = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(layer(leaf), leaf, v)[0])
    assert torch.allclose(gradients[0], gradients[1], atol=1e-9)
    assert torch.equal(gradients[1], gradients[2])


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (5, 3)])
def test_centring_of_matrices(shape):
    """By row and column: what is removed has no influence on the matching, and the product is that of the projector."""
    w, v = points(2, *shape), points(2, *shape, seed=1)
    for projection in ("centre", "standardise"):
        layer = IdentitySolver(Assignment(), projection=projection)
        assert torch.equal(layer(w), IdentitySolver(Assignment())(w))
        leaf = w.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(layer(leaf), leaf, v)
        if shape[0] <= shape[1]:
            assert torch.allclose(gradient.sum(2), torch.zeros(2, shape[0], dtype=F64), atol=1e-13)
            assert torch.equal(layer(w + 7 * points(2, shape[0], 1, seed=2)), layer(w))
        if shape[1] <= shape[0]:
            assert torch.allclose(gradient.sum(1), torch.zeros(2, shape[1], dtype=F64), atol=1e-13)
            assert torch.equal(layer(w + 7 * points(2, 1, shape[1], seed=2)), layer(w))
        if projection == "standardise":
            assert torch.allclose((gradient * w).sum((1, 2)), torch.zeros(2, dtype=F64), atol=1e-13)
    # All at once: vec(z) = (C_m ⊗ C_n) vec(ω) has the Jacobian C_m ⊗ C_n
    n, m = shape
    rows = torch.eye(n, dtype=F64) - (1 / n if m <= n else 0)
    columns = torch.eye(m, dtype=F64) - (1 / m if n <= m else 0)
    leaf = w.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(IdentitySolver(Assignment(), projection="centre")(leaf), leaf, v)
    assert torch.allclose(gradient, rows @ v @ columns, atol=1e-13)


@pytest.mark.parametrize(("dtype", "sizes"), [(F64, (1e-300, 1e-160, 1e160, 1e300)), (torch.float32, (1e-37, 1e-25, 1e25, 1e37))])
def test_units_do_not_matter(dtype, sizes):
    """Squares that vanished or overflowed made z zero, and the solver looked at nothing."""
    x = points(2, 6).to(dtype)
    costs = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)
    for size in sizes:
        assert torch.allclose(Standardise()(x * size), Standardise()(x), atol=1e-5)
        assert torch.equal(IdentitySolver(ShortestPath(), "min", "scale")(costs * size), IdentitySolver(ShortestPath(), "min")(costs))
        assert torch.equal(IdentitySolver(Assignment(), "min", "standardise")(costs * size), IdentitySolver(Assignment(), "min")(costs))


def test_no_direction():
    for x in (torch.zeros(2, 5), torch.full((2, 5), 0.3), torch.full((2, 5), 1e8), torch.ones(2, 1)):
        leaf = x.clone().requires_grad_()
        z = Standardise()(leaf)
        (gradient,) = torch.autograd.grad(z.sum(), leaf)
        assert not bool(z.any())
        assert not bool(gradient.any())


@both
def test_shapes_and_dtypes(kind):
    x = points(2, 3, 5)
    assert torch.allclose(kind()(x)[1, 2], kind()(x[1, 2:])[0], atol=1e-15)
    assert torch.allclose(kind()(x.mT.contiguous().mT), kind()(x), atol=1e-15)
    assert kind()(torch.zeros(0, 5)).shape == (0, 5)
    assert kind()(x.float()).dtype == torch.float32


def test_what_is_not_valid_is_told():
    with pytest.raises(ValueError, match=r"projection='centre' is not valid here: paths differ in length.*Use projection='scale'"):
        IdentitySolver(ShortestPath(), "min", "centre")
    with pytest.raises(ValueError, match="'standardise' is not valid here: nothing says that all solutions have the same sum"):
        IdentitySolver(lambda w: w > 0, projection="standardise")
    for make in (lambda: QuadraticSurrogate("center"), lambda: IdentitySolver(Ranking(), projection="rows")):
        with pytest.raises(ValueError, match="projection must be one of"):
            make()
    with pytest.raises(ValueError, match="sense must be 'max' or 'min', got 'centre'"):
        IdentitySolver(Ranking(), "centre")
