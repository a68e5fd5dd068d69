"""Nested forward mode through a custom autograd Function, which torch 2.13 gets silently wrong by itself.

torch runs a Function's `jvp` with forward mode switched off, so that under jacfwd(jacfwd(·)) the outer derivative of the
inner tangent comes out as zero (pytorch/pytorch#197867). Switching it on for the outer levels and dropping this level's
own tangents from the operands gives the right derivative, to any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor


def at_outer_levels(function: Callable[..., tuple[Tensor, ...]], operands: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """function(*operands), with the operands constant for the innermost forward level and live for those around it."""
    with forward_ad._set_fwd_grad_enabled(True):
        return function(*(t if t is None or not t.is_floating_point() else forward_ad.unpack_dual(t, level=0).primal for t in operands))


def transforms_active() -> bool:
    """Whether the code runs under a torch.func transform; torch.autograd.Function.apply asks in the same way."""
    return torch._C._are_functorch_transforms_active()


def is_wrapped(tensor: Tensor) -> bool:
    """Whether the tensor belongs to a torch.func transform."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # pyright: ignore[reportAttributeAccessIssue]


def is_differentiated(*tensors: Tensor) -> bool:
    """Whether an operation on these tensors must be recorded: for reverse mode, forward mode or a transform."""
    return transforms_active() or forward_ad._current_level >= 0 or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
