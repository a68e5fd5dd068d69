"""The command line: `declarative bench`, or `python -m benchmarks [NAME ...] [--quick] [--device cuda] [--json FILE] [--results]`."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

import benchmarks
from benchmarks import machine
from benchmarks.report import Row, check_names, open_console, print_table
from benchmarks.results import STORE, keep, write_json, write_page

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


def floors(names: Sequence[str]) -> dict[str, str]:
    """What each suite says of its floor."""
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in names}
    return {name: module.FLOOR_TEXT for name, module in modules.items() if hasattr(module, "FLOOR_TEXT")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the suites asked for, print their tables and write what is asked for."""
    known = suites()
    parser = argparse.ArgumentParser(prog="declarative bench", description="Times and memory against peers; ratios are taken within one run.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"suites to run: {', '.join(known)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="a few runs of each row: shows that it works, times nothing well")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda; peers that run on the CPU alone are left out there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows to this file")
    parser.add_argument("--results", action="store_true", help=f"replace these suites in {STORE.parent.name}/RESULTS.md, with its plots (needs matplotlib)")
    options = parser.parse_args(arguments)
    check_names(parser, options.names, known, "suite")
    if options.quick and options.results:
        parser.error("--quick times nothing well: it goes without --results")
    try:
        machine.use(options.device)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
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
        if options.results:  # after each suite: a run that is cut off leaves what it measured
            keep(measured, list(known))
            write_page(floors(list(known)))
    verdicts = [row.met for row in everything]
    console.print(f"{len(everything)} rows; of those with a target {verdicts.count(True)} met, {verdicts.count(False)} short")
    if options.json is not None:
        write_json(options.json, everything)


if __name__ == "__main__":
    main()
