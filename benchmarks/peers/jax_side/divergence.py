"""OTT on the Hessian of the Sinkhorn divergence."""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import jax
from compiled import compiled
from ott.geometry import pointcloud
from ott.tools import sinkhorn_divergence
from ready import Ready
from transport import symmetric_adjoint

STEPS = 5000


def hessian(x: Any, y: Any, a: Any, b: Any, *, position: int, epsilon: float, threshold: float, linear_tolerance: float) -> Ready:
    """Of S_ε(x, y, a, b) by the input at this position."""
    implicit = symmetric_adjoint(linear_tolerance)
    how = {"implicit_diff": implicit, "use_danskin": False, "threshold": threshold, "max_iterations": STEPS}

    def value(x: Any, y: Any, a: Any, b: Any) -> Any:
        return sinkhorn_divergence.sinkhorn_divergence(pointcloud.PointCloud, x, y, a=a, b=b, epsilon=epsilon, solve_kwargs=how)[0]

    return compiled(jax.jit(jax.hessian(value, argnums=position)), x, y, a, b)
