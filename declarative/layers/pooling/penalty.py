"""What a penalty φ(z) is to the layer: a function of s = z², its parameters, and κ₁, κ₂ as functions of s."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

Value = float | Tensor


class Penalty(nn.Module):
    """A penalty φ of the distance z between the pooled point and a point; one's own by writing `phi`.

    `phi(s, *parameters)` takes s = z² ≥ 0, of any shape, and returns φ elementwise, twice differentiable in s ≥ 0; the derivatives that the
    layer needs come from autodiff: κ₁ = 2 ∂φ/∂s and κ₂ = 4 ∂²φ/∂s². Penalties whose influence fades with the distance (concave in s)
    are what the layer's steps are made for; others work, more slowly.

    Args:
        parameters: numbers, tensors, or `torch.nn.Parameter`s to be learned, by name. Tensors broadcast with the leading dimensions of the
            layer's output (without the channels, unless it is scalar).

    Example:
        >>> class Student(Penalty):
        ...     def phi(self, s, nu): return torch.log1p(s / nu)
        >>> layer = RobustPooling(Student(nu=nn.Parameter(torch.tensor(3.0))))

    A network that maps single numbers wants them in a last dimension of its own: a module whose `forward(s)` is
    `self.network(s.unsqueeze(-1)).squeeze(-1)` may be given to the layer in place of a penalty.
    """

    convex: ClassVar[bool] = False
    """Whether φ is convex and non-decreasing in z: then there is one minimum, and one start is enough."""

    concave: ClassVar[bool] = False
    """Whether φ is concave in s for all parameters, so that κ₂ ≤ 0."""

    own_shapes: ClassVar[bool] = False
    """Whether the parameters have shapes of their own in place of the batch's."""

    def __init__(self, **parameters: Value) -> None:
        super().__init__()
        self.names = tuple(parameters)
        wanted = list(inspect.signature(self.phi).parameters.values())
        if not any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in wanted) and [p.name for p in wanted[1:]] != list(parameters):
            names = ", ".join(p.name for p in wanted[1:]) or "no parameters"
            raise TypeError(f"{type(self).__name__} must be given what its phi takes after s, by name and in this order: {names}; got {list(parameters)}")
        for name, value in parameters.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            elif isinstance(value, Tensor):
                setattr(self, name, value)
            elif isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
                raise TypeError(f"{type(self).__name__}({name}=...) must be a number, a tensor or a torch.nn.Parameter, got {value!r}")
            else:
                setattr(self, name, float(value))
                self.check(**{name: float(value)})

    def check(self, **values: Value) -> None:
        """Raise a ValueError for parameters outside of their domain."""

    def values(self) -> tuple[Value, ...]:
        """The parameters, in order."""
        return tuple(getattr(self, name) for name in self.names)

    def _first(self, s: Tensor, *values: Value) -> Tensor:
        """κ₁ = φ'(z)/z = 2 ∂φ/∂s."""
        return 2 * self._slope(s, values)

    def _second(self, s: Tensor, kappa1: Tensor, *values: Value) -> Tensor | None:  # noqa: ARG002
        """κ₂ = (φ''(z) − φ'(z)/z)/z² = 4 ∂²φ/∂s²; None where it is zero everywhere. κ₁ is at hand."""
        return 4 * torch.func.grad(lambda at: self._slope(at, values).sum())(s)

    def _slope(self, s: Tensor, values: tuple[Value, ...]) -> Tensor:
        def total(at: Tensor) -> Tensor:
            phi = self.phi(at, *values)
            if phi.shape != at.shape:
                raise ValueError(f"{type(self).__name__}: phi must be elementwise; for s of shape {tuple(at.shape)} it returned {tuple(phi.shape)}")
            return phi.sum()

        return torch.func.grad(total)(s)

    # Typed as attributes, so that a penalty may name its parameters as it likes.

    def _missing(self, *s_and_values: Any) -> Tensor:  # noqa: ARG002
        """φ(s; parameters), elementwise."""
        raise TypeError(f"{type(self).__name__} must define phi(self, s, *parameters), the penalty of squared distances s")

    phi: Callable[..., Tensor] = _missing
    kappa1: Callable[..., Tensor] = _first
    kappa2: Callable[..., Tensor | None] = _second

    def _no_kink(self, *values: Value) -> Value | None:  # noqa: ARG002
        """The distance z at which φ'' or φ' jumps; None where nothing does."""
        return None

    kink: Callable[..., Value | None] = _no_kink

    def is_convex(self, *values: Value) -> bool:  # noqa: ARG002
        """Whether it is convex for these parameters."""
        return self.convex

    def is_quadratic(self, *values: Value) -> bool:  # noqa: ARG002
        """Whether it is a multiple of z² for these parameters, so that the minimum is the weighted mean."""
        return False

    def extra_repr(self) -> str:
        """For `print`."""
        return ", ".join(f"{name}={_shown(getattr(self, name))}" for name in self.names)


def _shown(value: Value) -> str:
    if not isinstance(value, Tensor):
        return f"{value:g}"
    number = f"{value.item():g}" if value.numel() == 1 else f"tensor of shape {tuple(value.shape)}"
    return f"{number} (learned)" if isinstance(value, nn.Parameter) else number


class FunctionPenalty(Penalty):
    """A plain function φ(s)."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def phi(self, s: Tensor) -> Tensor:
        """φ(s)"""
        return self.function(s)


class ModulePenalty(Penalty):
    """A module s ↦ φ, a network for one; its parameters are learned."""

    own_shapes = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def values(self) -> tuple[Value, ...]:
        """Parameters and floating buffers of the module."""
        return tuple(t for _, t in self._named())

    def phi(self, s: Tensor, *values: Tensor) -> Tensor:
        """φ(s)"""
        return torch.func.functional_call(self.module, {name: v for (name, _), v in zip(self._named(), values, strict=True)}, (s,))

    def _named(self) -> list[tuple[str, Tensor]]:
        return [*self.module.named_parameters(), *((name, b) for name, b in self.module.named_buffers() if b.is_floating_point())]


def as_penalty(penalty: Penalty | nn.Module | Callable[[Tensor], Tensor]) -> Penalty:
    """Penalties as they are; functions and modules of s wrapped."""
    if isinstance(penalty, Penalty):
        return penalty
    if isinstance(penalty, nn.Module):
        return ModulePenalty(penalty)
    if isinstance(penalty, type) or not callable(penalty):
        raise TypeError(f"penalty must be an object such as Huber(1.0), or a function of squared distances s, got {penalty!r}")
    return FunctionPenalty(penalty)
