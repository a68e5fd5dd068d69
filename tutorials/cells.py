"""The cells of a script in percent format."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parent
SCRIPTS = tuple(sorted(FOLDER.glob("[0-9]*.py")))

_MARKER = re.compile(r"^# %%( \[markdown\])?$", re.MULTILINE)


def read_cells(text: str) -> list[tuple[str, str]]:
    """("markdown" | "code", source) of each cell, in order; what stands before the first marker must be blank."""
    before, *parts = _MARKER.split(text)
    if before.strip():
        raise ValueError(f"a cell begins with a line `# %%` or `# %% [markdown]`; before the first there is: {before.strip()[:80]!r}")
    return [("markdown", _uncommented(body)) if kind else ("code", body.strip("\n")) for kind, body in zip(parts[::2], parts[1::2], strict=True)]


def _uncommented(body: str) -> str:
    lines = body.strip("\n").splitlines()
    stray = [line for line in lines if line != "#" and not line.startswith("# ")]
    if stray:
        raise ValueError(f"every line of a markdown cell begins with `# `, got: {stray[0]!r}")
    return "\n".join(line[2:] for line in lines)
