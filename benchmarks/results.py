"""What a run leaves: JSON for each kind of device, and RESULTS.md with its plots, written from all of it.

A run of some suites replaces the rows of these suites alone, so that the page is always the last that was measured of each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.plots import draw, titles
from benchmarks.report import COLUMNS, FLOOR, Row, cells

FOLDER = Path(__file__).parent
STORE = FOLDER / "results"


def write_json(path: Path, rows: Iterable[Row]) -> None:
    """The rows and the machine that they were measured on."""
    content = {"machine": machine.description(), "rows": [row.as_json() for row in rows]}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """What `write_json` wrote."""
    content = json.loads(path.read_text())
    return content["machine"], [Row.from_json(row) for row in content["rows"]]


def keep(rows: Sequence[Row], order: Sequence[str], folder: Path = STORE) -> None:
    """Store the rows under the device's kind, in place of those of the same suites; `order` is that of the suites."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{machine.kind()}.json"
    before = read_json(path)[1] if path.exists() else []
    new = {row.suite for row in rows}
    kept = [row for row in before if row.suite not in new] + list(rows)
    write_json(path, sorted(kept, key=lambda row: order.index(row.suite) if row.suite in order else len(order)))


def write_page(about: dict[str, str], folder: Path = FOLDER, store: Path = STORE) -> Path:
    """RESULTS.md from everything in the store; `about` says for each suite what its floor is.

    Figures that no row asks for any more are removed.
    """
    figures = folder / "figures"
    parts, drawn = [_HEAD], set[Path]()
    for path in sorted(store.glob("*.json")):
        facts, rows = read_json(path)
        parts.append(f"# {facts['device']}\n\n" + ", ".join(f"{name} {value}" for name, value in facts.items() if name != "device") + ".")
        parts += [_verdicts(rows), _shortfalls(rows), _floors(rows)]
        for suite in dict.fromkeys(row.suite for row in rows):
            chosen = [row for row in rows if row.suite == suite]
            parts += [f"## {suite}", *([about[suite]] if suite in about else []), _table(chosen)]
            for title in titles(chosen):
                plot = figures / f"{path.stem}_{re.sub(r'[^a-z0-9]+', '_', title.lower()).strip('_')}.png"
                if draw(title, chosen, plot):
                    drawn.add(plot)
                    parts.append(f"![{title}](figures/{plot.name})")
    for plot in figures.glob("*.png"):
        if plot not in drawn:
            plot.unlink()
    page = folder / "RESULTS.md"
    page.write_text("\n\n".join(part for part in parts if part) + "\n")
    return page


_HEAD = """<!-- Written by `make bench`; do not edit. -->
Times are medians of blocks that alternate between the two sides; a ratio says how many times as long the peer takes, with the smallest and the
largest block in brackets. Errors are of our result and of the peer's against a tight reference. Memory is the most that tensors held at once
during the timed call. Ratios carry over to other machines, milliseconds do not. Every row with a target is marked met or short."""


def _verdicts(rows: Sequence[Row]) -> str:
    lines = ["| suite | rows | met | short |", "|---|---:|---:|---:|"]
    for suite in dict.fromkeys(row.suite for row in rows):
        verdicts = [row.met for row in rows if row.suite == suite]
        lines.append(f"| {suite} | {len(verdicts)} | {verdicts.count(True)} | {verdicts.count(False)} |")
    return "\n".join(lines)


def _shortfalls(rows: Sequence[Row]) -> str:
    short = [row for row in rows if row.met is False]
    if not short:
        return ""
    lines = ["## Short of the target", "| suite | what | measured | target | cause |", "|---|---|---|---|---|"]
    for row in short:
        values = cells(row)
        measured = values[0] if row.target is not None and row.target.ours is not None else values[2] or values[0]
        if row.target is not None and row.target.error is not None and (row.error is None or row.error > row.target.error):
            measured += f", error {row.error:.0e}" if row.error is not None else ""
        lines.append(_line(row.suite, f"{row.what}{f' / {row.against}' if row.against else ''}", measured, values[3], row.cause))
    return "\n\n".join([lines[0], "\n".join(lines[1:])])


def _floors(rows: Sequence[Row]) -> str:
    """How far from what the machine needs for the operations alone."""
    lines = ["| suite | what | ours | the arithmetic alone | times |", "|---|---|---:|---:|---:|"]
    for row in rows:
        if row.against == FLOOR and row.ratio is not None:
            ours, peer = cells(row)[:2]
            lines.append(_line(row.suite, row.what, ours, peer.removesuffix(FLOOR).strip(), f"{1 / row.ratio.median:.2f}"))
    if len(lines) == 2:
        return ""
    return "## How far from the floor\n\n" + "\n".join(lines)


def _table(rows: Sequence[Row]) -> str:
    used = [k for k in range(len(COLUMNS)) if any(cells(row)[k] for row in rows)]
    lines = [_line("what", *(COLUMNS[k] for k in used)), "|---|" + "---:|" * len(used)]
    for row in rows:
        values = cells(row)
        lines.append(_line(row.what + (f" ({row.note})" if row.note else ""), *(f"**{values[k]}**" if values[k] == "short" else values[k] for k in used)))
    return "\n".join(lines)


def _line(*parts: str) -> str:
    return "| " + " | ".join(part.replace("|", "\\|") for part in parts) + " |"
