"""Sums over all pairs of two clouds, a tile at a time, differentiable to any order in the memory of one tile.

What adds up over tiles has a pull-back that adds up over tiles. So one autograd Function serves every order: its backward pass is the
same Function with the pull-back in place of the function. It saves its inputs, and each tile is computed again when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from declarative.transforms import alive, is_differentiated

Tile = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True, eq=False)
class PairSum:
    """Sums over pairs (i, j) of points x_i (n) and y_j (m).

    Args:
        function: of tensors, to a tuple of tensors, in differentiable torch; for a block of rows i and all j.
        inputs: a letter for each of its tensors: "r" has one row for each x_i, "c" one for each y_j, "s" belongs to all pairs.
        outputs: the same for its results: those of "r" are put together, those of "c" and "s" are added up over the blocks.
        block: so many rows at a time.
        near: for each block of rows the columns that count; None: all.
    """

    function: Tile
    inputs: str
    outputs: str
    block: int
    near: Sequence[Tensor] | None = None

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The sums over all pairs."""
        return _Sum.apply(self, *tensors) if is_differentiated(*tensors) else self.run(tensors)

    def pull_back(self, wanted: tuple[int, ...]) -> PairSum:
        """The sums (tensors, cotangents) -> cotangents of the wanted tensors."""
        count = len(self.inputs)

        def pulled(*operands: Tensor) -> tuple[Tensor, ...]:
            tensors = list(operands[:count])

            def chosen(*some: Tensor) -> tuple[Tensor, ...]:
                for k, tensor in zip(wanted, some, strict=True):
                    tensors[k] = tensor
                return self.function(*tensors)

            back: Any = torch.func.vjp(chosen, *(operands[k] for k in wanted))[1]
            return back(operands[count:])

        return PairSum(pulled, self.inputs + self.outputs, "".join(self.inputs[k] for k in wanted), self.block, self.near)

    def run(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The sums over all pairs, block by block."""
        sizes = {kind: t.shape[0] for t, kind in zip(tensors, self.inputs, strict=True) if kind != "s"}
        sums: list[Tensor] = []
        for k, start in enumerate(range(0, sizes["r"], self.block)):
            rows = slice(start, start + self.block)
            columns = slice(None) if self.near is None else self.near[k]
            chosen = {"r": rows, "c": columns, "s": ...}
            parts = self.function(*(t[chosen[kind]] for t, kind in zip(tensors, self.inputs, strict=True)))
            if not start:
                sums = [part.new_zeros(part.shape if kind == "s" else (sizes[kind], *part.shape[1:])) for part, kind in zip(parts, self.outputs, strict=True)]
            for total, part, kind in zip(sums, parts, self.outputs, strict=True):
                if kind == "r":
                    total[rows] = part
                elif kind == "c" and isinstance(columns, Tensor):
                    total.index_add_(0, columns, part)
                else:
                    total += part
        return tuple(sums)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(pairs: PairSum, *tensors: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return pairs.run(tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ARG004
        ctx.pairs = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        wanted = tuple(k for k, needed in enumerate(ctx.needs_input_grad[1:]) if needed)
        gradients: list[Tensor | None] = [None] * (len(ctx.needs_input_grad) - 1)
        pulled = ctx.pairs.pull_back(wanted)(*(alive(t) for t in ctx.saved_tensors), *cotangents)
        for k, gradient in zip(wanted, pulled, strict=True):
            gradients[k] = gradient
        return None, *gradients

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return one_by_one(_Sum, info, in_dims, inputs)


def one_by_one(function: Any, info: Any, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]) -> tuple[Any, Any]:
    """The vmap rule of a Function that takes one sample at a time."""
    samples = [function.apply(*(t if dim is None else t.select(dim, k) for t, dim in zip(inputs, in_dims, strict=True))) for k in range(info.batch_size)]
    if isinstance(samples[0], Tensor):
        return torch.stack(samples), 0
    return tuple(torch.stack(parts) for parts in zip(*samples, strict=True)), (0,) * len(samples[0])
