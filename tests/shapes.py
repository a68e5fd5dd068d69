"""The run-time check of shapes and types that the tests put on the package's inside (see conftest.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from beartype import beartype


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype, for modules whose contracts are protocols: those are made checkable first (by the names of their members)."""
    for value in function.__globals__.values():
        if isinstance(value, type) and value is not Protocol and getattr(value, "_is_protocol", False):
            runtime_checkable(value)
    return beartype(function)
