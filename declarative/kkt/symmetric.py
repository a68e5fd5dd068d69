"""K z = r for a batch of symmetric, possibly indefinite, possibly singular matrices: one differentiable operation.

It is an autograd Function of its own because it looks at its numbers (is a sample singular, and what then?), which a
backward pass that runs under torch.func may not do in the open.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from declarative.kkt.lu import lu_factor
from declarative.transforms import alive, at_outer_levels, is_differentiated
from declarative.typing import SampleMask
from declarative.vectors import rank_tolerance


class SingularPolicy(Protocol):
    """Decides what becomes of the samples whose matrix is singular to working precision."""

    def definite(self, matrix: Tensor) -> bool:
        """Whether it is worth trying as positive definite."""
        ...

    def resolve(self, matrix: Tensor, rhs: Tensor, samples: Tensor) -> Tensor:
        """(s, n, n), (s, n, r) and their places in the batch -> (s, n, r), or an error that names them."""
        ...

    def record(self, matrix: Tensor, solution: Tensor, residual: Tensor, relative: Tensor, refined: int) -> None:
        """Take note of how accurate a solve was."""
        ...


# A pivot this many units of roundoff (times n) below the largest is looked at; whether the matrix is singular is then
# decided by its eigenvalues after equilibration. The screen costs O(n), so it may be generous.
SCREEN = 1e4


def is_singular(matrix: Tensor) -> Tensor:
    """(s, n, n) -> (s,) bool: singular to working precision after symmetric equilibration."""
    magnitudes = torch.linalg.eigvalsh(_equilibrated(matrix)).abs()
    return magnitudes.amin(-1) <= rank_tolerance(matrix.shape[-1], matrix.dtype) * magnitudes.amax(-1)


def _equilibrated(matrix: Tensor) -> Tensor:
    """D K D with rows of length near 1 (Ruiz, 2001).

    By length and not by the largest entry: a sum over many entries would count for more than a bound on one of them.
    """
    scale = matrix.new_ones(matrix.shape[:-1])
    for _ in range(4):
        length = torch.linalg.vector_norm(matrix * scale.unsqueeze(-1) * scale.unsqueeze(-2), dim=-1)
        scale = scale * torch.where(length > 0, length, torch.ones_like(length)).rsqrt()
    return matrix * scale.unsqueeze(-1) * scale.unsqueeze(-2)


def _solve_definite(policy: SingularPolicy, matrix: Tensor, rhs: Tensor) -> Tensor | None:
    """By Cholesky, where every sample is safely definite and the residual at rounding: half of the work of LU."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    smallest, largest = torch.aminmax(factor.diagonal(dim1=-2, dim2=-1), dim=-1)
    eps = torch.finfo(matrix.dtype).eps
    solution = torch.cholesky_solve(rhs, factor)
    residual = torch.baddbmm(rhs, matrix, solution, alpha=-1)
    relative = largest_entry(residual) / largest_entry(rhs).clamp_min(torch.finfo(rhs.dtype).tiny)
    # The pivots of H are the squares of the factor's. One look at the numbers decides everything: on a GPU each look waits for the device.
    good = (smallest > (SCREEN * matrix.shape[-1] * eps) ** 0.5 * largest) & (relative + info <= eps**0.75)
    if not bool(good.all()):
        return None
    policy.record(matrix, solution, residual, relative, 0)
    return solution


def _solve_checked(policy: SingularPolicy, matrix: Tensor, factor: Tensor, pivots: Tensor, rhs: Tensor, sound: Tensor) -> Tensor | None:
    """The solution, its residual measured, refined where that is not at rounding; None unless all samples are sound."""
    solution = torch.linalg.lu_solve(factor, pivots, rhs)
    scale = largest_entry(rhs).clamp_min(torch.finfo(rhs.dtype).tiny)
    residual = torch.baddbmm(rhs, matrix, solution, alpha=-1)
    relative = largest_entry(residual) / scale
    accurate = relative <= torch.finfo(matrix.dtype).eps ** 0.75
    # One look at the numbers decides both questions: on a GPU each look waits for the device.
    refined = 0
    if not bool((sound & accurate).all()):
        if not bool(sound.all()):
            return None
        while refined < 2:
            refined += 1
            better = solution + torch.linalg.lu_solve(factor, pivots, residual)
            renewed = torch.baddbmm(rhs, matrix, better, alpha=-1)
            gained = (largest_entry(renewed) / scale < relative)[:, None, None]
            solution, residual = torch.where(gained, better, solution), torch.where(gained, renewed, residual)
            relative = largest_entry(residual) / scale
    policy.record(matrix, solution, residual, relative, refined)
    return solution


def largest_entry(values: Tensor) -> Tensor:
    """(b, …) -> (b,): the largest entry of each sample."""
    return torch.linalg.vector_norm(values, ord=torch.inf, dim=tuple(range(1, values.ndim)))


