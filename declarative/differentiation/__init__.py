"""How y is differentiated: `Implicit`, and how its linear systems are solved."""

from declarative.differentiation.explanation import Explanation
from declarative.differentiation.implicit import Implicit
from declarative.differentiation.linear_solvers import MINRES, Auto, ConjugateGradients, Direct

__all__ = ["MINRES", "Auto", "ConjugateGradients", "Direct", "Explanation", "Implicit"]
