"""Two functions timed against each other on a machine that is not quiet, and the memory that a function needs.

Times taken minutes apart do not compare: clocks change and other processes come and go. So the two sides run in short blocks that
alternate, each pair of neighbouring blocks gives one ratio, and the median of these is reported with the smallest and the largest.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Called once a run, untimed; what it returns is timed. So a forward pass can precede each timed backward pass.
Prepare = Callable[[], Callable[[], Any]]


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Args:
        blocks: blocks a side.
        seconds: timed seconds a block, if `runs` do not take longer.
        runs: at least this many runs a block.
        warm_up: untimed runs beforehand, in multiples of `runs`.
    """

    blocks: int = 9
    seconds: float = 0.04
    runs: int = 5
    warm_up: int = 3


FULL = Effort()
QUICK = Effort(blocks=2, seconds=0.0, runs=1)


@dataclass(frozen=True)
class Spread:
    """A median and the range around it, over blocks."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Milliseconds of both sides, and how many times as long the peer takes."""

    ours: Spread
    peer: Spread
    ratio: Spread


def measure(prepare: Prepare, effort: Effort = FULL) -> Spread:
    """Milliseconds of one function."""
    with _without_collector():
        _warm_up(prepare, effort)
        return _spread([_block(prepare, effort) for _ in range(effort.blocks)])


def compare(ours: Prepare, peer: Prepare, effort: Effort = FULL) -> Comparison:
    """Milliseconds of two functions, in alternating blocks."""
    with _without_collector():
        _warm_up(ours, effort)
        _warm_up(peer, effort)
        pairs = [(_block(ours, effort), _block(peer, effort)) for _ in range(effort.blocks)]
    return Comparison(_spread([a for a, _ in pairs]), _spread([b for _, b in pairs]), _spread([b / a for a, b in pairs]))


def _spread(values: list[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


@contextmanager
def _without_collector():
    """Python's cycle collector off: it would run inside whichever side happens to allocate."""
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _warm_up(prepare: Prepare, effort: Effort) -> None:
    for _ in range(effort.warm_up * effort.runs):
        prepare()()


def _block(prepare: Prepare, effort: Effort) -> float:
    times: list[float] = []
    while len(times) < effort.runs or sum(times) < effort.seconds:
        run = prepare()
        start = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - start)
        del result, run
    return 1e3 * statistics.median(times)


class _LiveBytes(TorchDispatchMode):
    """Follows every storage that an operator returns until it is freed.

    Weak references to storages expire when torch itself lets go of them, whoever held them: Python, or a C++ node of the
    autograd graph. So what a graph keeps for its backward pass is counted, and the count is the same on every run. On a chain of
    1000 operations and its backward pass it agrees with the log of torch's CPU allocator to the scalars in between. Resident
    size, the alternative, moves by megabytes from run to run, since freed memory does not go back to the system at once.
    """

    def __init__(self, slack: float) -> None:
        super().__init__()
        self._slack = 1 + slack
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        if self._now > self._slack * self.peak:
            # Only a count of what is alive may set the peak; below it, the dead can stay on the list.
            self._prune()
            self.peak = max(self.peak, self._now)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        known = self._live.get(key)
        if known is not None and not known[0].expired():
            return
        self._now += storage.nbytes() - (known[1] if known is not None else 0)
        self._live[key] = (StorageWeakRef(storage), storage.nbytes())

    def _prune(self) -> None:
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        self._now = sum(size for _, size in self._live.values())


def peak_bytes(run: Callable[[], Any], slack: float = 0.0) -> int:
    """The most bytes that tensors made by `run` hold at once. Tensors made before are not counted.

    Args:
        slack: how much, relatively, the result may fall short. Counting a graph of ten thousands of tensors exactly takes minutes.
    """
    with _LiveBytes(slack) as live:
        run()
    return live.peak
