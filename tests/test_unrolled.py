"""Differentiation through the solver's steps: against finite differences of those steps, and against the optimality conditions."""

import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn

from benchmarks.timing import peak_bytes
from declarative import CapturedTensorError, DeclarativeNode, Implicit, OneStep, Solution, SolverError, Status, Unrolled, verify
from declarative.solvers import InteriorPoint, Newton, SciPy, UserSolve
from declarative.structure import Banded, Constant, Diagonal
from tests.conformance.cases import close, weights
from tests.solvers.statements import Sphere

F64 = torch.float64


class Free(DeclarativeNode):
    """Smooth and strictly convex, its entries coupled in a chain."""

    def objective(self, x, y):
        return 0.5 * (y - x).square().sum() + 0.1 * y.pow(4).sum() + 0.3 * (y[1:] - y[:-1]).cosh().sum()

    def initial_guess(self, x):
        return 0.1 * x.flip(1)


class Separable(Free):
    def objective(self, x, y):
        return 0.5 * (y - x).square().sum() + 0.1 * y.pow(4).sum()


class Orthogonal(Free):
    """Rows of A with equal singular values, where an SVD has no derivative."""

    def equality_constraints(self, x, y):
        return torch.stack([y[0] + 0.1 * y[0] ** 2 - 0.2 * x[0], y[1] + 0.1 * y[1] ** 2 - 0.3 * x[1]])


class Redundant(Free):
    """The same equation twice: y has a derivative, and the shortest multipliers have one."""

    def equality_constraints(self, x, y):
        return torch.stack([y.sum() - x[0], 2 * (y.sum() - x[0])])


class Box(Free):
    def inequality_constraints(self, x, y):
        return torch.cat([y - 0.6, -0.7 - y])


class Plane(Box):
    """Both kinds of constraints."""

    def equality_constraints(self, x, y):
        return y.sum() - 0.3 * x[0]


class Well(Free):
    """Starts where it is concave."""

    def objective(self, x, y):
        return (y**4 / 4 - (2 + x**2) * y**2 / 2 + 0.3 * y).sum() + 0.1 * y[0] * y[1]

    def initial_guess(self, x):
        return torch.full_like(x, 0.05)


class Repeated(Well):
    """Starts where it is concave, with equal eigenvalues, whose eigenvectors have no derivative."""

    def objective(self, x, y):
        return y.square().sum().square() / 4 - (2 + x[0] ** 2) * y.square().sum() / 2 + 0.3 * (x * y).sum()


class Saddle(Well):
    """Concave on the null space of a constraint."""

    def equality_constraints(self, x, y):
        return y.sum() + 0.1 * y[2] ** 2 - 0.2 * x[1]


TAGGED = type("Tagged", (Separable,), {"hessian_structure": Diagonal()})
CHAIN = type("Chain", (Free,), {"hessian_structure": Banded(1)})
TAGGED_PLANE = type(
    "TaggedPlane",
    (Separable,),
    {"hessian_structure": Diagonal(), "constraint_structure": Constant(), "equality_constraints": lambda self, x, y: y[:2] - 0.3 * x[:2]},
)

# (statement, solver, steps that certainly suffice). A new iterative solver joins by a line of its own.
CASES = [
    (Free, Newton(), 12),
    (Sphere, Newton(), 12),
    (Orthogonal, Newton(), 12),
    (Well, Newton(), 25),
    (Repeated, Newton(), 25),
    (Saddle, Newton(), 25),
    (TAGGED, Newton(), 12),
    (CHAIN, Newton(), 12),
    (TAGGED_PLANE, Newton(), 12),
    (Box, InteriorPoint(), 20),
    (Plane, InteriorPoint(), 20),
    (Sphere, InteriorPoint(), 12),
]
every_case = pytest.mark.parametrize(("kind", "solver", "enough"), CASES, ids=[f"{kind.__name__}-{type(solver).__name__}" for kind, solver, _ in CASES])
unchecked = pytest.mark.usefixtures("shapes_unchecked")
X = 1.3 * weights((3, 3), 3)


def leaf(x=X):
    return x.detach().clone().requires_grad_()


def functional(s):
    """A number that y and the multipliers enter in different ways."""
    parts = [p for p in (s.y, s.equality_multipliers, s.inequality_multipliers) if p.shape[-1]]
    return sum((weights(p.shape, 7 + i) * (p + 0.3 * p**2)).sum() for i, p in enumerate(parts))


def gradient(node, x=X, of=functional):
    x = leaf(x)
    return torch.autograd.grad(of(node.solution(x)), x)[0]


