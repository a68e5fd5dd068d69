"""Nearest points of simple sets, in closed form, with multipliers and exact derivatives."""

from declarative.layers.projections.balls import L1BallProjection, L2BallProjection, LInfBallProjection
from declarative.layers.projections.base import ProjectionLayer
from declarative.layers.projections.box import BoxProjection
from declarative.layers.projections.linear import AffineProjection, HalfSpaceProjection
from declarative.layers.projections.simplex import SimplexProjection, Sparsemax
from declarative.layers.projections.spheres import L1SphereProjection, L2SphereProjection, LInfSphereProjection

__all__ = [
    "AffineProjection",
    "BoxProjection",
    "HalfSpaceProjection",
    "L1BallProjection",
    "L1SphereProjection",
    "L2BallProjection",
    "L2SphereProjection",
    "LInfBallProjection",
    "LInfSphereProjection",
    "ProjectionLayer",
    "SimplexProjection",
    "Sparsemax",
]
