"""Tags for A, the Jacobian of the constraints (constant, sparse, or both), and for B, the mixed second derivatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from declarative.structure.sparse import SparsePattern


@dataclass(frozen=True)
class Colouring:
    """Groups of rows that share no column.

    Args:
        pattern: where A is not zero.
        groups: (c, k) bool: the rows of each group.
        group: (entries,) the group that each entry is a part of.
    """

    pattern: SparsePattern
    groups: Tensor
    group: Tensor


@dataclass(frozen=True)
class Sparse:
    """A has entries other than zero only where the pattern says so.

    Rows that share no column are formed by one product together, so the whole of A takes as many products as its pattern
    needs colours (greedily found, once for each size).

    Args:
        pattern: (k, m) bool, equalities first and then inequalities; or a function (k, m) -> pattern, for statements of
            more than one size. May be left out inside `Constant(...)`, whose zeros are those of the matrix itself.
    """

    pattern: Tensor | Callable[[int, int], Tensor] | None = None
    _known: dict[tuple[int, int, torch.device], Colouring] = field(default_factory=dict, repr=False, compare=False)

    def colouring(self, k: int, m: int, device: torch.device) -> Colouring:
        """The pattern and its colours."""
        if (k, m, device) not in self._known:
            if self.pattern is None:
                raise ValueError("Sparse() without a pattern serves only inside Constant(Sparse()); pass Sparse(pattern) with a (k, m) bool tensor")
            mask = self.pattern if isinstance(self.pattern, Tensor) else torch.as_tensor(self.pattern(k, m))
            if tuple(mask.shape) != (k, m):
                raise ValueError(f"Sparse(pattern=...) has shape {tuple(mask.shape)}, but there are {k} constraints on y of {m} numbers: expected ({k}, {m})")
            mask = mask.bool().cpu()
            pattern, colours = SparsePattern.from_dense(mask), _coloured(mask)
            groups = colours == torch.arange(int(colours.max()) + 1, device="cpu").unsqueeze(1)
            there = SparsePattern(pattern.rows.to(device), pattern.columns.to(device), pattern.shape)
            self._known[k, m, device] = Colouring(there, groups.to(device), colours[pattern.rows].to(device))
        return self._known[k, m, device]


@dataclass(frozen=True)
class Constant:
    """A depends on no input and not on y, as that of linear constraints whose coefficients are fixed: formed once and kept.

    Args:
        structure: `Sparse()`, to keep and multiply only what is not zero; None: dense.
    """

    structure: Sparse | None = None


@dataclass(frozen=True)
class ScaledIdentityInput:
    """B with respect to one input is a multiple of the identity, and no constraint uses that input: ∂²L/∂y∂x = scale·I.

    Then x̄ = −scale·u, and no pull-back through the statement is needed for it. The case of ½‖y − x‖² (scale −1) and of a
    linear cost ⟨x, y⟩ (scale 1).

    Args:
        input: the position of the input, which must have as many numbers as y.
        scale: the multiple.
    """

    input: int = 0
    scale: float = 1.0


def _coloured(mask: Tensor) -> Tensor:
    """Greedy: each row gets the first colour none of whose rows shares a column with it."""
    used: list[Tensor] = []
    colours = torch.zeros(mask.shape[0], dtype=torch.int64, device="cpu")
    for row, columns in enumerate(mask):
        for colour, taken in enumerate(used):
            if not bool((taken & columns).any()):
                used[colour] = taken | columns
                colours[row] = colour
                break
        else:
            colours[row] = len(used)
            used.append(columns.clone())
    return colours
