"""From the caller's shapes to a flat batch, and the checks of what the numbers are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from declarative.errors import name_samples
from declarative.layers.transport.statement import Transport
from declarative.node import HALF

_MASS = 1e-3  # masses that differ by more, relatively, are a mistake; less is rounding, or somebody's finite differences
_HALF_MASS = 1e-2


@dataclass(frozen=True, eq=False)
class Read:
    """The arguments of one call.

    Args:
        cost, rows, columns, gamma: (b, m, n), (b, m), (b, n), (b,), differentiable functions of what the caller passed.
        lead: the leading dimensions that b stands for.
        dtype: what the caller works in; half precisions are computed in float32.
    """

    cost: Tensor
    rows: Tensor
    columns: Tensor
    gamma: Tensor
    lead: tuple[int, ...]
    dtype: torch.dtype

    def shaped(self, tensor: Tensor) -> Tensor:
        """(b, …) in the caller's shape and precision."""
        if tensor.dtype != self.dtype and tensor.is_floating_point():
            tensor = tensor.to(self.dtype)
        return tensor if len(self.lead) == 1 else tensor.reshape((*self.lead, *tensor.shape[1:]))

    @property
    def mass_tolerance(self) -> float:
        """How far, relatively, the masses of r and c may differ."""
        return mass_tolerance(self.dtype)

    def flat(self, name: str, tensor: Any, size: int) -> Tensor:
        """A warm start (…, size) as (b, size)."""
        tensor = _marginal(name, tensor.to(self.cost) if isinstance(tensor, Tensor) and tensor.dtype == self.dtype else tensor, self.cost, size).detach()
        try:
            return tensor.expand((*self.lead, size)).reshape(-1, size)
        except RuntimeError as error:
            raise ValueError(f"{name} must broadcast to {(*self.lead, size)}, got {tuple(tensor.shape)}") from error


def mass_tolerance(dtype: torch.dtype) -> float:
    """How far, relatively, the masses of r and c may differ."""
    return _HALF_MASS if dtype in HALF else _MASS


def read(cost: Any, rows: Any, columns: Any, gamma: Any, mask: Any, affinity: bool) -> Read:
    """Check kinds and shapes, broadcast the leading dimensions, fill in uniform marginals."""
    name = "Q" if affinity else "M"
    if not isinstance(cost, Tensor) or not cost.is_floating_point():
        raise TypeError(f"{name} must be a floating tensor (…, m, n), got {cost.dtype if isinstance(cost, Tensor) else type(cost).__name__}")
    if cost.ndim < 2:
        raise ValueError(f"{name} must have shape (…, m, n), got {tuple(cost.shape)}")
    dtype, (m, n) = cost.dtype, cost.shape[-2:]
    if dtype in HALF:
        cost, rows, columns, gamma = (t.float() if isinstance(t, Tensor) and t.dtype == dtype else t for t in (cost, rows, columns, gamma))
    if not m or not n:
        raise ValueError(f"{name} must have at least one row and one column, got {tuple(cost.shape)}")
    if mask is not None:
        cost = _masked(cost, mask, m, n, 0.0 if affinity else torch.inf)
    if affinity:  # the logarithm of 0 has no derivative to multiply by 0
        cost = torch.where(cost == 0, torch.inf, -torch.where(cost == 0, 1.0, cost).log())
    rows = _uniform(mask, cost, -1) if rows is None else _marginal("r", rows, cost, m)
    columns = _uniform(mask, cost, -2) if columns is None else _marginal("c", columns, cost, n)
    gamma = _tensor("gamma", gamma, cost)
    leads = (cost.shape[:-2], rows.shape[:-1], columns.shape[:-1], gamma.shape)
    lead = tuple(leads[0])
    if any(other not in ((), lead) for other in leads[1:]):  # torch.broadcast_shapes takes longer than the rest together
        try:
            lead = tuple(torch.broadcast_shapes(*leads))
        except RuntimeError as error:
            shapes = f"{name} {tuple(cost.shape)}, r {tuple(rows.shape)}, c {tuple(columns.shape)}, gamma {tuple(gamma.shape)}"
            raise ValueError(f"the leading dimensions do not broadcast: {shapes}") from error
    return Read(_flat(cost, lead, 2), _flat(rows, lead, 1), _flat(columns, lead, 1), _flat(gamma, lead, 0), lead, dtype)


def _flat(tensor: Tensor, lead: tuple[int, ...], trailing: int) -> Tensor:
    own = tensor.shape[tensor.ndim - trailing :]
    if tensor.shape[: tensor.ndim - trailing] != lead:
        tensor = tensor.expand((*lead, *own))
    return tensor if len(lead) == 1 else tensor.reshape((_count(lead), *own))


def _count(lead: Sequence[int]) -> int:
    return int(torch.Size(lead).numel())


