"""Least squares, quadratic programs, eigenvectors, rotations."""

from declarative.layers.linear_algebra.eigenvector import Eigenvector
from declarative.layers.linear_algebra.least_squares import LeastSquares
from declarative.layers.linear_algebra.quadratic_program import QuadraticProgram
from declarative.layers.linear_algebra.rotation import PointRotation, Rotation

__all__ = ["Eigenvector", "LeastSquares", "PointRotation", "QuadraticProgram", "Rotation"]
