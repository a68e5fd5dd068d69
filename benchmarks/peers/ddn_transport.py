"""Entropic transport as the direct ancestor (ddn) has it, written from the formulas of its author's talk and notebook.

Forward: the kernel exp(−γM) is scaled in place, its rows to sum to r, then its columns to c, until before a scaling of the columns
each sums to its c_j to within ε.

Backward ("block"): with R = diag(r₂…r_m), C = diag(c), P' = P without its first row, whose constraint the others imply,

    (A H⁻¹ Aᵀ)⁻¹ = 1/γ [Λ₁₁ Λ₁₂; Λ₁₂ᵀ Λ₂₂],   Λ₁₁ = (R − P' C⁻¹ P'ᵀ)⁻¹,   Λ₁₂ = −Λ₁₁ P' C⁻¹,   Λ₂₂ = C⁻¹ − C⁻¹ P'ᵀ Λ₁₂

Λ₁₁ stays a Cholesky factor, Λ₁₂ and Λ₂₂ are formed; products of the row −vᵀH⁻¹ from the left give −vᵀ(H⁻¹ − H⁻¹Aᵀ(AH⁻¹Aᵀ)⁻¹AH⁻¹).

Source: Gould, Hartley & Campbell, "Deep declarative networks", IEEE TPAMI 44(8), 2022; Gould, "Exploiting problem structure in deep
declarative networks: two case studies", AAAI workshop on optimal transport and structured data modeling, 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.plans import WANTED, Found, Problem, Way


def ways(problem: Problem, limit: int) -> tuple[Way, ...]:
    """Its one way. ε bounds each column by itself: n ε is safe, and more is tried first."""
    per_column = WANTED / problem.c.shape[-1]
    return (Way("ddn scaling", [factor * per_column for factor in (3, 2, 1, 0.3)], partial(_scaled, problem, limit), weigh=True),)


@torch.no_grad()
def _scaled(problem: Problem, limit: int, eps: float) -> Found:
    r, c = problem.r.unsqueeze(-1), problem.c
    P = torch.exp(-problem.gamma * problem.M)
    for i in range(limit):
        P *= r / P.sum(-1, keepdim=True)
        columns = P.sum(-2)
        if bool(torch.isclose(columns, c, rtol=0.0, atol=eps).all()):
            return Found(P, i + 1)
        P *= (c / columns).unsqueeze(-2)
    return Found(P, limit, exhausted=True)


def transport_backward(P: Tensor, r: Tensor, c: Tensor, gamma: float) -> Callable[[Tensor], Tensor]:
    """M -> P as an autograd Function for a batch (b, m, n), whose forward pass returns the plan given: only its backward pass is timed."""

    class Block(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, M: Tensor) -> Tensor:  # noqa: ARG004  # pyright: ignore[reportIncompatibleMethodOverride]
            ctx.save_for_backward(P, r, c)
            return P.clone()

        @staticmethod
        def backward(ctx: Any, V: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            P, r, c = ctx.saved_tensors
            return _pulled_back(P, r, c, gamma, V)

    return Block.apply


def _pulled_back(P: Tensor, r: Tensor, c: Tensor, gamma: float, V: Tensor) -> Tensor:
    result = -gamma * (P * V)
    lower, lower_result = P[:, 1:], result[:, 1:]
    by_rows, by_columns = lower_result.sum(-1, keepdim=True), result.sum(-2).unsqueeze(-1)
    scaled = lower / c.unsqueeze(-2)
    factor = torch.linalg.cholesky(torch.diag_embed(r[..., 1:]) - lower @ scaled.mT)
    minus_block_12 = torch.cholesky_solve(scaled, factor)
    block_22 = torch.diag_embed(1 / c) + scaled.mT @ minus_block_12
    of_rows = torch.cholesky_solve(by_rows, factor) - minus_block_12 @ by_columns
    of_columns = block_22 @ by_columns - minus_block_12.mT @ by_rows
    lower_result -= of_rows * lower
    result -= of_columns.mT * P
    return result
