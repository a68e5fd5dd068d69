"""Nodes of which some part is wrong, for the tests of what they are told."""

import torch

from declarative import DeclarativeNode

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def node_with(**methods):
    """y = x, with some methods replaced."""

    def objective(self, x, y):
        return 0.5 * (y - x).square().sum()

    def initial_guess(self, x):
        return torch.zeros_like(x)

    return type("Broken", (DeclarativeNode,), {"objective": objective, "initial_guess": initial_guess} | methods)()


def returns(value):
    return lambda self, *inputs: value(*inputs)
