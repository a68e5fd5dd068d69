"""Several threads may use one node at the same time: it keeps nothing between calls."""

import threading

import pytest
import torch

from tests.conformance.cases import case, close, loss

pytestmark = pytest.mark.usefixtures("shapes_unchecked")

THREADS, REPEATS = 3, 10


def together(work):
    """work(i) in threads that start at once; what each raised is raised here."""
    barrier, errors, outcomes = threading.Barrier(THREADS), [], [[] for _ in range(THREADS)]

    def run(i):
        try:
            barrier.wait(timeout=60)
            for _ in range(REPEATS):
                outcomes[i].append(work(i))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]
    assert all(len(found) == REPEATS for found in outcomes)
    return outcomes


@pytest.mark.parametrize("name", ["learned_energy", "simplex", "idle_input", "redundant"])
@pytest.mark.parametrize("order", [1, 2])
def test_one_node_in_several_threads(name, order):
    """Values and gradients, of the parameters too, are those of a thread alone; each thread has its own instances."""
    examples = [case(name, batch=2 + i, seed=i) for i in range(THREADS)]
    node = examples[0].node
    parameters = list(node.parameters())

    def work(i):
        inputs = [x.clone().requires_grad_() for x in examples[i].inputs]
        y = node(*inputs, in_dims=examples[i].in_dims)
        variables = [*inputs, *parameters]
        found = torch.autograd.grad(loss(y), variables, create_graph=order > 1, allow_unused=True, materialize_grads=True)
        if order > 1:
            total = sum(g.square().sum() for g in found)
            found = torch.autograd.grad(total, variables, allow_unused=True, materialize_grads=True)
        return [y.detach(), *found]

    alone = [work(i) for i in range(THREADS)]
    for i, outcomes in enumerate(together(work)):
        for outcome in outcomes:
            close(outcome, alone[i], 1e-12)


def test_transforms_in_several_threads():
    """torch.func in each thread, all through one node; its parameters stay what they were."""
    node = case("learned_energy").node
    before = [p.detach().clone() for p in node.parameters()]
    x = case("learned_energy", batch=2).inputs[0]

    def work(i):
        def value(z):
            return loss(node(z * (1 + i)))

        return [torch.func.grad(value)(x), torch.func.vmap(torch.func.grad(lambda z: loss(node(z * (1 + i), in_dims=None))))(x)]

    alone = [work(i) for i in range(THREADS)]
    for i, outcomes in enumerate(together(work)):
        for outcome in outcomes:
            close(outcome, alone[i], 1e-12)
    for p, q in zip(node.parameters(), before, strict=True):
        assert torch.equal(p, q)
