"""More statements without constraints: entries of y that are coupled, or not."""

import sympy
import torch
from sympy import Idx, Rational, Sum, exp, log, sqrt

from tests.symbolic.statements import F64, A, P, T, a, c, example, gamma, i, j, k, l, lam, mu, n, total, x, y


@example(
    sample=lambda d, n: (20 + 5 * d.normal(n),),
    objective=lambda x, y: torch.logsumexp(x + y, 0) + 0.5 * (y**2).sum(),
    kind="diagonal + low rank",
)
def log_sum_exp():
    return {"objective": log(total(exp(x[i] + y[i]), i)) + total(y[i] ** 2, i) / 2, "variable": y[i], "inputs": (x[i],)}


@example(
    sample=lambda d, n: (d.normal(n), d.uniform(0.5, 1)),
    objective=lambda x, s, y: 0.5 * ((y - x) ** 2).sum() + s * (0.1 + y.diff() ** 2).sqrt().sum(),
    kind="banded",
)
def total_variation():
    steps = Sum(sqrt(Rational(1, 10) + (y[i + 1] - y[i]) ** 2), (i, 0, n - 2))
    return {"objective": total((y[i] - x[i]) ** 2, i) / 2 + lam * steps, "variable": y[i], "inputs": (x[i], lam)}


@example(
    sample=lambda d, n: (d.normal(n), d.uniform(0.5, 1, n)),
    objective=lambda x, a, y: 0.5 * (a * (y - x) ** 2).sum() + (y.diff(n=2) ** 2).sum(),
    kind="banded",
    sizes=((3,), (8,)),
)
def second_differences():
    bends = Sum((y[i + 2] - 2 * y[i + 1] + y[i]) ** 2, (i, 0, n - 3))
    return {"objective": total(a[i] * (y[i] - x[i]) ** 2, i) / 2 + bends, "variable": y[i], "inputs": (x[i], a[i])}


_matrix = {"sample": lambda d, n, m: (d.normal(n, m),), "sizes": ((3, 2), (2, 4))}


@example(objective=lambda x, y: (torch.logsumexp(y, 1) + 0.5 * (y**2).sum(1) - (x * y).sum(1)).sum(), kind="block diagonal", **_matrix)
def rows_apart():
    row = log(total(exp(P[i, j]), j)) + total(P[i, j] ** 2 / 2 - x[i, j] * P[i, j], j)
    return {"objective": total(row, i), "variable": P[i, j], "inputs": (x[i, j],)}


@example(objective=lambda x, y: ((y**2).sum(0) ** 2 / 4).sum() + 0.5 * ((y - x) ** 2).sum(), kind="block diagonal", **_matrix)
def columns_apart():
    column = total(P[i, j] ** 2, i) ** 2 / 4
    return {"objective": total(column, j) + total((P[i, j] - x[i, j]) ** 2, i, j) / 2, "variable": P[i, j], "inputs": (x[i, j],)}


@example(
    sample=lambda d, n, m: (d.positive_definite(n), d.normal(n, m)),
    objective=lambda A, x, y: 0.5 * torch.trace(y.mT @ A @ y) - (x * y).sum(),
    kind="Kronecker",
    sizes=((3, 2), (2, 4)),
)
def trace_quadratic():
    quadratic = total(P[i, j] * A[i, l] * P[l, j], i, l, j) / 2
    return {"objective": quadratic - total(x[i, j] * P[i, j], i, j), "variable": P[i, j], "inputs": (A[i, l], x[i, j])}


@example(
    sample=lambda d, n, m, p: (d.normal(n, m, p),),
    objective=lambda x, y: 0.5 * ((y - x) ** 2).sum() + (y.sum(1) ** 2).sum() / 4,
    kind="Kronecker",
    sizes=((2, 3, 2), (3, 2, 4)),
)
def three_indices():
    sums = total(total(P[i, j, k], j) ** 2, i, k) / 4
    return {"objective": total((P[i, j, k] - x[i, j, k]) ** 2, i, j, k) / 2 + sums, "variable": P[i, j, k], "inputs": (x[i, j, k],)}


@example(
    sample=lambda d, n: (0.1 * d.normal(n, n, n), d.normal(n)),
    objective=lambda t, x, y: torch.einsum("ijk,i,j,k", t, y, y, y) / 6 + (y**4).sum() / 4 + ((y - x) ** 2).sum(),
    kind="dense",
    sizes=((3,), (5,)),
)
def cubic_form():
    q = Idx("q", n)
    form = total(T[i, l, q] * y[i] * y[l] * y[q], i, l, q) / 6
    return {"objective": form + total(y[i] ** 4 / 4 + (y[i] - x[i]) ** 2, i), "variable": y[i], "inputs": (T[i, l, q], x[i])}


@example(sample=lambda d: (d.normal(),), objective=lambda x, y: y**4 / 4 + y**2 / 2 - x * y, kind="scaled identity", sizes=((), ()))
def scalar():
    v, g = sympy.symbols("v g")
    return {"objective": v**4 / 4 + v**2 / 2 - g * v, "variable": v, "inputs": (g,)}


@example(
    sample=lambda d, n: (d.normal(n), d.uniform(1, 2)),
    objective=lambda x, s, y, c, q: 0.5 * (s * c * (y - x) ** 2).sum() + 0.5 * q.exp() * (y**4).sum(),
    kind="diagonal",
    sizes=((3,), (3,)),
    constants=("c", "mu"),
)
def constants():
    return {
        "objective": total(gamma * c[i] * (y[i] - x[i]) ** 2 + exp(mu) * y[i] ** 4, i) / 2,
        "variable": y[i],
        "inputs": (x[i], gamma),
        "constants": {c[i]: torch.tensor([1.0, 2.0, 3.0], dtype=F64), mu: torch.nn.Parameter(torch.tensor(-0.5, dtype=F64))},
    }
