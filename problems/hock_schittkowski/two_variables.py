"""Problems of two variables with inequalities."""
# ruff: noqa: ARG005 - a function takes every coordinate, used or not

from __future__ import annotations

from math import inf, sqrt

from problems.hock_schittkowski.base import Function, HockSchittkowski

_ROSENBROCK: Function = lambda x, y1, y2: 100 * (y2 - y1**2) ** 2 + (1 - y1) ** 2  # noqa: E731

PROBLEMS = (
    HockSchittkowski(
        "HS10",
        lambda x, y1, y2: y1 - y2,
        inequalities=lambda x, y1, y2: (-3 * y1**2 + 2 * y1 * y2 - y2**2 + x,),
        start=(-10, 10),
        x=1.0,
        optimum=-1.0,
        solution=(0, 1),
    ),
    HockSchittkowski(
        "HS11",
        lambda x, y1, y2: (y1 - x) ** 2 + y2**2 - 25,
        inequalities=lambda x, y1, y2: (-(y1**2) + y2,),
        start=(4.9, 0.1),
        x=5.0,
        optimum=-8.498464223,
        solution=(1.234773, 1.524664),
    ),
    HockSchittkowski(
        "HS12",
        lambda x, y1, y2: 0.5 * y1**2 + y2**2 - y1 * y2 - 7 * y1 - 7 * y2,
        inequalities=lambda x, y1, y2: (x - 4 * y1**2 - y2**2,),
        start=(0, 0),
        x=25.0,
        optimum=-30.0,
        solution=(2, 3),
    ),
    HockSchittkowski(
        "HS13",
        lambda x, y1, y2: (y1 - 2) ** 2 + y2**2,
        inequalities=lambda x, y1, y2: ((x - y1) ** 3 - y2,),
        start=(-2, -2),
        x=1.0,
        optimum=1.0,
        solution=(1, 0),
        lower=0,
        irregular="a cusp: the minimiser has no multipliers",
    ),
    HockSchittkowski(
        "HS15",
        _ROSENBROCK,
        inequalities=lambda x, y1, y2: (y1 * y2 - 1, y1 + y2**2, x - y1),
        start=(-2, 1),
        x=0.5,
        optimum=306.5,
        solution=(0.5, 2),
    ),
    # y₂ ≤ y₁² − x holds with equality and does not push: y₂ = 0 for x ≤ 0.
    HockSchittkowski(
        "HS17",
        _ROSENBROCK,
        inequalities=lambda x, y1, y2: (y2**2 - y1, y1**2 - y2 - x),
        start=(-2, 1),
        x=0.0,
        optimum=1.0,
        solution=(0, 0),
        lower=(-0.5, -inf),
        upper=(0.5, 1),
        irregular="a constraint is weakly active",
    ),
    HockSchittkowski(
        "HS18",
        lambda x, y1, y2: 0.01 * y1**2 + y2**2,
        inequalities=lambda x, y1, y2: (y1 * y2 - x, y1**2 + y2**2 - 25),
        start=(2, 2),
        x=25.0,
        optimum=5.0,
        solution=(sqrt(250), sqrt(2.5)),
        lower=(2, 0),
        upper=50,
    ),
    # The other local minimum lies at (-½, ½√3), on the side of the start.
    HockSchittkowski(
        "HS20",
        _ROSENBROCK,
        inequalities=lambda x, y1, y2: (y1 + y2**2, y1**2 + y2, y1**2 + y2**2 - x),
        start=(-2, 1),
        x=1.0,
        optimum=81.5 - 25 * sqrt(3),
        solution=(0.5, 0.5 * sqrt(3)),
        local=(83.5 - 25 * sqrt(3),),
        lower=(-0.5, -inf),
        upper=(0.5, inf),
    ),
    HockSchittkowski(
        "HS21",
        lambda x, y1, y2: 0.01 * y1**2 + y2**2 - 100,
        inequalities=lambda x, y1, y2: (10 * y1 - y2 - 10, y1 - x),
        start=(-1, -1),
        x=2.0,
        optimum=-99.96,
        solution=(2, 0),
        lower=(-inf, -50),
        upper=50,
    ),
    HockSchittkowski(
        "HS22",
        lambda x, y1, y2: (y1 - 2) ** 2 + (y2 - 1) ** 2,
        inequalities=lambda x, y1, y2: (x - y1 - y2, -(y1**2) + y2),
        start=(2, 2),
        x=2.0,
        optimum=1.0,
        solution=(1, 1),
    ),
    HockSchittkowski(
        "HS23",
        lambda x, y1, y2: y1**2 + y2**2,
        inequalities=lambda x, y1, y2: (y1 + y2 - 1, y1**2 + y2**2 - 1, 9 * y1**2 + y2**2 - 9, y1**2 - x * y2, y2**2 - y1),
        start=(3, 1),
        x=1.0,
        optimum=2.0,
        solution=(1, 1),
        lower=-50,
        upper=50,
    ),
    HockSchittkowski(
        "HS24",
        lambda x, y1, y2: ((y1 - 3) ** 2 - 9) * y2**3 / (27 * sqrt(3)),
        inequalities=lambda x, y1, y2: (y1 / sqrt(3) - y2, y1 + sqrt(3) * y2, x - y1 - sqrt(3) * y2),
        start=(1, 0.5),
        x=6.0,
        optimum=-1.0,
        solution=(3, sqrt(3)),
        lower=0,
    ),
)
