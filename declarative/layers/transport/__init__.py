"""Entropic optimal transport: one layer, its losses and its divergence."""

from declarative.layers.transport.auto import Auto
from declarative.layers.transport.divergence import sinkhorn_divergence
from declarative.layers.transport.dual_lbfgs import DualLBFGS
from declarative.layers.transport.dual_newton import DualNewton
from declarative.layers.transport.layer import OptimalTransport
from declarative.layers.transport.loss import SinkhornLoss
from declarative.layers.transport.point_cloud import CloudOptions, cloud_loss, cloud_value
from declarative.layers.transport.sinkhorn import Sinkhorn
from declarative.layers.transport.stated import Potentials

__all__ = [
    "Auto",
    "CloudOptions",
    "DualLBFGS",
    "DualNewton",
    "OptimalTransport",
    "Potentials",
    "Sinkhorn",
    "SinkhornLoss",
    "cloud_loss",
    "cloud_value",
    "sinkhorn_divergence",
]
