"""`NaturalLayer`: a node whose arguments have any leading dimensions, which broadcast."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from declarative.layers.arguments import to_front
from declarative.layers.natural import Lead, as_number
from declarative.node import DeclarativeNode, InDims
from declarative.solution import Solution
from declarative.transforms import uncompiled


@dataclass(frozen=True)
class Call:
    """The arguments of one call: flat tensors (b, …), or (1, …) where all samples share one, and how to get back.

    Args:
        lead: the leading dimensions.
        tensors: differentiable functions of what the caller passed.
        dim: which dimension of the caller's y the last one of flat y is; it counts from the end.
    """

    lead: Lead
    tensors: tuple[Tensor, ...]
    dim: int = -1

    def shaped(self, y: Tensor) -> Tensor:
        """Flat y in the caller's shape and precision."""
        whole = self.lead.shaped(y)
        return whole if self.dim == -1 else whole.movedim(-1, self.dim)

    def flat(self, y: Tensor) -> Tensor:
        """The caller's y as (b, …)."""
        moved = y if self.dim == -1 else y.movedim(self.dim, -1)
        return moved.reshape(self.lead.batch, *moved.shape[len(self.lead.shape) :])

    def presented(self, found: Solution) -> Solution:
        """A solution of the flat batch in the caller's shapes."""
        names = ("equality_multipliers", "inequality_multipliers", "active", "weakly_active", "status", "iterations", "stationarity", "violation")
        return Solution(self.shaped(torch.as_tensor(found.y)), *(self.lead.shaped(getattr(found, name)) for name in names), report=found.report)

    def flat_start(self, init: Solution | Tensor | None) -> Solution | Tensor | None:
        """A warm start of the caller's, for the flat batch."""
        if not isinstance(init, Solution):
            return init if init is None else self.flat(init)
        kept = {name: getattr(init, name) for name in ("equality_multipliers", "inequality_multipliers")}
        rows = {name: None if value is None else value.reshape(self.lead.batch, value.shape[-1]) for name, value in kept.items()}
        return Solution(self.flat(torch.as_tensor(init.y)), **rows)


