"""Ready layers: nodes with natural shapes and closed-form structure."""

from declarative.layers.transport import (
    Auto,
    DualNewton,
    OptimalTransport,
    Potentials,
    SinkhornLoss,
    sinkhorn_divergence,
)

__all__ = [
    "Auto",
    "DualNewton",
    "OptimalTransport",
    "Potentials",
    "SinkhornLoss",
    "sinkhorn_divergence",
]
