"""Problems of the collection of Hock & Schittkowski, each with a coefficient x that may move.

Source: Hock & Schittkowski, "Test Examples for Nonlinear Programming Codes", Lecture Notes in Economics and Mathematical
Systems 187, Springer 1981.
"""

from problems.hock_schittkowski import bounds, equalities, inequalities, larger, mixed, two_variables
from problems.hock_schittkowski.base import HockSchittkowski

__all__ = ["HockSchittkowski", "hock_schittkowski"]

_GROUPS = (
    bounds.PROBLEMS,
    equalities.LINEAR,
    equalities.NONLINEAR,
    two_variables.PROBLEMS,
    inequalities.THREE,
    inequalities.FOUR,
    larger.PROBLEMS,
    mixed.PROBLEMS,
)


def hock_schittkowski() -> dict[str, HockSchittkowski]:
    """The problems, by name."""
    return {problem.name: problem for group in _GROUPS for problem in group}
