"""Statements that the tests of several solvers solve."""

import cvxpy
import numpy as np
import torch

from declarative import DeclarativeNode

F64 = torch.float64


class QP(DeclarativeNode):
    """½yᵀQy + cᵀy  s.t.  Ay = b, Gy ≤ d."""

    def objective(self, Q, c, A, b, G, d, y):
        return 0.5 * y @ Q @ y + c @ y

    def equality_constraints(self, Q, c, A, b, G, d, y):
        return A @ y - b

    def inequality_constraints(self, Q, c, A, b, G, d, y):
        return G @ y - d

    def initial_guess(self, Q, c, A, b, G, d):
        return torch.zeros_like(c)


def quadratic_programs(seed, batch=3, m=6, p=2, q=7):
    generator = torch.Generator().manual_seed(seed)
    root, c, A, G, inside, slack = (torch.randn(batch, *shape, generator=generator, dtype=F64) for shape in ((m, m), (m,), (p, m), (q, m), (m,), (q,)))
    feasible = inside.unsqueeze(-1)
    return root @ root.mT / m + 0.1 * torch.eye(m, dtype=F64), 3 * c, A, (A @ feasible).squeeze(-1), G, (G @ feasible).squeeze(-1) + slack.abs()


def kkt_residual(Q, c, A, b, G, d, s):
    """Largest violation of the optimality conditions of a batch."""
    y, nu, mu = s.y, s.equality_multipliers, s.inequality_multipliers
    slope = (Q @ y.unsqueeze(-1) + A.mT @ nu.unsqueeze(-1) + G.mT @ mu.unsqueeze(-1)).squeeze(-1) + c
    h, g = (A @ y.unsqueeze(-1)).squeeze(-1) - b, (G @ y.unsqueeze(-1)).squeeze(-1) - d
    return max(float(part.max()) if part.numel() else 0.0 for part in (slope.abs(), h.abs(), g.clamp_min(0), (-mu).clamp_min(0), (mu * g).abs()))


class Rosenbrock(DeclarativeNode):
    """Curved valley with its minimum at (x, x²)."""

    def objective(self, x, y):
        return (x[0] - y[0]) ** 2 + 100 * (y[1] - y[0] ** 2) ** 2

    def initial_guess(self, x):
        return torch.tensor([-1.2, 1.0], dtype=x.dtype).expand(x.shape[0], 2)


class Box(DeclarativeNode):
    """Σ ½(y − x)² + y⁴/10 with −1 ≤ y ≤ 1: the clipped root of y + 0.4y³ = x."""

    def objective(self, x, y):
        return 0.5 * (y - x).square().sum() + 0.1 * y.pow(4).sum()

    def inequality_constraints(self, x, y):
        return torch.cat([y - 1, -1 - y])

    def initial_guess(self, x):
        return torch.zeros_like(x)


class Free(Box):
    def inequality_constraints(self, x, y):
        return None


class Sphere(Free):
    """The nearest point of the unit sphere: the second term is constant there."""

    def objective(self, x, y):
        return 0.5 * (y - x).square().sum() + (y @ y).square()

    def equality_constraints(self, x, y):
        return y @ y - 1

    def initial_guess(self, x):
        return x


ROOTS = torch.tensor([[1.5, 0.4], [-2.0, 0.1]], dtype=F64)


CONTRADICTIONS = {
    "inequalities": {"inequality_constraints": lambda self, x, y: torch.stack([y.sum() - 1, x[0] - y.sum()])},
    "bounds": {"inequality_constraints": lambda self, x, y: torch.cat([y - 1, x[0] - y])},
    "mixed": {"equality_constraints": lambda self, x, y: y.sum() - 1, "inequality_constraints": lambda self, x, y: x[0] - 1 - y},
    "equalities": {"equality_constraints": lambda self, x, y: torch.stack([y.sum() - 1, (x[0] > 1) * (y.sum() - x[0])])},
}


class DoubleWell(DeclarativeNode):
    """¼y⁴ − ½xy² + y/10, from beside its maximum."""

    def objective(self, x, y):
        return (y**4 / 4 - x * y**2 / 2 + 0.1 * y).sum()

    def initial_guess(self, x):
        return torch.full_like(x, 0.05)


def compare_with_cvxpy(solution, inputs):
    """y and both kinds of multipliers of quadratic programs."""
    for i in range(len(solution.y)):
        Q, c, A, b, G, d = (t[i].numpy() for t in inputs)
        y = cvxpy.Variable(len(c))
        constraints = [A @ y == b, G @ y <= d]
        cvxpy.Problem(cvxpy.Minimize(0.5 * cvxpy.quad_form(y, cvxpy.psd_wrap(Q)) + c @ y), constraints).solve(solver="CLARABEL")
        np.testing.assert_allclose(solution.y[i].detach(), y.value, atol=1e-6)
        np.testing.assert_allclose(solution.equality_multipliers[i].detach(), constraints[0].dual_value, atol=1e-5)
        np.testing.assert_allclose(solution.inequality_multipliers[i].detach(), constraints[1].dual_value, atol=1e-5)
