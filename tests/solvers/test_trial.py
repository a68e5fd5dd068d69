"""What a trial of the solvers brought to light: each of these was silently wrong, or failed, before."""

import pytest
import torch

from declarative import DeclarativeNode, Status, Unrolled
from declarative.solvers import InteriorPoint, Newton
from tests.conformance.cases import close, weights

pytestmark = pytest.mark.usefixtures("shapes_unchecked")

F64 = torch.float64


def made(f, g=None, h=None, **options):
    methods = {"objective": lambda self, x, y: f(x, y), "initial_guess": lambda self, x: torch.zeros_like(x)}
    if g:
        methods["inequality_constraints"] = lambda self, x, y: g(x, y)
    if h:
        methods["equality_constraints"] = lambda self, x, y: h(x, y)
    return type("Made", (DeclarativeNode,), methods)(**options)


KINKED = {
    "weights": lambda x, y: (0.5 * torch.where(y > x, 0.9, 0.1) * (y - x) ** 2).sum(),
    "pieces": lambda x, y: (0.5 * torch.where(y.abs() > 1, 4.0, 1.0) * (y - x) ** 2).sum(),
    "held": lambda x, y: ((y - x) ** 2 / (1 + (y.detach() - x) ** 2)).sum(),
}


@pytest.mark.parametrize("name", KINKED)
def test_the_hessian_of_another_piece_is_not_kept(name):
    """The minimiser is y = x on every piece; its derivative is 1, whatever the curvature at the start."""
    x = torch.tensor([[1.3, -2.1, 0.7]], dtype=F64, requires_grad=True)
    y = made(KINKED[name], lambda x, y: y - 10, polish=3)(x)
    close(y, x.detach(), 1e-6)
    close(torch.autograd.grad(y.sum(), x)[0], torch.ones_like(x), 1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("beyond", [1e-3, 1e-5, 1e-7])
def test_just_beyond_a_kink(beyond, offset):
    """½(y − x)² + 5 max(y − 1, 0)², alone and beside a sample that is far from the kink."""
    node = made(lambda x, y: offset + (0.5 * (y - x) ** 2 + 5 * torch.where(y > 1, (y - 1) ** 2, 0.0)).sum(), lambda x, y: y - 10)
    for x in (torch.tensor([[1 + beyond]], dtype=F64), torch.tensor([[1 + beyond], [3.0]], dtype=F64)):
        close(node(x), 1 + (x - 1) / 11, 1e-8)


def test_unrolled_steps_follow_the_pieces():
    node = made(lambda x, y: torch.nn.functional.huber_loss(y, x, reduction="sum", delta=0.1) + 0.05 * y @ y, lambda x, y: y - 10, differentiation=Unrolled(25))
    x = 2 * weights((3, 4), 1)
    expected = torch.where(x.abs() * 0.1 / 1.1 > 0.1, x.sign(), x / 1.1)
    close(node(x), expected, 1e-6)


def test_a_neighbour_that_fails_changes_nothing():
    """A non-convex quadratic program with several local minima: each sample ends in its own, whoever is beside it."""
    Q = weights((4, 4), 3)
    Q = Q + Q.T
    node = made(lambda x, y: 0.5 * y @ Q @ y + x @ y, lambda x, y: torch.cat([y - 1, -1 - y]), solver=InteriorPoint(on_failure="nan"))
    x = weights((12, 4), 5)
    alone = torch.cat([node(x[i : i + 1]) for i in range(12)])
    x[3] = torch.nan
    together = node.solution(x)
    keep = torch.arange(12) != 3
    close(together.y[keep], alone[keep], 1e-9)
    assert together.status[3] == Status.NON_FINITE


def test_equations_written_again_as_inequalities():
    """No interior: multipliers grow without bound unless somebody looks; a solution is right or is refused."""
    refused = 0
    for seed in range(12):
        A, root = weights((2, 5), seed), weights((5, 5), 100 + seed)
        Q, y0 = root @ root.T / 5 + torch.eye(5, dtype=F64), weights((5,), 200 + seed)
        node = made(
            lambda x, y, Q=Q: 0.5 * y @ Q @ y + x @ y,
            lambda x, y, A=A, y0=y0: torch.cat([A @ (y - y0), -(A @ (y - y0))]),
            lambda x, y, A=A, y0=y0: A @ (y - y0),
            solver=InteriorPoint(on_failure="nan"),
        )
        x = weights((1, 5), 300 + seed)
        K = torch.cat([torch.cat([Q, A.T], 1), torch.cat([A, torch.zeros(2, 2, dtype=F64)], 1)])
        exact = torch.linalg.solve(K, torch.cat([-x[0], A @ y0]))[:5]
        s = node.solution(x)
        if s.status == Status.CONVERGED:
            close(s.y[0], exact, 1e-6)
            assert float(s.inequality_multipliers.abs().max()) < 1e6
        else:
            refused += 1
    assert refused < 12


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_large_numbers_are_not_infinity(dtype):
    size = 1e6 if dtype == torch.float32 else 1e13
    x = torch.tensor([[1.6, 0.8]], dtype=dtype) * size
    for node in (made(lambda x, y: ((y - x) ** 2).sum()), made(lambda x, y: ((y - x) ** 2).sum(), lambda x, y: -y)):
        close(node(x) / size, x / size, 1e-5)


def test_an_objective_that_is_bounded_is_not_called_unbounded():
    node = made(lambda x, y: (1 / (1 + y)).sum(), solver=Newton(on_failure="nan"))
    assert node.solution(torch.zeros(1, 1, dtype=F64)).status.tolist() != [Status.UNBOUNDED]


SADDLES = {
    "well": (lambda x, y: ((y**2 - 1) ** 2).sum() + 0 * x.sum(), lambda x, y: y - 2),
    "bowl and ridge": (lambda x, y: (y[0] - x[0]) ** 2 - y[1] ** 2, lambda x, y: torch.cat([y - 1, -1 - y])),
    "ridge in a curve": (lambda x, y: (y[0] - x[0]) ** 2 - y[1].cosh(), lambda x, y: torch.cat([y - 1, -1 - y])),
}


@pytest.mark.parametrize("name", SADDLES)
def test_the_interior_point_method_leaves_saddle_points(name):
    f, g = SADDLES[name]
    y = made(f, g)(torch.tensor([[0.3, 0.0]], dtype=F64))
    close(y[0, 1].abs(), torch.tensor(1.0, dtype=F64), 1e-8)


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 1e-3), (F64, 1e-13)])
def test_thousands_of_projections(dtype, digits):
    """Onto the simplex, some of them next to a change of the active set: all solved; in float32 all but a few numbers to rounding."""
    x = torch.as_tensor(weights((2000, 10), 11)).to(dtype)
    s = made(lambda x, y: 0.5 * ((y - x) ** 2).sum(), lambda x, y: -y, lambda x, y: y.sum() - 1).solution(x)
    ordered = x.double().sort(1, descending=True).values
    sums = (ordered.cumsum(1) - 1) / torch.arange(1, 11)
    shift = sums.gather(1, (ordered > sums).sum(1, keepdim=True) - 1)
    close(s.y.double(), (x.double() - shift).clamp_min(0), digits)
    off = (s.y.double() - (x.double() - shift).clamp_min(0)).abs() > 2e-6
    assert int(off.sum()) < 20
