"""A sample that fails is marked and named, and its neighbours do not notice."""

import warnings

import pytest
import torch

from declarative import SolverError, SolverWarning, Status
from tests.conformance.cases import case, close, every_problem, flat, gradients, loss, with_policy


def spoilt(example, sample=1):
    """The same instances, with NaN in the first batched input of one sample."""
    k = next(k for k, dim in enumerate(example.in_dims) if dim == 0)
    inputs = list(example.inputs)
    inputs[k] = inputs[k].clone()
    inputs[k][sample] = torch.nan
    return example.with_inputs(*inputs)


def kept_loss(example, keep):
    return lambda *leaves: torch.stack([loss(row) for row in example.y(*leaves)[keep]]).sum()


@every_problem
def test_nan_leaves_its_neighbours_alone(name):
    """Values, multipliers and gradients, those of shared inputs and parameters among them."""
    healthy = with_policy(case(name, batch=4), "nan")
    ill = spoilt(healthy)
    keep = [0, 2, 3]
    s, reference = (e.node.solution(*e.inputs, in_dims=e.in_dims) for e in (ill, healthy))
    assert bool(flat(s.y)[1].isnan().all())
    assert int(s.status[1]) != Status.CONVERGED
    assert s.status[keep].tolist() == [Status.CONVERGED] * 3
    close(flat(s.y)[keep], flat(reference.y)[keep], 1e-12)
    close(s.equality_multipliers[keep], reference.equality_multipliers[keep], 1e-10)
    close(s.inequality_multipliers[keep], reference.inequality_multipliers[keep], 1e-10)
    assert torch.equal(s.active[keep], reference.active[keep])
    found, expected = (gradients(kept_loss(e, keep), e.leaves) for e in (ill, healthy))
    for mine, theirs, dim in zip(found, expected, healthy.leaf_dims, strict=True):
        if dim == 0:
            close(mine[keep], theirs[keep], 1e-11)
            assert torch.equal(mine[1], torch.zeros_like(mine[1]))
        else:
            close(mine, theirs, 1e-11)


@every_problem
def test_a_batch_of_failed_samples(name):
    """Nothing is asked of them: what they share gets zero. Something is asked of one: its gradient, and that of what is shared, is NaN."""
    ill = with_policy(case(name, batch=2), "nan")
    for sample in range(2):
        ill = spoilt(ill, sample)
    assert bool(flat(ill.node.solution(*ill.inputs, in_dims=ill.in_dims).y).isnan().all())
    first = torch.tensor([[1.0], [0.0]])
    unasked, asked = (gradients(lambda *leaves, v=v: (v * flat(ill.y(*leaves))).sum(), ill.leaves) for v in (0 * first, first))
    for nothing, something, dim in zip(unasked, asked, ill.leaf_dims, strict=True):
        assert torch.equal(nothing, torch.zeros_like(nothing))
        assert bool((something[0] if dim == 0 else something).isnan().all())
        if dim == 0:
            assert torch.equal(something[1], torch.zeros_like(something[1]))


@every_problem
def test_nan_leaves_forward_mode_alone(name):
    healthy = with_policy(case(name, batch=4), "nan")
    ill = spoilt(healthy)
    tangents = tuple(torch.ones_like(leaf) for leaf in healthy.leaves)
    keep = [0, 2, 3]
    mine, theirs = (torch.func.jvp(e.y, e.leaves, tangents)[1] for e in (ill, healthy))
    close(mine[keep], theirs[keep], 1e-11)


@pytest.mark.parametrize("name", ["simplex", "sphere", "pooling", "quadratic_program", "learned_energy"])
def test_nan_leaves_second_derivatives_alone(name):
    healthy = with_policy(case(name, batch=4), "nan")
    ill = spoilt(healthy)
    keep = [0, 2, 3]
    found, expected = (gradients(kept_loss(e, keep), e.leaves, order=2) for e in (ill, healthy))
    for mine, theirs, dim in zip(found, expected, healthy.leaf_dims, strict=True):
        close(mine[keep] if dim == 0 else mine, theirs[keep] if dim == 0 else theirs, 1e-10)


@every_problem
def test_a_failed_sample_that_is_used_gives_nan(name):
    """What is undefined is not passed off as a number."""
    ill = spoilt(with_policy(case(name, batch=3), "nan"))
    found = gradients(lambda *x: ill.y(*x).sum(), ill.inputs)
    k = next(k for k, dim in enumerate(ill.in_dims) if dim == 0)
    assert bool(found[k][1].isnan().any())
    assert bool(found[k][[0, 2]].isfinite().all())


@every_problem
def test_failure_is_raised_by_name(name):
    ill = spoilt(case(name, polish=0))
    # A node inside the node fails first, and names members of its own batch.
    message = r"CubicRoot.* 2 of 6 samples \(2, 3\)" if name == "bilevel" else r"1 of 3 samples \(1\)"
    with pytest.raises(SolverError, match=message):
        ill.node(*ill.inputs, in_dims=ill.in_dims)


def test_warning():
    ill = spoilt(with_policy(case("sphere"), "warn"))
    with pytest.warns(SolverWarning, match=r"\(1\)"):
        s = ill.node.solution(*ill.inputs)
    assert int(s.status[1]) != Status.CONVERGED


def test_everything_failed():
    example = with_policy(case("simplex"), "nan")
    x = torch.full_like(example.inputs[0], torch.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        s = example.node.solution(x)
    assert bool(s.y.isnan().all())
    assert not bool((s.status == Status.CONVERGED).any())