def differences(function, x, h=1e-5):
    """Fourth-order central differences of a scalar function."""
    found = torch.zeros_like(x)
    for i in range(x.numel()):
        e = torch.zeros_like(x)
        e.view(-1)[i] = h
        near, far = (function(x + n * e) - function(x - n * e) for n in (1, 2))
        found.view(-1)[i] = (8 * near - far) / (12 * h)
    return found


@every_case
@unchecked
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_derivative_of_the_steps_themselves(kind, solver, enough, steps):
    """Far from convergence: nothing that an optimality condition knows."""
    node = kind(solver=solver, differentiation=Unrolled(steps))
    with torch.no_grad():
        expected = differences(lambda x: functional(node.solution(x)), X)
    close(gradient(node), expected, 1e-7 * float(expected.abs().max()))


@every_case
@unchecked
def test_tends_to_the_implicit_derivative(kind, solver, enough):
    exact = gradient(kind(solver=solver))
    errors = [
        float((gradient(kind(solver=solver, differentiation=Unrolled(k))) - exact).abs().max() / exact.abs().max()) for k in range(enough - 8, enough + 3, 2)
    ]
    assert errors[-1] < 1e-8
    for before, after in pairwise(errors):
        assert after <= max(before, 1e-8)


@every_case
def test_one_step_is_implicit(kind, solver, enough):
    node = kind(solver=solver, differentiation=OneStep())
    close(node.solution(X).y, kind(solver=solver).solution(X).y, 0)
    close(gradient(node), gradient(kind(solver=solver)), 1e-8)


def second_order(node):
    x = leaf()
    (first,) = torch.autograd.grad(functional(node.solution(x)), x, create_graph=True)
    return torch.autograd.grad((first * weights(x.shape, 9)).sum(), x)[0]


@every_case
def test_second_order_of_one_step(kind, solver, enough):
    expected = second_order(kind(solver=solver))
    close(second_order(kind(solver=solver, differentiation=OneStep())), expected, 1e-8 * float(expected.abs().max()))


@every_case
@unchecked
def test_second_order_of_unrolling(kind, solver, enough):
    """Against differences of the gradient of two steps."""
    node = kind(solver=solver, differentiation=Unrolled(2))
    expected = differences(lambda x: (gradient(node, x) * weights(x.shape, 9)).sum(), X)
    close(second_order(node), expected, 1e-6 * float(expected.abs().max()))


@every_case
@pytest.mark.parametrize("way", [Unrolled(2), OneStep()], ids=lambda w: type(w).__name__)
def test_a_batch_is_its_samples(kind, solver, enough, way):
    def total(s):
        return s.y.square().sum() + s.equality_multipliers.sum() + s.inequality_multipliers.sum()

    node = kind(solver=solver, differentiation=way)
    close(gradient(node, of=total), torch.cat([gradient(node, X[i : i + 1], total) for i in range(3)]), 1e-10)


def test_redundant_constraints():
    exact = gradient(Redundant(differentiation=Implicit(irregular="min_norm")), of=lambda s: s.y.pow(3).sum())
    for way in (Unrolled(12), OneStep()):
        close(gradient(Redundant(differentiation=way), of=lambda s: s.y.pow(3).sum()), exact, 1e-8)


class Learned(DeclarativeNode):
    """Its objective, constraint and start have parameters."""

    def __init__(self, **options):
        super().__init__(**options)
        self.net = nn.Linear(3, 3, dtype=F64)
        self.row = nn.Parameter(torch.tensor([1.0, 0.5, -0.5], dtype=F64))
        self.start = nn.Parameter(torch.tensor([0.3, 0.1, -0.2], dtype=F64))

    def objective(self, x, y):
        return 0.5 * (y - self.net(x)).square().sum() + 0.1 * y.pow(4).sum()

    def equality_constraints(self, x, y):
        return self.row @ y - 0.2

    def initial_guess(self, x):
        return self.start.expand(x.shape[0], 3)


