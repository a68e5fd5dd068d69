"""What a task is once it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ready:
    """A function without arguments, compiled, its arrays in place.

    Args:
        run: returns a tuple of arrays when they are there, not before.
        memory: bytes that the compiled program needs, None where nobody knows.
    """

    run: Callable[[], tuple[Any, ...]]
    memory: Callable[[], int | None] = lambda: None
