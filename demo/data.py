"""Handwritten digits as point clouds, and outliers among the points. The images come with scikit-learn: nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor

POINTS = 64
JITTER = 0.5  # of a pixel: where in its pixel a point lies
REACH = 2.0  # outliers lie in [−REACH, REACH]², digits in [−1, 1]²


@dataclass(frozen=True)
class Digits:
    """Images (b, 8, 8) and labels (b,), to train on and to test on."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load(generator: torch.Generator, train_share: float = 0.75) -> Digits:
    """The 1797 digits, split at random."""
    images, labels = load_digits(return_X_y=True)
    pixels, targets = torch.as_tensor(images, dtype=torch.float32).reshape(-1, 8, 8), torch.as_tensor(labels)
    order = torch.randperm(len(targets), generator=generator)
    train, test = order.split([round(train_share * len(order)), len(order) - round(train_share * len(order))])
    return Digits(pixels[train], targets[train], pixels[test], targets[test])


def sample_points(images: Tensor, generator: torch.Generator, count: int = POINTS) -> Tensor:
    """(b, 8, 8) → (b, count, 2): points (row, column) drawn where the ink is, in [−1, 1]²."""
    pixels = torch.multinomial(images.flatten(1), count, replacement=True, generator=generator)
    corners = torch.stack([pixels // 8, pixels % 8], -1).to(images.dtype)
    jitter = JITTER * (torch.rand(corners.shape, generator=generator) - 0.5)
    return (corners + jitter - 3.5) / 4


def add_outliers(points: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(points, which): a share of each cloud's points is thrown anywhere into the square; which (b, n) of them are so."""
    which = torch.rand(points.shape[:2], generator=generator) < share
    anywhere = REACH * (2 * torch.rand(points.shape, generator=generator) - 1)
    return torch.where(which.unsqueeze(-1), anywhere, points), which
