"""The command line: `declarative verify MODULE:NAME` and `declarative detect MODULE:NAME`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from declarative.detect import detect_structure
from declarative.node import DeclarativeNode
from declarative.verify import verify

_SAMPLER = "sample(batch, generator, dtype) -> a tuple of inputs"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 1 where a check failed."""
    parser = argparse.ArgumentParser(prog="declarative", description="Proofs and proposals for declarative nodes.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("verify", "check a node's solutions, declared structure and derivatives"), ("detect", "propose structure to declare")):
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}, at instances that its own sampler draws.")
        command.add_argument(
            "target", metavar="MODULE:NAME", help=f"a node class with a method {_SAMPLER}; or an object with `node()`, such a `sample` and `in_dims`"
        )
        command.add_argument("--batch", type=int, default=3, help="samples (default: 3)")
        command.add_argument("--seed", type=int, default=0, help="of the sampler (default: 0)")
        command.add_argument("--dtype", choices=("float32", "float64"), default="float64", help="default: float64")
    options = parser.parse_args(arguments)
    try:
        node, inputs, in_dims = _load(options.target, options.batch, options.seed, getattr(torch, options.dtype))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        parser.error(str(error))
    if options.command == "detect":
        print(detect_structure(node, *inputs, in_dims=in_dims))
        return 0
    report = verify(node, *inputs, in_dims=in_dims)
    print(report)
    return 0 if report.ok else 1


def _load(target: str, batch: int, seed: int, dtype: torch.dtype) -> tuple[DeclarativeNode, tuple[Tensor, ...], Any]:
    module, separator, name = target.partition(":")
    if not separator or not name:
        raise ValueError(f"expected MODULE:NAME, such as problems.simplex:PROBLEM, got {target!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does
    found = getattr(importlib.import_module(module), name)
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
