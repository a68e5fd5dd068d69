"""Conjugate gradients and MINRES against numpy, hard samples beside easy ones."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from declarative.kkt.iterative import conjugate_gradients, minres
from tests.conformance.cases import close, weights

F64 = torch.float64


def symmetric(n, values, seed=0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return torch.as_tensor(q @ np.diag(values) @ q.T)


def times(matrix):
    return lambda z: (matrix @ z.unsqueeze(-1)).squeeze(-1)


both = pytest.mark.parametrize("method", [conjugate_gradients, minres])


@both
@pytest.mark.parametrize("condition", [1e1, 1e3, 1e5])
def test_positive_definite(method, condition):
    """A hard sample, an easy one, a zero right-hand side; in any units."""
    n = 30
    K = torch.stack([symmetric(n, np.geomspace(1, condition, n)), symmetric(n, np.linspace(1, 2, n)), symmetric(n, np.ones(n))])
    rhs = weights((3, n))
    rhs[2] = 0
    for unit in (1.0, 1e-200, 1e200):
        found = method(times(K), unit * rhs, tolerance=1e-12, max_iterations=3000)
        assert bool(found.converged.all())
        close(found.solution / unit, torch.linalg.solve(K, rhs), 1e-11 * condition)
    residual = torch.linalg.vector_norm(rhs - times(K)(method(times(K), rhs, tolerance=1e-4, max_iterations=3000).solution), dim=1)
    assert bool((residual <= 1e-3 * torch.linalg.vector_norm(rhs, dim=1)).all())


@both
def test_neighbours_do_not_matter(method):
    n = 20
    K = torch.stack([symmetric(n, np.geomspace(1, 1e4, n)), symmetric(n, np.linspace(1, 3, n))])
    together = method(times(K), weights((2, n)), tolerance=1e-10, max_iterations=500).solution[1]
    alone = method(times(K[1:]), weights((2, n))[1:], tolerance=1e-10, max_iterations=500).solution[0]
    close(together, alone, 1e-12)


@given(seed=st.integers(0, 1000), m=st.integers(2, 8), k=st.integers(0, 3))
def test_minres_on_kkt_matrices(seed, m, k):
    k = min(k, m)
    numbers = np.random.default_rng(seed)
    H, A = numbers.standard_normal((m, m)), numbers.standard_normal((k, m))
    K = torch.as_tensor(np.block([[H + H.T, A.T], [A, np.zeros((k, k))]])).unsqueeze(0)
    rhs = torch.as_tensor(numbers.standard_normal((1, m + k)))
    found = minres(times(K), rhs, tolerance=1e-12, max_iterations=50 * (m + k))
    if bool(found.converged):
        close(times(K)(found.solution), rhs, 1e-9)
    assert bool(found.converged) or float(torch.linalg.cond(K)) > 1e4


def test_minres_on_a_singular_consistent_system():
    K = symmetric(6, np.array([3.0, 2.0, 1.0, -1.0, 0.0, 0.0])).unsqueeze(0)
    rhs = times(K)(weights((1, 6)))
    found = minres(times(K), rhs, tolerance=1e-12, max_iterations=100)
    close(found.solution, (torch.linalg.pinv(K, rtol=1e-10) @ rhs.unsqueeze(-1)).squeeze(-1), 1e-8)


@both
def test_preconditioner_saves_steps(method):
    d = torch.logspace(0, 5, 40, dtype=F64)
    K = (torch.diag(d) + 0.1 * symmetric(40, np.linspace(0, 1, 40))).unsqueeze(0)
    rhs = weights((1, 40))
    plain, helped = (method(times(K), rhs, tolerance=1e-10, max_iterations=2000, precondition=p) for p in (None, lambda r: r / d))
    assert helped.iterations * 4 < plain.iterations
    close(helped.solution, torch.linalg.solve(K, rhs), 1e-8)


@both
def test_broken_sample_and_budget(method):
    K = torch.stack([symmetric(10, np.geomspace(1, 1e6, 10))] * 2)
    rhs = weights((2, 10))
    rhs[0, 0] = torch.nan
    found = method(times(K), rhs, tolerance=1e-10, max_iterations=500)
    assert found.converged.tolist() == [False, True]
    short = method(times(K), weights((2, 10)), tolerance=1e-10, max_iterations=3)
    assert not bool(short.converged.any())
    true = torch.linalg.vector_norm(weights((2, 10)) - times(K)(short.solution), dim=1) / torch.linalg.vector_norm(weights((2, 10)), dim=1)
    close(short.residual, true, 1e-10)
    assert method(times(K[:0]), weights((0, 10)), tolerance=1e-10, max_iterations=3).solution.shape == (0, 10)


def test_negative_curvature_is_not_a_solution():
    K = torch.stack([symmetric(5, np.array([1.0, 1, 1, 1, -1])), torch.eye(5, dtype=F64)])
    assert conjugate_gradients(times(K), weights((2, 5)), tolerance=1e-10, max_iterations=50).converged.tolist() == [False, True]


def test_giving_up_early():
    """The rate of the first steps tells; a benign problem is not given up."""
    hard, easy = (symmetric(300, np.geomspace(1, c, 300)).unsqueeze(0) for c in (1e6, 5.0))
    stopped = conjugate_gradients(times(hard), weights((1, 300)), tolerance=1e-11, max_iterations=60, give_up=True)
    assert stopped.iterations <= 24
    assert not bool(stopped.converged)
    assert bool(conjugate_gradients(times(easy), weights((1, 300)), tolerance=1e-11, max_iterations=60, give_up=True).converged)
