"""A statement as it is written: its arguments, and mistakes in it that torch would put in words of its own, or not notice."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

_RETURNING = ("objective", "equality_constraints", "inequality_constraints", "initial_guess", "solve")
# What torch says where a statement asks for the numbers of a tensor, which stands for all instances at once.
_ASKED_FOR_NUMBERS = ("vmap: It looks like you're", "data pointer of Tensor", "data-dependent control flow", "Can't call numpy() on")
_TORCH_ONLY = (
    "the statement runs once for all instances, by torch.vmap, so a tensor's numbers are not there to look at: write torch.where(...) in place of `if`, "
    "stay in torch, without .item(), float() and numpy, or find y in the node's `solve`, where anything may run"
)


def argument_names(objective: Callable[..., Any]) -> list[str] | None:
    """The names of the inputs in the signature, whose last argument is the decision variable; None where it takes *args."""
    parameters = list(inspect.signature(objective).parameters.values())
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return None
    return [p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY and p.default is inspect.Parameter.empty][:-1]


def check_returns(node: type) -> None:
    """Refuse a method that computes something and has no value: constraints would be left out in silence."""
    for name in _RETURNING:
        method = node.__dict__.get(name)
        if isinstance(method, FunctionType) and _forgets_to_return(method):
            raise TypeError(f"{node.__name__}.{name} computes something and always returns None: is a `return` missing?")


def _forgets_to_return(function: FunctionType) -> bool:
    """Whether it does something, has an end, and every way there gives None. A bare `return None` says that there is nothing; a method that
    only raises has no end.
    """
    if function.__code__.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE):
        return False
    instructions = [i for i in dis.get_instructions(function) if i.opname not in ("NOP", "CACHE", "RESUME")]
    ends = [k for k, i in enumerate(instructions) if i.opname in ("RETURN_VALUE", "RETURN_CONST")]

    def nothing(k: int) -> bool:
        if instructions[k].opname == "RETURN_VALUE" and instructions[k].is_jump_target:
            return False  # one end for several values
        loaded = instructions[k] if instructions[k].opname == "RETURN_CONST" else instructions[k - 1]
        return loaded.opname in ("RETURN_CONST", "LOAD_CONST") and loaded.argval is None

    return len(instructions) > 2 and bool(ends) and all(nothing(k) for k in ends)


def hint(error: Exception) -> str | None:
    """What to do about an error of torch's, where its words do not say so."""
    return _TORCH_ONLY if any(words in str(error) for words in _ASKED_FOR_NUMBERS) else None
