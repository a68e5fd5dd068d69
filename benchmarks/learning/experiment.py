"""What every experiment is, and the data and the training loop that they share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from demo.images import load_images

TRAINING_DIGITS = 1347


@dataclass(frozen=True)
class Outcome:
    """One trained model.

    Args:
        values: one for each of the experiment's metrics.
        curve: (step, value of the first metric) on the way, where that was measured.
    """

    values: tuple[float, ...]
    curve: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Experiment:
    """One table.

    Args:
        what: the title: data, task, sizes.
        metrics: names of the columns; the first is the one that counts.
        estimators: the rows.
        train: (estimator, seed, quick) -> what came of it. Equal seeds mean equal initial weights and batches.
        note: what the reader must know.
        digits: how many decimals are printed.
    """

    what: str
    metrics: tuple[str, ...]
    estimators: tuple[str, ...]
    train: Callable[[str, int, bool], Outcome]
    note: str = ""
    digits: int = 3


@dataclass(frozen=True)
class Row:
    """One estimator over its seeds."""

    experiment: str
    estimator: str
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0

    def spread(self, metric: int) -> tuple[float, float, float]:
        """Mean, lowest, highest."""
        values = [outcome.values[metric] for outcome in self.outcomes]
        return sum(values) / len(values), min(values), max(values)


def measured(name: str, experiment: Experiment, seeds: int, quick: bool) -> Iterator[Row]:
    """One row after the other."""
    for estimator in experiment.estimators:
        began = time.perf_counter()
        outcomes = [experiment.train(estimator, seed, quick) for seed in range(seeds)]
        yield Row(name, estimator, outcomes, (time.perf_counter() - began) / seeds)


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """scikit-learn's: (images (n, 64) in [0, 1], labels (n,)) for training and for testing."""
    images, labels = load_images("digits")
    images = images.flatten(1)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:TRAINING_DIGITS], order[TRAINING_DIGITS:]
    return (images[train], labels[train]), (images[test], labels[test])


def optimise(parameters: Sequence[nn.Parameter], loss: Callable[[], Tensor], steps: int, rate: float, after: Callable[[int], None] | None = None) -> None:
    """Adam with a rate that falls to zero along a cosine; `after` is called with the number of steps done."""
    adam = torch.optim.Adam(parameters, rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for step in range(steps):
        adam.zero_grad()
        loss().backward()
        adam.step()
        schedule.step()
        if after is not None:
            after(step + 1)
