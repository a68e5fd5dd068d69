"""Every kind of wrong use is an error that names the node, the argument, what came and what was expected."""

import contextlib

import pytest
import torch

from declarative import CapturedTensorError, DeclarativeNode, Implicit, Solution, SolverError, SolverWarning, Status, certify, verify
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


def returns(value):
    return lambda self, *inputs: value(*inputs)


@pytest.mark.parametrize(
    ("method", "value", "error", "message"),
    [
        ("objective", lambda x, y: (y - x).square(), ValueError, r"Broken.objective must return a scalar tensor \(\) for ONE instance, got shape \(4,\)"),
        ("objective", lambda x, y: y.sum().reshape(1), ValueError, r"Broken.objective must return a scalar tensor \(\) .* got shape \(1,\); reduce it"),
        ("objective", lambda x, y: 0.0, ValueError, r"Broken.objective must return a scalar tensor \(\) for ONE instance, got float"),
        ("objective", lambda x, y: None, ValueError, r"Broken.objective must return a scalar tensor \(\) for ONE instance, got NoneType"),
        ("objective", lambda x, y: (y - x).float().square().sum(), TypeError, "Broken.objective .*torch.float32"),
        ("objective", lambda x, y: (y > x).sum(), TypeError, "Broken.objective .*torch.int64"),
        ("equality_constraints", lambda x, y: y.float() - 1, TypeError, "Broken.equality_constraints .*torch.float32"),
        ("inequality_constraints", lambda x, y: y > 1, TypeError, "Broken.inequality_constraints .*torch.bool"),
        ("equality_constraints", lambda x, y: 0.0, TypeError, "Broken.equality_constraints must return a tensor .* got float"),
        ("inequality_constraints", lambda x, y: [y], TypeError, "Broken.inequality_constraints must return a tensor .* got list"),
        ("initial_guess", lambda x: x[0], ValueError, r"Broken.initial_guess must return a batch: expected a leading dimension of size 3, .* \(4,\)"),
        ("initial_guess", lambda x: None, TypeError, "Broken.initial_guess must return a tensor"),
        ("initial_guess", lambda x: x.float(), TypeError, "Broken.initial_guess must keep the dtype of the inputs, torch.float64"),
        ("initial_guess", lambda x: x.to("meta"), ValueError, "Broken.initial_guess must keep the device of the inputs, cpu; its result is on meta"),
        ("initial_guess", lambda x: x.new_zeros(()), ValueError, r"Broken.initial_guess must return a batch: .* size 3, its result has shape \(\)"),
        ("initial_guess", lambda x: x.log(), SolverError, "Broken, solved by Newton: 3 of 3 samples .* NaN or inf in the inputs, the start or the statement"),
        ("initial_guess", lambda x: (), ValueError, "Broken.initial_guess returned an empty tuple"),
        ("initial_guess", lambda x: (x, 1.0), TypeError, "entry 1 of the tuple is float"),
        ("solve", lambda x: x[:2], ValueError, r"Broken.solve must return a batch: expected a leading dimension of size 3, .* \(2, 4\)"),
        ("solve", lambda x: x.numpy(), TypeError, "Broken.solve must return a tensor"),
        ("solve", lambda x: Solution(x, x.new_zeros(3, 2)), ValueError, r"Broken.*equality_multipliers.*\(3, 2\).*\(3, 0\)"),
        ("solve", lambda x: x.float(), TypeError, "Broken.solve must keep the dtype of the inputs, torch.float64; its result is torch.float32"),
        ("solve", lambda x: (), ValueError, "Broken.solve returned an empty tuple"),
        ("solve", lambda x: Solution(x, None, x), ValueError, r"Broken.solve returned inequality_multipliers of shape \(3, 4\); expected \(3, 0\)"),
        ("solve", lambda x: Solution(x, [0.0]), TypeError, "Broken.solve .*equality_multipliers.* list"),
        ("solve", lambda x: Solution(x, status=x.new_zeros(2)), ValueError, r"Broken.solve returned status of shape \(2,\); expected \(3,\)"),
        ("solve", lambda x: Solution(x, iterations=x), ValueError, r"Broken.solve returned iterations of shape \(3, 4\); expected \(3,\)"),
        ("solve", lambda x: x + 1, SolverError, "Broken, solved by UserSolve: 3 of 3 samples .* not a minimiser"),
        ("solve", lambda x: x * torch.nan, SolverError, "Broken, solved by UserSolve: 3 of 3 samples .* NaN or inf"),
    ],
)
@pytest.mark.usefixtures("shapes_unchecked")  # what a user meets
def test_methods(method, value, error, message):
    with pytest.raises(error, match=message):
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


CAPTURED = torch.ones(4, dtype=torch.float64, requires_grad=True)


