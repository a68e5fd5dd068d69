"""`ClosedFormLayer`: a node whose solution is a formula in torch, which torch differentiates; what the layers of this kind share.

The formula holds for one set of active constraints. Which set that is, is found from the numbers, and constant for differentiation: so derivatives of
every order and in every mode are those of plain torch, and cost what the formula costs. Where they are not unique, the policies of `Implicit` decide,
as for every node. The statement (objective and constraints) is what `verify` proves all of this against.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from declarative.differentiation.base import Differentiation
from declarative.differentiation.implicit import Implicit
from declarative.errors import name_samples
from declarative.layers.formula import full_precision
from declarative.layers.judged import Doubt, judged, physical
from declarative.layers.natural_layer import Call, NaturalLayer
from declarative.solution import DerivativeReport, Solution, Status


@dataclass(frozen=True)
class Answer:
    """What the formula gives, (b, …): y and multipliers differentiable, the rest numbers.

    Args:
        y, equality, inequality: the solution, ν (b, p) and μ (b, q); None where there are no such constraints.
        active, weakly_active: (b, q)
        irregular: (b,) samples without a unique derivative; None: there are none in this batch.
        cause: why these are irregular.
    """

    y: Tensor
    equality: Tensor | None = None
    inequality: Tensor | None = None
    active: Tensor | None = None
    weakly_active: Tensor | None = None
    irregular: Tensor | None = None
    cause: str = ""


class ClosedFormLayer(NaturalLayer):
    """A layer that is solved by a formula, `_answer`, for a flat batch."""

    def __init__(self, *, differentiation: Differentiation | None = None) -> None:
        super().__init__(differentiation=differentiation)

    def _missing_formula(self, *tensors: Any) -> Answer:
        raise NotImplementedError(f"{type(self).__name__} has no formula")

    _answer: Callable[..., Answer] = _missing_formula
    """The formula, of the tensors. Raises for numbers that state no problem."""

    def _check_finite(self, *tensors: Tensor) -> None:
        """Raise unless these, the first of the arguments, have finite entries only."""
        for name, tensor in zip(self.arguments, tensors, strict=False):
            reject(type(self).__name__, ~torch.isfinite(tensor.unsqueeze(-1)).flatten(1).all(1), f"{name} must be finite, but has NaN or inf")

    def _value(self, call: Call) -> Tensor:
        return call.shaped(self._by_formula(call).y) if self._plain else super()._value(call)

    def _flat_solution(self, call: Call, init: Solution | Tensor | None) -> Solution:
        if not self._plain:
            return super()._flat_solution(call, init)
        if init is not None:
            raise ValueError(f"{type(self).__name__} finds y by a formula, which takes no warm start; leave init=None")
        report = DerivativeReport(policy=self._policies.irregular, method="closed form")
        return self._details(call, self._by_formula(call, report), report)

    @property
    def _policies(self) -> Implicit:
        return self.differentiation if isinstance(self.differentiation, Implicit) else Implicit()

    @property
    def _plain(self) -> bool:
        """Whether the formula's derivative is what was asked for. `verify` makes copies without `vjp`, which go by the statement alone."""
        implicit = isinstance(self.differentiation, Implicit) and not (self._policies.smoothing or self._policies.damping)
        return implicit and self.vjp is not None and self.solver is None

    def _held(self, active: Tensor, weakly_active: Tensor) -> Tensor:
        """Which constraints the derivative counts as equations."""
        return active | weakly_active if self._policies.weakly_active == "active" else active

    def _by_formula(self, call: Call, report: DerivativeReport | None = None) -> Answer:
        """The answer, with the policies attached to what is differentiable."""
        with full_precision(call.tensors[0]):
            answer = self._answer(*call.tensors)
        report, owner, policies = report or DerivativeReport(), type(self).__name__, self._policies
        doubts: list[tuple[Tensor, Doubt]] = []
        if answer.irregular is not None:
            doubts.append((answer.irregular, Doubt(owner, policies.irregular, answer.cause, "irregular", report)))
        if answer.weakly_active is not None and policies.weakly_active not in ("inactive", "active"):
            cause = "constraints are weakly active, so that the derivative is one-sided"
            doubts.append((answer.weakly_active.any(1), Doubt(owner, policies.weakly_active, cause, "weakly_active", report)))
        for marked, doubt in doubts:
            if not bool(physical(marked).any()):
                continue
            path = _path(call.tensors, marked) if doubt.policy == "nan" else torch.zeros_like(marked, dtype=answer.y.dtype)
            y, nu, mu = (
                None if t is None else judged(t + path.reshape(-1, *[1] * (t.ndim - 1)), marked, doubt) for t in (answer.y, answer.equality, answer.inequality)
            )
            answer = replace(answer, y=y, equality=nu, inequality=mu)
        return answer

    def _details(self, call: Call, answer: Answer, report: DerivativeReport) -> Solution:
        """The residuals are measured with the statement."""
        y = answer.y
        none = y.new_zeros(y.shape[0], 0)
        nu, mu = (none if m is None else m for m in (answer.equality, answer.inequality))
        off = none.bool() if answer.active is None else answer.active
        weakly = torch.zeros_like(off) if answer.weakly_active is None else answer.weakly_active
        tensors = tuple(t.detach() for t in call.tensors)

        def lagrangian(point: Tensor) -> tuple[Tensor, Tensor]:
            h, g = self._equalities(*tensors, point), self._inequalities(*tensors, point)
            pushed = [(m.detach() * c).sum() for m, c in ((nu, h), (mu, g)) if c is not None]
            violation = [c.detach().abs() for c in (h,) if c is not None] + [c.detach().clamp_min(0) for c in (g,) if c is not None]
            total = self._objective(*tensors, point).sum() + torch.stack([*pushed, point.new_zeros(())]).sum()
            return total, torch.cat([none.detach(), *violation], 1)

        gradient, violation = torch.func.grad(lagrangian, has_aux=True)(y.detach())
        scale = 1 + y.detach().flatten(1).abs().amax(1) if y.flatten(1).shape[1] else 1.0
        zeros = torch.zeros_like(y.detach().flatten(1)[:, :1])
        counts = zeros[:, 0].long()
        return Solution(
            y,
            nu,
            mu,
            off,
            weakly,
            counts + int(Status.CONVERGED),
            counts,
            torch.cat([zeros, gradient.flatten(1).abs()], 1).amax(1) / scale,
            torch.cat([zeros, violation], 1).amax(1) / scale,
            report,
        )

    def solve(self, *inputs: Tensor) -> Solution:
        """The formula."""
        call = self._read(self._arranged(inputs, {}))
        answer = self._answer(*call.tensors)
        return Solution(call.shaped(answer.y), answer.equality, answer.inequality)

    def vjp(self, inputs: tuple[Tensor, ...], solution: Solution, cotangent: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG002
        """The formula's."""
        return torch.func.vjp(self.forward, *inputs)[1](cotangent)


def _path(tensors: tuple[Tensor, ...], marked: Tensor) -> Tensor:
    """(b,) zero, but in the marked samples a function of all numbers that they depend on: so that NaN reaches all of them, by whatever formula."""
    sums = [torch.where(torch.isfinite(t), t - t.detach(), 0.0).reshape(t.shape[0], -1).sum(1) for t in tensors]
    return torch.where(marked, torch.stack([s.expand(marked.shape) for s in sums]).sum(0), 0.0)


def reject(owner: str, bad: Tensor, message: str) -> None:
    """A ValueError that names the samples (b,) which are bad, also under torch.func."""
    bad = physical(bad)
    if bool(bad.any()):
        bad = bad.reshape(-1)
        raise ValueError(f"{owner}: {message}; {name_samples(bad.nonzero().squeeze(1).tolist(), bad.numel())}")
