"""Two of the thirty features of the breast-cancer data, the same for everybody, chosen while a classifier is trained on them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

from benchmarks.learning.experiment import Experiment, Outcome, optimise
from declarative.layers import (
    BlackboxSolver,
    EntropicTopK,
    EuclideanTopK,
    GumbelK,
    IdentityTopK,
    ImplicitMLE,
    PerturbedSolver,
    StraightThrough,
    TopK,
)

K, WIDTH, BATCH, STEPS, RATE = 2, 16, 64, 400, 1e-2
SPLITS = 5  # for each seed


class Fixed(nn.Module):
    """The same features from beginning to end."""

    def __init__(self, chosen: Tensor) -> None:
        super().__init__()
        self.chosen = chosen

    def forward(self, logits: Tensor) -> Tensor:
        return torch.zeros_like(logits).index_fill(-1, self.chosen, 1.0)


ESTIMATORS: dict[str, Callable[[], nn.Module]] = {
    "all features": nn.Identity,
    "two at random": lambda: Fixed(torch.randperm(30)[:K]),
    "worst area and smoothness, a good pair": lambda: Fixed(torch.tensor([23, 24])),
    "identity": lambda: IdentityTopK(K, None, GumbelK(K)),
    "identity, centre": lambda: IdentityTopK(K, "centre", GumbelK(K)),
    "identity, standardise": lambda: IdentityTopK(K, "standardise", GumbelK(K)),
    "straight-through entropic": lambda: StraightThrough(EntropicTopK(K)),
    "straight-through Euclidean": lambda: StraightThrough(EuclideanTopK(K)),
    "entropic, T = 0.3": lambda: EntropicTopK(K, 0.3),
    "Euclidean, T = 0.3": lambda: EuclideanTopK(K, 0.3),
    "implicit MLE, λ = 1": lambda: ImplicitMLE(TopK(K), noise=GumbelK(K), strength=1.0),
    "blackbox, λ = 1": lambda: BlackboxSolver(TopK(K), strength=1.0),
    "perturbed, 10 samples": lambda: PerturbedSolver(TopK(K), samples=10),
}


def cancer(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Standardised features and labels, for training and, a quarter, for testing; a split for each seed."""
    x, y = (torch.as_tensor(array).float() for array in load_breast_cancer(return_X_y=True))
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    train, test = order[: 3 * len(y) // 4], order[3 * len(y) // 4 :]
    x = (x - x[train].mean(0)) / x[train].std(0)
    return x[train], y[train], x[test], y[test]


def accuracy(estimator: str, seed: int, quick: bool) -> float:
    """In testing, with the features of the two largest logits."""
    torch.manual_seed(seed)
    x, y, unseen, truth = cancer(seed)
    classifier = nn.Sequential(nn.Linear(30, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1), nn.Flatten(0))
    logits = nn.Parameter(torch.zeros(30))
    select, everything = ESTIMATORS[estimator](), estimator == "all features"
    generator = torch.Generator().manual_seed(seed)

    def batch_loss() -> Tensor:
        batch = torch.randint(len(y), (BATCH,), generator=generator)
        mask = torch.ones(30) if everything else select(logits.expand(BATCH, 30))
        return nn.functional.binary_cross_entropy_with_logits(classifier(x[batch] * mask), y[batch], reduction="sum")

    optimise([logits, *classifier.parameters()], batch_loss, 3 if quick else STEPS, RATE)
    with torch.no_grad():
        mask = torch.ones(30) if everything else select(logits) if isinstance(select, Fixed) else IdentityTopK(K)(logits)
        return float(((classifier(unseen * mask) > 0).float() == truth).float().mean())


def train(estimator: str, seed: int, quick: bool) -> Outcome:
    """The mean over several splits of the data, one of which says little."""
    splits = 1 if quick else SPLITS
    return Outcome((sum(accuracy(estimator, splits * seed + split, quick) for split in range(splits)) / splits,))


EXPERIMENT = Experiment(
    what=f"{K} of the 30 features of the breast-cancer data, {STEPS} steps",
    metrics=("accuracy in testing",),
    estimators=tuple(ESTIMATORS),
    train=train,
    note=f"Each seed has {SPLITS} splits of its own. Selected hard in testing, whatever the training.",
)
