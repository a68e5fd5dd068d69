"""The command line: `declarative COMMAND`, or `python -m declarative COMMAND`.

verify, detect, explain, derive MODULE:NAME     a node that is given by its class or by a worked problem
problems, bench, demo                           what lies beside the package in a clone of the repository
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from declarative.detect import detect_structure
from declarative.node import DeclarativeNode
from declarative.symbolic import SymbolicNode
from declarative.verify import verify

_SAMPLER = "sample(batch, generator, dtype) -> a tuple of inputs"
# Commands about one node, at instances that its own sampler draws.
_NODE = {
    "verify": "check a node's solutions, declared structure and derivatives",
    "detect": "propose structure to declare",
    "explain": "say what a backward pass forms, how it solves and what that costs",
}
# Commands of the repository's own folders, which no package holds: the module whose `main` takes the arguments that follow.
_REPOSITORY = {
    "problems": ("problems.__main__", "list the worked problems, or show and verify one"),
    "bench": ("benchmarks.__main__", "time everything against its peers"),
    "demo": ("demo.__main__", "train a robust classifier of digits: what `make demo` runs"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 1 where a check failed."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if options.command in _REPOSITORY:
        return _run_of_repository(parser, options.command, rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if options.command == "derive":
            return _derive(options.target, options.save, options.code)
        node, inputs, in_dims = _load(options.target, options.batch, options.seed, getattr(torch, options.dtype))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        parser.error(str(error))
    if options.command != "verify":
        print(detect_structure(node, *inputs, in_dims=in_dims) if options.command == "detect" else node.explain(*inputs, in_dims=in_dims))
        return 0
    report = verify(node, *inputs, in_dims=in_dims)
    print(report)
    return 0 if report.ok else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="declarative", description="Proofs, proposals and derivations for declarative nodes; the repository's own programs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in _NODE.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}, at instances that its own sampler draws.")
        command.add_argument(
            "target", metavar="MODULE:NAME", help=f"a node class with a method {_SAMPLER}; or an object with `node()`, such a `sample` and `in_dims`"
        )
        command.add_argument("--batch", type=int, default=3, help="samples (default: 3)")
        command.add_argument("--seed", type=int, default=0, help="of the sampler (default: 0)")
        command.add_argument("--dtype", choices=("float32", "float64"), default="float64", help="default: float64")
    text = "derive a symbolic node's blocks and gradient in closed form"
    command = commands.add_parser("derive", help=text, description=f"{text[0].upper()}{text[1:]}, and print them.")
    command.add_argument("target", metavar="MODULE:NAME", help="a SymbolicNode, or a function or an object with `node()` that makes one")
    command.add_argument("--save", type=Path, metavar="FILE", help="write it to a .md, .tex or .txt file instead")
    command.add_argument("--code", type=Path, metavar="FILE", help="also write a Python file of every block that needs nothing but torch")
    for name, (_, text) in _REPOSITORY.items():
        commands.add_parser(name, help=f"{text} (in a clone of the repository)", add_help=False)
    return parser


def _run_of_repository(parser: argparse.ArgumentParser, command: str, arguments: list[str]) -> int:
    name = _REPOSITORY[command][0]
    _import_from_here()
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in (name, name.partition(".")[0]):
            raise  # a package that the folder needs
        parser.error(f"{command!r} runs in a clone of the repository: there is no folder {name.partition('.')[0]!r} in {os.getcwd()}")
    return module.main(arguments) or 0


def _derive(target: str, save: Path | None, code: Path | None) -> int:
    found = _find(target)
    made = found if isinstance(found, SymbolicNode) else found.node() if callable(getattr(found, "node", None)) else found() if callable(found) else found
    if not isinstance(made, SymbolicNode):
        raise TypeError(f"{target} is no SymbolicNode and makes none, but {type(made).__name__}: only a statement in sympy can be derived")
    if save is None:
        print(made.derivation())
    else:
        made.derivation().save(save)
    if code is not None:
        code.write_text(made.to_source())
    return 0


def _import_from_here() -> None:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does


def _find(target: str) -> Any:
    module, separator, name = target.partition(":")
    if not separator or not name:
        raise ValueError(f"expected MODULE:NAME, such as problems.simplex:PROBLEM, got {target!r}")
    _import_from_here()
    return getattr(importlib.import_module(module), name)


def _load(target: str, batch: int, seed: int, dtype: torch.dtype) -> tuple[DeclarativeNode, tuple[Tensor, ...], Any]:
    found = _find(target)
    if isinstance(found, type) and issubclass(found, DeclarativeNode):
        node, sampler = found(), found
    else:
        node = found.node() if callable(getattr(found, "node", None)) else None
        sampler = found
    if not isinstance(node, DeclarativeNode):
        raise TypeError(f"{target} is neither a DeclarativeNode class nor an object whose node() makes a node")
    sample = getattr(node if sampler is found and isinstance(found, type) else sampler, "sample", None)
    if not callable(sample):
        raise TypeError(f"{target} has no sampler: give it a method {_SAMPLER}")
    drawn: Any = sample(batch, torch.Generator().manual_seed(seed), dtype)
    inputs = (drawn,) if isinstance(drawn, Tensor) else tuple(drawn)
    return node.to(dtype), inputs, getattr(sampler, "in_dims", 0)


if __name__ == "__main__":
    raise SystemExit(main())
