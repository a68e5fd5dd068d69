"""More statements, with constraints."""

import sympy
import torch
from sympy import Idx, KroneckerDelta, Product, Rational, exp, log

from tests.symbolic import coupled  # noqa: F401 - registers its statements
from tests.symbolic.statements import M, P, Q, T, a, b, c, example, gamma, i, j, k, l, lam, mu, n, p, r, total, x, y, z


def _entropy(v):
    return (v * v.log()).sum()


# Transport

_marginals = {
    "sample": lambda d, n, m: (d.normal(n, m), d.simplex(n), d.simplex(m)),
    "kind": "diagonal",
    "sizes": ((3, 4), (4, 2)),
}
_rows, _columns = total(P[i, j], j) - r[i], total(P[i, j], i) - c[j]


@example(
    objective=lambda M, r, c, y: (M * y).sum() + (y * (y / (r[:, None] * c)).log()).sum() / 2,
    equality=lambda M, r, c, y: torch.cat([y.sum(1) - r, (y.sum(0) - c)[:-1]]),
    complement="marginals",
    **_marginals,
)
def transport():
    cost = total(M[i, j] * P[i, j] + P[i, j] * log(P[i, j] / (r[i] * c[j])) / gamma, i, j)
    return {"objective": cost, "variable": P[i, j], "inputs": (M[i, j], r[i], c[j]), "equality": [_rows, _columns], "constants": {gamma: 2}}


@example(
    objective=lambda M, r, c, g, y: (M * y).sum() + (y * (y / (r[:, None] * c)).log()).sum() / g,
    equality=lambda M, r, c, g, y: torch.cat([y.sum(1) - r, (y.sum(0) - c)[:-1]]),
    complement="marginals",
    **_marginals | {"sample": lambda d, n, m: (d.normal(n, m), d.simplex(n), d.simplex(m), d.uniform(1, 2))},
)
def transport_with_gamma():
    cost = total(M[i, j] * P[i, j] + P[i, j] * log(P[i, j] / (r[i] * c[j])) / gamma, i, j)
    return {"objective": cost, "variable": P[i, j], "inputs": (M[i, j], r[i], c[j], gamma), "equality": [_rows, _columns]}


@example(
    objective=lambda M, r, y: (M * y).sum() + _entropy(y),
    equality=lambda M, r, y: y.sum(1) - r,
    complement="diagonal",
    **_marginals | {"sample": lambda d, n, m: (d.normal(n, m), d.simplex(n))},
)
def one_marginal():
    return {"objective": total(M[i, j] * P[i, j] + P[i, j] * log(P[i, j]), i, j), "variable": P[i, j], "inputs": (M[i, j], r[i]), "equality": [_rows]}


@example(
    objective=lambda M, Q, r, c, y: (M * y).sum() + 0.5 * (y**2).sum(),
    equality=lambda M, Q, r, c, y: torch.cat([(Q * y).sum(1) - r, y.sum(0) - c]),
    complement="eliminated",
    **_marginals | {"kind": "identity", "sample": lambda d, n, m: (d.normal(n, m), d.uniform(1, 2, n, m), d.simplex(n), d.simplex(m))},
)
def weighted_marginals():
    rows = total(Q[i, j] * P[i, j], j) - r[i]
    return {
        "objective": total(M[i, j] * P[i, j] + P[i, j] ** 2 / 2, i, j),
        "variable": P[i, j],
        "inputs": (M[i, j], Q[i, j], r[i], c[j]),
        "equality": [rows, _columns],
    }


@example(
    objective=lambda M, r, y: (M * y).sum() + 0.5 * (y**2).sum(),
    equality=lambda M, r, y: y.sum(1) - r,
    inequality=lambda M, r, y: -y.reshape(-1),
    complement="eliminated",
    **_marginals | {"kind": "identity", "sample": lambda d, n, m: (d.normal(n, m), d.simplex(n))},
)
def quadratic_transport():
    return {
        "objective": total(M[i, j] * P[i, j] + P[i, j] ** 2 / 2, i, j),
        "variable": P[i, j],
        "inputs": (M[i, j], r[i]),
        "equality": [sympy.Eq(total(P[i, j], j), r[i])],
        "inequality": [P[i, j] >= 0],
    }


# Simplices and boxes

_vector = {"sample": lambda d, n: (d.normal(n),)}
_one = total(y[i], i) - 1


@example(objective=lambda x, y: _entropy(y) - x @ y, equality=lambda x, y: y.sum() - 1, kind="diagonal", complement="diagonal", **_vector)
def softmax():
    return {"objective": total(y[i] * log(y[i]) - x[i] * y[i], i), "variable": y[i], "inputs": (x[i],), "equality": [_one]}


@example(objective=lambda x, y: _entropy(y) + _entropy(1 - y) - x @ y, equality=lambda x, y: y.sum() - 2, kind="diagonal", complement="diagonal", **_vector)
def entropic_top_k():
    energy = y[i] * log(y[i]) + (1 - y[i]) * log(1 - y[i]) - x[i] * y[i]
    return {"objective": total(energy, i), "variable": y[i], "inputs": (x[i],), "equality": [total(y[i], i) - mu], "constants": {mu: 2}, "start": mu / n}


@example(
    objective=lambda x, y: 0.5 * ((y - x) ** 2).sum(),
    equality=lambda x, y: y.sum() - 1,
    inequality=lambda x, y: -y,
    kind="identity",
    complement="eliminated",
    **_vector,
)
def simplex_projection():
    return {"objective": total((y[i] - x[i]) ** 2, i) / 2, "variable": y[i], "inputs": (x[i],), "equality": [_one], "inequality": [-y[i]], "start": 1 / n}


