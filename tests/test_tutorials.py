"""Tutorials run, in small and with warnings as errors; their notebooks are those of the scripts, executed to the end."""

import json
import os
import subprocess
import sys

import pytest

from tutorials.cells import FOLDER, SCRIPTS, read_cells

# torch 2.13 warns of itself when forward mode is first used.
WARNINGS = ("-W", "error", "-W", "ignore:`torch.jit:DeprecationWarning")


def test_every_notebook_has_a_script():
    assert SCRIPTS
    assert {script.stem for script in SCRIPTS} == {notebook.stem for notebook in FOLDER.glob("*.ipynb")}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_it_runs(script):
    threads = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
    environment = os.environ | {"DECLARATIVE_QUICK": "1", "MPLBACKEND": "Agg", "OMP_NUM_THREADS": threads, "PYTHONPATH": str(FOLDER.parent)}
    done = subprocess.run([sys.executable, *WARNINGS, str(script)], env=environment, cwd=FOLDER.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_its_notebook(script):
    """The same cells, executed in order, with outputs and no errors; otherwise `make tutorials` is due."""
    notebook = json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    assert cells == read_cells(script.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]


def test_cells():
    text = "# %% [markdown]\n# # Title\n#\n# text\n\n# %%\nx = 1  # %% no marker\n\n\n# %%\ny = 2\n"
    assert read_cells(text) == [("markdown", "# Title\n\ntext"), ("code", "x = 1  # %% no marker"), ("code", "y = 2")]


@pytest.mark.parametrize("text", ["x = 1\n# %%\ny = 2\n", "# %% [markdown]\n# text\nx = 1\n"])
def test_what_belongs_to_no_cell_is_refused(text):
    with pytest.raises(ValueError, match="begins with"):
        read_cells(text)