@pytest.mark.parametrize("tags", [{}, {"hessian_structure": Diagonal(), "constraint_structure": Constant()}], ids=["plain", "tagged"])
def test_parameters_get_gradients(tags):
    def gradients(way):
        torch.manual_seed(0)
        node = type("Learned", (Learned,), tags)(differentiation=way)
        functional(node.solution(X)).backward()
        return {name: torch.zeros(3) if p.grad is None else p.grad for name, p in node.named_parameters()}, node

    tags, declared = {}, tags
    exact, _ = gradients(Implicit())
    tags = declared
    for way in (Implicit(), Unrolled(12), OneStep()):
        for name, found in gradients(way)[0].items():
            close(found.double(), exact[name].double(), 1e-8)
    early, node = gradients(Unrolled(1))
    for name in ("row", "start"):
        parameter = dict(node.named_parameters())[name]
        kept = parameter.detach().clone()

        def value(p, parameter=parameter, node=node):
            parameter.copy_(p)
            return functional(node.solution(X))

        with torch.no_grad():
            expected = differences(value, kept)
            parameter.copy_(kept)
        close(early[name], expected, 1e-7)


def test_shared_inputs():
    class Scaled(Free):
        def objective(self, x, w, y):
            return super().objective(w * x, y)

        def initial_guess(self, x, w):
            return 0.1 * x * w

    w = torch.tensor([1.0, 0.5, 2.0], dtype=F64, requires_grad=True)
    exact, *others = (torch.autograd.grad(Scaled(differentiation=way)(X, w, in_dims=(0, None)).pow(3).sum(), w)[0] for way in (None, Unrolled(12), OneStep()))
    for found in others:
        close(found, exact, 1e-8)


def test_layouts_and_half_precision():
    class Pair(DeclarativeNode):
        def objective(self, x, y):
            return 0.5 * (y[0] - x).square().sum() + (y[1] - x.sum()).cosh() + 0.1 * (y[0].sum() * y[1]).square()

        def initial_guess(self, x):
            return torch.zeros_like(x), x.new_zeros(x.shape[0])

    x = leaf(X[0])
    exact, *others = (torch.autograd.grad(sum(p.sum() for p in Pair(differentiation=w)(x, in_dims=None)), x)[0] for w in (None, Unrolled(12), OneStep()))
    for found in others:
        close(found, exact, 1e-8)
    for way in (Unrolled(8), OneStep()):
        y = Free(differentiation=way)(X.bfloat16().requires_grad_())
        assert y.dtype == torch.bfloat16
        y.sum().backward()


def test_warm_start():
    """From the solution, one step is enough; the start is a constant."""
    for kind, steps in ((Free, 1), (Sphere, 1), (Box, 8)):
        start = kind().solution(leaf())
        node, x = kind(differentiation=Unrolled(steps)), leaf()
        s = node.solution(x, init=start)
        assert s.status.tolist() == [Status.CONVERGED] * 3
        close(torch.autograd.grad(functional(s), x)[0], gradient(kind()), 1e-8)
        x = leaf()
        close(torch.autograd.grad(functional(kind(differentiation=OneStep()).solution(x, init=start)), x)[0], gradient(kind()), 1e-8)
    init = leaf(start.y.detach())
    y = Free(differentiation=Unrolled(1)).solution(leaf(), init=init).y
    assert torch.autograd.grad(y.sum(), init, allow_unused=True)[0] is None


def test_status_of_too_few_steps():
    s = Free(differentiation=Unrolled(1)).solution(X)
    assert s.status.tolist() == [Status.MAX_ITERATIONS] * 3
    assert s.iterations.tolist() == [1] * 3
    assert bool((s.stationarity > 1e-4).all())
    s = Free(differentiation=Unrolled(12)).solution(X)
    assert s.status.tolist() == [Status.CONVERGED] * 3
    assert s.iterations.tolist() == [12] * 3
    with pytest.raises(SolverError, match="max_iterations"):
        Free(solver=Newton(max_iterations=1), differentiation=OneStep()).solution(X)


def test_active_set_and_zero_multipliers():
    s = Box(differentiation=Unrolled(20)).solution(X)
    assert torch.equal(s.active, Box().solution(X).active)
    assert bool((s.inequality_multipliers[~s.active] == 0).all())
    assert bool(s.active.any())
    assert not bool(s.active.all())


class Logarithm(DeclarativeNode):
    """xy − log y plus a shared parameter: NaN where x is, and no minimiser below 0."""

    def __init__(self, **options):
        super().__init__(**options)
        self.weight = nn.Parameter(torch.ones((), dtype=F64))

    def objective(self, x, y):
        return (x * y - self.weight * torch.log(y)).sum()

    def initial_guess(self, x):
        return torch.full_like(x, 0.5)


