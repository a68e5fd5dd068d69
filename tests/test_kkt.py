"""The linear solves behind every derivative, against numpy, singular and broken samples among sound ones."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from declarative import IrregularPointError
from declarative.kkt.bordered import IrregularPolicy, diagnose, solve_bordered
from declarative.kkt.lu import lu_factor
from declarative.kkt.marginals import MarginalsComplement
from declarative.kkt.symmetric import symmetric_solve
from tests.conformance.cases import close

F64 = torch.float64


def system(b, m, k, seed=0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    root, A, v, r = (torch.randn(b, *shape, generator=generator, dtype=dtype) for shape in ((m, m), (k, m), (m,), (k,)))
    return 0.5 * (root + root.mT), A, v, r


def policy(choice, b, m):
    return IrregularPolicy(choice, m, b, "Some")


@given(b=st.integers(0, 4), m=st.integers(1, 7), k=st.integers(0, 7), seed=st.integers(0, 10**6))
def test_masked_rows_against_numpy(b, m, k, seed):
    """Rows that count are equations; the others leave no trace."""
    k = min(k, m)
    H, A, v, r = system(b, m, k, seed)
    mask = torch.rand(b, k, generator=torch.Generator().manual_seed(seed)) < 0.6
    u, w = solve_bordered(policy("raise", b, m), H, A, mask.to(F64), v, r)
    for i in range(b):
        rows = A[i][mask[i]].numpy()
        K = np.block([[H[i].numpy(), rows.T], [rows, np.zeros((len(rows), len(rows)))]])
        expected = np.linalg.solve(K, np.concatenate([v[i].numpy(), r[i][mask[i]].numpy()]))
        tolerance = 1e-12 * np.linalg.cond(K)
        np.testing.assert_allclose(u[i], expected[:m], atol=tolerance)
        np.testing.assert_allclose(w[i][mask[i]], expected[m:], atol=tolerance)
        assert not bool(w[i][~mask[i]].any())


def test_derivatives_of_a_solve():
    H, A, v, r = system(2, 4, 2)
    K = torch.cat([torch.cat([H, A.mT], 2), torch.cat([A, A.new_zeros(2, 2, 2)], 2)], 1)
    rhs = torch.cat([v, r], 1).unsqueeze(2)

    def solve(K, rhs):
        return symmetric_solve(policy("raise", 2, 4), 0.5 * (K + K.mT), rhs)

    arguments = (K.requires_grad_(), rhs.requires_grad_())
    assert torch.autograd.gradcheck(solve, arguments, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(solve, arguments)


@pytest.mark.parametrize("choice", ["raise", "nan", "zero", "min_norm"])
def test_singular_and_broken_samples_among_sound_ones(choice):
    H, _, v, _ = system(4, 3, 0, seed=1)
    sound = torch.linalg.solve(H[[0, 3]], v[[0, 3]].unsqueeze(2)).squeeze(2)
    H[1] = torch.diag(torch.tensor([2.0, 1.0, 0.0]))
    v[1] = torch.tensor([2.0, 3.0, 0.0])
    H[2, 0, 0] = torch.nan
    p = policy(choice, 4, 3)
    if choice == "raise":
        with pytest.raises(IrregularPointError, match=r"Some: .* at 1 of 4 samples \(1\): the minimiser is not isolated"):
            symmetric_solve(p, H, v.unsqueeze(2))
        return
    found = symmetric_solve(p, H, v.unsqueeze(2)).squeeze(2)
    close(found[[0, 3]], sound, 1e-11)
    assert bool(found[2].isnan().all())
    expected = {"nan": [torch.nan] * 3, "zero": [0.0] * 3, "min_norm": [1.0, 3.0, 0.0]}[choice]
    close(found[1], torch.tensor(expected, dtype=F64), 1e-12, equal_nan=True)
    assert list(p.report.irregular) == [1]
    assert "not isolated" in p.report.irregular[1]


def test_min_norm_of_redundant_rows():
    """u is that of the rows written once; w is spread evenly."""
    H, A, v, r = system(1, 4, 1, seed=2)
    u, w = solve_bordered(policy("raise", 1, 4), H, A, None, v, r)
    twice = torch.cat([A, A], 1)
    u2, w2 = solve_bordered(policy("min_norm", 1, 4), H, twice, None, v, torch.cat([r, r], 1))
    close(u2, u, 1e-10)
    close(w2, w.expand(1, 2) / 2, 1e-10)


def test_min_norm_of_redundant_rows_of_a_linear_program():
    """H = 0: A alone determines u, and Aᵀ w = v is solved by the shortest w; where rows do not determine u, by the shortest u."""
    _, A, v, r = system(2, 3, 3, seed=4)
    rows, sides = torch.cat([A, 2 * A[:, :1]], 1), torch.cat([r, 2 * r[:, :1]], 1)
    # The second sample has one more row that does not count, and a free direction.
    rows, sides = torch.cat([rows, A[:, 1:2]], 1), torch.cat([sides, r[:, 1:2]], 1)
    mask = torch.tensor([[1.0, 1, 1, 1, 0], [1, 0, 0, 1, 0]], dtype=F64)
    p = policy("min_norm", 2, 3)
    u, w = solve_bordered(p, torch.zeros(2, 3, 3, dtype=F64), rows, mask, v, sides)
    assert "rank 3, not 4" in p.report.irregular[0]
    assert "rank 1, not 2" in p.report.irregular[1]
    for i in range(2):
        counted = mask[i] > 0
        close(u[i], torch.linalg.pinv(rows[i][counted]) @ sides[i][counted], 1e-10)
        # w is the shortest in units of rows of length 1.
        lengths = torch.linalg.vector_norm(rows[i][counted], dim=1)
        unit = rows[i][counted] / lengths.unsqueeze(1)
        close(w[i][counted] * lengths, torch.linalg.pinv(unit.T) @ v[i], 1e-10)
        assert not bool(w[i][~counted].any())


def test_diagnosis():
    def kkt(H, A):
        k = len(A)
        return torch.cat([torch.cat([H, A.T], 1), torch.cat([A, torch.zeros(k, k, dtype=F64)], 1)])

    eye = torch.eye(2, dtype=F64)
    assert "the gradient of 1 active constraint vanishes" in diagnose(kkt(eye, torch.zeros(1, 2, dtype=F64)), 2)
    assert "rank 1, not 2" in diagnose(kkt(eye, torch.ones(2, 2, dtype=F64)), 2)
    assert "not isolated" in diagnose(kkt(torch.diag(torch.tensor([1.0, 0.0], dtype=F64)), torch.tensor([[1.0, 0.0]], dtype=F64)), 2)


def test_residual_is_reported_and_refined():
    """An ill-conditioned system: the residual is at rounding after refinement, and it is the true one."""
    n = 12
    H = 1 / (1 + torch.arange(n, dtype=F64).unsqueeze(0) + torch.arange(n, dtype=F64).unsqueeze(1))
    H = (H[:9, :9]).unsqueeze(0)
    v = torch.ones(1, 9, dtype=F64)
    p = policy("raise", 1, 9)
    found = symmetric_solve(p, H, v.unsqueeze(2)).squeeze(2)
    true = (v - (H @ found.unsqueeze(2)).squeeze(2)).abs().amax(1) / v.abs().amax(1)
    close(p.report.residual, true, 1e-14)
    assert float(true) < 1e-3


def test_damping_reports_the_undamped_residual():
    H, A, v, r = system(1, 4, 1, seed=3)
    p = IrregularPolicy("raise", 4, 1, "Some", damping=0.1)
    u, w = solve_bordered(p, H, A, None, v, r)
    z = torch.cat([u, w], 1).unsqueeze(2)
    K = torch.cat([torch.cat([H, A.mT], 2), torch.cat([A, A.new_zeros(1, 1, 1)], 2)], 1)
    shift = torch.diag(torch.tensor([0.1] * 4 + [-0.1], dtype=F64))
    close(((K + shift) @ z).squeeze(2), torch.cat([v, r], 1), 1e-11)
    undamped = (torch.cat([v, r], 1) - (K @ z).squeeze(2)).abs().amax(1) / torch.cat([v, r], 1).abs().amax(1)
    close(p.report.residual, undamped, 1e-10)


@pytest.mark.parametrize(("b", "n"), [(1, 1), (3, 5), (2, 127), (3, 150), (2, 200), (0, 4)])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_lu(b, n, dtype):
    """Sizes on both sides of where the batched factorisation is not to be trusted."""
    matrix = torch.randn(b, n, n, generator=torch.Generator().manual_seed(n), dtype=dtype)
    factor, pivots = lu_factor(matrix)
    rhs = torch.ones(b, n, 1, dtype=dtype)
    residual = matrix @ torch.linalg.lu_solve(factor, pivots, rhs) - rhs
    assert not residual.numel() or float(residual.abs().max()) < 1e5 * n * torch.finfo(dtype).eps


def test_known_number_of_rows_is_taken_at_its_word():
    b, m, k = 3, 8, 20
    generator = torch.Generator().manual_seed(0)
    hessian, jacobian, v, r = (torch.randn(b, *shape, generator=generator, dtype=torch.float64) for shape in ((m, m), (k, m), (m,), (k,)))
    hessian = hessian + hessian.mT + 10 * torch.eye(m, dtype=torch.float64)
    active = (torch.arange(k) % 7 == torch.arange(b).unsqueeze(1)).double()  # 3 or 2 in each sample
    for most in (3, 5, 30):
        found = solve_bordered(IrregularPolicy("raise", m, b, "node", most_rows=most), hessian, jacobian, active, v, r)
        close(found, solve_bordered(IrregularPolicy("raise", m, b, "node"), hessian, jacobian, active, v, r), 1e-10)


@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 4, 5)])
def test_an_attempt_says_where_it_did_not_serve(shape):
    plan = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plan[1] = torch.eye(*shape[1:], dtype=torch.float64) + 1e-18  # S is lost to rounding there
    complement = MarginalsComplement(plan, (1, -1))
    side = torch.randn(2, sum(shape[1:]) - 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, served = complement.attempt_columns(side)
    assert served is not None
    assert served.tolist() == [True, False]
    close(found[:1], complement.solve_columns(side)[:1], 1e-12)
    close(complement.matmul_columns(found)[:1], side[:1], 1e-10)
