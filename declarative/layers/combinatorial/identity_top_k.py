"""`IdentityTopK`: exactly k ones, with the identity method's backward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from declarative.layers.combinatorial.base import repeated
from declarative.layers.combinatorial.identity import IdentityStep
from declarative.layers.combinatorial.noise import Noise
from declarative.layers.combinatorial.top_k import TopK, top_k
from declarative.layers.formula import solved
from declarative.layers.projection import QuadraticSurrogate, centred, named
from declarative.layers.topk.reading import K, read
from declarative.transforms import uncompiled


class IdentityTopK(nn.Module):
    """A k-hot vector with ones at the k largest logits, or a sample of such, with the identity method's backward pass.

    Exactly k ones, also where logits are equal. The logits (and their noise) are projected first, and the projection's Jacobian is part of the backward pass;
    since the k largest are the same before and after, the forward pass need not compute it. k = 0 and k = n leave nothing to choose: their gradient is
    zero, and so is that of constant logits under "standardise", which have no direction.

    Args:
        k: an int, or an integer tensor that broadcasts with the dimensions other than `dim`.
        projection: "standardise", "centre", "scale" or None.
        noise: None, or `GumbelK(k)`, `Gumbel()`, `Normal()`: added to the logits in training. In evaluation the layer is deterministic.
        ties: which of equal logits are taken where not all can be, the "first" or "random" ones.
        dim: the dimension to select along.

    Shapes:
        logits (…, n) -> (…, n), of the same dtype. With `samples=S` at the call (S, …, n).

    Raises:
        ValueError, TypeError: k out of range or no integer, logits that are not finite.

    Example:
        >>> IdentityTopK(2)(torch.tensor([0.3, 0.9, 0.1, 0.9]))
        tensor([0., 1., 0., 1.])

    Source: Sahoo, Paulus et al., "Backpropagation through combinatorial algorithms: identity with projection works", ICLR 2023.
    """

    def __init__(self, k: K, projection: str | None = "standardise", noise: Noise | None = None, *, ties: str = "first", dim: int = -1) -> None:
        super().__init__()
        TopK(k, ties)
        named(projection, centred, "")
        if noise is not None and not isinstance(noise, Noise):
            raise TypeError(f"IdentityTopK: noise must be an object such as GumbelK(k), got {noise!r}")
        if isinstance(k, Tensor):
            self.register_buffer("k", k, persistent=False)
        else:
            self.k = k
        self.projection, self.noise, self.ties, self.dim = projection, noise, ties, dim

    @uncompiled
    def forward(
        self, logits: Tensor, k: K | None = None, *, sample: bool | None = None, samples: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The k-hot vectors.

        Args:
            logits: (…, n), n along `dim`.
            k: in place of the layer's own.
            sample: whether to add noise; None: in training, if the layer has noise.
            samples: how many samples for each logit: a new first dimension.
            generator: of the noise and of random ties.
        """
        noise = self.noise if (self.training if sample is None else sample) else None
        if sample and noise is None:
            raise ValueError("sample=True needs a layer with noise, IdentityTopK(k, noise=GumbelK(k)) for one")
        dim = self.dim
        if samples is not None:
            dim = dim if dim < 0 else dim + 1
            logits = repeated(logits, samples)
        given = read(logits, self.k if k is None else k, dim)
        x = given.x if noise is None else given.x + noise.sample(given.x.detach(), generator)
        n = x.shape[1]
        if isinstance(given.k, int):
            fixed = torch.ones(x.shape[0], dtype=torch.bool, device=x.device) if given.k in (0, n) else None
        else:
            fixed = (given.k == 0) | (given.k == n)

        counts = given.k

        def find(flat: Tensor) -> Tensor:
            return top_k(flat, counts, self.ties, generator)

        return given.shaped(solved(IdentityStep(find, named(self.projection, centred, ""), 1.0, fixed), x)[0])

    @property
    def surrogate(self) -> QuadraticSurrogate:
        """The declarative node whose derivative the backward pass is: `verify(layer.surrogate, logits)` proves it."""
        return QuadraticSurrogate(self.projection)

    def extra_repr(self) -> str:
        """For `print`."""
        return f"k={self.k}, projection={self.projection!r}, noise={type(self.noise).__name__ if self.noise else None}, dim={self.dim}"
