"""The derivation that is shown: its blocks as numbers against torch.func, its facts, and its renderings."""

import itertools
import math
import re

import pytest
import sympy
import torch
from matplotlib.mathtext import MathTextParser
from sympy import Idx, IndexedBase, Sum, symbols
from torch.func import grad, hessian, jacrev

from declarative.symbolic import Cases, SymbolicNode
from declarative.symbolic.derivation.rendering import Formula

m, n, N, C = symbols("m n N C", integer=True, positive=True)
i, j = Idx("i", m), Idx("j", n)
gamma, alpha, lam = symbols("gamma alpha lambda", positive=True)
A, M, P, Q, b, c, r, t, u, w, x, y = map(IndexedBase, ["A", "M", "P", "Q", "b", "c", "r", "t", "u", "w", "x", "y"])
SIZES = {m: 3, n: 4, N: 5, C: 3}


class Case:
    """A node, the same statement by hand, and a point."""

    def __init__(self, build, objective, values, constraints=(), numbers=None, multipliers=()):
        self.build, self.objective, self.constraints, self.numbers = build, objective, constraints, numbers or {}
        self.values = {name: v if isinstance(v, torch.Tensor) else torch.as_tensor(v, dtype=torch.float64) for name, v in values.items()}
        self.multipliers = multipliers

    def lagrangian(self, multipliers):
        return lambda **values: self.objective(**values) + sum((k * h(**values)).sum() for k, h in zip(multipliers, self.constraints, strict=True))


def rand(*shape):
    return torch.rand(shape, dtype=torch.float64) + 0.3


def over(letter, size, shift=1):
    return (letter, 0, size - shift)


def transport(gamma_is_input=False):
    f = Sum(M[i, j] * P[i, j] + P[i, j] * sympy.log(P[i, j] / (r[i] * c[j])) / gamma, over(i, m), over(j, n))
    h = [Sum(P[i, j], over(j, n)) - r[i], Sum(P[i, j], over(i, m)) - c[j]]
    if gamma_is_input:
        return SymbolicNode(objective=f, variable=P[i, j], inputs=(M[i, j], r[i], c[j], gamma), equality=h)
    return SymbolicNode(objective=f, variable=P[i, j], inputs=(M[i, j], r[i], c[j]), equality=h, constants={gamma: 10.0})


def pooling():
    i, d = Idx("i", N), Idx("d", C)
    z = Sum((u[d] - x[i, d]) ** 2, over(d, C))
    return SymbolicNode(objective=Sum(alpha**2 * (sympy.sqrt(1 + z / alpha**2) - 1), over(i, N)), variable=u[d], inputs=(x[i, d], alpha))


def top_k():
    i, k = Idx("i", n), sympy.Symbol("k")
    f = Sum(-x[i] * y[i] + y[i] * sympy.log(y[i]) + (1 - y[i]) * sympy.log(1 - y[i]), over(i, n))
    return SymbolicNode(objective=f, variable=y[i], inputs=(x[i],), equality=[Sum(y[i], over(i, n)) - k], constants={k: 2}, start=0.5)


def dense():
    i, j = Idx("i", n), Idx("j", n)
    f = Sum(Q[i, j] * y[i] * y[j] / 2, over(i, n), over(j, n)) - Sum(b[i] * y[i], over(i, n)) + Sum(sympy.cosh(y[i]), over(i, n))
    return SymbolicNode(objective=f, variable=y[i], inputs=(Q[i, j], b[i]), equality=[Sum(y[i] ** 2, over(i, n)) - 1])


def banded():
    i = Idx("i", n)
    f = Sum((y[i] - x[i]) ** 2 / 2, over(i, n)) + lam * Sum(sympy.sqrt(1 + (y[i + 1] - y[i]) ** 2), over(i, n, 2))
    return SymbolicNode(objective=f, variable=y[i], inputs=(x[i], lam))


