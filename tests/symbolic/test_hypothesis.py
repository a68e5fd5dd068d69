"""Random statements: every block equals that of an evaluation entry by entry, with Python loops."""

import sympy
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sympy import Idx, Indexed, IndexedBase, KroneckerDelta, Product, Rational, Sum

from declarative.symbolic import Cases, SymbolicNode
from tests.symbolic.interpreter import Reference, compare, node_blocks, points, reference_blocks

m, n = sympy.symbols("m n", integer=True, positive=True)
SIZES = {m: 3, n: 2}
i, k, j = Idx("i", m), Idx("k", m), Idx("j", n)  # i and k run over the same
INDICES = {i: m, k: m, j: n}
s = sympy.Symbol("s", positive=True)
Y, X, A, B, C = map(IndexedBase, "yxABC")
SHAPES = {"vector": (i,), "matrix": (i, j), "square": (i, k), "scalar": ()}


class Draw:
    """Draws expressions whose atoms and values are all positive, so that every function is defined."""

    def __init__(self, draw, arrays):
        self.draw, self.arrays = draw, arrays  # arrays: base -> axes as indices; label -> () for scalars

    def choose(self, *options):
        return self.draw(st.sampled_from(options))

    def chance(self, times=4):
        return self.draw(st.integers(1, times)) == times

    def entry(self, scope, base=None):
        """An array's entry, with indices in scope: repeated, swapped, shifted or fixed."""
        base = self.choose(*self.arrays) if base is None else base
        axes = self.arrays[base]
        if not axes:
            return base
        return base[tuple(self.index(scope, INDICES[a]) for a in axes)]

    def index(self, scope, size):
        fitting = [a for a, (own, short) in scope.items() if own == size]
        if not fitting or self.chance(8):
            return self.choose(0, size - 1)
        a = self.choose(*fitting)
        return a + 1 if scope[a][1] and self.chance(2) else a

    def atom(self, scope, depth):
        kind = self.draw(st.integers(0, 11))
        if kind == 0 and depth:
            return self.total(depth - 1, scope)
        if kind == 1:
            return self.choose(Rational(1, 2), sympy.Integer(2), Rational(3, 2))
        if kind == 2 and scope:
            return self.choose(*scope) + 1
        if kind == 3 and len(scope) > 1:
            pairs = [(a, b) for a in scope for b in scope if a is not b and INDICES[a] == INDICES[b]]
            if pairs:
                return 1 + KroneckerDelta(*self.choose(*pairs))
        return self.entry(scope)

    def function(self, scope, depth):
        kind = self.draw(st.integers(0, 15))
        z = self.atom(scope, depth)
        if kind < 7:
            return z
        other = self.atom(scope, depth)
        both = z + other if self.chance(2) else z - other
        if kind == 15:
            return sympy.log(1 + z) / (1 + other)
        return [
            lambda: both**2,
            lambda: sympy.exp(both / 4),
            lambda: sympy.log(z + other),
            lambda: sympy.sqrt(z + other),
            lambda: 1 / (z + other),
            lambda: sympy.log(1 + sympy.exp(both)),
            lambda: sympy.tanh(both) + 2,
            lambda: Cases((both**2 / 2, both < Rational(3, 4)), (Rational(3, 4) * both - Rational(9, 32), True)) + 1,
        ][kind - 7]()

    def term(self, scope, depth):
        e = sympy.Integer(1)
        for _ in range(self.draw(st.integers(1, 3))):
            e = e * self.function(scope, depth)
        if self.chance(8):
            return e + self.function(scope, depth)
        return e

    def total(self, depth, scope=None, own=None):
        """A sum over one or two indices; names may be those of the indices around it."""
        scope = dict(scope or {})
        chosen = own if own is not None else self.choose((i,), (k,), (j,), (i, j), (i, k), (j, i))
        limits = []
        for a in chosen:
            short = INDICES[a] == m and self.chance(4)
            scope[a] = (INDICES[a], short)
            limits.append((a, 0, INDICES[a] - (2 if short else 1)))
        body = self.term(scope, depth)
        kind = self.draw(st.integers(0, 15))
        if kind == 0:
            return sympy.log(Sum(sympy.exp(body / 4), *limits)) + 3
        if kind == 1:
            return Product((1 + body / 4), *limits)
        whole = Sum(body, *limits)
        return {2: sympy.sqrt(whole + 1), 3: whole**2, 4: sympy.log(whole + 1)}.get(kind, whole)


@st.composite
def statements(draw):
    kind = draw(st.sampled_from(["vector", "vector", "matrix", "square", "scalar"]))
    y = Y[SHAPES[kind]] if SHAPES[kind] else sympy.Symbol("y", positive=True)
    base = Y if SHAPES[kind] else y
    arrays = {base: SHAPES[kind], X: (i,), A: (i, k), B: (i, j), C: (j,), s: ()}
    grammar = Draw(draw, arrays)
    wanted = [draw(st.sampled_from([(), (i,), (j,), (i, j), (i, k), (j, i)])) for _ in range(draw(st.integers(0, 2)))]
    own = SHAPES[kind]
    anchor = Sum(y**2 / 2, *((a, 0, INDICES[a] - 1) for a in own)) if own else y**2 / 2
    objective = anchor * draw(st.sampled_from([0, 1, s])) + grammar.total(2)
    if draw(st.booleans()):
        objective = objective * grammar.total(1) if draw(st.booleans()) else objective + grammar.total(1)
    constraints = []
    for free in wanted:
        scope = {a: (INDICES[a], False) for a in free}
        e = grammar.term(scope, 1) + grammar.entry(scope, base) - 1
        constraints.append(e)
    assume(label(y) in objective.free_symbols.union(*(e.free_symbols for e in constraints)))
    return y, objective, constraints, draw(st.booleans())


def label(x):
    return x.base.label if isinstance(x, Indexed) else x


def check(y, objective, constraints, inequality, seed=0):
    inputs = (X[i], A[i, k], B[i, j], C[j], s)
    generator = torch.Generator().manual_seed(seed)

    def tensor(x):
        shape = tuple(SIZES[INDICES[a]] for a in x.indices) if isinstance(x, Indexed) else ()
        return 0.5 + torch.rand(shape, dtype=torch.float64, generator=generator)

    order = list(dict.fromkeys([*(y.indices if isinstance(y, Indexed) else ()), i, k, j]))
    families = [(e, [(a, 0, INDICES[a] - 1) for a in order if a in e.free_symbols]) for e in constraints]
    equal = constraints[:1] if inequality else constraints
    unequal = constraints[1:] if inequality else []
    node = SymbolicNode(objective=objective, variable=y, inputs=inputs, equality=equal, inequality=unequal)
    values, at = [tensor(x) for x in inputs], [tensor(y)]
    reference = Reference(objective, families, [label(x) for x in (*inputs, y)], SIZES, {})
    count = sum(len(points(free, SIZES)) for _, free in families)
    rows = slice(None, -1) if node.form.dropped is not None else slice(None)
    multipliers = 0.5 + torch.rand(count, dtype=torch.float64, generator=generator)
    expected = reference_blocks(reference.f, lambda *t: reference.a(*t)[rows], values, at, multipliers[rows])
    # exp in a loop overflows where log Σ exp does not: then there is nothing to compare with.
    if not all(bool(block.isfinite().all()) for block in expected.values()):
        raise OverflowError("the loops overflow")
    compare(node_blocks(node, values, at, multipliers[rows]), expected)


@settings(max_examples=60)
@given(statements())
def test_blocks_are_those_of_python_loops(statement):
    try:
        check(*statement)
    except OverflowError:
        assume(False)
