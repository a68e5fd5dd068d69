"""Small statements that are easily got wrong: entries at fixed indices, products, sums within sums, cases, numbers made of sizes."""

import pytest
import sympy
import torch
from sympy import Abs, KroneckerDelta, Max, Piecewise, Product, Rational, Sum, exp, log, sqrt, tanh

from declarative.symbolic import Cases, SymbolicNode
from tests.symbolic.test_hypothesis import INDICES, A, B, C, X, Y, check, i, j, k, m, n, s


def over(e, *indices):
    return Sum(e, *((a, 0, INDICES[a] - 1) for a in indices))


def times(e, *indices):
    return Product(e, *((a, 0, INDICES[a] - 1) for a in indices))


def huber(v):
    return Cases((v**2 / 2, v < 1), (v - Rational(1, 2), True))


v, M, SQ = sympy.Symbol("y", positive=True), Y[i, j], Y[i, k]
q, q2 = over(Y[i] ** 2 / 2, i), over(M**2, i, j)
STATEMENTS = {
    "one column": (M, q2 + over(Y[i, 0] ** 3, i)),
    "one entry": (Y[i], q + Y[0] ** 3 * Y[m - 1]),
    "columns apart, scaled": (M, over(over(M**2, i) ** 2, j)),
    "the diagonal": (SQ, over(SQ**2, i, k) + over(Y[i, i] ** 3, i)),
    "the transpose": (SQ, over(SQ**2 + Y[i, k] * Y[k, i] * X[i], i, k)),
    "an outer product": (M, q2 + over(over(M * C[j], j) ** 3, i) + over(over(M, i) ** 3, j)),
    "a delta inside": (Y[i], q + over((1 + KroneckerDelta(i, k)) * Y[i] * exp(Y[k]), i, k)),
    "a product": (Y[i], q + times(1 + X[i] * Y[i], i)),
    "a product times a sum": (Y[i], q * times(1 + X[i] * Y[i], i)),
    "a product of sums": (M, q2 + times(over(M, j), i)),
    "a double product": (M, q2 + times(1 + C[j] * M, i, j)),
    "a product of inputs within a sum": (Y[i], q + over(tanh(Y[i] - times(B[i, j], j)), i, j)),
    "a product of what is constant": (M, q2, Y[i, n - 1] + Y[i, n - 1] * times(1 + s * log(C[0] + 1), i)),
    "a product as constraint": (Y[i], q, times(Y[i], i) - 1),
    "a quotient of sums within a product": (Y[i], q + times(1 + over(Y[i] ** 2, j, i) / over(Y[k], k), i, j)),
    "rows weighted, their Schur complement": (M, q2 / 2, over(B[i, j] * M, j) - X[i]),
    "cases within two sums": (Y[i], q + over(X[i] * over(Cases((X[k] * Y[i], X[k] < 1), (2 * Y[i], True)), k) ** 2, i)),
    "Huber's penalty in a family": (M, q2, over(huber(M), j) - 1),
    "Huber's penalty, squared": (M, q2 + over(over(huber(M), j) ** 2, i)),
    "Huber's penalty by an absolute value": (Y[i], q + over(Piecewise(((Y[i] - X[i]) ** 2, Abs(Y[i] - X[i]) < 1), (2 * Abs(Y[i] - X[i]) - 1, True)), i)),
    "a log-sum-exp with a factor": (Y[i], q + log(over(exp(Y[i] / 2), i))),
    "a log-sum-exp with a temperature": (Y[i], q + s * log(over(exp(Y[i] / s), i))),
    "a log-sum-exp of each row": (Y[i], q + over(log(over(exp(A[i, k] * Y[k]), k)), i)),
    "a log-sum-exp of inputs": (Y[i], q + Y[0] * log(over(exp(s / 4), i))),
    "a number of sizes": (Y[i], q + m * log(2 * sympy.pi) / 2),
    "a logarithm of a size": (Y[i], log(m) * q),
    "a logarithm of a count": (Y[i], q + log(over(1, i) + 1)),
    "a power of a count": (Y[i], q * sqrt(over(2, i) + 1)),
    "roots of squares of sums": (Y[i], q, sqrt(Y[0] + over(sqrt(Y[0] + 2) * Y[i], i) ** 2) - 1),
    "a squared hinge": (Y[i], q + over(Max(0, 1 - Y[i] * X[i]) ** 2, i)),
    "names that shadow": (Y[i], q + over(over(B[i, j] * Y[i], i) ** 2 * X[i], i, j)),
    "a scalar": (v, v**2 * over(X[i] * exp(v * X[i]), i), v * X[i] - 1),
}


@pytest.mark.parametrize("what", STATEMENTS)
def test_blocks(what):
    y, objective, *constraints = STATEMENTS[what]
    check(y, objective, constraints, False)


def test_a_squared_hinge_has_a_second_derivative():
    """Of the solution: the derivative of a step is 0."""
    node = SymbolicNode(objective=q + over(Max(0, 1 - Y[i] * X[i]) ** 2, i), variable=Y[i], inputs=(X[i],))
    x = torch.tensor([[0.5, -0.7, 0.9]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(node, x)


def test_a_product_of_integers():
    """Cases whose values are all whole numbers are of the inputs' dtype."""
    node = SymbolicNode(objective=q * 2 + over(Piecewise((1, X[i] > 1), (2, True)) * A[i, k] * Y[i] * Y[k], i, k), variable=Y[i], inputs=(X[i], A[i, k]))
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([[0.5, 1.7, 0.9]], dtype=dtype, requires_grad=True)
        node(x, 0.1 * torch.eye(3, dtype=dtype)[None]).sum().backward()
        assert x.grad.dtype == dtype
