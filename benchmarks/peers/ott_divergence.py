"""The Hessian of the Sinkhorn divergence by OTT (jax, compiled), by its implicit differentiation, as its tutorial has it.

The linear solver is the one that its documentation gives for a symmetric system, two to three times as quick as the tutorial's and more accurate.

Source: Cuturi et al., "Optimal transport tools (OTT): a JAX toolbox for all things Wasserstein", arXiv 2201.12324, 2022.
"""

from __future__ import annotations

from torch import Tensor

from benchmarks.peers.derivatives import Derivative
from benchmarks.peers.remote import Task

THRESHOLD, LINEAR_TOLERANCE = 1e-12, 1e-9


def hessian(position: int, inputs: tuple[Tensor, Tensor, Tensor, Tensor], epsilon: float) -> Derivative:
    """Of S_ε(x, y, a, b), by x (position 0) or a (2). Raises ImportError where the package is not installed."""
    options = {"position": position, "epsilon": epsilon, "threshold": THRESHOLD, "linear_tolerance": LINEAR_TOLERANCE}
    task = Task(("ott",), "divergence", "hessian", inputs, **options)
    return Derivative.of_task("OTT, implicit", task)
