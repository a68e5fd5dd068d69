"""What does not fit is refused, in the user's own symbols."""

import pytest
import sympy
import torch
from sympy import Idx, IndexedBase, Max, Piecewise, Rational, Sum, Symbol, exp, log, symbols

from declarative.symbolic import SymbolicNode

n, m = symbols("n m", integer=True, positive=True)
i, j, l = Idx("i", n), Idx("j", m), Idx("l", n)  # noqa: E741
x, y, A, a, P = map(IndexedBase, "xyAaP")
lam, v, g = Symbol("lambda"), Symbol("v"), Symbol("g")
BASE = Sum((y[i] - x[i]) ** 2, (i, 0, n - 1))
ONE = Sum(y[i], (i, 0, n - 1)) - 1


def node(objective=BASE, **changes):
    return SymbolicNode(**{"objective": objective, "variable": y[i], "inputs": (x[i],)} | changes)


def over(e, *indices):
    return Sum(e, *((s, s.lower, s.upper) for s in indices))


REFUSED = {
    "an unknown symbol": (lambda: node(lam * BASE), ValueError, ["lambda is not known", "inputs", "constants={lambda"]),
    "an unknown symbol in a constraint": (lambda: node(equality=[ONE * lam]), ValueError, ["lambda is not known"]),
    "an unknown array": (lambda: node(over(a[i] * y[i] ** 2, i)), ValueError, ["a[i] is not known", "inputs=", "constants={a[i]"]),
    "a wrong number of indices": (lambda: node(over(y[i, l] ** 2, i, l)), ValueError, ["y[i, l] has 2 indices", "y[i] has 1"]),
    "an array that stands alone": (lambda: node(BASE + Symbol("x")), ValueError, ["x has indices", "stands alone"]),
    "an index without a range": (lambda: node(y[Idx("q")] ** 2, variable=y[Idx("q")]), ValueError, ["the index q", "not known", "Idx('q', n)"]),
    "ranges that disagree": (lambda: node(over(y[j] ** 2, j)), ValueError, ["y[j]", "j runs over 0 … m - 1", "0 … n - 1"]),
    "an index that leaves its range": (lambda: node(BASE + over(y[i + 1] ** 2, i)), ValueError, ["y[i + 1]", "1 … n", "0 … n - 1"]),
    "a free index in the objective": (lambda: node((y[i] - x[i]) ** 2), ValueError, ["the objective depends on the index i", "sum over i"]),
    "limits that depend on an index": (
        lambda: node(Sum(y[i] * y[l], (l, 0, i), (i, 0, n - 1))),
        ValueError,
        ["the limits of l", "depend on another index", "Piecewise"],
    ),
    "an inequality among equations": (lambda: node(equality=[y[i] <= 1]), TypeError, ["equality[0] must be an equation", "put it into inequality="]),
    "an equation among inequalities": (lambda: node(inequality=[sympy.Eq(y[i], 1)]), TypeError, ["inequality[0] must be an inequality", "equality="]),
    "Python's ==": (lambda: node(equality=[y[i] == 1]), TypeError, ["equality[0] is False", "==", "sympy.Eq"]),
    "one constraint without a list": (lambda: node(equality=ONE), TypeError, ["equality must be a list", "write ["]),
    "a matrix": (lambda: node(sympy.Matrix([1, 2])), TypeError, ["objective must be a sympy expression", "indices"]),
    "a matrix symbol": (lambda: node(sympy.MatrixSymbol("X", 2, 2)), TypeError, ["objective must be a sympy expression", "indices"]),
    "a string": (lambda: node("y**2"), TypeError, ["objective must be a sympy expression"]),
    "an unknown function": (lambda: node(over(sympy.Function("phi")(y[i]), i)), ValueError, ["phi(", "unknown function"]),
    "a function that torch lacks": (lambda: node(over(sympy.besselj(1, y[i]), i)), ValueError, ["besselj"]),
    "an integral": (lambda: node(sympy.Integral(v * g, g), variable=v, inputs=(Symbol("h"),)), ValueError, ["Integral"]),
    "a derivative": (lambda: node(sympy.Derivative(sympy.sin(v * g), g), variable=v, inputs=(g,)), ValueError, ["Derivative"]),
    "a variable without indices": (lambda: node(variable=y), TypeError, ["variable: y needs its indices"]),
    "no inputs": (lambda: node(v**2, variable=v, inputs=()), ValueError, ["at least one input"]),
    "inputs that are no tuple": (lambda: node(inputs=x[i]), TypeError, ["inputs must be a tuple"]),
    "a name given twice": (lambda: node(inputs=(x[i], x[i])), ValueError, ["x is given twice"]),
    "a repeated index": (lambda: node(inputs=(x[i], A[i, i])), ValueError, ["A[i, i]", "different indices"]),
    "a size that nothing shows": (lambda: node(over(y[j] ** 2, j) * g, variable=y[j], inputs=(g,)), ValueError, ["how large m is", "sizes={m: 5}"]),
    "a variable that does not occur": (lambda: node(over(x[i] ** 2, i)), ValueError, ["y[i] occurs neither in the objective nor in a constraint"]),
    "no constraint": (lambda: node(equality=[over(x[i], i) - 1]), ValueError, ["equality[0]", "does not depend on y[i]"]),
    "a start of the variable": (lambda: node(start=y[i] + 1), ValueError, ["start", "depends on the variable"]),
    "a start of strange indices": (lambda: node(start=x[l]), ValueError, ["start", "no index of y[i]"]),
    "starts for two variables": (lambda: node(start=(x[i], x[i])), ValueError, ["start must have one expression for each of the 1"]),
    "a solve that is none": (lambda: node(solve=3), TypeError, ["solve must be a function"]),
    "a number for an array": (lambda: node(over(a[i] * y[i] ** 2, i), constants={a[i]: 2.0}), TypeError, ["a[i] has indices", "(n,)", "2.0"]),
    "a constant's wrong shape": (lambda: node(over(a[i] * y[i] ** 2, i), constants={a[i]: torch.ones(2, 2)}), ValueError, ["a[i]", "(n,)", "(2, 2)"]),
    "a constant that is a list": (lambda: node(over(a[i] * y[i] ** 2, i), constants={a[i]: [1.0, 2.0]}), TypeError, ["a[i]", "list"]),
    "a size that is no symbol": (lambda: node(sizes={"n": 3}), TypeError, ["sizes must map size symbols"]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_when_it_is_stated(what):
    build, kind, words = REFUSED[what]
    with pytest.raises(kind) as error:
        build()
    for word in words:
        assert word in str(error.value)


ROUGH = {
    "an absolute value": (over(sympy.Abs(y[i]) + y[i] ** 2, i), "Abs(y[i])"),
    "one of a difference": (over(sympy.Abs(y[i] - x[i]), i), "Abs("),
    "a hinge": (over(Max(y[i], 0) + y[i] ** 2, i), "Max(0, y[i])"),
    "a sign": (over(sympy.sign(y[i]) * y[i], i), "sign(y[i])"),
    "a floor": (over(sympy.floor(y[i]) + y[i] ** 2, i), "floor(y[i])"),
    "a step": (over(sympy.Heaviside(y[i]) + y[i] ** 2, i), "Heaviside(y[i])"),
    "a kinked Piecewise": (over(Piecewise((y[i], y[i] > 0), (-2 * y[i], True)) + y[i] ** 2, i), "Piecewise"),
    "a jump": (over(Piecewise((y[i] ** 2 + 1, y[i] > 0), (y[i] ** 2, True)), i), "Piecewise"),
    "a maximum of two": (over(Max(y[i], x[i]), i), "Max(x[i], y[i])"),
    "a kink within a sum": (over(over(Max(0, y[i] - y[l]), l) ** 2, i) + over(Max(0, y[i] - x[i]), i), "Max(0,"),
}


@pytest.mark.parametrize("what", ROUGH)
def test_expressions_without_a_derivative(what):
    objective, word = ROUGH[what]
    with pytest.raises(ValueError, match=r"differentiable|derivative") as error:
        node(objective)
    assert word in str(error.value)


def test_a_constraint_without_a_derivative():
    with pytest.raises(ValueError, match=r"Abs\(y\[i\]\)"):
        node(equality=[over(sympy.Abs(y[i]), i) - 1])


SMOOTH = {
    "a Huber function": over(Piecewise(((y[i] - x[i]) ** 2 / 2, sympy.Abs(y[i] - x[i]) < 1), (sympy.Abs(y[i] - x[i]) - Rational(1, 2), True)), i),
    "a squared hinge": over(Max(0, 1 - y[i] * x[i]) ** 2 + y[i] ** 2, i),
    "an absolute cube": over(sympy.Abs(y[i]) ** 3 + y[i] ** 2, i),
    "an absolute value of the input": over(sympy.Abs(x[i]) * y[i] ** 2, i),
    "a smoothed absolute value": over(sympy.sqrt(y[i] ** 2 + Rational(1, 100)) + y[i] ** 2, i),
    "cases of the input": over(Piecewise((1, x[i] > 0), (2, True)) * y[i] ** 2, i),
    "cases of the index": over(Piecewise((y[i] ** 2, i < 1), (2 * y[i] ** 2, True)), i),
    "a square root": over(sympy.sqrt(1 + over(y[i] ** 2, i)) + y[l] ** 2, l),
    "a softplus": over(log(1 + exp(-x[i] * y[i])) + y[i] ** 2, i),
}


@pytest.mark.parametrize("what", SMOOTH)
def test_smooth_expressions_pass(what):
    assert node(SMOOTH[what], start=0)(torch.tensor([[0.5, -0.7, 0.9]], dtype=torch.float64)).isfinite().all()


# At the call


def test_sizes_that_do_not_match():
    layer = node(over((y[i] - over(A[i, j] * a[j], j) - x[i]) ** 2, i), inputs=(A[i, j], x[i], a[j]))
    with pytest.raises(ValueError, match=r"x\[i\] must have shape \(n,\)") as error:
        layer(torch.ones(2, 3, 4), torch.ones(2, 5), torch.ones(2, 4))
    for word in ("(5,)", "A[i, j] has shape (3, 4)", "n = 3"):
        assert word in str(error.value)
    with pytest.raises(ValueError, match=r"x\[i\] has 1 dimension for one instance, \(n,\), got shape \(3, 1\)"):
        layer(torch.ones(2, 3, 4), torch.ones(2, 3, 1), torch.ones(2, 4))


def test_a_constant_that_does_not_match_an_input():
    layer = node(over(a[i] * (y[i] - x[i]) ** 2, i), constants={a[i]: torch.ones(3)})
    with pytest.raises(ValueError, match=r"a\[i\]") as error:
        layer(torch.ones(2, 4))
    for word in ("x[i]", "(4,)", "(3,)"):
        assert word in str(error.value)


def test_a_number_of_inputs():
    with pytest.raises(TypeError, match=r"takes 1 input \(x\), got 2"):
        node()(torch.ones(1, 2), torch.ones(1, 2))


def test_a_term_that_prevents_structure_is_named():
    structure = node(BASE + over(exp(y[i] * y[l]), i, l)).form.structure
    assert structure.kind == "dense"
    assert "exp(" in structure.obstacle
    structure = node(over((y[i] + v - x[i]) ** 2 + y[i] ** 2, i), variable=(y[i], v)).form.structure
    assert "couples y and v" in structure.obstacle
