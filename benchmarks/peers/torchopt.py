"""torchopt: implicit differentiation of the unconstrained statements by its `custom_root`, of a solver that returns what it is given.

Its default linear solver, CG on the normal equations, stops at a relative residual of 1e-5; here at 1e-10, which gives gradients to 1e-9. H is
positive, so that its CG is the better choice, and its direct solve (by the matrix of the whole batch, since it knows one system only) the best where that
is small. It knows no batch of systems: the statement is batched, and CG runs until the batch as a whole is accurate.

Source: Ren et al., "TorchOpt: an efficient library for differentiable optimization", JMLR 24(367), 2023.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from benchmarks import statements
from benchmarks.peers.derivatives import Derivative

LINEAR_TOLERANCE = 1e-10
# The direct solve forms a matrix of (b m)² numbers.
DIRECT = 1000


def ways(kind: str, x: Tensor, y: Tensor, v: Tensor) -> tuple[Derivative, ...]:
    """⟨v, y⟩ differentiated by x (b, m) at the solution y: the backward pass alone. Raises ImportError where the package is missing.

    `kind` is the name of a class of benchmarks/statements.py: Robust, LogSumExp or Quartic.
    """
    implicit, linear = import_module("torchopt.diff.implicit"), import_module("torchopt.linear_solve")
    # It calls functorch by its old name, which torch complains of at each call.
    warnings.filterwarnings("ignore", "We've integrated functorch", FutureWarning)
    statement = getattr(statements, kind)()
    by_y = torch.func.grad(lambda y, x: statement.objective(x, y).sum())
    x, y = x.detach().clone().requires_grad_(), y.detach()

    def way(name: str, solve: Any) -> Derivative:
        solver = implicit.custom_root(lambda y, x: by_y(y, x), argnums=1, solve=solve)(lambda y, x: y)  # noqa: ARG005

        def prepare() -> Callable[[], Tensor]:
            found = solver(y, x)
            return lambda: torch.autograd.grad(found, x, v)[0]

        return Derivative.here(f"torchopt, {name}", prepare)

    tight = {"rtol": LINEAR_TOLERANCE, "atol": 0.0}
    found = [way("normal CG", linear.solve_normal_cg(**tight)), way("CG", linear.solve_cg(**tight))]
    return (*found, way("direct", linear.solve_inv())) if x.numel() <= DIRECT else tuple(found)
