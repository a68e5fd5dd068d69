"""The cubic root of a positive number, as a minimiser.

    min ¼y⁴ − xy                                                                 x > 0, y: numbers

y = x^⅓,   y' = ⅓x^{−⅔},   y'' = −(2/9)x^{−5/3},   y''' = (10/27)x^{−8/3}. Every derivative is known and none vanishes, so that
a second or third derivative that forgets how H depends on y shows at once. y is 0-dimensional.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, uniform


class CubicRoot(DeclarativeNode):
    """x () -> y () with y³ = x."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.25 * y**4 - x * y

    def initial_guess(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Away from zero, where y has no derivative."""
    return cast(dtype, uniform(generator, 0.5, 3.0, batch))


def closed_form(x: Tensor) -> Tensor:
    """x^⅓."""
    return x ** (1 / 3)


def jacobian(x: Tensor) -> Tensor:
    """⅓x^{−⅔}."""
    return x ** (-2 / 3) / 3


PROBLEM = Problem("cubic_root", CubicRoot, sample, (0,), closed_form, jacobian, "0-dimensional y; every derivative known and non-zero")
