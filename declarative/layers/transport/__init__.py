"""Entropic optimal transport: one layer, its losses and its divergence."""
