"""Problems of six and more variables with inequalities."""
# ruff: noqa: ARG005 - a function takes every coordinate, used or not

from __future__ import annotations

from problems.hock_schittkowski.base import HockSchittkowski

PROBLEMS = (
    HockSchittkowski(
        "HS93",
        lambda x, y1, y2, y3, y4, y5, y6: (
            0.0204 * y1 * y4 * (y1 + y2 + y3)
            + 0.0187 * y2 * y3 * (y1 + 1.57 * y2 + y4)
            + 0.0607 * y1 * y4 * y5**2 * (y1 + y2 + y3)
            + 0.0437 * y2 * y3 * y6**2 * (y1 + 1.57 * y2 + y4)
        ),
        inequalities=lambda x, y1, y2, y3, y4, y5, y6: (
            0.001 * y1 * y2 * y3 * y4 * y5 * y6 - x,
            1 - 0.00062 * y1 * y4 * y5**2 * (y1 + y2 + y3) - 0.00058 * y2 * y3 * y6**2 * (y1 + 1.57 * y2 + y4),
        ),
        start=(5.54, 4.4, 12.02, 11.82, 0.702, 0.852),
        x=2.07,
        optimum=135.075961,
        solution=(5.332666, 4.656744, 10.43299, 12.08230, 0.7526074, 0.87865084),
        lower=0,
    ),
    HockSchittkowski(
        "HS100",
        lambda x, y1, y2, y3, y4, y5, y6, y7: (
            (y1 - 10) ** 2 + 5 * (y2 - 12) ** 2 + y3**4 + 3 * (y4 - 11) ** 2 + 10 * y5**6 + 7 * y6**2 + y7**4 - 4 * y6 * y7 - 10 * y6 - 8 * y7
        ),
        inequalities=lambda x, y1, y2, y3, y4, y5, y6, y7: (
            x - 2 * y1**2 - 3 * y2**4 - y3 - 4 * y4**2 - 5 * y5,
            282 - 7 * y1 - 3 * y2 - 10 * y3**2 - y4 + y5,
            196 - 23 * y1 - y2**2 - 6 * y6**2 + 8 * y7,
            -4 * y1**2 - y2**2 + 3 * y1 * y2 - 2 * y3**2 - 5 * y6 + 11 * y7,
        ),
        start=(1, 2, 0, 4, 0, 1, 1),
        x=127.0,
        optimum=680.6300573,
        solution=(2.330499, 1.951372, -0.4775414, 4.365726, -0.6244870, 1.038131, 1.594227),
    ),
    HockSchittkowski(
        "HS113",
        lambda x, y1, y2, y3, y4, y5, y6, y7, y8, y9, y10: (
            y1**2
            + y2**2
            + y1 * y2
            - 14 * y1
            - 16 * y2
            + (y3 - 10) ** 2
            + 4 * (y4 - 5) ** 2
            + (y5 - 3) ** 2
            + 2 * (y6 - 1) ** 2
            + 5 * y7**2
            + 7 * (y8 - 11) ** 2
            + 2 * (y9 - 10) ** 2
            + (y10 - 7) ** 2
            + 45
        ),
        inequalities=lambda x, y1, y2, y3, y4, y5, y6, y7, y8, y9, y10: (
            x - 4 * y1 - 5 * y2 + 3 * y7 - 9 * y8,
            -10 * y1 + 8 * y2 + 17 * y7 - 2 * y8,
            8 * y1 - 2 * y2 - 5 * y9 + 2 * y10 + 12,
            -3 * (y1 - 2) ** 2 - 4 * (y2 - 3) ** 2 - 2 * y3**2 + 7 * y4 + 120,
            -5 * y1**2 - 8 * y2 - (y3 - 6) ** 2 + 2 * y4 + 40,
            -0.5 * (y1 - 8) ** 2 - 2 * (y2 - 4) ** 2 - 3 * y5**2 + y6 + 30,
            -(y1**2) - 2 * (y2 - 2) ** 2 + 2 * y1 * y2 - 14 * y5 + 6 * y6,
            3 * y1 - 6 * y2 - 12 * (y9 - 8) ** 2 + 7 * y10,
        ),
        start=(2, 3, 5, 5, 1, 2, 7, 3, 6, 10),
        x=105.0,
        optimum=24.3062091,
        solution=(2.171996, 2.363683, 8.773926, 5.095984, 0.9906548, 1.430574, 1.321644, 9.828726, 8.280092, 8.375927),
    ),
)
