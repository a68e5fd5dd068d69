"""No tensor is made on the default device: under inputs on a GPU it would stand on the CPU. A mode refuses factories that are not told where.

The package never says "cpu" but for what is looked at by Python alone, so that a device in every call is the inputs' own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import declarative
from declarative import DeclarativeNode, verify
from declarative.solvers import LBFGS, InteriorPoint, Newton
from declarative.structure import Banded, LowRankUpdate
from tests.test_synchronisation import CASES, Tagged, Unconstrained

_PACKAGE = str(Path(declarative.__file__).parent)
_FACTORIES = {
    torch.zeros, torch.ones, torch.empty, torch.full, torch.arange, torch.eye, torch.linspace, torch.logspace, torch.tensor, torch.scalar_tensor,
    torch.rand, torch.randn, torch.randint, torch.randperm, torch.tril_indices, torch.triu_indices,
}  # fmt: skip


class ToldWhere(TorchFunctionMode):
    """Raises where the package makes a tensor and does not say on which device."""

    def __torch_function__(self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        made = func in _FACTORIES or (func is torch.as_tensor and not isinstance(args[0], Tensor))
        if made and (kwargs or {}).get("device") is None:
            caller = sys._getframe(1)
            assert not caller.f_code.co_filename.startswith((_PACKAGE, "<")), (
                f"{func.__name__} without a device at {caller.f_code.co_filename}:{caller.f_lineno}"
            )
        return func(*args, **(kwargs or {}))


def test_the_mode_sees_what_it_should() -> None:
    code = compile("torch.zeros(3)", f"{_PACKAGE}/made_up.py", "eval")
    with pytest.raises(AssertionError, match="zeros without a device"), ToldWhere():
        eval(code)
    with ToldWhere():
        torch.zeros(3)


@pytest.mark.parametrize("name", CASES)
def test_layers(name: str) -> None:
    make, sample = CASES[name]
    layer, inputs = make(), [t.requires_grad_() for t in sample(3)]
    with ToldWhere():
        found = layer(*inputs)
        (gradient, *_) = torch.autograd.grad(found, inputs, torch.ones_like(found), create_graph=True)
        if gradient.requires_grad:
            gradient.sum().backward()
        if not isinstance(layer, torch.nn.Module) or "loss" not in name:
            torch.func.jvp(layer, tuple(t.detach() for t in inputs), tuple(torch.ones_like(t) for t in inputs))


class Chained(Tagged):
    """Neighbours meet."""

    hessian_structure = Banded(1)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return (y.cosh() - x * y).sum() + 0.1 * (y[1:] - y[:-1]).square().sum()


class Summed(Unconstrained):
    """All meet in one sum."""

    hessian_structure = LowRankUpdate(1)


@pytest.mark.parametrize("make", [Chained, Summed, lambda: Unconstrained(solver=LBFGS()), lambda: Unconstrained(solver=Newton(), polish=2)])
def test_structures_and_solvers(make: Any) -> None:
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    with ToldWhere():
        make()(x).sum().backward()


def test_interior_point_and_verification() -> None:
    node: DeclarativeNode = CASES["dense, inequalities"][0]()  # pyright: ignore[reportAssignmentType]
    node.solver = InteriorPoint()
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with ToldWhere():
        assert verify(node, x).ok
