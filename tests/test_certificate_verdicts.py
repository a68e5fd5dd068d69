"""Every verdict of a certificate against a point that was made to deserve it, in any units."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from declarative import DeclarativeNode, Solution, certify
from tests.conformance.cases import close

F64 = torch.float64
RESIDUALS = ("stationarity", "equality_violation", "inequality_violation", "complementarity")


def node_of(objective, equalities=None, inequalities=None):
    """A node of functions of y alone; its input x has the shape of y and no say."""
    methods = {"objective": lambda self, x, y: objective(y), "initial_guess": lambda self, x: torch.zeros_like(x)}
    if equalities:
        methods["equality_constraints"] = lambda self, x, y: torch.stack(equalities(y))
    if inequalities:
        methods["inequality_constraints"] = lambda self, x, y: torch.stack(inequalities(y))
    return type("Made", (DeclarativeNode,), methods)()


def at(node, *point):
    y = torch.tensor([point], dtype=F64)
    return certify(node, torch.zeros_like(y), y=y)


def test_margins_where_there_is_nothing_to_measure():
    """No constraint: no gradient to depend on another. A vertex: no direction to curve along. Three lines in a plane: always dependent."""
    free = at(node_of(lambda y: (y * y).sum()), 0.0, 0.0)
    assert float(free.licq_margin) == np.inf
    vertex = at(node_of(lambda y: -y.sum(), None, lambda y: [y[0], 2 * y[1]]), 0.0, 0.0)
    assert float(vertex.second_order_margin) == np.inf
    assert float(vertex.licq_margin) == 1.0
    assert bool(vertex.regular)
    crowded = at(node_of(lambda y: -y.sum(), None, lambda y: [y[0], y[1], y[0] + y[1]]), 0.0, 0.0)
    assert float(crowded.licq_margin) == 0.0
    assert float(crowded.kkt_condition) > 1e14


def half_square(*goal):
    return lambda y: 0.5 * ((y - torch.tensor(goal, dtype=y.dtype)) ** 2).sum()


# name: objective, equalities, inequalities, point, every cause, whether it is a minimiser
VERDICTS = {
    "regular": (half_square(2.0, 0.5), None, lambda y: [y[0] - 1], (1.0, 0.5), (), True),
    "curved": (lambda y: y[0], lambda y: [y @ y - 1], None, (-1.0, 0.0), (), True),
    "twice": (half_square(0.0, 0.0), lambda y: [y[0] - 1, 1 - y[0]], None, (1.0, 0.0), ("equality 0 and equality 1 are redundant",), True),
    "across": (half_square(1.0, 0.0), lambda y: [y[0]], lambda y: [y[0]], (0.0, 0.0), ("equality 0 and inequality 0 are red",), True),
    "of three": (half_square(0.0, 0.0, 0.0), lambda y: [y[0] - 1, y[1] - 1, y[0] + y[1] - 2], None, (1.0, 1.0, 0.0), ("the 3 constraints", "linearly"), True),
    "cusp": (half_square(0.0, 0.0), lambda y: [y[0] ** 2], None, (0.0, 0.0), ("the gradient of equality 0 vanishes",), True),
    "weak": (half_square(0.0, 1.0), None, lambda y: [y[1] - 3, y[0]], (0.0, 1.0), ("inequality 1 is weakly active",), True),
    "trough": (lambda y: (y[0] - y[1]) ** 2, None, None, (1.0, 1.0), ("not an isolated minimiser",), True),
    "saddle": (lambda y: y[0] ** 2 - y[1] ** 2, None, None, (0.0, 0.0), ("a saddle point, not a minimiser",), False),
    "top": (lambda y: -(y @ y), None, None, (0.0, 0.0), ("a maximiser, not a minimiser",), False),
    "top of a circle": (lambda y: y[0], lambda y: [y @ y - 1], None, (1.0, 0.0), ("a maximiser, not a minimiser",), False),
    "saddle that is cut": (lambda y: y[0] ** 2 - y[1] ** 2, lambda y: [y[1]], None, (0.0, 0.0), (), True),
    "slope": (half_square(0.0, 0.0), None, lambda y: [y[0] - 5], (1.0, 0.0), ("not stationary",), False),
    "pull": (half_square(-1.0, 0.0), None, lambda y: [y[0]], (0.0, 0.0), ("the multiplier of inequality 0 has the wrong sign",), False),
    "off a line": (half_square(0.0, 0.5), lambda y: [y[1] - 0.5, y[0] - 1], None, (0.0, 0.5), ("infeasible: equality 1 is violated",), False),
    "outside": (half_square(0.0, 0.0), None, lambda y: [y[0] - 5, 1 - y[1]], (0.0, 0.0), ("infeasible: inequality 1 is violated",), False),
    "off the domain": (lambda y: y.log().sum(), None, None, (1.0, -1.0), ("NaN or inf",), False),
}


@pytest.mark.parametrize("name", VERDICTS)
@given(exponents=st.tuples(*[st.integers(-6, 6)] * 3))
def test_verdicts_in_any_units(name, exponents):
    """The causes, all of them, and whether it is a minimiser: the same if objective and constraints are written in other units."""
    objective, equalities, inequalities, point, causes, minimiser = VERDICTS[name]
    factor, *factors = (10.0**e for e in exponents)

    def rescaled(rows):
        return None if rows is None else lambda y: [(factors[i % 2]) * row for i, row in enumerate(rows(y))]

    plain = at(node_of(objective, equalities, inequalities), *point)
    scaled = at(node_of(lambda y: factor * objective(y), rescaled(equalities), rescaled(inequalities)), *point)
    for c in (plain, scaled):
        said = " | ".join(c.causes[0])
        assert all(cause in said for cause in causes), said
        assert len(c.causes[0]) == sum("linearly" not in cause for cause in causes), said
        assert c.minimiser.tolist() == [minimiser]
        assert c.regular.tolist() == [not causes]
    for number in RESIDUALS:
        close(getattr(scaled, number), getattr(plain, number), 1e-7, equal_nan=True)
    if np.isfinite(float(plain.second_order_margin)) and not equalities and not inequalities:
        close(scaled.second_order_margin, factor * plain.second_order_margin, 1e-12 * factor)


def test_where_a_valley_ends():
    """The terms of its curvature cancel: what rounding leaves, −1e−16, is no curvature, of either sign."""
    c = at(node_of(lambda y: 0.25 * (y[0] ** 2 - 1) ** 2 - 2 / 27**0.5 * y[0]), -(3**-0.5))
    assert float(c.second_order_margin) < 0
    assert c.causes == (("not an isolated minimiser: no curvature along some feasible direction",),)


def test_a_constraint_that_is_slack_cannot_push():
    """½(y − 1)² with y ≤ 2 at y = 0, kept there by a multiplier of 1: stationary, feasible, and not a minimiser."""
    node = node_of(half_square(1.0), None, lambda y: [y[0] - 2])
    zero, one = torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64)
    c = certify(node, zero, y=Solution(zero, zero[:, :0], one))
    close(float(c.complementarity), 1.0, 1e-3)
    assert not bool(c.minimiser)
    assert not bool(c.regular)
    assert c.causes != ((),)


def test_a_violated_constraint_does_not_hold_with_equality():
    c = at(node_of(half_square(0.0, 0.0), None, lambda y: [1 - y[1]]), 0.0, 0.0)
    assert not bool(c.active.any() | c.weakly_active.any())


def test_a_point_that_is_nan_is_called_so():
    c = at(node_of(half_square(0.0, 0.0)), float("nan"), 0.0)
    assert "NaN" in c.causes[0][0]
    assert not bool(c.minimiser)
