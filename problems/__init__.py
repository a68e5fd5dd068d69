"""Worked problems: the plain statement, an instance sampler, and the closed-form solution where there is one.

One file each (variants of one problem share it), public API only. Tests, benchmarks and tutorials draw from `catalogue()`.
"""

from problems import (
    affine_fit,
    ball,
    bilevel,
    chain,
    coupled,
    cubic_root,
    derived,
    hyperplane,
    idle_input,
    learned_energy,
    optimal_transport,
    quadratic_program,
    redundant,
    ridge,
    robust_pooling,
    row_sums,
    simplex,
    singular_hessian,
    softmax,
    sphere,
    top_k,
)
from problems.base import Problem

__all__ = ["Problem", "catalogue"]

_MODULES = (
    simplex,
    hyperplane,
    ball,
    sphere,
    quadratic_program,
    learned_energy,
    cubic_root,
    singular_hessian,
    row_sums,
    affine_fit,
    bilevel,
    idle_input,
    softmax,
    ridge,
    redundant,
    chain,
    coupled,
)


def catalogue() -> dict[str, Problem]:
    """Every worked problem, by name."""
    problems = [*(module.PROBLEM for module in _MODULES), *optimal_transport.PROBLEMS, *robust_pooling.PROBLEMS, *top_k.PROBLEMS, *derived.PROBLEMS]
    return {problem.name: problem for problem in problems}
