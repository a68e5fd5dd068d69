"""torch.func: every transform, and transforms of transforms, against plain autograd and against formulas."""

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from tests.conformance.cases import AsSolution, case, close, every_problem, flat, gradients, loss, weights

# Enough inner structure for compositions, and cheap: unconstrained, equality, mixed, parameters, matrix y.
some_problems = pytest.mark.parametrize("name", ["cubic_root", "sphere", "ball", "simplex", "learned_energy", "row_sums", "pooling", "redundant"])


@every_problem
def test_jvp_is_the_transpose_of_vjp(name):
    example = case(name)
    tangents = tuple(weights(leaf.shape, seed=k) for k, leaf in enumerate(example.leaves))
    y, forward = jvp(example.y, example.leaves, tangents)
    again, pull_back = vjp(example.y, *example.leaves)
    v = weights(y.shape, seed=50)
    backward = pull_back(v)
    close(again, y, 1e-13)
    close((v * forward).sum(), sum((g * t).sum() for g, t in zip(backward, tangents, strict=True)), 1e-9)
    plain = gradients(lambda *leaves: (v * example.y(*leaves)).sum(), example.leaves)
    close(backward, plain, 1e-11)


@some_problems
def test_pull_back_after_its_level_has_ended(name):
    """The function that vjp returns: twice, of a gradient, under an outer transform, and mapped."""
    example = case(name, batch=2)
    x, rest = example.leaves[0], example.leaves[1:]

    def f(x):
        return example.y(x, *rest)

    def slope(x):
        return grad(lambda x: loss(f(x)))(x)

    y, pull_back = vjp(f, x)
    v = weights((2, *y.shape), seed=52)
    rows = [gradients(lambda x, c=c: (c * f(x)).sum(), [x])[0] for c in v]
    for c, row in zip((*v, v[0]), (*rows, rows[0]), strict=True):
        close(pull_back(c)[0], row, 1e-10)
    close(vmap(pull_back)(v)[0], torch.stack(rows), 1e-10)

    w = weights(x.shape, seed=53)
    curvature = gradients(lambda x: loss(f(x)), [x], order=1)[0]
    close(vjp(slope, x)[0], curvature, 1e-10)
    variable = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(f(variable)), variable, create_graph=True)
    (product,) = torch.autograd.grad((first * w).sum(), variable)
    close(vjp(slope, x)[1](w)[0], product, 1e-9)
    close(grad(lambda x: (w * vjp(f, x)[1](loss(f(x)) * v[0])[0]).sum())(x), nested(f, x, v[0], w), 1e-9)


def nested(f, x, v, w):
    """∇ of ⟨w, Jᵀ (loss · v)⟩ by plain autograd."""
    x = x.clone().requires_grad_()
    y = f(x)
    (g,) = torch.autograd.grad(y, x, loss(y) * v, create_graph=True)
    return torch.autograd.grad((w * g).sum(), x)[0]


def test_old_vmap_is_refused():
    """torch.autograd's own batching would break inside: the error says what serves instead."""
    example = case("sphere", batch=2)
    x = example.inputs[0].requires_grad_()
    y = example.node(x)
    with pytest.raises(NotImplementedError, match=r"torch\.func\.jacrev"):
        torch.autograd.grad(y, x, torch.stack([y, y]).detach(), is_grads_batched=True)
    with pytest.raises(NotImplementedError, match="vectorize"):
        torch.autograd.functional.jacobian(example.node, x, vectorize=True)
    with pytest.raises(NotImplementedError, match="vectorize"):
        torch.autograd.functional.jacobian(example.node, x, vectorize=True, strategy="forward-mode")


@every_problem
def test_dual_numbers(name):
    """torch.autograd.forward_ad, below torch.func."""
    example = case(name)
    tangents = tuple(weights(leaf.shape, seed=k) for k, leaf in enumerate(example.leaves))
    with torch.autograd.forward_ad.dual_level():
        duals = [torch.autograd.forward_ad.make_dual(leaf, t) for leaf, t in zip(example.leaves, tangents, strict=True)]
        tangent = torch.autograd.forward_ad.unpack_dual(example.y(*duals)).tangent
    close(tangent, jvp(example.y, example.leaves, tangents)[1], 1e-11)


