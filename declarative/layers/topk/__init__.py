"""Relaxed top-k with exact gradients."""

from declarative.layers.topk.entropic import EntropicTopK
from declarative.layers.topk.euclidean import EuclideanTopK

__all__ = ["EntropicTopK", "EuclideanTopK"]
