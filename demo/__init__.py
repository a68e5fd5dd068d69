"""The demonstration of `make demo`: handwritten digits as point clouds, pooled by a declarative node."""
