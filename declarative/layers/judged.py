"""What `Implicit`'s policies do to a derivative by formula, in samples where it is not unique."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from declarative.errors import IrregularPointError, name_samples
from declarative.solution import DerivativeReport
from declarative.transforms import folded, is_wrapped, reject_legacy_vmap, transforms_active, unfolded


def physical(tensor: Tensor) -> Tensor:
    """The numbers behind all levels of torch.func: with the dimensions that vmap maps."""
    while is_wrapped(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)  # pyright: ignore[reportAttributeAccessIssue]
    return tensor.detach()


def numbers(function: Callable[..., Any], *tensors: Tensor) -> Any:
    """function(*tensors), batch first and batch for batch, as constants of differentiation; function sees numbers, under torch.func too."""
    if not transforms_active():
        with torch.no_grad():
            return function(*(t.detach() for t in tensors))
    return _Numbers.apply(function, *tensors)


class _Numbers(torch.autograd.Function):
    @staticmethod
    def forward(function: Callable[..., Any], *tensors: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return function(*(t.detach() for t in tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG004
        ctx.nothing = (None,) * len(output) if isinstance(output, tuple) else None
        ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]  # noqa: ARG004
        return (None,) * len(ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  # noqa: ARG004
        return ctx.nothing

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], function: Callable[..., Any], *tensors: Tensor) -> tuple[Any, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        size = info.batch_size
        found: Any = numbers(function, *(folded(t, dim, size) for t, dim in zip(tensors, in_dims[1:], strict=True)))
        parts = found if isinstance(found, tuple) else (found,)
        shaped = tuple(unfolded(part, size) for part in parts)
        return (shaped, (0,) * len(shaped)) if isinstance(found, tuple) else (shaped[0], 0)


@dataclass(frozen=True)
class Doubt:
    """Why derivatives of some samples are in doubt, and what to return there.

    Args:
        owner: the layer, for messages.
        policy: "raise", "nan", "zero"; anything else: the formula's own, which is that of the pseudo-inverse.
        cause: in words.
        option: which option of `Implicit` decides.
        report: where samples are noted.
    """

    owner: str
    policy: str
    cause: str
    option: str
    report: DerivativeReport

    def applied(self, derivative: Tensor, marked: Tensor, asked: Tensor) -> Tensor:
        """(b, …) with the policy applied in the marked samples (b,) of which anything is asked."""
        hit = marked & asked
        members = physical(hit).reshape(-1).nonzero().squeeze(1).tolist()
        if not members:
            return derivative
        if self.policy == "raise":
            raise IrregularPointError(
                f"{self.owner}: no unique derivative at {name_samples(members, physical(hit).numel())}: {self.cause}. "
                f'Pass differentiation=Implicit({self.option}=...) with another choice than "raise", or move the input'
            )
        self.report.irregular.update(dict.fromkeys(members, self.cause))
        if self.policy not in ("nan", "zero"):
            return derivative
        column = hit.reshape(-1, *[1] * (derivative.ndim - 1))
        return torch.where(column, torch.nan if self.policy == "nan" else 0.0, derivative)


def judged(y: Tensor, marked: Tensor, doubt: Doubt) -> Tensor:
    """y (b, …), whose derivative is in doubt in the marked samples (b,)."""
    return _Judged.apply(doubt, y, marked) if bool(physical(marked).any()) else y  # pyright: ignore[reportReturnType]


class _Judged(torch.autograd.Function):
    @staticmethod
    def forward(doubt: Doubt, y: Tensor, marked: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  # noqa: ARG004
        return y.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.doubt, _, marked = inputs
        ctx.save_for_backward(marked)
        ctx.save_for_forward(marked)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[None, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        reject_legacy_vmap(v)
        (marked,) = ctx.saved_tensors
        return None, ctx.doubt.applied(v, marked, (v != 0).flatten(1).any(1)), None

    @staticmethod
    def jvp(ctx: Any, _: None, dy: Tensor, __: None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        reject_legacy_vmap(dy)
        (marked,) = ctx.saved_tensors
        return ctx.doubt.applied(dy, marked, torch.ones_like(marked))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], doubt: Doubt, y: Tensor, marked: Tensor) -> tuple[Tensor, int]:  # pyright: ignore[reportIncompatibleMethodOverride]
        size = info.batch_size
        return unfolded(_Judged.apply(doubt, folded(y, in_dims[1], size), folded(marked, in_dims[2], size)), size), 0  # pyright: ignore[reportArgumentType]
