"""Robust pooling: penalties, the layer, and the parts that it is made of."""

from declarative.layers.pooling.layer import Pooled, RobustPooling
from declarative.layers.pooling.penalties import Barron, Cauchy, GemanMcClure, Huber, PseudoHuber, Quadratic, TruncatedQuadratic, Welsch
from declarative.layers.pooling.penalty import Penalty

__all__ = [
    "Barron",
    "Cauchy",
    "GemanMcClure",
    "Huber",
    "Penalty",
    "Pooled",
    "PseudoHuber",
    "Quadratic",
    "RobustPooling",
    "TruncatedQuadratic",
    "Welsch",
]
