"""The quadratic program as a layer: against cvxpy and the worked problem, derivatives, shapes, programs without a solution."""

import cvxpy as cp
import pytest
import torch
from torch.func import jacfwd, jacrev, vmap

from declarative import Implicit, IrregularPointError, SolverError, Status, verify
from declarative.layers import QuadraticProgram
from declarative.solvers import InteriorPoint
from problems import quadratic_program

F64 = torch.float64
pytestmark = pytest.mark.usefixtures("shapes_unchecked")


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def program(batch=3, n=5, p=1, q=4, rank=None):
    """Feasible, bounded, and with some inequalities active."""
    root = normal(batch, n, rank or n)
    Q, c, A, G, y = root @ root.mT, normal(batch, n, seed=1), normal(batch, p, n, seed=2), normal(batch, q, n, seed=3), normal(batch, n, seed=4)
    eye = torch.eye(n, dtype=F64).expand(batch, n, n)
    column = y.unsqueeze(2)
    G = torch.cat([G, eye, -eye], 1)
    d = torch.cat([(G[:, :q] @ column).squeeze(2) + 0.1, torch.full((batch, 2 * n), 3.0, dtype=F64)], 1)
    return Q, c, A, (A @ column).squeeze(2), G, d


@pytest.mark.parametrize("rank", [None, 2, 0])
def test_cvxpy(rank):
    """Positive definite, semidefinite, and a linear program."""
    inputs = program(rank=rank) if rank != 0 else (torch.zeros(3, 5, 5, dtype=F64), *program()[1:])
    s = QuadraticProgram().solution(*inputs)
    assert s.status.tolist() == [Status.CONVERGED] * 3
    for i in range(3):
        Q, c, A, b, G, d = (t[i].numpy() for t in inputs)
        u = cp.Variable(5)
        constraints = [A @ u == b, G @ u <= d]
        cp.Problem(cp.Minimize(0.5 * cp.quad_form(u, cp.psd_wrap(Q)) + c @ u), constraints).solve(solver=cp.CLARABEL)
        for ours, theirs in ((s.y, u), (s.equality_multipliers, constraints[0]), (s.inequality_multipliers, constraints[1])):
            known = theirs.value if theirs is u else theirs.dual_value
            torch.testing.assert_close(ours[i], torch.as_tensor(known), rtol=1e-5, atol=1e-5)


