"""Total variation denoising of a signal, in two statements that are differentiable.

    min ½‖y − x‖² + λ Σ_i |y_{i+1} − y_i|                                        x, y ∈ R⁵, λ > 0 shared by the batch

|·| has a kink exactly where the solution likes to be. Two ways to state the problem without it, with (Dy)_i = y_{i+1} − y_i:

    total_variation         min ½‖y − x‖² + λ Σ t_i   s.t.  −t ≤ Dy ≤ t          over (y, t); at the solution t = |Dy|
    total_variation_dual    min ½‖x − Dᵀz‖²           s.t.  −λ ≤ z ≤ λ           over z; y = x − Dᵀz

The solution is piecewise constant. With s the sign of the jump at either end of a segment (0 at the ends of the signal),

    y_segment = mean of x over the segment + λ (s_right − s_left) / length

so that ∂y/∂x averages over each segment: (∂y/∂x)_ij = 1/length where i and j share a segment, else 0. It is not the identity. For the
dual, with F the gaps that are fused (|z| < λ):  ∂z_F/∂x = (D_F D_Fᵀ)⁻¹ D_F, and ∂y/∂x = I − D_Fᵀ(D_F D_Fᵀ)⁻¹D_F, which is the same.

Not regular where two segments are about to merge or one is about to split: z_i = ±λ while y_i = y_{i+1}.

Source: Rudin, Osher & Fatemi, "Nonlinear total variation based noise removal algorithms", Physica D 60, 1992; the taut string: Davies & Kovac, "Local
extremes, runs, strings and multiresolution", Annals of Statistics 29(1), 2001.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from declarative.structure import Banded
from problems.base import Inputs, Problem, cast, normal, uniform

SIZE, STRENGTH = 5, 0.5
SignalAndJumps = tuple[Tensor, Tensor]


class TotalVariation(DeclarativeNode):
    """x (n,), λ () -> (y (n,), the sizes of its jumps (n − 1,))."""

    def objective(self, x: Tensor, strength: Tensor, y: SignalAndJumps) -> Tensor:
        signal, jumps = y
        return 0.5 * (signal - x).square().sum() + strength * jumps.sum()

    def inequality_constraints(self, x: Tensor, strength: Tensor, y: SignalAndJumps) -> Tensor:  # noqa: ARG002
        signal, jumps = y
        rise = signal[1:] - signal[:-1]
        return torch.cat([rise - jumps, -rise - jumps])

    def initial_guess(self, x: Tensor, strength: Tensor) -> SignalAndJumps:  # noqa: ARG002
        return x, 1 + x.diff().abs()


class TotalVariationDual(DeclarativeNode):
    """x (n,), λ () -> z (n − 1,), from which `denoised` makes the signal."""

    hessian_structure = Banded(1)

    def objective(self, x: Tensor, strength: Tensor, z: Tensor) -> Tensor:  # noqa: ARG002
        return 0.5 * denoised(x, z).square().sum()

    def inequality_constraints(self, x: Tensor, strength: Tensor, z: Tensor) -> Tensor:  # noqa: ARG002
        return torch.cat([z - strength, -z - strength])

    def initial_guess(self, x: Tensor, strength: Tensor) -> Tensor:  # noqa: ARG002
        return torch.zeros_like(x[:, 1:])


def denoised(x: Tensor, z: Tensor) -> Tensor:
    """x − Dᵀz: the signal (…, n) of dual variables z (…, n − 1)."""
    ends = torch.zeros_like(z[..., :1])
    return x + torch.cat([z, ends], -1) - torch.cat([ends, z], -1)


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Drawn from the answer: clear jumps, and fused gaps whose z is clearly inside (−λ, λ); the number of jumps differs between samples."""
    sizes = (1 + torch.arange(batch)) % SIZE
    jumping = normal(generator, batch, SIZE - 1).argsort(1).argsort(1) < sizes.unsqueeze(1)
    signs = normal(generator, batch, SIZE - 1).sign()
    jumps = torch.where(jumping, signs * uniform(generator, 0.5, 1.5, batch, SIZE - 1), 0.0)
    y = normal(generator, batch, 1) + torch.cat([torch.zeros(batch, 1, dtype=torch.float64), jumps.cumsum(1)], 1)
    z = STRENGTH * torch.where(jumping, signs, uniform(generator, -0.7, 0.7, batch, SIZE - 1))
    x = y - (denoised(y, z) - y)
    return cast(dtype, x, torch.tensor(STRENGTH, dtype=torch.float64))


