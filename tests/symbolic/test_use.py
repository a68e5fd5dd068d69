"""A symbolic node is used like every other: batches, dtypes, transforms, learning, saving."""

import copy
import io
import pickle
import warnings

import pytest
import sympy
import torch
from sympy import Idx, IndexedBase, exp, log

from declarative import ConjugateGradients, DeclarativeNode, Implicit, Solution, verify
from declarative.solvers import Newton, UserSolve
from declarative.symbolic import SymbolicNode
from tests.conformance.cases import close
from tests.symbolic import constrained  # noqa: F401 - registers its statements
from tests.symbolic.statements import EXAMPLES, F64, Plain, total

some = pytest.mark.parametrize("name", ["transport_with_gamma", "pseudo_huber", "total_variation", "simplex_projection", "affine_fit", "logistic_regression"])
n = sympy.Symbol("n", integer=True, positive=True)
i = Idx("i", n)
x, y, c = map(IndexedBase, "xyc")
s = sympy.Symbol("s")
QUARTIC = {"objective": total(y[i] ** 4 / 4 + (y[i] - x[i]) ** 2 / 2, i), "variable": y[i], "inputs": (x[i],)}
X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=F64)


def parts(value):
    return value if isinstance(value, tuple) else (value,)


def weighted(value):
    """A scalar that tells all entries apart."""
    return sum((part * torch.linspace(0.5, 2, part.numel(), dtype=part.dtype).reshape(part.shape)).sum() for part in parts(value))


def softmax(**options):
    statement = {"objective": total(y[i] * log(y[i]) - x[i] * y[i], i), "equality": [total(y[i], i) - 1]}
    return SymbolicNode(**statement, variable=y[i], inputs=(x[i],), **options)


@some
def test_batches(name):
    example = EXAMPLES[name]
    node, inputs = example.node(), example.inputs(3)
    whole = parts(node(*inputs))
    for k in range(3):
        close(parts(node(*(v[k : k + 1] for v in inputs))), tuple(part[k : k + 1] for part in whole), 1e-9)
        close(parts(node(*(v[k] for v in inputs), in_dims=None)), tuple(part[k] for part in whole), 1e-9)
    close(parts(node(*(v.movedim(0, -1) for v in inputs), in_dims=-1)), whole, 1e-9)
    empty = [v[:0].clone().requires_grad_() for v in inputs]
    found = parts(node(*empty))
    assert all(f.shape == (0, *part.shape[1:]) for f, part in zip(found, whole, strict=True))
    weighted(found).backward()
    assert all(v.grad.shape == v.shape for v in empty)


@some
def test_shared_inputs(name):
    """One shared input for the whole batch: its gradient is the sum over the samples, whose tangents it is given all alike."""
    example = EXAMPLES[name]
    node, inputs = example.node(), list(example.inputs(3))
    for k in range(len(inputs) if len(inputs) > 1 else 0):
        shared = inputs[k][0].clone().requires_grad_()
        dims = tuple(None if j == k else 0 for j in range(len(inputs)))
        found = node(*(shared if j == k else v for j, v in enumerate(inputs)), in_dims=dims)
        repeated = node(*(shared.expand(3, *shared.shape) if j == k else v for j, v in enumerate(inputs)))
        close(parts(found), parts(repeated), 1e-9)
        close(torch.autograd.grad(weighted(found), shared), torch.autograd.grad(weighted(repeated), shared), 1e-9)
        tangent = torch.randn_like(shared)
        _, forward = torch.func.jvp(
            lambda v, k=k, dims=dims: weighted(node(*(v if j == k else w for j, w in enumerate(inputs)), in_dims=dims)), (shared.detach(),), (tangent,)
        )
        close(
            forward,
            (torch.autograd.grad(weighted(node(*(shared if j == k else v for j, v in enumerate(inputs)), in_dims=dims)), shared)[0] * tangent).sum(),
            1e-9,
        )


@some
def test_strides_do_not_matter(name):
    example = EXAMPLES[name]
    node, inputs = example.node(), example.inputs(3)
    strange = [torch.stack([v, torch.zeros_like(v)], -1)[..., 0].requires_grad_() for v in inputs]
    plain = [v.clone().requires_grad_() for v in inputs]
    found, expected = node(*strange), node(*plain)
    close(parts(found), parts(expected), 1e-10)
    close(torch.autograd.grad(weighted(found), strange), torch.autograd.grad(weighted(expected), plain), 1e-9)


