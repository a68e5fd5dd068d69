"""One measured row: what it says, what was asked of it, and the table that people read in a terminal."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.timing import Spread

_WIDTH = 190
FLOOR = "bare arithmetic"
"""What a row names as its peer where the peer is the same operations written by hand, without checks, shapes or choices."""


@dataclass(frozen=True)
class Target:
    """What a row is to reach: a ratio of at least `ratio`, a value of ours of at most `ours`, an error of ours of at most `error`."""

    ratio: float | None = None
    ours: float | None = None
    error: float | None = None

    def __str__(self) -> str:
        parts = (("≥ {:.3g}x", self.ratio), ("≤ {:g}", self.ours), ("error ≤ {:g}", self.error))
        return ", ".join(text.format(limit) for text, limit in parts if limit is not None)

    def met(self, ratio: Spread | None, ours: float, error: float | None) -> bool:
        """All that is asked for."""
        enough = self.ratio is None or (ratio is not None and ratio.median >= self.ratio)
        close = self.error is None or (error is not None and error <= self.error)
        return enough and close and (self.ours is None or ours <= self.ours)


@dataclass(frozen=True)
class Point:
    """Where a row stands in a plot.

    Args:
        figure: its title.
        axis, x: what is varied, and its value.
        line: our own line, where a figure has several.
    """

    figure: str
    axis: str
    x: float
    line: str = "ours"


@dataclass(frozen=True)
class Row:
    """One line of a suite.

    Args:
        what: what was measured, with its size.
        ours, peer: in `unit`; peer None where there is none.
        against: the peer.
        ratio: how many times as much the peer needs, with the spread over blocks where it was timed.
        target: None: for information.
        error, peer_error: of both results against a tight reference, in the measure named by `errors`.
        memory, peer_memory: the most bytes that tensors held at once.
        point: where it stands in a plot.
        note: what else the reader must know: why a peer is missing, for one.
        cause: why the target is not reached, shown where it is not.
    """

    suite: str
    what: str
    unit: str
    ours: float
    against: str = ""
    peer: float | None = None
    ratio: Spread | None = None
    target: Target | None = None
    error: float | None = None
    peer_error: float | None = None
    errors: str = ""
    memory: int | None = None
    peer_memory: int | None = None
    point: Point | None = None
    note: str = ""
    cause: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        return None if self.target is None else self.target.met(self.ratio, self.ours, self.error)

    def as_json(self) -> dict[str, Any]:
        """The row and its verdict as plain values."""
        return asdict(self) | {"met": self.met}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Row:
        """The row that `as_json` wrote."""
        values = {name: value for name, value in values.items() if name != "met"}
        for name, kind in (("ratio", Spread), ("target", Target), ("point", Point)):
            values[name] = None if values[name] is None else kind(**values[name])
        return cls(**values)


def open_console() -> Console:
    """The terminal, or a width to print with where the output goes to a file, which has none of its own."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def check_names(parser: ArgumentParser, names: Iterable[str], known: Iterable[str], kind: str) -> None:
    """The usage, and an exit, for names that are not known."""
    known = list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"no {kind} named {', '.join(unknown)}; there are {', '.join(known)}")


COLUMNS = ("ours", "peer", "ratio (spread)", "target", "", "errors: ours, peer", "memory: ours, peer")


def cells(row: Row) -> tuple[str, ...]:
    """What stands under `COLUMNS`, as text."""
    verdict = {None: "", True: "met", False: "short"}[row.met]
    number = _number(row.peer, row.unit)
    peer = f"{number} {row.against}".strip()
    return (_number(row.ours, row.unit), peer, _ratio(row.ratio), str(row.target or ""), verdict, _errors(row), _memory(row))


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "":
        return f"{value:.1e}"
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def _ratio(ratio: Spread | None) -> str:
    if ratio is None:
        return ""
    if ratio.low == ratio.high:
        return f"{ratio.median:.3g}x"
    return f"{ratio.median:.3g}x ({ratio.low:.3g}..{ratio.high:.3g})"


def _errors(row: Row) -> str:
    parts = ["" if error is None else f"{error:.0e}" for error in (row.error, row.peer_error)]
    return "" if not any(parts) else f"{parts[0]}, {parts[1] or '–'} {row.errors}".strip()


def _memory(row: Row) -> str:
    largest = max(row.memory or 0, row.peer_memory or 0)
    if not largest:
        return ""
    unit, name = (2**20, "MiB") if largest >= 2**20 else (2**10, "KiB")
    parts = ["–" if size is None else f"{size / unit:.3g}" for size in (row.memory, row.peer_memory)]
    return f"{parts[0]}, {parts[1]} {name}"


def print_table(title: str, rows: Iterable[Row], console: Console) -> None:
    """The rows of one suite."""
    table = Table(title=title, title_justify="left")
    table.add_column("what", overflow="fold")
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=name in ("ours", "target", ""))
    colours = {"met": "[green]met[/]", "short": "[red]short[/]"}
    for row in rows:
        what = escape(row.what) + (f" [dim]({escape(row.note)})[/]" if row.note else "")
        table.add_row(what, *(colours.get(cell, escape(cell)) for cell in cells(row)))
    console.print(table)
