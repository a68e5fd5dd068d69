"""What closed forms of worked problems share: roots as exact, differentiable functions of the inputs. No node is used."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Field = Callable[[Tensor], Tensor]


def root(field: Field, slope: Field, start: Tensor, steps: int = 50) -> Tensor:
    """The root y of F near `start`, by Newton's method; its derivatives in whatever F uses are exact to the third order.

    Two more steps, differentiable, follow at the root: a Newton step squares the distance, so that each doubles the order (plus one) to which y depends
    on the inputs as the root does: 1 after one step, 3 after two.

    Args:
        field: y (b, n) -> F (b, n).
        slope: y (b, n) -> ∂F/∂y (b, n, n).
        start: (b, n), near enough.
        steps: how many are made before that.
    """

    def step(y: Tensor) -> Tensor:
        return y - torch.linalg.solve(slope(y), field(y).unsqueeze(2)).squeeze(2)

    y = start.detach()
    with torch.no_grad():
        for _ in range(steps):
            y = step(y)
    return step(step(y))
