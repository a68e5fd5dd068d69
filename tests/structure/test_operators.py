"""One suite for every operator: whatever it does must be what its own dense matrix does."""

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from declarative.errors import SingularOperatorError
from declarative.kkt.bordered import IrregularPolicy
from declarative.kkt.elimination import EliminatedOperator
from declarative.kkt.marginals import MarginalsComplement
from declarative.kkt.schur import SchurKKT
from declarative.structure import (
    BandedOperator,
    BlockDiagonalOperator,
    DenseOperator,
    DiagonalOperator,
    InverseDiagonalOperator,
    LowRankUpdateOperator,
    SparseOperator,
    SparsePattern,
)
from declarative.structure.reordered import ReorderedOperator, RepeatedOperator
from tests.conformance.cases import close, weights

F64 = torch.float64


def dense(b, n, seed=1, dtype=F64):
    return (weights((b, n, n), seed) + 3 * n * torch.eye(n, dtype=F64)).to(dtype)


def banded(b, n, dtype=F64, lower=1, upper=2):
    bands = weights((b, lower + upper + 1, n), 2)
    bands[:, lower] += 10
    return BandedOperator(bands.to(dtype), lower, upper)


def sparse(b, rows, columns, dtype=F64, share=0.5):
    mask = torch.as_tensor(np.random.default_rng(rows + columns).random((rows, columns)) < share)
    pattern = SparsePattern.from_dense(mask)
    return SparseOperator(weights((b, len(pattern.rows)), 3).to(dtype), pattern)


def square_sparse(b, n, dtype=F64):
    pattern = SparsePattern.from_dense(torch.eye(n) + torch.diag(torch.ones(n - 1), 1) if n > 1 else torch.ones(1, 1))
    values = weights((b, len(pattern.rows)), 4)
    return SparseOperator(torch.where(pattern.rows == pattern.columns, values + 5 * values.sign(), values).to(dtype), pattern)


def schur(b, n, dtype=F64):
    """The KKT matrix itself is an operator: m = n, and n // 2 constraints, one of them out."""
    k = n // 2
    ones = torch.ones(b, k, dtype=dtype)
    ones[:, -1:] = 0
    hessian = DiagonalOperator((weights((b, n), 5).abs() + 1).to(dtype))
    policy = IrregularPolicy("raise", n, b, "Some")
    return SchurKKT(policy, hessian, DenseOperator(weights((b, k, n), 6).to(dtype)), ones) if k else SchurKKT(policy, hessian, None, None)


def eliminated(b, n, dtype=F64):
    """The diagonal block has the odd places."""
    first, second = torch.arange(1, 2 * n, 2), torch.arange(0, 2 * n, 2)
    corner = dense(b, n, dtype=dtype)
    diagonal, border = (weights((b, n), 1).abs() + 2).to(dtype), weights((b, n, n), 5).to(dtype)
    return EliminatedOperator(diagonal, border, 0.5 * (corner + corner.mT), first, second)


def marginals(b, n, dtype=F64, signs=(1, -1)):
    """Columns and rows of a matrix of positive weights."""
    return MarginalsComplement((weights((b, n, 3), 3).abs() + 0.5).to(dtype), signs)