def jump_signs(x: list[float], strength: float) -> list[int]:
    """The sign of each jump of the solution, (n − 1,), 0 where it is fused: the taut string.

    The running sums of y are the shortest string through the tube of radius λ around those of x, tied at both ends. From each knot the string runs
    straight on as long as some slope stays in the tube; where none does any longer, it bends at the last point that touched the tube.
    """
    n = len(x)
    sums = [0.0]
    for value in x:
        sums.append(sums[-1] + value)
    signs = [0] * (n - 1)
    knot, height, k = 0, 0.0, 1
    low = high = (0.0, 0)  # the steepest slope that the floor asks for and the flattest that the ceiling allows, with the places where they do
    while k <= n:
        radius = strength if k < n else 0.0
        floor, ceiling = ((sums[k] + side * radius - height) / (k - knot) for side in (-1, 1))
        first = k == knot + 1
        if not first and floor > high[0]:
            knot, height, bend = high[1], sums[high[1]] + strength, 1
        elif not first and ceiling < low[0]:
            knot, height, bend = low[1], sums[low[1]] - strength, -1
        else:
            low = (floor, k) if first or floor >= low[0] else low
            high = (ceiling, k) if first or ceiling <= high[0] else high
            k += 1
            continue
        signs[knot - 1] = bend
        k = knot + 1
    return signs


def _signs(x: Tensor, strength: Tensor) -> Tensor:
    return torch.tensor([jump_signs(row, strength.detach().item()) for row in x.tolist()], dtype=x.dtype).reshape(x.shape[0], x.shape[1] - 1)


def _segments(signs: Tensor) -> Tensor:
    """(b, n, n): the matrix that averages over segments."""
    segment = torch.cat([torch.zeros_like(signs[:, :1]), (signs != 0).to(signs).cumsum(1)], 1)
    same = (segment.unsqueeze(1) == segment.unsqueeze(2)).to(signs)
    return same / same.sum(2, keepdim=True)


def signal(x: Tensor, strength: Tensor) -> Tensor:
    """(b, n): segments by the taut string, values by the formula."""
    signs = _signs(x, strength)
    # Dᵀ of the signs: only entries at the ends of segments are not zero, and the average spreads them.
    return (_segments(signs) @ (denoised(x, strength * signs)).unsqueeze(2)).squeeze(2)


def signal_jacobian(x: Tensor, strength: Tensor) -> Tensor:
    """∂y/∂x: averaging over each segment."""
    return _segments(_signs(x, strength))


def closed_form(x: Tensor, strength: Tensor) -> SignalAndJumps:
    """The signal, and |Dy|."""
    y = signal(x, strength)
    return y, _signs(x, strength) * y.diff()


def dual_closed_form(x: Tensor, strength: Tensor) -> Tensor:
    """Dᵀz = x − y, summed up: z_i = Σ_{j ≤ i} (y_j − x_j)."""
    return (signal(x, strength) - x).cumsum(1)[:, :-1]


def dual_jacobian(x: Tensor, strength: Tensor) -> Tensor:
    """(D_F D_Fᵀ)⁻¹ D_F in the rows that are fused, 0 in the others."""
    n = x.shape[1]
    D = torch.eye(n, dtype=x.dtype).diff(dim=0)
    fused = (_signs(x, strength) == 0).to(x)
    gram = fused.unsqueeze(2) * (D @ D.T) * fused.unsqueeze(1) + torch.diag_embed(1 - fused)
    return torch.linalg.solve(gram, fused.unsqueeze(2) * D)


PROBLEMS = (
    Problem("total_variation", TotalVariation, sample, (0, None), closed_form, None, "a kink stated by inequalities; y is a pair of tensors; λ is shared"),
    Problem(
        "total_variation_dual",
        TotalVariationDual,
        sample,
        (0, None),
        dual_closed_form,
        dual_jacobian,
        "bounds that depend on an input; H tridiagonal, declared",
    ),
)