@some
def test_derivatives_of_every_order(name):
    """gradgradcheck, forward over reverse, and vmap of all, on one sample."""
    example = EXAMPLES[name]
    node = example.node()
    inputs = tuple(v[0] for v in example.inputs(1))

    def value(*v):
        return weighted(node(*v, in_dims=None))

    leaves = tuple(v.clone().requires_grad_() for v in inputs)
    assert torch.autograd.gradcheck(value, leaves, rtol=1e-4, atol=1e-5)
    assert torch.autograd.gradgradcheck(value, leaves, rtol=1e-3, atol=1e-4)
    every = tuple(range(len(inputs)))
    for mine, other in zip(torch.func.jacrev(value, every)(*inputs), torch.func.jacfwd(value, every)(*inputs), strict=True):
        close(mine, other, 1e-9)
    reverse = torch.func.jacrev(torch.func.grad(value))(*inputs)
    close(torch.func.hessian(value)(*inputs), reverse, 1e-8)
    many = example.inputs(2)
    mapped = torch.vmap(torch.func.grad(value))(*many)
    close(mapped, torch.stack([torch.func.grad(value)(*(v[k] for v in many)) for k in range(2)]), 1e-9)


def test_float32_and_half():
    node = EXAMPLES["transport_with_gamma"].node()
    exact = node(*EXAMPLES["transport_with_gamma"].inputs())
    inputs = [v.float().requires_grad_() for v in EXAMPLES["transport_with_gamma"].inputs()]
    plan = node(*inputs)
    assert plan.dtype == torch.float32
    close(plan.double(), exact, 1e-5)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(weighted(plan), inputs))
    assert softmax()(X.half()).dtype == torch.float16  # computed in float32, as by every node
    learned = EXAMPLES["logistic_regression"].node()
    with pytest.raises(TypeError, match=r"float64.*float32"):
        learned(*(v.float() for v in EXAMPLES["logistic_regression"].inputs()))
    assert learned.to(torch.float32)(*(v.float() for v in EXAMPLES["logistic_regression"].inputs())).dtype == torch.float32


def test_warm_start():
    node = softmax()
    cold = node.solution(X)
    warm = node.solution(X, init=cold)
    assert (warm.iterations < cold.iterations).all()
    close(warm.y, cold.y, 1e-10)
    with pytest.raises(ValueError, match="init must be shaped like initial_guess"):
        node.solution(X, init=torch.ones(3, 5, dtype=F64))


@pytest.mark.parametrize("start", [None, 0.2, 1 / n, exp(x[i]), lambda x: x.softmax(1) + 0.1], ids=["none", "number", "sizes", "expression", "function"])
def test_starts(start):
    close(softmax(start=start)(X), X.softmax(1), 1e-9)


def test_own_solve():
    node = softmax(solve=lambda x: x.softmax(1))
    v = X.clone().requires_grad_()
    assert torch.autograd.gradcheck(node, v)
    assert verify(node, X).ok
    known = softmax(solve=lambda x: Solution(x.softmax(1), equality_multipliers=torch.logsumexp(x, 1, keepdim=True) - 1), solver=UserSolve())
    close(torch.autograd.grad(weighted(known(v)), v), torch.autograd.grad(weighted(v.softmax(1)), v), 1e-9)


def learned():
    weight = torch.nn.Parameter(torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=F64))
    held = {c[i]: weight, s: torch.tensor(0.3, dtype=F64)}
    return SymbolicNode(objective=total(c[i] * (y[i] - x[i]) ** 2 + s * y[i] ** 4, i), variable=y[i], inputs=(x[i],), constants=held)


def test_constants_are_parameters_and_buffers():
    node = learned()
    assert len(list(node.parameters())) == 1
    assert len(list(node.buffers())) == 1
    (weight,) = node.parameters()

    def value(w):
        return weighted(torch.func.functional_call(node, {next(iter(dict(node.named_parameters()))): w}, (X,)))

    found = torch.autograd.grad(weighted(node(X)), weight)
    close(found, (torch.func.grad(value)(weight.detach()),), 1e-10)
    assert torch.autograd.gradcheck(value, weight.detach().clone().requires_grad_())
    assert torch.autograd.gradgradcheck(value, weight.detach().clone().requires_grad_())
    assert verify(node, X).ok


