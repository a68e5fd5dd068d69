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
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import machine

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


class Side(Protocol):
    """One of the two that are timed, where a call of Python would not do: a peer in a process of its own keeps its own clock."""

    def warm_up(self, effort: Effort) -> None:
        """The untimed runs."""
        ...

    def block(self, effort: Effort) -> float:
        """The median milliseconds of one block's runs."""
        ...


@dataclass(frozen=True)
class Here:
    """A function of this process. On a device that works ahead of Python, the clock waits for it."""

    prepare: Prepare

    def warm_up(self, effort: Effort) -> None:
        """The untimed runs."""
        for _ in range(effort.warm_up * effort.runs):
            self.prepare()()

    def block(self, effort: Effort) -> float:
        """The median milliseconds of one block's runs."""
        times: list[float] = []
        while len(times) < effort.runs or sum(times) < effort.seconds:
            run = self.prepare()
            machine.wait()
            start = time.perf_counter()
            result = run()
            machine.wait()
            times.append(time.perf_counter() - start)
            del result, run
        return 1e3 * statistics.median(times)


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


def measure(side: Prepare | Side, effort: Effort = FULL) -> Spread:
    """Milliseconds of one side."""
    side = _side(side)
    with _without_collector():
        side.warm_up(effort)
        return _spread([side.block(effort) for _ in range(effort.blocks)])


def compare(ours: Prepare | Side, peer: Prepare | Side, effort: Effort = FULL) -> Comparison:
    """Milliseconds of two sides, in alternating blocks."""
    ours, peer = _side(ours), _side(peer)
    with _without_collector():
        ours.warm_up(effort)
        peer.warm_up(effort)
        pairs = [(ours.block(effort), peer.block(effort)) for _ in range(effort.blocks)]
    return Comparison(_spread([a for a, _ in pairs]), _spread([b for _, b in pairs]), _spread([b / a for a, b in pairs]))


def _side(side: Prepare | Side) -> Side:
    return Here(side) if callable(side) else side


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
