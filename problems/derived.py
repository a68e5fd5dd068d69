"""Statements in index notation, whose derivatives are derived (`SymbolicNode`): one for each structure that is found.

    softmax          min Σ y_i log y_i − x_i y_i  s.t. Σ y_i = 1                      H diagonal, S a number
    transport        entropic, 2 x 2                                                  H diagonal, S of row and column sums, one equation left out
    smoothing        min ½ Σ (y_i − x_i)² + ½λ Σ (y_{i+1} − y_i)²                     H tridiagonal:  y = (I + λDᵀD)⁻¹ x
    coupled          min ½ Σ (y_i − x_i)² + ½ (Σ y_i)²                                H = I + 11ᵀ:    y = x − 1 Σx / (1 + n)
    regression       min ½ Σ_k (Σ_j A_kj y_j − t_k)² + ½ e^λ Σ y_j²                   H dense, λ learned
    rows             min ½ Σ_ik (Σ_l Q_kl y_il − x_ik)², for each row i alike         H = I ⊗ QᵀQ:    y_i = Q⁻¹ x_i
    simplex          min ½ Σ (y_i − x_i)²  s.t. Σ y_i = 1, y ≥ 0                      inequalities

Source: the closed forms are those of linear least squares, of softmax.py and of optimal_transport.py.
"""

# sympy annotates most results as Basic.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
from __future__ import annotations

import sympy
import torch
from sympy import Eq, Idx, IndexedBase, Sum, exp, log
from torch import Tensor, nn

from declarative import SymbolicNode
from problems.base import Inputs, Problem, cast, normal, uniform
from problems.optimal_transport import GAMMA, two_by_two
from problems.softmax import closed_form as softmax
from problems.softmax import jacobian as softmax_jacobian

SIZE, LAMBDA = 5, 0.7
ROWS, COLUMNS = (0.3, 0.7), (0.6, 0.4)

m, n = sympy.symbols("m n", integer=True, positive=True)
i, j, k, l = Idx("i", n), Idx("j", n), Idx("k", m), Idx("l", m)  # noqa: E741
x, y, A, t, Q, P, M, r, c = map(IndexedBase, ["x", "y", "A", "t", "Q", "P", "M", "r", "c"])
lam, gamma = sympy.symbols("lambda gamma")


def _over(term: sympy.Expr, *indices: Idx) -> sympy.Expr:
    """The sum over whole ranges."""
    return Sum(term, *((s, s.lower, s.upper) for s in indices))


def derived_softmax() -> SymbolicNode:
    """x (n,) -> y (n,)."""
    return SymbolicNode(objective=_over(y[i] * log(y[i]) - x[i] * y[i], i), variable=y[i], inputs=(x[i],), equality=[_over(y[i], i) - 1], start=1 / n)


def derived_transport() -> SymbolicNode:
    """M (m, n) -> P (m, n); r (m,) and c (n,) are held by the node."""
    cost = M[k, j] * P[k, j] + P[k, j] * log(P[k, j] / (r[k] * c[j])) / gamma
    sums = [Eq(_over(P[k, j], j), r[k]), Eq(_over(P[k, j], k), c[j])]
    held = {gamma: GAMMA, r[k]: torch.tensor(ROWS, dtype=torch.float64), c[j]: torch.tensor(COLUMNS, dtype=torch.float64)}
    return SymbolicNode(objective=_over(cost, k, j), variable=P[k, j], inputs=(M[k, j],), equality=sums, constants=held, start=r[k] * c[j])


def smoothing() -> SymbolicNode:
    """x (n,) -> y (n,)."""
    steps = Sum((y[i + 1] - y[i]) ** 2, (i, 0, n - 2))
    return SymbolicNode(objective=_over((y[i] - x[i]) ** 2, i) / 2 + lam * steps / 2, variable=y[i], inputs=(x[i],), constants={lam: LAMBDA})


def coupled() -> SymbolicNode:
    """x (n,) -> y (n,)."""
    return SymbolicNode(objective=_over((y[i] - x[i]) ** 2, i) / 2 + _over(y[i], i) ** 2 / 2, variable=y[i], inputs=(x[i],))


