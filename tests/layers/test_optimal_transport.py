"""The transport layer: its derivatives of every order against the dense path of its own statement, its shapes, and bad input."""

import warnings

import pytest
import torch

from benchmarks.timing import peak_bytes
from declarative import SolverError, SolverWarning, Status, certify, verify
from declarative.layers import Auto, DualLBFGS, DualNewton, OptimalTransport, Potentials, Sinkhorn
from problems.optimal_transport import Transport, balanced, two_by_two

F64 = torch.float64
TIGHT = 1e-14


def instance(*shape, seed=0, dtype=F64):
    """Costs, marginals of mass 1, γ."""
    g = torch.Generator().manual_seed(seed)
    *lead, m, n = shape
    M = torch.rand(*lead, m, n, generator=g, dtype=F64)
    r, c = torch.rand(*lead, m, generator=g, dtype=F64) + 0.2, torch.rand(*lead, n, generator=g, dtype=F64) + 0.2
    gamma = 3 + 4 * torch.rand(*lead, generator=g, dtype=F64)
    return tuple(t.to(dtype) for t in (M, r / r.sum(-1, keepdim=True), c / c.sum(-1, keepdim=True), gamma))


def tracked(*tensors):
    return tuple(t.clone().requires_grad_() for t in tensors)


def marginals(P):
    return P.sum(-1), P.sum(-2)


# Proof


@pytest.mark.parametrize("shape", [(2, 4, 3), (2, 3, 5), (1, 1, 4), (2, 4, 1), (1, 1, 1)])
def test_verify_is_green(shape):
    M, r, c, gamma = instance(*shape)
    verify(OptimalTransport(5.0), M, r, c).raise_if_failed()
    verify(OptimalTransport(), M, r, c, gamma).raise_if_failed()


@pytest.mark.parametrize("method", [Auto(), Sinkhorn(), DualNewton(), DualLBFGS()])
def test_verify_is_green_by_every_method(method):
    M, r, c, _ = instance(2, 4, 3)
    verify(OptimalTransport(5.0, method=method), M, r, c).raise_if_failed()


def test_verify_of_a_learned_gamma_shared_inputs_and_affinities():
    M, r, c, _ = instance(2, 4, 3)
    verify(OptimalTransport(torch.nn.Parameter(torch.tensor(4.0, dtype=F64))), M, r, c).raise_if_failed()
    verify(OptimalTransport(5.0), M, r[0], c, in_dims=(0, None, 0)).raise_if_failed()
    verify(OptimalTransport(5.0), M[0], r[0], c[0], in_dims=None).raise_if_failed()
    verify(OptimalTransport(5.0, input="affinity"), M + 0.1, r, c).raise_if_failed()
    verify(OptimalTransport(5.0), M).raise_if_failed()


def test_verify_finds_a_wrong_formula(monkeypatch):
    from declarative.layers.transport.plan import Derivative

    right = Derivative.pull_back
    monkeypatch.setattr(Derivative, "pull_back", lambda *a, **k: [None if g is None else 1.001 * g for g in right(*a, **k)])
    M, r, c, _ = instance(2, 4, 3)
    report = verify(OptimalTransport(5.0), M, r, c)
    assert not report.ok
    assert {row.name for row in report.rows if not row.ok} >= {"vjp hook = generic", "vjp = dense formula"}


def test_equals_the_dense_path_of_the_worked_problem_at_8_by_9():
    M, r, c, _ = instance(3, 8, 9)
    V = torch.randn(3, 8, 9, dtype=F64)
    for gamma in (1.0, 4.0, 20.0):
        fast, plain = tracked(M, r, c), tracked(M, r, c)
        P, Q = OptimalTransport(gamma, tolerance=TIGHT)(*fast), Transport(gamma, polish=5)(plain[0], *balanced(*plain[1:]))
        assert torch.allclose(P, Q, rtol=0, atol=1e-13)
        for mine, other in zip(torch.autograd.grad(P, fast, V), torch.autograd.grad(Q, plain, V), strict=True):
            assert (mine - other).abs().max() <= 1e-10 * other.abs().max()


