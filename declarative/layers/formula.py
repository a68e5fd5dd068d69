"""One autograd Function for every layer whose solution and derivative are known by formula."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from declarative.transforms import alive, at_outer_levels, folded, is_differentiated, reject_legacy_vmap, transforms_active, unfolded


class Formula(ABC):
    """One call of such a layer. Tensors come batch first; all but `solve` is differentiable torch, of tensors and outputs alike."""

    live: int
    """How many of the outputs, the first ones, are differentiable."""

    @abstractmethod
    def solve(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The outputs, from detached tensors."""

    @abstractmethod
    def pull_back(self, operands: Sequence[Tensor], cotangents: Sequence[Tensor | None], wanted: Sequence[bool]) -> Sequence[Tensor | None]:
        """Cotangents of the tensors, where wanted, from those of the live outputs; operands are the tensors and the live outputs."""

    @abstractmethod
    def push_forward(self, operands: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """Tangents of the live outputs."""

    @abstractmethod
    def fresh(self) -> Formula:
        """The same, for another batch: without what a solve has left here."""


def full_precision(like: Tensor) -> AbstractContextManager[Any]:
    """Products in the dtype of their factors, also where the caller works under autocast."""
    device = like.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def solved(formula: Formula, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The outputs of the formula as differentiable functions of the tensors: of every order, in every mode, under torch.func."""
    if not is_differentiated(*tensors):
        return _Solved.forward(formula, *tensors)
    function = _Solved if transforms_active() or forward_ad._current_level >= 0 else _Recorded
    return function.apply(formula, *tensors)  # pyright: ignore[reportReturnType]


class _Solved(torch.autograd.Function):
    @staticmethod
    def forward(formula: Formula, *tensors: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        with torch.no_grad(), full_precision(tensors[0]):
            return formula.solve(*(t.detach() for t in tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        formula, *tensors = inputs
        ctx.formula = formula
        ctx.rest = len(output) - formula.live
        ctx.mark_non_differentiable(*output[formula.live :])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output[: formula.live])
        ctx.save_for_forward(*tensors, *output[: formula.live])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        formula: Formula = ctx.formula
        given = cotangents[: formula.live]
        reject_legacy_vmap(*given)
        wanted = ctx.needs_input_grad[1:]
        if all(c is None for c in given):
            return (None,) * (1 + len(wanted))
        operands = [alive(t) for t in ctx.saved_tensors]
        with full_precision(operands[0]):
            return None, *formula.pull_back(operands, given, wanted)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        reject_legacy_vmap(*tangents)
        formula, count = ctx.formula, len(ctx.saved_tensors)

        def push(*operands: Any) -> tuple[Tensor, ...]:
            with full_precision(operands[0]):
                return formula.push_forward(operands[:count], operands[count:])

        outputs = at_outer_levels(push, (*ctx.saved_tensors, *tangents))
        return *outputs, *([None] * ctx.rest)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], formula: Formula, *tensors: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        size = info.batch_size
        outputs = _Solved.apply(formula.fresh(), *(folded(t, d, size) for t, d in zip(tensors, in_dims[1:], strict=True)))
        return tuple(unfolded(o, size) for o in outputs), (0,) * len(outputs)


class _Recorded(torch.autograd.Function):
    """The same in torch's older form, which only plain reverse mode takes: it does not look up a signature at each call."""

    @staticmethod
    def forward(ctx: Any, formula: Formula, *tensors: Tensor) -> tuple[Tensor, ...]:
        output = _Solved.forward(formula, *tensors)
        _Solved.setup_context(ctx, (formula, *tensors), output)
        return output

    backward = _Solved.backward