OPERATORS = {
    "dense": lambda b, n, dtype=F64: DenseOperator(dense(b, n, dtype=dtype)),
    "diagonal": lambda b, n, dtype=F64: DiagonalOperator((weights((b, n), 1) * 2).to(dtype)),
    "banded": banded,
    "blocks": lambda b, n, dtype=F64: BlockDiagonalOperator(dense(b * n, 2, dtype=dtype).reshape(b, n, 2, 2)),
    "low_rank": lambda b, n, dtype=F64: LowRankUpdateOperator(DiagonalOperator(weights((b, n)).abs().to(dtype) + 3), weights((b, n, 2), 2).to(dtype)),
    "low_rank_on_banded": lambda b, n, dtype=F64: LowRankUpdateOperator(
        banded(b, n, dtype), weights((b, n, 1), 2).to(dtype), weights((b, 1, 1), 3).to(dtype), weights((b, n, 1), 4).to(dtype)
    ),
    "inverse_diagonal": lambda b, n, dtype=F64: InverseDiagonalOperator((weights((b, n), 1) * 2).to(dtype)),
    "repeated": lambda b, n, dtype=F64: RepeatedOperator(DenseOperator(dense(b, 2, dtype=dtype)), n),
    "reordered": lambda b, n, dtype=F64: ReorderedOperator(DenseOperator(dense(b, 2 * n * 3, dtype=dtype)), (2, n, 3), (2, 0, 1)),
    "eliminated": eliminated,
    "marginals": marginals,
    "marginals_of_one_row": lambda b, n, dtype=F64: MarginalsComplement((weights((b, 1, n), 3).abs() + 0.5).to(dtype), (1, 1)),
    "sparse": square_sparse,
    "schur": schur,
}
every_operator = pytest.mark.parametrize("make", OPERATORS.values(), ids=OPERATORS)


@every_operator
@pytest.mark.parametrize("b", [0, 1, 3])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_against_its_own_matrix(make, b, n):
    for dtype, tolerance in ((F64, 1e-11), (torch.float32, 2e-4)):
        operator = make(b, n, dtype)
        matrix = operator.to_dense()
        assert matrix.shape == operator.shape
        c = operator.shape[2]
        x, columns = weights((b, c), 7).to(dtype), weights((b, c, 3), 8).to(dtype)
        close(operator.matmul(x), (matrix @ x.unsqueeze(-1)).squeeze(-1), tolerance)
        close(operator.matmul(columns), matrix @ columns, tolerance)
        close(operator.transpose().to_dense(), matrix.mT, tolerance)
        close(operator.diagonal(), matrix.diagonal(dim1=1, dim2=2), tolerance)
        close(operator.solve(x), torch.linalg.solve(matrix, x.unsqueeze(-1)).squeeze(-1) if b else x, 10 * tolerance)
        close(operator.solve(columns), torch.linalg.solve(matrix, columns) if b else columns, 10 * tolerance)
        assert operator.solve(x).dtype == dtype


