"""Training on clean clouds and testing on clouds with outliers."""

from __future__ import annotations

import torch
from torch import nn
from tqdm import tqdm

from demo.data import Digits, add_outliers, sample_points
from demo.model import Classifier

BATCH = 64
PEAK_RATE = 1e-2


def train(pooling: str, digits: Digits, epochs: int, seed: int) -> Classifier:
    """A classifier with this pooling. Same seed, same initial weights, same batches, whatever the pooling."""
    torch.manual_seed(seed)
    model = Classifier(pooling)
    generator = torch.Generator().manual_seed(seed + 1)
    optimiser = torch.optim.Adam(model.parameters())
    steps = epochs * -(-len(digits.train_labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_RATE, total_steps=steps)
    with tqdm(total=steps, desc=f"training with {pooling} pooling", unit="step", leave=False, mininterval=0.5) as progress:
        for _ in range(epochs):
            for index in torch.randperm(len(digits.train_labels), generator=generator).split(BATCH):
                logits = model(sample_points(digits.train_images[index], generator))
                loss = nn.functional.cross_entropy(logits, digits.train_labels[index])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                progress.update()
                progress.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
    return model.eval()


@torch.no_grad()
def accuracy(model: Classifier, digits: Digits, share: float, seed: int) -> float:
    """Share of test clouds classified right when this share of their points are outliers. The clouds depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed + 2)
    clouds, _ = add_outliers(sample_points(digits.test_images, generator), share, generator)
    return float((model(clouds).argmax(1) == digits.test_labels).float().mean())
