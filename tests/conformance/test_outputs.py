"""Shapes of y: numbers, vectors, matrices, tuples; and nodes inside nodes."""

import pytest
import torch
from torch import nn

from declarative import DeclarativeNode
from problems.learned_energy import LearnedEnergy
from tests.conformance.cases import case, close, finite_difference, flat, gradients, loss, weights

pytestmark = pytest.mark.usefixtures("shapes_unchecked")

F64 = torch.float64


class Shaped(DeclarativeNode):
    """min Σ ¼y⁴ + ½y² − xy for x of any shape: y³ + y = x."""

    def objective(self, x, y):
        return (0.25 * y**4 + 0.5 * y**2 - x * y).sum()

    def initial_guess(self, x):
        return torch.zeros_like(x)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2), (1, 2, 2)])
def test_any_shape(shape):
    node, x = Shaped(), weights((2, *shape)).requires_grad_()
    y = node(x)
    assert y.shape == x.shape
    close(y**3 + y, x, 1e-9)
    (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    close(slope, 1 / (3 * y**2 + 1), 1e-9)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    close(curvature, -6 * y * slope**3, 1e-8)
    assert node(x[0], in_dims=None).shape == shape
    assert torch.func.vmap(node)(x.detach().unsqueeze(1)).shape == (2, 1, *shape)


class Three(DeclarativeNode):
    """y = (a matrix, a number, a vector), coupled by one constraint: their sum is s."""

    def objective(self, x, s, y):
        a, b, c = y
        return 0.5 * (a - x).square().sum() + b**2 + 0.5 * (c - x[0]).square().sum()

    def equality_constraints(self, x, s, y):
        a, b, c = y
        return a.sum() + b + c.sum() - s

    def initial_guess(self, x, s):
        return torch.zeros_like(x), torch.zeros_like(s), torch.zeros_like(x[:, 0])


def test_tuple():
    """With ν = (Σ of the unconstrained minimisers − s) / (Σ of 1/curvature): a = x − ν, b = −ν/2, c = x₀ − ν."""
    node, x, s = Three(), weights((3, 2, 2)), weights((3,), seed=1)

    def known(x, s):
        nu = (x.sum((1, 2)) + x[:, 0].sum(1) - s) / (4 + 0.5 + 2)
        return x - nu[:, None, None], -nu / 2, x[:, 0] - nu[:, None]

    y = node(x, s)
    assert isinstance(y, tuple)
    close(y, known(x, s), 1e-10)
    for pick in (slice(0, 1), slice(1, 2), slice(2, 3), slice(0, 3)):  # a loss of one part alone, and of all
        mine = gradients(lambda x, s, pick=pick: loss(flat(node(x, s)[pick])), (x, s))
        close(mine, gradients(lambda x, s, pick=pick: loss(flat(known(x, s)[pick])), (x, s)), 1e-10)
    jacobians = torch.func.jacfwd(node, argnums=1)(x, s)
    close(jacobians, torch.func.jacfwd(known, argnums=1)(x, s), 1e-10)
    close(node(x[0], s[0], in_dims=None), tuple(part[0] for part in y), 1e-12)


class Outer(DeclarativeNode):
    """min ½‖y − x‖² + ½‖z(y) − t‖², z(y) the minimiser of a learned energy."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.inner = LearnedEnergy()
        self.pull = nn.Parameter(torch.tensor(0.3))

    def objective(self, x, y):
        z = self.inner(y, in_dims=None)
        return 0.5 * (y - x).square().sum() + 0.5 * self.pull.exp() * (z - 0.5).square().sum()

    def initial_guess(self, x):
        return x.clone()


def test_node_in_a_nodes_objective():
    """Gradients reach the inner node's parameters through both problems."""
    node = Outer().double()
    node.polish = 10
    x = weights((2, 3))
    leaves = (x, *(p.detach().clone() for p in node.parameters()))
    names = [name for name, _ in node.named_parameters()]

    def value(x, *parameters):
        return loss(torch.func.functional_call(node, dict(zip(names, parameters, strict=True)), (x,)))

    found = gradients(value, leaves)
    assert all(float(g.abs().max()) > 1e-6 for g in found)
    for k in (0, names.index("pull") + 1, names.index("inner.network.0.weight") + 1):
        direction = weights(leaves[k].shape, seed=k)
        close((found[k] * direction).sum(), finite_difference(value, leaves, k, direction), 1e-7)


def test_cube_by_inverting_a_root():
    """The bilevel problem of the catalogue to the second derivative: y = x³."""
    node = case("bilevel").node
    x = torch.tensor([[0.9, 1.2]], dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(node(x).sum(), x, create_graph=True)
    close(slope, 3 * x**2, 1e-9)
    close(torch.autograd.grad(slope.sum(), x)[0], 6 * x, 1e-8)


def test_chain():
    """A node's output is its own next input: y = x^(1/9)."""
    node = case("cubic_root").node
    x = torch.tensor([0.5, 2.0], dtype=F64, requires_grad=True)
    y = node(node(x))
    for expected in (x ** (-8 / 9) / 9, -8 / 81 * x ** (-17 / 9)):
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        close(y, expected, 1e-10)
