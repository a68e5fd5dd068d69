"""A batch of instances of one node: its statement as plain batched functions of flat tensors.

Everything below the node (engines, solvers, differentiation) sees a `Problem` and nothing else of it. Three things
happen here and nowhere else: the instance functions are batched by vmap, the decision variable is flattened, and the
node's parameters and buffers are lifted to ordinary tensors beside the inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from declarative.batching import batched
from declarative.errors import TRANSFORMED, CapturedTensorError, lost_gradient
from declarative.statement import hint
from declarative.structure.base import Operator
from declarative.transforms import is_wrapped, transforms_active
from declarative.typing import EqualityMultipliers, InequalityMultipliers, Output, Values, Variables


@dataclass(frozen=True)
class Layout:
    """How one decision variable of m numbers is seen by the user: a tensor of some shape, or a tuple of them."""

    shapes: tuple[tuple[int, ...], ...]
    is_tuple: bool

    @property
    def size(self) -> int:
        """m, the numbers in one decision variable."""
        return sum(torch.Size(shape).numel() for shape in self.shapes)

    def pack(self, parts: Sequence[Tensor]) -> Tensor:
        """(b, *shape) each -> (b, m)."""
        if len(parts) == 1:
            return parts[0].reshape(parts[0].shape[0], self.size)
        return torch.cat([part.reshape(part.shape[0], torch.Size(s).numel()) for part, s in zip(parts, self.shapes, strict=True)], 1)

    def unpack(self, flat: Tensor) -> Output:
        """(…, m) -> (…, *shape), or a tuple of them."""
        lead = flat.shape[:-1]
        if not self.is_tuple:
            return flat.reshape(lead + self.shapes[0])
        parts = flat.split([torch.Size(shape).numel() for shape in self.shapes], dim=-1)
        return tuple(part.reshape(lead + shape) for part, shape in zip(parts, self.shapes, strict=True))


def rebind(module: nn.Module, tensors: dict[str, Tensor], prefix: str = "", memo: dict[int, nn.Module] | None = None) -> nn.Module:
    """A shallow copy of the module tree in which the parameters and buffers of these (qualified) names are replaced.

    torch.func.functional_call swaps the tensors inside the module itself for the time of the call, so that two threads
    using one module see each other's tensors. A copy of the tree (not of its tensors) has no such window.
    """
    memo = {} if memo is None else memo
    if id(module) in memo:
        return memo[id(module)]
    clone = type(module).__new__(type(module))
    memo[id(module)] = clone
    state = dict(module.__dict__)
    for kind in ("_parameters", "_buffers"):
        state[kind] = {name: tensors.get(prefix + name, value) for name, value in state[kind].items()}
    state["_modules"] = {name: None if child is None else rebind(child, tensors, f"{prefix}{name}.", memo) for name, child in state["_modules"].items()}
    clone.__dict__.update(state)
    return clone


def lift(module: nn.Module) -> tuple[tuple[tuple[str, ...], ...], tuple[Tensor, ...]]:
    """The module's parameters and buffers, each once, with all the names that it goes by (tied weights have several).

    By name, not by identity: torch.func.functional_call swaps the tensors for the time of a call, and the backward pass
    runs after it.
    """
    names: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    for name, tensor in (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)):
        names.setdefault(id(tensor), []).append(name)
        tensors[id(tensor)] = tensor
    return tuple(tuple(n) for n in names.values()), tuple(tensors.values())


@dataclass(frozen=True)
class Problem:
    """A batch of b instances.

    Args:
        node: the statement's owner.
        tensors: the inputs in call order, then the lifted parameters and buffers.
        in_dims: for each tensor 0 (a leading batch dimension of size b) or None (shared by the batch).
        batch: b.
        inputs: how many of `tensors` are inputs.
        lifted: for each of the others the names of the parameter or buffer that it stands for.
        layout: the shape of y; known once a solve or an initial guess has shown it.
        depth: the torch.func level that the node was called at.
    """

    node: Any
    tensors: tuple[Tensor, ...]
    in_dims: tuple[int | None, ...]
    batch: int
    inputs: int
    lifted: tuple[tuple[str, ...], ...]
    layout: Layout | None = None
    depth: int = 0

    @property
    def like(self) -> Tensor:
        """A tensor that has the dtype and device of the problem."""
        return self.tensors[0]

    @property
    def name(self) -> str:
        """The node's class name, for messages."""
        return type(self.node).__name__

    def bound_node(self, lifted: Sequence[Tensor]) -> Any:
        """The node, seeing these tensors as its parameters and buffers."""
        if not self.lifted:
            return self.node
        return rebind(self.node, {name: t for names, t in zip(self.lifted, lifted, strict=True) for name in names})

    def evaluate_instance(self, *args: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values f (), h (p,), g (q,) of ONE instance; args: inputs, lifted tensors, flat y."""
        node = self.bound_node(args[self.inputs : -1])
        flat = args[-1]
        if self.layout is None:
            raise RuntimeError(f"{self.name}: the shape of y is not known yet")
        values = (*args[: self.inputs], self.layout.unpack(flat))
        objective = node.objective(*values)
        if not isinstance(objective, Tensor) or objective.ndim != 0:
            came = f"shape {tuple(objective.shape)}" if isinstance(objective, Tensor) else type(objective).__name__
            raise ValueError(
                f"{self.name}.objective must return a scalar tensor () for ONE instance, got {came}; "
                "reduce it (for example with .sum()), and write it without a batch dimension"
            )
        self._check_dtype("objective", objective, flat)
        return (
            objective,
            self._constraint("equality_constraints", node.equality_constraints(*values), flat),
            self._constraint("inequality_constraints", node.inequality_constraints(*values), flat),
        )

    def _constraint(self, name: str, value: object, flat: Tensor) -> Tensor:
        if value is None:
            return flat.new_zeros(0)
        if not isinstance(value, Tensor):
            raise TypeError(f"{self.name}.{name} must return a tensor (or None for no constraint), got {type(value).__name__}")
        self._check_dtype(name, value, flat)
        return value.reshape(-1)

    def _check_dtype(self, name: str, value: Tensor, flat: Tensor) -> None:
        if value.dtype != flat.dtype:
            comparison = "; return the value that is to be 0, or ≤ 0, and not a comparison" if value.dtype == torch.bool else ""
            raise TypeError(f"{self.name}.{name} must keep the dtype of the inputs, {flat.dtype}, got {value.dtype}{comparison}")

    def evaluate(self, y: Variables, tensors: Sequence[Tensor] | None = None) -> tuple[Values, EqualityMultipliers, InequalityMultipliers]:
        """Values f (b,), h (b, p), g (b, q) of the whole batch at y, by one vmap of the instance."""
        args = self.tensors if tensors is None else tensors
        try:
            f, h, g = batched(self.evaluate_instance, (*self.in_dims, 0), self.batch, (*args, y), self.depth)
        except Exception as error:
            if isinstance(error, RuntimeError) and "wrapper == nullptr" in str(error):
                # What torch says of a tensor that belongs to a level of torch.func which the engine has left.
                raise lost_gradient(self.name, TRANSFORMED) from error
            shapes = ", ".join(str(tuple(t.shape[1:] if d == 0 else t.shape)) for t, d in zip(args[: self.inputs], self.in_dims, strict=False))
            if isinstance(error, CapturedTensorError):
                raise
            if (advice := hint(error)) is not None:
                error.add_note(advice)
            error.add_note(f"while evaluating the statement of {self.name} on one instance: inputs {shapes}, y {self.layout.shapes if self.layout else None}")
            raise
        if self.depth and not transforms_active() and any(is_wrapped(t) for t in (f, h, g)):
            raise lost_gradient(self.name, TRANSFORMED)
        return f, h, g

    def call_batched(self, method: str, *extra: Any, packed: bool = False) -> Any:
        """The node's own batch-first method (`solve`, `initial_guess`, a hook) on the inputs, shared ones expanded to the batch.

        Where a lifted parameter differs between samples (an ensemble under vmap) the method runs one sample at a time.

        Args:
            extra: what it takes besides: tensors, and dataclasses of tensors, batch first.
            packed: the inputs come as one tuple.
        """
        inputs = tuple(
            tensor if dim == 0 else tensor.expand(self.batch, *tensor.shape)
            for tensor, dim in zip(self.tensors[: self.inputs], self.in_dims[: self.inputs], strict=True)
        )
        lifted, lifted_dims = self.tensors[self.inputs :], self.in_dims[self.inputs :]
        if all(dim is None for dim in lifted_dims):
            return getattr(self.bound_node(lifted), method)(*((inputs,) if packed else inputs), *extra)
        outcomes = []
        for i in range(self.batch):
            node = self.bound_node([t[i] if d == 0 else t for t, d in zip(lifted, lifted_dims, strict=True)])
            own = tuple(x[i : i + 1] for x in inputs)
            outcomes.append(getattr(node, method)(*((own,) if packed else own), *(_sample(e, i) for e in extra)))
        return _concatenate(outcomes)

    def select(self, index: Tensor) -> Problem:
        """The sub-batch of these samples."""
        tensors = tuple(t[index] if dim == 0 else t for t, dim in zip(self.tensors, self.in_dims, strict=True))
        return replace(self, tensors=tensors, batch=index.shape[0])

    def with_tensors(self, tensors: Sequence[Tensor]) -> Problem:
        """The same problem over other tensors of the same shapes."""
        return replace(self, tensors=tuple(tensors))

    def with_layout(self, layout: Layout) -> Problem:
        """The same problem, with the shape of y known."""
        return replace(self, layout=layout)


def _sample(value: Any, i: int) -> Any:
    """Sample i as a batch of one, in every tensor of a dataclass."""
    if isinstance(value, Tensor):
        return value[i : i + 1]
    if isinstance(value, tuple):
        return tuple(_sample(part, i) for part in value)
    return replace(value, **{name: _sample(part, i) for name, part in vars(value).items() if isinstance(part, Tensor | tuple)})


def _concatenate(outcomes: list[Any]) -> Any:
    first = outcomes[0]
    if isinstance(first, Operator):
        return first.with_tensors([torch.cat(parts) for parts in zip(*(o.tensors for o in outcomes), strict=True)])
    if isinstance(first, Tensor):
        return torch.cat(outcomes)
    if isinstance(first, tuple):
        return tuple(torch.cat(parts) for parts in zip(*outcomes, strict=True))
    fields = {name: _concatenate([getattr(o, name) for o in outcomes]) for name, value in vars(first).items() if value is not None}
    return type(first)(**fields)