def inequality():
    i, j = Idx("i", n), Idx("j", m)
    f = Sum((y[i] - x[i]) ** 2 / 2, over(i, n))
    g = [Sum(A[j, i] * y[i], over(i, n)) - b[j]]
    return SymbolicNode(objective=f, variable=y[i], inputs=(x[i], A[j, i], b[j]), equality=[Sum(y[i], over(i, n)) - 1], inequality=g)


def logistic_regression():
    i, j, bias = Idx("i", N), Idx("j", n), sympy.Symbol("b")
    z = Sum(w[j] * x[i, j], over(j, n)) + bias
    f = Sum(sympy.log(1 + sympy.exp(-t[i] * z)), over(i, N)) + Sum(w[j] ** 2, over(j, n)) / 2 + bias**2 / 20
    return SymbolicNode(objective=f, variable=(w[j], bias), inputs=(x[i, j], t[i]))


def blocks_of_columns():
    i, k, j = Idx("i", n), Idx("k", n), Idx("j", m)
    f = Sum(Q[i, k] * P[i, j] * P[k, j] / 2, over(i, n), over(k, n), over(j, m)) - Sum(M[i, j] * P[i, j], over(i, n), over(j, m))
    return SymbolicNode(objective=f, variable=P[i, j], inputs=(Q[i, k], M[i, j]))


torch.manual_seed(0)
PLAN = rand(3, 4)
CASES = {
    "transport": Case(
        transport,
        lambda P, M, r, c: (M * P).sum() + (P * (P / (r[:, None] * c)).log()).sum() / 10,
        {"P": PLAN, "M": rand(3, 4), "r": PLAN.sum(1), "c": PLAN.sum(0)},
        (lambda P, r, **_: P.sum(1) - r, lambda P, c, **_: P.sum(0) - c),
        {"gamma": 10.0},
        ("nu_1", "nu_2"),
    ),
    "transport, gamma given": Case(
        lambda: transport(True),
        lambda P, M, r, c, gamma: (M * P).sum() + (P * (P / (r[:, None] * c)).log()).sum() / gamma,
        {"P": PLAN, "M": rand(3, 4), "r": PLAN.sum(1), "c": PLAN.sum(0), "gamma": 7.0},
        (lambda P, r, **_: P.sum(1) - r, lambda P, c, **_: P.sum(0) - c),
        {},
        ("nu_1", "nu_2"),
    ),
    "pooling": Case(
        pooling,
        lambda u, x, alpha: (alpha**2 * ((1 + ((u - x) ** 2).sum(1) / alpha**2).sqrt() - 1)).sum(),
        {"u": rand(3), "x": rand(5, 3), "alpha": 0.8},
    ),
    "top-k": Case(
        top_k,
        lambda y, x: (-x * y + y * y.log() + (1 - y) * (1 - y).log()).sum(),
        {"y": [0.3, 0.4, 0.6, 0.7], "x": rand(4)},
        (lambda y, **_: y.sum() - 2,),
        {"k": 2.0},
        ("nu_1",),
    ),
    "dense": Case(
        dense,
        lambda y, Q, b: y @ Q @ y / 2 - b @ y + y.cosh().sum(),
        {"y": rand(4), "Q": rand(4, 4), "b": rand(4)},
        (lambda y, **_: (y**2).sum() - 1,),
        {},
        ("nu_1",),
    ),
    "banded": Case(
        banded,
        lambda y, x, **rest: ((y - x) ** 2).sum() / 2 + rest["lambda"] * (1 + (y[1:] - y[:-1]) ** 2).sqrt().sum(),
        {"y": rand(4), "x": rand(4), "lambda": 0.7},
    ),
    "inequality": Case(
        inequality,
        lambda y, x, A, b: ((y - x) ** 2).sum() / 2,
        {"y": torch.full((4,), 0.25, dtype=torch.float64), "x": rand(4), "A": rand(3, 4), "b": rand(3)},
        (lambda y, **_: y.sum() - 1, lambda y, A, b, **_: A @ y - b),
        {},
        ("nu_1", "mu_1"),
    ),
    "two variables": Case(
        logistic_regression,
        lambda w, b, x, t: torch.nn.functional.softplus(-t * (x @ w + b)).sum() + (w**2).sum() / 2 + b**2 / 20,
        {"w": rand(4), "b": 0.3, "x": rand(5, 4), "t": [1.0, -1.0, 1.0, 1.0, -1.0]},
    ),
    "blocks": Case(
        blocks_of_columns,
        lambda P, Q, M: torch.einsum("il,ij,lj->", Q, P, P) / 2 - (M * P).sum(),
        {"P": rand(4, 3), "Q": rand(4, 4), "M": rand(4, 3)},
    ),
}
FUNCTIONS = {"logistic": lambda z: 1 / (1 + math.exp(-z)), "softplus": lambda z: math.log1p(math.exp(z))}


