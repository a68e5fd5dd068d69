"""A node as a module among others: torch.compile, functional parameters, ensembles, training, saving."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn

from tests.conformance.cases import case, close, gradients, loss, weights
from tests.conformance.test_transforms import some_problems


class Model(nn.Module):
    def __init__(self, node, size):
        super().__init__()
        self.before, self.node, self.after = nn.Linear(4, size), node, nn.Linear(size, 1)

    def forward(self, x):
        return self.after(self.node(torch.tanh(self.before(x)) + 0.1).tanh())


def model(name, size):
    torch.manual_seed(3)
    return Model(case(name).node, size).double()


@pytest.mark.parametrize(("name", "size"), [("simplex", 5), ("learned_energy", 3), ("sphere", 3)])
def test_compiled_model(name, size):
    """The model around the solve is compiled; values and gradients are those of the eager one."""
    eager = model(name, size)
    x = weights((4, 4))
    backend = "aot_eager" if name == "simplex" else "eager"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its own making
        compiled = torch.compile(eager, backend=backend, fullgraph=False)
        mine = torch.autograd.grad(compiled(x).sum(), list(eager.parameters()))
    close(mine, torch.autograd.grad(eager(x).sum(), list(eager.parameters())), 1e-12)
    torch._dynamo.reset()


def test_functional_call():
    """Gradients with respect to parameters that are passed in, those of the node's own included."""
    network = model("learned_energy", 3)
    x = weights((3, 4))
    parameters = {name: p.detach() * 1.1 for name, p in network.named_parameters()}
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    found = torch.func.grad(lambda p: torch.func.functional_call(network, p, (x,)).sum())(parameters)
    twin = copy.deepcopy(network)
    twin.load_state_dict({**twin.state_dict(), **parameters})
    twin(x).sum().backward()
    for name, p in twin.named_parameters():
        close(found[name], p.grad, 1e-11)
    for name, p in network.named_parameters():
        assert torch.equal(p, before[name])
        assert p.grad is None


def test_functional_call_under_forward_mode():
    example = case("learned_energy")
    tangents = tuple(weights(leaf.shape, seed=k) for k, leaf in enumerate(example.leaves))
    _, forward = torch.func.jvp(lambda *leaves: loss(example.y(*leaves)), example.leaves, tangents)
    found = gradients(lambda *leaves: loss(example.y(*leaves)), example.leaves)
    close(forward, sum((g * t).sum() for g, t in zip(found, tangents, strict=True)), 1e-9)


def ensemble(count):
    nodes = []
    for seed in range(count):
        node = case("learned_energy").node
        for k, p in enumerate(node.parameters()):
            p.data = p.data + 0.2 * weights(p.shape, seed=10 * seed + k)
        nodes.append(node)
    return nodes


def test_ensemble_by_stacked_parameters():
    """Values, gradients and second derivatives of each member are those that it has alone."""
    nodes = ensemble(3)
    parameters, buffers = torch.func.stack_module_state(nodes)
    x = weights((2, 3))

    def call(p, b, x):
        return torch.func.functional_call(nodes[0], (p, b), (x,))

    def value(p, b, x):
        return loss(call(p, b, x))

    together = torch.vmap(call, in_dims=(0, 0, None))(parameters, buffers, x)
    slopes = torch.vmap(torch.func.grad(value), in_dims=(0, 0, None))(parameters, buffers, x)
    leaves = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    sum(loss(y) for y in torch.vmap(call, in_dims=(0, 0, None))(leaves, buffers, x)).backward()
    curvature = torch.vmap(torch.func.hessian(value, argnums=2), in_dims=(0, 0, None))(parameters, buffers, x)
    for i, node in enumerate(nodes):
        close(together[i], node(x), 1e-10)
        loss(node(x)).backward()
        for name, p in node.named_parameters():
            close(slopes[name][i], p.grad, 1e-9)
            close(leaves[name].grad[i], p.grad, 1e-9)
        close(curvature[i], torch.func.hessian(lambda x, node=node: loss(node(x)))(x), 1e-9)


@some_problems
def test_copies_and_saved_nodes(name):
    example = case(name)
    y = example.y(*example.inputs)
    file = io.BytesIO()
    torch.save(example.node.state_dict(), file)
    file.seek(0)
    fresh = case(name)
    for p in fresh.node.parameters():
        p.data.zero_()
    fresh.node.load_state_dict(torch.load(file))
    for node in (fresh.node, copy.deepcopy(example.node)):
        found = node(*example.inputs, in_dims=example.in_dims)
        assert torch.equal(found.detach().reshape(y.shape), y.detach())


def test_training_lowers_a_loss():
    """A few steps on a learned energy, whose gradients come from the optimality conditions alone."""
    node = case("learned_energy", polish=0).node
    x = weights((8, 3))
    target = 0.5 * x.roll(1, 1) + 0.2
    optimiser = torch.optim.Adam(node.parameters(), lr=0.05)
    losses = []
    for _ in range(25):
        optimiser.zero_grad()
        value = (node(x) - target).square().mean()
        value.backward()
        optimiser.step()
        losses.append(float(value.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert losses[1] < losses[0]
