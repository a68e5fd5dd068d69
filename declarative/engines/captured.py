"""Finding tensors that a statement uses behind the engine's back.

A tensor that requires grad, is used in the objective and was neither passed as an input nor registered on the node would
get no gradient, silently. It shows in the statement's graph as a leaf that nobody put there.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from declarative.errors import TRANSFORMED, lost_gradient
from declarative.transforms import is_wrapped

_STATEMENT = ("objective", "equality_constraints", "inequality_constraints")


def reject_captured(node: Any, roots: tuple[Tensor, ...], leaves: tuple[Tensor, ...]) -> None:
    """Raise a `CapturedTensorError` if the graph of `roots` has a leaf that is none of `leaves`."""
    # Inside the solve every torch.func level has been peeled off; a wrapped result comes from a wrapped closure.
    foreign = any(is_wrapped(root) for root in roots)
    known = {id(leaf) for leaf in leaves}
    found = [] if foreign else [t for t in _leaves(roots) if id(t) not in known]
    if not found and not foreign:
        return
    raise lost_gradient(type(node).__name__, ", ".join([_describe(node, tensor) for tensor in found] or [TRANSFORMED]))


def _leaves(roots: tuple[Tensor, ...]) -> Iterator[Tensor]:
    """The leaves that require grad behind these tensors."""
    yield from (root for root in roots if root.requires_grad and root.grad_fn is None)
    stack: list[Any] = [root.grad_fn for root in roots if root.grad_fn is not None]
    seen: set[Any] = set()
    while stack:
        function = stack.pop()
        if function in seen:
            continue
        seen.add(function)
        variable = getattr(function, "variable", None)
        if variable is not None:
            yield variable
        stack.extend(parent for parent, _ in function.next_functions if parent is not None)


def _describe(node: Any, tensor: Tensor) -> str:
    """The tensor's name where the node or its functions' closures know one, else its shape."""
    shape = f"of shape {tuple(tensor.shape)}"
    for name, value in vars(node).items():
        if _holds(value, tensor):
            return f"self.{name} {shape}"
    for method in _STATEMENT:
        function = inspect.unwrap(getattr(type(node), method))
        variables = inspect.getclosurevars(function)
        for name, value in {**variables.globals, **variables.nonlocals}.items():
            if _holds(value, tensor):
                return f"`{name}` {shape}"
    return f"a tensor {shape}"


def _holds(value: Any, tensor: Tensor) -> bool:
    if value is tensor:
        return True
    if isinstance(value, nn.Module):
        return any(parameter is tensor for parameter in value.parameters())
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return any(member is tensor or (isinstance(member, nn.Module) and _holds(member, tensor)) for member in members)
