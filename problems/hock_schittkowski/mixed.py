"""Problems with equalities and inequalities."""
# ruff: noqa: ARG005 - a function takes every coordinate, used or not

from __future__ import annotations

from math import inf, sqrt
from typing import Any

from problems.hock_schittkowski.base import HockSchittkowski


def _sphere(x: Any, y1: Any, y2: Any, y3: Any, y4: Any, y5: Any) -> tuple[Any, ...]:
    """The equalities that HS78, HS80 and HS81 share."""
    return y1**2 + y2**2 + y3**2 + y4**2 + y5**2 - x, y2 * y3 - 5 * y4 * y5, y1**3 + y2**3 + 1


PROBLEMS = (
    HockSchittkowski(
        "HS14",
        lambda x, y1, y2: (y1 - 2) ** 2 + (y2 - 1) ** 2,
        equalities=lambda x, y1, y2: (y1 - 2 * y2 + 1,),
        inequalities=lambda x, y1, y2: (x - 0.25 * y1**2 - y2**2,),
        start=(2, 2),
        x=1.0,
        optimum=9 - 2.875 * sqrt(7),
        solution=(0.5 * (sqrt(7) - 1), 0.25 * (sqrt(7) + 1)),
    ),
    # y₁ ≥ 0 is weakly active, but y = (0, 0, x) all the same on either side.
    HockSchittkowski(
        "HS32",
        lambda x, y1, y2, y3: (y1 + 3 * y2 + y3) ** 2 + 4 * (y1 - y2) ** 2,
        equalities=lambda x, y1, y2, y3: (x - y1 - y2 - y3,),
        inequalities=lambda x, y1, y2, y3: (6 * y2 + 4 * y3 - y1**3 - 3,),
        start=(0.1, 0.7, 0.2),
        x=1.0,
        optimum=1.0,
        solution=(0, 0, 1),
        lower=0,
    ),
    HockSchittkowski(
        "HS41",
        lambda x, y1, y2, y3, y4: 2 - y1 * y2 * y3,
        equalities=lambda x, y1, y2, y3, y4: (y1 + 2 * y2 + 2 * y3 - y4,),
        inequalities=lambda x, y1, y2, y3, y4: (x - y4,),
        start=(2, 2, 2, 2),
        x=2.0,
        optimum=52 / 27,
        solution=(2 / 3, 1 / 3, 1 / 3, 2),
        lower=0,
        upper=(1, 1, 1, inf),
    ),
    HockSchittkowski(
        "HS53",
        lambda x, y1, y2, y3, y4, y5: (y1 - y2) ** 2 + (y2 + y3 - 2) ** 2 + (y4 - 1) ** 2 + (y5 - 1) ** 2,
        equalities=lambda x, y1, y2, y3, y4, y5: (y1 + 3 * y2 - x, y3 + y4 - 2 * y5, y2 - y5),
        start=(2, 2, 2, 2, 2),
        x=0.0,
        optimum=176 / 43,
        solution=(-33 / 43, 11 / 43, 27 / 43, -5 / 43, 11 / 43),
        lower=-10,
        upper=10,
    ),
    HockSchittkowski(
        "HS60",
        lambda x, y1, y2, y3: (y1 - 1) ** 2 + (y1 - y2) ** 2 + (y2 - y3) ** 4,
        equalities=lambda x, y1, y2, y3: (y1 * (1 + y2**2) + y3**4 - x,),
        start=(2, 2, 2),
        x=4 + 3 * sqrt(2),
        optimum=0.03256820025,
        solution=(1.104859024, 1.196674194, 1.535262257),
        lower=-10,
        upper=10,
    ),
    HockSchittkowski(
        "HS62",
        lambda x, y1, y2, y3: (
            -32.174
            * (
                255 * ((y1 + y2 + y3 + 0.03) / (0.09 * y1 + y2 + y3 + 0.03)).log()
                + 280 * ((y2 + y3 + 0.03) / (0.07 * y2 + y3 + 0.03)).log()
                + 290 * ((y3 + 0.03) / (0.13 * y3 + 0.03)).log()
            )
        ),
        equalities=lambda x, y1, y2, y3: (y1 + y2 + y3 - x,),
        start=(0.7, 0.2, 0.1),
        x=1.0,
        optimum=-26272.51448,
        solution=(0.6178126908, 0.328202223, 0.05398508606),
        lower=0,
        upper=1,
    ),
    HockSchittkowski(
        "HS63",
        lambda x, y1, y2, y3: 1000 - y1**2 - 2 * y2**2 - y3**2 - y1 * y2 - y1 * y3,
        equalities=lambda x, y1, y2, y3: (8 * y1 + 14 * y2 + 7 * y3 - 56, y1**2 + y2**2 + y3**2 - x),
        start=(2, 2, 2),
        x=25.0,
        optimum=961.7151721,
        solution=(3.512118414, 0.2169881741, 3.552174034),
        lower=0,
    ),
    HockSchittkowski(
        "HS71",
        lambda x, y1, y2, y3, y4: y1 * y4 * (y1 + y2 + y3) + y3,
        equalities=lambda x, y1, y2, y3, y4: (y1**2 + y2**2 + y3**2 + y4**2 - 40,),
        inequalities=lambda x, y1, y2, y3, y4: (y1 * y2 * y3 * y4 - x,),
        start=(1, 5, 5, 1),
        x=25.0,
        optimum=17.0140173,
        solution=(1, 4.7429994, 3.8211503, 1.3794082),
        lower=1,
        upper=5,
    ),
    HockSchittkowski(
        "HS73",
        lambda x, y1, y2, y3, y4: 24.55 * y1 + 26.75 * y2 + 39 * y3 + 40.5 * y4,
        equalities=lambda x, y1, y2, y3, y4: (y1 + y2 + y3 + y4 - 1,),
        inequalities=lambda x, y1, y2, y3, y4: (
            2.3 * y1 + 5.6 * y2 + 11.1 * y3 + 1.3 * y4 - x,
            12 * y1 + 11.9 * y2 + 41.8 * y3 + 52.1 * y4 - 21 - 1.645 * (0.28 * y1**2 + 0.19 * y2**2 + 20.5 * y3**2 + 0.62 * y4**2).sqrt(),
        ),
        start=(1, 1, 1, 1),
        x=5.0,
        optimum=29.894378,
        solution=(0.6355216, 0, 0.3127019, 0.05177655),
        lower=0,
    ),
    HockSchittkowski(
        "HS74",
        lambda x, y1, y2, y3, y4: 3 * y1 + 1e-6 * y1**3 + 2 * y2 + 2e-6 / 3 * y2**3,
        equalities=lambda x, y1, y2, y3, y4: (
            1000 * (-y3 - 0.25).sin() + 1000 * (-y4 - 0.25).sin() + x - y1,
            1000 * (y3 - 0.25).sin() + 1000 * (y3 - y4 - 0.25).sin() + 894.8 - y2,
            1000 * (y4 - 0.25).sin() + 1000 * (y4 - y3 - 0.25).sin() + 1294.8,
        ),
        inequalities=lambda x, y1, y2, y3, y4: (y4 - y3 + 0.55, y3 - y4 + 0.55),
        start=(0, 0, 0, 0),
        x=894.8,
        optimum=5126.4981,
        solution=(679.9453, 1026.067, 0.1188764, -0.3962336),
        lower=(0, 0, -0.55, -0.55),
        upper=(1200, 1200, 0.55, 0.55),
    ),
    # The signs of y₄ and y₅ can be changed together, here and in HS81.
    HockSchittkowski(
        "HS80",
        lambda x, y1, y2, y3, y4, y5: (y1 * y2 * y3 * y4 * y5).exp(),
        equalities=_sphere,
        start=(-2, 2, 2, -1, -1),
        x=10.0,
        optimum=0.0539498478,
        solution=(-1.717143, 1.595709, 1.827247, -0.7636413, -0.7636450),
        lower=(-2.3, -2.3, -3.2, -3.2, -3.2),
        upper=(2.3, 2.3, 3.2, 3.2, 3.2),
        unique=False,
    ),
    HockSchittkowski(
        "HS81",
        lambda x, y1, y2, y3, y4, y5: (y1 * y2 * y3 * y4 * y5).exp() - 0.5 * (y1**3 + y2**3 + 1) ** 2,
        equalities=_sphere,
        start=(-2, 2, 2, -1, -1),
        x=10.0,
        optimum=0.0539498478,
        solution=(-1.717142, 1.595710, 1.827248, -0.7636474, -0.7636390),
        lower=(-2.3, -2.3, -3.2, -3.2, -3.2),
        upper=(2.3, 2.3, 3.2, 3.2, 3.2),
        unique=False,
    ),
)
