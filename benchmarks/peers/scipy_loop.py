"""A loop of scipy.optimize.minimize over the batch: what one writes without a batched solver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.optimize

from benchmarks.smooth import Array, Instance

# About as exact as Newton's last step leaves the package's own solver, where the method can.
TOLERANCE = 1e-9
DEFAULT = "BFGS"
METHODS: dict[str, dict[str, Any]] = {
    "trust-exact": {"gtol": TOLERANCE},
    "Newton-CG": {"xtol": TOLERANCE},
    "BFGS": {"gtol": TOLERANCE},
}


def minimise(instances: Sequence[Instance], method: str) -> Array:
    """y (b, m) from zero."""
    with_hessian = method != "BFGS"
    found = []
    for instance in instances:
        hessian = {"hess": instance.hessian} if with_hessian else {}
        start = np.zeros(instance.size)
        result = scipy.optimize.minimize(instance.value_and_gradient, start, jac=True, method=method, options=METHODS[method], **hessian)
        found.append(result.x)
    return np.stack(found)
