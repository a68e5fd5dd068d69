"""The command line: `python -m benchmarks.learning [NAME ...] [--seeds 3] [--json FILE] [--quick]`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.learning import features, matching, paths, subset_vae
from benchmarks.learning.experiment import Experiment, Row, measured
from benchmarks.report import check_names, open_console

EXPERIMENTS = {"subset_vae": subset_vae.EXPERIMENT, "matching": matching.EXPERIMENT, "features": features.EXPERIMENT, "paths": paths.EXPERIMENT}


def print_table(experiment: Experiment, rows: Sequence[Row], seeds: int, console: Console) -> None:
    """The rows of one experiment."""
    table = Table(title=f"{experiment.what}\nmean (lowest .. highest) of {seeds} seeds", title_justify="left", caption=experiment.note, caption_justify="left")
    table.add_column("estimator", overflow="fold")
    for name in experiment.metrics:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("s / run", justify="right")
    for row in rows:
        spreads = ["{0:.{3}f}  ({1:.{3}f} .. {2:.{3}f})".format(*row.spread(k), experiment.digits) for k in range(len(experiment.metrics))]
        table.add_row(row.estimator, *spreads, f"{row.seconds:.1f}")
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiments asked for, print their tables and write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description="Trains small models with each estimator of a solver's gradient.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"experiments to run: {', '.join(EXPERIMENTS)} (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="how many models for each row (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows, with learning curves, to this file")
    parser.add_argument("--quick", action="store_true", help="a few steps of training: shows that it works, teaches nothing")
    options = parser.parse_args(arguments)
    check_names(parser, options.names, EXPERIMENTS, "experiment")
    if options.seeds < 1:
        parser.error("--seeds must be 1 or more")
    console = open_console()
    torch.set_num_threads(1)  # models this small gain nothing from a second thread
    everything: list[Row] = []
    for name in options.names or EXPERIMENTS:
        rows: list[Row] = []
        with console.status(f"{name} …") as status:
            for row in measured(name, EXPERIMENTS[name], options.seeds, options.quick):
                rows.append(row)
                status.update(f"{name}: {len(rows)} of {len(EXPERIMENTS[name].estimators)} rows, last: {row.estimator}")
        print_table(EXPERIMENTS[name], rows, options.seeds, console)
        everything += rows
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in everything], indent=2) + "\n")


if __name__ == "__main__":
    main()
