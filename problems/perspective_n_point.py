"""Perspective-n-point: the pose of a calibrated camera from points and their images.

    min ½ Σ_i w_i ‖π(R(r) X_i + t) − p_i‖²,    π(x, y, z) = (x/z, y/z)           X_i ∈ R³, p_i ∈ R², y = (r, t) ∈ R⁶

R(r) turns by ‖r‖ about r. There are other local minima far away, so that the start matters: a nominal pose, near which the true ones are. Gradients
go to the points, to their images and to the weights; those of the weights vanish where the images fit exactly, for the sum is then zero term by term.

Source: Chen, Parra, Cao, Li & Chin, "End-to-end learnable geometric vision by backpropagating PnP optimization" (BPnP), CVPR 2020; Rodrigues' formula.
"""

from __future__ import annotations

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal, uniform

NOMINAL = (0.4, -0.3, 0.5, 0.0, 0.0, 3.0)
# Corners of a cube, of which two are left out, and none of them a plane with the others.
MODEL = ((1.0, 1.0, 1.0), (1.0, -1.0, -1.0), (-1.0, 1.0, -1.0), (-1.0, -1.0, 1.0), (1.0, 1.0, -1.0), (-1.0, -1.0, -1.0))


def rotated(X: Tensor, r: Tensor) -> Tensor:
    """Points X (k, 3) turned by r (3,) ≠ 0, by Rodrigues' formula: X cos θ + (r × X) (sin θ)/θ + r (r·X) (1 − cos θ)/θ²."""
    square = r @ r
    angle = square.sqrt()
    cosine = angle.cos()
    return cosine * X + angle.sin() / angle * torch.linalg.cross(r.expand_as(X), X) + (1 - cosine) / square * torch.outer(X @ r, r)


def project(pose: Tensor, X: Tensor) -> Tensor:
    """The images (k, 2) of points X (k, 3) in a pose (6,)."""
    turn, shift = pose.split(3)
    across, depth = (rotated(X, turn) + shift).split([2, 1], 1)
    return across / depth


class PerspectiveNPoint(DeclarativeNode):
    """p (k, 2), X (k, 3), w (k,) -> (r, t) (6,)."""

    def __init__(self, nominal: tuple[float, ...] = NOMINAL) -> None:
        super().__init__()
        self.nominal = nominal

    def objective(self, p: Tensor, X: Tensor, w: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (w.unsqueeze(1) * (project(y, X) - p).square()).sum()

    def initial_guess(self, p: Tensor, X: Tensor, w: Tensor) -> Tensor:  # noqa: ARG002
        return p.new_tensor(self.nominal).expand(p.shape[0], 6)


def model() -> Tensor:
    """Points of the model (k, 3), of half a unit."""
    return 0.5 * torch.tensor(MODEL, dtype=torch.float64)


def poses(batch: int, generator: torch.Generator) -> Tensor:
    """(batch, 6): near the nominal one."""
    return torch.tensor(NOMINAL, dtype=torch.float64) + 0.1 * normal(generator, batch, 6)


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """One model, seen from many poses, with errors of a few hundredths: weights matter, and the minimum is clear."""
    X = model() + 0.05 * normal(generator, len(MODEL), 3)
    p = torch.func.vmap(project, in_dims=(0, None))(poses(batch, generator), X)
    return cast(dtype, p + 0.03 * normal(generator, *p.shape), X, uniform(generator, 0.5, 1.5, len(MODEL)))


PROBLEM = Problem("perspective_n_point", PerspectiveNPoint, sample, (0, None, None), note="not convex: the start decides; an objective of many operations")
