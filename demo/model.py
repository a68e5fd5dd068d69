"""A classifier of point clouds, and the three ways it may pool the features of the points."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from declarative import DeclarativeNode


class RobustMean(DeclarativeNode):
    """The location y of numbers x_1 … x_n that minimises Σ_i ψ(x_i − y) with the pseudo-Huber penalty ψ.

    Quadratic near y and linear far from it, so that no single number moves y far. This is all there is to the layer: an
    objective and a place to start.

    Source: Gould, Hartley & Campbell, "Deep declarative networks", IEEE TPAMI 2022, section 5 (robust pooling).
    """

    def __init__(self, scale: float = 0.3) -> None:
        super().__init__()
        self.scale = scale

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """x (n,), y ()."""
        return (torch.sqrt(1 + ((x - y) / self.scale) ** 2) - 1).sum()

    def initial_guess(self, x: Tensor) -> Tensor:
        """x (b, n) → (b,)."""
        return x.median(1).values


class Pooling(nn.Module):
    """Features of points (b, n, c) → features of the cloud (b, c)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.node = RobustMean()

    def forward(self, features: Tensor) -> Tensor:
        if self.kind == "mean":
            return features.mean(1)
        if self.kind == "max":
            return features.amax(1)
        b, n, c = features.shape
        # One instance for each channel of each cloud, all in one batch.
        return self.node(features.transpose(1, 2).reshape(b * c, n)).reshape(b, c)


POOLINGS = ("mean", "max", "robust")


class Classifier(nn.Module):
    """Points (b, n, 2) → logits (b, 10): a network on each point, a pooling, a network on the result (as in PointNet)."""

    def __init__(self, pooling: str, width: int = 64, channels: int = 32) -> None:
        super().__init__()
        self.points = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, channels))
        self.pooling = Pooling(pooling)
        self.cloud = nn.Sequential(nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, points: Tensor) -> Tensor:
        return self.cloud(self.pooling(self.points(points)))
