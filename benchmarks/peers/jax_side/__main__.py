"""The worker of benchmarks/peers/remote.py: run by a Python that has jax, it imports neither torch nor the benchmarks.

A request is a pickled dict on the standard input: what to "do", the arguments of that, and ids to "forget". A reply is a pickled pair on what was
the standard output: whether it went well, and the result, or the error as text. Times are taken here, so that the pipe is not part of them.
"""

from __future__ import annotations

import gc
import os
import pickle
import statistics
import sys
import time
from importlib import import_module
from typing import Any

import numpy as np
from ready import Ready


class Tasks:
    """What can be asked for."""

    def __init__(self) -> None:
        self._ready: dict[int, Ready] = {}
        self._count = 0

    def require(self, package: str) -> None:
        """An error where it cannot be imported."""
        import_module(package)

    def load(self, module: str, function: str, arrays: list[Any], options: dict[str, Any]) -> int:
        """The id of a task that has run once, and so is compiled."""
        ready = getattr(import_module(module), function)(*arrays, **options)
        ready.run()
        self._count += 1
        self._ready[self._count] = ready
        return self._count

    def run(self, task: int) -> tuple[Any, ...]:
        """Its results."""
        return tuple(np.asarray(array) for array in self._ready[task].run())

    def block(self, task: int, runs: int, seconds: float) -> float:
        """The median milliseconds of at least so many runs that take at least so many seconds, by the rules of benchmarks/timing.py."""
        run, times = self._ready[task].run, []
        gc.disable()
        try:
            while len(times) < runs or sum(times) < seconds:
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
        finally:
            gc.enable()
        return 1e3 * statistics.median(times)

    def memory(self, task: int) -> int | None:
        """Bytes."""
        return self._ready[task].memory()

    def loaded(self) -> list[int]:
        """The ids that are kept."""
        return list(self._ready)

    def forget(self, task: int) -> None:
        """Its arrays and its program are free to go."""
        del self._ready[task]


def serve() -> None:
    """Until the input ends."""
    replies, requests, tasks = os.fdopen(os.dup(1), "wb"), sys.stdin.buffer, Tasks()
    # Whoever prints, in Python or in C, prints to the standard error: one stray byte would spoil the replies.
    os.dup2(2, 1)
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        try:
            for task in request.pop("forget"):
                tasks.forget(task)
            reply = (True, getattr(tasks, request.pop("do"))(**request))
        except Exception as error:  # whatever it is, the other side is to know
            reply = (False, f"{type(error).__name__}: {error}")
        pickle.dump(reply, replies)
        replies.flush()


if __name__ == "__main__":
    os.environ["JAX_ENABLE_X64"] = "1"  # before anything imports jax
    serve()
