"""Differentiable layers from optimisation problems.

State a problem for one instance as a `DeclarativeNode`; get a batched layer with exact derivatives of every order.
"""

from declarative import layers, projections, solvers, structure, symbolic
from declarative.certificate import Certificate, certify
from declarative.detect import Detection, detect_structure
from declarative.differentiation import MINRES, Auto, ConjugateGradients, Direct, Explanation, Implicit, OneStep, Unrolled
from declarative.errors import CapturedTensorError, IrregularPointError, SolverError, SolverWarning, StructureError
from declarative.node import DeclarativeNode
from declarative.solution import DerivativeReport, Solution, Status
from declarative.symbolic import SymbolicNode
from declarative.verify import Report, verify

__version__ = "0.1.0"

__all__ = [
    "MINRES",
    "Auto",
    "CapturedTensorError",
    "Certificate",
    "ConjugateGradients",
    "DeclarativeNode",
    "DerivativeReport",
    "Detection",
    "Direct",
    "Explanation",
    "Implicit",
    "IrregularPointError",
    "OneStep",
    "Report",
    "Solution",
    "SolverError",
    "SolverWarning",
    "Status",
    "StructureError",
    "SymbolicNode",
    "Unrolled",
    "certify",
    "detect_structure",
    "layers",
    "projections",
    "solvers",
    "structure",
    "symbolic",
    "verify",
]
