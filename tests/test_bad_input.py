"""Every kind of wrong use is an error that names the node, the argument, what came and what was expected."""

import pytest
import torch

from declarative import CapturedTensorError, DeclarativeNode, Implicit, Solution, SolverError, certify, verify
from declarative.solvers import InteriorPoint, Newton, SciPy, UserSolve

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Shift(DeclarativeNode):
    """y = x + s"""

    def objective(self, x, s, y):
        return 0.5 * (y - x - s).square().sum()

    def initial_guess(self, x, s):
        return torch.zeros_like(x)


def node_with(**methods):
    """y = x, with some methods replaced."""

    def objective(self, x, y):
        return 0.5 * (y - x).square().sum()

    def initial_guess(self, x):
        return torch.zeros_like(x)

    return type("Broken", (DeclarativeNode,), {"objective": objective, "initial_guess": initial_guess} | methods)()


@pytest.mark.parametrize(
    ("inputs", "in_dims", "error", "message"),
    [
        ((X,), 0, TypeError, r"Shift takes 2 inputs \(x, s\), got 1"),
        ((), 0, TypeError, r"takes 2 inputs"),
        ((X, 1.0), 0, TypeError, r"input 1 \(s\) must be a tensor, got float"),
        ((X, X.long()), 0, TypeError, r"input 1 \(s\) must have a floating dtype, got torch.int64"),
        ((X, X.float()), 0, TypeError, r"input 1 \(s\) has dtype torch.float32, input 0 has torch.float64"),
        ((X, X.to("meta")), 0, ValueError, r"input 1 \(s\) is on meta, input 0 on cpu"),
        ((X, X[:2]), 0, ValueError, r"batch sizes differ: input 0 \(x\) has 3, input 1 \(s\) has 2.*in_dims=None"),
        ((X, X), (0,), ValueError, r"in_dims has 1 entries for 2 inputs"),
        ((X, X), (0, 2), ValueError, r"input 1 \(s\) has shape \(3, 4\); in_dims asks for dimension 2"),
        ((X, X), (0, 0.0), TypeError, r"in_dims must be an int or None, got 0.0"),
        ((X, X), (0, True), TypeError, r"in_dims must be an int or None, got True"),
        ((X, X[0, 0]), 0, ValueError, r"input 1 \(s\) is a scalar tensor and has no batch dimension"),
    ],
)
def test_inputs(inputs, in_dims, error, message):
    for call in (Shift(), Shift().solution, lambda *a, **k: certify(Shift(), *a, **k), lambda *a, **k: verify(Shift(), *a, **k)):
        with pytest.raises(error, match=message):
            call(*inputs, in_dims=in_dims)


def returns(value):
    return lambda self, *inputs: value(*inputs)


