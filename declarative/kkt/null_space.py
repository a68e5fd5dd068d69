"""The row space of A and its pseudo-inverse, for whoever works on null(A)."""

from __future__ import annotations

import torch
from torch import Tensor

from declarative.typing import Jacobians
from declarative.vectors import rank_tolerance


def row_space(jacobian: Jacobians) -> tuple[Tensor, Tensor]:
    """An orthonormal basis of the row space, (b, m, r) with zero columns where rows depend, and A⁺ (b, m, k)."""
    finite = torch.isfinite(jacobian).flatten(1).all(1)
    safe = torch.where(finite[:, None, None], jacobian, 0.0)
    left, values, right = torch.linalg.svd(safe, full_matrices=False)
    cutoff = rank_tolerance(max(jacobian.shape[1:]), jacobian.dtype) * values.amax(-1, keepdim=True)
    kept = values > cutoff
    inverse = torch.where(kept, 1 / values, 0.0)
    basis = right.mT * kept.unsqueeze(-2)
    basis = torch.where(finite[:, None, None], basis, torch.nan)
    return basis, (right.mT * inverse.unsqueeze(-2)) @ left.mT
