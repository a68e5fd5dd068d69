"""Ready layers: nodes with natural shapes and closed-form structure."""

from declarative.layers.transport import (
    Auto,
    CloudOptions,
    DualLBFGS,
    DualNewton,
    OptimalTransport,
    Potentials,
    Sinkhorn,
    SinkhornLoss,
    cloud_loss,
    cloud_value,
    sinkhorn_divergence,
)

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