@pytest.mark.parametrize(
    ("method", "value", "error", "message"),
    [
        ("objective", lambda x, y: (y - x).square(), ValueError, r"Broken.objective must return a scalar tensor \(\) for ONE instance, got shape \(4,\)"),
        ("objective", lambda x, y: 0.0, TypeError, "objective must return a scalar tensor|requires grad|float"),
        ("equality_constraints", lambda x, y: 0.0, TypeError, "Broken.equality_constraints must return a tensor .* got float"),
        ("inequality_constraints", lambda x, y: [y], TypeError, "Broken.inequality_constraints must return a tensor .* got list"),
        ("initial_guess", lambda x: x[0], ValueError, r"Broken.initial_guess must return a batch: expected a leading dimension of size 3, .* \(4,\)"),
        ("initial_guess", lambda x: None, TypeError, "Broken.initial_guess must return a tensor"),
        ("initial_guess", lambda x: x.float(), TypeError, "Broken.initial_guess must keep the dtype of the inputs, torch.float64"),
        ("initial_guess", lambda x: (), ValueError, "Broken.initial_guess returned an empty tuple"),
        ("initial_guess", lambda x: (x, 1.0), TypeError, "entry 1 of the tuple is float"),
        ("solve", lambda x: x[:2], ValueError, r"Broken.solve must return a batch: expected a leading dimension of size 3, .* \(2, 4\)"),
        ("solve", lambda x: x.numpy(), TypeError, "Broken.solve must return a tensor"),
        ("solve", lambda x: Solution(x, x.new_zeros(3, 2)), ValueError, r"Broken.*equality_multipliers.*\(3, 2\).*\(3, 0\)"),
        ("solve", lambda x: x + 1, SolverError, "Broken, solved by UserSolve: 3 of 3 samples .* not a minimiser"),
        ("solve", lambda x: x * torch.nan, SolverError, "Broken, solved by UserSolve: 3 of 3 samples .* NaN or inf"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")  # what a user meets
def test_methods(method, value, error, message):
    with pytest.raises((error, ValueError) if method == "objective" else error, match=message):
        node_with(**{method: returns(value)})(X)


def test_missing_methods():
    with pytest.raises(TypeError, match="must define objective"):
        type("Empty", (DeclarativeNode,), {"initial_guess": returns(lambda x: x)})()(X)
    with pytest.raises(TypeError, match=r"Guessless has no initial_guess: define initial_guess\(self, x\).*or solve"):
        type("Guessless", (DeclarativeNode,), {"objective": returns(lambda x, y: y.sum())})()(X)


def test_a_maximiser_on_a_constraint_is_refused():
    """The nearest point of a ball's surface is not the one inside, and the farthest is not the nearest."""

    class Ball(DeclarativeNode):
        def objective(self, x, y):
            return 0.5 * (y - x).square().sum()

        def inequality_constraints(self, x, y):
            return y @ y - 1

        def solve(self, x):
            return -x / torch.linalg.vector_norm(x, dim=1, keepdim=True)

    with pytest.raises(SolverError, match=r"Ball, solved by UserSolve: 3 of 3 samples \(0, 1, 2\): the point is not a minimiser"):
        Ball()(X)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Shift(solver="newton"), TypeError, r"solver must be an object from declarative.solvers, such as Newton\(\), got 'newton'"),
        (lambda: Shift(differentiation="implicit"), TypeError, r"differentiation must be an object such as Implicit\(\), got 'implicit'"),
        (lambda: Shift(polish=-1), ValueError, "polish must be a number of steps, 0 or more, got -1"),
        (lambda: Shift(polish=1.5), ValueError, "polish must be a number of steps"),
        (lambda: Implicit(irregular="ignore"), ValueError, r"Implicit\(irregular=...\) must be one of .*got 'ignore'"),
        (lambda: Implicit(weakly_active="both"), ValueError, r"Implicit\(weakly_active=...\) must be one of"),
        (lambda: Implicit(smoothing=-1.0), ValueError, r"Implicit\(smoothing=...\) must be a number, 0 or more, got -1.0"),
        (lambda: Implicit(damping=float("nan")), ValueError, r"Implicit\(damping=...\) must be a number"),
        (lambda: Newton(tolerance=0.0), ValueError, r"Newton\(tolerance=...\) must be positive, got 0.0"),
        (lambda: InteriorPoint(max_iterations=0), ValueError, r"InteriorPoint\(max_iterations=...\) must be at least 1, got 0"),
        (lambda: UserSolve(on_failure="skip"), ValueError, r"UserSolve\(on_failure=...\) must be one of .*got 'skip'"),
        (lambda: SciPy("simplex"), ValueError, r"SciPy\(method='simplex'\) is not a method of scipy.optimize.minimize; choose one of"),
    ],
)
def test_options(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_solvers_that_do_not_fit_the_statement():
    constrained = node_with(inequality_constraints=returns(lambda x, y: -y))
    constrained.solver = Newton()
    with pytest.raises(ValueError, match=r"Broken has inequality constraints, which Newton\(\) does not handle; use InteriorPoint\(\)"):
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
    ],
)
def test_warm_start(init, error, message):
    with pytest.raises(error, match=message):
        Shift().solution(X, X, init=init)


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


CAPTURED = torch.ones(4, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("where", ["global", "attribute", "list", "dict", "closure", "computed"])
def test_captured_tensors(where):
    """Each would get no gradient, silently."""
    local = torch.ones(4, dtype=torch.float64, requires_grad=True)

    class Capturing(DeclarativeNode):
        def objective(self, x, y):
            scale = {"global": lambda: CAPTURED, "closure": lambda: local}.get(where, lambda: self.kept())()
            return 0.5 * (scale * y - x).square().sum()

        def initial_guess(self, x):
            return torch.zeros_like(x)

        def kept(self):
            return {"attribute": lambda: self.held, "list": lambda: self.held[0], "dict": lambda: self.held["a"], "computed": lambda: self.held.exp()}[where]()

    node = Capturing()
    node.__dict__["held"] = {"list": [local], "dict": {"a": local}}.get(where, local)
    with pytest.raises(CapturedTensorError, match=r"Capturing uses .*shape \(4,\), which requires grad but was neither passed as an input nor registered"):
        node(X)
    with torch.no_grad():
        torch.testing.assert_close(node(X), X / torch.e if where == "computed" else X)


def test_captured_tensor_of_a_transform():
    def loss(scale):
        node = node_with(objective=lambda self, x, y: 0.5 * (scale * y - x).square().sum())
        return node(X).sum()

    with pytest.raises(CapturedTensorError, match=r"a tensor that a torch\.func transform differentiates or maps"):
        torch.func.grad(loss)(torch.ones((), dtype=torch.float64))


def test_error_inside_a_statement_says_where():
    node = node_with(objective=lambda self, x, y: (y @ x[:2]).sum())
    with pytest.raises(RuntimeError) as caught:
        node(X)
    assert any("while evaluating the statement of Broken on one instance: inputs (4,), y ((4,),)" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_one_sample_that_is_not_finite(value):
    x = X.clone()
    x[1, 2] = value
    with pytest.raises(SolverError, match=r"Shift, solved by Newton: 1 of 3 samples \(1\): NaN or inf"):
        Shift()(x, X)
    s = Shift(solver=Newton(on_failure="nan")).solution(x, X)
    assert s.status.tolist()[0] == s.status.tolist()[2] == 0
    assert bool(s.y[1].isnan().all())
    torch.testing.assert_close(s.y[[0, 2]], (x + X)[[0, 2]])
