"""The plots of the rows that have a `Point`: time and memory against what is varied, log–log, with fitted exponents."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Row

_FITTED = 3
# Okabe and Ito's colours, which colour-blind readers tell apart; ours first.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"

Lines = dict[str, list[tuple[float, float]]]


def exponent(points: list[tuple[float, float]]) -> float | None:
    """p of y ∝ xᵖ by least squares on the logarithms of the last three points: small sizes are all overhead. None for fewer than two."""
    last = sorted(points)[-_FITTED:]
    if len({x for x, _ in last}) < 2:
        return None
    x, y = np.log(np.array(last)).T
    return float(np.polyfit(x, y, 1)[0])


def lines(rows: Iterable[Row], quantity: str) -> Lines:
    """Name -> (x, y), for "time" in milliseconds or "memory" in MiB; a line of ours that several peers are compared with has one point at each x."""
    found: dict[str, dict[float, float]] = {}
    for row in rows:
        if row.point is None:
            continue
        mine, theirs = (row.ours, row.peer) if quantity == "time" else (row.memory, row.peer_memory)
        for name, value in ((row.point.line, mine), (row.against, theirs)):
            if name and value is not None and (quantity == "memory" or row.unit == "ms"):
                found.setdefault(name, {}).setdefault(row.point.x, float(value) if quantity == "time" else value / 2**20)
    return {name: sorted(points.items()) for name, points in found.items()}


def titles(rows: Iterable[Row]) -> list[str]:
    """The figures of these rows."""
    return list(dict.fromkeys(row.point.figure for row in rows if row.point is not None))


def draw(title: str, rows: Iterable[Row], path: Path) -> bool:
    """One figure: time on the left, memory on the right where it was counted. False where there is no line of two points."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in rows if row.point is not None and row.point.figure == title]
    measured = [(quantity, lines(rows, quantity)) for quantity in ("time", "memory")]
    panels = [(quantity, found) for quantity, found in measured if any(len(points) > 1 for points in found.values())]
    if not panels:
        return False
    axis = next(row.point.axis for row in rows if row.point is not None)
    figure, axes = plt.subplots(1, len(panels), figsize=(4.9 * len(panels), 3.9), squeeze=False, layout="constrained")
    names = sorted({name: None for _, found in panels for name in found}, key=lambda name: not name.startswith("ours"))
    for ax, (quantity, found) in zip(axes[0], panels, strict=True):
        _panel(ax, found, names, axis, {"time": "time (ms)", "memory": "peak memory (MiB)"}[quantity])
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})  # the same plot is the same file
    plt.close(figure)
    return True


def _panel(ax: Any, found: Lines, names: list[str], axis: str, label: str) -> None:
    for k, name in enumerate(names):
        if name not in found:
            continue
        x, y = zip(*found[name], strict=True)
        power = exponent(found[name])
        text = name if power is None else f"{name}  ∝ {axis}^{power:.1f}"
        ax.loglog(x, y, color=_COLOURS[k % len(_COLOURS)], marker=_MARKERS[k % len(_MARKERS)], markersize=4.5, linewidth=1.6, label=text)
    ax.set_xlabel(axis)
    ax.set_ylabel(label)
    ax.grid(visible=True, which="major", alpha=0.3)
    ax.legend(fontsize=8)
