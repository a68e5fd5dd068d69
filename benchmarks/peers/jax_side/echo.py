"""Tasks that need nothing but numpy, for the tests of the worker."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from ready import Ready


def echo(*arrays: Any, factor: float = 1.0) -> Ready:
    """The arrays, multiplied. It prints as well, which is not to reach the pipe of replies."""

    def run() -> tuple[Any, ...]:
        print("a task prints")
        return tuple(np.multiply(a, factor) for a in arrays)

    return Ready(run, lambda: sum(a.nbytes for a in arrays))


def fail(*arrays: Any) -> Ready:
    """An error as soon as it is loaded."""
    raise ValueError(f"{len(arrays)} arrays are not what was asked for")


def end(*_: Any) -> Ready:
    """The end of the worker, as by a crash."""
    print("the last words", file=sys.stderr)
    sys.stderr.flush()
    raise SystemExit(3)
