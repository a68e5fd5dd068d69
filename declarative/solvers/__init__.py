"""How y is found: `Newton`, `InteriorPoint`, `LBFGS`, `Projected`, `SciPy`, `External`, `MultiStart`, and `UserSolve` for a node's own `solve`."""

from declarative.solvers.base import Solver
from declarative.solvers.external import External
from declarative.solvers.interior_point import InteriorPoint
from declarative.solvers.iterative import IterativeSolver, Progress
from declarative.solvers.lbfgs import LBFGS
from declarative.solvers.multi_start import MultiStart
from declarative.solvers.newton import Newton
from declarative.solvers.projected import Projected
from declarative.solvers.scipy import SciPy
from declarative.solvers.user import UserSolve

__all__ = ["LBFGS", "External", "InteriorPoint", "IterativeSolver", "MultiStart", "Newton", "Progress", "Projected", "SciPy", "Solver", "UserSolve"]
