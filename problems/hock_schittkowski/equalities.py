"""Problems with nothing but equalities; linear ones first."""
# ruff: noqa: ARG005 - a function takes every coordinate, used or not

from __future__ import annotations

from math import asin, atan, pi, sqrt

from problems.hock_schittkowski.base import HockSchittkowski

_NO_CURVATURE = "the objective is flat to second order along a feasible direction: H is singular on null(A)"
_A, _B = asin(sqrt(1 / 4.2)), asin(sqrt(5 / 7.2))
_C, _D = asin(sqrt(4 / 7)), asin(sqrt(2 / 7))

LINEAR = (
    # Minimisers repeat with the period (12, 16).
    HockSchittkowski(
        "HS9",
        lambda x, y1, y2: (pi * y1 / 12).sin() * (pi * y2 / 16).cos(),
        equalities=lambda x, y1, y2: (4 * y1 - 3 * y2 - x,),
        start=(0, 0),
        x=0.0,
        optimum=-0.5,
        solution=(-3, -4),
        unique=False,
    ),
    HockSchittkowski(
        "HS28",
        lambda x, y1, y2, y3: (y1 + y2) ** 2 + (y2 + y3) ** 2,
        equalities=lambda x, y1, y2, y3: (y1 + 2 * y2 + 3 * y3 - x,),
        start=(-4, 1, 1),
        x=1.0,
        optimum=0.0,
        solution=(0.5, -0.5, 0.5),
    ),
    HockSchittkowski(
        "HS48",
        lambda x, y1, y2, y3, y4, y5: (y1 - 1) ** 2 + (y2 - y3) ** 2 + (y4 - y5) ** 2,
        equalities=lambda x, y1, y2, y3, y4, y5: (y1 + y2 + y3 + y4 + y5 - x, y3 - 2 * (y4 + y5) + 3),
        start=(3, 5, -3, 2, -2),
        x=5.0,
        optimum=0.0,
        solution=(1, 1, 1, 1, 1),
    ),
    HockSchittkowski(
        "HS49",
        lambda x, y1, y2, y3, y4, y5: (y1 - y2) ** 2 + (y3 - 1) ** 2 + (y4 - 1) ** 4 + (y5 - 1) ** 6,
        equalities=lambda x, y1, y2, y3, y4, y5: (y1 + y2 + y3 + 4 * y4 - x, y3 + 5 * y5 - 6),
        start=(10, 7, 2, -3, 0.8),
        x=7.0,
        optimum=0.0,
        solution=(1, 1, 1, 1, 1),
        irregular=_NO_CURVATURE,
    ),
    HockSchittkowski(
        "HS50",
        lambda x, y1, y2, y3, y4, y5: (y1 - y2) ** 2 + (y2 - y3) ** 2 + (y3 - y4) ** 4 + (y4 - y5) ** 2,
        equalities=lambda x, y1, y2, y3, y4, y5: (y1 + 2 * y2 + 3 * y3 - x, y2 + 2 * y3 + 3 * y4 - 6, y3 + 2 * y4 + 3 * y5 - 6),
        start=(35, -31, 11, 5, -5),
        x=6.0,
        optimum=0.0,
        solution=(1, 1, 1, 1, 1),
    ),
    HockSchittkowski(
        "HS51",
        lambda x, y1, y2, y3, y4, y5: (y1 - y2) ** 2 + (y2 + y3 - 2) ** 2 + (y4 - 1) ** 2 + (y5 - 1) ** 2,
        equalities=lambda x, y1, y2, y3, y4, y5: (y1 + 3 * y2 - x, y3 + y4 - 2 * y5, y2 - y5),
        start=(2.5, 0.5, 2, -1, 0.5),
        x=4.0,
        optimum=0.0,
        solution=(1, 1, 1, 1, 1),
    ),
    HockSchittkowski(
        "HS52",
        lambda x, y1, y2, y3, y4, y5: (x * y1 - y2) ** 2 + (y2 + y3 - 2) ** 2 + (y4 - 1) ** 2 + (y5 - 1) ** 2,
        equalities=lambda x, y1, y2, y3, y4, y5: (y1 + 3 * y2, y3 + y4 - 2 * y5, y2 - y5),
        start=(2, 2, 2, 2, 2),
        x=4.0,
        optimum=1859 / 349,
        solution=(-33 / 349, 11 / 349, 180 / 349, -158 / 349, 11 / 349),
    ),
)

