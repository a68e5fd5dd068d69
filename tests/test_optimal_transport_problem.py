"""The worked problem of optimal transport: closed forms against other ways to the same numbers, and what every plan obeys."""

from decimal import Decimal, localcontext
from itertools import pairwise, product

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from problems import catalogue
from problems.optimal_transport import (
    PROBLEMS,
    Transport,
    balanced,
    independent,
    nearly_permutation,
    one_column,
    one_row,
    point_clouds,
    random_costs,
    squared_distances,
    two_by_two,
)
from tests.conformance.cases import close, gradients, loss, weights

# The same statements are solved very often here; other tests check shapes on the way.
pytestmark = pytest.mark.usefixtures("shapes_unchecked")

F64 = torch.float64
HALF = (0.5, 0.5)


def tensors(*values):
    return tuple(torch.as_tensor(value, dtype=F64) for value in values)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def plan(M, r, c, gamma):
    """Solved to rounding."""
    return Transport(gamma, polish=5)(M, r, c)


# Closed forms


def exact(M, r, c, gamma):
    """P at 2×2 by the textbook formula, in so many digits that cancellation does not matter."""
    with localcontext() as context:
        context.prec = 800
        (m11, m12), (m21, m22) = [[Decimal(entry) for entry in row] for row in M]
        r1, r2, b1, gamma = (Decimal(number) for number in (*r, c[0], gamma))
        kappa = (-gamma * (m11 + m22 - m12 - m21)).exp()
        a, b = 1 - kappa, r2 - b1 + kappa * (r1 + b1)
        t = kappa * r1 * b1 / b if a == 0 else ((b * b + 4 * a * kappa * r1 * b1).sqrt() - b) / (2 * a)
        return [[float(t), float(r1 - t)], [float(b1 - t), float(t + r2 - b1)]]


SPREADS = (0.0, 2.0**-30, 0.5, 6.0, 64.0, 640.0)
MARGINALS = ((HALF, HALF), ((0.75, 0.25), (0.25, 0.75)), ((0.25, 0.75), (0.625, 0.375)), ((2**-10, 1 - 2**-10), HALF), ((0.5, 1.5), (1.5, 0.5)))


