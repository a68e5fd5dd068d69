"""H = (Σκ₁) I + D diag(κ₂) Dᵀ, the identity plus low rank, solved in the smaller of its two sizes.

With κ₂ ≤ 0 and E = D √−κ₂,

    H = kI − E Eᵀ,    H⁻¹v = (v + E (kI − EᵀE)⁻¹ Eᵀ v) / k        (Woodbury, N×N)

and either matrix is positive definite where the other is. Where both sizes are large a few steps of conjugate gradients, two passes
over the points each, do better than a factor: in many dimensions the low rank part is spread thin and H is close to kI.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDING = 16  # pivots below this many eps of Σκ₁ count as zero
_SMALL = 24  # sizes up to which a factor costs less than conjugate gradients
_STEPS = 16  # of conjugate gradients; more would cost as much as a factor


class Curvature:
    """H of a batch, factored when somebody asks.

    Args:
        toward: D (b, C, N), up to sign.
        squared: ‖d_i‖² (b, N).
        mass: Σκ₁ (b,).
        kappa2: (b, N); None where H = (Σκ₁) I.
        concave: whether κ₂ ≤ 0 is known.
    """

    def __init__(self, toward: Tensor, squared: Tensor, mass: Tensor, kappa2: Tensor | None, concave: bool) -> None:
        self.toward, self.squared, self.mass, self.kappa2 = toward, squared, mass, kappa2
        channels, points = toward.shape[1:]
        self.through = concave and points < channels  # by Woodbury
        self.size = points if self.through else channels
        self.method = "division: H is a multiple of the identity"
        self._factored: tuple[Tensor, Tensor, Tensor] | None = None

    def definite(self) -> Tensor:
        """(b,) whether H is positive definite, by more than rounding."""
        if self.kappa2 is None:
            return self.mass > 0
        # Its trace bounds the largest eigenvalue of the low rank part: most often that is enough.
        lowest = self.mass + (self.kappa2.clamp_max(0.0) * self.squared).sum(1)
        surely = lowest > 1e-3 * self.mass
        if self._factored is None and bool(surely.all()):  # after conjugate gradients
            return surely
        return surely | self._factor()[2]

    def solve(self, v: Tensor) -> Tensor:
        """H⁻¹v (b, C); anything where H is not definite."""
        if self.kappa2 is None:
            return v / self.mass.unsqueeze(1)
        if self.size > _SMALL and self._factored is None:
            found = self._conjugate_gradients(v, self.kappa2)
            if found is not None:
                return found
        factor, update, _ = self._factor()
        if self.size == 1 and not self.through:
            self.method = "division: H is a number"
            return v / factor.squeeze(2)
        self.method = f"Cholesky factor of {self.size}×{self.size}" + (", by Woodbury" if self.through else "")
        if not self.through:
            return torch.cholesky_solve(v.unsqueeze(2), factor).squeeze(2)
        inner = torch.cholesky_solve((v.unsqueeze(1) @ update).mT, factor)
        return (v + (update @ inner).squeeze(2)) / self.mass.unsqueeze(1)

    def _factor(self) -> tuple[Tensor, Tensor, Tensor]:
        """A factor, the matrix D or E that goes with it, and whether H is definite."""
        if self._factored is not None:
            return self._factored
        if self.kappa2 is None:
            raise RuntimeError("a multiple of the identity needs no factor")
        floor = _ROUNDING * self.size * torch.finfo(self.mass.dtype).eps * self.mass
        if self.size == 1 and not self.through:
            number = self.mass + (self.kappa2 * self.squared).sum(1)
            self._factored = number[:, None, None], self.toward, number > floor
            return self._factored
        update = self.toward * (-self.kappa2).sqrt().unsqueeze(1) if self.through else self.toward
        matrix = -(update.mT @ update) if self.through else (self.toward * self.kappa2.unsqueeze(1)) @ self.toward.mT
        matrix.diagonal(dim1=1, dim2=2).add_(self.mass.unsqueeze(1))
        factor, info = torch.linalg.cholesky_ex(matrix)
        sound = (info == 0) & (factor.diagonal(dim1=1, dim2=2).square().amin(1) > floor)
        self._factored = factor, update, sound
        return self._factored

    def _conjugate_gradients(self, v: Tensor, kappa2: Tensor) -> Tensor | None:
        """None where they take too long, or meet a direction of negative curvature."""
        mass = self.mass.unsqueeze(1)
        goal = (8 * torch.finfo(v.dtype).eps * torch.linalg.vector_norm(v, dim=1)).square()
        solution = v / mass
        residual = -self._low_rank(solution, kappa2)
        direction, size = residual, residual.square().sum(1)
        for step in range(_STEPS):
            if bool((size <= goal).all()):
                self.method = f"conjugate gradients, {step} steps"
                return solution
            product = mass * direction + self._low_rank(direction, kappa2)
            bend = (direction * product).sum(1)
            # Samples that are done, with a residual of zero, stay where they are.
            length = torch.where(bend > 0, size / torch.where(bend > 0, bend, 1.0), 0.0).unsqueeze(1)
            solution = torch.addcmul(solution, length, direction)
            residual = torch.addcmul(residual, length, product, value=-1)
            before, size = size, residual.square().sum(1)
            direction = torch.addcmul(residual, (size / torch.where(before > 0, before, 1.0)).unsqueeze(1), direction)
        return None

    def _low_rank(self, direction: Tensor, kappa2: Tensor) -> Tensor:
        """D diag(κ₂) Dᵀ p (b, C)."""
        along = (direction.unsqueeze(1) @ self.toward).squeeze(1)
        return (self.toward * (along * kappa2).unsqueeze(1)).sum(2)


def dense(toward: Tensor, mass: Tensor, kappa2: Tensor | None) -> Tensor:
    """H (b, C, C), in differentiable torch. With one channel exactly zero where its terms cancel to rounding: nothing else in it tells the scale."""
    eye = torch.eye(toward.shape[1], dtype=toward.dtype, device=toward.device)
    scaled = mass[:, None, None] * eye
    if kappa2 is None:
        return scaled
    whole = scaled + (toward * kappa2.unsqueeze(1)) @ toward.mT
    return torch.where(whole.abs() <= _ROUNDING * torch.finfo(mass.dtype).eps * scaled, 0.0, whole) if toward.shape[1] == 1 else whole