def test_the_worked_problem():
    inputs = quadratic_program.sample(6, torch.Generator().manual_seed(0), F64)
    known = quadratic_program.closed_form(*inputs)
    torch.testing.assert_close(QuadraticProgram(polish=3)(*inputs), known, rtol=1e-10, atol=1e-10)
    node = quadratic_program.QuadraticProgram(polish=3)
    ours, theirs = [t.clone().requires_grad_() for t in inputs], [t.clone().requires_grad_() for t in inputs]
    v = normal(*known.shape)
    a = torch.autograd.grad(QuadraticProgram(polish=3)(*ours), ours, v)
    b = torch.autograd.grad(node(*theirs, in_dims=quadratic_program.PROBLEM.in_dims), theirs, v)
    for mine, other in zip(a, b, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


def test_derivatives():
    inputs = program(2, 3, 1, 2)
    layer = QuadraticProgram(polish=5)
    leaves = tuple(t.clone().requires_grad_() for t in inputs)
    assert torch.autograd.gradcheck(layer, leaves)
    assert torch.autograd.gradgradcheck(lambda c, b: layer(inputs[0], c, inputs[2], b, *inputs[4:]), (leaves[1], leaves[3]))
    for a, b in zip(*(mode(layer, argnums=(0, 1, 3, 5))(*inputs) for mode in (jacrev, jacfwd)), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(vmap(layer)(*inputs), layer(*inputs))


def test_verify():
    for inputs, dims in ((program(2), 0), (tuple(t[0] if i in (0, 2, 4) else t for i, t in enumerate(program(2))), (None, 0, None, 0, None, 0))):
        report = verify(QuadraticProgram(), *inputs, in_dims=dims, directions=1)
        assert report.ok, str(report)
    Q, c, *_ = program(2)
    report = verify(QuadraticProgram(), Q + torch.eye(5, dtype=F64), c)
    assert report.ok, str(report)


def test_without_some_of_the_constraints():
    Q, c, A, b, G, d = program()
    torch.testing.assert_close(QuadraticProgram()(Q, c), torch.linalg.solve(Q, -c))
    s = QuadraticProgram().solution(Q, c, A, b)
    torch.testing.assert_close((A @ s.y.unsqueeze(2)).squeeze(2), b)
    assert s.inequality_multipliers.shape == (3, 0)
    s = QuadraticProgram().solution(Q, c, G=G, d=d)
    assert s.equality_multipliers.shape == (3, 0)
    assert bool((s.inequality_multipliers >= 0).all())


def test_natural_shapes():
    Q, c, A, b, G, d = program()
    layer = QuadraticProgram()
    expected = layer(Q[0], c, A[0], b[0], G[0], d[0])
    assert expected.shape == (3, 5)
    torch.testing.assert_close(layer(Q[:1], c.expand(2, 3, 5), A[0], b[0], G[0], d[0])[1], expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(layer(Q[0], c[1], A[0], b[0], G[0], d[0]), expected[1], rtol=1e-6, atol=1e-8)
    s = layer.solution(Q[0], c.expand(2, 3, 5), A[0], b[0], G[0], d[0])
    assert s.inequality_multipliers.shape == s.active.shape == (2, 3, 14)
    assert s.status.shape == (2, 3)
    again = layer.solution(Q[0], c.expand(2, 3, 5), A[0], b[0], G[0], d[0], init=s)
    torch.testing.assert_close(again.y, s.y, rtol=1e-6, atol=1e-8)
    assert layer(Q[0], c[:0], A[0], b[0], G[0], d[0]).shape == (0, 5)
    assert layer(*(t.float() for t in program())).dtype == torch.float32
    torch.testing.assert_close(layer(*(t.mT.contiguous().mT if t.ndim == 3 else t for t in program())), layer(*program()))


def test_shared_matrices_get_one_gradient():
    Q, c, A, b, G, d = program()
    leaf = Q[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(QuadraticProgram()(leaf, c, A[0], b[0], G[0], d[0]).sum(), leaf)
    alone = [torch.autograd.grad(QuadraticProgram()(leaf, row, A[0], b[0], G[0], d[0]).sum(), leaf)[0] for row in c]
    torch.testing.assert_close(gradient, torch.stack(alone).sum(0), rtol=1e-6, atol=1e-8)


def test_programs_without_a_solution():
    Q, c, A, b, G, d = program()
    d = d.clone()
    d[1, 4:] = -1.0
    with pytest.raises(SolverError, match=r"1 of 3 samples \(1\): no point satisfies"):
        QuadraticProgram()(Q, c, A, b, G, d)
    layer = QuadraticProgram(solver=InteriorPoint(on_failure="nan"))
    s = layer.solution(Q, c, A, b, G, d)
    assert s.status.tolist() == [Status.CONVERGED, Status.INFEASIBLE, Status.CONVERGED]
    assert s.y.isnan().any(1).tolist() == [False, True, False]


def test_solutions_that_are_not_unique():
    zero, c = torch.zeros(2, 2, dtype=F64), torch.tensor([1.0, 0.0], dtype=F64, requires_grad=True)
    box = torch.cat([torch.eye(2, dtype=F64), -torch.eye(2, dtype=F64)])
    ones = torch.ones(4, dtype=F64)
    with pytest.raises(IrregularPointError, match="no unique derivative"):
        QuadraticProgram()(zero, c, G=box, d=ones).sum().backward()
    y = QuadraticProgram(differentiation=Implicit(irregular="min_norm"))(zero, c, G=box, d=ones)
    assert bool(torch.isfinite(torch.autograd.grad(y.sum(), c)[0]).all())


BAD = [
    (lambda: QuadraticProgram()(normal(2, 3), normal(3)), r"Q must be a tensor \(…, n, n\), got \(2, 3\)"),
    (lambda: QuadraticProgram()(torch.eye(3, dtype=F64), normal(2)), r"c must have instances \(3,\).*got \(2,\)"),
    (lambda: QuadraticProgram()(torch.eye(3, dtype=F64), normal(3), normal(1, 3)), "A and b belong together; got A alone"),
    (lambda: QuadraticProgram()(torch.eye(3, dtype=F64), normal(3), d=normal(3)), "G and d belong together; got d alone"),
    (lambda: QuadraticProgram()(torch.eye(3, dtype=F64), normal(3), normal(1, 2), normal(1)), r"A must have instances \(1, 3\)"),
    (lambda: QuadraticProgram()(torch.eye(3, dtype=F64), normal(3), G=normal(2, 3), d=normal(3)), r"G must have instances \(3, 3\)"),
    (lambda: QuadraticProgram()(torch.eye(3, dtype=F64).expand(2, 3, 3), normal(5, 3)), r"c of shape \(5, 3\) has leading dimensions \(5,\)"),
    (lambda: QuadraticProgram(solver="fast"), "solver must be an object from declarative.solvers"),
    (lambda: verify(QuadraticProgram(), torch.eye(3, dtype=F64).expand(2, 2, 3, 3), normal(2, 2, 3)), "flatten leading dimensions"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