@every_operator
def test_derivatives(make):
    operator = make(2, 4)
    tensors = [t.detach().clone().requires_grad_() for t in operator.tensors]
    rhs = weights((2, operator.shape[1], 2), 9).requires_grad_()

    def solve(rhs, *tensors):
        return operator.with_tensors(tensors).solve(rhs)

    def product(rhs, *tensors):
        return operator.with_tensors(tensors).matmul(rhs)

    for function in (solve, product):
        assert torch.autograd.gradcheck(function, (rhs, *tensors), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(solve, (rhs, *tensors))


@every_operator
def test_transforms(make):
    operator = make(2, 4)
    n = operator.shape[1]
    rhs = weights((3, 2, n), 9)
    first = operator.tensors[0]
    several = torch.stack([first, 1.1 * first, 1.3 * first])

    def solve(first, rhs):
        return operator.with_tensors([first, *operator.tensors[1:]]).solve(rhs)

    close(torch.func.vmap(solve, (None, 0))(first, rhs), torch.stack([solve(first, r) for r in rhs]), 1e-10)
    close(torch.func.vmap(solve, (0, None))(several, rhs[0]), torch.stack([solve(t, rhs[0]) for t in several]), 1e-10)
    close(torch.func.vmap(solve)(several, rhs), torch.stack([solve(t, r) for t, r in zip(several, rhs, strict=True)]), 1e-10)
    reverse, forward = (transform(solve, argnums=0)(first, rhs[0]) for transform in (torch.func.jacrev, torch.func.jacfwd))
    close(reverse, forward, 1e-9)


# Reciprocals of zero are infinite entries, and weights of zero send nothing: neither is singular.
SINGULAR_AT_ZERO = [name for name in OPERATORS if name not in ("schur", "low_rank_on_banded", "inverse_diagonal", "marginals", "marginals_of_one_row")]


@pytest.mark.parametrize("name", SINGULAR_AT_ZERO)
def test_broken_samples_keep_to_themselves(name):
    """A sample that is not finite gives NaN, a singular one an error that names it."""
    operator = OPERATORS[name](3, 4)
    rhs = weights((3, operator.shape[1]), 9)
    good = operator.solve(rhs)
    tensors = [t.clone() for t in operator.tensors]
    tensors[0][1] = torch.nan
    found = operator.with_tensors(tensors).solve(rhs)
    assert not bool(torch.isfinite(found[1]).all())
    close(found[[0, 2]], good[[0, 2]], 1e-13)
    for tensor in tensors:
        tensor[1] = 0
    with pytest.raises(SingularOperatorError, match=r"Operator is singular at 1 of 3 samples \(1\)"):
        operator.with_tensors(tensors).solve(rhs)


@every_operator
def test_wrong_shapes(make):
    operator = make(3, 4)
    n = operator.shape[1]
    for call in (operator.matmul, operator.solve):
        with pytest.raises(ValueError, match=rf"expects \(3, {n}\) or \(3, {n}, k\), got \(3, {n + 1}\)"):
            call(torch.ones(3, n + 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DenseOperator(torch.ones(2, 2)), r"matrices \(b, r, c\), got shape \(2, 2\)"),
        (lambda: DiagonalOperator(torch.tensor(1.0)), "got a scalar tensor"),
        (lambda: BandedOperator(torch.ones(2, 2, 5), 1, 1), r"bands \(b, 3, n\), got \(2, 2, 5\)"),
        (lambda: BandedOperator(torch.ones(2, 2, 5), -1, 2), "lower and upper of 0 or more, got -1 and 2"),
        (lambda: BlockDiagonalOperator(torch.ones(2, 3, 2, 1)), r"square blocks \(b, n, s, s\), got shape \(2, 3, 2, 1\)"),
        (lambda: LowRankUpdateOperator(DiagonalOperator(torch.ones(2, 3)), torch.ones(2, 4, 1)), r"left \(2, 3, k\), got \(2, 4, 1\)"),
        (lambda: LowRankUpdateOperator(DiagonalOperator(torch.ones(2, 3)), torch.ones(2, 3, 1), torch.ones(2, 2, 2)), r"core \(2, 1, 1\), got \(2, 2, 2\)"),
        (lambda: SparseOperator(torch.ones(2, 3), SparsePattern.from_dense(torch.eye(2))), r"values \(b, 2\), got \(2, 3\)"),
        (lambda: SparsePattern.from_dense(torch.ones(2)), r"mask \(r, c\), got shape \(2,\)"),
        (lambda: sparse(2, 3, 4).solve(torch.ones(2, 3)), "needs a square operator, this one is 3 x 4"),
    ],
)
def test_bad_numbers(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@given(b=st.integers(1, 3), r=st.integers(1, 8), c=st.integers(1, 8), share=st.floats(0, 1))
def test_sparse(b, r, c, share):
    """Rectangular; even rows and uneven ones; and the Gram matrix both ways."""
    operator = sparse(b, r, c, share=share)
    matrix, d = operator.to_dense(), weights((b, c), 5)
    close(operator.matmul(weights((b, c, 2), 6)), matrix @ weights((b, c, 2), 6), 1e-12)
    close(operator.transpose().matmul(weights((b, r), 6)), (matrix.mT @ weights((b, r, 1), 6)).squeeze(-1), 1e-12)
    close(operator.gram(d), (matrix * d.unsqueeze(1)) @ matrix.mT, 1e-11)
    close(SparseOperator.from_dense(matrix).to_dense(), matrix, 0)


def test_positive_definite():
    for operator, expected in (
        (DiagonalOperator(torch.tensor([[1.0, 2.0], [1.0, -1.0]])), [True, False]),
        (BandedOperator(torch.tensor([[[0.0, 1, 1], [3, 3, 3], [1, 1, 0]], [[0.0, 1, 1], [1, 1, 1], [1, 1, 0]]]), 1, 1), [True, False]),
        (BlockDiagonalOperator(torch.eye(2).expand(1, 3, 2, 2)), [True]),
        (DenseOperator(torch.diag_embed(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))), [True, False]),
    ):
        assert operator.is_positive_definite().tolist() == expected


