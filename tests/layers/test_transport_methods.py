"""The forward pass of entropic transport: every method solves the same mathematics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from declarative.layers.transport.auto import Auto
from declarative.layers.transport.dual_lbfgs import DualLBFGS
from declarative.layers.transport.dual_newton import DualNewton
from declarative.layers.transport.methods import Method
from declarative.layers.transport.sinkhorn import Sinkhorn
from declarative.layers.transport.statement import Transport, soft_minimum
from declarative.solvers.iterative import Progress

METHODS = [Auto(), DualNewton(), DualLBFGS(), Sinkhorn(), Sinkhorn(over_relaxation=1.0, scaling=None), Sinkhorn(over_relaxation="auto")]
NEWTON = [Auto(), DualNewton()]
F64, F32 = torch.float64, torch.float32
TOLERANCE = {F64: 1e-10, F32: 1e-5}


def ids(value: object) -> str:
    return str(value).replace("torch.", "")


def points(b: int, m: int, n: int, gamma: float, dtype: torch.dtype = F64, seed: int = 0, *, even: bool = False) -> Transport:
    """Squared distances of random points in the plane, greatest 1; random marginals or even ones."""
    g = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=g, dtype=F64)

    cost = torch.cdist(random(b, m, 2), random(b, n, 2)).square()
    cost = cost / cost.amax((1, 2), keepdim=True).clamp_min(1e-12)
    r, c = (torch.ones(b, m), torch.ones(b, n)) if even else (random(b, m) + 0.1, random(b, n) + 0.1)
    r, c = (x.to(F64) / x.sum(1, keepdim=True) for x in (r, c))
    return Transport(cost.to(dtype), r.to(dtype), c.to(dtype), torch.full((b,), gamma, dtype=dtype))


def solve(method: Method, problem: Transport, init=None, *, tolerance=None, max_iterations=3000, progress=None):
    tolerance = TOLERANCE[problem.cost.dtype] if tolerance is None else tolerance
    return method.solve(problem, init, tolerance=tolerance, max_iterations=max_iterations, progress=progress)


KNOWN: dict[tuple[bytes, ...], torch.Tensor] = {}


def reference(problem: Transport, iterations: int = 5000) -> torch.Tensor:
    """`log_domain`, once for each problem."""
    key = tuple(x.numpy().tobytes() for x in (problem.cost, problem.rows, problem.columns, problem.gamma))
    if key not in KNOWN:
        KNOWN[key] = log_domain(problem, iterations)
    return KNOWN[key]


def log_domain(problem: Transport, iterations: int) -> torch.Tensor:
    """Plain Sinkhorn iterations with logarithms, in float64."""
    cost, r, c, gamma = (x.to(F64) for x in (problem.cost, problem.rows, problem.columns, problem.gamma))
    r, c = r / r.sum(1, keepdim=True), c / c.sum(1, keepdim=True)
    psi = torch.zeros_like(c)
    phi = torch.zeros_like(r)
    for _ in range(iterations):
        phi = -torch.logsumexp(c.log().unsqueeze(1) + gamma[:, None, None] * (psi.unsqueeze(1) - cost), 2) / gamma[:, None]
        before = psi
        psi = -torch.logsumexp(r.log().unsqueeze(2) + gamma[:, None, None] * (phi.unsqueeze(2) - cost), 1) / gamma[:, None]
        if (gamma[:, None] * (psi - before)).abs().max() < 1e-13:
            break
    return Transport(cost, r, c, gamma).plan(phi, psi)


def check(problem: Transport, found, tolerance: float) -> None:
    """All that holds of any result that converged."""
    assert found.plan.shape == problem.cost.shape
    assert found.rows.shape == problem.rows.shape
    assert found.columns.shape == problem.columns.shape
    assert found.converged.all()
    assert (found.plan >= 0).all()
    error = ((found.plan.sum(2) - problem.rows).abs().sum(1) + (found.plan.sum(1) - problem.columns).abs().sum(1)) / problem.rows.sum(1)
    assert (error <= tolerance * 1.001 + 1e-16).all()
    torch.testing.assert_close(found.error, error, rtol=1e-3, atol=1e-15)
    for x in (found.plan, found.rows, found.columns):
        assert torch.isfinite(x).all()
    eps = torch.finfo(problem.cost.dtype).eps
    finite = torch.where(torch.isinf(problem.cost), 0.0, problem.cost)
    sizes = finite.abs().amax((1, 2)) + found.rows.abs().amax(1) + found.columns.abs().amax(1)
    slack = 20 * eps * float((1 + problem.gamma * sizes).max())
    torch.testing.assert_close(problem.plan(found.rows, found.columns), found.plan, rtol=slack, atol=slack * float(problem.mass.max()))


@pytest.mark.parametrize("dtype", [F64, F32], ids=ids)
@pytest.mark.parametrize("method", METHODS, ids=ids)
class TestEveryMethod:
    @pytest.mark.parametrize("gamma", [1e-3, 1.0, 20.0])
    def test_is_that_of_the_log_domain(self, method, dtype, gamma):
        problem = points(3, 9, 7, gamma, dtype)
        found = solve(method, problem)
        check(problem, found, TOLERANCE[dtype])
        torch.testing.assert_close(found.plan.to(F64), reference(problem), rtol=0, atol=10 * TOLERANCE[dtype])

    @pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (4, 9), (9, 4)], ids=ids)
    def test_shapes(self, method, dtype, shape):
        problem = points(2, *shape, 10.0, dtype)
        found = solve(method, problem)
        check(problem, found, TOLERANCE[dtype])
        if 1 in shape:  # the only plan there is
            torch.testing.assert_close(found.plan, problem.rows.unsqueeze(2) * problem.columns.unsqueeze(1), rtol=1e-5, atol=1e-6)

    def test_batches(self, method, dtype):
        problem = points(1, 5, 6, 10.0, dtype)
        none = problem.select(torch.zeros(0, dtype=torch.int64))
        found = solve(method, none)
        assert found.plan.shape == (0, 5, 6)
        assert found.rows.shape == (0, 5)
        assert found.iterations.shape == found.error.shape == found.converged.shape == (0,)
        check(problem, solve(method, problem), TOLERANCE[dtype])

    def test_without_mass(self, method, dtype):
        problem = points(2, 6, 5, 10.0, dtype)
        wide = torch.nn.functional.pad(problem.cost, (0, 2, 0, 3), value=0.3)
        rows, columns = torch.nn.functional.pad(problem.rows, (0, 3)), torch.nn.functional.pad(problem.columns, (0, 2))
        padded = Transport(wide, rows, columns, problem.gamma)
        found = solve(method, padded)
        check(padded, found, TOLERANCE[dtype])
        torch.testing.assert_close(found.plan[:, :6, :5], solve(method, problem).plan, rtol=0, atol=10 * TOLERANCE[dtype])
        assert (found.plan[:, 6:] == 0).all()
        assert (found.plan[:, :, 5:] == 0).all()
        soft = soft_minimum(wide, columns, found.columns, problem.gamma)
        torch.testing.assert_close(found.rows[:, 6:], soft[:, 6:], rtol=1e-4, atol=1e-5)

    def test_forbidden(self, method, dtype):
        problem = points(2, 6, 6, 10.0, dtype)
        problem.cost[:, 0, 1:3] = torch.inf
        problem.cost[1, 3:, 5] = torch.inf
        found = solve(method, problem)
        check(problem, found, TOLERANCE[dtype])
        assert (found.plan[torch.isinf(problem.cost)] == 0).all()
        torch.testing.assert_close(found.plan.to(F64), reference(problem), rtol=0, atol=10 * TOLERANCE[dtype])

    def test_padding_that_is_forbidden(self, method, dtype):
        problem = points(2, 6, 5, 10.0, dtype)
        wide = torch.nn.functional.pad(problem.cost, (0, 2, 0, 3), value=torch.inf)
        padded = Transport(wide, torch.nn.functional.pad(problem.rows, (0, 3)), torch.nn.functional.pad(problem.columns, (0, 2)), problem.gamma)
        found = solve(method, padded)
        check(padded, found, TOLERANCE[dtype])
        torch.testing.assert_close(found.plan[:, :6, :5], solve(method, problem).plan, rtol=0, atol=10 * TOLERANCE[dtype])

    def test_infeasible(self, method, dtype):
        # Rows 0 and 1 may send to columns 0 and 1 only, which cannot take so much.
        cost = torch.zeros(1, 4, 4, dtype=dtype)
        cost[0, :2, 2:] = torch.inf
        problem = Transport(
            cost, torch.tensor([[0.3, 0.3, 0.2, 0.2]], dtype=dtype), torch.tensor([[0.1, 0.1, 0.4, 0.4]], dtype=dtype), torch.ones(1, dtype=dtype)
        )
        found = solve(method, problem, max_iterations=100)
        assert not found.converged.any()
        for x in (found.plan, found.rows, found.columns):
            assert torch.isfinite(x).all()
        torch.testing.assert_close(found.error, problem.marginal_error(found.plan))
        assert found.error[0] > 0.5

    def test_one_bad_sample(self, method, dtype):
        good = points(3, 4, 4, 5.0, dtype)
        cost, rows, columns = good.cost.clone(), good.rows.clone(), good.columns.clone()
        cost[1, :2, 2:] = torch.inf
        rows[1], columns[1] = torch.tensor([0.3, 0.3, 0.2, 0.2]), torch.tensor([0.1, 0.1, 0.4, 0.4])
        found = solve(method, Transport(cost, rows, columns, good.gamma), max_iterations=100)
        assert found.converged.tolist() == [True, False, True]
        index = torch.tensor([0, 2])
        torch.testing.assert_close(found.plan[index], solve(method, good.select(index)).plan, rtol=0, atol=10 * TOLERANCE[dtype])

    def test_warm_start(self, method, dtype):
        problem = points(3, 8, 9, 30.0, dtype)
        first = solve(method, problem)
        again = solve(method, problem, (first.rows, first.columns), tolerance=2 * TOLERANCE[dtype])
        check(problem, again, 2 * TOLERANCE[dtype])
        assert int(again.iterations.max()) <= 2

    def test_start_that_is_wrong(self, method, dtype):
        problem = points(2, 6, 7, 20.0, dtype)
        g = torch.Generator().manual_seed(1)
        start = (torch.randn(2, 6, generator=g, dtype=dtype), torch.randn(2, 7, generator=g, dtype=dtype))
        found = solve(method, problem, start)
        check(problem, found, TOLERANCE[dtype])
        torch.testing.assert_close(found.plan.to(F64), reference(problem), rtol=0, atol=10 * TOLERANCE[dtype])

    def test_iterations_are_limited(self, method, dtype):
        problem = points(2, 20, 20, 500.0, dtype)
        found = solve(method, problem, max_iterations=2)
        assert (found.iterations <= 2).all()
        assert not found.converged.all()
        assert torch.isfinite(found.plan).all()
        torch.testing.assert_close(found.error, problem.marginal_error(found.plan))

    def test_each_sample_stops_by_itself(self, method, dtype):
        problem = points(3, 8, 8, 1.0, dtype)
        problem = Transport(problem.cost, problem.rows, problem.columns, torch.tensor([0.01, 5.0, 60.0], dtype=dtype))
        found = solve(method, problem)
        check(problem, found, TOLERANCE[dtype])
        assert found.iterations[0] < found.iterations[2]
        for i in range(3):
            alone = solve(method, problem.select(torch.tensor([i])))
            torch.testing.assert_close(found.plan[i], alone.plan[0], rtol=0, atol=10 * TOLERANCE[dtype])

    def test_mass(self, method, dtype):
        problem = points(2, 5, 6, 10.0, dtype)
        plan = solve(method, problem).plan
        for mass in (1e-6, 1e4):
            scaled = Transport(problem.cost, mass * problem.rows, mass * problem.columns, problem.gamma)
            found = solve(method, scaled)
            check(scaled, found, TOLERANCE[dtype])
            torch.testing.assert_close(found.plan / mass, plan, rtol=0, atol=10 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [F64, F32], ids=ids)
@pytest.mark.parametrize("method", NEWTON, ids=ids)
class TestLargeGamma:
    @pytest.mark.parametrize("gamma", [1e2, 1e3, 1e4, 1e5])
    @pytest.mark.parametrize("even", [True, False], ids=["even", "random"])
    def test_converges(self, method, dtype, gamma, even):
        for m, n in ((12, 12), (40, 25)):
            problem = points(3, m, n, gamma, dtype, seed=m, even=even)
            found = solve(method, problem)
            assert found.converged.all()
            for x in (found.plan, found.rows, found.columns):
                assert torch.isfinite(x).all()

    def test_is_nearly_the_linear_program(self, method, dtype):
        gamma = 1e4
        problem = points(3, 7, 8, gamma, dtype)
        found = solve(method, problem)
        assert found.converged.all()
        rows, columns = np.kron(np.eye(7), np.ones(8)), np.kron(np.ones(7), np.eye(8))
        for i in range(3):
            exact = linprog(
                problem.cost[i].to(F64).flatten().numpy(),
                A_eq=np.vstack([rows, columns])[:-1],
                b_eq=torch.cat([problem.rows[i], problem.columns[i]]).to(F64).numpy()[:-1],
            )
            value = float((found.plan[i].to(F64) * problem.cost[i].to(F64)).sum())
            room = 3 * TOLERANCE[dtype]
            assert exact.fun - room <= value <= exact.fun + math.log(7) / gamma + room

    def test_permutation(self, method, dtype):
        g = torch.Generator().manual_seed(5)
        order = torch.randperm(15, generator=g)
        cost = torch.rand(15, 15, generator=g, dtype=F64).to(dtype)
        cost[torch.arange(15), order] = -1.0
        even = torch.full((1, 15), 1 / 15, dtype=dtype)
        for gamma in (50.0, 1e3, 1e5):
            found = solve(method, Transport(cost[None], even, even, torch.tensor([gamma], dtype=dtype)))
            assert found.converged.all()
            expected = torch.zeros(15, 15, dtype=dtype)
            expected[torch.arange(15), order] = 1 / 15
            torch.testing.assert_close(found.plan[0], expected, rtol=0, atol=1e-6)


class TestAgreement:
    @pytest.mark.parametrize("gamma", [50.0, 300.0])
    def test_methods(self, gamma):
        problem = points(2, 12, 15, gamma)
        found = [solve(method, problem, tolerance=1e-11, max_iterations=20_000) for method in METHODS]
        for one in found:
            check(problem, one, 1e-11)
            torch.testing.assert_close(one.plan, found[0].plan, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("gamma", [20.0, 300.0, 3000.0])
    @pytest.mark.parametrize("method", NEWTON, ids=ids)
    def test_many_columns(self, method, gamma):
        # Large enough for conjugate gradients and for a factor that is used again.
        problem = points(1, 230, 210, gamma, even=True)
        found = solve(method, problem)
        check(problem, found, 1e-10)
        small = Sinkhorn().solve(problem, (found.rows, found.columns), tolerance=1e-9, max_iterations=5, progress=None)
        torch.testing.assert_close(small.plan, found.plan, rtol=0, atol=1e-9)
        if gamma == 20.0:
            torch.testing.assert_close(found.plan, reference(problem, 400), rtol=0, atol=1e-11)

    @pytest.mark.parametrize("method", METHODS, ids=ids)
    def test_constants_change_nothing(self, method):
        problem = points(2, 6, 8, 20.0)
        g = torch.Generator().manual_seed(3)
        moved = problem.cost + 5 * torch.randn(2, 6, 1, generator=g, dtype=F64) + 3 * torch.randn(2, 1, 8, generator=g, dtype=F64)
        found = solve(method, Transport(moved, problem.rows, problem.columns, problem.gamma))
        assert found.converged.all()
        torch.testing.assert_close(found.plan, solve(method, problem).plan, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("method", METHODS, ids=ids)
    def test_transpose(self, method):
        problem = points(2, 6, 8, 20.0)
        found, other = solve(method, problem), solve(method, problem.transposed)
        torch.testing.assert_close(found.plan, other.plan.mT, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("method", METHODS, ids=ids)
    @pytest.mark.parametrize("gamma", [3.0, 40.0])
    def test_one_cost_for_many_marginals(self, method, gamma):
        problem = points(5, 8, 7, gamma)
        shared = problem.cost[:1].expand(5, 8, 7)
        one = solve(method, Transport(shared, problem.rows, problem.columns, problem.gamma))
        each = solve(method, Transport(shared.contiguous(), problem.rows, problem.columns, problem.gamma))
        assert one.converged.all()
        torch.testing.assert_close(one.plan, each.plan, rtol=0, atol=1e-9)
        strange = problem.columns.clone()
        strange[2, 3] = 0.0
        strange /= strange.sum(1, keepdim=True)
        found = solve(method, Transport(shared, problem.rows, strange, problem.gamma))
        assert found.converged.all()
        assert (found.plan[2, :, 3] == 0).all()


class TestWhatIsLeft:
    @pytest.mark.parametrize("shape", [(30, 30), (40, 25), (25, 40)], ids=ids)
    def test_factor(self, shape):
        problem = points(3, *shape, 200.0)
        found = solve(DualNewton(), problem)
        assert found.factor is not None
        k = min(shape)
        assert found.factor.shape == (3, k, k)
        plan = found.plan if shape[0] >= shape[1] else found.plan.mT
        rows, columns = plan.sum(2), plan.sum(1)
        schur = torch.diag_embed(columns) - plan.mT @ (plan / rows.unsqueeze(2))
        g = torch.Generator().manual_seed(0)
        side = torch.randn(3, k, 1, generator=g, dtype=F64)
        side = side - side.mean(1, keepdim=True)
        # It is that of the step before: refinement gains digits each time.
        solution = torch.cholesky_solve(side, found.factor)
        for _ in range(3):
            solution = solution + torch.cholesky_solve(side - schur @ solution, found.factor)
        torch.testing.assert_close(schur @ solution, side, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("method", METHODS, ids=ids)
    def test_progress(self, method):
        lines: list[Progress] = []
        problem = points(2, 10, 10, 50.0)
        found = solve(method, problem, progress=lines.append)
        assert lines
        assert all(isinstance(line, Progress) for line in lines)
        assert {line.solver for line in lines} == {type(method).__name__}
        assert all(line.total == 2 and 1 <= line.running <= 2 for line in lines)
        assert [line.iteration for line in lines] == sorted({line.iteration for line in lines})
        assert 1 <= lines[0].iteration <= lines[-1].iteration <= int(found.iterations.max()) + 1

    @pytest.mark.parametrize("method", METHODS, ids=ids)
    def test_the_method_says_its_name(self, method):
        assert solve(method, points(1, 3, 3, 1.0)).method

    def test_sinkhorn_is_accelerated(self):
        problem = points(2, 20, 20, 60.0)
        plain, relaxed, extrapolated = (int(solve(Sinkhorn(over_relaxation=omega, scaling=None), problem).iterations.max()) for omega in (1.0, "auto", None))
        assert relaxed < 0.6 * plain
        assert extrapolated < 0.3 * plain

    @pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-12])
    @pytest.mark.parametrize("method", NEWTON, ids=ids)
    def test_tolerance(self, method, tolerance):
        check(points(2, 15, 15, 80.0), solve(method, points(2, 15, 15, 80.0), tolerance=tolerance), tolerance)

    @pytest.mark.parametrize("method", [*NEWTON, DualLBFGS()], ids=ids)
    def test_tolerance_below_rounding(self, method):
        problem = points(2, 15, 15, 30.0)
        found = solve(method, problem, tolerance=1e-19, max_iterations=1500)
        assert (found.error < 1e-13).all()
        assert (found.iterations < 1500).all()


class TestOptions:
    @pytest.mark.parametrize("omega", [0.0, 2.0, -1.0])
    def test_over_relaxation_out_of_range(self, omega):
        with pytest.raises(ValueError, match="over_relaxation"):
            Sinkhorn(over_relaxation=omega)

    @pytest.mark.parametrize("omega", ["fast", True, 1j])
    def test_over_relaxation_of_a_wrong_kind(self, omega):
        with pytest.raises(TypeError, match="over_relaxation"):
            Sinkhorn(over_relaxation=omega)

    def test_scaling(self):
        with pytest.raises(ValueError, match="scaling"):
            Sinkhorn(scaling=0.5)
        with pytest.raises(TypeError, match="scaling"):
            Sinkhorn(scaling="much")

    def test_memory(self):
        with pytest.raises(ValueError, match="memory"):
            DualLBFGS(memory=0)
        with pytest.raises(TypeError, match="memory"):
            DualLBFGS(memory=2.5)
        check(points(2, 9, 9, 20.0), solve(DualLBFGS(memory=3), points(2, 9, 9, 20.0)), 1e-10)

    @pytest.mark.parametrize(
        "method",
        [Sinkhorn(scaling=2.0), Sinkhorn(scaling=1.0), Sinkhorn(over_relaxation=0.8), Sinkhorn(over_relaxation=1.4), Sinkhorn(over_relaxation=1.7)],
        ids=ids,
    )
    def test_sinkhorn(self, method):
        problem = points(2, 9, 8, 100.0)
        found = solve(method, problem, tolerance=1e-8, max_iterations=50_000)
        check(problem, found, 1e-8)
        torch.testing.assert_close(found.plan, solve(DualNewton(), problem).plan, rtol=0, atol=1e-6)


class TestProperties:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        m=st.integers(1, 9),
        n=st.integers(1, 9),
        exponent=st.floats(-2, 5),
        zeros=st.integers(0, 3),
        forbidden=st.floats(0, 0.3),
        method=st.sampled_from(NEWTON),
        dtype=st.sampled_from([F64, F32]),
        seed=st.integers(0, 2**20),
    )
    def test_any_problem_that_has_a_plan(self, m, n, exponent, zeros, forbidden, method, dtype, seed):
        g = torch.Generator().manual_seed(seed)
        blocked = torch.rand(2, m, n, generator=g) < forbidden
        # The marginals are those of a plan on what is left, so there is one.
        plan = torch.rand(2, m, n, generator=g, dtype=F64).masked_fill_(blocked, 0.0)
        plan[:, : min(zeros, m - 1)] = 0.0
        plan[..., 0] += 1e-3 * (~blocked[..., 0])
        plan = plan / plan.sum((1, 2), keepdim=True).clamp_min(1e-12)
        if (plan.sum((1, 2)) < 0.5).any():
            return
        cost = torch.rand(2, m, n, generator=g, dtype=F64).to(dtype).masked_fill_(blocked, torch.inf)
        problem = Transport(cost, plan.sum(2).to(dtype), plan.sum(1).to(dtype), torch.full((2,), 10**exponent, dtype=dtype))
        found = solve(method, problem, tolerance=1e-4 if dtype == F32 else 1e-8, max_iterations=500)
        for x in (found.plan, found.rows, found.columns, found.error):
            assert torch.isfinite(x).all()
        assert found.converged.all()
        assert (found.plan[blocked] == 0).all()