@pytest.mark.parametrize("way", [Unrolled(12), OneStep()], ids=lambda w: type(w).__name__)
def test_failed_samples_leave_their_neighbours_alone(way):
    x = torch.tensor([[1.0], [torch.nan], [2.0]], dtype=F64, requires_grad=True)
    node = Logarithm(solver=Newton(on_failure="nan"), differentiation=way)
    s = node.solution(x)
    assert s.status.tolist() == [Status.CONVERGED, Status.NON_FINITE, Status.CONVERGED]
    assert s.y.isnan().flatten().tolist() == [False, True, False]
    to_x, to_weight = torch.autograd.grad(s.y[s.status == Status.CONVERGED].sum(), (x, node.weight))
    close(to_x, torch.tensor([[-1.0], [0.0], [-0.25]], dtype=F64), 1e-8)
    close(to_weight, torch.tensor(1.5, dtype=F64), 1e-8)
    with pytest.raises(SolverError, match=r"1 of 3 samples \(1\)"):
        Logarithm(differentiation=way)(x)


def test_empty_batch():
    for kind in (Free, Sphere, Box):
        for way in (Unrolled(3), OneStep()):
            x = torch.zeros(0, 3, dtype=F64, requires_grad=True)
            y = kind(differentiation=way)(x)
            assert y.shape == (0, 3)
            assert torch.autograd.grad(y.sum(), x)[0].shape == (0, 3)


def test_memory():
    """It grows with the steps where all are kept, and only there."""

    def peak(way, steps):
        class Slow(Free):
            def objective(self, x, y):
                return super().objective(x, y) + 3 * (y**12).sum()

            def initial_guess(self, x):
                return torch.full_like(x, 2.0**steps)  # each doubling takes Newton eight steps more

        node = Slow(solver=Newton(max_iterations=200), differentiation=way(steps))
        return peak_bytes(lambda: gradient(node))

    few, many = (peak(lambda steps: Unrolled(10 * steps), n) for n in (1, 4))
    assert many > 3 * few
    for way in (lambda _: Implicit(), lambda _: OneStep()):
        few, many = (peak(way, n) for n in (1, 4))
        assert many < 1.1 * few


class Descent(DeclarativeNode):
    """Solves itself, by gradient descent in torch."""

    def __init__(self, steps, **options):
        super().__init__(**options)
        self.steps = steps

    def objective(self, x, y):
        return 0.5 * (y - x).square().sum(-1) + 0.1 * y.cosh().log().sum(-1)

    def solve(self, x):
        y = torch.zeros_like(x)
        for _ in range(self.steps):
            y = y - 0.5 * (y - x + 0.1 * y.tanh())
        return y


def test_own_solve():
    def plain(x):
        return weights(X.shape, 7) * Descent(3).solve(x)

    x = leaf()
    s = Descent(3, differentiation=Unrolled()).solution(x)
    assert s.status.tolist() == [Status.NOT_STATIONARY] * 3
    close(torch.autograd.grad((weights(X.shape, 7) * s.y).sum(), x)[0], torch.autograd.grad(plain(x).sum(), x)[0], 1e-14)
    close(gradient(Descent(60, differentiation=Unrolled())), gradient(Descent(60)), 1e-8)

    class Known(Descent):
        def equality_constraints(self, x, y):
            return y.sum() - x.sum()

        def solve(self, x):
            return Solution(x.clone(), equality_multipliers=-0.1 * x.mean(1, keepdim=True).tanh())

    s = Known(1, differentiation=Unrolled()).solution(x)
    expected = torch.autograd.grad((-0.1 * x.mean(1).tanh()).sum(), x)[0]
    close(torch.autograd.grad(s.equality_multipliers.sum(), x)[0], expected, 1e-14)


@unchecked
def test_torch_func():
    for kind, solver, enough in [(Sphere, None, 8), (Box, None, 12), (CHAIN, None, 8), (Well, None, 20)]:
        exact = torch.func.jacrev(kind(solver=solver))(X)
        for way in (Unrolled(enough), OneStep()):
            node = kind(solver=solver, differentiation=way)
            close(torch.func.jacrev(node)(X), exact, 1e-7)
            close(torch.func.grad(lambda x, node=node: functional(node.solution(x)))(X), gradient(kind(solver=solver)), 1e-7)
    twice = [torch.func.jacrev(torch.func.jacrev(Free(differentiation=way)))(X[:1]) for way in (None, Unrolled(6), OneStep())]
    for found in twice[1:]:
        close(found, twice[0], 1e-7)
    close(torch.func.grad(lambda x: functional(Descent(3, differentiation=Unrolled()).solution(x)))(X), gradient(Descent(3, differentiation=Unrolled())), 1e-12)


