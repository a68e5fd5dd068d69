"""One measured row, the table that people read and the JSON that scripts read."""

from __future__ import annotations

import json
import os
import platform
from argparse import ArgumentParser
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.timing import Comparison, Spread

_WIDTH = 150


@dataclass(frozen=True)
class Target:
    """What a row is to reach: a ratio of at least `ratio`, a value of ours of at most `ours`, a difference of at most `agreement`."""

    ratio: float | None = None
    ours: float | None = None
    agreement: float | None = None

    def __str__(self) -> str:
        parts = (("≥ {:.3g}x", self.ratio), ("≤ {:g}", self.ours), ("difference ≤ {:g}", self.agreement))
        return ", ".join(text.format(limit) for text, limit in parts if limit is not None)

    def met(self, ratio: Spread | None, ours: float, agreement: float | None) -> bool:
        """All that is asked for."""
        enough = self.ratio is None or (ratio is not None and ratio.median >= self.ratio)
        close = self.agreement is None or (agreement is not None and agreement <= self.agreement)
        return enough and close and (self.ours is None or ours <= self.ours)


@dataclass(frozen=True)
class Row:
    """One line of a suite.

    Args:
        what: what was measured, with its size.
        ours, peer: in `unit`; peer None where there is none.
        ratio: how many times as much the peer needs, with the spread over blocks where it was timed.
        target: None: for information.
        agreement: largest difference between the two results, relative to the largest entry.
        note: what else the reader must know: why a peer is missing, for one.
    """

    suite: str
    what: str
    unit: str
    ours: float
    peer: float | None = None
    ratio: Spread | None = None
    target: Target | None = None
    agreement: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        return None if self.target is None else self.target.met(self.ratio, self.ours, self.agreement)


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


def timed(suite: str, what: str, comparison: Comparison, target: Target | None = None, agreement: float | None = None, note: str = "") -> Row:
    """The row of a timed comparison."""
    return Row(suite, what, "ms", comparison.ours.median, comparison.peer.median, comparison.ratio, target, agreement, note)


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def _ratio(row: Row) -> str:
    if row.ratio is None:
        return ""
    if row.ratio.low == row.ratio.high:
        return f"{row.ratio.median:.3g}x"
    return f"{row.ratio.median:.3g}x  ({row.ratio.low:.3g}..{row.ratio.high:.3g})"


def print_table(title: str, rows: Iterable[Row], console: Console) -> None:
    """The rows of one suite."""
    table = Table(title=title, title_justify="left")
    table.add_column("what", overflow="fold")
    for name in ("ours", "peer", "ratio (spread)", "target"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("difference", justify="right", no_wrap=True)
    for row in rows:
        verdict = {None: "", True: "[green]met[/]", False: "[red]short[/]"}[row.met]
        difference = "" if row.agreement is None else f"{row.agreement:.0e}"
        what = f"{row.what} [dim]({escape(row.note)})[/]" if row.note else row.what
        table.add_row(what, _number(row.ours, row.unit), _number(row.peer, row.unit), _ratio(row), str(row.target or ""), verdict, difference)
    console.print(table)


def write_json(path: Path, rows: Iterable[Row]) -> None:
    """The rows and the machine that they were measured on."""
    machine = {"torch": torch.__version__, "python": platform.python_version(), "processors": os.cpu_count(), "threads": torch.get_num_threads()}
    path.write_text(json.dumps({"machine": machine, "rows": [asdict(row) | {"met": row.met} for row in rows]}, indent=2) + "\n")