def regression() -> SymbolicNode:
    """A (m, n), t (m,) -> y (n,); λ is a parameter."""
    misfit = _over((_over(A[k, j] * y[j], j) - t[k]) ** 2, k)
    learned = nn.Parameter(torch.tensor(LAMBDA, dtype=torch.float64))
    return SymbolicNode(
        objective=misfit / 2 + exp(lam) * _over(y[j] ** 2, j) / 2, variable=y[j], inputs=(A[k, j], t[k]), constants={lam: learned}
    )  # fmt: skip


def rows_alike() -> SymbolicNode:
    """x (n, m), Q (m, m) -> y (n, m)."""
    misfit = (_over(Q[k, l] * y[i, l], l) - x[i, k]) ** 2
    return SymbolicNode(objective=_over(misfit, i, k) / 2, variable=y[i, l], inputs=(x[i, l], Q[k, l]))


def simplex() -> SymbolicNode:
    """x (n,) -> y (n,)."""
    return SymbolicNode(
        objective=_over((y[i] - x[i]) ** 2, i) / 2, variable=y[i], inputs=(x[i],), equality=[_over(y[i], i) - 1], inequality=[y[i] >= 0], start=1 / n
    )


def vectors(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Anything will do."""
    return cast(dtype, normal(generator, batch, SIZE))


def plans(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """2 x 2 costs."""
    return cast(dtype, uniform(generator, 0.0, 1.0, batch, 2, 2))


def data(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """More equations than unknowns."""
    return cast(dtype, normal(generator, batch, SIZE + 2, SIZE), normal(generator, batch, SIZE + 2))


def systems(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """A matrix near the identity, and four right-hand sides."""
    return cast(dtype, normal(generator, batch, 4, 3), torch.eye(3, dtype=torch.float64) + 0.2 * normal(generator, batch, 3, 3))


def apart(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """No entry of the projection is near zero unless it is zero by far."""
    large = uniform(generator, 0.5, 1.0, batch, 3)
    return cast(dtype, torch.cat([large, uniform(generator, -2.0, -1.0, batch, 2)], 1))


def transported(M: Tensor) -> Tensor:
    """That of optimal_transport.py."""
    return two_by_two(M, *(torch.tensor(sums, dtype=M.dtype).expand(M.shape[0], -1) for sums in (ROWS, COLUMNS)))


def smoothed(x: Tensor) -> Tensor:
    """(I + λDᵀD)⁻¹ x."""
    eye = torch.eye(x.shape[1], dtype=x.dtype)
    D = eye[1:] - eye[:-1]
    return torch.linalg.solve(eye + LAMBDA * D.mT @ D, x.mT).mT


def smoothing_jacobian(x: Tensor) -> Tensor:
    """(I + λDᵀD)⁻¹."""
    return smoothed(torch.eye(x.shape[1], dtype=x.dtype)).expand(x.shape[0], -1, -1)


def regressed(A: Tensor, t: Tensor) -> Tensor:
    """(AᵀA + e^λ I)⁻¹ Aᵀt."""
    eye = torch.eye(A.shape[2], dtype=A.dtype)
    return torch.linalg.solve(A.mT @ A + torch.tensor(LAMBDA, dtype=A.dtype).exp() * eye, (A.mT @ t.unsqueeze(2))).squeeze(2)


def projected(x: Tensor) -> Tensor:
    """The three large entries share what is missing to 1, if that leaves them positive."""
    kept = x[:, :3] - (x[:, :3].sum(1, keepdim=True) - 1) / 3
    return torch.cat([kept, torch.zeros_like(x[:, 3:])], 1)


PROBLEMS = (
    Problem("derived_softmax", derived_softmax, vectors, (0,), softmax, softmax_jacobian, "derived: H diagonal, one constraint"),
    Problem("derived_transport", derived_transport, plans, (0,), transported, None, "derived: row and column sums"),
    Problem("derived_smoothing", smoothing, vectors, (0,), smoothed, smoothing_jacobian, "derived: H tridiagonal"),
    Problem("derived_coupled", coupled, vectors, (0,), lambda x: x - x.sum(1, keepdim=True) / (1 + SIZE), None, "derived: identity and rank one"),
    Problem("derived_regression", regression, data, (0, 0), regressed, None, "derived: H dense, a learned constant"),
    Problem("derived_rows", rows_alike, systems, (0, 0), lambda x, Q: torch.linalg.solve(Q, x.mT).mT, None, "derived: a Kronecker product"),
    Problem("derived_simplex", simplex, apart, (0,), projected, None, "derived: inequalities"),
)
