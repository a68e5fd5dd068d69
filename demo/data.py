"""Images as point clouds, and outliers among the points."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from demo.images import load_images

POINTS = 64
JITTER = 0.5  # of a pixel: where in its pixel a point lies
REACH = 2.0  # outliers lie in [−REACH, REACH]², digits in [−1, 1]²


@dataclass(frozen=True)
class Digits:
    """Images (b, h, w) and labels (b,), to train on and to test on."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load(generator: torch.Generator, train_share: float = 0.75, source: str | Path | None = None, count: int | None = None) -> Digits:
    """The images of `load_images(source, count)`, split at random."""
    images, labels = load_images(source, count)
    order = torch.randperm(len(labels), generator=generator)
    train, test = order.split([round(train_share * len(order)), len(order) - round(train_share * len(order))])
    return Digits(images[train], labels[train], images[test], labels[test])


def sample_points(images: Tensor, generator: torch.Generator, count: int = POINTS) -> Tensor:
    """(b, h, w) → (b, count, 2): points (row, column) drawn where the ink is, in [−1, 1]²."""
    h, w = images.shape[-2:]
    pixels = torch.multinomial(images.flatten(1), count, replacement=True, generator=generator)
    corners = torch.stack([pixels // w, pixels % w], -1).to(images.dtype)
    jitter = JITTER * (torch.rand(corners.shape, generator=generator) - 0.5)
    size = images.new_tensor([h, w])
    return (2 * (corners + jitter) - (size - 1)) / size


def add_outliers(points: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(points, which): a share of each cloud's points is thrown anywhere into the square; which (b, n) of them are so."""
    which = torch.rand(points.shape[:2], generator=generator) < share
    anywhere = REACH * (2 * torch.rand(points.shape, generator=generator) - 1)
    return torch.where(which.unsqueeze(-1), anywhere, points), which