@example(
    sample=lambda d, n: (3 * d.normal(n), d.uniform(1, 2, n)),
    objective=lambda x, a, y: 0.5 * ((y - x) ** 2).sum() + (y**4).sum(),
    inequality=lambda x, a, y: torch.cat([y - a, -0.5 - y]),
    kind="diagonal",
    complement="eliminated",
)
def box():
    return {
        "objective": total((y[i] - x[i]) ** 2 / 2 + y[i] ** 4, i),
        "variable": y[i],
        "inputs": (x[i], a[i]),
        "inequality": [y[i] <= a[i], y[i] >= -Rational(1, 2)],
    }


@example(
    sample=lambda d, n: (d.normal(n), d.uniform(1.2, 1.7)),
    objective=lambda x, v, y: _entropy(y) - x @ y,
    equality=lambda x, v, y: torch.stack([y.sum() - 1, (torch.arange(1, len(y) + 1) * y).sum() - v]),
    kind="diagonal",
    complement="eliminated",
)
def mean_of_one_based_index():
    h = Idx("h", (1, n))
    return {
        "objective": total(y[h] * log(y[h]) - x[h] * y[h], h),
        "variable": y[h],
        "inputs": (x[h], z),
        "equality": [total(y[h], h) - 1, total(h * y[h], h) - z],
    }


# Quadratic forms and curved constraints


@example(
    sample=lambda d, n: (d.positive_definite(n), d.normal(n), d.uniform(1, 2, n), d.normal()),
    objective=lambda Q, x, a, v, y: 0.5 * y @ Q @ y + x @ y,
    equality=lambda Q, x, a, v, y: a @ y - v,
    kind="dense",
)
def quadratic_program():
    form = total(y[i] * Q[i, l] * y[l], i, l) / 2 + total(x[i] * y[i], i)
    return {"objective": form, "variable": y[i], "inputs": (Q[i, l], x[i], a[i], z), "equality": [total(a[i] * y[i], i) - z]}


@example(objective=lambda x, y: 0.5 * ((y - x) ** 2).sum(), equality=lambda x, y: (y**2).sum() - 1, kind="scaled identity", complement="diagonal", **_vector)
def sphere():
    return {"objective": total((y[i] - x[i]) ** 2, i) / 2, "variable": y[i], "inputs": (x[i],), "equality": [total(y[i] ** 2, i) - 1], "start": x[i]}


@example(
    sample=lambda d, n: (d.positive_definite(n), d.normal(n)),
    objective=lambda Q, x, y: -0.5 * y @ Q @ y + x @ y,
    equality=lambda Q, x, y: (y**2).sum() - 1,
    kind="dense",
)
def eigenvector():
    form = -total(y[i] * Q[i, l] * y[l], i, l) / 2 + total(x[i] * y[i], i)
    return {"objective": form, "variable": y[i], "inputs": (Q[i, l], x[i]), "equality": [total(y[i] ** 2, i) - 1], "start": -x[i]}


@example(
    sample=lambda d, n: (d.uniform(1, 2, n), d.uniform(1, 2)),
    objective=lambda x, v, y: 0.5 * ((y - x) ** 2).sum(),
    equality=lambda x, v, y: y.prod() - v,
    kind="dense",
)
def product():
    return {
        "objective": total((y[i] - x[i]) ** 2, i) / 2,
        "variable": y[i],
        "inputs": (x[i], z),
        "equality": [Product(y[i], (i, 0, n - 1)) - z],
        "start": x[i],
    }


@example(
    sample=lambda d, n, m: (d.normal(n, m),),
    objective=lambda x, y: 0.5 * ((y - x) ** 2).sum() + ((y @ y.mT - torch.eye(len(y), dtype=y.dtype)) ** 2).sum() / 4,
    equality=lambda x, y: y[0].sum() - 1,
    kind="dense",
    sizes=((2, 3), (3, 4)),
)
def nearly_orthogonal():
    gram = total(P[i, j] * P[l, j], j) - KroneckerDelta(i, l)
    loss = total((P[i, j] - x[i, j]) ** 2, i, j) / 2 + total(gram**2, i, l) / 4
    return {"objective": loss, "variable": P[i, j], "inputs": (x[i, j],), "equality": [total(P[0, j], j) - 1], "start": x[i, j]}


@example(
    sample=lambda d: (d.normal(), d.uniform(1, 2)),
    objective=lambda v, g, y: (torch.cosh(y - v * torch.arange(5))).sum(),
    equality=lambda v, g, y: y.sum() - g,
    kind="diagonal",
    complement="diagonal",
    sizes=((), ()),
)
def given_size():
    return {"objective": total(sympy.cosh(y[k] - lam * k), k), "variable": y[k], "inputs": (lam, z), "equality": [total(y[k], k) - z], "sizes": {p: 5}}


@example(
    sample=lambda d, n, m, p: (d.normal(n, m), 0.3 * d.normal(p, n, m), 0.1 * d.normal(p)),
    objective=lambda x, t, b, y: 0.5 * ((y - x) ** 2).sum() + 0.1 * (0.5 * y).exp().sum(),
    equality=lambda x, t, b, y: torch.einsum("pnm,nm->p", t, y) - b,
    kind="diagonal",
    complement="dense",
    sizes=((3, 2, 2), (2, 4, 3)),
)
def linear_maps():
    return {
        "objective": total((P[i, j] - x[i, j]) ** 2 / 2 + exp(P[i, j] / 2) / 10, i, j),
        "variable": P[i, j],
        "inputs": (x[i, j], T[k, i, j], b[k]),
        "equality": [total(T[k, i, j] * P[i, j], i, j) - b[k]],
    }
