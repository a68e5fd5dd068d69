"""Differentiable layers from optimisation problems.

State a problem for one instance as a `DeclarativeNode`; get a batched layer with exact derivatives of every order.
"""

from declarative import solvers
from declarative.certificate import Certificate, certify
from declarative.differentiation import Implicit
from declarative.errors import CapturedTensorError, IrregularPointError, SolverError, SolverWarning
from declarative.node import DeclarativeNode
from declarative.solution import DerivativeReport, Solution, Status
from declarative.verify import Report, verify

__version__ = "0.1.0"

__all__ = [
    "CapturedTensorError",
    "Certificate",
    "DeclarativeNode",
    "DerivativeReport",
    "Implicit",
    "IrregularPointError",
    "Report",
    "Solution",
    "SolverError",
    "SolverWarning",
    "Status",
    "certify",
    "solvers",
    "verify",
]
