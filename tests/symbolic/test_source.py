"""The exported file: nothing but torch, the node's own gradient, every order, no graph break."""

import ast
import subprocess
import sys

import pytest
import torch

from declarative import SymbolicNode
from tests.conformance.cases import close
from tests.symbolic import constrained  # noqa: F401 - registers its statements
from tests.symbolic.statements import EXAMPLES

every = pytest.mark.parametrize("name", EXAMPLES)


def module(node):
    names = {}
    exec(compile(node.to_source(), "exported.py", "exec"), names)
    return names


def arguments(node, inputs):
    """What `backward` takes at the solution but the cotangents; those; and the node's own gradients."""
    solution = node.solution(*inputs)
    y = solution.y if isinstance(solution.y, tuple) else (solution.y,)
    shapes = node._closed.shapes(y[0].shape[0], tuple(tuple(x.shape[1:]) for x in inputs))
    rows = shapes.split_rows(torch.cat([solution.equality_multipliers, solution.inequality_multipliers], 1)) if shapes.families else []
    held = [getattr(node.constants, a.code) for a in node._statement.constants]
    active = [solution.active] if solution.active.shape[1] else []
    v = [torch.randn(part.shape, generator=torch.Generator().manual_seed(k), dtype=part.dtype) for k, part in enumerate(y)]
    leaves = [*inputs, *(t for t in held if t.requires_grad)]
    gradients = torch.autograd.grad(y, leaves, v, allow_unused=True, materialize_grads=True)
    values = [t.detach() for t in (*inputs, *held, *y, *rows)]
    return values + active, v, gradients


@every
def test_gradient_is_the_nodes(name):
    example = EXAMPLES[name]
    node = example.node()
    inputs = [x.requires_grad_() for x in example.inputs(2, 0)]
    values, v, expected = arguments(node, inputs)
    found = module(node)["backward"](*values, *v)
    count = len(inputs)
    close(found[:count], expected[:count], 1e-8)
    learned = [k for k, a in enumerate(node._statement.constants) if getattr(node.constants, a.code).requires_grad]
    for k, gradient in zip(learned, expected[count:], strict=True):
        mine = found[count + k]
        close(mine if mine.shape == gradient.shape else mine.sum(0), gradient, 1e-8)  # the batch shares it


@every
def test_values_are_the_nodes(name):
    example = EXAMPLES[name]
    node = example.node()
    inputs = example.inputs(2, 1)
    y = node(*inputs)
    held = [getattr(node.constants, c) for c in example.constants]
    names = module(node)
    order = names["objective"].__code__.co_varnames[: names["objective"].__code__.co_argcount]
    codes = [a.code for a in (*node._statement.inputs, *node._statement.constants, *node._statement.variables)]
    given = dict(zip(codes, (*inputs, *held, *(y if isinstance(y, tuple) else (y,))), strict=True))
    found = names["objective"](*(given[name] for name in order))
    expected = [example.objective(*(x[b] for x in inputs), tuple(p[b] for p in y) if isinstance(y, tuple) else y[b], *held) for b in range(2)]
    close(found.expand(2), torch.stack(expected), 1e-10)


@pytest.mark.parametrize("name", ["transport_with_gamma", "pseudo_huber", "simplex_projection", "total_variation"])
def test_second_derivatives_and_no_graph_break(name):
    example = EXAMPLES[name]
    node = example.node()
    inputs = [x.requires_grad_() for x in example.inputs(1, 0)]
    values, v, expected = arguments(node, inputs)
    backward = module(node)["backward"]
    floating = [t.requires_grad_() if t.is_floating_point() else t for t in values]
    assert torch.autograd.gradcheck(lambda *t: backward(*t, *v)[0], floating)
    compiled = torch.compile(backward, fullgraph=True, backend="aot_eager")
    close(compiled(*(t.detach() for t in floating), *v)[0], expected[0], 1e-8)


def test_the_file_needs_nothing_but_torch(tmp_path):
    source = EXAMPLES["transport_with_gamma"].node().to_source()
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [alias.name for node in imports for alias in node.names] == ["torch"]
    (tmp_path / "exported.py").write_text(source, encoding="utf-8")
    code = "import sys, exported; sys.exit('declarative' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0


def test_names_of_the_users_that_the_file_uses_itself():
    """An array called `active`, a size called like a keyword's neighbour: renamed, not confused."""
    import sympy

    n = sympy.Symbol("n", integer=True, positive=True)
    i = sympy.Idx("i", n)
    y, kkt, solved = map(sympy.IndexedBase, ("torch", "kkt", "t1"))
    node = SymbolicNode(
        objective=sympy.Sum((y[i] - kkt[i]) ** 2 + solved[i] * y[i], (i, 0, n - 1)),
        variable=y[i],
        inputs=(kkt[i], solved[i]),
        equality=[sympy.Sum(y[i], (i, 0, n - 1)) - 1],
    )
    inputs = [torch.randn(2, 3, dtype=torch.float64).requires_grad_() for _ in range(2)]
    values, v, expected = arguments(node, inputs)
    close(module(node)["backward"](*values, *v), expected, 1e-10)
