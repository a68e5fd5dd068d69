"""Which dimension is the batch, how tensors lie in memory, and which dtype they have."""

import pytest
import torch

from tests.conformance.cases import case, close, every_problem, flat, gradients, loss, weights


def moved(example, places):
    """The inputs with the batch dimension at these places, and the in_dims that say so."""
    inputs, dims = [], []
    for x, dim, place in zip(example.inputs, example.in_dims, places, strict=True):
        where = place if dim is None or -x.ndim <= place < x.ndim else 0
        inputs.append(x if dim is None else x.movedim(0, where).contiguous())
        dims.append(None if dim is None else where)
    return tuple(inputs), tuple(dims)


@every_problem
@pytest.mark.parametrize("place", [1, -1])
def test_batch_dimension_elsewhere(name, place):
    """y comes batch first all the same, and gradients have the shape of the inputs."""
    example = case(name)
    inputs, dims = moved(example, [place] * len(example.inputs))
    close(flat(example.node(*inputs, in_dims=dims)), example.y(*example.inputs), 1e-12)
    found = gradients(lambda *x: loss(flat(example.node(*x, in_dims=dims))), inputs)
    expected = gradients(lambda *x: loss(example.y(*x)), example.inputs)
    for mine, theirs, dim in zip(found, expected, dims, strict=True):
        close(mine, theirs if dim is None else theirs.movedim(0, dim), 1e-11)


def test_one_int_for_all_inputs():
    example = case("row_sums")
    X, r = example.inputs
    close(example.node(X.movedim(0, -1), r.T, in_dims=-1), example.node(X, r), 1e-13)
    close(example.node(X.movedim(0, 2), r, in_dims=(2, 0)), example.node(X, r), 1e-13)
    close(example.node(X.movedim(0, 1), r.T, in_dims=1), example.node(X, r), 1e-13)


def layouts(x):
    """The same numbers, laid out differently."""
    padded = torch.zeros(*x.shape, 2, dtype=x.dtype)
    padded[..., 0] = x
    transposed = x.movedim(0, -1).contiguous().movedim(-1, 0)
    return [padded[..., 0], transposed, x.flip(0).flip(0)]


@every_problem
def test_memory_layout_does_not_matter(name):
    example = case(name)
    y, slopes = example.y(*example.inputs), gradients(lambda *x: loss(example.y(*x)), example.inputs)
    for inputs in zip(*(layouts(x) for x in example.inputs), strict=True):
        close(example.y(*inputs), y, 1e-12)
        variables = [x.detach().requires_grad_() for x in inputs]
        close(torch.autograd.grad(loss(example.y(*variables)), variables), slopes, 1e-11)


@every_problem
def test_expanded_inputs(name):
    """One instance seen several times through stride zero."""
    example = case(name)
    one = example.take(slice(1, 2))
    wide = tuple(x if dim is None else x.expand(3, *x.shape[1:]) for x, dim in zip(one.inputs, one.in_dims, strict=True))
    repeated = one.take(torch.tensor([0, 0, 0]))
    close(example.y(*wide), repeated.y(*repeated.inputs), 1e-12)
    variables = [x.detach().clone().requires_grad_() for x in one.inputs]

    def value(expand):
        inputs = [x if dim is None else expand(x) for x, dim in zip(variables, one.in_dims, strict=True)]
        return loss(flat(example.node(*inputs, in_dims=one.in_dims)))

    by_stride = torch.autograd.grad(value(lambda x: x.expand(3, *x.shape[1:])), variables)
    close(by_stride, torch.autograd.grad(value(lambda x: torch.cat([x, x, x])), variables), 1e-11)


@every_problem
def test_cotangents_of_any_layout(name):
    example = case(name)
    variables = [x.requires_grad_() for x in example.inputs]
    y = example.y(*variables)
    v = weights(y.shape)
    expected = torch.autograd.grad(y, variables, v, retain_graph=True)
    close(torch.autograd.grad(y, variables, v.T.contiguous().T, retain_graph=True), expected, 1e-12)
    ones = torch.autograd.grad(y, variables, torch.ones(y.shape[0], 1, dtype=y.dtype).expand_as(y), retain_graph=True)
    close(ones, torch.autograd.grad(y.sum(), variables), 1e-12)


@every_problem
def test_float32(name):
    """Close to float64, and everything stays float32."""
    exact, single = case(name), case(name, dtype=torch.float32, polish=0)
    s = single.node.solution(*single.inputs, in_dims=single.in_dims)
    y = flat(s.y)
    assert {t.dtype for t in (y, s.equality_multipliers, s.inequality_multipliers, s.stationarity, s.violation)} == {torch.float32}
    close(y.double(), exact.y(*exact.inputs), 1e-4)
    found = gradients(lambda *leaves: loss(single.y(*leaves)), single.leaves)
    for mine, theirs in zip(found, gradients(lambda *leaves: loss(exact.y(*leaves)), exact.leaves), strict=True):
        assert mine.dtype == torch.float32
        close(mine.double(), theirs, 2e-3)


@every_problem
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision(name, dtype):
    """Solved in float32 inside: as exact as the rounded inputs and outputs allow."""
    half = case(name, dtype=dtype, polish=0)
    exact = case(name)
    rounded = exact.with_inputs(*(x.double() for x in half.inputs))
    for p, q in zip(rounded.node.parameters(), half.node.parameters(), strict=True):
        p.data = q.data.double()
    leaves = [leaf.requires_grad_() for leaf in half.leaves]
    y = half.y(*leaves)
    assert y.dtype == dtype
    allowed = 2 * torch.finfo(dtype).eps
    close(y.double(), rounded.y(*rounded.inputs), allowed)
    v = weights(y.shape)
    found = torch.autograd.grad(y, leaves, v.to(dtype))
    expected = gradients(lambda *x: (v.to(dtype).double() * rounded.y(*x)).sum(), rounded.leaves)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == dtype
        scale = max(1.0, float(theirs.abs().max()))
        close(mine.double() / scale, theirs / scale, 4 * allowed)


def test_autocast_does_not_reach_inside():
    example = case("quadratic_program", dtype=torch.float32)
    plain = example.y(*example.inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = example.y(*example.inputs)
    assert inside.dtype == torch.float32
    close(inside, plain, 1e-6)