def evaluated(e, known):
    """A number, by the definition of each node."""
    if e.is_Number:
        return float(e)
    if e in known:
        return known[e]
    if isinstance(e, sympy.Indexed):
        return float(known[str(e.base.label)][tuple(int(evaluated(k, known)) for k in e.indices if str(k) != ",")])
    if e.is_Symbol:
        return float(known[e.name])
    if isinstance(e, Sum | sympy.Product):
        (letter, low, high), *others = e.limits
        inner = e.func(e.function, *others) if others else e.function
        parts = [evaluated(inner, {**known, letter: k}) for k in range(int(evaluated(low, known)), int(evaluated(high, known)) + 1)]
        return math.fsum(parts) if isinstance(e, Sum) else math.prod(parts)
    if isinstance(e, sympy.KroneckerDelta):
        return float(evaluated(e.args[0], known) == evaluated(e.args[1], known))
    if isinstance(e, sympy.Piecewise | Cases):
        return next(evaluated(value, known) for value, condition in e.args if holds(condition, known))
    args = [evaluated(a, known) for a in e.args]
    if e.is_Add or e.is_Mul:
        return math.fsum(args) if e.is_Add else math.prod(args)
    if e.is_Pow:
        return args[0] ** args[1]
    name = type(e).__name__
    return FUNCTIONS[name](*args) if name in FUNCTIONS else getattr(math, name)(*args)


def holds(condition, known):
    if isinstance(condition, sympy.And):
        return all(holds(a, known) for a in condition.args)
    if condition in (sympy.true, sympy.false):
        return bool(condition)
    return bool(condition.func(*(sympy.Float(evaluated(a, known)) for a in condition.args)))


def block(derivation, key, shape, known):
    """The tensor of a block: rows, then columns."""
    rows, columns = derivation.indices[key]
    entries = torch.empty(shape, dtype=torch.float64)
    for place in torch.cartesian_prod(*(torch.arange(s) for s in shape)).reshape(-1, len(shape)).tolist() if shape else [[]]:
        entries[tuple(place)] = evaluated(derivation.blocks[key], {**known, **dict(zip((*rows, *columns), place, strict=True))})
    return entries


