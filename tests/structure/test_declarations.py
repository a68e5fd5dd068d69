"""What a node declares (tags, hooks, a solver) changes the cost and never the result; a wrong declaration is found out and named."""

import re

import pytest
import torch

from declarative import (
    MINRES,
    ConjugateGradients,
    DeclarativeNode,
    Direct,
    Implicit,
    IrregularPointError,
    Solution,
    StructureError,
    detect_structure,
    verify,
)
from declarative.__main__ import main
from declarative.structure import (
    Banded,
    BlockDiagonal,
    Constant,
    Dense,
    DenseOperator,
    Diagonal,
    DiagonalOperator,
    LowRankUpdate,
    ScaledIdentity,
    ScaledIdentityInput,
    Sparse,
    SparseOperator,
)
from problems import catalogue
from problems.optimal_transport import GAMMA, Transport
from tests.conformance.cases import close, weights

# The same statements are solved very often here; other tests check shapes on the way.
pytestmark = pytest.mark.usefixtures("shapes_unchecked")

F64 = torch.float64
X = weights((3, 9), 1)


class Separable(DeclarativeNode):
    """Diagonal H, one equality, bounds; the subclass under test declares something."""

    def objective(self, x, y):
        return (y.cosh() - x * y).sum()

    def equality_constraints(self, x, y):
        return y.sum() - 1

    def inequality_constraints(self, x, y):
        return y - 0.6

    def initial_guess(self, x):
        return torch.full_like(x, 1 / x.shape[1])


class Quadratic(Separable):
    """H = I."""

    def objective(self, x, y):
        return 0.5 * (y - x).square().sum()


class Blocks(Separable):
    def objective(self, x, y):
        return (y.reshape(-1, 3).square().sum(1) + 1).sqrt().sum() + 0.5 * (y - x).square().sum()


class Coupled(Separable):
    """Diagonal plus two sums."""

    def objective(self, x, y):
        ramp = torch.arange(y.shape[0], dtype=y.dtype) / 4
        return super().objective(x, y) + 0.5 * y.sum() ** 2 + (ramp * y).sum().cosh()


class Waves(Separable):
    """Pentadiagonal, and not convex before the constraints are counted."""

    def objective(self, x, y):
        return (y.cosh() - x * y).sum() + 0.3 * (y[2:] * y[:-2]).sum()


class Row(Separable):
    """Constraints of a few neighbours each, whose Jacobian moves with y."""

    def equality_constraints(self, x, y):
        return y.reshape(-1, 3).square().sum(1) - 1

    def inequality_constraints(self, x, y):
        return None

    def initial_guess(self, x):
        return x / torch.linalg.vector_norm(x.reshape(-1, 3, 3), dim=2).repeat_interleave(3, 1)