@pytest.mark.parametrize("way", [Unrolled(3), OneStep()], ids=lambda w: type(w).__name__)
def test_transforms_that_cannot_work_say_so(way):
    node = Free(differentiation=way)
    for wrong in (lambda: torch.func.vmap(node)(X.unsqueeze(0)), lambda: torch.func.vmap(torch.func.grad(lambda x: node(x).sum()))(X.unsqueeze(0))):
        with pytest.raises(NotImplementedError, match="batch dimension"):
            wrong()
    for wrong in (lambda: torch.func.jvp(node, (X,), (X,)), lambda: torch.func.jacfwd(node)(X), lambda: torch.func.jacfwd(torch.func.jacrev(node))(X)):
        with pytest.raises(NotImplementedError, match="reverse mode"):
            wrong()
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="reverse mode"):
        node(torch.autograd.forward_ad.make_dual(X, X))


@pytest.mark.parametrize("way", [Unrolled(3), OneStep()], ids=lambda w: type(w).__name__)
def test_captured_tensors_are_refused(way):
    hidden = torch.ones(3, dtype=F64, requires_grad=True)

    class Closure(Free):
        def objective(self, x, y):
            return super().objective(hidden * x, y)

    with pytest.raises(CapturedTensorError, match="hidden"):
        Closure(solver=Newton(), differentiation=way)(X)
    with torch.no_grad():
        Closure(solver=Newton(on_failure="nan"), differentiation=way)(X)

    def through(w):
        class Wrapped(Free):
            def objective(self, x, y):
                return super().objective(w * x, y)

        return Wrapped(differentiation=way)(X).sum()

    with pytest.raises(CapturedTensorError):
        torch.func.grad(through)(hidden.detach())


class Numpy(Descent):
    def solve(self, x):
        return torch.as_tensor(x.detach().numpy()) * 0.9


BAD = [
    (lambda: Unrolled(0), ValueError, "at least 1"),
    (lambda: Unrolled(-2), ValueError, "at least 1"),
    (lambda: Unrolled("3"), TypeError, "int"),
    (lambda: Unrolled(True), TypeError, "int"),
    (lambda: Free(differentiation=Unrolled), TypeError, r"Unrolled\(steps\) or OneStep\(\)"),
    (lambda: Free(differentiation=Unrolled())(X), TypeError, r"Unrolled\(steps\)"),
    (lambda: Free(solver=SciPy(), differentiation=Unrolled(3))(X), TypeError, r"Free: Unrolled .* use differentiation=Implicit\(\)"),
    (lambda: Free(solver=SciPy(), differentiation=Unrolled())(X), TypeError, r"use differentiation=Implicit\(\)"),
    (lambda: Free(solver=SciPy(), differentiation=OneStep())(X), TypeError, r"Free: OneStep .* use differentiation=Implicit\(\)"),
    (lambda: Descent(3, differentiation=OneStep())(X), TypeError, "its own solve has none"),
    (lambda: Descent(3, differentiation=Unrolled(3))(X), TypeError, r"use Unrolled\(\)"),
    (lambda: Descent(3, solver=UserSolve(), differentiation=Unrolled(3))(X), TypeError, r"use Unrolled\(\)"),
    (lambda: Numpy(3, differentiation=Unrolled())(leaf()), TypeError, "cannot differentiate"),
    (lambda: Free(polish=2, differentiation=Unrolled(3))(X), ValueError, "polish=2 cannot be unrolled"),
    (lambda: Free(differentiation=Unrolled(3)).explain(X), TypeError, "Implicit"),
]


@pytest.mark.parametrize(("wrong", "kind", "message"), BAD)
def test_bad_input(wrong, kind, message):
    with pytest.raises(kind, match=message):
        wrong()


@unchecked
@pytest.mark.parametrize("way", [Unrolled(12), OneStep()], ids=lambda w: type(w).__name__)
def test_verify(way):
    report = verify(Sphere(differentiation=way), X[:1], directions=1)
    assert report.ok, str(report)
    assert not verify(Free(differentiation=Unrolled(2)), X[:1], directions=1).ok


def test_progress_is_reported():
    seen = []
    Free(solver=Newton(progress=seen.append), differentiation=Unrolled(3))(X)
    assert [p.iteration for p in seen] == [1, 2, 3]
    assert seen[0].running == 3


def test_without_grad_mode_there_is_no_graph():
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not Free(differentiation=Unrolled(3))(leaf()).requires_grad
    assert not Free(differentiation=Unrolled(3))(X).requires_grad
