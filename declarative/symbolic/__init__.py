"""The symbolic engine: state an objective in index notation, get its derivatives in closed form."""

from declarative.symbolic.functions import Cases
from declarative.symbolic.node import SymbolicNode

__all__ = ["Cases", "SymbolicNode"]