class Point:
    """Every block of a case as numbers, by torch.func."""

    def __init__(self, name):
        self.case = case = CASES[name]
        self.node = case.build()
        self.derivation = self.node.derivation()
        statement = self.node.form.statement
        self.variables, self.inputs = [str(v.label) for v in statement.variables], [str(a.label) for a in statement.inputs]
        torch.manual_seed(1)
        self.multipliers = [rand(*h(**case.values).shape) for h in case.constraints]
        self.known = {**SIZES, **case.values, **case.numbers, **dict(zip(case.multipliers, self.multipliers, strict=True))}
        self.lagrangian = self._of(case.lagrangian(self.multipliers))

    def _of(self, f):
        names = [*self.variables, *self.inputs]
        return lambda *tensors: f(**dict(zip(names, tensors, strict=True)))

    @property
    def tensors(self):
        return [self.case.values[name] for name in (*self.variables, *self.inputs)]

    def key(self, letter, *labels, family=None):
        own = [x for x in labels if x not in self.variables or len(self.variables) > 1]
        families = [] if family is None or (letter == "C" and len(self.multipliers) == 1) else [str(family)]
        return f"{letter}[{', '.join([*families, *own])}]" if own or families else letter

    def shape(self, *names):
        return tuple(s for name in names for s in self.case.values[name].shape)

    def check(self, key, expected):
        torch.testing.assert_close(block(self.derivation, key, tuple(expected.shape), self.known), expected, rtol=1e-10, atol=1e-10)

    def matrix(self, rows, columns):
        """∂² L by names, flat."""
        lines = []
        for a in rows:
            p = (*self.variables, *self.inputs).index(a)
            parts = []
            for q_name in columns:
                q = (*self.variables, *self.inputs).index(q_name)
                found = jacrev(grad(self.lagrangian, argnums=p), argnums=q)(*self.tensors)
                parts.append(found.reshape(self.case.values[a].numel(), -1))
            lines.append(torch.cat(parts, 1))
        return torch.cat(lines)

    def jacobian(self, columns):
        lines = []
        for h in self.case.constraints:
            parts = [jacrev(self._of(h), argnums=(*self.variables, *self.inputs).index(q))(*self.tensors) for q in columns]
            rows = self._of(h)(*self.tensors).numel()
            lines.append(torch.cat([part.reshape(rows, -1) for part in parts], 1))
        return torch.cat(lines) if lines else torch.zeros(0, sum(self.case.values[q].numel() for q in columns), dtype=torch.float64)

    def solution(self, v):
        """(u, w) of the bordered system; the last multiplier is 0 where an equation follows from the others."""
        h, a = self.matrix(self.variables, self.variables), self.jacobian(self.variables)
        k = a.shape[0] - (self.node.form.dropped is not None)
        zero = torch.zeros(k, k, dtype=torch.float64)
        whole = torch.cat([torch.cat([h, a[:k].mT], 1), torch.cat([a[:k], zero], 1)])
        found = torch.linalg.solve(whole, torch.cat([v, v.new_zeros(k)]))
        return found[: h.shape[0]], torch.nn.functional.pad(found[h.shape[0] :], (0, a.shape[0] - k))

    def split(self, flat, likes):
        return [part.reshape(like.shape) for part, like in zip(flat.split([like.numel() for like in likes]), likes, strict=True)]

    def with_vectors(self):
        """v, and u and w that belong to it, by the labels that the blocks use."""
        form, likes = self.node.form, [self.case.values[name] for name in self.variables]
        torch.manual_seed(2)
        v = torch.randn(sum(like.numel() for like in likes), dtype=torch.float64)
        u, w = self.solution(v)
        several = len(likes) > 1
        cotangents = [f"v_{name}" if several else "v" for name in self.variables]
        vectors = dict(zip(cotangents, self.split(v, likes), strict=True))
        vectors |= {str(a.label): part for a, part in zip(form.directions, self.split(u, likes), strict=True)}
        vectors |= {str(a.label): part for a, part in zip(form.rows, self.split(w, self.multipliers), strict=True)} if self.multipliers else {}
        self.known = {**self.known, **vectors}
        return u, w


every = pytest.mark.parametrize("name", CASES)


@every
def test_second_derivatives_are_those_of_torch(name):
    point = Point(name)
    for a, p in enumerate(point.variables):
        point.check(point.key("∇L", p), grad(point.lagrangian, argnums=a)(*point.tensors))
        for q_place, q in enumerate((*point.variables, *point.inputs)):
            letter = "H" if q in point.variables else "B"
            expected = jacrev(grad(point.lagrangian, argnums=a), argnums=q_place)(*point.tensors)
            point.check(point.key(letter, p, q), expected)
    assert evaluated(point.derivation.blocks["L"], point.known) == pytest.approx(float(point.lagrangian(*point.tensors)))


