"""How y is differentiated: `Implicit`."""

from declarative.differentiation.implicit import Implicit

__all__ = ["Implicit"]
