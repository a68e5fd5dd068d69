"""How y is differentiated: `Implicit` and how its linear systems are solved, `Unrolled`, `OneStep`."""

from declarative.differentiation.base import Differentiation
from declarative.differentiation.explanation import Explanation
from declarative.differentiation.implicit import Implicit
from declarative.differentiation.linear_solvers import MINRES, Auto, ConjugateGradients, Direct
from declarative.differentiation.one_step import OneStep
from declarative.differentiation.unrolled import Unrolled

__all__ = ["MINRES", "Auto", "ConjugateGradients", "Differentiation", "Direct", "Explanation", "Implicit", "OneStep", "Unrolled"]
