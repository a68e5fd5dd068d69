"""The command line: `python -m benchmarks [NAME ...] [--json FILE] [--quick]`."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

import benchmarks
from benchmarks.report import Row, check_names, open_console, print_table, write_json

Suite = Callable[[bool], Iterator[Row]]


def suites() -> dict[str, Suite]:
    """The modules of this folder that define `rows`, by name."""
    found = {}
    for module in pkgutil.iter_modules(benchmarks.__path__):
        if not module.ispkg and not module.name.startswith("_"):
            suite = getattr(importlib.import_module(f"benchmarks.{module.name}"), "rows", None)
            if suite is not None:
                found[module.name] = suite
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the suites asked for, print their tables and write the JSON."""
    known = suites()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Times and memory against peers; ratios are taken within one run.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"suites to run: {', '.join(known)} (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    parser.add_argument("--quick", action="store_true", help="a few runs of each row: shows that it works, times nothing well")
    options = parser.parse_args(arguments)
    check_names(parser, options.names, known, "suite")
    console = open_console()
    torch.set_num_threads(2)
    everything: list[Row] = []
    for name in options.names or known:
        measured: list[Row] = []
        with console.status(f"{name} …") as status:
            for row in known[name](options.quick):
                measured.append(row)
                status.update(f"{name}: {len(measured)} rows, last: {row.what}")
        print_table(f"{name}{' (quick: times mean nothing)' if options.quick else ''}", measured, console)
        everything += measured
    if options.json is not None:
        write_json(options.json, everything)


if __name__ == "__main__":
    main()