def _tensor(name: str, value: Any, like: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}")
        return torch.full((), value, dtype=like.dtype, device=like.device)
    if value.dtype != like.dtype:
        raise TypeError(f"{name} has dtype {value.dtype}, the costs have {like.dtype}; convert one of them")
    if value.device != like.device:
        raise ValueError(f"{name} is on {value.device}, the costs are on {like.device}")
    return value


def positive(name: str, value: Any) -> float:
    """A number between 0 and ∞, or an error."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}")
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return value


def _marginal(name: str, value: Any, cost: Tensor, size: int) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor (…, {size}), got {type(value).__name__}")
    value = _tensor(name, value, cost)
    if value.ndim < 1 or value.shape[-1] != size:
        raise ValueError(f"{name} must have shape (…, {size}) for costs {tuple(cost.shape)}, got {tuple(value.shape)}")
    return value


def _masked(cost: Tensor, mask: Any, m: int, n: int, forbidden: float) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor (…, {m}, {n}), True where something may be sent, got {getattr(mask, 'dtype', type(mask).__name__)}")
    if mask.ndim < 2 or mask.shape[-2:] != (m, n):
        raise ValueError(f"mask must have shape (…, {m}, {n}), got {tuple(mask.shape)}")
    try:
        return torch.where(mask, cost, forbidden)
    except RuntimeError as error:
        if mask.device != cost.device:
            raise ValueError(f"mask is on {mask.device}, the costs are on {cost.device}") from error
        raise ValueError(f"the leading dimensions of mask {tuple(mask.shape)} and of the costs {tuple(cost.shape)} do not broadcast") from error


def _uniform(mask: Tensor | None, cost: Tensor, dim: int) -> Tensor:
    """1/m each, over the rows (or columns) that the mask leaves."""
    if mask is None:
        size = cost.shape[-1 if dim == -2 else -2]
        return torch.full((size,), 1 / size, dtype=cost.dtype, device=cost.device)
    kept = mask.any(dim).to(cost.dtype)
    return kept / kept.sum(-1, keepdim=True).clamp_min(1)


def check(problem: Transport, name: str, *, marginals: bool, apart: float) -> None:
    """A ValueError for numbers that state no problem, naming samples.

    Args:
        problem: in numbers.
        name: of the costs, for messages.
        marginals: False: r and c are known to be good.
        apart: how far, relatively, the masses of r and c may differ.
    """
    cost, gamma = problem.cost, problem.gamma
    if not gamma.numel():
        return
    low, high = torch.aminmax(cost)
    least, most = torch.aminmax(gamma)
    forbidden = float(high) == torch.inf
    if not float(low) > -torch.inf or not 0 < float(least) <= float(most) < torch.inf or forbidden:
        lowest = cost.amin((1, 2))
        _refuse(~(lowest > -torch.inf), f"{name} must not hold NaN or -inf (+inf forbids a pair)", cost)
        _refuse(~((gamma > 0) & torch.isfinite(gamma)), "gamma must be positive and finite", gamma)
    if marginals:
        _check_marginals(problem, apart)
    if forbidden:
        if not marginals:
            _refuse(problem.rows.sum(1) == 0, "every pair is forbidden (mask)", problem.rows)
        open_pairs = ~torch.isinf(cost)
        for label, marginal, other, dim in (("row", problem.rows, problem.columns.unsqueeze(1), 2), ("column", problem.columns, problem.rows.unsqueeze(2), 1)):
            stuck = (marginal > 0) & ~(open_pairs & (other > 0)).any(dim)
            places = [i.nonzero().flatten().tolist() for i in stuck]
            _refuse(stuck.any(1), f"a {label} has mass and nowhere to go (mask or +inf costs)", marginal, places)


def _check_marginals(problem: Transport, apart: float) -> None:
    rows, columns = problem.rows, problem.columns
    given, wanted = rows.sum(1), columns.sum(1)
    for label, marginal, total in (("r", rows, given), ("c", columns, wanted)):
        _refuse(~((marginal.amin(1) >= 0) & torch.isfinite(total)), f"{label} must be nonnegative and finite", marginal)
        _refuse(total == 0, f"{label} must have some mass", marginal)
    _refuse((given - wanted).abs() > apart * given, "r and c must have the same mass (scale one of them)", torch.stack([given, wanted], 1))


def _refuse(bad: Tensor, what: str, values: Tensor, places: list[list[int]] | None = None) -> None:
    if not bool(bad.any()):
        return
    members = bad.nonzero().squeeze(1).tolist()
    first = values[members[0]]
    came = f"entries {places[members[0]][:8]}" if places is not None else str(first.tolist()) if first.numel() <= 4 else f"smallest {float(first.min()):.3g}"
    raise ValueError(f"{what}: {name_samples(members, bad.shape[0])}; in the first: {came}")
