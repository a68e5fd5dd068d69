"""The commands say what they do, do it, and name what they were given wrong."""

import importlib.util
import sys
from pathlib import Path

import pytest
import sympy
import torch

from declarative.__main__ import main
from declarative.symbolic import SymbolicNode


def statement() -> SymbolicNode:
    x, y = sympy.symbols("x y")
    return SymbolicNode(objective=y**4 / 4 + y**2 / 2 - x * y, variable=y, inputs=(x,))


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for command in ("verify", "detect", "explain", "derive", "problems", "bench", "demo"):
        assert command in text


def test_explain(capsys):
    assert main(["explain", "problems.chain:PROBLEM", "--batch", "2"]) == 0
    text = capsys.readouterr().out
    assert "Banded(bandwidth=1)" in text
    assert "2 samples" in text


def test_derive(tmp_path, capsys):
    """The printed derivation, the saved one, and code whose gradient is that of y⁴/4 + y²/2 − xy: dy/dx = 1/(3y² + 1)."""
    assert main(["derive", f"{__name__}:statement"]) == 0
    assert "H = 3 y² + 1" in capsys.readouterr().out
    text, code = tmp_path / "quartic.md", tmp_path / "quartic.py"
    assert main(["derive", f"{__name__}:statement", "--save", str(text), "--code", str(code)]) == 0
    assert "$" in text.read_text()
    spec = importlib.util.spec_from_file_location("quartic", code)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    y = torch.tensor([0.5, 1.0], dtype=torch.float64)
    x = y**3 + y
    (gradient,) = module.backward(x, y, torch.ones_like(y))
    torch.testing.assert_close(gradient, 1 / (3 * y**2 + 1))


@pytest.mark.parametrize("target", ["problems.simplex:PROBLEM", "problems.simplex:SIZE"])
def test_derive_needs_a_symbolic_node(target, capsys):
    with pytest.raises(SystemExit):
        main(["derive", target])
    assert "SymbolicNode" in capsys.readouterr().err


def test_problems(capsys):
    assert main(["problems"]) == 0
    assert "hyperplane" in capsys.readouterr().out
    assert main(["problems", "hyperplane"]) == 0
    text = capsys.readouterr().out
    assert "all checks passed" in text
    assert "min" in text
    with pytest.raises(SystemExit):
        main(["problems", "no_such_problem"])
    assert "no_such_problem" in capsys.readouterr().err


def test_bench(tmp_path, capsys):
    assert main(["bench", "certificates", "--quick", "--json", str(tmp_path / "rows.json")]) == 0
    assert "polishing" in capsys.readouterr().out
    assert (tmp_path / "rows.json").exists()


@pytest.mark.parametrize(("command", "folder"), [("bench", "benchmarks"), ("problems", "problems"), ("demo", "demo")])
def test_outside_a_clone(command, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == folder]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not (Path(p or ".") / folder).is_dir()])
    with pytest.raises(SystemExit):
        main([command])
    assert "clone of the repository" in capsys.readouterr().err


def test_unknown_arguments(capsys):
    for arguments in (["verify", "problems.simplex:PROBLEM", "--nothing"], ["nonsense"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert arguments[-1] in capsys.readouterr().err
