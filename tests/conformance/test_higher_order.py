"""Second and third derivatives."""

import pytest
import torch

from tests.conformance.cases import case, close, every_problem, finite_difference, gradients, loss, weights, with_closed_form, without_closed_form

pytestmark = pytest.mark.usefixtures("shapes_unchecked")


@with_closed_form
@pytest.mark.parametrize("order", [2, 3])
def test_derivatives_of_the_closed_form(name, order):
    """In all inputs, mixed derivatives included."""
    example = case(name, batch=3)
    mine = gradients(lambda *x: loss(example.y(*x)), example.inputs, order)
    theirs = gradients(lambda *x: loss(example.known(*x)), example.inputs, order)
    for k, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        close(a, b, 1e-8, msg=lambda m, k=k: f"input {k}: {m}")


@without_closed_form
def test_finite_differences(name):
    """The gradient in a fixed direction is itself differentiated, in every leaf."""
    example = case(name, batch=2)

    def slope(*leaves):
        found = gradients(lambda *x: loss(example.y(*x)), leaves)
        return torch.stack([(g * weights(g.shape, seed=20)).sum() for g in found]).sum()

    second = gradients(lambda *leaves: loss(example.y(*leaves)), example.leaves, order=2)
    for k, leaf in enumerate(example.leaves):
        direction = weights(leaf.shape, seed=k + 1)
        close((second[k] * direction).sum(), finite_difference(slope, example.leaves, k, direction), 1e-7)


@pytest.mark.parametrize("name", ["learned_energy", "pooling"])
def test_third_order_finite_differences(name):
    """Where no closed form exists."""
    example = case(name, batch=2)

    def curvature(*leaves):
        found = gradients(lambda *x: loss(example.y(*x)), leaves, order=2)
        return torch.stack([(g * weights(g.shape, seed=21)).sum() for g in found]).sum()

    third = gradients(lambda *leaves: loss(example.y(*leaves)), example.leaves, order=3)
    for k, leaf in enumerate(example.leaves):
        direction = weights(leaf.shape, seed=k + 1)
        close((third[k] * direction).sum(), finite_difference(curvature, example.leaves, k, direction), 1e-7)


@pytest.mark.parametrize("name", ["sphere", "ball", "quadratic_program", "simplex", "softmax"])
def test_second_order_of_multipliers(name):
    example = case(name, batch=3)

    def pairing(*leaves):
        s = example.solution(*leaves)
        return loss(s.equality_multipliers) + loss(s.inequality_multipliers)

    def slope(*leaves):
        return torch.stack([(g * weights(g.shape, seed=20)).sum() for g in gradients(pairing, leaves)]).sum()

    second = gradients(pairing, example.leaves, order=2)
    for k, leaf in enumerate(example.leaves):
        direction = weights(leaf.shape, seed=k + 1)
        close((second[k] * direction).sum(), finite_difference(slope, example.leaves, k, direction), 1e-7)


@every_problem
def test_gradgradcheck(name):
    example = case(name, batch=2)
    leaves = [leaf.requires_grad_() for leaf in example.leaves]
    assert torch.autograd.gradgradcheck(lambda *x: loss(example.y(*x)), leaves, fast_mode=True)


def test_cubic_root_to_the_third():
    """y = x^⅓, whose derivatives are known and none zero."""
    node = case("cubic_root").node
    x = torch.tensor([0.5, 1.0, 2.0, 8.0], dtype=torch.float64, requires_grad=True)
    y = node(x)
    expected = (x ** (1 / 3), x ** (-2 / 3) / 3, -2 / 9 * x ** (-5 / 3), 10 / 27 * x ** (-8 / 3))
    close(y, expected[0], 1e-12)
    for order in (1, 2, 3):
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        close(y, expected[order], 1e-11)
