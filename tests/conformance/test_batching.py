"""A batch is its samples: values and gradients do not depend on the neighbours, their order or their number."""

import pytest
import torch

from declarative import Status
from tests.conformance.cases import case, close, every_problem, flat, gradients, loss, weights


def row_losses(y):
    """(b,): the same function of each sample."""
    return torch.stack([loss(row) for row in y])


def own_gradients(example):
    """Gradients of the sum over samples, in the inputs only."""
    return gradients(lambda *x: row_losses(example.y(*x)).sum(), example.inputs)


@every_problem
def test_batch_is_a_stack_of_single_instances(name):
    example = case(name)
    y = example.y(*example.inputs)
    s = example.node.solution(*example.inputs, in_dims=example.in_dims)
    for i in range(example.batch):
        close(example.alone(i), y[i], 1e-12)
        alone = example.node.solution(*example.single(i), in_dims=None)
        assert alone.status.shape == ()
        for field in ("inequality_multipliers", "stationarity", "violation"):
            close(getattr(alone, field), getattr(s, field)[i], 1e-9)
        assert torch.equal(alone.active, s.active[i])
        if name != "redundant":
            close(alone.equality_multipliers, s.equality_multipliers[i], 1e-9)


@every_problem
def test_gradients_of_a_batch_are_those_of_single_instances(name):
    """Batched inputs get each sample's own gradient; shared ones get the sum over the samples."""
    example = case(name)
    whole = own_gradients(example)
    alone = []
    for i in range(example.batch):

        def value(*inputs):
            y = example.node(*inputs, in_dims=None)
            return loss(torch.cat([part.reshape(-1) for part in (y if isinstance(y, tuple) else (y,))]))

        alone.append(gradients(value, example.single(i)))
    for k, dim in enumerate(example.in_dims):
        expected = torch.stack([g[k] for g in alone])
        close(whole[k], expected if dim == 0 else expected.sum(0), 1e-11)


@every_problem
def test_neighbours_do_not_matter(name):
    """A sample among others that are harder, easier and more: the same to rounding."""
    example = case(name, batch=6)
    whole, slopes = example.y(*example.inputs), own_gradients(example)
    for index in (torch.tensor([0, 1]), torch.tensor([4, 1, 2])):
        part = example.take(index)
        close(part.y(*part.inputs), whole[index], 1e-12)
        for mine, all_of_them, dim in zip(own_gradients(part), slopes, example.in_dims, strict=True):
            if dim == 0:
                close(mine, all_of_them[index], 1e-12)


@every_problem
def test_order_does_not_matter(name):
    example = case(name, batch=5)
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = example.take(order)
    close(permuted.y(*permuted.inputs), example.y(*example.inputs)[order], 1e-12)
    for mine, before, dim in zip(own_gradients(permuted), own_gradients(example), example.in_dims, strict=True):
        close(mine, before[order] if dim == 0 else before, 1e-12)


@every_problem
def test_batch_of_one(name):
    example = case(name).take(slice(1, 2))
    s = example.node.solution(*example.inputs, in_dims=example.in_dims)
    assert flat(s.y).shape[0] == 1
    assert s.status.tolist() == [Status.CONVERGED]
    close(flat(s.y)[0], example.alone(0), 1e-12)
    for x, g in zip(example.inputs, own_gradients(example), strict=True):
        assert g.shape == x.shape


@every_problem
def test_equal_samples_have_equal_solutions(name):
    example = case(name).take(torch.tensor([1, 1, 1, 1]))
    y = example.y(*example.inputs)
    close(y, y[:1].expand_as(y), 1e-13)


@every_problem
def test_empty_batch(name):
    """Shapes as ever, gradients zero, in every mode."""
    full = case(name)
    example = full.take(slice(0, 0))
    s, one = (e.node.solution(*e.inputs, in_dims=e.in_dims) for e in (example, full))
    parts, others = (s.y, one.y) if isinstance(s.y, tuple) else ((s.y,), (one.y,))
    assert isinstance(s.y, tuple) == isinstance(one.y, tuple)
    for mine, other in zip(parts, others, strict=True):
        assert mine.shape == (0, *other.shape[1:])
        assert mine.dtype == other.dtype
    for field in ("equality_multipliers", "inequality_multipliers", "active", "weakly_active", "status", "iterations", "stationarity", "violation"):
        mine, other = getattr(s, field), getattr(one, field)
        assert mine.shape == (0, *other.shape[1:])
        assert mine.dtype == other.dtype
    variables = [leaf.requires_grad_() for leaf in example.leaves]
    solution = example.solution(*variables)
    value = flat(solution.y).sum() + solution.equality_multipliers.sum() + solution.inequality_multipliers.sum()
    for x, g in zip(variables, torch.autograd.grad(value, variables, create_graph=True), strict=True):
        assert torch.equal(g, torch.zeros_like(x))
    tangents = tuple(torch.ones_like(leaf) for leaf in example.leaves)
    y, dy = torch.func.jvp(example.y, example.leaves, tangents)
    assert dy.shape == y.shape


@every_problem
def test_shared_inputs_get_the_sum(name):
    """An input that the batch shares against one copy of it for each sample."""
    example = case(name)
    inputs = tuple(x[:1].squeeze(0) if dim == 0 else x for x, dim in zip(example.inputs, example.in_dims, strict=True))
    for k in range(len(inputs)):
        others = tuple(0 if j != k else None for j in range(len(inputs)))
        if len(inputs) == 1:
            break
        # The rest of the instances are the sampled ones, so that sharing is of input k alone.
        rest = [x if dim == 0 else x.expand(example.batch, *x.shape) for x, dim in zip(example.inputs, example.in_dims, strict=True)]
        if name == "quadratic_program" and k in (1, 3, 5):
            continue  # its right-hand sides belong to their samples: another's may leave no feasible point or a kink
        arguments = [inputs[k] if j == k else rest[j] for j in range(len(inputs))]
        copies = [inputs[k].expand(example.batch, *inputs[k].shape) if j == k else rest[j] for j in range(len(inputs))]
        shared = gradients(lambda *x, dims=others: row_losses(flat(example.node(*x, in_dims=dims))).sum(), arguments)
        separate = gradients(lambda *x: row_losses(flat(example.node(*x))).sum(), copies)
        for j in range(len(inputs)):
            close(shared[j], separate[j].sum(0) if j == k else separate[j], 1e-10)


@pytest.mark.parametrize("name", ["hyperplane", "ball", "learned_energy", "sphere"])
def test_gradient_of_one_sample_alone(name):
    """A loss that looks at one sample only: the others get exactly nothing."""
    example = case(name, batch=4)
    (g, *_) = gradients(lambda *x: loss(example.y(*x)[2]), example.inputs)
    assert torch.equal(g[[0, 1, 3]], torch.zeros_like(g[[0, 1, 3]]))
    assert float(g[2].abs().max()) > 1e-3


def test_large_batch():
    """Enough samples that whatever is cut into pieces inside is cut."""
    node = case("simplex").node
    example = case("simplex", batch=700)
    close(node(*example.inputs), example.known(*example.inputs), 1e-10)
    x = example.inputs[0].requires_grad_()
    v = weights(x.shape)
    found = torch.autograd.grad((node(x) * v).sum(), x)[0]
    close(found, (example.problem.jacobian(x.detach()) @ v.unsqueeze(2)).squeeze(2), 1e-9)
