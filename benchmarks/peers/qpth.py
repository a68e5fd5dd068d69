"""qpth on the quadratic programs, with its defaults but for its messages, which are off.

Source: Amos & Kolter, "OptNet: Differentiable optimization as a layer in neural networks", ICML 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import Tensor

from benchmarks.quadratic import Answer


def prepare(n: int, p: int, q: int) -> Callable[..., Answer]:  # noqa: ARG001
    """(Q, c, A, b, G, d) -> y, ν, μ. Raises ImportError where the package is not installed."""
    layer = import_module("qpth.qp").QPFunction(verbose=-1)

    def solve(Q: Tensor, c: Tensor, A: Tensor, b: Tensor, G: Tensor, d: Tensor) -> Answer:
        y = layer(Q, c, G, d, A, b)
        kept: Any = y.grad_fn  # where qpth leaves its multipliers
        return Answer(y, kept.nus, kept.lams)

    return solve
