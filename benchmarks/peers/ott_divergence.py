"""The Hessian of the Sinkhorn divergence by OTT (jax, compiled), by its implicit differentiation, as its tutorial has it.

Source: Cuturi et al., "Optimal transport tools (OTT): a JAX toolbox for all things Wasserstein", arXiv 2201.12324, 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import Tensor

THRESHOLD = 1e-12


def hessian(position: int, inputs: tuple[Tensor, Tensor, Tensor, Tensor], epsilon: float) -> Callable[[], Any]:
    """Of S_ε(x, y, a, b), by x (position 0) or a (2), as a jax array. Raises ImportError where the package is not installed."""
    jax, divergence = import_module("jax"), import_module("ott.tools.sinkhorn_divergence")
    pointcloud, implicit = import_module("ott.geometry.pointcloud"), import_module("ott.solvers.linear.implicit_differentiation")
    jax.config.update("jax_enable_x64", True)
    arrays = [jax.numpy.asarray(t.numpy()) for t in inputs]
    how = {"implicit_diff": implicit.ImplicitDiff(precondition_fun=lambda x: x), "use_danskin": False, "threshold": THRESHOLD, "max_iterations": 5000}

    def value(x: Any, y: Any, a: Any, b: Any) -> Any:
        found = divergence.sinkhorn_divergence(pointcloud.PointCloud, x, y, a=a, b=b, epsilon=epsilon, solve_kwargs=how)
        return found[0]

    second = jax.jit(jax.hessian(value, argnums=position))
    return lambda: second(*arrays).block_until_ready()