def capturing(where):
    """(a node whose statement uses a tensor that requires grad, how the message should call the tensor)"""
    local = torch.ones(4, dtype=torch.float64, requires_grad=True)
    methods, name = {
        "global": ({"objective": lambda self, x, y: (CAPTURED * y - x).square().sum()}, "`CAPTURED` of shape"),
        "closure": ({"objective": lambda self, x, y: (local * y - x).square().sum()}, "`local` of shape"),
        "attribute": ({"objective": lambda self, x, y: (self.held * y - x).square().sum()}, "self.held of shape"),
        "list": ({"objective": lambda self, x, y: (self.held[0] * y - x).square().sum()}, "self.held of shape"),
        "dict": ({"objective": lambda self, x, y: (self.held["a"] * y - x).square().sum()}, "self.held of shape"),
        "computed": ({"objective": lambda self, x, y: (self.held * y - x).square().sum()}, "a tensor of shape"),
        "equality": ({"equality_constraints": lambda self, x, y: local @ y - 1}, "`local` of shape"),
        "inequality": ({"inequality_constraints": lambda self, x, y: local * y - 1}, "`local` of shape"),
    }[where]
    node = node_with(**methods)
    held = {"attribute": local, "list": [local], "dict": {"a": local}, "computed": local.exp()}
    node.__dict__["held"] = held.get(where)
    return node, name


@pytest.mark.parametrize("where", ["global", "closure", "attribute", "list", "dict", "computed", "equality", "inequality"])
def test_captured_tensors(where):
    """Each would get no gradient, silently."""
    node, name = capturing(where)
    for x in (X, X.clone().requires_grad_()):
        with pytest.raises(CapturedTensorError, match=rf"Broken uses {name} \(4,\), which requires grad .*in_dims=\(0, None\).*torch.nn.Parameter.*detach"):
            node(x)
    with torch.no_grad():
        assert node(X).isfinite().all()


def mapped(statement, transform, *leaves):
    """The transform of a function that closes over its argument in the objective or in a constraint."""

    def function(s):
        held = {"objective": lambda self, x, y: 0.5 * (s * y - x).square().sum()} if statement == "objective" else {statement: lambda self, x, y: y - s}
        return node_with(**held)(X).sum()

    return transform(function, *leaves)


def forward_mode(function, primal):
    with torch.autograd.forward_ad.dual_level():
        return function(torch.autograd.forward_ad.make_dual(primal, torch.ones_like(primal)))


ONE = torch.ones((), dtype=torch.float64)
TRANSFORMS = {
    "grad": (lambda f, s: torch.func.grad(f)(s), ONE),
    "jacrev": (lambda f, s: torch.func.jacrev(f)(s), ONE),
    "jvp": (lambda f, s: torch.func.jvp(f, (s,), (s,)), ONE),
    "vmap, as many as the batch": (lambda f, s: torch.func.vmap(f)(s), torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)),
    "vmap, another number": (lambda f, s: torch.func.vmap(f)(s), torch.tensor([1.0, 2.0], dtype=torch.float64)),
    "vmap of grad": (lambda f, s: torch.func.vmap(torch.func.grad(f))(s), torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)),
    "forward_ad": (forward_mode, ONE),
}


CAPTURED_BY_A_TRANSFORM = r"Broken uses (a tensor that a torch\.func transform|a dual number of forward mode|`s`).*neither passed as an input nor registered"


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("statement", ["objective", "inequality_constraints"])
def test_captured_tensor_of_a_transform(statement, transform):
    """Each would get no gradient, or values that belong to other samples."""
    with pytest.raises(
        CapturedTensorError,
        match=CAPTURED_BY_A_TRANSFORM,
    ):
        mapped(statement, *TRANSFORMS[transform])


def test_error_inside_a_statement_says_where():
    node = node_with(objective=lambda self, x, y: (y @ x[:2]).sum())
    with pytest.raises(RuntimeError) as caught:
        node(X)
    assert any("while evaluating the statement of Broken on one instance: inputs (4,), y ((4,),)" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("solver", [Newton, InteriorPoint, SciPy, UserSolve])
def test_one_sample_that_is_not_finite(solver, value):
    """It is named, marked or warned of, and its neighbours keep their solutions."""
    x = X.clone()
    x[1, 2] = value
    methods = {"inequality_constraints": returns(lambda x, y: y - 10)} if solver is InteriorPoint else {}
    methods |= {"solve": returns(lambda x: x)} if solver is UserSolve else {}
    node = node_with(**methods)
    node.solver = solver()
    with pytest.raises(SolverError, match=rf"Broken, solved by {solver.__name__}: 1 of 3 samples \(1\): NaN or inf in the inputs"):
        node(x)
    for policy in ("nan", "warn"):
        node.solver = solver(on_failure=policy)
        with pytest.warns(SolverWarning, match=r"1 of 3 samples \(1\)") if policy == "warn" else contextlib.nullcontext():
            s = node.solution(x)
        assert s.status.tolist() == [Status.CONVERGED, Status.NON_FINITE, Status.CONVERGED]
        assert bool(s.y[1].isnan().all()) or policy == "warn"
        torch.testing.assert_close(s.y[[0, 2]], X[[0, 2]])


def test_one_start_outside_the_domain():
    """log y at y < 0."""
    methods = {
        "objective": returns(lambda x, y: (y * x.exp() - y.log()).sum()),
        "initial_guess": returns(lambda x: x.new_tensor([[1.0], [-1.0], [1.0]]).expand(3, 4)),
    }
    node = node_with(**methods)
    with pytest.raises(SolverError, match=r"Broken, solved by Newton: 1 of 3 samples \(1\): NaN or inf in the inputs, the start or the statement's values"):
        node(X)
    node.solver = Newton(on_failure="nan")
    torch.testing.assert_close(node(X)[[0, 2]], (-X).exp()[[0, 2]])