def test_closed_form_of_two_by_two():
    M, r, c, gamma = instance(5, 2, 2)
    mine, exact = tracked(M, gamma), tracked(M, gamma)
    P, Q = OptimalTransport(tolerance=TIGHT)(mine[0], r, c, mine[1]), two_by_two(exact[0], r, c, exact[1])
    assert torch.allclose(P, Q, rtol=1e-12)
    V = torch.randn_like(P)
    for a, b in zip(torch.autograd.grad(P, mine, V), torch.autograd.grad(Q, exact, V), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_certify_knows_it():
    M, r, c, _ = instance(2, 4, 3)
    certificate = certify(OptimalTransport(5.0), M, r, c)
    assert bool(certificate.minimiser.all())
    assert bool(certificate.regular.all())


# Derivatives


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 4, 2)])
def test_gradients_of_every_order_and_mode(shape):
    inputs = tracked(*instance(*shape))
    layer = OptimalTransport(tolerance=TIGHT)

    def outputs(*x):
        found = layer.potentials(*x)
        return layer(*x), found.rows, found.columns

    assert torch.autograd.gradcheck(outputs, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(outputs, inputs)


def test_under_torch_func():
    M, r, c, gamma = (t[0] for t in instance(1, 3, 4))
    layer = OptimalTransport(tolerance=TIGHT)
    reverse, forward = (jacobian(layer, argnums=(0, 1, 2, 3))(M, r, c, gamma) for jacobian in (torch.func.jacrev, torch.func.jacfwd))
    for a, b in zip(reverse, forward, strict=True):
        assert torch.allclose(a, b, atol=1e-12)

    def value(*x):
        return layer(*x).square().sum()

    hessian = torch.func.hessian(value)(M, r, c, gamma)
    assert torch.allclose(hessian, torch.func.jacrev(torch.func.jacrev(value))(M, r, c, gamma), atol=1e-10)
    assert torch.allclose(hessian, torch.func.jacfwd(torch.func.jacfwd(value))(M, r, c, gamma), atol=1e-10)


def test_vmap_is_the_batch():
    M, r, c, gamma = instance(4, 3, 5)
    layer = OptimalTransport(tolerance=TIGHT)
    mapped = torch.func.vmap(layer)(M, r, c, gamma)
    assert torch.allclose(mapped, layer(M, r, c, gamma), atol=1e-13)
    assert torch.allclose(torch.func.vmap(lambda M: layer(M, r[0]), out_dims=1)(M).movedim(1, 0), layer(M, r[0]), atol=1e-13)
    gradient = torch.func.vmap(torch.func.grad(lambda M, r: layer(M, r, c[0]).square().sum()))(M, r)
    (expected,) = torch.autograd.grad(layer(*(x := tracked(M, r)), c[0]).square().sum(), x[:1])
    assert torch.allclose(gradient, expected, atol=1e-12)


def test_gradient_in_marginals_is_that_of_balanced_masses():
    M, r, c, gamma = instance(2, 4, 3)
    inputs = tracked(r, c)
    V = torch.randn(2, 4, 3, dtype=F64)
    r_bar, c_bar = torch.autograd.grad(OptimalTransport(tolerance=TIGHT)(M, *inputs, gamma), inputs, V)
    assert torch.allclose((r_bar * r).sum(1), (c_bar * c).sum(1), atol=1e-10)
    # Along directions that keep the mass, the plain statement (without the extension) says the same.
    dr, dc = torch.randn_like(r), torch.randn_like(c)
    dr, dc = dr - dr.mean(1, keepdim=True), dc - dc.mean(1, keepdim=True)
    plain = tracked(r, c)
    total = 0.0
    for i in range(2):
        P = Transport(float(gamma[i]), polish=5)(M[i : i + 1], plain[0][i : i + 1], plain[1][i : i + 1])
        total = total + (P * V[i : i + 1]).sum()
    r_plain, c_plain = torch.autograd.grad(total, plain)
    assert torch.allclose((r_bar * dr).sum() + (c_bar * dc).sum(), (r_plain * dr).sum() + (c_plain * dc).sum(), atol=1e-9)


def test_unrolled_is_the_same_and_approximate_is_not():
    V = torch.randn(2, 4, 3, dtype=F64)
    found = {}
    for gradient in ("implicit", "unrolled", "approximate"):
        inputs = tracked(*instance(2, 4, 3))
        found[gradient] = torch.autograd.grad(OptimalTransport(gradient=gradient, tolerance=TIGHT)(*inputs), inputs, V)
    for a, b in zip(found["implicit"], found["unrolled"], strict=True):
        assert torch.allclose(a, b, atol=1e-10)
    M, r, c, gamma = instance(2, 4, 3)
    P = OptimalTransport(tolerance=TIGHT)(M, r, c, gamma)
    assert torch.allclose(found["approximate"][0], -gamma[:, None, None] * P * V, atol=1e-12)
    assert (found["approximate"][0] - found["implicit"][0]).abs().max() > 1e-2
    assert OptimalTransport(gradient="unrolled").solution(M).report.method == "Sinkhorn's iteration, unrolled"
    with pytest.raises(NotImplementedError, match="unrolled"):
        torch.func.vmap(OptimalTransport(gradient="unrolled"))(M)


def test_right_where_marginals_are_only_nearly_met():
    """The gradient at a loose plan is off by about the error of its marginals, not more."""
    M, r, c, _ = instance(1, 30, 20)
    V, exact = torch.randn(1, 30, 20, dtype=F64), {}
    for tolerance in (1e-14, 1e-6, 1e-3):
        x = M.clone().requires_grad_()
        P = OptimalTransport(20.0, method=Sinkhorn(over_relaxation=1.0), tolerance=tolerance)(x, r, c)
        exact[tolerance] = torch.autograd.grad(P, x, V)[0]
    scale = exact[1e-14].abs().max()
    assert (exact[1e-6] - exact[1e-14]).abs().max() < 1e-4 * scale
    assert (exact[1e-3] - exact[1e-14]).abs().max() < 1e-1 * scale


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("n", [5, 60])
def test_near_a_permutation_the_gradient_is_finite_and_small(n, dtype):
    """γ so large that the plan is a permutation to rounding: its derivative vanishes, and so must ours."""
    M = torch.rand(2, n, n, dtype=F64)
    order = torch.randperm(n)
    M[:, torch.arange(n), order] -= 1.0
    for gamma in (1e2, 1e4, 1e5):
        inputs = tracked(M.to(dtype), torch.full((n,), 1 / n, dtype=dtype), torch.full((n,), 1 / n, dtype=dtype))
        P = OptimalTransport(gamma)(*inputs)
        gradients = torch.autograd.grad((P * torch.randn_like(P)).sum(), inputs)
        assert all(bool(torch.isfinite(g).all()) for g in gradients)
        if gamma >= 1e4:
            assert torch.allclose(P[0, torch.arange(n), order], torch.tensor(1 / n, dtype=dtype), rtol=1e-4)
            assert gradients[0].abs().max() < 100 * gamma * torch.finfo(dtype).eps


def test_a_plan_that_falls_apart_is_reported():
    M = 1 - torch.eye(3, dtype=F64)
    r = torch.full((3,), 1 / 3, dtype=F64, requires_grad=True)
    for gamma, apart in ((10.0, False), (1e4, True)):
        s = OptimalTransport(gamma).solution(M, r)
        torch.autograd.grad((s.y * torch.randn(3, 3, dtype=F64)).sum(), r)
        assert ("falls apart" in s.report.irregular.get(0, "")) == apart


def test_near_singular_system_keeps_its_accuracy():
    """Links of 1e-12 beside masses of 0.25: the elimination that never subtracts against exact rational arithmetic."""
    from fractions import Fraction

    from declarative.kkt.marginals import eliminate

    n = 4
    P = torch.full((1, n, n), 1e-12, dtype=F64) * (1 + torch.rand(1, n, n, dtype=F64))
    P[0].diagonal().fill_(0.25)
    side = torch.randn(1, n, 1, dtype=F64)
    side[0, -1] = 0
    side[0, -1] = -side.sum()
    exact = [[Fraction(float(v)) for v in row] for row in P[0]]
    r, c = [sum(row) for row in exact], [sum(column) for column in zip(*exact, strict=True)]
    S = [[(c[j] if j == k else 0) - sum(exact[i][j] * exact[i][k] / r[i] for i in range(n)) for k in range(n)] for j in range(n)]
    b = [Fraction(float(v)) for v in side[0, :, 0]]
    # w_0 = 0: the remaining equations by Gauss elimination in rationals.
    A = [[*S[j][1:], b[j]] for j in range(1, n)]
    for k in range(n - 1):
        A[k] = [v / A[k][k] for v in A[k]]
        for i in range(n - 1):
            if i != k:
                A[i] = [v - A[i][k] * w for v, w in zip(A[i], A[k], strict=True)]
    expected = torch.tensor([0.0, *(float(row[-1]) for row in A)], dtype=F64)
    solution, apart = eliminate(P, P.sum(2), P.sum(1), side)
    assert not bool(apart.any())
    assert torch.allclose(solution[0, :, 0], expected, rtol=1e-10)


# Shapes


def test_leading_dimensions_broadcast():
    M, r, c, gamma = instance(2, 3, 4, 5)
    layer = OptimalTransport(tolerance=1e-12)
    P = layer(M, r, c, gamma)
    assert P.shape == (2, 3, 4, 5)
    assert torch.allclose(P[1, 2], layer(M[1, 2], r[1, 2], c[1, 2], gamma[1, 2]), atol=1e-12)
    shared = layer(M[0, 0], r, c[0], 2.0 * torch.ones((), dtype=F64))
    assert shared.shape == (2, 3, 4, 5)
    assert torch.allclose(shared[1, 1], layer(M[0, 0], r[1, 1], c[0, 1], torch.tensor(2.0, dtype=F64)), atol=1e-12)
    uniform = layer(M)
    assert torch.allclose(uniform.sum(-1), torch.full((2, 3, 4), 0.25, dtype=F64))
    one = M[0, 0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(one, r).square().sum(), one)
    assert gradient.shape == (4, 5)


def test_empty_batches_and_single_entries():
    layer = OptimalTransport(2.0)
    P = layer(x := torch.zeros(0, 3, 4, dtype=F64, requires_grad=True))
    assert P.shape == (0, 3, 4)
    assert torch.autograd.grad(P.sum(), x)[0].shape == (0, 3, 4)
    assert layer.solution(x).status.shape == (0,)
    assert torch.equal(layer(torch.tensor([[3.0]])), torch.tensor([[1.0]]))
    assert torch.allclose(layer(torch.rand(1, 7)), torch.full((1, 7), 1 / 7))
    assert torch.allclose(layer(torch.rand(7, 1)), torch.full((7, 1), 1 / 7))


def test_noncontiguous_shared_and_repeated_inputs():
    M, r, c, gamma = instance(3, 4, 4)
    layer = OptimalTransport(tolerance=1e-13)
    assert torch.allclose(layer(M.mT, r, c, gamma), layer(M.mT.contiguous(), r, c, gamma), atol=1e-14)
    assert torch.allclose(layer(M.movedim(0, 2), r, c, gamma, in_dims=(2, 0, 0, 0)), layer(M, r, c, gamma), atol=1e-14)
    both = r.clone().requires_grad_()
    apart = tracked(r, r)
    (together,) = torch.autograd.grad(layer(M, both, both, gamma).square().sum(), both)
    assert torch.allclose(together, sum(torch.autograd.grad(layer(M, *apart, gamma).square().sum(), apart)), atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    M, r, c, _ = instance(2, 5, 4, dtype=dtype)
    x = M.clone().requires_grad_()
    P = OptimalTransport(5.0)(x, r, c)
    assert P.dtype == dtype
    loose = 1e-4 if dtype == torch.float32 else 3e-2
    exact = OptimalTransport(5.0)(M.double(), *balanced(r.double(), c.double()))
    assert torch.allclose(P.double(), exact, rtol=loose, atol=loose * 0.1)
    assert torch.autograd.grad(P.float().square().sum(), x)[0].dtype == dtype


def test_gammas_that_belong_to_the_layer():
    M, r, c, gamma = instance(3, 4, 5)
    layer = OptimalTransport(gamma)
    assert torch.equal(layer.state_dict()["gamma"], gamma)
    assert torch.equal(layer(M, r, c), OptimalTransport()(M, r, c, gamma))
    assert torch.equal(OptimalTransport(2)(M, r, c), OptimalTransport()(M, r, c, 2.0 * torch.ones(3, dtype=F64)))
    with pytest.raises(ValueError, match=r"gamma must be positive and finite: 1 of 3 samples \(1\)"):
        OptimalTransport(torch.tensor([1.0, -1.0, 1.0], dtype=F64))(M, r, c)
    with pytest.raises(ValueError, match="gamma differs between samples"):
        verify(layer, M, r, c)


@pytest.mark.parametrize("method", [Auto(), Sinkhorn(), DualNewton(), DualLBFGS()])
def test_progress_is_told(method):
    M, r, c, _ = instance(2, 20, 20)
    told = []
    s = OptimalTransport(50.0, method=method, progress=told.append).solution(M, r, c)
    assert told
    assert all(p.total == 2 and 1 <= p.running <= 2 and p.residual > 0 for p in told)
    assert [p.iteration for p in told] == sorted({p.iteration for p in told})
    assert told[-1].iteration <= int(s.iterations.max())
    assert "samples running, residual" in str(told[0])


def test_memory_does_not_grow_with_the_iterations():
    M, r, c, _ = instance(1, 40, 40)

    def peak(count, **options):
        layer = OptimalTransport(100.0, tolerance=1e-15, max_iterations=count, on_failure="nan", **options)
        x = M.clone().requires_grad_()
        return peak_bytes(lambda: torch.autograd.grad(layer(x, r, c).sum(), x))

    assert peak(200, method=Sinkhorn()) <= 1.01 * peak(20, method=Sinkhorn())
    assert peak(200, gradient="unrolled") > 5 * peak(20, gradient="unrolled")


def test_warm_start():
    M, r, c, gamma = instance(2, 20, 20)
    layer = OptimalTransport(tolerance=1e-9)
    cold = layer.solution(M, r, c, gamma)
    for init in (cold, cold.workspace, (cold.workspace.rows, cold.workspace.columns)):
        warm = layer.solution(M, r, c, gamma, init=init)
        assert torch.allclose(warm.y, cold.y, atol=1e-9)
        assert int(warm.iterations.max()) <= 2 < int(cold.iterations.min())
    with pytest.raises(TypeError, match="init must be"):
        layer(M, init=3)
    with pytest.raises(ValueError, match="init φ must have shape"):
        layer(M, init=(torch.zeros(2, 3, dtype=F64), torch.zeros(2, 20, dtype=F64)))


def test_solution_tells_all():
    M, r, c, gamma = instance(2, 5, 4)
    s = OptimalTransport().solution(M, r, c, gamma)
    rows, columns = marginals(s.y)
    error = (rows - r).abs().sum(1) + (columns - c).abs().sum(1)
    assert torch.allclose(s.violation, error, atol=1e-15)
    assert bool((s.violation <= 1e-10).all())
    assert bool((s.status == Status.CONVERGED).all())
    assert bool((s.stationarity < 1e-12).all())
    phi, psi = s.workspace.rows, s.workspace.columns
    assert torch.allclose(s.y, r[:, :, None] * c[:, None] * torch.exp(gamma[:, None, None] * (phi[:, :, None] + psi[:, None] - M)), atol=1e-12)
    assert torch.allclose((phi * r).sum(1), (psi * c).sum(1), atol=1e-12)


# Zeros, forbidden pairs, padding


def test_zero_marginals_are_the_problem_without_them():
    M, r, c, gamma = instance(2, 4, 3)
    padded = torch.zeros(2, 6, 5, dtype=F64) + 0.3
    padded[:, 1:5, :3] = M
    zero = torch.zeros(2, 1, dtype=F64)
    r0, c0 = torch.cat([zero, r, zero], 1), torch.cat([c, zero, zero], 1)
    full, small = tracked(padded, r0, c0, gamma), tracked(M, r, c, gamma)
    layer = OptimalTransport(tolerance=TIGHT)
    P, Q = layer(*full), layer(*small)
    assert torch.allclose(P[:, 1:5, :3], Q, atol=1e-13)
    assert float(P.detach().sum()) == pytest.approx(2.0)
    V = torch.randn(2, 6, 5, dtype=F64)
    gp, gq = torch.autograd.grad(P, full, V), torch.autograd.grad(Q, small, V[:, 1:5, :3])
    assert torch.allclose(gp[0][:, 1:5, :3], gq[0], atol=1e-11)
    assert torch.allclose(gp[1][:, 1:5], gq[1], atol=1e-10)
    assert torch.allclose(gp[2][:, :3], gq[2], atol=1e-10)
    assert torch.allclose(gp[3], gq[3], atol=1e-11)


def test_gradient_in_a_zero_marginal_is_one_sided():
    M, r, c, gamma = instance(1, 4, 3)
    r = torch.tensor([[0.0, 0.2, 0.3, 0.5]], dtype=F64)
    V = torch.randn(1, 4, 3, dtype=F64)
    layer = OptimalTransport(tolerance=TIGHT)
    for k, x in enumerate((r, c)):
        inputs = [r, c]
        inputs[k] = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((layer(M, *inputs, gamma) * V).sum(), inputs[k])
        step = torch.zeros_like(x)
        step[0, 0], step[0, 1] = 1e-6, -1e-6
        ahead = [r, c]
        values = []
        for t in (1, 2):
            ahead[k] = x + t * step
            values.append((layer(M, *ahead, gamma) * V).sum())
        base = (layer(M, r, c, gamma) * V).sum()
        difference = (2 * (values[0] - base) - 0.5 * (values[1] - base)) / 1e-6
        assert float(gradient[0, 0] - gradient[0, 1]) == pytest.approx(float(difference), rel=1e-5)


def test_second_derivatives_with_zero_marginals():
    M, r, c, gamma = instance(1, 4, 3)
    r = torch.tensor([[0.0, 0.2, 0.3, 0.5]], dtype=F64)
    c = torch.tensor([[0.4, 0.6, 0.0]], dtype=F64)
    layer = OptimalTransport(tolerance=TIGHT)

    def outputs(M, gamma):
        found = layer.potentials(M, r, c, gamma)
        return layer(M, r, c, gamma), found.rows, found.columns, layer.value(M, r, c, gamma)

    assert torch.autograd.gradcheck(outputs, tracked(M, gamma), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(outputs, tracked(M, gamma))
    # The derivative of r̄ at the empty row, in M: symmetric with the derivative of M̄ in r.
    inputs = tracked(M, r)
    V = torch.randn(1, 4, 3, dtype=F64)
    M_bar, r_bar = torch.autograd.grad((layer(*inputs, c, gamma) * V).sum(), inputs, create_graph=True)
    A, b = torch.randn_like(M), torch.randn_like(r)
    (one,) = torch.autograd.grad((r_bar * b).sum(), inputs[0], retain_graph=True)
    (other,) = torch.autograd.grad((M_bar * A).sum(), inputs[1])
    assert float((one * A).sum()) == pytest.approx(float((other * b).sum()), rel=1e-9)


def test_masks_and_infinite_costs_pad_ragged_problems():
    M, _, _, gamma = instance(2, 5, 6)
    mask = torch.zeros(2, 5, 6, dtype=torch.bool)
    sizes = ((5, 4), (3, 6))
    for i, (m, n) in enumerate(sizes):
        mask[i, :m, :n] = True
    x = M.clone().requires_grad_()
    P = OptimalTransport(tolerance=1e-13)(x, gamma=gamma, mask=mask)
    V = torch.randn_like(M)
    (gradient,) = torch.autograd.grad(P, x, V)
    assert bool((gradient[~mask] == 0).all())
    for i, (m, n) in enumerate(sizes):
        own = M[i, :m, :n].clone().requires_grad_()
        Q = OptimalTransport(tolerance=1e-13)(own, gamma=gamma[i])
        assert torch.allclose(P[i, :m, :n], Q, atol=1e-12)
        assert torch.allclose(gradient[i, :m, :n], torch.autograd.grad(Q, own, V[i, :m, :n])[0], atol=1e-10)
    infinite = torch.where(mask, M, torch.inf)
    r, c = mask.any(2).double(), mask.any(1).double()
    again = OptimalTransport(tolerance=1e-13)(infinite, r / r.sum(1, keepdim=True), c / c.sum(1, keepdim=True), gamma)
    assert torch.allclose(again, P, atol=1e-13)


def test_forbidden_pairs_inside():
    """Against a cost so large that nothing goes there."""
    M, r, c, _ = instance(2, 5, 4)
    forbidden = torch.zeros(2, 5, 4, dtype=torch.bool)
    forbidden[:, 0, 0] = forbidden[:, 3, 2] = True
    inputs, large = tracked(torch.where(forbidden, torch.inf, M), r, c), tracked(torch.where(forbidden, 60.0, M), r, c)
    layer = OptimalTransport(10.0, tolerance=1e-13)
    P, Q = layer(*inputs), layer(*large)
    assert torch.allclose(P, Q, atol=1e-13)
    V = torch.randn_like(P)
    for a, b in zip(torch.autograd.grad(P, inputs, V), torch.autograd.grad(Q, large, V), strict=True):
        assert torch.allclose(a, b, atol=1e-10)


def test_affinities_with_zeros():
    M, r, c, _ = instance(1, 4, 4)
    Q = (-M).exp()
    Q[0, 0, 1] = 0.0
    x = Q.clone().requires_grad_()
    P = OptimalTransport(3.0, input="affinity", tolerance=1e-13)(x, r, c)
    assert torch.allclose(P, OptimalTransport(3.0, tolerance=1e-13)(-Q.log(), r, c), atol=1e-13)
    (gradient,) = torch.autograd.grad(P.square().sum(), x)
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient[0, 0, 1]) == 0.0


# Bad input


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"M": [[1.0]]}, TypeError, "M must be a floating tensor"),
        ({"M": torch.zeros(3)}, ValueError, r"M must have shape \(…, m, n\)"),
        ({"M": torch.zeros(0, 3)}, ValueError, "at least one row"),
        ({"M": torch.full((2, 2), torch.nan)}, ValueError, "M must not hold NaN"),
        ({"M": torch.tensor([[0.0, -torch.inf], [0.0, 0.0]])}, ValueError, "M must not hold NaN or -inf"),
        ({"r": torch.ones(3) / 3}, ValueError, r"r must have shape \(…, 2\)"),
        ({"r": torch.ones(2, dtype=F64) / 2}, TypeError, "r has dtype torch.float64"),
        ({"r": torch.tensor([1.5, -0.5])}, ValueError, "r must be nonnegative"),
        ({"c": torch.tensor([torch.nan, 0.5])}, ValueError, "c must be nonnegative and finite"),
        ({"c": torch.ones(2)}, ValueError, "same mass"),
        ({"r": torch.zeros(2), "c": torch.zeros(2)}, ValueError, "must have some mass"),
        ({"gamma": torch.tensor(-1.0)}, ValueError, "gamma must be positive"),
        ({"gamma": torch.tensor(torch.nan)}, ValueError, "gamma must be positive"),
        ({"gamma": "1"}, TypeError, "gamma must be a number or a tensor"),
        ({"M": torch.zeros(3, 2, 2), "gamma": torch.ones(2)}, ValueError, "do not broadcast"),
        ({"mask": torch.ones(2, 2)}, TypeError, "mask must be a bool tensor"),
        ({"mask": torch.ones(2, 3, dtype=torch.bool)}, ValueError, "mask must have shape"),
        ({"M": torch.zeros(3, 2, 2), "mask": torch.ones(4, 2, 2, dtype=torch.bool)}, ValueError, r"mask \(4, 2, 2\) .* do not broadcast"),
        ({"init": (torch.zeros(3, 2), torch.zeros(3, 2))}, ValueError, r"init φ must broadcast to \(2,\), got \(3, 2\)"),
        ({"init": (0.0, 0.0)}, TypeError, "init φ must be a tensor"),
        ({"mask": torch.tensor([[False, False], [True, True]]), "r": torch.ones(2) / 2}, ValueError, "a row has mass and nowhere to go"),
    ],
)
def test_bad_calls(arguments, error, message):
    arguments = {"M": torch.zeros(2, 2)} | arguments
    with pytest.raises(error, match=message):
        OptimalTransport()(arguments.pop("M"), **arguments)


