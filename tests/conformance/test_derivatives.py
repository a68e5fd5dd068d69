"""First derivatives of y: against Jacobians by formula, closed forms, and finite differences of problems solved anew."""

import pytest
import torch

from tests.conformance.cases import (
    CATALOGUE,
    case,
    close,
    every_problem,
    finite_difference,
    flat,
    gradients,
    loss,
    weights,
    with_closed_form,
    with_constraints,
    with_jacobian,
    without_closed_form,
)

pytestmark = pytest.mark.usefixtures("shapes_unchecked")


def first_input_only(example):
    """x ↦ y in y's own shape, as a function of the first input alone."""
    return lambda x: example.node(x, *example.inputs[1:], in_dims=example.in_dims)


@with_jacobian
@pytest.mark.parametrize("transform", [torch.func.jacrev, torch.func.jacfwd], ids=["jacrev", "jacfwd"])
def test_jacobian_by_formula(name, transform):
    """Each sample's own block, and nothing between samples."""
    example = case(name, batch=4)
    x = example.inputs[0]
    full = transform(first_input_only(example))(x)
    own = example.problem.jacobian(*example.inputs)
    y_dims = full.ndim - 1 - x.ndim
    full = full.movedim(1 + y_dims, 1)  # (b, b, *y_shape, *x_shape)
    for i in range(example.batch):
        close(full[i, i], own[i], 1e-9)
        others = [j for j in range(example.batch) if j != i]
        close(full[i, others], torch.zeros_like(full[i, others]), 1e-12)


@with_closed_form
def test_gradient_of_the_closed_form(name):
    example = case(name, batch=5)
    mine = gradients(lambda *x: loss(example.y(*x)), example.inputs)
    theirs = gradients(lambda *x: loss(example.known(*x)), example.inputs)
    for k, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        close(a, b, 1e-9, msg=lambda m, k=k: f"input {k}: {m}")


@with_closed_form
def test_gradient_without_polish(name):
    """As a node comes by default: what its solver leaves is good enough."""
    example = case(name, batch=5, polish=0)
    mine = gradients(lambda *x: loss(example.y(*x)), example.inputs)
    close(mine, gradients(lambda *x: loss(example.known(*x)), example.inputs), 1e-6)


@without_closed_form
def test_finite_differences(name):
    """Every input and every parameter."""
    example = case(name, batch=2)
    found = gradients(lambda *leaves: loss(example.y(*leaves)), example.leaves)
    for k, leaf in enumerate(example.leaves):
        direction = weights(leaf.shape, seed=k + 1)
        expected = finite_difference(lambda *leaves: loss(example.y(*leaves)), example.leaves, k, direction)
        close((found[k] * direction).sum(), expected, 1e-8)


@with_constraints
def test_finite_differences_of_multipliers(name):
    """ν and μ are differentiable too, and in the same backward pass."""
    example = case(name, batch=3)

    def pairing(*leaves):
        s = example.solution(*leaves)
        return sum(loss(part) for part in (s.equality_multipliers, s.inequality_multipliers)) + loss(flat(s.y))

    if name == "redundant":  # only ν₁ + 2ν₂ is unique

        def pairing(*leaves):
            s = example.solution(*leaves)
            return loss(s.equality_multipliers @ torch.tensor([[1.0], [2.0]], dtype=torch.float64))

    found = gradients(pairing, example.leaves)
    for k, leaf in enumerate(example.leaves):
        direction = weights(leaf.shape, seed=k + 1)
        close((found[k] * direction).sum(), finite_difference(pairing, example.leaves, k, direction), 1e-7)


@pytest.mark.parametrize("name", ["sphere", "ball", "softmax", "row_sums", "hyperplane"])
def test_multipliers_by_formula(name):
    """Jacobian of the multipliers against that of their formula, in both modes."""
    formulas = {
        "hyperplane": lambda x: (x.sum(1, keepdim=True) - 1) / x.shape[1],
        "row_sums": lambda x: (x.sum(2) - example.inputs[1]) / x.shape[2],
        "sphere": lambda x: (torch.linalg.vector_norm(x, dim=1, keepdim=True) - 1) / 2,
        "ball": lambda x: ((torch.linalg.vector_norm(x, dim=1, keepdim=True) - 1) / 2).clamp_min(0),
        "softmax": lambda x: x.logsumexp(1, keepdim=True) - 1,
    }
    example = case(name, batch=4)

    def multipliers(x):
        s = example.node.solution(x, *example.inputs[1:], in_dims=example.in_dims)
        return s.inequality_multipliers if name == "ball" else s.equality_multipliers

    expected = torch.func.jacrev(formulas[name])(example.inputs[0])
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        close(transform(multipliers)(example.inputs[0]), expected, 1e-9)


@every_problem
def test_gradcheck(name):
    """torch's own verdict, on reverse and forward mode."""
    example = case(name, batch=2)
    leaves = [leaf.requires_grad_() for leaf in example.leaves]
    assert torch.autograd.gradcheck(example.y, leaves, fast_mode=True, check_forward_ad=True)


def test_every_kind_of_check_applies():
    assert sum(p.closed_form is not None for p in CATALOGUE.values()) >= 12
    assert sum(p.jacobian is not None for p in CATALOGUE.values()) >= 10
    assert any(p.closed_form is None for p in CATALOGUE.values())


@every_problem
def test_unwanted_gradients(name):
    """Asking for one leaf alone gives what asking for all gives, and the others get none."""
    example = case(name)
    together = gradients(lambda *leaves: loss(example.y(*leaves)), example.leaves)
    for k, leaf in list(enumerate(example.leaves))[-2:]:
        x = leaf.detach().clone().requires_grad_()
        rest = [other.detach() for other in example.leaves]
        value = loss(example.y(*rest[:k], x, *rest[k + 1 :]))
        close(torch.autograd.grad(value, x)[0], together[k], 1e-12)
    y = example.node(*example.inputs, in_dims=example.in_dims)
    assert flat(y).requires_grad == bool(example.names)


@every_problem
def test_backward_twice_through_one_graph(name):
    example = case(name)
    variables = [leaf.requires_grad_() for leaf in example.leaves]
    value = loss(example.y(*variables))
    first = torch.autograd.grad(value, variables, retain_graph=True)
    close(torch.autograd.grad(value, variables), first, 1e-13)
