"""What an irregular problem is: a batch of three whose middle sample has no ordinary derivative, with every answer known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from declarative import DeclarativeNode


@dataclass(frozen=True)
class Irregular:
    """An irregular problem with one input x and its neighbours.

    Args:
        name: what tests and tutorials call it.
        node: makes the node; takes the keyword arguments of `DeclarativeNode`. Its `solve` is a closed form, so that the
            irregular point is met exactly.
        inputs: x (3, n) in float64. Sample 1 is irregular, its neighbours 0 and 2 are regular.
        jacobian: x -> ∂y/∂x (3, m, n) as a formula that holds at the neighbours.
        kind: who speaks up. "matrix": the KKT matrix is singular, `Implicit(irregular=...)` decides. "kink": a constraint is
            weakly active, `Implicit(weakly_active=...)` decides. "status": the point is not a KKT point, the solver's
            `on_failure` decides. "certificate": the optimality conditions hold and can be differentiated, but the point is not
            a minimiser; only `certify` tells. "none": regular after all, and listed because it looks irregular.
        cause: what the certificate says of sample 1, as a part of its words; "" for kind "none".
        answers: ∂y/∂x (m, n) of sample 1 for those options that define one: "min_norm" for "matrix", "inactive" and "active"
            for "kink", "formal" (the derivative of the optimality conditions) for "certificate" and "none".
        note: what the problem is there to show.
    """

    name: str
    node: Callable[..., DeclarativeNode]
    inputs: Tensor
    jacobian: Callable[[Tensor], Tensor]
    kind: str
    cause: str
    answers: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def answer(self, option: str) -> Tensor:
        """The known ∂y/∂x of sample 1 under an option."""
        return torch.as_tensor(self.answers[option], dtype=self.inputs.dtype)


def batch(*rows: list[float]) -> Tensor:
    """x (3, n)."""
    return torch.tensor(rows, dtype=torch.float64)


def centering(n: int) -> Tensor:
    """I − 11ᵀ/n."""
    return torch.eye(n, dtype=torch.float64) - 1 / n
