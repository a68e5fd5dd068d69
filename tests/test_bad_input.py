"""Wrong inputs, options and starts: every error names the node, the argument, what came and what was expected."""

import pytest
import torch

from declarative import DeclarativeNode, Implicit, Solution, certify, verify
from declarative.solvers import InteriorPoint, Newton, SciPy, UserSolve
from tests.broken import X, node_with, returns


class Shift(DeclarativeNode):
    """y = x + s"""

    def objective(self, x, s, y):
        return 0.5 * (y - x - s).square().sum()

    def initial_guess(self, x, s):
        return torch.zeros_like(x)


@pytest.mark.parametrize(
    ("inputs", "in_dims", "error", "message"),
    [
        ((X,), 0, TypeError, r"Shift takes 2 inputs \(x, s\), got 1"),
        ((), 0, TypeError, r"takes 2 inputs"),
        ((X, 1.0), 0, TypeError, r"input 1 \(s\) must be a tensor, got float"),
        ((X.numpy(), X), 0, TypeError, r"input 0 \(x\) must be a tensor, got ndarray; wrap it in torch.as_tensor"),
        ((X, X > 0), 0, TypeError, r"input 1 \(s\) must have a floating dtype, got torch.bool.*register it as a buffer"),
        ((X + 1j, X), 0, TypeError, r"input 0 \(x\) must have a floating dtype, got torch.complex128"),
        ((X, X.long()), 0, TypeError, r"input 1 \(s\) must have a floating dtype, got torch.int64"),
        ((X, X.float()), 0, TypeError, r"input 1 \(s\) has dtype torch.float32, input 0 has torch.float64"),
        ((X, X.to("meta")), 0, ValueError, r"input 1 \(s\) is on meta, input 0 on cpu"),
        ((X, X[:2]), 0, ValueError, r"batch sizes differ: input 0 \(x\) has 3, input 1 \(s\) has 2.*in_dims=None"),
        ((X, X), (0,), ValueError, r"in_dims has 1 entries for 2 inputs"),
        ((X, X), (0, 2), ValueError, r"input 1 \(s\) has shape \(3, 4\); in_dims asks for dimension 2"),
        ((X, X), -3, ValueError, r"input 0 \(x\) has shape \(3, 4\); in_dims asks for dimension -3"),
        ((X, X), (), ValueError, r"in_dims has 0 entries for 2 inputs"),
        ((X, X), [0, 0], TypeError, r"in_dims must be an int or None, got \[0, 0\]"),
        ((X, X), "0", TypeError, r"in_dims must be an int or None, got '0'"),
        ((X, X), (0, 0.0), TypeError, r"in_dims must be an int or None, got 0.0"),
        ((X, X), (0, True), TypeError, r"in_dims must be an int or None, got True"),
        ((X, X[0, 0]), 0, ValueError, r"input 1 \(s\) is a scalar tensor and has no batch dimension"),
    ],
)
def test_inputs(inputs, in_dims, error, message):
    for call in (Shift(), Shift().solution, lambda *a, **k: certify(Shift(), *a, **k), lambda *a, **k: verify(Shift(), *a, **k)):
        with pytest.raises(error, match=message):
            call(*inputs, in_dims=in_dims)


