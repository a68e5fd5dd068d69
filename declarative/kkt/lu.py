"""Batched LU that can be trusted on the CPU.

torch 2.13 with MKL and more than one thread factorises the matrices of a batch concurrently, and from n ≈ 150 on MKL's own
threads then collide: the call hangs, or returns wrong numbers under "Parameter 6 was incorrect on entry to DLASWP"
(pytorch/pytorch#142815, #141358, #181570). Below 128 the concurrent way is safe and twice as fast (3.1 for 6.5 ms at
n = 128, b = 64); above, the matrices go one by one, each with all threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SAFE_SIZE = 128


def lu_factor(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(b, n, n) -> factors (b, n, n) and pivots (b, n), without a check for singularity."""
    if matrix.device.type != "cpu" or matrix.shape[-1] <= _SAFE_SIZE or matrix.shape[0] == 1:
        factor, pivots, _ = torch.linalg.lu_factor_ex(matrix)
        return factor, pivots
    pairs = [torch.linalg.lu_factor_ex(one)[:2] for one in matrix]
    return torch.stack([factor for factor, _ in pairs]), torch.stack([pivots for _, pivots in pairs])
