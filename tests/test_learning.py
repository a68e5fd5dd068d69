"""The learning experiments run from end to end, in small, and print finite numbers; what they teach is for `python -m benchmarks.learning` to show."""

import json
import math

import pytest

from benchmarks.learning.__main__ import EXPERIMENTS, main


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_runs(name, tmp_path, capsys):
    file = tmp_path / "rows.json"
    main([name, "--quick", "--seeds", "1", "--json", str(file)])
    rows = json.loads(file.read_text())
    assert [row["estimator"] for row in rows] == list(EXPERIMENTS[name].estimators)
    for row in rows:
        (outcome,) = row["outcomes"]
        assert len(outcome["values"]) == len(EXPERIMENTS[name].metrics)
        assert all(math.isfinite(value) for value in outcome["values"]), row["estimator"]
    printed = capsys.readouterr().out
    assert EXPERIMENTS[name].metrics[0] in printed
    assert "nan" not in printed


def test_equal_seeds_give_equal_results():
    train = EXPERIMENTS["matching"].train
    assert train("identity, standardise", 1, True) == train("identity, standardise", 1, True)


@pytest.mark.parametrize("arguments", [["nothing_of_that_name"], ["--seeds", "0"]])
def test_what_cannot_be_run_is_named(arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert arguments[0] in capsys.readouterr().err
