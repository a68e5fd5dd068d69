"""Problems with nothing but bounds."""
# ruff: noqa: ARG005 - a function takes every coordinate, used or not

from __future__ import annotations

from math import inf, pi, sqrt

from problems.hock_schittkowski.base import HockSchittkowski

PROBLEMS = (
    HockSchittkowski(
        "HS1",
        lambda x, y1, y2: 100 * (y2 - y1**2) ** 2 + (x - y1) ** 2,
        start=(-2, 1),
        x=1.0,
        optimum=0.0,
        solution=(1, 1),
        lower=(-inf, -1.5),
    ),
    # The other local minimum lies at (-1.221026, 1.5), on the side of the start.
    HockSchittkowski(
        "HS2",
        lambda x, y1, y2: 100 * (y2 - y1**2) ** 2 + (1 - y1) ** 2,
        inequalities=lambda x, y1, y2: (y2 - x,),
        start=(-2, 1),
        x=1.5,
        optimum=0.0504261879,
        solution=(1.224370749, 1.5),
        local=(4.941229318,),
    ),
    HockSchittkowski(
        "HS3",
        lambda x, y1, y2: y2 + 1e-5 * (y2 - y1) ** 2,
        inequalities=lambda x, y1, y2: (y2 - x,),
        start=(10, 1),
        x=0.0,
        optimum=0.0,
        solution=(0, 0),
    ),
    HockSchittkowski(
        "HS4",
        lambda x, y1, y2: (y1 + 1) ** 3 / 3 + y2,
        inequalities=lambda x, y1, y2: (y1 - x,),
        start=(1.125, 0.125),
        x=1.0,
        optimum=8 / 3,
        solution=(1, 0),
        lower=(-inf, 0),
    ),
    HockSchittkowski(
        "HS5",
        lambda x, y1, y2: (y1 + y2).sin() + (y1 - y2) ** 2 - x * y1 + 2.5 * y2 + 1,
        start=(0, 0),
        x=1.5,
        optimum=-sqrt(3) / 2 - pi / 3,
        solution=(0.5 - pi / 3, -0.5 - pi / 3),
        lower=(-1.5, -3),
        upper=(4, 3),
    ),
    HockSchittkowski(
        "HS38",
        lambda x, y1, y2, y3, y4: (
            100 * (y2 - y1**2) ** 2
            + (x - y1) ** 2
            + 90 * (y4 - y3**2) ** 2
            + (1 - y3) ** 2
            + 10.1 * ((y2 - 1) ** 2 + (y4 - 1) ** 2)
            + 19.8 * (y2 - 1) * (y4 - 1)
        ),
        start=(-3, -1, -3, -1),
        x=1.0,
        optimum=0.0,
        solution=(1, 1, 1, 1),
        lower=-10,
        upper=10,
    ),
    HockSchittkowski(
        "HS45",
        lambda x, y1, y2, y3, y4, y5: 2 - y1 * y2 * y3 * y4 * y5 / 120,
        inequalities=lambda x, y1, y2, y3, y4, y5: (x - y1,),
        start=(2, 2, 2, 2, 2),
        x=1.0,
        optimum=1.0,
        solution=(1, 2, 3, 4, 5),
        lower=0,
        upper=(inf, 2, 3, 4, 5),
    ),
)
