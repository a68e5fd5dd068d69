"""From a function of jax to a task."""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import jax
from ready import Ready


def compiled(function: Any, *arrays: Any) -> Ready:
    """A function that `jax.jit` returned and its arguments, in 64 bits where they are."""
    if not jax.config.jax_enable_x64:
        raise RuntimeError("jax is to be started with JAX_ENABLE_X64=1")
    there = [jax.numpy.asarray(array) for array in arrays]

    def run() -> tuple[Any, ...]:
        result = jax.block_until_ready(function(*there))
        return result if isinstance(result, tuple) else (result,)

    def memory() -> int | None:
        needed = function.lower(*there).compile().memory_analysis()
        return None if needed is None else needed.temp_size_in_bytes + needed.output_size_in_bytes

    return Ready(run, memory)
