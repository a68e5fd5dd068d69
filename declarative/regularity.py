"""The conditions under which a solution has a derivative, measured one sample at a time, with causes in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from declarative.engines.autodiff import linearise
from declarative.solvers.optimality import Optimality


@dataclass(frozen=True)
class Tolerances:
    """What counts as zero, relative to the scale of the terms.

    Args:
        exact: for residuals, slacks and pushes: √eps.
        rank: for singular values and curvatures: a solution is accurate to about √eps at worst, and so are these.
    """

    exact: float
    rank: float

    @classmethod
    def of(cls, dtype: torch.dtype) -> Tolerances:
        """The tolerances for a dtype."""
        root = torch.finfo(dtype).eps ** 0.5
        return cls(root, root)


@dataclass(frozen=True)
class Regularity:
    """One sample's entries of a `Certificate`."""

    stationarity: Tensor
    equality_violation: Tensor
    inequality_violation: Tensor
    complementarity: Tensor
    active: Tensor
    weakly_active: Tensor
    licq_margin: Tensor
    second_order_margin: Tensor
    kkt_condition: Tensor
    minimiser: Tensor
    regular: Tensor
    causes: tuple[str, ...]


def assess(optimality: Optimality, equality: Tensor, inequality: Tensor, tolerances: Tolerances) -> list[Regularity]:
    """Assess each sample of the batch at (y, ν, μ)."""
    p = equality.shape[1]
    scales = optimality.scales(equality, inequality)
    active, weakly = optimality.active_set(equality, inequality)
    stationarity, _ = optimality.residuals(equality, inequality)
    slack, push = optimality.relative_slack(scales), optimality.relative_push(scales, inequality)
    amounts = optimality.relative_values(scales)
    multipliers = equality, torch.where(active, inequality, 0.0)
    hessian = linearise(optimality.problem, optimality.y, *multipliers).hessian()
    sizes = scales.y.amax(1)
    turns, bends = _changes(optimality, hessian, multipliers, sizes)
    defined = torch.isfinite(optimality.y).all(1) & torch.isfinite(optimality.at.objective)
    results = []
    for i in range(optimality.y.shape[0]):
        sample = _Sample(
            hessian[i],
            optimality.jacobian[i],
            optimality.gradient[i],
            optimality.values[i],
            p,
            active[i],
            weakly[i],
            scales.gradient[i].amax(),
            sizes[i],
            turns[i],
            bends[i],
            tolerances,
            bool(defined[i]),
        )
        violation_h = _largest(amounts[i, :p].abs())
        violation_g = _largest(amounts[i, p:].clamp_min(0))
        complementarity = _largest(torch.minimum(slack[i].abs(), push[i].abs()))
        causes = tuple(sample.causes(stationarity[i], violation_h, violation_g, amounts[i], torch.minimum(slack[i].abs(), push[i].abs())))
        results.append(
            Regularity(
                stationarity[i],
                violation_h,
                violation_g,
                complementarity,
                active[i],
                weakly[i],
                sample.licq_margin,
                sample.second_order_margin,
                sample.condition(),
                torch.tensor(sample.minimises(stationarity[i], violation_h, violation_g, complementarity), device=hessian.device),
                torch.tensor(not causes, device=hessian.device),
                causes,
            )
        )
    return results


def _changes(optimality: Optimality, hessian: Tensor, multipliers: tuple[Tensor, Tensor], size: Tensor) -> tuple[Tensor, Tensor]:
    """(b, k) and (b,): how far each constraint's gradient turns, and H changes, when y moves by its own size, from a thousandth of that move."""
    signs = torch.ones_like(optimality.y)
    signs[:, 1::2] = -1
    moved = linearise(optimality.problem, optimality.y + 1e-3 * size.unsqueeze(1) * signs, *multipliers)
    turns = 1e3 * torch.linalg.vector_norm(moved.jacobian() - optimality.jacobian, dim=2)
    bends = 1e3 * torch.linalg.vector_norm(moved.hessian() - hessian, ord=torch.inf, dim=(1, 2)) if hessian.shape[1] else torch.zeros_like(size)
    turns, bends = (torch.where(torch.isfinite(change), change, 0.0) for change in (turns, bends))  # the move may leave the domain
    return turns, bends


