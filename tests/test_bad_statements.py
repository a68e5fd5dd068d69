"""Wrong methods of a node, tensors used behind its back, numbers that are not finite: what the errors say, and whom they leave alone."""

import contextlib

import pytest
import torch

from declarative import CapturedTensorError, DeclarativeNode, Solution, SolverError, SolverWarning, Status
from declarative.solvers import InteriorPoint, Newton, SciPy, UserSolve
from tests.broken import X, node_with, returns


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
        ("inequality_constraints", lambda x, y: y > 1, TypeError, "Broken.inequality_constraints .*torch.bool; .* not a comparison"),
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


@pytest.mark.parametrize("name", ["objective", "equality_constraints", "inequality_constraints", "initial_guess", "solve"])
def test_a_return_is_missing(name):
    """A method that computes something and gives nothing is refused as the class is made: a constraint would be left out in silence."""

    def forgotten(self, *inputs):
        inputs[0].sum()

    with pytest.raises(TypeError, match=rf"Forgetful\.{name} computes something and always returns None: is a `return` missing"):
        type("Forgetful", (DeclarativeNode,), {name: forgotten})


def test_none_is_no_constraint():
    """Where a method says so itself, or is one that is to be written by others."""

    class Sometimes(DeclarativeNode):
        total = None

        def objective(self, x, y):
            return 0.5 * (y - x).square().sum()

        def equality_constraints(self, x, y):
            if self.total is None:
                return None
            return y.sum() - self.total

        def inequality_constraints(self, x, y):
            return -y if self.total is not None else None

        def solve(self, x):
            raise NotImplementedError

    class Mine(Sometimes):
        def inequality_constraints(self, x, y):
            return None

        def solve(self, x):
            return x if self.total is None else x + (self.total - x.sum(1, keepdim=True)) / x.shape[1]

    node = Mine()
    assert torch.equal(node(X), X)
    node.total = 1.0
    torch.testing.assert_close(node(X).sum(1), torch.ones(3, dtype=X.dtype))


@pytest.mark.parametrize(
    "objective",
    [
        lambda x, y: (y - x).square().sum() if x.sum() > 0 else (y + x).square().sum(),
        lambda x, y: (y - x.max().item()).square().sum(),
        lambda x, y: torch.as_tensor((y - x).detach().numpy()).square().sum(),
    ],
    ids=["if", "item", "numpy"],
)
@pytest.mark.usefixtures("shapes_unchecked")
def test_a_statement_that_asks_for_numbers(objective):
    """torch says what it cannot do; the notes say what to do, and where that was."""
    with pytest.raises(RuntimeError) as caught:
        node_with(objective=returns(objective))(X)
    notes = " ".join(caught.value.__notes__)
    assert "write torch.where(...) in place of `if`" in notes
    assert "while evaluating the statement of Broken on one instance: inputs (4,)" in notes


def test_the_decision_variable_was_forgotten():
    class Short(DeclarativeNode):
        def objective(self, x, w):
            return (w * x).sum()

        def initial_guess(self, x, w):
            return x

    with pytest.raises(TypeError, match=r"Short takes 1 input \(x\), got 2; the last argument of objective is the decision variable"):
        Short()(X, X)


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