def test_hessian_is_that_of_torch():
    point = Point("transport")
    point.check("H", hessian(point.lagrangian)(*point.tensors))


@every
def test_first_derivatives_of_constraints_are_those_of_torch(name):
    point = Point(name)
    for k, h in enumerate(point.case.constraints):
        for q_place, q in enumerate((*point.variables, *point.inputs)):
            letter = "A" if q in point.variables else "C"
            point.check(point.key(letter, q, family=k), jacrev(point._of(h), argnums=q_place)(*point.tensors))


@pytest.mark.parametrize("name", ["transport", "transport, gamma given", "top-k", "inequality"])
def test_complement_is_that_of_the_blocks(name):
    # At a feasible point: entries may be written by what the constraints say.
    point = Point(name)
    h, a = point.matrix(point.variables, point.variables), point.jacobian(point.variables)
    s = a @ torch.linalg.solve(h, a.mT)
    sizes = [k.numel() for k in point.multipliers]
    for k, rows in enumerate(s.split(sizes)):
        for q, part in enumerate(rows.split(sizes, 1)):
            point.check(f"S[{k}, {q}]", part.reshape((*point.multipliers[k].shape, *point.multipliers[q].shape)))


@pytest.mark.parametrize("name", ["transport", "top-k", "inequality"])
def test_inverse_and_direction_are_those_of_the_bordered_system(name):
    point = Point(name)
    u, _ = point.with_vectors()
    (v,) = (point.case.values[name] for name in point.variables)
    point.check("W", torch.linalg.inv(point.matrix(point.variables, point.variables)).diagonal().reshape(v.shape))
    point.check("u", u.reshape(v.shape))


@every
def test_gradients_are_those_of_the_formula(name):
    point = Point(name)
    u, w = point.with_vectors()
    for x in point.inputs:
        expected = -(point.matrix(point.variables, [x]).mT @ u + point.jacobian([x]).mT @ w)
        point.check(f"gradient[{x}]", expected.reshape(point.case.values[x].shape))


def lengths(e, known):
    """How many values each free letter has, by the arrays where it stands."""
    found = {}
    for entry in e.atoms(sympy.Indexed):
        if str(entry.base.label) in known:
            axes = [k for k in entry.indices if str(k) != ","]
            found |= {k: size for k, size in zip(axes, known[str(entry.base.label)].shape, strict=True) if k in e.free_symbols}
    return found


def places(*sides, known):
    """Every value of the free letters of an equation."""
    sizes = {k: size for e in sides for k, size in lengths(e, known).items()}
    return [dict(zip(sizes, place, strict=True)) for place in itertools.product(*(range(s) for s in sizes.values()))]


def define(formula, known, usual=3):
    """The left-hand side of a formula, as a tensor by its label."""
    left, right = formula.sides[:2]
    letters = [k for k in left.indices if str(k) != ","] if isinstance(left, sympy.Indexed) else []
    sizes = lengths(right, known)
    tensor = torch.empty([sizes.get(k, usual) for k in letters], dtype=torch.float64)
    for place in itertools.product(*(range(s) for s in tensor.shape)):
        tensor[place] = evaluated(right, {**known, **dict(zip(letters, place, strict=True))})
    known[str(left.base.label if isinstance(left, sympy.Indexed) else left)] = tensor


def formulas(derivation, part):
    return [line for section in derivation.sections if part in section.title for line in section.lines if isinstance(line, Formula)]


