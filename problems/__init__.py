"""Worked problems: the plain statement, an instance sampler, and the closed-form solution where there is one.

One file each (variants of one problem share it), public API only. Tests, benchmarks and tutorials draw from `catalogue()`, which finds every
file of this folder with a `PROBLEM` or a tuple of `PROBLEMS`; `declarative problems` lists them.
"""

import importlib
import pkgutil

from problems.base import Problem

__all__ = ["Problem", "catalogue"]


def catalogue() -> dict[str, Problem]:
    """Every worked problem, by name."""
    problems: list[Problem] = []
    for found in pkgutil.iter_modules(__path__):
        if not found.ispkg and found.name not in ("base", "__main__"):
            module = importlib.import_module(f"problems.{found.name}")
            problems += [module.PROBLEM] if hasattr(module, "PROBLEM") else module.PROBLEMS
    by_name = {problem.name: problem for problem in problems}
    if len(by_name) < len(problems):
        raise ValueError(f"two problems share a name: {sorted(p.name for p in problems)}")
    return by_name
