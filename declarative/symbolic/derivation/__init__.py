"""The derivation of a symbolic node's gradient, as a document for people."""

from declarative.symbolic.derivation.document import Derivation

__all__ = ["Derivation"]
