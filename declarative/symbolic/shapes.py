"""The flat numbers of a batch as arrays, and back; and values that are made when they are first asked for."""

# sympy annotates most results as Basic.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from sympy import Symbol
from torch import Tensor
from torch.nn.functional import pad


class Values(dict[Symbol, Tensor]):
    """What the arguments of generated functions are, by label.

    Args:
        known: at hand.
        later: made on demand.
    """

    def __init__(self, known: Mapping[Symbol, Tensor], later: Mapping[Symbol, Callable[[], Tensor]] | None = None) -> None:
        super().__init__(known)
        self._later = later or {}

    def __missing__(self, label: Symbol) -> Tensor:
        self[label] = value = self._later[label]()
        return value

    def having(self, arrays: Sequence[Any], parts: Sequence[Tensor]) -> Values:
        """With these besides."""
        found = Values(self, self._later)
        for array, part in zip(arrays, parts, strict=True):
            found[array.label] = part
        return found


@dataclass(frozen=True)
class Shapes:
    """How the numbers of one sample are arranged.

    Args:
        batch: b.
        variables: the shape of each variable.
        families: that of each family of constraints.
        dropped: the family whose last constraint is left out, because it follows from the others.
    """

    batch: int
    variables: tuple[tuple[int, ...], ...]
    families: tuple[tuple[int, ...], ...]
    dropped: int | None

    @cached_property
    def variable_sizes(self) -> list[int]:
        """How many numbers each variable has."""
        return [prod(s) for s in self.variables]

    @cached_property
    def family_sizes(self) -> list[int]:
        """How many constraints each family has, with the one that is left out."""
        return [prod(s) for s in self.families]

    @cached_property
    def count(self) -> int:
        """k, the number of constraints."""
        return sum(self.family_sizes) - (self.dropped is not None)

    @cached_property
    def size(self) -> int:
        """m, the numbers of y."""
        return sum(self.variable_sizes)

    @cached_property
    def _place(self) -> int:
        """Where the constraint that is left out would stand."""
        return sum(self.family_sizes[: (self.dropped or 0) + 1]) - 1

    def split(self, flat: Tensor) -> list[Tensor]:
        """(…, m) -> (…, *shape) for each variable."""
        return _split(flat, self.variables, self.variable_sizes)

    def split_rows(self, flat: Tensor) -> list[Tensor]:
        """(…, k) -> (…, *shape) for each family; 0 for the constraint that is left out."""
        if self.dropped is None:
            return _split(flat, self.families, self.family_sizes)
        if self._place == self.count:
            return _split(pad(flat, (0, 1)), self.families, self.family_sizes)
        before, after = flat[..., : self._place], flat[..., self._place :]
        return _split(torch.cat([pad(before, (0, 1)), after], -1), self.families, self.family_sizes)

    def join(self, parts: Sequence[Tensor], lead: tuple[int, ...] | None = None) -> Tensor:
        """(…, *shape) for each variable, the batch perhaps missing -> (*lead, m); lead: by default (b,)."""
        return _joined(parts, self.variables, self.variable_sizes, lead or (self.batch,))

    def join_rows(self, parts: Sequence[Tensor], lead: tuple[int, ...] | None = None) -> Tensor:
        """The same for families -> (*lead, k)."""
        return self.without_dropped(_joined(parts, self.families, self.family_sizes, lead or (self.batch,)), -1)

    def without_dropped(self, whole: Tensor, dim: int) -> Tensor:
        """Without the constraint that is left out."""
        if self.dropped is None:
            return whole
        before = whole.narrow(dim, 0, self._place)
        if self._place == self.count:
            return before
        return torch.cat([before, whole.narrow(dim, self._place + 1, self.count - self._place)], dim)


def _split(flat: Tensor, shapes: Sequence[tuple[int, ...]], sizes: list[int]) -> list[Tensor]:
    lead = flat.shape[:-1]
    if len(shapes) == 1:
        return [flat.reshape(*lead, *shapes[0])]
    return [part.reshape(*lead, *s) for part, s in zip(flat.split(sizes, -1), shapes, strict=True)]


def _joined(parts: Sequence[Tensor], shapes: Sequence[tuple[int, ...]], sizes: list[int], lead: tuple[int, ...]) -> Tensor:
    flat = [
        (part if part.shape == lead + shape else part.expand(*lead, *shape)).reshape(*lead, size)
        for part, shape, size in zip(parts, shapes, sizes, strict=True)
    ]
    return flat[0] if len(flat) == 1 else torch.cat(flat, -1)
