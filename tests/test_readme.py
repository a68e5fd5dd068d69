"""The README is a promise: its code runs as it stands, and does what it says."""

import re
from pathlib import Path

import torch

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_code_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 2
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    x, y = names["x"], names["y"]
    torch.testing.assert_close(y.sum(1), torch.ones(32))
    assert bool((y >= -1e-6).all())
    free = (y > 1e-4).float()
    v = 2 * y.detach() * free
    torch.testing.assert_close(x.grad, v - free * v.sum(1, keepdim=True) / free.sum(1, keepdim=True), atol=1e-4, rtol=1e-3)
    for name in ("polished", "other", "by_hand"):
        torch.testing.assert_close(names[name](x), y, atol=1e-4, rtol=1e-4)
    printed = capsys.readouterr().out
    assert "all checks passed" in printed
    assert "32 of 32 samples are regular minimisers" in printed


def test_named_files_exist():
    root = Path(__file__).parent.parent
    linked = re.findall(r"\]\(([^)]+)\)", README)
    assert len(linked) > 10
    for name in (*re.findall(r"`([A-Za-z_/]+(?:\.md|/))`", README), *linked):
        assert (root / name).exists(), name


def test_every_tutorial_is_linked():
    root = Path(__file__).parent.parent
    for notebook in (root / "tutorials").glob("*.ipynb"):
        assert f"(tutorials/{notebook.name})" in README, notebook.name