@every_problem
def test_jvp_of_multipliers(name):
    """The whole solution moves together: forward mode against reverse mode."""
    example = case(name)

    def everything(*leaves):
        s = example.solution(*leaves)
        return torch.cat([flat(s.y), s.equality_multipliers, s.inequality_multipliers], 1)

    tangents = tuple(weights(leaf.shape, seed=k) for k, leaf in enumerate(example.leaves))
    out, forward = jvp(everything, example.leaves, tangents)
    v = weights(out.shape, seed=51)
    backward = gradients(lambda *leaves: (v * everything(*leaves)).sum(), example.leaves)
    close((v * forward).sum(), sum((g * t).sum() for g, t in zip(backward, tangents, strict=True)), 1e-9)


@some_problems
def test_second_derivatives_by_every_composition(name):
    example = case(name, batch=2)
    rest = example.leaves[1:]
    if name == "pooling":  # ten numbers a sample are more than is needed here

        def value(shift):
            return loss(example.y(example.inputs[0] + shift, *rest))

        x = torch.zeros(2, 2, 1, dtype=torch.float64)
    else:

        def value(x):
            return loss(example.y(x, *rest))

        x = example.inputs[0]

    def slope(z):
        return torch.autograd.grad(value(z), z, create_graph=True)[0]

    z = x.clone().requires_grad_()
    found = slope(z).reshape(-1)
    plain = torch.stack([torch.autograd.grad(g, z, retain_graph=True)[0] for g in found]).reshape(*x.shape, *x.shape)
    assert float(plain.abs().max()) > 1e-3
    for transform in (hessian(value), jacrev(jacrev(value)), jacfwd(jacrev(value)), jacrev(jacfwd(value)), jacfwd(jacfwd(value)), jacrev(grad(value))):
        close(transform(x), plain, 1e-9)


def test_third_derivatives_by_every_composition():
    node = case("cubic_root").node
    x = torch.tensor(2.0, dtype=torch.float64)
    expected = torch.tensor(10 / 27 * 2.0 ** (-8 / 3), dtype=torch.float64)
    for a in (jacrev, jacfwd):
        for b in (jacrev, jacfwd):
            for c in (jacrev, jacfwd):
                close(a(b(c(lambda x: node(x, in_dims=None))))(x), expected, 1e-10)


@every_problem
def test_vmap_over_one_more_dimension(name):
    """All inputs mapped, those that the batch shares too."""
    examples = [case(name, batch=2, seed=seed) for seed in (1, 2, 3)]
    stacked = tuple(torch.stack(inputs) for inputs in zip(*(e.inputs for e in examples), strict=True))
    together = vmap(examples[0].y)(*stacked)
    for i, example in enumerate(examples):
        close(together[i], example.y(*example.inputs), 1e-11)


@every_problem
def test_vmap_over_some_inputs_only(name):
    """The last input mapped and the others shared by the slices; then the other way round; the mapped dimension not the first."""
    example = case(name, batch=2)
    count = len(example.inputs)
    last = example.inputs[-1]
    moved = torch.stack([last, last + 0.01 * weights(last.shape)], dim=-1)
    for dims in ((*[None] * (count - 1), -1), (*[-1] * (count - 1), None)):
        if all(dim is None for dim in dims):
            continue
        inputs = tuple(x if dim is None else torch.stack([x, 1.01 * x], -1) for x, dim in zip(example.inputs, dims, strict=True))
        inputs = inputs if dims[-1] is None else (*inputs[:-1], moved)
        together = vmap(example.y, in_dims=dims)(*inputs)
        for i in range(2):
            close(together[i], example.y(*(x if dim is None else x[..., i] for x, dim in zip(inputs, dims, strict=True))), 1e-10)


