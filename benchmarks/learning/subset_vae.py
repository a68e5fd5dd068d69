"""A variational autoencoder of digits whose code is ten k-subsets: five of ten categories each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.learning.experiment import Experiment, Outcome, digits, optimise
from declarative.layers import (
    BlackboxSolver,
    EntropicTopK,
    EuclideanTopK,
    Gumbel,
    GumbelK,
    IdentityTopK,
    ImplicitMLE,
    Noise,
    PerturbedSolver,
    StraightThrough,
    TopK,
)

VARIABLES, CATEGORIES, K = 10, 10, 5
WIDTH, BATCH, EPOCHS, RATE, KL_WEIGHT = 128, 100, 40, 4e-3, 0.1
TEST_SAMPLES = 4


class Noisy(nn.Module):
    """A deterministic layer of perturbed logits."""

    def __init__(self, layer: nn.Module, noise: Noise) -> None:
        super().__init__()
        self.layer, self.noise = layer, noise

    def forward(self, logits: Tensor) -> Tensor:
        return self.layer(logits + self.noise.sample(logits.detach()))


ESTIMATORS: dict[str, Callable[[], nn.Module]] = {
    "identity": lambda: IdentityTopK(K, None, GumbelK(K)),
    "identity, centre": lambda: IdentityTopK(K, "centre", GumbelK(K)),
    "identity, standardise": lambda: IdentityTopK(K, "standardise", GumbelK(K)),
    "identity, Gumbel noise": lambda: IdentityTopK(K, None, Gumbel()),
    "identity, centre, Gumbel noise": lambda: IdentityTopK(K, "centre", Gumbel()),
    "identity, standardise, Gumbel noise": lambda: IdentityTopK(K, "standardise", Gumbel()),
    "straight-through entropic": lambda: Noisy(StraightThrough(EntropicTopK(K)), GumbelK(K)),
    "straight-through entropic, Gumbel noise": lambda: Noisy(StraightThrough(EntropicTopK(K)), Gumbel()),
    "straight-through Euclidean": lambda: Noisy(StraightThrough(EuclideanTopK(K)), GumbelK(K)),
    "entropic, soft code": lambda: Noisy(EntropicTopK(K), GumbelK(K)),
    "implicit MLE, λ = 1": lambda: ImplicitMLE(TopK(K), noise=GumbelK(K), strength=1.0),
    "identity, standardise, no noise": lambda: IdentityTopK(K, "standardise"),
    "blackbox, λ = 0.01, no noise": lambda: BlackboxSolver(TopK(K), strength=0.01),
    "perturbed, mean of 5 samples": lambda: PerturbedSolver(TopK(K), samples=5),
}


class Autoencoder(nn.Module):
    """(b, 64) -> logits (b, 10, 10) -> subsets -> logits of the pixels (b, 64)"""

    def __init__(self, subsets: nn.Module) -> None:
        super().__init__()
        code = VARIABLES * CATEGORIES
        self.encoder = nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, code), nn.Unflatten(1, (VARIABLES, CATEGORIES)))
        self.decoder = nn.Sequential(nn.Flatten(), nn.Linear(code, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 64))
        self.subsets = subsets

    def loss(self, images: Tensor, subsets: nn.Module | None = None) -> Tensor:
        """Cross-entropy of the pixels, and KL of the categories to the uniform distribution; summed over an image (b,)."""
        logits = self.encoder(images)
        pixels = self.decoder((subsets or self.subsets)(logits))
        log_shares = logits.log_softmax(-1)
        divergence = (log_shares.exp() * log_shares).sum((1, 2)) + VARIABLES * torch.tensor(CATEGORIES).log()
        reconstruction = nn.functional.binary_cross_entropy_with_logits(pixels, images, reduction="none").sum(1)
        return reconstruction + KL_WEIGHT * divergence


def hard(estimator: str) -> nn.Module:
    """Samples of subsets, as they are used once training is over."""
    return IdentityTopK(K, None, Gumbel() if "Gumbel noise" in estimator else GumbelK(K))


def train(estimator: str, seed: int, quick: bool) -> Outcome:
    """Test losses: with the layer that it was trained with, and with hard samples."""
    torch.manual_seed(seed)
    (images, _), (unseen, _) = digits()
    model = Autoencoder(ESTIMATORS[estimator]())
    per_epoch = 2 if quick else len(images) // BATCH
    generator = torch.Generator().manual_seed(seed)
    several = unseen.repeat(1 if quick else TEST_SAMPLES, 1)
    curve: list[tuple[int, float]] = []

    @torch.no_grad()
    def measure(step: int) -> None:
        if step % per_epoch == 0:
            curve.append((step // per_epoch, float(model.loss(unseen).mean())))

    def batch_loss() -> Tensor:
        return model.loss(images[torch.randint(len(images), (BATCH,), generator=generator)]).sum()

    optimise(list(model.parameters()), batch_loss, per_epoch * (1 if quick else EPOCHS), RATE, measure)
    with torch.no_grad():
        return Outcome((float(model.loss(several).mean()), float(model.loss(several, hard(estimator)).mean())), tuple(curve))


EXPERIMENT = Experiment(
    what=f"Autoencoder of digits, {VARIABLES} subsets, {K} of {CATEGORIES} each, KL weight {KL_WEIGHT}, {EPOCHS} epochs: test loss",
    metrics=("loss, lower is better", "with hard samples"),
    estimators=tuple(ESTIMATORS),
    train=train,
    note="GumbelK noise in the logits unless named. Blackbox with that noise would be implicit MLE. 'with hard samples': the code of the trained model drawn "
    "by the hard top-k of noisy logits, however it was trained.",
    digits=2,
)
