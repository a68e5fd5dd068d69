"""Cheapest paths over grids whose terrain is seen, not its costs: a network predicts the costs, and a solver finds the path."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.learning.experiment import Experiment, Outcome, optimise
from declarative.layers import BlackboxSolver, FenchelYoungLoss, IdentitySolver, ShortestPath

SIDE, COSTS = 12, (0.8, 1.2, 5.3, 7.7, 9.2)
COLOURS = ((1.0, 1.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.5, 0.5), (0.0, 0.0, 1.0), (1.0, 0.0, 0.5))  # sand, grass, wood, water, rock
TRAINING, TESTS, BATCH, STEPS, RATE = 512, 128, 16, 800, 1e-2
TOLERANCE = 1e-4


class Batch(NamedTuple):
    """Predicted costs, cheapest paths and true costs, each (b, 12, 12)."""

    predicted: Tensor
    path: Tensor
    truth: Tensor


Loss = Callable[[nn.Module, Batch], Tensor]


@cache
def grids(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Coloured terrain (n, 3, 12, 12) in five kinds, its costs (n, 12, 12), and the cheapest paths (n, 12, 12)."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.randn(count, 1, SIDE + 2, SIDE + 2, generator=generator)
    smooth = nn.functional.avg_pool2d(rough, 3, 1)[:, 0]
    kind = torch.bucketize(smooth, torch.quantile(smooth.flatten()[:100_000], torch.tensor([0.2, 0.4, 0.6, 0.8])))
    image = torch.tensor(COLOURS)[kind].permute(0, 3, 1, 2)
    costs = torch.tensor(COSTS)[kind]
    return image + 0.1 * torch.randn(image.shape, generator=generator), costs, IdentitySolver(ShortestPath(), "min")(costs)


def found(layer: nn.Module, batch: Batch) -> Tensor:
    """The layer's paths; a margin needs the target."""
    return layer(batch.predicted, batch.path) if isinstance(layer, IdentitySolver) else layer(batch.predicted)


def hamming(layer: nn.Module, batch: Batch) -> Tensor:
    """How many cells differ, as a linear function of the path: its gradient is 1 − 2y* whatever the path."""
    y = found(layer, batch)
    return (y * (1 - batch.path) + (1 - y) * batch.path).sum()


def squared(layer: nn.Module, batch: Batch) -> Tensor:
    y = found(layer, batch)
    return (y - batch.path).square().sum()


def fenchel_young(layer: nn.Module, batch: Batch) -> Tensor:
    return layer(batch.predicted, batch.path).sum()


def supervised(layer: nn.Module, batch: Batch) -> Tensor:
    """What the costs themselves would teach, which the others never see."""
    return (layer(batch.predicted) - batch.truth).square().sum()


def identity(projection: str | None = None, **options: float) -> Callable[[], nn.Module]:
    return lambda: IdentitySolver(ShortestPath(), "min", projection, **options)


ESTIMATORS: dict[str, tuple[Callable[[], nn.Module], Loss]] = {
    "identity": (identity(), hamming),
    "identity, scale": (identity("scale"), hamming),
    "blackbox, λ = 1": (lambda: BlackboxSolver(ShortestPath(), "min", strength=1.0), hamming),
    "blackbox, λ = 10": (lambda: BlackboxSolver(ShortestPath(), "min", strength=10.0), hamming),
    "identity, squared loss": (identity(), squared),
    "identity, noise 0.5, squared loss": (identity(noise=0.5), squared),
    "identity, margin 1, squared loss": (identity(margin=1.0), squared),
    "identity, scale, squared loss": (identity("scale"), squared),
    "identity, scale, noise 0.003, squared loss": (identity("scale", noise=0.003), squared),
    "identity, scale, margin 0.01, squared loss": (identity("scale", margin=0.01), squared),
    "Fenchel–Young loss, 2 samples": (lambda: FenchelYoungLoss(ShortestPath(), "min", deviation=0.1, samples=2), fenchel_young),
    "supervised by costs": (nn.Identity, supervised),
}


class Costs(nn.Module):
    """(b, 3, 12, 12) -> positive costs (b, 12, 12)"""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.ReLU(), nn.Conv2d(32, 1, 1), nn.Softplus())

    def forward(self, images: Tensor) -> Tensor:
        return self.cells(images).squeeze(1)


def train(estimator: str, seed: int, quick: bool) -> Outcome:
    """The share of test grids with a path as cheap as the cheapest, and how much dearer paths are on average."""
    torch.manual_seed(seed)
    images, costs, paths = grids(8 if quick else TRAINING, 0)
    network = Costs()
    make, loss = ESTIMATORS[estimator]
    layer, generator = make(), torch.Generator().manual_seed(seed)

    def batch_loss() -> Tensor:
        batch = torch.randint(len(images), (2 if quick else BATCH,), generator=generator)
        return loss(layer, Batch(network(images[batch]), paths[batch], costs[batch]))

    optimise(list(network.parameters()), batch_loss, 2 if quick else STEPS, RATE)
    unseen, truth, best = grids(4 if quick else TESTS, 1)
    with torch.no_grad():
        chosen = IdentitySolver(ShortestPath(), "min")(network(unseen))
        least = (truth * best).sum((1, 2))
        excess = (truth * chosen).sum((1, 2)) / least - 1
    return Outcome((float((excess < TOLERANCE).float().mean()), float(excess.mean())))


EXPERIMENT = Experiment(
    what=f"Cheapest paths, {SIDE} x {SIDE}, {STEPS} steps of {BATCH} grids",
    metrics=("optimal paths", "excess cost"),
    estimators=tuple(ESTIMATORS),
    train=train,
    note="Hamming loss unless named. Its gradient does not depend on the path found, so that noise and margin cannot change what identity does; with the "
    "squared loss, the same number with the gradient 2(y − y*), they do. A scaled grid of costs has norm 1, its cells are near 0.08.",
)