def test_a_bad_sample_is_named():
    M = torch.zeros(4, 2, 2)
    M[2, 1, 1] = torch.nan
    with pytest.raises(ValueError, match=r"1 of 4 samples \(2\)"):
        OptimalTransport()(M)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"gamma": 0.0}, ValueError, "gamma must be positive"),
        ({"gamma": "1"}, TypeError, "gamma must be a number or a tensor"),
        ({"gradient": "exact"}, ValueError, "gradient=...* must be one of"),
        ({"on_failure": "ignore"}, ValueError, "on_failure=...* must be one of"),
        ({"input": "kernel"}, ValueError, "input=...* must be one of"),
        ({"method": "sinkhorn"}, TypeError, "method must be"),
        ({"tolerance": 0.0}, ValueError, "tolerance must be"),
        ({"max_iterations": 0}, ValueError, "max_iterations must be"),
        ({"progress": 3}, TypeError, "progress must be"),
    ],
)
def test_bad_options(arguments, error, message):
    with pytest.raises(error, match=message):
        OptimalTransport(**arguments)


def test_failure_policies():
    M, r, c, _ = instance(3, 20, 20)
    M[1] *= 0.0  # converges at once
    hard = {"method": Sinkhorn(over_relaxation=1.0, scaling=None), "max_iterations": 3, "tolerance": 1e-12}
    with pytest.warns(SolverWarning, match=r"2 of 3 samples \(0, 2\) stopped at a relative marginal error of"):
        OptimalTransport(200.0, **hard)(M, r, c)
    with pytest.raises(SolverError, match="Raise max_iterations"):
        OptimalTransport(200.0, on_failure="raise", **hard)(M, r, c)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = M.clone().requires_grad_()
        P = OptimalTransport(200.0, on_failure="nan", **hard)(x, r, c)
    assert [bool(torch.isnan(p).any()) for p in P] == [True, False, True]
    assert torch.allclose(P[1], r[1, :, None] * c[1], atol=1e-12)
    (gradient,) = torch.autograd.grad(P[1].square().sum(), x)
    assert bool((torch.isfinite(gradient[1])).all())


