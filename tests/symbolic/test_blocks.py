"""Every block of every statement equals what torch.func finds for the statement written by hand."""

import pytest
import torch

from declarative import verify
from tests.conformance.cases import close
from tests.symbolic import constrained  # noqa: F401 - registers its statements
from tests.symbolic.interpreter import compare, node_blocks, reference_blocks
from tests.symbolic.statements import EXAMPLES, Plain

every = pytest.mark.parametrize("name", EXAMPLES)


def parts(y):
    return y if isinstance(y, tuple) else (y,)


@every
def test_blocks_equal_those_written_by_hand(name):
    """At the solution and beside it, at two sizes of one node."""
    example = EXAMPLES[name]
    node = example.node()
    held = tuple(getattr(node.constants, c).detach() for c in example.constants)
    for size in (0, 1):
        inputs = example.inputs(1, size)
        solution = node.solution(*inputs)
        is_tuple = isinstance(solution.y, tuple)
        y = [part[0].detach() * 1.01 + 0.01 for part in parts(solution.y)]
        values = [x[0] for x in inputs]
        count = len(values)
        lambdas = torch.cat([solution.equality_multipliers[0], solution.inequality_multipliers[0] + 0.1]).detach()

        def arranged(*tensors, is_tuple=is_tuple, count=count):
            y = tensors[count:] if is_tuple else tensors[count]
            return (*tensors[:count], y, *held)

        def constraints(*tensors, arranged=arranged):
            functions = [f for f in (example.equality, example.inequality) if f is not None]
            return torch.cat([f(*arranged(*tensors)).reshape(-1) for f in functions]) if functions else tensors[0].new_zeros(0)

        expected = reference_blocks(lambda *tensors, arranged=arranged: example.objective(*arranged(*tensors)), constraints, values, y, lambdas)
        compare(node_blocks(node, values, y, lambdas, is_tuple), expected, 1e-10)


@every
def test_structure(name):
    example = EXAMPLES[name]
    form = example.node().form
    assert form.structure.kind == example.kind, form.structure.obstacle
    assert (form.complement and form.complement.kind) == example.complement
    assert (form.structure.obstacle != "") == (example.kind == "dense")


@every
def test_gradients_equal_those_of_an_ordinary_node(name):
    """And so do those of the learned constants."""
    example = EXAMPLES[name]
    node = example.node()
    plain = Plain(example, node)
    for size in (0, 1):
        inputs = [x.requires_grad_() for x in example.inputs(3, size)]
        leaves = [*inputs, *node.constants.parameters()]
        found = []
        for layer in (node, plain):
            ys = parts(layer(*inputs))
            weights = [torch.randn(part.shape, generator=torch.Generator().manual_seed(1), dtype=part.dtype) for part in ys]
            loss = sum((part * weight).sum() for part, weight in zip(ys, weights, strict=True))
            found.append((ys, torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)))
        (y, mine), (y_plain, theirs) = found
        close(y, y_plain, 1e-9)
        close(mine, theirs, 1e-9)


@every
def test_verify(name):
    example = EXAMPLES[name]
    report = verify(example.node(), *example.inputs(2, 0), directions=1)
    assert report.ok, str(report)
