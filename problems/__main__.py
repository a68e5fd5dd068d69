"""The command line: `declarative problems`, or `python -m problems [NAME ...]`."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from declarative import verify
from problems import Problem, catalogue


def main(arguments: Sequence[str] | None = None) -> int:
    """List every problem; of those that are named, print the formulas and verify the node. The exit status is 1 where that fails."""
    known = catalogue()
    parser = argparse.ArgumentParser(prog="declarative problems", description="The worked problems: plain statements, verified.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="show and verify these (default: list all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampler (default: 0)")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"no problem named {', '.join(unknown)}; there are {', '.join(known)}")
    if not options.names:
        _list(known)
        return 0
    shown = [_show(known[name], options.seed) for name in options.names]
    return 0 if all(shown) else 1


def _list(known: dict[str, Problem]) -> None:
    console = Console() if Console().is_terminal else Console(width=160)  # a file has no width of its own
    table = Table(title=f"{len(known)} worked problems; `declarative problems NAME` shows and verifies one", title_justify="left")
    for column in ("name", "what it is", "file", "known"):
        table.add_column(column, overflow="fold")
    for name, problem in known.items():
        facts = [word for word, value in (("y", problem.closed_form), ("∂y/∂x", problem.jacobian)) if value is not None]
        table.add_row(name, problem.note, f"problems/{_module(problem).rpartition('.')[2]}.py", ", ".join(facts))
    console.print(table)


def _show(problem: Problem, seed: int) -> bool:
    print(f"{problem.name}  ({problem.note})\n\n{inspect.cleandoc(sys.modules[_module(problem)].__doc__ or '')}\n")
    inputs = problem.sample(3, torch.Generator().manual_seed(seed), torch.float64)
    report = verify(problem.node().double(), *inputs, in_dims=problem.in_dims)
    print(f"{report}\n")
    return report.ok


def _module(problem: Problem) -> str:
    return problem.sample.__module__


if __name__ == "__main__":
    raise SystemExit(main())
