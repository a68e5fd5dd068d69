"""The distribution of given moments that is nearest to a prior, in relative entropy.

    min Σ_k y_k log(y_k/x_k)   s.t.   Σ y_k = 1,  Σ s_k y_k = m_1,  Σ s_k² y_k = m_2           x, y ∈ R⁵, s = (−2, −1, 0, 1, 2), m ∈ R²

y is the prior, tilted: y_k ∝ x_k exp(θ_1 s_k + θ_2 s_k²), with the one θ that gives the moments: the root of a strictly monotone map, for its derivative is
the covariance matrix of (s, s²). It exists where m is the moment of some distribution without zeros; on the boundary of these, entries vanish and
log is infinite.

Source: Kullback, "Information theory and statistics", 1959; Csiszár, "I-divergence geometry of probability distributions", Annals of Probability 3(1), 1975.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from declarative.structure import Constant, Diagonal
from problems.base import Inputs, Problem, cast, uniform
from problems.oracles import root

SUPPORT = (-2.0, -1.0, 0.0, 1.0, 2.0)


def statistics(like: Tensor) -> Tensor:
    """(2, n): s and s²."""
    s = like.new_tensor(SUPPORT)
    return torch.stack([s, s.square()])


class MomentMatching(DeclarativeNode):
    """x (n,) > 0, m (2,) -> y (n,)."""

    hessian_structure = Diagonal()
    constraint_structure = Constant()

    def objective(self, x: Tensor, m: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return (y * (y / x).log()).sum()

    def equality_constraints(self, x: Tensor, m: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return torch.cat([(y.sum() - 1).unsqueeze(0), statistics(y) @ y - m])

    def initial_guess(self, x: Tensor, m: Tensor) -> Tensor:  # noqa: ARG002
        return x / x.sum(1, keepdim=True)


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Moments of other distributions without small entries."""
    x, other = (uniform(generator, 0.5, 1.5, batch, len(SUPPORT)) for _ in range(2))
    other = other / other.sum(1, keepdim=True)
    return cast(dtype, x, other @ statistics(other).T)


def _tilted(x: Tensor, theta: Tensor) -> Tensor:
    return (x.log() + theta @ statistics(x)).softmax(1)


def _covariance(y: Tensor) -> Tensor:
    """Of the statistics under y, (b, 2, 2)."""
    T = statistics(y)
    mean = y @ T.mT
    return (T * y.unsqueeze(1)) @ T.mT - mean.unsqueeze(2) * mean.unsqueeze(1)


def closed_form(x: Tensor, m: Tensor) -> Tensor:
    """The root θ of the moments, and the tilted prior."""
    theta = root(lambda theta: _tilted(x, theta) @ statistics(x).T - m, lambda theta: _covariance(_tilted(x, theta)), torch.zeros_like(m), steps=20)
    return _tilted(x, theta)


def jacobian(x: Tensor, m: Tensor) -> Tensor:
    """(D − D Aᵀ(A D Aᵀ)⁻¹ A D) diag(1/x) with D = diag(y) and A the rows 1, s, s²: H⁻¹ = D on the null space of the constraints."""
    y = closed_form(x, m)
    A = torch.cat([torch.ones_like(x[:1]), statistics(x)])
    AD = A * y.unsqueeze(1)
    return (torch.diag_embed(y) - AD.mT @ torch.linalg.solve(AD @ A.mT, AD)) / x.unsqueeze(1)


PROBLEM = Problem("moments", MomentMatching, sample, (0, 0), closed_form, jacobian, "three equations; an objective with a domain; H diagonal, declared")
