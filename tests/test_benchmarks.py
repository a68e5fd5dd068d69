"""The benchmarks run, and the table and the file say the same; what they measure is for `make bench` to show."""

import json

import pytest
import torch

from benchmarks import engine, exact, results, solvers
from benchmarks.__main__ import main, suites
from benchmarks.plots import exponent
from benchmarks.report import FLOOR, Point, Row, Target
from benchmarks.statements import LogSumExp, QuarticOnSphere
from benchmarks.timing import QUICK, Effort, Spread, compare
from declarative import DeclarativeNode


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
        assert row["error"] is None or row["error"] < 1e-6 or "steps of gradient descent" in row["what"], row["what"]
    assert name in capsys.readouterr().out


def test_missing_peer_is_named(monkeypatch):
    def absent(*_):
        raise ImportError("No module named 'qpth'")

    monkeypatch.setattr(solvers, "PEERS", {"qpth": absent})
    monkeypatch.setattr(solvers.jaxopt, "quadratic_programs", absent)
    for row in (*solvers.accuracy_rows(3, 1, 1), *solvers.speed_rows(3, 1, Target(ratio=1.0), QUICK)):
        assert row.peer is None
        assert "qpth" in row.note


def test_unknown_suite_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["nothing_of_that_name"])
    assert "nothing_of_that_name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "ratio", "ours", "error", "met"),
    [
        (Target(ratio=2), 2.5, 1.0, None, True),
        (Target(ratio=3), 2.5, 1.0, None, False),
        (Target(ours=0.5), None, 1.0, None, False),
        (Target(ratio=2, ours=2), 2.5, 1.0, None, True),
        (Target(ratio=2, error=1e-9), 2.5, 1.0, 1e-10, True),
        (Target(ratio=2, error=1e-9), 2.5, 1.0, 1e-8, False),
        (Target(error=1e-9), None, 1.0, float("nan"), False),
        (Target(error=1e-9), None, 1.0, None, False),
    ],
)
def test_verdict(target, ratio, ours, error, met):
    spread = None if ratio is None else Spread(ratio, ratio, ratio)
    assert Row("suite", "what", "ms", ours, ratio=spread, target=target, error=error).met is met


def row(suite="transport", what="backward, n=5", ours=2.0, peer=6.0, **more):
    ratio = Spread(peer / ours, peer / ours, peer / ours)
    return Row(suite, what, "ms", ours, "a peer", peer, ratio, **more)


def test_rows_survive_the_file(tmp_path):
    rows = [row(target=Target(ratio=2.0), point=Point("Title", "n", 5.0), error=1e-12, memory=10), row("engine")]
    results.write_json(tmp_path / "rows.json", rows)
    machine, read = results.read_json(tmp_path / "rows.json")
    assert read == rows
    assert machine["threads"] == torch.get_num_threads()


def test_page(tmp_path):
    """A later run of one suite replaces its rows alone; short rows stand apart with their cause; figures come and go with their rows."""
    lines = [row(what=f"size {n}", ours=1e-3 * n**2, peer=1e-3 * n**3, point=Point("Growth of both", "n", float(n)), memory=8 * n) for n in (10, 100, 1000)]
    floor = Row("transport", "backward, n=5", "ms", 3.0, FLOOR, 2.0, Spread(2 / 3, 0.5, 0.8))
    results.keep([*lines, floor], ["engine", "transport"], tmp_path / "results")
    short = row("engine", "backward | dense", target=Target(ratio=100.0), cause="it is small")
    results.keep([short], ["engine", "transport"], tmp_path / "results")
    text = results.write_page({"engine": "The floor is low."}, tmp_path, tmp_path / "results").read_text()
    assert text.index("## engine") < text.index("The floor is low.") < text.index("## transport")
    assert "| engine | backward \\| dense / a peer | 3x | ≥ 100x | it is small |" in text
    assert "| transport | backward, n=5 | 3 ms | 2 ms | 1.50 |" in text
    assert "size 1000" in text
    (figure,) = (tmp_path / "figures").iterdir()
    assert f"](figures/{figure.name})" in text
    results.keep([floor], ["engine", "transport"], tmp_path / "results")
    assert "size 1000" not in results.write_page({}, tmp_path, tmp_path / "results").read_text()
    assert not list((tmp_path / "figures").iterdir())


def test_exponent():
    """Of the last three points: overhead at small sizes does not count."""
    assert exponent([(1, 5.0), (2, 5.0), (10, 300.0), (100, 30_000.0), (1000, 3e6)]) == pytest.approx(2)
    assert exponent([(10, 5.0)]) is None


def test_exact_gradient():
    """y = −ν x on the sphere ‖y‖ = ‖x‖: the derivative of ⟨v, y⟩ with y = x is v."""

    class Nearest(DeclarativeNode):
        def objective(self, x, y):
            return 0.5 * (y - 2 * x).square().sum()

        def equality_constraints(self, x, y):
            return (y @ y - x @ x).reshape(1)

    x, v = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = exact.gradient(Nearest(), x, x + 1e-4, torch.full((3, 1), 0.5, dtype=torch.float64), v)
    assert float((found - v).abs().max()) < 1e-14


def test_refined_solve():
    """A Hilbert matrix of condition 1.5e7: to rounding all the same, where float64 alone is right to 1e-9."""
    i = torch.arange(1, 7, dtype=torch.float64)
    z = torch.ones(1, 6, dtype=torch.float64)
    scaled = 360360 / (i.unsqueeze(0) + i.unsqueeze(1) - 1)  # whole numbers, as 360360 is a multiple of 1 … 15
    assert float((exact.solve_refined(scaled.unsqueeze(0), scaled.sum(1).unsqueeze(0)) - z).abs().max()) < 1e-12


def test_bare_arithmetic_is_the_backward_pass():
    for m, kind in ((6, LogSumExp), (6, QuarticOnSphere)):
        case = engine.Case.of(kind, m, 3)
        assert case.judge(case.bare()()) < 1e-13
        assert case.judge(case.ours()()) < 1e-13


def test_other_side_is_timed_by_itself():
    """What a `Side` says of its blocks is what is compared."""

    class Clock:
        def warm_up(self, effort):
            assert effort.blocks == 3

        def block(self, effort):
            assert effort.runs == 1
            return 8.0

    class Ours(Clock):
        def block(self, effort):
            return 2.0

    found = compare(Ours(), Clock(), Effort(blocks=3, seconds=0.0, runs=1))
    assert (found.ours.median, found.peer.median, found.ratio) == (2.0, 8.0, Spread(4.0, 4.0, 4.0))


def test_device_is_checked(capsys):
    for device in ("cuda:99", "tpu", "meta"):
        with pytest.raises(SystemExit):
            main(["engine", "--quick", "--device", device])
        assert "device" in capsys.readouterr().err.lower()