def test_no_inputs_where_any_number_is_taken():
    node = type("Star", (DeclarativeNode,), {"objective": lambda self, *args: args[-1].sum(), "initial_guess": lambda self, *xs: xs[0]})()
    with pytest.raises(TypeError, match="Star needs at least one input"):
        node()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Shift(solver="newton"), TypeError, r"solver must be an object from declarative.solvers, such as Newton\(\), got 'newton'"),
        (lambda: Shift(differentiation="implicit"), TypeError, r"differentiation must be an object such as Implicit\(\), got 'implicit'"),
        (lambda: Shift(polish=-1), ValueError, "polish must be a number of steps, 0 or more, got -1"),
        (lambda: Shift(polish=1.5), ValueError, "polish must be a number of steps"),
        (lambda: Shift(solver=Newton), TypeError, "solver must be an object .*got <class"),
        (lambda: Shift(differentiation=Implicit), TypeError, "differentiation must be an object .*got <class"),
        (lambda: Implicit(irregular="ignore"), ValueError, r"Implicit\(irregular=...\) must be one of .*got 'ignore'"),
        (lambda: Implicit(weakly_active="both"), ValueError, r"Implicit\(weakly_active=...\) must be one of"),
        (lambda: Implicit(smoothing=-1.0), ValueError, r"Implicit\(smoothing=...\) must be a number, 0 or more, got -1.0"),
        (lambda: Implicit(damping=float("nan")), ValueError, r"Implicit\(damping=...\) must be a number"),
        (lambda: Implicit(damping="1"), ValueError, r"Implicit\(damping=...\) must be a number, 0 or more, got '1'"),
        (lambda: Implicit(smoothing=float("inf")), ValueError, r"Implicit\(smoothing=...\) must be .* got inf"),
        (lambda: Newton(tolerance=0.0), ValueError, r"Newton\(tolerance=...\) must be positive, got 0.0"),
        (lambda: UserSolve(tolerance=float("nan")), ValueError, r"UserSolve\(tolerance=...\) must be positive, got nan"),
        (lambda: Newton(tolerance="tight"), (TypeError, ValueError), r"Newton\(tolerance=...\) must be .* got 'tight'"),
        (lambda: Newton(max_iterations=1.5), (TypeError, ValueError), r"Newton\(max_iterations=...\) must be .* got 1.5"),
        (lambda: Newton(max_iterations=None), (TypeError, ValueError), r"Newton\(max_iterations=...\) must be .* got None"),
        (lambda: SciPy(3), (TypeError, ValueError), r"SciPy\(method=3\)"),
        (lambda: SciPy(options=3), (TypeError, ValueError), r"SciPy\(options=...\) must be .* got 3"),
        (lambda: InteriorPoint(max_iterations=0), ValueError, r"InteriorPoint\(max_iterations=...\) must be at least 1, got 0"),
        (lambda: UserSolve(on_failure="skip"), ValueError, r"UserSolve\(on_failure=...\) must be one of .*got 'skip'"),
        (lambda: SciPy("simplex"), ValueError, r"SciPy\(method='simplex'\) is not a method of scipy.optimize.minimize; choose one of"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_options(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_solvers_that_do_not_fit_the_statement():
    constrained = node_with(inequality_constraints=returns(lambda x, y: -y))
    constrained.solver = Newton()
    with pytest.raises(ValueError, match=r"Broken has inequality constraints, which Newton\(\) does not handle; use InteriorPoint\(\)"):
        constrained(X)
    constrained.solver = UserSolve()
    with pytest.raises(TypeError, match="Broken defines no solve"):
        constrained(X)
    constrained.solver = SciPy("BFGS")
    with pytest.raises(ValueError, match=r"Broken has constraints, which SciPy\(method='BFGS'\) ignores; use one of"):
        constrained(X)


@pytest.mark.parametrize(
    ("init", "error", "message"),
    [
        ("zero", TypeError, "init must be a Solution, a tensor or a tuple of tensors, got str"),
        (X[:2], ValueError, r"init must have the leading batch dimension 3, got shape \(2, 4\)"),
        (Solution(X, X.new_zeros(3, 1)), ValueError, r"init.equality_multipliers has shape \(3, 1\), expected \(3, 0\)"),
        (Solution(X, None, X), ValueError, r"init.inequality_multipliers has shape \(3, 4\), expected \(3, 0\)"),
        (X[0, 0], ValueError, r"init must have the leading batch dimension 3, got shape \(\)"),
        (X[:, :1], ValueError, r"Shift: init .*\(3, 1\)"),
        (torch.zeros(3, 5, dtype=X.dtype), ValueError, r"Shift: init .*\(3, 5\)"),
        ((X,), (TypeError, ValueError), "Shift: init .*tuple"),
        ((), ValueError, "Shift: init .*empty"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_warm_start(init, error, message):
    """Also one that broadcasts: the answer would silently have another shape."""
    with pytest.raises(error, match=message):
        Shift().solution(X, X, init=init)


def test_a_node_with_its_own_solve_takes_no_warm_start():
    with pytest.raises(ValueError, match="Broken finds y by its own solve, which takes no warm start"):
        node_with(solve=returns(lambda x: x)).solution(X, init=X)


def test_parameters_of_another_dtype_or_device():
    node = Shift()
    node.weight = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(
        TypeError, match=r"parameter or buffer weight is torch.float32, the inputs are torch.float64; convert the node with .to\(torch.float64\)"
    ):
        node(X, X)
    node.weight = torch.nn.Parameter(torch.ones(2, device="meta"))
    with pytest.raises(ValueError, match=r"Shift: parameter or buffer weight is on meta, the inputs on cpu; move the node with .to\('cpu'\)"):
        node(X, X)


def test_a_buffer_of_another_dtype():
    """A mask or an index is no mistake."""
    node = Shift()
    node.register_buffer("mask", torch.ones(4, dtype=torch.bool))
    torch.testing.assert_close(node(X, X), 2 * X)
    node.inner = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"Shift: parameter or buffer inner.weight is torch.float32, the inputs are torch.float64"):
        node(X, X)
