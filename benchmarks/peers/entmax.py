"""entmax: the projection onto the simplex, which its authors call sparsemax, and the one with a budget, which is the Euclidean top-k.

The former sorts only the largest entries, and more where these do not suffice, as its documentation advises where few are expected to be nonzero: of 1000
normal numbers four are, and it is four times as quick as its default, which sorts all. The latter halves an interval as often as the documentation says
for a dtype.

Source: Martins & Astudillo, "From softmax to sparsemax", ICML 2016; Peters, Niculae & Martins, "Sparse sequence-to-sequence models", ACL 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

LARGEST = 20
HALVINGS = {torch.float64: 50, torch.float32: 24}


def sparsemax(largest: int | None = LARGEST) -> Callable[[Tensor], Tensor]:
    """x (b, n) -> u (b, n), Σu = 1, u ≥ 0. `largest`: how many to sort at first, None for all. Raises ImportError where the package is missing."""
    function = import_module("entmax").sparsemax
    return lambda x: function(x, dim=-1, k=largest)


def budget(k: int) -> Callable[[Tensor], Tensor]:
    """x (b, n) -> u (b, n), Σu = k, 0 ≤ u ≤ 1. Raises ImportError where the package is missing."""
    function = import_module("entmax").budget_bisect
    return lambda x: function(x, budget=k, dim=-1, n_iter=HALVINGS[x.dtype])