TAGGED = [
    (Separable, {"hessian_structure": Diagonal()}),
    (Separable, {"hessian_structure": Diagonal(), "constraint_structure": Constant()}),
    (Separable, {"hessian_structure": Diagonal(), "constraint_structure": Constant(Sparse()), "mixed_structure": ScaledIdentityInput(0, -1.0)}),
    (Quadratic, {"hessian_structure": ScaledIdentity()}),
    (Blocks, {"hessian_structure": BlockDiagonal(3)}),
    (Coupled, {"hessian_structure": LowRankUpdate(2)}),
    (Coupled, {"hessian_structure": LowRankUpdate(3)}),
    (Waves, {"hessian_structure": Banded(2)}),
    (Separable, {"hessian_structure": Dense()}),
    (Row, {"hessian_structure": Diagonal(), "constraint_structure": Sparse(lambda k, m: torch.arange(m) // 3 == torch.arange(k).unsqueeze(1))}),
]


def declared(kind, **tags):
    options = {name: tags.pop(name) for name in ("differentiation", "polish") if name in tags}
    return type(f"Tagged{kind.__name__}", (kind,), tags)(**options)


@pytest.mark.parametrize(("kind", "tags"), TAGGED, ids=[f"{k.__name__}-{i}" for i, (k, _) in enumerate(TAGGED)])
def test_same_results(kind, tags):
    """Solution, multipliers, first and second derivatives, forward mode."""
    plain, tagged = kind(polish=5), declared(kind, polish=5, **tags)

    def everything(node):
        x = X.clone().requires_grad_()
        s = node.solution(x)
        parts = [s.y, s.equality_multipliers, s.inequality_multipliers]
        total = sum((p * weights(p.shape, 3) + p.square()).sum() for p in parts)
        (first,) = torch.autograd.grad(total, x, create_graph=True)
        (second,) = torch.autograd.grad((first * weights(first.shape, 4)).sum(), x)
        forward = torch.func.jvp(node, (X,), (weights(X.shape, 5),))[1]
        per_sample = torch.func.vmap(torch.func.jacrev(lambda x: node(x, in_dims=None)))(X)
        return [*(p.detach() for p in parts), first.detach(), second, forward, per_sample]

    for mine, theirs in zip(everything(tagged), everything(plain), strict=True):
        close(mine, theirs, 1e-8)
    report = verify(tagged, X, directions=1)
    assert report.ok, str(report)


@pytest.mark.parametrize(
    ("kind", "tags", "said"),
    [
        (Waves, {"hessian_structure": Diagonal()}, r"hessian_structure Diagonal\(\) = H .* entry \(\d, \d\) of sample \d .*: declared .*, is "),
        (Waves, {"hessian_structure": Banded(1)}, r"hessian_structure Banded\(bandwidth=1\) = H .* entry"),
        (Coupled, {"hessian_structure": LowRankUpdate(1)}, r"hessian_structure LowRankUpdate\(rank=1\) = H"),
        (Separable, {"hessian_structure": ScaledIdentity()}, r"hessian_structure ScaledIdentity\(\) = H"),
        (Row, {"hessian_structure": Diagonal(), "constraint_structure": Constant()}, r"constraint_structure Constant\(structure=None\) = A .* entry"),
        (Separable, {"mixed_structure": ScaledIdentityInput(0, 1.0)}, r"mixed_structure .* = B .* B is not 1 I"),
    ],
)
def test_wrong_tags_are_named(kind, tags, said):
    report = verify(declared(kind, **tags), X, directions=1)
    assert not report.ok
    text = " ".join(line for line in str(report).splitlines() if line.startswith("  FAIL"))
    assert re.search(said, text), text


@pytest.mark.parametrize(
    ("tags", "error", "message"),
    [
        ({"hessian_structure": "diagonal"}, TypeError, r"hessian_structure must be a tag from declarative.structure, such as Diagonal\(\), got 'diagonal'"),
        ({"hessian_structure": BlockDiagonal(2)}, ValueError, r"BlockDiagonal\(size=2\) does not fit y of 9 numbers"),
        ({"hessian_structure": LowRankUpdate(4)}, ValueError, r"LowRankUpdate\(rank=4\) does not fit y of 9 numbers: the rank must be at most 3"),
        ({"hessian_structure": Diagonal(), "constraint_structure": Sparse()}, ValueError, "without a pattern serves only inside"),
        ({"hessian_structure": Diagonal(), "constraint_structure": Sparse(torch.ones(2, 9))}, ValueError, r"shape \(2, 9\), but there are 10 constraints"),
        ({"mixed_structure": ScaledIdentityInput(1)}, StructureError, "input 1 must be one of the 1, with as many numbers as y"),
        ({"hessian": lambda self, x, s: s.y}, TypeError, "hessian must return an operator .* got Tensor"),
        ({"hessian": lambda self, x, s: DiagonalOperator(s.y[:, :4])}, StructureError, r"of shape \(3, 4, 4\); expected \(3, 9, 9\)"),
        ({"solve_kkt": lambda self, i, s, v, w: v}, TypeError, r"solve_kkt must return a pair \(u, w\), got Tensor"),
        ({"solve_kkt": lambda self, i, s, v, w: (v[:, :2], w)}, ValueError, r"solve_kkt must return u shaped like y"),
        ({"solve_kkt": lambda self, i, s, v, w: (v, w)}, StructureError, r"solve_kkt does not solve the KKT system at 3 of 3 samples"),
        ({"vjp": lambda self, i, s, v: v}, TypeError, "vjp must return one gradient for each of 1 inputs"),
        ({"vjp": lambda self, i, s, v: (v[0],)}, StructureError, r"the gradient of input 0 must have shape \(3, 9\) \(batch first\), got \(9,\)"),
    ],
)
def test_bad_declarations(tags, error, message):
    with pytest.raises(error, match=message):
        declared(Separable, **tags)(X.clone().requires_grad_()).square().sum().backward()


@pytest.mark.parametrize("make", [lambda: Banded(0), lambda: BlockDiagonal(1.5), lambda: LowRankUpdate(-1)])
def test_bad_tags(make):
    with pytest.raises(ValueError, match="must be a positive integer, got"):
        make()


class Closed(Transport):
    """Every block by hand, in place of tags."""

    hessian_structure = constraint_structure = mixed_structure = None

    def hessian(self, M, r, c, solution):
        return DiagonalOperator(1 / (GAMMA * solution.y))

    def constraint_jacobian(self, M, r, c, solution):
        m, n = M.shape[1:]
        rows = torch.kron(torch.eye(m, dtype=M.dtype), torch.ones(1, n, dtype=M.dtype))
        columns = torch.kron(torch.ones(1, m, dtype=M.dtype), torch.eye(n, dtype=M.dtype))[1:]
        return SparseOperator.from_dense(torch.cat([rows, columns]).expand(len(M), -1, -1))


def transport_system(P):
    """S of the potentials (b, m + n − 1, m + n − 1)."""
    Q = P[:, :, 1:]
    top = torch.cat([torch.diag_embed(P.sum(2)), Q], 2)
    return GAMMA * torch.cat([top, torch.cat([Q.mT, torch.diag_embed(Q.sum(1))], 2)], 1)


def transport_solve(P, v, w, system):
    m = P.shape[1]
    side = GAMMA * torch.cat([(P * v).sum(2), (P * v).sum(1)[:, 1:]], 1) - w
    potentials = torch.linalg.solve(system, side)
    spread = potentials[:, :m, None] + torch.nn.functional.pad(potentials[:, m:], (1, 0)).unsqueeze(1)
    return GAMMA * P * (v - spread), potentials


class BySystem(Transport):
    """Its own KKT solve, in numpy for all that torch knows: not differentiable."""

    hessian_structure = constraint_structure = mixed_structure = None

    def solve_kkt(self, inputs, solution, v, w):
        P = solution.y.detach()
        return transport_solve(P, v.detach(), w.detach(), transport_system(P))


class ByHand(Transport):
    """The whole backward pass."""

    hessian_structure = constraint_structure = mixed_structure = None

    def vjp(self, inputs, solution, cotangent):
        _, r, c = inputs
        P = solution.y
        u, w = transport_solve(P, cotangent, torch.zeros_like(torch.cat([r, c[:, 1:]], 1)), transport_system(P))
        m = r.shape[1]
        return -u, w[:, :m] + u.sum(2) / (GAMMA * r), torch.nn.functional.pad(w[:, m:], (1, 0)) + u.sum(1) / (GAMMA * c)


INSTANCES = catalogue()["transport"].sample(2, torch.Generator().manual_seed(0), F64)


@pytest.mark.parametrize("kind", [Closed, BySystem, ByHand])
def test_hooks(kind):
    report = verify(kind(), *INSTANCES)
    assert report.ok, str(report)
    assert any("hook" in row.name for row in report.rows)
    plain = torch.func.hessian(lambda M: Transport()(M, *INSTANCES[1:]).square().sum())(INSTANCES[0])
    close(torch.func.hessian(lambda M: kind()(M, *INSTANCES[1:]).square().sum())(INSTANCES[0]), plain, 1e-9)


@pytest.mark.parametrize("kind", [Closed, BySystem, ByHand])
def test_wrong_hooks_are_named(kind):
    class Wrong(kind):
        def hessian(self, *arguments):
            return DiagonalOperator(1.01 * super().hessian(*arguments).values)

        def solve_kkt(self, *arguments):
            u, w = super().solve_kkt(*arguments)
            return u, w + 0.1

        def vjp(self, *arguments):
            return tuple(1.01 * g for g in super().vjp(*arguments))

    own = {Closed: "hessian", BySystem: "solve_kkt", ByHand: "vjp"}[kind]
    for hook in {"hessian", "solve_kkt", "vjp"} - {own}:
        delattr(Wrong, hook)
    report = verify(Wrong(), *INSTANCES, directions=1)
    assert any("hook" in row.name and not row.ok for row in report.rows), str(report)


def test_a_factor_is_handed_from_the_solve_to_the_backward_pass():
    """Made once, used by the backward pass; not by second derivatives at other points, nor after polishing."""
    made, used = [], []

    class Reusing(BySystem):
        def solve(self, M, r, c):
            P = Transport(polish=3)(M, r, c)
            made.append(transport_system(P))
            return Solution(P, workspace=made[-1])

        def solve_kkt(self, inputs, solution, v, w):
            used.append(solution.workspace)
            P = solution.y.detach()
            return transport_solve(P, v.detach(), w.detach(), transport_system(P) if solution.workspace is None else solution.workspace)

    M = INSTANCES[0].clone().requires_grad_()
    Reusing()(M, *INSTANCES[1:]).square().sum().backward()
    assert len(made) == 1
    assert used[0] is made[0]
    plain = INSTANCES[0].clone().requires_grad_()
    Transport()(plain, *INSTANCES[1:]).square().sum().backward()
    close(M.grad, plain.grad, 1e-9)
    used.clear()
    Reusing(polish=1)(M, *INSTANCES[1:]).square().sum().backward()
    assert used == [None]
    assert verify(Reusing(), *INSTANCES, directions=1).ok


@pytest.mark.parametrize("solver", [Direct(), ConjugateGradients(), MINRES()], ids=str)
@pytest.mark.parametrize("kind", [Separable, Blocks, Coupled, Row])
def test_linear_solvers(kind, solver):
    node = kind(polish=5, differentiation=Implicit(linear_solver=solver))
    x = X.clone().requires_grad_()
    s = node.solution(x)
    (s.y * weights(X.shape, 2)).sum().backward()
    assert float(s.report.residual.max()) < 1e-8
    plain = X.clone().requires_grad_()
    (kind(polish=5)(plain) * weights(X.shape, 2)).sum().backward()
    close(x.grad, plain.grad, 1e-8)
    assert verify(node, X, directions=1).ok


def test_preconditioner():
    """Given as an operator made from the solution; a perfect one needs a step or two."""

    class Steep(DeclarativeNode):
        def objective(self, x, y):
            return (torch.logspace(0, 4, y.shape[0], dtype=y.dtype) * y.square()).sum() / 2 - (x * y).sum()

        def initial_guess(self, x):
            return torch.zeros_like(x)

    def diagonal(solution):
        return DiagonalOperator(torch.logspace(0, 4, solution.y.shape[1], dtype=F64).expand_as(solution.y))

    steps = []
    for preconditioner in (None, diagonal):
        s = Steep(differentiation=Implicit(linear_solver=ConjugateGradients(preconditioner=preconditioner))).solution(X.clone().requires_grad_())
        s.y.sum().backward()
        steps.append(int(s.report.method.split()[2]))
    assert steps[1] <= 2 < steps[0]
    bad = Steep(differentiation=Implicit(linear_solver=MINRES(preconditioner=lambda s: s.y)))
    with pytest.raises(TypeError, match="the preconditioner must return an operator"):
        bad(X.clone().requires_grad_()).sum().backward()


@pytest.mark.parametrize("solver", [ConjugateGradients(max_iterations=1), MINRES(max_iterations=1)], ids=str)
def test_what_does_not_converge_is_solved_densely_and_reported(solver):
    s = Coupled(differentiation=Implicit(linear_solver=solver)).solution(X.clone().requires_grad_())
    s.y.square().sum().backward()
    assert "3 of 3 samples (0, 1, 2) dense" in s.report.method


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Implicit(linear_solver="cg"), TypeError, r"linear_solver=...\) must be Auto\(\), Direct\(\)"),
        (lambda: ConjugateGradients(tolerance=2.0), ValueError, r"ConjugateGradients\(tolerance=...\) must be a relative residual between 0 and 1"),
        (lambda: MINRES(max_iterations=0), ValueError, r"MINRES\(max_iterations=...\) must be at least 1"),
        (lambda: MINRES(preconditioner=3), TypeError, "preconditioner=...\\) must be a function"),
    ],
)
def test_bad_solver_options(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_singular_hessian_under_a_tag():
    """H = diag(1, 0) is singular, K is not: the dense solve steps in, with the same result and the same verdicts."""

    class Line(DeclarativeNode):
        hessian_structure = Diagonal()

        def objective(self, x, y):
            return 0.5 * (y[0] - x[0]) ** 2

        def equality_constraints(self, x, y):
            return y.sum() - 1

        def initial_guess(self, x):
            return x.expand(-1, 2)

    x = weights((3, 1)).requires_grad_()
    y = Line()(x)
    close(y, torch.cat([x, 1 - x], 1), 1e-10)
    close(torch.autograd.grad((y * weights((3, 2), 5)).sum(), x)[0], (weights((3, 2), 5) @ torch.tensor([[1.0], [-1.0]], dtype=F64)), 1e-10)

    class Free(Line):
        def equality_constraints(self, x, y):
            return None

        def solve(self, x):
            return torch.cat([x, 0 * x], 1)

    with pytest.raises(IrregularPointError, match=r"at 3 of 3 samples .* the minimiser is not isolated"):
        Free()(x).sum().backward()


def test_redundant_constraints_under_a_tag():
    class Twice(Quadratic):
        hessian_structure = ScaledIdentity()

        def equality_constraints(self, x, y):
            return torch.stack([y.sum() - 1, 2 * y.sum() - 2])

        def inequality_constraints(self, x, y):
            return None

    x = X.clone().requires_grad_()
    with pytest.raises(IrregularPointError, match="redundant"):
        Twice()(x).square().sum().backward()
    s = Twice(differentiation=Implicit(irregular="min_norm")).solution(x)
    (g,) = torch.autograd.grad((s.y * weights(X.shape, 2)).sum(), x)
    close(g, weights(X.shape, 2) - weights(X.shape, 2).mean(1, keepdim=True), 1e-10)
    assert sorted(s.report.irregular) == [0, 1, 2]


@pytest.mark.parametrize("options", [{"smoothing": 1e-2}, {"damping": 1e-2}])
def test_smoothing_and_damping_under_a_tag(options):
    gradients = []
    for kind in (Separable, type("Tagged", (Separable,), {"hessian_structure": Diagonal()})):
        x = X.clone().requires_grad_()
        kind(polish=5, differentiation=Implicit(**options))(x).square().sum().backward()
        gradients.append(x.grad)
    close(*gradients, 1e-9)


def test_constants_follow_the_parameters():
    """A is kept for a node as long as its buffers stay what they are."""

    class Weighted(Quadratic):
        hessian_structure, constraint_structure = ScaledIdentity(), Constant()

        def __init__(self):
            super().__init__()
            self.register_buffer("a", torch.ones(9, dtype=F64))

        def equality_constraints(self, x, y):
            return self.a @ y - 1

        def inequality_constraints(self, x, y):
            return None

    node = Weighted()
    for factor in (1.0, torch.linspace(1, 2, 9, dtype=F64), 0.5):
        node.a.mul_(factor)
        x = X.clone().requires_grad_()
        (node(x) * weights(X.shape, 2)).sum().backward()
        a, v = node.a, weights(X.shape, 2)
        close(x.grad, v - (v @ a).unsqueeze(1) * a / (a @ a), 1e-10)


DETECTED = [
    (Separable, "Diagonal()", "Constant(Sparse())"),
    (Quadratic, "ScaledIdentity()", "Constant(Sparse())"),
    (Blocks, "BlockDiagonal(size=3)", "Constant(Sparse())"),
    (Coupled, "LowRankUpdate(rank=2)", "Constant(Sparse())"),
    (Waves, "Banded(bandwidth=2)", "Constant(Sparse())"),
]


@pytest.mark.parametrize(("kind", "hessian", "constraint"), DETECTED)
def test_detection(kind, hessian, constraint):
    found = detect_structure(kind(), X)
    assert str(found.hessian_structure) == hessian
    assert found.constraint_structure == constraint
    text = str(found)
    assert f"    hessian_structure = {hessian}" in text
    # What it proposes, pasted, is right.
    names = {name: getattr(__import__("declarative.structure", fromlist=["x"]), name) for name in ("Constant", "Sparse", "ScaledIdentityInput")}
    tags = {"hessian_structure": found.hessian_structure, "constraint_structure": eval(found.constraint_structure, names)}
    if found.mixed_structure:
        tags["mixed_structure"] = eval(found.mixed_structure, names)
    assert verify(declared(kind, **tags), X, directions=1).ok


def test_nothing_to_detect():
    found = detect_structure(catalogue()["learned_energy"].node().double(), *catalogue()["learned_energy"].sample(2, torch.Generator().manual_seed(0), F64))
    assert found.hessian_structure is None
    assert "nothing to declare" in str(found)
    for call, error in ((lambda: detect_structure(torch.sin, X), TypeError), (lambda: detect_structure(Separable(), X[:0]), ValueError)):
        with pytest.raises(error):
            call()


def test_explanations():
    """What is formed, which solve, why, and what it costs beside the dense way."""
    texts = {
        "tag": declared(Separable, hessian_structure=Diagonal(), constraint_structure=Constant()).explain(X),
        "plain": Separable().explain(X),
        "large": type("Large", (Separable,), {"inequality_constraints": lambda self, x, y: None})().explain(torch.zeros(2, 500)),
        "asked": Separable(differentiation=Implicit(linear_solver=MINRES())).explain(X),
        "hook": Closed().explain(*INSTANCES),
        "vjp": ByHand().explain(*INSTANCES),
        "solve_kkt": BySystem().explain(*INSTANCES),
    }
    assert "Diagonal() from 1 product" in texts["tag"].hessian
    assert texts["tag"].products == 1
    assert texts["plain"].products == texts["plain"].dense_products == 19
    assert texts["tag"].memory < texts["plain"].memory
    assert "Schur complement" in texts["tag"].solver
    assert texts["large"].solver.startswith("conjugate gradients")
    assert "m = 500" in texts["large"].reason
    assert texts["asked"].solver == "MINRES"
    assert texts["hook"].hessian == "the node's hook"
    assert texts["vjp"].solver == "the node's vjp"
    assert texts["solve_kkt"].solver == "the node's solve_kkt"
    for text in texts.values():
        assert all(part in str(text) for part in ("H  ", "A  ", "solve", "cost", "dense:"))


def test_automatic_choice_is_matrix_free_where_that_pays():
    class Large(DeclarativeNode):
        def objective(self, x, y):
            return (y - x).cosh().sum() + 0.5 * (y[1:] - y[:-1]).square().sum()

        def solve(self, x):
            return x

    x = torch.zeros(2, 500, dtype=F64, requires_grad=True)
    s = Large().solution(x)
    (s.y * weights((2, 500))).sum().backward()
    assert s.report.method.startswith("conjugate gradients")
    direct = torch.zeros(2, 500, dtype=F64, requires_grad=True)
    (Large(differentiation=Implicit(linear_solver=Direct()))(direct) * weights((2, 500))).sum().backward()
    close(x.grad, direct.grad, 1e-9)


def test_long_chain():
    """A hundred thousand numbers, which no dense matrix would hold; gradients by implicit differentiation of the tridiagonal system."""
    chain = catalogue()["chain"].node()
    x = (2 * weights((1, 100_000))).requires_grad_()
    y = chain(x)
    v = weights(y.shape, 3)
    (g,) = torch.autograd.grad((y * v).sum(), x)
    d = (y[:, 1:] - y[:, :-1]).detach()
    curvature = (1 + d.square()) ** -1.5
    applied = g + torch.nn.functional.pad(curvature * (g[:, :-1] - g[:, 1:]), (0, 1)) + torch.nn.functional.pad(curvature * (g[:, 1:] - g[:, :-1]), (1, 0))
    close(applied, v, 1e-9)


def test_command_line(capsys):
    assert main(["verify", "problems.chain:PROBLEM", "--batch", "2"]) == 0
    assert "hessian_structure Banded(bandwidth=1) = H" in capsys.readouterr().out
    assert main(["detect", "problems.simplex:PROBLEM"]) == 0
    assert "hessian_structure = ScaledIdentity()" in capsys.readouterr().out
    for target, message in (
        ("problems.chain", "expected MODULE:NAME"),
        ("problems.chain:Chain", "has no sampler"),
        ("problems.chain:SIZE", "neither"),
        ("no_such:X", "no_such"),
    ):
        with pytest.raises(SystemExit):
            main(["verify", target])
        assert message in capsys.readouterr().err


def test_dense_operator_hook_takes_the_bordered_solve():
    class Dense3(Separable):
        def hessian(self, x, solution):
            return DenseOperator(torch.diag_embed(solution.y.cosh()))

    assert verify(Dense3(), X, directions=1).ok


@pytest.mark.parametrize(("choice", "expected"), [("nan", torch.nan), ("zero", 0.0), ("min_norm", 0.0)])
def test_policies_where_a_declared_hessian_is_singular(choice, expected):
    class Flat(DeclarativeNode):
        hessian_structure = Diagonal()

        def objective(self, x, y):
            return (0.25 * y**4 - x * y).sum()

        def solve(self, x):
            return x.sign() * x.abs() ** (1 / 3)

    x = torch.tensor([[8.0, 27.0], [0.0, 1.0]], dtype=torch.float64, requires_grad=True)  # H = diag(3 y²)
    gradient = torch.autograd.grad(Flat(differentiation=Implicit(irregular=choice))(x).sum(), x)[0]
    close(gradient[0], torch.tensor([1 / 12, 1 / 27], dtype=torch.float64), 1e-10)
    assert torch.equal(gradient[1, :1].isnan(), torch.tensor([choice == "nan"]))
    if choice != "nan":
        close(gradient[1, 0], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(("tag", "method"), [(None, "dense factorisation"), (Diagonal(), "factorisation by structure")])
def test_the_report_says_how_the_system_was_solved(tag, method):
    class Shares(DeclarativeNode):
        hessian_structure = tag

        def objective(self, x, y):
            return (y - x).square().sum()

        def equality_constraints(self, x, y):
            return y.sum() - 1

        def initial_guess(self, x):
            return x

    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    s = Shares().solution(x)
    assert s.report.method == ""
    s.y.square().sum().backward()
    assert s.report.method == method