class NaturalLayer(DeclarativeNode):
    """A node with natural shapes: a subclass reads its arguments into a flat batch, and states its problem for that."""

    arguments: ClassVar[tuple[str, ...]] = ("x",)
    """The inputs in call order. Those after the first may be attributes of the layer, and are then left out in calls."""

    ranks: tuple[int, ...] = (1,)
    """How many dimensions one instance of each input has."""

    dim: int = -1

    # What a layer defines: for a flat batch, in plain torch.

    @abstractmethod
    def _read(self, inputs: tuple[Any, ...]) -> Call:
        """Check the arguments (kinds and shapes: no numbers)."""

    # Typed as attributes, so that a layer may name its tensors (see DeclarativeNode).

    def _missing(self, *tensors: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not state what it minimises")

    def _none(self, *tensors_and_y: Any) -> Tensor | None:  # noqa: ARG002
        return None

    _objective: Callable[..., Tensor] = _missing
    """f (b,), of the tensors and y."""

    _equalities: Callable[..., Tensor | None] = _none
    """h (b, p), of the tensors and y."""

    _inequalities: Callable[..., Tensor | None] = _none
    """g (b, q), of the tensors and y."""

    # Using it.

    @uncompiled
    def forward(self, *inputs: Any, in_dims: InDims = 0, **named: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """y.

        Args:
            inputs, named: the layer's arguments, by position or by name.
            in_dims: as in every node, where the batch dimension is not the first.
        """
        return self._value(self._called(inputs, named, in_dims))

    @uncompiled
    def solution(self, *inputs: Any, in_dims: InDims = 0, init: Solution | Tensor | None = None, **named: Any) -> Solution:  # pyright: ignore[reportIncompatibleMethodOverride]
        """y and its multipliers, all differentiable; which constraints are active; how well the optimality conditions hold.

        Args:
            inputs, named, in_dims: as in calling the layer.
            init: a warm start for the solver, where there is one: an earlier `Solution` of the same shapes, or y alone.
        """
        call = self._called(inputs, named, in_dims)
        return call.presented(self._flat_solution(call, init))

    def _called(self, inputs: tuple[Any, ...], named: dict[str, Any], in_dims: InDims) -> Call:
        return self._read(to_front(self._arranged(inputs, named), in_dims))

    def _value(self, call: Call) -> Tensor:
        return call.shaped(self._by_engine(call, "forward"))

    def _flat_solution(self, call: Call, init: Solution | Tensor | None) -> Solution:
        return self._by_engine(call, "solution", init=call.flat_start(init))

    def _arranged(self, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        """One argument for each name, None where it is the layer's own."""
        owner, wanted = type(self).__name__, ", ".join(self.arguments)
        if len(inputs) > len(self.arguments):
            raise TypeError(f"{owner} takes {len(self.arguments)} inputs ({wanted}), got {len(inputs)}")
        given = dict(zip(self.arguments, inputs, strict=False))
        for name, value in named.items():
            if name not in self.arguments or name in given:
                raise TypeError(f"{owner} takes {wanted}, each once; got {name} {'twice' if name in given else 'besides'}")
            given[name] = value
        return tuple(given.get(name) for name in self.arguments)

    def _own(self, name: str, value: Any, like: Any) -> Any:
        """An argument, or what the layer was made with; numbers as tensors that go with `like`."""
        value = getattr(self, name, None) if value is None else value
        if value is None:
            raise TypeError(f"{type(self).__name__}: {name} is missing; pass it to the layer, or in the call")
        return as_number(value, like) if isinstance(like, Tensor) else value

    def _keep(self, name: str, value: Any) -> None:
        """What the layer is made with: a number, a tensor (a buffer), a parameter, or None for what comes with each call."""
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            self.register_buffer(name, value)
        elif value is None or isinstance(value, Tensor) or (isinstance(value, int | float) and not isinstance(value, bool)):
            setattr(self, name, value)
        else:
            raise TypeError(f"{type(self).__name__}: {name} must be a number, a tensor or a torch.nn.Parameter, got {value!r}")

    def _by_engine(self, call: Call, method: str, **options: Any) -> Any:
        """The generic way, on a copy for flat batches that declares nothing."""
        plain = copy.copy(self)
        plain.__dict__ |= {"vjp": None, "dim": -1}
        shared = [t.shape[0] != call.lead.batch for t in call.tensors]
        tensors = [t[0] if alone else t for t, alone in zip(call.tensors, shared, strict=True)]
        dims = tuple(None if alone else 0 for alone in shared)
        return getattr(DeclarativeNode, method)(plain, *tensors, in_dims=dims, **options)

    # The statement for one instance, as every node has it.

    def check_shapes(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """The engine, `verify` and `certify` know one batch dimension."""
        for name, rank, shape in zip(self.arguments, self.ranks, shapes, strict=False):
            if len(shape) > rank:
                raise ValueError(
                    f"{type(self).__name__}: {name} has dimensions {shape[: len(shape) - rank]} beside the batch and its own; "
                    "the statement is that of one instance: flatten leading dimensions to one"
                )

    def _instance(self, inputs_and_y: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
        *inputs, y = inputs_and_y
        call = self._read(self._arranged(tuple(x.unsqueeze(0) if x.ndim else x for x in inputs), {}))
        return call.tensors, call.flat(y.unsqueeze(0))

    def objective(self, *inputs_and_y: Tensor) -> Tensor:
        """f, see the class."""
        tensors, y = self._instance(inputs_and_y)
        return self._objective(*tensors, y).sum()

    def equality_constraints(self, *inputs_and_y: Tensor) -> Tensor | None:
        """h = 0, see the class."""
        tensors, y = self._instance(inputs_and_y)
        return self._equalities(*tensors, y)

    def inequality_constraints(self, *inputs_and_y: Tensor) -> Tensor | None:
        """g ≤ 0, see the class."""
        tensors, y = self._instance(inputs_and_y)
        return self._inequalities(*tensors, y)