@every
def test_shown_equations_hold_at_the_solution(name):
    point = Point(name)
    point.with_vectors()
    known = dict(point.known)
    for short in (f for f in formulas(point.derivation, "Stationarity") if f.note == ("for short",)):
        define(short, known)
    if name == "pooling":
        d, e, f = [formula for formula in formulas(point.derivation, "second derivative") if formula.sides[0].base.label.name[0] in "DEF"]
        for formula in (d, e, f):
            define(formula, known)
        diagonal, left, right = (known[str(formula.sides[0].base.label)] for formula in (d, e, f))
        inner = torch.eye(left.shape[1], dtype=torch.float64) + right.mT @ (left / diagonal[:, None])
        (label,) = {a.base.label.name for a in formulas(point.derivation, "The gradient")[0].sides[0].atoms(sympy.Indexed)} - set(known)
        known[label] = torch.linalg.solve(inner, right.mT @ (known["v"] / diagonal))
    checked = 0
    for formula in formulas(point.derivation, "The gradient"):
        labels = {str(e.base.label) for e in formula.sides[0].atoms(sympy.Indexed)}
        if not labels <= set(known) or "∂" in str(formula.sides[0]):
            continue
        for place in places(*formula.sides, known=known):
            values = [evaluated(e, {**known, **place}) for e in formula.sides]
            assert values == pytest.approx([values[0]] * len(values), rel=1e-9, abs=1e-9)
        checked += 1
    assert checked >= len(point.variables) + len(point.case.constraints)


# Facts


def test_transport_by_itself():
    d = transport().derivation()
    i, j, i_, j_ = symbols("i j i' j'", integer=True)
    delta = sympy.KroneckerDelta
    assert d.blocks["S[0, 0]"] == gamma * r[i] * delta(i, i_)
    assert d.blocks["S[1, 1]"] == gamma * c[j] * delta(j, j_)
    assert d.blocks["S[0, 1]"] == d.blocks["S[1, 0]"] == d.blocks["W"] == gamma * P[i, j]
    assert d.blocks["H"] == delta(i, i_) * delta(j, j_) / (gamma * P[i, j])
    assert d.indices["H"] == ((i, j), (i_, j_))
    assert d.blocks["C[0, M]"] == 0
    text = " ".join(str(d).split())
    for told in ("diag(Σ_j W_ij)", "diag(γ r_i)", "by the constraints", "incidence", "follows from the others", "∂ℓ/∂M_ij = −u_ij", "A u = 0", "γ = 10"):
        assert told in text
    # math.md §3: r̄ = w_r and c̄ = w_c, the part with u being 0.
    assert d.blocks["gradient[r]"].free_symbols.isdisjoint(d.blocks["gradient[M]"].free_symbols - {i, j})


def test_what_is_said_of_structure():
    said = {name: str(CASES[name].build().derivation()) for name in CASES}
    assert "a multiple of the identity plus rank N" in said["pooling"]
    assert "Woodbury" in said["pooling"]
    assert "z_i = 1 + " in said["pooling"]
    assert re.search(r"dense: the term Q_.*prevents", said["dense"])
    assert "banded, 3 diagonals" in said["banded"]
    assert "not active" in said["inequality"]
    assert "couples w and b" in said["two variables"]
    assert "repeated m times" in said["blocks"]
    assert "W_i = y_i (1 − y_i)" in said["top-k"]
    assert "Zero: C[x]" in said["top-k"]


def test_a_constraint_of_some_indices_says_nothing_of_the_others():
    # Only the first rows' sums are fixed: the complement of other families keeps its sums.
    i, j, k = Idx("i", m), Idx("j", n), Idx("k", m)
    f = Sum(P[i, j] * sympy.log(P[i, j]), over(i, m), over(j, n)) - Sum(M[i, j] * P[i, j], over(i, m), over(j, n))
    first = sympy.Idx("a", (0, m - 2))
    node = SymbolicNode(objective=f, variable=P[i, j], inputs=(M[i, j], r[k], b[j]), equality=[Sum(P[first, j], over(j, n)) - r[first]])
    d = node.derivation()
    assert d.blocks["S[0, 0]"].has(r)
    other = SymbolicNode(
        objective=f,
        variable=P[i, j],
        inputs=(M[i, j], r[k], t[k]),
        equality=[Sum(P[first, j], over(j, n)) - r[first], Sum(2 * P[k, j], over(j, n)) - t[k]],
    )
    assert not other.derivation().blocks["S[1, 1]"].has(r)


