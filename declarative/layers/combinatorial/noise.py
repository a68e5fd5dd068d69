"""Noise that makes a deterministic solver a sampler."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from declarative.layers.arguments import positive_int, positive_number

_EULER = 0.5772156649015329


class Noise(ABC):
    """Independent noise for each weight."""

    @abstractmethod
    def sample(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Noise of the shape, dtype and device of `like`."""


class Gumbel(Noise):
    """τ (−log E), E exponential: the largest of n perturbed logits is then a sample of softmax(logits/τ).

    Args:
        temperature: τ > 0; standard deviation τπ/√6, mean 0.5772 τ.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = positive_number("Gumbel: temperature", temperature)

    def sample(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        exponential = torch.empty_like(like, requires_grad=False, memory_format=torch.contiguous_format).exponential_(generator=generator)
        return -self.temperature * exponential.clamp_min(torch.finfo(like.dtype).tiny).log()


class GumbelK(Noise):
    """Sum-of-gamma noise: the sum over k entries is Gumbel distributed with scale τ, so that top-k of perturbed logits samples k-hot vectors.

        (τ/k) (Σ_{i=1}^m Gamma(1/k, scale k/i) − (H_m − 0.5772…)),      H_m = 1 + 1/2 + … + 1/m

    The odds of two subsets are then those of the exponential family where they have no entry in common; those that have share its noise, so that the
    likeliest subsets come up more often than in the family.

    k = 1 with many terms is Gumbel noise. In the paper log m stands for what is subtracted, its limit; so the mean is right for any m. Some published codes
    have the reciprocal scale, i/k: then the sum has the wrong distribution.

    Args:
        k: how many entries are summed, a positive int.
        temperature: τ > 0, the scale of the sum.
        terms: m; what is left out of the sum has a variance of about τ²/m.

    Source: Niepert, Minervini & Franceschi, "Implicit MLE", NeurIPS 2021 (the noise, and its theorem 2).
    """

    def __init__(self, k: int, temperature: float = 1.0, terms: int = 10) -> None:
        self.k, self.terms = positive_int("GumbelK: k", k), positive_int("GumbelK: terms", terms)
        self.temperature = positive_number("GumbelK: temperature", temperature)

    def sample(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        total = torch.zeros_like(like, requires_grad=False)
        shape = torch.full_like(total, 1 / self.k)
        for i in range(1, self.terms + 1):
            # torch.distributions has no generator; what it calls has
            total += torch._standard_gamma(shape, generator=generator) * (self.k / i)  # pyright: ignore[reportPrivateImportUsage]
        mean = math.fsum(1 / i for i in range(1, self.terms + 1))
        return (self.temperature / self.k) * (total - mean + _EULER)


class Normal(Noise):
    """Gaussian noise.

    Args:
        deviation: its standard deviation.
    """

    def __init__(self, deviation: float = 1.0) -> None:
        self.deviation = positive_number("Normal: deviation", deviation)

    def sample(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.deviation * torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
