"""Relaxed top-k with exact gradients."""

from declarative.layers.topk.relaxed import EntropicTopK, EuclideanTopK

__all__ = ["EntropicTopK", "EuclideanTopK"]
