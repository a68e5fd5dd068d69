"""Where torch 2.13's transforms meet a custom autograd Function, and what must be done there by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor


def at_outer_levels(function: Callable[..., tuple[Tensor, ...]], operands: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """function(*operands), with the operands constant for the innermost forward level and live for those around it.

    torch runs a Function's `jvp` with forward mode switched off, so that under jacfwd(jacfwd(·)) the outer derivative of
    the inner tangent comes out as zero, silently (pytorch/pytorch#197867). Switching it on for the outer levels and
    dropping this level's own tangents from the operands gives the right derivative, to any order.
    """
    with forward_ad._set_fwd_grad_enabled(True):
        return function(*(t if t is None or not t.is_floating_point() else forward_ad.unpack_dual(t, level=0).primal for t in operands))


def transforms_active() -> bool:
    """Whether the code runs under a torch.func transform; torch.autograd.Function.apply asks in the same way."""
    return torch._C._are_functorch_transforms_active()


def current_level() -> int:
    """The number of the innermost torch.func level, 0 outside all."""
    return torch._C._functorch.maybe_current_level() or 0  # pyright: ignore[reportAttributeAccessIssue]


def yields_duals(function: Callable[[], tuple[Tensor, ...]]) -> bool:
    """Whether function() has a tangent in the forward mode around the Function whose forward this runs in (where it is off)."""
    if forward_ad._current_level < 0:
        return False
    with forward_ad._set_fwd_grad_enabled(True):
        return any(forward_ad.unpack_dual(t).tangent is not None for t in function())


def alive(tensor: Tensor) -> Tensor:
    """The tensor behind a torch.func level that has ended.

    The pull-back that torch.func.vjp returns runs after its level has: what a Function saved is then still wrapped for a
    level that records nothing, and a gradient taken through the wrapper is silently zero.
    """
    return torch._C._functorch.unwrap_if_dead(tensor) if is_wrapped(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def folded(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """A batch first tensor with vmap's dimension of this size folded into its batch; repeated where it is not mapped."""
    outer = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return outer.reshape(-1, *outer.shape[2:]) if outer.shape[1] else outer.new_zeros(0, *outer.shape[2:])


def unfolded(tensor: Tensor, size: int) -> Tensor:
    """(size · b, …) -> (size, b, …)"""
    return tensor.reshape(size, tensor.shape[0] // size if size else 0, *tensor.shape[1:])


def reject_legacy_vmap(*tensors: Tensor | None) -> None:
    """Raise for torch.autograd's own batching, an older vmap than torch.func's, which no autograd Function can serve."""
    if any(t is not None and torch._C._functorch.is_legacy_batchedtensor(t) for t in tensors):  # pyright: ignore[reportAttributeAccessIssue]
        raise NotImplementedError(
            "torch.autograd.grad(is_grads_batched=True) and torch.autograd.functional.jacobian(vectorize=True) cannot run through a "
            "declarative node: use torch.func.jacrev, torch.func.jacfwd, or torch.func.vmap of the function that torch.func.vjp returns"
        )


def is_wrapped(tensor: Tensor) -> bool:
    """Whether the tensor belongs to a torch.func transform."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # pyright: ignore[reportAttributeAccessIssue]


def reject_mapped_and_dual(
    what: str,
    *tensors: Tensor,
    batch: str = "the batch dimension that every node has (in_dims says which inputs have it)",
    otherwise: str = "differentiation=Implicit()",
) -> None:
    """Raise for torch.func.vmap and forward mode around a loop that looks at its numbers.

    Args:
        what: the loop.
        batch, otherwise: what to use instead, for messages.
    """
    functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    stack = functorch.get_interpreter_stack() or []
    forward = {level.level() for level in stack if level.key() == functorch.TransformType.Jvp}
    for tensor in tensors:
        dual = forward_ad._current_level >= 0 and tensor.is_floating_point() and forward_ad.unpack_dual(tensor).tangent is not None
        while is_wrapped(tensor):
            if functorch.is_batchedtensor(tensor):
                raise NotImplementedError(f"{what} cannot run under torch.func.vmap, because its steps look at the numbers: use {batch}, or {otherwise}")
            dual = dual or functorch.maybe_get_level(tensor) in forward
            tensor = functorch.get_unwrapped(tensor)
        if dual:
            raise NotImplementedError(f"{what} has no forward mode (jvp, jacfwd): use reverse mode (torch.func.jacrev), or {otherwise}")


def is_differentiated(*tensors: Tensor) -> bool:
    """Whether an operation on these tensors must be recorded: for reverse mode, forward mode or a transform."""
    return forward_ad._current_level >= 0 or is_recorded(*tensors)


def is_recorded(*tensors: Tensor) -> bool:
    """The same without forward mode."""
    return transforms_active() or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))


def without_graph(function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """function(*tensors), as numbers: run outside of every level of torch.func, its results constants of differentiation."""
    if transforms_active():
        return _Constants.apply(function, *tensors)
    with torch.no_grad():
        return function(*(t.detach() for t in tensors))


class _Constants(torch.autograd.Function):
    @staticmethod
    def forward(function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return function(*(t.detach() for t in tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ARG004
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]  # noqa: ARG004
        return (None,) * len(ctx.needs_input_grad)

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: Any,  # noqa: ARG004
        in_dims: tuple[Any, ...],
        function: Callable[..., tuple[Tensor, ...]],
        *tensors: Tensor,
    ) -> tuple[tuple[Tensor, ...], tuple[None, ...]]:
        if any(dim is not None for dim in in_dims[1:]):
            raise NotImplementedError("a loop that looks at its numbers cannot run under torch.func.vmap")
        outputs = _Constants.apply(function, *tensors)
        return outputs, (None,) * len(outputs)