def test_long_bands_against_scipy():
    n = 10_000
    bands = weights((1, 3, n), 2)
    bands[:, 1] += 5
    rhs = weights((1, n), 3)
    columns = [bands[0, 0, 1:], bands[0, 1], bands[0, 2, :-1]]
    matrix = scipy.sparse.diags([c.numpy() for c in columns], [-1, 0, 1], format="csc")
    np.testing.assert_allclose(BandedOperator(bands, 1, 1).solve(rhs)[0], scipy.sparse.linalg.spsolve(matrix, rhs[0].numpy()), atol=1e-10)


def test_expanded_and_transposed_tensors():
    operator = DiagonalOperator(weights((1, 4), 1).expand(3, 4))
    close(operator.solve(weights((4, 3), 2).T), weights((4, 3), 2).T / operator.values, 1e-13)
    shared = DenseOperator(dense(1, 4).expand(3, 4, 4).mT)
    close(shared.solve(weights((3, 4), 2)), torch.linalg.solve(shared.to_dense(), weights((3, 4), 2)), 1e-12)


def broken(kind, n, lower, upper, dtype):
    """Bands of one sample: singular in the first pivot or in the last, of wrong sign, not finite, or of a solution that overflows."""
    bands = torch.zeros(lower + upper + 1, n, dtype=dtype)
    bands[lower] = 1.0
    place, value = {"first": (0, 0.0), "last": (-1, 0.0), "indefinite": (1, -1.0), "nan": (1, torch.nan), "inf": (-1, torch.inf)}.get(kind, (0, 1.0))
    bands[lower, place] = value
    return bands * torch.finfo(dtype).tiny if kind == "overflow" else bands


@pytest.mark.parametrize("extent", [(1, 1), (2, 2), (0, 2), (2, 1), (3, 0)], ids=str)
@pytest.mark.parametrize("kind", ["first", "last", "indefinite", "nan", "inf", "overflow"])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_broken_band_among_sound_ones(kind, extent, dtype):
    """One LAPACK call serves the batch: what is wrong with a sample must not reach those before and after it."""
    n, sample = 5, 1
    bands, rhs = banded(3, n, dtype, *extent).bands.clone(), 100 * weights((3, n), 9).to(dtype)
    bands[sample] = broken(kind, n, *extent, dtype)
    operator = BandedOperator(bands, *extent)
    found, others = operator.solve_columns(rhs.unsqueeze(-1)).squeeze(-1), [0, 2]
    alone = torch.stack([torch.linalg.solve(BandedOperator(bands[[i]], *extent).to_dense()[0], rhs[i]) for i in others])
    close(found[others], alone, 1e-12 if dtype == F64 else 1e-4)
    if kind == "indefinite":
        close(found[sample], rhs[sample] * torch.tensor([1, -1, 1, 1, 1], dtype=dtype), 1e-13)
    else:
        assert not bool(found[sample].isfinite().all())


@pytest.mark.parametrize("width", [0, 1, 3])
@pytest.mark.parametrize("kind", ["first", "last", "indefinite", "nan", "inf", "sound"])
def test_definiteness_of_a_band_among_others(kind, width):
    bands = banded(3, 5, lower=width, upper=width).bands.clone()
    for d in range(1, width + 1):  # symmetric: A[i, i − d] = A[i − d, i]
        bands[:, width - d, d:] = bands[:, width + d, : 5 - d]
    bands[1] = broken(kind, 5, width, width, F64)
    operator = BandedOperator(bands, width, width)
    assert operator.is_positive_definite().tolist() == [True, kind == "sound", True]
    assert BandedOperator(bands[:0], width, width).is_positive_definite().tolist() == []
