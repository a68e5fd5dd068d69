"""cvxpylayers on the quadratic programs, with its defaults (diffcp, which solves by SCS).

Q itself cannot be a parameter (½ yᵀQy would break cvxpy's rules for parametrised programs); the way that its documentation shows is a
square root, taken here by torch inside the timed call, so that the gradient reaches Q.

Source: Agrawal et al., "Differentiable convex optimization layers", NeurIPS 2019.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

from benchmarks.quadratic import Answer


def prepare(n: int, p: int, q: int) -> Callable[..., Answer]:
    """(Q, c, A, b, G, d) -> y, ν, μ. Raises ImportError where the package is not installed."""
    cp, layers = import_module("cvxpy"), import_module("cvxpylayers.torch")
    # It copies tensors by np.array, in both passes, which numpy 2 and torch together complain of.
    warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
    y, root, c = cp.Variable(n), cp.Parameter((n, n)), cp.Parameter(n)
    A, b, G, d = cp.Parameter((p, n)), cp.Parameter(p), cp.Parameter((q, n)), cp.Parameter(q)
    equality, inequality = A @ y == b, G @ y <= d
    program = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(root @ y) + c @ y), [equality, inequality])
    variables = [y, equality.dual_variables[0], inequality.dual_variables[0]]
    layer = layers.CvxpyLayer(program, parameters=[root, c, A, b, G, d], variables=variables)

    def solve(Q: Tensor, *rest: Tensor) -> Answer:
        found, nu, mu = layer(torch.linalg.cholesky(Q).mT.contiguous(), *rest)
        return Answer(found, nu.detach(), mu.detach())

    return solve
