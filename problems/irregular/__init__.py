"""Irregular problems: points without an ordinary derivative, each in a batch between two regular neighbours."""

from problems.irregular import constraints, curvature, kinks
from problems.irregular.base import Irregular

__all__ = ["Irregular", "irregular_catalogue"]


def irregular_catalogue() -> dict[str, Irregular]:
    """Every irregular problem, by name."""
    return {problem.name: problem for module in (constraints, kinks, curvature) for problem in module.PROBLEMS}
