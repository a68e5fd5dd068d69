"""Learned energies and shared inputs, in numbers that can be followed by hand."""

import pytest
import torch
from torch import nn

from declarative import DeclarativeNode
from tests.conformance.cases import case, close, finite_difference, gradients, loss, weights

pytestmark = pytest.mark.usefixtures("shapes_unchecked")

F64 = torch.float64


class Scaled(DeclarativeNode):
    """min ½a‖y − Wx‖² + ½b‖y‖²: y = a/(a + b) Wx, with W and log a parameters and b a buffer."""

    def __init__(self):
        super().__init__()
        self.W = nn.Parameter(weights((2, 3)))
        self.log_a = nn.Parameter(torch.tensor(0.4, dtype=F64))
        self.register_buffer("b", torch.tensor(0.7, dtype=F64))

    def objective(self, x, y):
        return 0.5 * self.log_a.exp() * (y - self.W @ x).square().sum() + 0.5 * self.b * y.square().sum()

    def initial_guess(self, x):
        return x.new_zeros(x.shape[0], 2)


def test_parameters_by_formula():
    node, x = Scaled(), weights((4, 3), seed=1)

    def known(W, log_a):
        return log_a.exp() / (log_a.exp() + node.b) * x @ W.T

    close(node(x), known(node.W, node.log_a), 1e-12)
    for order in (1, 2, 3):
        mine = gradients(lambda W, a: loss(torch.func.functional_call(node, {"W": W, "log_a": a}, (x,))), [node.W, node.log_a], order)
        close(mine, gradients(lambda W, a: loss(known(W, a)), [node.W, node.log_a], order), 1e-10)
    loss(node(x)).backward()
    close([node.W.grad, node.log_a.grad], list(gradients(lambda W, a: loss(known(W, a)), [node.W, node.log_a])), 1e-11)
    frozen = Scaled()
    frozen.W.requires_grad_(False)
    loss(frozen(x)).backward()
    assert frozen.W.grad is None
    close(frozen.log_a.grad, node.log_a.grad, 1e-12)


def test_a_buffer_gets_gradients_too():
    """Where it is made to require them, as a tensor of the statement."""
    node, x = Scaled(), weights((4, 3), seed=1)
    b = torch.tensor(0.7, dtype=F64)
    (g,) = gradients(lambda b: loss(torch.func.functional_call(node, {"b": b}, (x,))), [b])
    a, u = node.log_a.detach().exp(), x @ node.W.detach().T
    (expected,) = gradients(lambda b: loss(a / (a + b) * u), [b])
    close(g, expected, 1e-11)


def test_every_parameter_to_the_second_order():
    """Each parameter of the network against finite differences of the gradient of every other."""
    example = case("learned_energy", batch=2)

    def slope(*leaves):
        return sum((g * weights(g.shape, seed=20)).sum() for g in gradients(lambda *z: loss(example.y(*z)), leaves))

    first = gradients(lambda *z: loss(example.y(*z)), example.leaves)
    second = gradients(lambda *z: loss(example.y(*z)), example.leaves, order=2)
    assert len(example.names) == 4
    for k, leaf in enumerate(example.leaves):
        assert float(first[k].abs().max()) > 1e-4
        for i in range(2):
            direction = weights(leaf.shape, seed=30 + i)
            close((first[k] * direction).sum(), finite_difference(lambda *z: loss(example.y(*z)), example.leaves, k, direction), 1e-8)
            close((second[k] * direction).sum(), finite_difference(slope, example.leaves, k, direction), 1e-7)


def test_tied_weights():
    """One parameter under two names is one leaf, and gets the sum of what both say."""

    class Tied(DeclarativeNode):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(2, 2, bias=False).double()
            self.second = self.first

        def objective(self, x, y):
            return 0.5 * (y - self.first(self.second(x))).square().sum()

        def initial_guess(self, x):
            return torch.zeros_like(x)

    node, x = Tied(), weights((3, 2))
    (found,) = torch.autograd.grad(loss(node(x)), list(node.parameters()))
    (expected,) = gradients(lambda W: loss(x @ W.T @ W.T), [node.first.weight])
    close(found, expected, 1e-10)


def test_shared_matrix():
    """Ridge regression: A and ρ are one for the batch, and their gradient is that of the whole formula."""
    example = case("ridge", batch=5)
    t, A, rho = example.inputs
    mine = gradients(lambda *z: loss(example.node(*z, in_dims=(0, None, None))), (t, A, rho))
    separate = gradients(lambda *z: loss(example.node(*z)), (t, A.expand(5, -1, -1), rho.expand(5)))
    assert [g.shape for g in mine] == [t.shape, A.shape, ()]
    close(mine, (separate[0], separate[1].sum(0), separate[2].sum(0)), 1e-10)
    close(mine, gradients(lambda *z: loss(example.problem.closed_form(*z)), (t, A, rho)), 1e-10)