class _Sample:
    def __init__(
        self,
        hessian: Tensor,
        jacobian: Tensor,
        gradient: Tensor,
        values: Tensor,
        p: int,
        active: Tensor,
        weakly: Tensor,
        scale_gradient: Tensor,
        scale_y: Tensor,
        turns: Tensor,
        bend: Tensor,
        tolerances: Tolerances,
        defined: bool,
    ) -> None:
        self.hessian, self.gradient, self.p = 0.5 * (hessian + hessian.mT), gradient, p
        self.scale_gradient, self.scale_y, self.bend, self.tolerances = scale_gradient, scale_y, bend, tolerances
        self.finite = defined and bool(torch.isfinite(hessian).all() and torch.isfinite(jacobian).all() and torch.isfinite(values).all())
        every = torch.ones(p, dtype=torch.bool, device=jacobian.device)
        self.weak = weakly.nonzero().squeeze(1).tolist()
        self.touching = torch.cat([every, active | weakly]).nonzero().squeeze(1).tolist()
        self.rows = jacobian[self.touching]
        self.pushing = jacobian[torch.cat([every, active])]
        norms = torch.linalg.vector_norm(self.rows, dim=1)
        # A gradient vanishes if it is small beside its own change when y moves by its size; a small factor before a constraint is not that.
        compared = zip(self.touching, norms.tolist(), turns[self.touching].tolist(), strict=True)
        self.vanishing = [k for k, norm, turn in compared if norm <= tolerances.rank * turn]
        self.unit = self.rows / torch.where(norms > 0, norms, 1.0).unsqueeze(1)
        nan = jacobian.new_tensor(float("nan"))
        self.licq_margin = self._smallest_singular(self.rows) if self.finite else nan
        self.curvatures = self._curvatures() if self.finite else nan.reshape(1)
        self.second_order_margin = self.curvatures[0] if len(self.curvatures) else jacobian.new_tensor(float("inf"))

    def _smallest_singular(self, rows: Tensor) -> Tensor:
        if not len(rows):
            return rows.new_tensor(float("inf"))
        if rows.shape[0] > rows.shape[1]:  # more constraints than dimensions cannot be independent
            return rows.new_zeros(())
        return torch.linalg.svdvals(rows)[-1]

    def _curvatures(self) -> Tensor:
        """Eigenvalues of H on the null space of the constraints that push, ascending."""
        if not len(self.pushing):
            return torch.linalg.eigvalsh(self.hessian)
        _, values, right = torch.linalg.svd(self.pushing, full_matrices=True)
        rank = int((values > self.tolerances.rank * values.max()).sum()) if float(values.max()) > 0 else 0
        basis = right[rank:].mT
        return torch.linalg.eigvalsh(basis.mT @ self.hessian @ basis)

    def condition(self) -> Tensor:
        """Condition number of the bordered matrix of the constraints that push."""
        if not self.finite:
            return self.hessian.new_tensor(float("nan"))
        k = len(self.pushing)
        corner = self.hessian.new_zeros(k, k)
        matrix = torch.cat([torch.cat([self.hessian, self.pushing.mT], 1), torch.cat([self.pushing, corner], 1)])
        magnitudes = torch.linalg.eigvalsh(matrix).abs()
        if not magnitudes.numel():
            return self.hessian.new_ones(())
        return magnitudes.max() / magnitudes.min() if float(magnitudes.min()) > 0 else self.hessian.new_tensor(float("inf"))

    def _name(self, row: int) -> str:
        return f"equality {row}" if row < self.p else f"inequality {row - self.p}"

    def causes(self, stationarity: Tensor, violation_h: Tensor, violation_g: Tensor, amounts: Tensor, gaps: Tensor) -> Iterator[str]:
        """What is not in order, in words."""
        if not self.finite:
            yield "NaN or inf in the statement's values or derivatives there"
            return
        limit = self.tolerances.exact
        for name, violation, part, offset in (("equality", violation_h, amounts[: self.p].abs(), 0), ("inequality", violation_g, amounts[self.p :], 0)):
            if not float(violation) <= limit:
                yield f"infeasible: {name} {int(part.argmax()) + offset} is violated"
        if not float(stationarity) <= limit:
            yield self._not_stationary()
        elif not float(_largest(gaps)) <= limit:
            yield f"inequality {int(gaps.argmax())} is slack and has a multiplier: the objective decreases towards it"
        else:
            yield from (f"inequality {i} is weakly active; the derivative is one-sided there" for i in self.weak)
        yield from (f"the gradient of {self._name(row)} vanishes, so that it has no multiplier" for row in self.vanishing)
        yield from self._dependences()
        yield from self._flatness()

    def _not_stationary(self) -> str:
        """Not a KKT point; or one but for the sign of a multiplier, which is a different mistake."""
        if len(self.rows):
            signed = -torch.linalg.pinv(self.rows.mT, rtol=1e-10) @ self.gradient
            rest = (self.gradient + self.rows.mT @ signed).abs().max() / self.scale_gradient
            wrong = [row for row, value in zip(self.touching, signed.tolist(), strict=True) if row >= self.p and value < 0]
            if float(rest) <= self.tolerances.exact and wrong:
                return f"the multiplier of {self._name(wrong[0])} has the wrong sign: the objective decreases into the feasible set"
        return "not stationary: the gradient of the Lagrangian does not vanish"

    def _dependences(self) -> Iterator[str]:
        rows = [k for k in range(len(self.touching)) if self.touching[k] not in self.vanishing]
        unit = self.unit[rows]
        if len(rows) < 2 or float(self._smallest_singular(unit)) > self.tolerances.rank:
            return
        names = [self.touching[k] for k in rows]
        cosines = unit @ unit.mT
        named = False
        for i in range(len(rows)):
            for j in range(i):
                if abs(abs(float(cosines[i, j])) - 1) <= self.tolerances.rank:
                    named = True
                    first, second = self._name(names[j]), self._name(names[i])
                    if float(cosines[i, j]) < 0 and names[j] >= self.p:
                        yield f"{first} and {second} are opposite: together they encode an equality (state it as one)"
                    else:
                        yield f"{first} and {second} are redundant: their gradients are parallel"
        if not named:
            yield f"the {len(rows)} constraints that hold with equality are redundant: their gradients are linearly dependent"

    def minimises(self, *residuals: Tensor) -> bool:
        """Whether the residuals vanish and no curvature is negative."""
        return self.finite and all(float(r) <= self.tolerances.exact for r in residuals) and float(self.second_order_margin) >= -self._faked()

    def _faked(self) -> float:
        """The size of curvature that rounding and the accuracy of the point can fake."""
        # Terms of H that cancel, as in a valley that ends, leave no trace in it, but in how it changes.
        scale = max(float(self.hessian.abs().max()) if self.hessian.numel() else 0.0, float(self.scale_gradient / self.scale_y), float(self.bend))
        return self.tolerances.rank * scale

    def _flatness(self) -> Iterator[str]:
        margin, faked = float(self.second_order_margin), self._faked()
        if margin < -faked:
            kind = "a maximiser" if float(self.curvatures[-1]) < 0 else "a saddle point"
            yield f"{kind}, not a minimiser: negative curvature along a feasible direction"
        elif margin <= faked:
            yield "not an isolated minimiser: no curvature along some feasible direction"


def _largest(values: Tensor) -> Tensor:
    return values.max() if values.numel() else values.new_zeros(())