@every_problem
def test_per_sample_gradients(name):
    """vmap of grad of ONE instance over the batch: what a batch gives each sample, shared inputs and parameters included."""
    example = case(name)

    def value(*leaves):
        y = example.solution(*leaves, in_dims=None).y
        return loss(torch.cat([part.reshape(-1) for part in (y if isinstance(y, tuple) else (y,))]))

    everywhere = tuple(range(len(example.leaves)))
    own = vmap(grad(value, argnums=everywhere), in_dims=example.leaf_dims)(*example.leaves)
    whole = gradients(lambda *leaves: sum(loss(row) for row in example.y(*leaves)), example.leaves)
    for mine, total, dim in zip(own, whole, example.leaf_dims, strict=True):
        assert mine.shape[0] == example.batch
        close(mine if dim == 0 else mine.sum(0), total, 1e-10)


@some_problems
def test_vmap_of_second_derivatives(name):
    """vmap(hessian) of one instance along one direction: one for each sample, equal to the double backward pass."""
    example = case(name)
    rest, dims = example.leaves[1:], example.leaf_dims

    def value(t, x, *rest):
        y = example.solution(x + t * weights(x.shape), *rest, in_dims=None).y
        return loss(y.reshape(-1))

    zero = torch.zeros(example.batch, dtype=torch.float64)
    own = vmap(hessian(value), in_dims=(0, *dims))(zero, example.inputs[0], *rest)
    forward = vmap(jvp_twice(value), in_dims=(0, *dims))(zero, example.inputs[0], *rest)
    for i in range(example.batch):
        t = torch.zeros((), dtype=torch.float64, requires_grad=True)
        first = torch.autograd.grad(value(t, *(x if dim is None else x[i] for x, dim in zip(example.leaves, dims, strict=True))), t, create_graph=True)[0]
        second = torch.autograd.grad(first, t)[0]
        close(own[i], second, 1e-9)
        close(forward[i], second, 1e-9)


def jvp_twice(value):
    """t ↦ value″(t) by forward mode in forward mode."""

    def derivative(f):
        return lambda t, *rest: jvp(lambda s: f(s, *rest), (t,), (torch.ones_like(t),))[1]

    return derivative(derivative(value))


@pytest.mark.parametrize("name", ["sphere", "learned_energy", "ridge"])
def test_jacobians_under_vmap(name):
    """vmap(jacrev) = vmap(jacfwd) = the diagonal blocks of the batch's Jacobian."""
    example = case(name)
    dims = example.leaf_dims

    def one(*leaves):
        return example.solution(*leaves, in_dims=None).y

    reverse = vmap(jacrev(one), in_dims=dims)(*example.leaves)
    forward = vmap(jacfwd(one), in_dims=dims)(*example.leaves)
    whole = jacrev(lambda x: example.y(x, *example.leaves[1:]))(example.inputs[0])
    for i in range(example.batch):
        close(reverse[i], whole[i, :, i], 1e-10)
        close(forward[i], whole[i, :, i], 1e-10)


def test_vmap_inside_vmap():
    node = case("simplex").node
    x = weights((2, 3, 2, 5))
    close(vmap(vmap(node))(x), node(x.reshape(12, 5)).reshape(x.shape), 1e-11)
    close(vmap(vmap(vmap(lambda z: node(z, in_dims=None))))(x), node(x.reshape(12, 5)).reshape(x.shape), 1e-11)


def test_vmap_of_the_whole_solution():
    """Masks, counts and residuals come along."""
    example = case("quadratic_program", batch=2)
    module = AsSolution(example.node)
    x = tuple(torch.stack([z, z]) for z in example.inputs)

    def parts(*inputs):
        s = module(*inputs, in_dims=example.in_dims)
        return s.y, s.equality_multipliers, s.inequality_multipliers, s.active, s.status, s.stationarity

    plain = parts(*example.inputs)
    for a, b in zip(vmap(parts)(*x), plain, strict=True):
        close(a, torch.stack([b, b]), 1e-10)
