"""Constraints declared linear, with coefficients that are learned: every gradient is that of the undeclared node."""

import pytest
import torch
from torch import nn

from declarative import DeclarativeNode
from declarative.structure import Constant, Diagonal, Sparse
from tests.conformance.cases import close, weights

F64 = torch.float64
X = torch.as_tensor(weights((3, 5), 1))


class Learned(DeclarativeNode):
    """Its Jacobian hangs on a parameter, its right-hand sides on the input and another one."""

    def __init__(self):
        super().__init__()
        self.row = nn.Parameter(torch.as_tensor(weights((5,), 2)))
        self.bound = nn.Parameter(torch.tensor(0.3, dtype=F64))

    def objective(self, x, y):
        return (y.cosh() - x * y).sum()

    def equality_constraints(self, x, y):
        return self.row.exp() @ y - self.bound * x[0]

    def inequality_constraints(self, x, y):
        return self.row.square()[:2] * y[:2] - self.bound

    def initial_guess(self, x):
        return torch.zeros_like(x)


DECLARED = {
    "constant": {"constraint_structure": Constant()},
    "sparse": {"constraint_structure": Constant(Sparse())},
    "diagonal and constant": {"hessian_structure": Diagonal(), "constraint_structure": Constant()},
}


def derivatives(tags):
    """First and second order, with respect to x and both parameters; of y and of the multipliers."""
    node, x = type("Declared", (Learned,), tags)(), X.clone().requires_grad_()
    leaves = [x, node.row, node.bound]
    s = node.solution(x)
    assert bool(s.active.any())
    parts = [s.y, s.equality_multipliers, s.inequality_multipliers]
    value = sum(((p + 0.3 * p**2) * torch.as_tensor(weights(p.shape, 7 + i))).sum() for i, p in enumerate(parts))
    first = torch.autograd.grad(value, leaves, create_graph=True)
    mixed = sum((g * torch.as_tensor(weights(g.shape, 11 + i))).sum() for i, g in enumerate(first))
    return [g.detach() for g in (*first, *torch.autograd.grad(mixed, leaves))]


@pytest.mark.parametrize("tags", DECLARED.values(), ids=DECLARED)
def test_first_and_second_order(tags):
    for found, expected in zip(derivatives(tags), derivatives({}), strict=True):
        close(found, expected, 1e-9 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("tags", DECLARED.values(), ids=DECLARED)
def test_second_order_after_a_change_of_the_parameter(tags):
    """What is kept of the first Jacobian must not serve the second."""
    declared, plain = (type("Declared", (Learned,), t)() for t in (tags, {}))

    def curvature(node):
        y = node(X)
        (first,) = torch.autograd.grad((y**3).sum(), node.row, create_graph=True)
        return torch.autograd.grad(first.square().sum(), node.row)[0]

    for _ in range(2):
        close(curvature(declared), curvature(plain), 1e-9)
        with torch.no_grad():
            for node in (declared, plain):
                node.row.mul_(0.5)
                node(X)
