"""What a peer computes where derivatives are compared, and the loosest of its settings that is accurate enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from benchmarks.peers.remote import Task
from benchmarks.timing import Prepare, Side


@dataclass(frozen=True)
class Derivative:
    """One way of a peer to a derivative.

    Args:
        name: of the peer and its way.
        side: what is timed; a `Side` that is no function runs in another process.
        result: the derivative, in float64.
        note: what the reader must know of it.
    """

    name: str
    side: Prepare | Side
    result: Callable[[], Tensor]
    note: str = ""

    @classmethod
    def of_task(cls, name: str, task: Task, note: str = "") -> Derivative:
        """The first result of a task."""
        return cls(name, task, lambda: task.tensors()[0], note)

    @classmethod
    def here(cls, name: str, prepare: Callable[[], Callable[[], Tensor]], note: str = "") -> Derivative:
        """What a function of this process returns, prepared before each run."""
        return cls(name, prepare, lambda: prepare()().detach().double(), note)


@dataclass(frozen=True)
class Reached:
    """A way, at the setting that it was given last, and the error there."""

    way: Derivative
    tolerance: float
    error: float


def reach(ways: Callable[[float], Sequence[Derivative]], tolerances: Sequence[float], judge: Callable[[Tensor], float], wanted: float) -> tuple[Reached, ...]:
    """Each way at the loosest of the tolerances, loose to tight, that leads to the error wanted; at the last where none does."""
    found: dict[str, Reached] = {}
    for tolerance in tolerances:
        for way in ways(tolerance):
            if way.name not in found or not found[way.name].error <= wanted:
                found[way.name] = Reached(way, tolerance, judge(way.result()))
        if all(reached.error <= wanted for reached in found.values()):
            break
    return tuple(found.values())