def definite_factor(matrix: Tensor, rounding: float = 0.1) -> tuple[Tensor, SampleMask]:
    """The Cholesky factors of (b, n, n), and (b,) whether there is one: a pivot that is the rounding of its entry of the diagonal is no pivot.

    Args:
        rounding: of the entries, in units of roundoff; more where they are results of sums that cancel.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square() > rounding * torch.finfo(matrix.dtype).eps * matrix.diagonal(dim1=-2, dim2=-1)
    return factor, (info == 0) & pivots.all(-1)


class _SymmetricSolve(torch.autograd.Function):
    @staticmethod
    def forward(policy: SingularPolicy, matrix: Tensor, rhs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        n = matrix.shape[-1]
        if matrix.numel() == 0:
            return torch.zeros_like(rhs)
        if policy.definite(matrix) and (found := _solve_definite(policy, matrix, rhs)) is not None:
            return found
        factor, pivots = lu_factor(matrix)
        smallest, largest = torch.aminmax(factor.diagonal(dim1=-2, dim2=-1).abs(), dim=-1)
        sound = smallest > SCREEN * n * torch.finfo(matrix.dtype).eps * largest  # false for NaN
        solved = _solve_checked(policy, matrix, factor, pivots, rhs, sound)
        if solved is not None:
            return solved
        index = (~sound).nonzero().squeeze(1)
        finite = torch.isfinite(matrix[index]).flatten(1).all(1)
        index = index[finite]
        index = index[is_singular(matrix[index])]
        singular = torch.zeros_like(sound)
        singular[index] = True
        # Non-finite and singular samples must not reach the batched solve: on CPU one bad pivot fails all.
        bad = singular | ~torch.isfinite(matrix).flatten(1).all(1)
        eye = torch.eye(n, dtype=matrix.dtype, device=matrix.device)
        factor, pivots = lu_factor(torch.where(bad[:, None, None], eye, matrix))
        column = bad[:, None, None]
        regular = torch.where(column, eye, matrix)
        solution = _solve_checked(policy, regular, factor, pivots, torch.where(column, 0.0, rhs), torch.ones_like(bad))
        if solution is None:
            raise RuntimeError("a regular KKT system was not solved")  # sound was given as true
        solution = torch.where((bad & ~singular)[:, None, None], torch.nan, solution)
        if index.numel():
            solution = solution.index_copy(0, index, policy.resolve(matrix[index], rhs[index], index))
        return solution

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        policy, matrix, _ = inputs
        ctx.policy = policy
        ctx.save_for_backward(matrix, output)
        ctx.save_for_forward(matrix, output)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, Tensor | None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        matrix, solution = (alive(t) for t in ctx.saved_tensors)
        adjoint = _SymmetricSolve.apply(ctx.policy, matrix, cotangent)
        return None, (-adjoint @ solution.transpose(-1, -2) if ctx.needs_input_grad[1] else None), adjoint

    @staticmethod
    def jvp(ctx: Any, _: None, matrix_tangent: Tensor | None, rhs_tangent: Tensor | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        def push(matrix: Tensor, solution: Tensor, matrix_tangent: Tensor | None, rhs_tangent: Tensor | None) -> tuple[Tensor]:
            rhs = torch.zeros_like(solution) if rhs_tangent is None else rhs_tangent
            if matrix_tangent is not None:
                rhs = rhs - matrix_tangent @ solution
            return (_SymmetricSolve.apply(ctx.policy, matrix, rhs),)

        return at_outer_levels(push, (*ctx.saved_tensors, matrix_tangent, rhs_tangent))[0]

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: Any, in_dims: tuple[Any, ...], policy: SingularPolicy, matrix: Tensor, rhs: Tensor
    ) -> tuple[Tensor, int]:
        _, matrix_dim, rhs_dim = in_dims
        size = info.batch_size
        if matrix_dim is None:
            # Many right-hand sides for one matrix (jacrev): columns of one solve, not copies of the matrix.
            columns = rhs.movedim(rhs_dim, -1)
            solution = _SymmetricSolve.apply(policy, matrix, columns.flatten(-2))
            return solution.unflatten(-1, columns.shape[-2:]), solution.ndim
        matrices = matrix.movedim(matrix_dim, 0)
        sides = rhs.expand(size, *rhs.shape) if rhs_dim is None else rhs.movedim(rhs_dim, 0)
        solution = _SymmetricSolve.apply(policy, matrices.flatten(0, 1), sides.flatten(0, 1))
        return solution.unflatten(0, (size, -1)), 0


def symmetric_solve(policy: SingularPolicy, matrix: Tensor, rhs: Tensor) -> Tensor:
    """Solve K z = r for symmetric K: (b, n, n), (b, n, r) -> (b, n, r). Differentiable to any order, in both modes.

    Samples singular to working precision are handed to `policy`; non-finite ones give NaN; neither touches the others.
    Half precisions are computed in float32, for which LAPACK has a factorisation.
    """
    if matrix.dtype in (torch.float16, torch.bfloat16):
        return symmetric_solve(policy, matrix.float(), rhs.float()).to(matrix.dtype)
    if not is_differentiated(matrix, rhs):
        return _SymmetricSolve.forward(policy, matrix, rhs)  # Function.apply inspects signatures: 50 µs a call
    return _SymmetricSolve.apply(policy, matrix, rhs)
