"""What a worked problem is: a plain statement, instances of it, and what is known about its solution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from declarative import DeclarativeNode

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Problem:
    """A worked problem.

    Args:
        name: what tests, benchmarks and tutorials call it.
        node: makes the node; parameters, where it has any, come out the same each time.
        sample: (batch, generator, dtype) -> inputs. Instances are regular and stay so when they move a little: no
            constraint is weakly active, no minimiser is lost.
        in_dims: how the node is to be called on the sampled inputs; an entry is 0 or None.
        closed_form: inputs -> y, by a formula that does not use the node. Written in differentiable torch, so that its
            own derivatives of any order are exact.
        jacobian: inputs -> ∂y/∂(first input), (batch, *y_shape, *input_shape), as a formula.
        note: what the problem is there to show.
    """

    name: str
    node: Callable[[], DeclarativeNode]
    sample: Callable[[int, torch.Generator, torch.dtype], Inputs]
    in_dims: tuple[int | None, ...]
    closed_form: Callable[..., Any] | None = None
    jacobian: Callable[..., Tensor] | None = None
    note: str = ""


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers in float64: cast afterwards, so that every dtype gets the same instance."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    """Uniform numbers in [low, high), in float64."""
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def cast(dtype: torch.dtype, *tensors: Tensor) -> Inputs:
    """The sampled tensors in the dtype asked for."""
    return tuple(tensor.to(dtype) for tensor in tensors)
