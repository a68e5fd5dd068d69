"""The benchmarks run, and the table and the file say the same; what they measure is for `make bench` to show."""

import json

import pytest

from benchmarks import solvers
from benchmarks.__main__ import main, suites
from benchmarks.report import Row, Target
from benchmarks.timing import QUICK, Spread


@pytest.mark.parametrize("name", suites())
def test_suite_runs(name, tmp_path, capsys):
    file = tmp_path / "rows.json"
    main([name, "--quick", "--json", str(file)])
    rows = json.loads(file.read_text())["rows"]
    assert rows
    assert any(row["target"] is not None for row in rows)
    assert {row["suite"] for row in rows} == {name}
    for row in rows:
        assert row["ours"] >= 0
        assert row["agreement"] is None or row["agreement"] < 1e-6, row["what"]
    assert name in capsys.readouterr().out


def test_missing_peer_is_named(monkeypatch):
    def absent(*_):
        raise ImportError("No module named 'qpth'")

    monkeypatch.setattr(solvers, "PEERS", {"qpth": absent})
    for row in (*solvers.accuracy_rows(3, 1, 1), *solvers.speed_rows(3, 1, 1.0, QUICK)):
        assert row.peer is None
        assert "qpth" in row.note


def test_unknown_suite_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["nothing_of_that_name"])
    assert "nothing_of_that_name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "ratio", "ours", "agreement", "met"),
    [
        (Target(ratio=2), 2.5, 1.0, None, True),
        (Target(ratio=3), 2.5, 1.0, None, False),
        (Target(ours=0.5), None, 1.0, None, False),
        (Target(ratio=2, ours=2), 2.5, 1.0, None, True),
        (Target(ratio=2, agreement=1e-9), 2.5, 1.0, 1e-10, True),
        (Target(ratio=2, agreement=1e-9), 2.5, 1.0, 1e-8, False),
        (Target(agreement=1e-9), None, 1.0, float("nan"), False),
    ],
)
def test_verdict(target, ratio, ours, agreement, met):
    spread = None if ratio is None else Spread(ratio, ratio, ratio)
    assert Row("suite", "what", "ms", ours, ratio=spread, target=target, agreement=agreement).met is met
