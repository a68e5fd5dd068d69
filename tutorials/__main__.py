"""Executes tutorials and writes their notebooks: `python -m tutorials`, or with names, `python -m tutorials 05`."""

from __future__ import annotations

import sys
import time

import nbformat
from nbclient import NotebookClient

from tutorials.cells import FOLDER, SCRIPTS, read_cells

_METADATA = {
    "jupytext": {"formats": "ipynb,py:percent"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebook_of(text: str) -> nbformat.NotebookNode:
    """The notebook of a script, not executed."""
    notebook = nbformat.v4.new_notebook(metadata=_METADATA)
    for k, (kind, source) in enumerate(read_cells(text)):
        cell = nbformat.v4.new_markdown_cell(source) if kind == "markdown" else nbformat.v4.new_code_cell(source)
        cell["id"] = f"cell-{k:02d}"  # the same on every run, so that a difference is one
        notebook.cells.append(cell)
    return notebook


def main(names: list[str]) -> int:
    """Each script whose name begins with one of these; all where there are none."""
    chosen = [script for script in SCRIPTS if not names or script.name.startswith(tuple(names))]
    if not chosen:
        print(f"no tutorial begins with {' or '.join(names)}; there are {', '.join(script.stem for script in SCRIPTS)}")
        return 2
    for script in chosen:
        notebook, began = notebook_of(script.read_text(encoding="utf-8")), time.perf_counter()
        where = {"metadata": {"path": str(FOLDER.parent)}}
        NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False, coalesce_streams=True, resources=where).execute()
        target = script.with_suffix(".ipynb")
        nbformat.write(notebook, target)
        print(f"{target.name}: {time.perf_counter() - began:.0f} s, {target.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