def test_letters_that_the_user_has_taken():
    # The user's A, u, v, w, S and H are not those of the derivation.
    i = Idx("i", n)
    H, S, v = map(IndexedBase, "HSv")
    f = Sum(H[i] * (u[i] - v[i]) ** 2 / 2 + S[i] * u[i] ** 4, over(i, n))
    node = SymbolicNode(objective=f, variable=u[i], inputs=(H[i], v[i], S[i], w[i], A[i]), equality=[Sum(A[i] * u[i], over(i, n)) - Sum(w[i], over(i, n))])
    text = str(node.derivation())
    assert "𝐇 is diagonal" in text
    assert "𝐒 = 𝐀 𝐇⁻¹ 𝐀ᵀ" in text
    assert "s_i = " in text


def test_scalars_and_linear_statements():
    a, z = symbols("a z")
    node = SymbolicNode(objective=z**4 / 4 + z**2 / 2 - a * z, variable=z, inputs=(a,))
    assert node.derivation().blocks["gradient[a]"] == node.form.directions[0].label
    i = Idx("i", n)
    linear = SymbolicNode(
        objective=Sum(x[i] * y[i], over(i, n)), variable=y[i], inputs=(x[i],), equality=[Sum(y[i], over(i, n)) - 1], inequality=[-y[i], y[i] - 1]
    )
    assert "H is zero" in str(linear.derivation())


# Renderings


@every
def test_latex_is_balanced_and_parses(name):
    tex = CASES[name].build().derivation().latex()
    assert tex.count("{") == tex.count("}")
    assert len(re.findall(r"\\left[^a-z]", tex)) == len(re.findall(r"\\right[^a-z]", tex))
    assert tex.count(r"\begin{align*}") == tex.count(r"\end{align*}") > 0
    assert tex.count("$") % 2 == 0
    assert not set(tex) & set("δℒℓᵀ⁻Σ−′≥𝐀")
    parser = MathTextParser("agg")
    parsed = 0
    for body in re.findall(r"\\begin\{align\*\}\n(.*?)\n\\end\{align\*\}", tex, re.DOTALL):
        for row in re.sub(r"\\begin\{cases\}.*?\\end\{cases\}", "z", body, flags=re.DOTALL).split(r" \\" + "\n"):
            line = row.replace("&", "").strip()
            parser.parse(f"${line}$".replace(r"\left\{", r"\left("))
            parsed += 1
    assert parsed >= 5


@every
def test_text_fits_a_terminal(name):
    for line in str(CASES[name].build().derivation()).splitlines():
        assert len(line) <= 100


@pytest.mark.parametrize("suffix", [".md", ".tex", ".txt"])
def test_save(tmp_path, suffix):
    d = transport().derivation()
    path = d.save(tmp_path / f"transport{suffix}")
    text = path.read_text(encoding="utf-8")
    assert text.strip() == {".md": d.markdown(), ".tex": d.latex(), ".txt": str(d)}[suffix].strip()
    assert d.save(str(path)) == path


def test_save_says_what_it_can():
    with pytest.raises(ValueError, match=r"saved as \.md, \.tex, \.txt, got 'a\.pdf'"):
        transport().derivation().save("a.pdf")


def test_markdown_is_what_a_notebook_shows():
    d = pooling().derivation()
    assert d._repr_markdown_() == d.markdown()
    assert d.markdown().count("$$") % 2 == 0
    assert r"\begin{aligned}" in d.markdown()
