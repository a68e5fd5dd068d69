"""Combinatorial solvers as layers: against enumeration of everything, margins and noise, shapes, threads."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import jacfwd, jacrev, vmap

from declarative.layers import Assignment, Function, IdentitySolver, Ranking, ShortestPath, SpanningTree, TopK

F64 = torch.float64
EDGES = [(0, 1), (1, 2), (0, 2), (2, 3), (1, 3), (3, 4), (0, 4)]
seeds = st.integers(0, 1000)


def weights(*shape, seed=0, positive=False):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=g, dtype=F64) if positive else torch.randn(shape, generator=g, dtype=F64)


def pulled(layer, w, *arguments):
    w = w.detach().clone().requires_grad_()
    y = layer(w, *arguments)
    v = torch.arange(y.numel(), dtype=y.dtype).reshape(y.shape).sin()
    return y.detach(), torch.autograd.grad((y * v).sum(), w)[0]


# Every feasible point, by enumeration


def matchings(n, m):
    found = []
    for small in itertools.permutations(range(max(n, m)), min(n, m)):
        y = torch.zeros(n, m, dtype=F64)
        for i, j in enumerate(small):
            y[(i, j) if n <= m else (j, i)] = 1
        found.append(y)
    return torch.stack(found)


def rankings(n):
    return torch.tensor(list(itertools.permutations(range(1, n + 1))), dtype=F64)


def subsets(n, k):
    return torch.stack([torch.zeros(n, dtype=F64).scatter(0, torch.tensor(c, dtype=torch.int64), 1.0) for c in itertools.combinations(range(n), k)])


def trees(edges, nodes):
    found = []
    for chosen in itertools.combinations(range(len(edges)), nodes - 1):
        group = list(range(nodes))
        for e in chosen:
            a, b = group[edges[e][0]], group[edges[e][1]]
            group = [a if g == b else g for g in group]
        if len(set(group)) == 1:
            found.append(torch.zeros(len(edges), dtype=F64).scatter(0, torch.tensor(chosen), 1.0))
    return torch.stack(found)


def paths(h, w, diagonal):
    steps = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a or b) and (diagonal or not (a and b))]
    found, stack = [], [[(0, 0)]]
    while stack:
        path = stack.pop()
        if path[-1] == (h - 1, w - 1):
            y = torch.zeros(h, w, dtype=F64)
            y[tuple(zip(*path, strict=True))] = 1
            found.append(y)
            continue
        for a, b in steps:
            cell = (path[-1][0] + a, path[-1][1] + b)
            if 0 <= cell[0] < h and 0 <= cell[1] < w and cell not in path:
                stack.append([*path, cell])
    return torch.stack(found)


CASES = {
    "top-k": (TopK(2), (5,), subsets(5, 2), ("max", "min")),
    "nothing": (TopK(0), (4,), subsets(4, 0), ("max", "min")),
    "ranking": (Ranking(), (5,), rankings(5), ("max", "min")),
    "assignment": (Assignment(), (4, 4), matchings(4, 4), ("max", "min")),
    "wide": (Assignment(), (2, 4), matchings(2, 4), ("max", "min")),
    "tall": (Assignment(), (4, 3), matchings(4, 3), ("max", "min")),
    "single": (Assignment(), (1, 1), matchings(1, 1), ("max", "min")),
    "tree": (SpanningTree(EDGES), (7,), trees(EDGES, 5), ("max", "min")),
    "path": (ShortestPath(), (3, 3), paths(3, 3, True), ("min",)),
    "straight path": (ShortestPath(diagonal=False), (3, 4), paths(3, 4, False), ("min",)),
    "row": (ShortestPath(), (1, 4), paths(1, 4, True), ("min",)),
    "cell": (ShortestPath(), (1, 1), paths(1, 1, True), ("min",)),
}
every_case = pytest.mark.parametrize("name", CASES)


@every_case
@given(seed=seeds, levels=st.sampled_from([None, 2, 4]), size=st.sampled_from([1.0, 1e-200, 1e200]))
def test_nothing_feasible_is_better(name, seed, levels, size):
    solver, event, feasible, senses = CASES[name]
    w = weights(3, *event, seed=seed, positive="min" in senses and len(senses) == 1)
    if levels:  # ties, and costs of zero
        w = (w * levels).round()
    for sense in senses:
        y = IdentitySolver(solver, sense)(w * size)
        flat = feasible.flatten(1)
        for row, found in zip(w.flatten(1), y.flatten(1), strict=True):
            assert bool((flat == found).all(1).any())
            best = getattr((flat @ row), sense)()
            assert abs(float(row @ found - best)) <= 1e-12
    if len(senses) == 2 and not levels:
        assert torch.equal(IdentitySolver(solver, "min")(w), IdentitySolver(solver, "max")(-w))


@every_case
def test_the_gradient_is_the_projected_cotangent_and_min_mirrors_max(name):
    solver, event, _, senses = CASES[name]
    w = weights(3, *event, positive=True)
    for sense in senses:
        v = pulled(IdentitySolver(Function(lambda w: w, len(event))), w)[1]
        y, gradient = pulled(IdentitySolver(solver, sense), w)
        assert torch.equal(gradient, v if sense == "max" else -v)
        for projection in ("scale",) if solver.why_not_centre else ("scale", "centre", "standardise"):
            found, gradient = pulled(IdentitySolver(solver, sense, projection), w)
            assert torch.equal(found, y)
            assert bool(gradient.isfinite().all())
    if len(senses) == 2:
        for projection in (None, "scale", "centre", "standardise"):
            low, high = (pulled(IdentitySolver(solver, sense, projection), sign * w) for sense, sign in (("min", 1), ("max", -1)))
            assert torch.equal(low[0], high[0])
            assert torch.allclose(low[1], -high[1], atol=1e-14)


@every_case
def test_batches_layouts_dtypes_and_transforms(name):
    solver, event, _, senses = CASES[name]
    w = weights(2, 3, *event, positive=True)
    layer = IdentitySolver(solver, senses[-1], "scale")
    y, gradient = pulled(layer, w)
    assert y.shape == w.shape
    for i in range(2):
        assert torch.equal(layer(w[i]), y[i])
        assert torch.equal(layer(w[i, 1]), y[i, 1])
    strided = w.movedim(0, -1).contiguous().movedim(-1, 0)
    assert torch.equal(pulled(layer, strided)[0], y)
    assert torch.allclose(pulled(layer, strided)[1], gradient, atol=1e-14)
    assert layer(w[:0]).shape == (0, 3, *event)
    assert torch.equal(vmap(layer)(w), y)
    assert torch.allclose(jacrev(layer)(w[0, 0]), jacfwd(layer)(w[0, 0]), atol=1e-14)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        found, slope = pulled(layer, w.to(dtype))
        assert found.dtype == slope.dtype == dtype
        assert torch.equal(found.double(), layer(w.to(dtype).double()))
    before = w.clone()
    pulled(layer, w)
    assert torch.equal(w, before)


@pytest.mark.parametrize("kind", [Assignment, ShortestPath, lambda workers: SpanningTree(EDGES, workers), lambda workers: Function(np.sign, workers=workers)])
def test_threads_find_the_same(kind):
    w = weights(11, 7, 7, positive=True)
    assert torch.equal(IdentitySolver(kind(workers=3), "min")(w), IdentitySolver(kind(workers=1), "min")(w))
    for workers in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="workers must be a positive int, got"):
            kind(workers=workers)


def test_k_for_each_sample():
    w, k = weights(2, 3, 5), torch.tensor([[1, 2, 3], [0, 5, 4]])
    assert torch.equal(IdentitySolver(TopK(k))(w).sum(-1), k.double())
    assert torch.equal(IdentitySolver(TopK(k[:, :1]), "min")(w).sum(-1), k[:, :1].expand(2, 3).double())  # went by position in the flat batch
    for bad, message in ((k[:, :2], r"broadcast to \(2, 3\)"), (k.flatten(), r"broadcast to \(2, 3\)"), (k - 1, r"1 of 6 samples \(3\), -1"), (k + 1, "6 in")):
        with pytest.raises(ValueError, match=f"k must .*{message}"):
            IdentitySolver(TopK(bad))(w)
    with pytest.raises(ValueError, match="entries, 5, got 6"):
        IdentitySolver(TopK(6))(w)
    assert IdentitySolver(TopK(torch.zeros(0, dtype=torch.int64)))(w[0, :0]).shape == (0, 5)


# Margin and noise


def test_the_target_must_win_by_the_margin():
    target = torch.tensor([1.0, 0.0, 0.0])
    for sense, sign in (("max", 1), ("min", -1)):
        for lead, wins in ((0.9, False), (1.1, True)):
            w = sign * torch.tensor([lead, 0.0, -5.0])
            layer = IdentitySolver(TopK(1), sense, margin=1.0)
            assert bool(layer(w, target)[0] == 1) is wins
            assert bool(layer.eval()(w)[0] == 1)
    layer = IdentitySolver(Assignment(), "min", "standardise", margin=0.2)
    w, target = weights(3, 4, 4), torch.eye(4, dtype=F64)
    z = w - w.mean(1, keepdim=True)
    z = z - z.mean(2, keepdim=True)
    z = z / z.flatten(1).norm(dim=1)[:, None, None]
    assert torch.equal(layer(w, target), IdentitySolver(Assignment(), "min")(z + 0.1 * (2 * target - 1)))
    assert torch.equal(vmap(layer)(w.expand(2, 3, 4, 4), target.expand(2, 3, 4, 4)), layer(w, target).expand(2, 3, 4, 4))
    path = IdentitySolver(ShortestPath(), "min", margin=3.0)  # no cost goes below zero
    assert float((path(weights(3, 3, positive=True), torch.eye(3))).sum()) >= 3


def test_noise_in_training_alone():
    w = weights(40, 6, positive=True)
    layer = IdentitySolver(TopK(2), noise=0.5)
    draws = [layer(w, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(pulled(layer, w)[1], pulled(IdentitySolver(TopK(2)), w)[1])
    assert torch.equal(layer.eval()(w), IdentitySolver(TopK(2))(w))
    chance = IdentitySolver(TopK(1), noise=1.0)(torch.tensor([1.0, 0.0]).expand(20_000, 2), generator=torch.Generator().manual_seed(0)).mean(0)
    assert abs(float(chance[0]) - 0.5 * (1 + math.erf(0.5))) < 0.01  # P(1 + √2 Z > 0)
    y = IdentitySolver(ShortestPath(), "min", noise=2.0)(weights(9, 3, 3, positive=True))
    assert bool((y[:, 0, 0] * y[:, 2, 2] == 1).all())
