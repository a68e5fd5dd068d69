"""Which matrices have columns that depend on each other."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def deficient(matrix: Tensor) -> Tensor:
    """(b, m, n) -> (b,): whether the columns, brought to unit length, depend on each other but for rounding."""
    matrix = matrix.detach()
    b, m, n = matrix.shape
    if n > m:
        return torch.ones(b, dtype=torch.bool, device=matrix.device)
    if not n:
        return torch.zeros(b, dtype=torch.bool, device=matrix.device)
    size = matrix.abs().amax(1, keepdim=True)
    unit = matrix / torch.where(size > 0, size, 1.0)
    norm = torch.linalg.vector_norm(unit, dim=1, keepdim=True)
    _, R = torch.linalg.qr(unit / torch.where(norm > 0, norm, 1.0), mode="r")
    # Without pivoting no entry of the diagonal need be small; the inverse of a triangular factor shows it.
    values = torch.linalg.svdvals(R)
    return values[:, -1] <= 4 * max(m, n) * torch.finfo(matrix.dtype).eps * values[:, 0]
