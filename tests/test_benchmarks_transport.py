"""What the transport suite judges by: the reference gradient, the ancestor's algorithms, and who counts as having arrived."""

import pytest
import torch

from benchmarks import transport_forward
from benchmarks.peers import ddn_transport
from benchmarks.plans import WANTED, Found, Problem, Way, gradient, marginal_error, points, polished
from benchmarks.transport_forward import forward_rows, reach


def _solved(n, gamma, batch=None):
    """A problem and its plan to rounding, by nothing but scaling."""
    problem = points(n, gamma, batch)
    problem = Problem(problem.M[..., : n - 2], problem.r, problem.M.new_full((n - 2,), 1 / (n - 2)), gamma)
    (way,) = ddn_transport.ways(problem, 20_000)
    return problem, polished(way.solve(1e-9).P, problem)


def test_reference_gradient_is_that_of_finite_differences():
    problem, P = _solved(6, 4.0)
    V, step = torch.randn(P.shape, generator=torch.Generator().manual_seed(0), dtype=P.dtype), 1e-5

    def moved(by):
        return polished(P, problem) if not by.any() else polished(P * (-problem.gamma * by).exp(), problem)

    found, numeric = gradient(P, V, problem.gamma), torch.empty_like(P)
    for i, j in torch.cartesian_prod(torch.arange(P.shape[0]), torch.arange(P.shape[1])).tolist():
        by = torch.zeros_like(P)
        by[i, j] = step
        numeric[i, j] = (V * (moved(by) - moved(-by))).sum() / (2 * step)
    torch.testing.assert_close(found, numeric, rtol=1e-8, atol=1e-10)


def test_ancestor_s_backward_pass_is_the_reference_s():
    problem, P = _solved(7, 20.0, batch=3)
    V = torch.randn(P.shape, generator=torch.Generator().manual_seed(0), dtype=P.dtype)
    M = problem.M.clone().requires_grad_()
    r, c = (t.expand(3, -1) for t in (problem.r, problem.c))
    plan = ddn_transport.transport_backward(P, r, c, problem.gamma)(M)
    torch.testing.assert_close(torch.autograd.grad(plan, M, V)[0], gradient(P, V, problem.gamma))


def test_polishing_meets_the_marginals():
    problem, P = _solved(9, 50.0)
    assert marginal_error(P, problem) < 1e-14


def test_loosest_setting_that_arrives_is_taken():
    problem = points(5, 1.0)
    plan, tried = problem.r[:, None] * problem.c, []

    def solve(setting):
        tried.append(setting)
        return Found(plan * (1 + setting), 1)

    attempt = reach(Way("a peer", [1e-6, 1e-9, 1e-12], solve), problem)
    assert attempt.arrived
    assert tried == [1e-6, 1e-9]


@pytest.mark.parametrize("exhausted", [False, True])
def test_who_does_not_arrive_has_no_ratio(exhausted, monkeypatch):
    problem = points(5, 1.0)
    plan = problem.r[:, None] * problem.c * (float("nan") if not exhausted else 1.1)
    way = Way("a peer", [WANTED, WANTED / 10], lambda _: Found(plan, 7, exhausted=exhausted))
    assert not reach(way, problem).arrived
    monkeypatch.setattr(transport_forward, "PEERS", {"a peer": lambda *_: (way,)})
    row = list(forward_rows(5, 1.0, 10, quick=True))[-1]
    assert row.ratio is None
    assert row.target is None
    assert "after 7 iterations" in row.note


def test_missing_peer_is_named(monkeypatch):
    def absent(*_):
        raise ImportError("No module named 'ot'")

    monkeypatch.setattr(transport_forward, "PEERS", {"POT": absent})
    row = list(forward_rows(5, 1.0, 10, quick=True))[-1]
    assert row.peer is None
    assert "POT skipped: No module named 'ot'" in row.note