@pytest.mark.parametrize(("r", "c"), [*MARGINALS, *((c, r) for r, c in MARGINALS[1:])])
def test_two_by_two_to_the_last_digits(r, c):
    """Every entry, the smallest included. All numbers are sums of powers of two, so that what is given is exact."""
    for spread, place in product(SPREADS, range(4)):
        M = [[0.0, 0.0], [0.0, 0.0]]
        M[place // 2][place % 2] = spread / 4
        P = two_by_two(*tensors([M], [r], [c]), 4.0)
        np.testing.assert_allclose(P[0].numpy(), exact(M, r, c, 4.0), rtol=1e-12, atol=0)


@given(seed=st.integers(0, 10**6), gamma=st.sampled_from([0.1, 4.0, 20.0]))
def test_two_by_two_by_root_finding(seed, gamma):
    """The one unknown from the slope of the statement's own objective."""
    M, r, c = random_costs(2, 2)(1, generator(seed), F64)
    (r1, r2), (c1, _) = r[0].tolist(), c[0].tolist()
    node = Transport(gamma)

    def along(t):
        t = torch.as_tensor(t, dtype=F64)
        return torch.stack([torch.stack([t, r1 - t]), torch.stack([c1 - t, r2 - c1 + t])])

    def slope(t):
        return float(torch.func.grad(lambda t: node.objective(M[0], r[0], c[0], along(t)))(torch.as_tensor(t, dtype=F64)))

    low, high = max(0.0, c1 - r2), min(r1, c1)
    edge = 1e-12 * (high - low)
    t = scipy.optimize.brentq(slope, low + edge, high - edge, xtol=1e-15, rtol=1e-14)
    close(two_by_two(M, r, c, gamma)[0], along(t), 1e-12)


SEAMS = [([[0.1, 0.4], [0.2, 0.5]], HALF, (0.3, 0.7)), ([[0.1, 0.7], [0.2, 0.5]], HALF, HALF), ([[0.3, 0.3], [0.3, 0.3]], (0.4, 0.6), (0.6, 0.4))]


@pytest.mark.parametrize("order", [1, 2])
def test_two_by_two_is_smooth_where_its_cases_meet(order):
    """δ = 0, d = 0 and both: finite differences cross from one case to the other."""
    M, r, c = tensors(*([instance[k] for instance in SEAMS] for k in range(3)))
    inputs = [x.requires_grad_() for x in (M, r, c, torch.tensor([4.0, 1.0, 2.0], dtype=F64))]
    check = torch.autograd.gradcheck if order == 1 else torch.autograd.gradgradcheck
    assert check(two_by_two, inputs)


@pytest.mark.parametrize("gamma", [1e3, 1e5, 1e8])
@pytest.mark.parametrize("c", [HALF, (0.4, 0.6)])
def test_two_by_two_far_out(gamma, c):
    """κ underflows: a vertex of the linear program, and finite gradients. At a degenerate one ∂t/∂d = −1/2: halfway between its sides."""
    M, r, c = tensors([[[1.0, 0.0], [0.0, 1.0]]], [HALF], [c])
    P = two_by_two(M, r, c, gamma)
    close(P[0], torch.stack([torch.stack([0 * r[0, 0], r[0, 0]]), torch.stack([c[0, 0], r[0, 1] - c[0, 0]])]), 1e-15)
    slopes = gradients(lambda *x: two_by_two(*x, gamma)[0, 1, 1], (M, r, c))
    close(slopes[0], torch.zeros_like(M), 1e-15)
    # b₁ = Σr − c₂, so d = c₂ − r₁, and P₂₂ = t + d.
    share = 0.5 if float(c[0, 0]) == 0.5 else 1.0
    close(slopes[1:], tensors([[-share, 0.0]], [[0.0, share]]), 1e-9)


def test_gamma_may_be_a_number_a_tensor_or_a_parameter():
    M, r, c = random_costs(2, 3)(3, generator(), F64)
    gamma = torch.tensor(3.0, dtype=F64)
    number, tensor, parameter = (Transport(g, polish=5) for g in (3.0, gamma, nn.Parameter(gamma)))
    assert [name for name, _ in parameter.named_parameters()] == [name for name, _ in tensor.named_buffers()] == ["gamma"]
    assert not list(number.state_dict())
    assert tensor.float().gamma.dtype == torch.float32
    close(tensor.double()(M, r, c), number(M, r, c), 1e-12)
    close(parameter(M, r, c), number(M, r, c), 1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_gamma_by_the_closed_form(order):
    """∂/∂γ together with all other leaves, as a parameter and as a buffer."""
    M, r, c = random_costs(2, 2)(3, generator(), F64)
    gamma = torch.tensor(3.0, dtype=F64)
    expected = gradients(lambda *x: loss(two_by_two(*x)), (M, r, c, gamma), order)
    for node in (Transport(nn.Parameter(gamma), polish=5), Transport(gamma, polish=5)):

        def value(M, r, c, gamma, node=node):
            return loss(torch.func.functional_call(node, {"gamma": gamma}, (M, r, c)))

        close(gradients(value, (M, r, c, gamma), order), expected, 1e-8)
    assert float(expected[3].abs()) > 1e-4


def test_small_gamma():
    """P → r cᵀ, and P = r cᵀ ∘ (1 − γ M̃) + O(γ²), where M̃ is M less its weighted means of rows and columns."""
    M, r, c = random_costs(3, 4)(2, generator(), F64)
    limit = independent(M, r, c)
    close(limit, r.unsqueeze(2) * c.unsqueeze(1), 1e-15)
    rows, columns = M @ c.unsqueeze(2), r.unsqueeze(1) @ M
    centred = M - rows - columns + r.unsqueeze(1) @ rows
    for gamma in (1e-2, 1e-4):
        P = plan(M, r, c, gamma)
        assert float((P - limit).abs().max()) < gamma
        assert float((P - limit * (1 - gamma * centred)).abs().max()) < gamma**2


@pytest.mark.parametrize("gamma", [0.1, 4.0, 50.0])
def test_one_row_or_column(gamma):
    """The marginal itself, whatever it costs."""
    M, r, c = random_costs(1, 5)(2, generator(), F64)
    close(one_row(M, r, c), c.unsqueeze(1), 1e-15)
    close(plan(M, r, c, gamma), c.unsqueeze(1), 1e-12)
    close(one_column(M.mT, c, r), c.unsqueeze(2), 1e-15)
    close(plan(M.mT, c, r, gamma), c.unsqueeze(2), 1e-12)
    close(plan(M[:, :, :1], r, r, gamma), r.unsqueeze(2), 1e-12)


def test_balanced_masses():
    """As a way to treat all sums alike: gradients move by constants, of opposite sign, to ⟨r̄, r⟩ = ⟨c̄, c⟩."""
    M, r, c = random_costs(3, 4)(2, generator(), F64)
    close(balanced(r, c), (r, c), 1e-15)
    close([x.sum(1) for x in balanced(r, 2 * c)], [torch.full((2,), 1.5, dtype=F64)] * 2, 1e-14)
    own = gradients(lambda r, c: loss(plan(M, r, c, 4.0)), (r, c))
    even = gradients(lambda r, c: loss(plan(M, *balanced(r, c), 4.0)), (r, c))
    close((even[0] * r).sum(1), (even[1] * c).sum(1), 1e-12)
    shifts = [mine - theirs for mine, theirs in zip(even, own, strict=True)]
    for shift, other in (shifts, shifts[::-1]):
        close(shift, -other[:, :1].expand_as(shift), 1e-12)


# Samplers


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_instances_are_balanced(problem):
    assert catalogue()[problem.name].sample is problem.sample
    M, r, c = problem.sample(5, generator(), F64)
    assert M.shape == (5, r.shape[1], c.shape[1])
    close(r.sum(1), c.sum(1), 1e-14)
    assert bool((M >= 0).all() & (r > 0).all() & (c > 0).all())
    single = problem.sample(5, generator(), torch.float32)
    close([x.double() for x in single], [M, r, c], 1e-6)


def test_point_clouds_are_squared_distances():
    x, y = weights((2, 3, 4)), weights((2, 5, 4), seed=1)
    close(squared_distances(x, y), torch.cdist(x, y).square(), 1e-13)
    M = point_clouds(9, 8, 2)(3, generator(), F64)[0]
    assert torch.linalg.matrix_rank(M).tolist() == [4] * 3  # d + 2
    assert 0.1 < float(M.mean()) < 2


@pytest.mark.parametrize(("gamma", "off"), [(4.0, 0.2), (8.0, 0.01), (12.0, 3e-4)])
def test_nearly_a_permutation(gamma, off):
    """Each row has one partner, its cheapest; what does not go there falls like exp(−γ)."""
    M, r, c = nearly_permutation(6)(4, generator(), F64)
    P, partner = plan(M, r, c, gamma), M.argmin(2)
    assert torch.equal(partner.sort(1).values, torch.arange(6).expand(4, 6))
    assert torch.equal(c.gather(1, partner), r)
    kept = P.gather(2, partner.unsqueeze(2)).squeeze(2)
    assert off / 100 < float((1 - kept / r).max()) < off


@pytest.mark.parametrize("size", [(30, 2), (2, 30)])
def test_unbalanced_sizes(size):
    M, r, c = random_costs(*size)(2, generator(), F64)
    P = plan(M, r, c, 8.0)
    close((P.sum(2), P.sum(1)), (r, c), 1e-12)


# What every plan obeys


@st.composite
def instances(draw, square=False):
    m = draw(st.integers(1, 5))
    n = m if square else draw(st.integers(1, 5))
    kind = draw(st.sampled_from([random_costs, point_clouds]))
    return (*kind(m, n)(2, generator(draw(st.integers(0, 10**6))), F64), draw(st.sampled_from([0.3, 4.0, 12.0])))


@given(instances())
def test_marginals_and_scaling(instance):
    """Marginals are met, and P = diag(u) exp(−γM) diag(v): the logarithm of P∘exp(γM) is a sum over rows and columns."""
    M, r, c, gamma = instance
    P = plan(M, r, c, gamma)
    assert bool((P > 0).all())
    close((P.sum(2), P.sum(1)), (r, c), 1e-12)
    potentials = P.log() + gamma * M
    close(potentials - potentials[:, :1] - potentials[:, :, :1] + potentials[:, :1, :1], torch.zeros_like(P), 1e-8)


@given(instances(), st.randoms(use_true_random=False))
def test_permuted_rows_and_columns(instance, random):
    """A plan does not know the order, although the statement leaves out the first column; nor which side is called rows."""
    M, r, c, gamma = instance
    P = plan(M, r, c, gamma)
    rows, columns = (torch.tensor(random.sample(range(k), k)) for k in M.shape[1:])
    close(plan(M[:, rows][:, :, columns], r[:, rows], c[:, columns], gamma), P[:, rows][:, :, columns], 1e-10)
    close(plan(M.mT, c, r, gamma), P.mT, 1e-10)


@given(instances(), st.sampled_from([0.1, 10.0]))
def test_constants_and_units(instance, size):
    """M + a 1ᵀ + 1 bᵀ has the plan of M; γ counts in units of 1/M; masses are proportional."""
    M, r, c, gamma = instance
    P = plan(M, r, c, gamma)
    a, b = weights(r.shape, 1).unsqueeze(2), weights(c.shape, 2).unsqueeze(1)
    close(plan(M + a + b, r, c, gamma), P, 1e-10)
    close(plan(a + b, r, c, gamma), independent(M, r, c), 1e-10)
    close(plan(size * M, r, c, gamma / size), P, 1e-10)
    close(plan(M, size * r, size * c, gamma) / size, P, 1e-10)


@given(instances(square=True))
def test_symmetric_costs(instance):
    M, r, _, gamma = instance
    P = plan(M + M.mT, r, r, gamma)
    close(P, P.mT, 1e-10)


@given(instances())
def test_cost_falls_as_gamma_grows(instance):
    """From ⟨r cᵀ, M⟩ down to that of the linear program."""
    M, r, c, _ = instance
    costs = [(P * M).sum((1, 2)) for P in (independent(M, r, c), *(plan(M, r, c, gamma) for gamma in (0.5, 2.0, 8.0)))]
    for before, after in pairwise(costs):
        assert bool((after <= before + 1e-12).all())
    m, n = M.shape[1:]
    marginals = np.vstack([np.kron(np.eye(m), np.ones(n)), np.kron(np.ones(m), np.eye(n))[1:]])
    for i, cost in enumerate(costs[-1]):
        best = scipy.optimize.linprog(M[i].reshape(-1).numpy(), A_eq=marginals, b_eq=torch.cat([r[i], c[i, 1:]]).numpy())
        assert best.fun <= float(cost) + 1e-9
