"""Engines: from a `Problem` and a point to the blocks of its KKT system."""