def test_saved_and_copied():
    node = learned()
    file = io.BytesIO()
    torch.save(node.state_dict(), file)
    file.seek(0)
    fresh = learned()
    fresh.constants.c.data.zero_()
    fresh.load_state_dict(torch.load(file))
    weighted(node(X)).backward()  # so that functions have been compiled
    node.zero_grad()
    twin, pickled = copy.deepcopy(node), pickle.loads(pickle.dumps(node))
    for other in (fresh, twin, pickled):
        close(other(X), node(X), 1e-12)
        weighted(other(X)).backward()
    weighted(node(X)).backward()
    close((twin.constants.c.grad, pickled.constants.c.grad), (node.constants.c.grad,) * 2, 1e-12)
    twin.constants.c.data.mul_(3)  # its own
    assert not torch.allclose(twin(X), node(X))
    weighted(twin(X)).backward()


def test_compiled_model():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), softmax(), torch.nn.Linear(4, 1)).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its own making
        compiled = torch.compile(model, backend="aot_eager")
        mine = torch.autograd.grad(compiled(X).sum(), list(model.parameters()))
    close(mine, torch.autograd.grad(model(X).sum(), list(model.parameters())), 1e-10)
    torch._dynamo.reset()


def test_a_failed_sample_does_not_spoil_its_neighbours():
    node = SymbolicNode(**QUARTIC, solver=Newton(on_failure="nan"))
    spoiled = X.clone()
    spoiled[1, 2] = float("nan")
    spoiled.requires_grad_()
    found = node(spoiled)
    close(found[[0, 2]], node(X)[[0, 2]], 1e-10)
    assert found[1].isnan().all()
    gradient = torch.autograd.grad(found[[0, 2]].sum(), spoiled)[0]
    good = X.clone().requires_grad_()
    close(gradient[[0, 2]], torch.autograd.grad(node(good)[[0, 2]].sum(), good)[0][[0, 2]], 1e-10)


@pytest.mark.parametrize("name", ["pseudo_huber", "total_variation", "simplex_projection", "transport_with_gamma"])
def test_an_ordinary_node_with_the_blocks_of_a_twin(name):
    example = EXAMPLES[name]
    assert not example.constants  # they would have to be inputs
    twin = example.node()
    node, without = Plain(example, twin), Plain(example, twin)
    node.blocks = twin.blocks
    assert isinstance(node, DeclarativeNode)
    inputs = [v.requires_grad_() for v in example.inputs()]
    close(torch.autograd.grad(weighted(node(*inputs)), inputs), torch.autograd.grad(weighted(without(*inputs)), inputs), 1e-9)
    assert verify(node, *example.inputs()).ok


def test_overflow():
    """log Σ exp and log(1 + exp) of hundreds."""
    lse = SymbolicNode(objective=log(total(exp(x[i] + y[i]), i)) + total(y[i] ** 2, i) / 2, variable=y[i], inputs=(x[i],))
    plus = SymbolicNode(objective=total(log(1 + exp(x[i] * y[i])) + y[i] ** 2 / 2, i), variable=y[i], inputs=(x[i],))
    v = (1000 * X).requires_grad_()
    for node in (lse, plus):
        for big in (v, -v):
            found = node(big)
            assert found.isfinite().all()
            assert torch.autograd.grad(weighted(found), v)[0].isfinite().all()


class SolvesByHand(SymbolicNode):
    def solve_kkt(self, inputs, solution, v, w):
        raise NotImplementedError


def test_explain_names_what_solves():
    """A closed form is named where it is what solves, not where a hook or an iterative method does."""
    assert softmax().explain(X).solver == "Schur complement of H, by its own structure"
    by_cg = softmax(differentiation=Implicit(linear_solver=ConjugateGradients())).explain(X)
    assert "conjugate gradients" in by_cg.solver
    statement = {"objective": total(y[i] * log(y[i]) - x[i] * y[i], i), "equality": [total(y[i], i) - 1]}
    by_hand = SolvesByHand(**statement, variable=y[i], inputs=(x[i],)).explain(X)
    assert "solve_kkt" in by_hand.solver