def test_masses_that_no_plan_meets():
    """Two rows that may send to the same column only, which wants less."""
    mask = torch.tensor([[True, False, False], [True, False, False], [True, True, True]])
    M = torch.stack([torch.rand(3, 3, dtype=F64)] * 2)
    with pytest.warns(SolverWarning, match=r"1 of 2 samples \(1\) .* check that a plan exists"):
        s = OptimalTransport().solution(M, mask=torch.stack([torch.ones(3, 3, dtype=torch.bool), mask]))
    assert s.status.tolist() == [Status.CONVERGED, Status.MAX_ITERATIONS]
    assert bool(torch.isfinite(s.y).all())
    assert float(s.violation[1]) == pytest.approx(float((s.y[1].sum(1) - 1 / 3).abs().sum() + (s.y[1].sum(0) - 1 / 3).abs().sum()))
    assert float(s.violation[1]) > 0.1


def test_potentials_object_is_what_init_takes():
    M, r, c, gamma = instance(1, 4, 3)
    found = OptimalTransport().potentials(M, r, c, gamma)
    assert isinstance(found, Potentials)
    assert found.rows.shape == (1, 4)
    assert found.columns.shape == (1, 3)


def test_a_model_around_it_compiles():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.transport = torch.nn.Linear(4, 4).double(), OptimalTransport(3.0)

        def forward(self, x):
            return (self.transport(torch.tanh(self.linear(x))) * torch.arange(4.0, dtype=F64)).square().sum()

    net, x = Net(), torch.rand(2, 4, 4, dtype=F64)
    plain = torch.autograd.grad(net(x), net.linear.weight)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its own making
        compiled = torch.autograd.grad(torch.compile(net, backend="eager")(x), net.linear.weight)[0]
    assert torch.allclose(plain, compiled, atol=1e-14)