NONLINEAR = (
    HockSchittkowski(
        "HS6",
        lambda x, y1, y2: (x - y1) ** 2,
        equalities=lambda x, y1, y2: (10 * (y2 - y1**2),),
        start=(-1.2, 1),
        x=1.0,
        optimum=0.0,
        solution=(1, 1),
    ),
    HockSchittkowski(
        "HS7",
        lambda x, y1, y2: (1 + y1**2).log() - y2,
        equalities=lambda x, y1, y2: ((1 + y1**2) ** 2 + y2**2 - x,),
        start=(2, 2),
        x=4.0,
        optimum=-sqrt(3),
        solution=(0, sqrt(3)),
    ),
    # Two equations for two unknowns; four solutions, (a, 9/a) and (9/a, a) with both signs.
    HockSchittkowski(
        "HS8",
        lambda x, y1, y2: -1 + 0 * y1,
        equalities=lambda x, y1, y2: (y1**2 + y2**2 - 25, y1 * y2 - x),
        start=(2, 1),
        x=9.0,
        optimum=-1.0,
        solution=(sqrt((25 + sqrt(301)) / 2), 9 / sqrt((25 + sqrt(301)) / 2)),
        unique=False,
    ),
    HockSchittkowski(
        "HS26",
        lambda x, y1, y2, y3: (y1 - y2) ** 2 + (y2 - y3) ** 4,
        equalities=lambda x, y1, y2, y3: ((1 + y2**2) * y1 + y3**4 - x,),
        start=(-2.6, 2, 2),
        x=3.0,
        optimum=0.0,
        solution=(1, 1, 1),
        unique=False,
        irregular=_NO_CURVATURE,
    ),
    HockSchittkowski(
        "HS27",
        lambda x, y1, y2, y3: 0.01 * (y1 - 1) ** 2 + (y2 - y1**2) ** 2,
        equalities=lambda x, y1, y2, y3: (y1 + y3**2 + x,),
        start=(2, 2, 2),
        x=1.0,
        optimum=0.04,
        solution=(-1, 1, 0),
    ),
    HockSchittkowski(
        "HS39",
        lambda x, y1, y2, y3, y4: -y1,
        equalities=lambda x, y1, y2, y3, y4: (y2 - x * y1**3 - y3**2, y1**2 - y2 - y4**2),
        start=(2, 2, 2, 2),
        x=1.0,
        optimum=-1.0,
        solution=(1, 1, 0, 0),
    ),
    # The signs of y₃ and y₄ can be changed together.
    HockSchittkowski(
        "HS40",
        lambda x, y1, y2, y3, y4: -y1 * y2 * y3 * y4,
        equalities=lambda x, y1, y2, y3, y4: (y1**3 + y2**2 - x, y1**2 * y4 - y3, y4**2 - y2),
        start=(0.8, 0.8, 0.8, 0.8),
        x=1.0,
        optimum=-0.25,
        solution=(2 ** (-1 / 3), 2 ** (-1 / 2), 2 ** (-11 / 12), 2 ** (-1 / 4)),
        unique=False,
    ),
    HockSchittkowski(
        "HS42",
        lambda x, y1, y2, y3, y4: (y1 - 1) ** 2 + (y2 - 2) ** 2 + (y3 - 3) ** 2 + (y4 - 4) ** 2,
        equalities=lambda x, y1, y2, y3, y4: (y1 - 2, y3**2 + y4**2 - x),
        start=(1, 1, 1, 1),
        x=2.0,
        optimum=28 - 10 * sqrt(2),
        solution=(2, 2, 0.6 * sqrt(2), 0.8 * sqrt(2)),
    ),
    HockSchittkowski(
        "HS46",
        lambda x, y1, y2, y3, y4, y5: (y1 - y2) ** 2 + (y3 - 1) ** 2 + (y4 - 1) ** 4 + (y5 - 1) ** 6,
        equalities=lambda x, y1, y2, y3, y4, y5: (y1**2 * y4 + (y4 - y5).sin() - x, y2 + y3**4 * y4**2 - 2),
        start=(0.5 * sqrt(2), 1.75, 0.5, 2, 2),
        x=1.0,
        optimum=0.0,
        solution=(1, 1, 1, 1, 1),
        irregular=_NO_CURVATURE,
    ),
    # The angles y₄, …, y₇ can be replaced by any with the same sin².
    HockSchittkowski(
        "HS56",
        lambda x, y1, y2, y3, y4, y5, y6, y7: -y1 * y2 * y3,
        equalities=lambda x, y1, y2, y3, y4, y5, y6, y7: (
            y1 - 4.2 * y4.sin() ** 2,
            y2 - 4.2 * y5.sin() ** 2,
            y3 - 4.2 * y6.sin() ** 2,
            y1 + 2 * y2 + 2 * y3 - x * y7.sin() ** 2,
        ),
        start=(1, 1, 1, _A, _A, _A, _B),
        x=7.2,
        optimum=-3.456,
        solution=(2.4, 1.2, 1.2, _C, _D, _D, 2 * atan(1)),
        unique=False,
    ),
    HockSchittkowski(
        "HS61",
        lambda x, y1, y2, y3: 4 * y1**2 + 2 * y2**2 + 2 * y3**2 - 33 * y1 + 16 * y2 - 24 * y3,
        equalities=lambda x, y1, y2, y3: (3 * y1 - 2 * y2**2 - x, 4 * y1 - y3**2 - 11),
        start=(0, 0, 0),
        x=7.0,
        optimum=-143.6461422,
        solution=(5.326770157, -2.118998639, 3.210464239),
    ),
    HockSchittkowski(
        "HS77",
        lambda x, y1, y2, y3, y4, y5: (y1 - 1) ** 2 + (y1 - y2) ** 2 + (y3 - 1) ** 2 + (y4 - 1) ** 4 + (y5 - 1) ** 6,
        equalities=lambda x, y1, y2, y3, y4, y5: (y1**2 * y4 + (y4 - y5).sin() - x, y2 + y3**4 * y4**2 - 8 - sqrt(2)),
        start=(2, 2, 2, 2, 2),
        x=2 * sqrt(2),
        optimum=0.24150513,
        solution=(1.166172, 1.182111, 1.380257, 1.506036, 0.6109203),
    ),
    # The signs of y₄ and y₅ can be changed together.
    HockSchittkowski(
        "HS78",
        lambda x, y1, y2, y3, y4, y5: y1 * y2 * y3 * y4 * y5,
        equalities=lambda x, y1, y2, y3, y4, y5: (y1**2 + y2**2 + y3**2 + y4**2 + y5**2 - x, y2 * y3 - 5 * y4 * y5, y1**3 + y2**3 + 1),
        start=(-2, 1.5, 2, -1, -1),
        x=10.0,
        optimum=-2.91970041,
        solution=(-1.717142, 1.595708, 1.827248, -0.7636429, -0.7636435),
        unique=False,
    ),
    HockSchittkowski(
        "HS79",
        lambda x, y1, y2, y3, y4, y5: (y1 - 1) ** 2 + (y1 - y2) ** 2 + (y2 - y3) ** 2 + (y3 - y4) ** 4 + (y4 - y5) ** 4,
        equalities=lambda x, y1, y2, y3, y4, y5: (y1 + y2**2 + y3**3 - 2 - 3 * sqrt(2), y2 - y3**2 + y4 + 2 - 2 * sqrt(2), y1 * y5 - x),
        start=(2, 2, 2, 2, 2),
        x=2.0,
        optimum=0.0787768209,
        solution=(1.191127, 1.362603, 1.472818, 1.635017, 1.679081),
    ),
)
