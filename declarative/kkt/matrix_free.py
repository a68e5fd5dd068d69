"""The KKT matrix by products only: conjugate gradients on null(A), MINRES on the whole, or a hook of the node's author.

The matrix is known by the engine's products at a point, so its derivative is too: differentiating K(x, y, λ) z for a fixed z
is one more sweep. Whatever solved the system, by whatever means, is then differentiable to any order (structure/base.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from declarative.structure.base import Operator
from declarative.transforms import is_wrapped

# Numbers: (the operator at hand, right-hand sides (b, n, k)) -> solutions.
Method = Callable[["MatrixFreeKKT", Tensor], Tensor]
# (problem tensors, y, λ) -> an object with hessian_product, jacobian_product, jacobian_products, jacobian.
Linearise = Callable[[Sequence[Tensor], Tensor, Tensor], Any]


@dataclass(frozen=True, eq=False)
class MatrixFreeKKT(Operator):
    """K of n = m + k rows at (x, y, λ).

    Args:
        linearise: the engine, for the statement at hand.
        method: how it is solved.
        arguments: the statement's tensors, each with the batch in front.
        y, multipliers, weights: (b, m), (b, k), (b, k): the point and ρ.
        at: the linearisation at this very point, if there is one already.
    """

    linearise: Linearise
    method: Method
    arguments: tuple[Tensor, ...]
    y: Tensor
    multipliers: Tensor
    weights: Tensor
    at: Any = None
    checks_itself = True  # by residuals; what the policy leaves as NaN is meant

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.arguments, self.y, self.multipliers, self.weights)

    def with_tensors(self, tensors: Sequence[Tensor]) -> MatrixFreeKKT:
        *arguments, y, multipliers, weights = tensors
        # Detached aliases of the very same numbers keep the linearisation; wrapped tensors have no address to compare.
        same = not any(is_wrapped(t) for t in (*tensors, *self.tensors)) and all(
            a.data_ptr() == b.data_ptr() and a.shape == b.shape for a, b in zip(tensors, self.tensors, strict=True)
        )
        return replace(self, arguments=tuple(arguments), y=y, multipliers=multipliers, weights=weights, at=self.at if same else None)

    @property
    def shape(self) -> tuple[int, int, int]:
        n = self.y.shape[1] + self.multipliers.shape[1]
        return self.y.shape[0], n, n

    def transpose(self) -> MatrixFreeKKT:
        return self

    def linearised(self) -> Any:
        """The engine's products at this point."""
        return self.linearise(self.arguments, self.y, self.multipliers) if self.at is None else self.at

    def matmul_columns(self, columns: Tensor) -> Tensor:
        at, m = self.linearised(), self.y.shape[1]
        results = []
        for column in columns.unbind(-1):
            u, w = column[:, :m], column[:, m:]
            if not w.shape[1]:
                results.append(at.hessian_product(u))
                continue
            rho = self.weights
            top = at.hessian_product(u) + at.jacobian_transposed_product(rho * w)
            results.append(torch.cat([top, rho * at.jacobian_product(u) - (1 - rho * rho) * w], 1))
        return torch.stack(results, -1)

    def solve_columns(self, columns: Tensor) -> Tensor:
        return self.method(self, columns)
