"""`verify` fails what deserves it, and leaves the rest of the world alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from declarative import DeclarativeNode, verify
from declarative.finite_differences import Direction, differentiate, noise_and_step
from declarative.solvers import UserSolve
from tests.conformance.cases import close

F64 = torch.float64
X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=F64)


class Soft(DeclarativeNode):
    """y³ + y = x"""

    def objective(self, x, y):
        return (0.25 * y**4 + 0.5 * y**2 - x * y).sum()

    def initial_guess(self, x):
        return torch.zeros_like(x)


class _WrongSine(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, cotangent):
        return 1.1 * cotangent * ctx.saved_tensors[0].cos()

    generate_vmap_rule = True


def failed(report):
    return {row.name for row in report.rows if not row.ok}


def test_good_node_passes():
    report = verify(Soft(), X)
    assert report.ok
    report.raise_if_failed()
    text = str(report)
    assert text.startswith("Soft, 3 samples: 3 of 3 samples are regular minimisers")
    assert "verify Soft: 3 samples, inputs (3, 4), torch.float64" in text
    assert text.endswith("all checks passed")
    assert all(row.name in text for row in report.rows)


def test_hidden_input():
    class Hidden(Soft):
        def objective(self, x, y):
            return super().objective(x.detach(), y)

    report = verify(Hidden(), X)
    assert "vjp = finite differences, input 0" in failed(report)
    with pytest.raises(AssertionError, match="FAIL  vjp = finite differences, input 0"):
        report.raise_if_failed()


def test_wrong_derivative_inside_the_statement():
    class Wrong(Soft):
        def objective(self, x, y):
            return super().objective(x, y) - (_WrongSine.apply(x) * y).sum()

    assert "vjp = finite differences, input 0" in failed(verify(Wrong(), X))


def test_solve_of_another_problem():
    class Other(Soft):
        def solve(self, x):
            return 0.5 * x

    report = verify(Other(), X)
    assert not report.ok
    assert "samples that are not minimisers" in failed(report)
    assert "not stationary" in str(report)


def test_loose_solve_is_named():
    class Loose(Soft):
        def solve(self, x):
            return Soft()(x) + 1e-4

    report = verify(Loose(solver=UserSolve(tolerance=1e-2)), X)
    (row,) = (row for row in report.rows if row.name == "stationarity of the Lagrangian")
    assert not row.ok
    assert "pass polish=3" in row.note
    assert verify(Loose(solver=UserSolve(tolerance=1e-2), polish=4), X).ok


def test_mutated_input():
    class Mutating(Soft):
        def solve(self, x):
            y = Soft()(x)
            x += 1e-3
            return y

    assert not verify(Mutating(solver=UserSolve(tolerance=1e-1)), X).ok


def test_parameters_and_shared_inputs_are_checked_by_name():
    class Learned(Soft):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=F64))

        def objective(self, x, s, y):
            return super().objective(x + s, self.weight * y) + 0.5 * (y**2).sum()

        def initial_guess(self, x, s):
            return torch.zeros_like(x)

    node = Learned()
    report = verify(node, X, X[0], in_dims=(0, None))
    assert report.ok, str(report)
    names = {row.name for row in report.rows}
    assert {f"vjp = finite differences, {leaf}" for leaf in ("input 0", "input 1", "weight")} <= names
    assert node.weight.grad is None


def test_nothing_else_changes():
    node = Soft().train()
    x = X.clone().requires_grad_()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    reports = [str(verify(node, x, seed=1)) for _ in range(2)]
    assert reports[0] == reports[1]
    assert torch.equal(torch.get_rng_state(), state)
    assert x.grad is None
    assert torch.equal(x, X)
    assert node.training
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(("dtype", "in_dims"), [(torch.float32, 0), (F64, None), (F64, 1)])
def test_dtypes_and_batches(dtype, in_dims):
    x = {0: X, 1: X.T, None: X[0]}[in_dims].to(dtype)
    assert verify(Soft(), x, in_dims=in_dims, directions=1).ok


def test_arguments():
    for bad in (0, 1.5):
        with pytest.raises(ValueError, match="directions must be a positive int"):
            verify(Soft(), X, directions=bad)
    with pytest.raises(ValueError, match="cannot verify on an empty batch"):
        verify(Soft(), X[:0])
    with pytest.raises(TypeError, match="node must be a DeclarativeNode"):
        verify(torch.sin, X)


@given(scale=st.floats(1e-3, 1e3), point=st.floats(-2, 2), noise=st.sampled_from([0.0, 1e-12, 1e-9]))
def test_finite_differences_find_their_step(scale, point, noise):
    """sin(x/scale) and exp: the error is within what the difference says it is worth, whatever the scale and the noise."""
    x = torch.tensor([point], dtype=F64)
    rough = torch.Generator().manual_seed(0)

    def function(leaves):
        (x,) = leaves
        value = torch.stack([(x / scale).sin().sum(), x.exp().sum()])
        return value + noise * torch.rand(2, generator=rough, dtype=F64)

    direction = Direction(0, torch.ones(1, dtype=F64))
    size, step = noise_and_step(function, [x], direction)
    value, trust = differentiate(function, [x], direction, size, step)
    true = torch.stack([(x / scale).cos().sum() / scale, x.exp().sum()])
    assert bool(((value - true).abs() <= 3 * trust + 1e-9 * true.abs()).all())
    assert bool((trust <= 1e-6 + 1e-6 * true.abs() + 1e5 * noise * (1 + 1 / scale)).all())


@pytest.mark.parametrize("side", [1, -1])
def test_one_sided_differences(side):
    """|x| at zero has the slope of the side that is asked for."""
    x = torch.zeros(1, dtype=F64)
    direction = Direction(0, torch.ones(1, dtype=F64))

    def function(leaves):
        return leaves[0].abs() + leaves[0].exp()

    size, step = noise_and_step(function, [x], direction)
    value, trust = differentiate(function, [x], direction, size, step, torch.tensor([side]))
    close(value, torch.tensor([1.0 + side], dtype=F64), 1e-6)
    assert float(trust) < 1e-3  # the kink counts as noise


class Corners(DeclarativeNode):
    """xᵀy over the simplex: y is a corner, and its derivative zero."""

    def objective(self, x, y):
        return x @ y

    def equality_constraints(self, x, y):
        return y.sum() - 1

    def inequality_constraints(self, x, y):
        return -y

    def initial_guess(self, x):
        return torch.full_like(x, 1 / x.shape[1])


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_gradients_that_are_zero(dtype):
    """What rounding leaves of a derivative that is zero is no error, in float32 either."""
    report = verify(Corners(), torch.tensor([[0.2, 1.0, 2.0], [3.0, -1.0, 1.0]], dtype=dtype))
    assert report.ok, report
    nearly = verify(Tilted(), torch.tensor([[5.0, 0.0, 0.0], [0.0, 7.0, 1.0]], dtype=dtype))
    assert nearly.ok, nearly


class Tilted(Corners):
    """The point of the simplex that is nearest to x."""

    def objective(self, x, y):
        return 0.5 * (y - x).square().sum()
