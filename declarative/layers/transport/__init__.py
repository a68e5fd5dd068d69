"""Entropic optimal transport: one layer, its losses and its divergence."""

from declarative.layers.transport.auto import Auto
from declarative.layers.transport.divergence import sinkhorn_divergence
from declarative.layers.transport.dual_newton import DualNewton
from declarative.layers.transport.layer import OptimalTransport, Potentials
from declarative.layers.transport.loss import SinkhornLoss

__all__ = ["Auto", "DualNewton", "OptimalTransport", "Potentials", "SinkhornLoss", "sinkhorn_divergence"]
