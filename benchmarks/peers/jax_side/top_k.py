"""jaxopt's projections onto the simplex, and onto the capped simplex."""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from compiled import compiled
from jaxopt import projection
from ready import Ready


def both_ways(x: Any, v: Any, *, k: int) -> Ready:
    """(b, n) -> the gradient (b, n) of ⟨v, u⟩, and u (b, n)."""

    def projected(x: Any) -> Any:
        if k == 1:
            return projection.projection_simplex(x)
        ones = jnp.ones_like(x)
        return projection.projection_box_section(x, (0 * ones, ones, ones, float(k)))

    def one(x: Any, v: Any) -> Any:
        u, pull_back = jax.vjp(projected, x)
        return pull_back(v)[0], u

    return compiled(jax.jit(jax.vmap(one)), x, v)
