# %% [markdown]
# # Top-k: learning through a choice
#
# Which five of a hundred features shall a model read? Which words of a sentence explain its verdict? Which expert takes which job? Such a
# choice is the solution of a small combinatorial problem, and a network that is to make it must learn through it. But the solution is
# a corner of a polytope: it stays put when the weights move a little, and then it jumps. Its derivative is of no use, so something
# else has to stand in its place. Here is what, why it works, and when it does not.
#
# You will
#
# 1. see the true derivative of top-k, and derive another one from a problem that can be differentiated: the *identity method*;
# 2. watch logits drift without a projection, and stay with one;
# 3. make samplers of k-subsets with the right noise;
# 4. meet two smooth relaxations of top-k, one dense and one sparse;
# 5. train an autoencoder whose code is made of k-subsets, with five estimators side by side;
# 6. sort digits with a matching in the middle of the network.

# %%
import os
import time

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from declarative import verify
from declarative.layers import (
    Assignment,
    EntropicTopK,
    EuclideanTopK,
    GumbelK,
    IdentitySolver,
    IdentityTopK,
    ImplicitMLE,
    ShortestPath,
    StraightThrough,
    TopK,
)
from demo.images import load_images

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # problems this small gain nothing from a second thread

QUICK = os.environ.get("DECLARATIVE_QUICK") == "1"  # small sizes, for tests

plt.rcParams.update({"figure.dpi": 64, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False})
PROJECTIONS = {  # colours that are told apart by everybody, and dashes besides
    None: {"color": "#000000", "linestyle": "-", "linewidth": 2.5},
    "centre": {"color": "#E69F00", "linestyle": "--"},
    "scale": {"color": "#56B4E9", "linestyle": "-"},
    "standardise": {"color": "#D55E00", "linestyle": ":", "linewidth": 2.5},
}

# %% [markdown]
# ## 1. The derivative of top-k
#
# Top-k puts ones at the $k$ largest logits and zeros elsewhere. It is the solution of a linear program,
#
# $$ y(x) = \operatorname*{argmax}_y \; \langle x, y\rangle \quad\text{s.t.}\quad \textstyle\sum_i y_i = k,\; y \in \{0, 1\}^n . $$
#
# Let one of five logits grow, the others staying where they are, with $k = 2$:

# %%
others = torch.tensor([1.0, 0.4, 0.0, -0.7])
t = torch.linspace(-1.5, 1.5, 301)
moving = torch.cat([t.unsqueeze(1), others.expand(len(t), -1)], 1)
chosen = IdentityTopK(2)(moving)

figure, axis = plt.subplots(figsize=(8, 2.6))
axis.plot(t, chosen[:, 0], color="#D55E00", label="$y_1$, the one that moves")
axis.plot(t, 0.03 + chosen[:, 2], color="#0072B2", linestyle="--", label="$y_3$, at 0.4 (drawn a little higher)")
axis.set(xlabel="$x_1$", ylabel="chosen", yticks=(0, 1), title="two of five")
axis.legend(loc="center left")
figure.tight_layout()

# %% [markdown]
# Flat, a jump, flat: **the derivative is zero wherever it exists**. It is not wrong, it says the truth about infinitely small steps; training takes
# finite ones.
#
# **Another problem with the same direction.** Add $-\tfrac12\|y\|^2$ and forget about the constraints. What remains can be solved by hand:
#
# $$ \tilde y(x) = \operatorname*{argmin}_u \; \tfrac12\|u\|^2 - \langle z(x), u\rangle = z(x) , $$
#
# where $z$ is a projection of the logits or, to begin with, $z(x) = x$. In the language of declarative nodes $H = I$ and $B = -I$, so
# $\partial\tilde y/\partial x = -H^{-1}B = I$: the incoming gradient is handed on as it is. That is the **identity method**: forward the hard
# solution, backward the derivative of the quadratic surrogate. It asks "if this output had to be larger, which input should be?", and answers
# "the same one". Costs: nothing.
#
# **Projections.** Adding a constant to all logits changes no choice, nor does multiplying them by a positive number. A gradient that
# moves logits along these directions only moves them. So let $z$ remove them, and differentiate that as well:
#
# $$
# \begin{aligned}
# \texttt{centre}\quad & z = Px,\; P = I - \tfrac1n 11^\top, & J &= P, \\
# \texttt{scale}\quad & z = x/\|x\|, & J &= (I - zz^\top)/\|x\|, \\
# \texttt{standardise}\quad & z = Px/\|Px\|, & J &= (P - zz^\top)/\|Px\| .
# \end{aligned}
# $$

# %%
x = torch.randn(3, 6, requires_grad=True)
v = torch.randn(3, 6)
ones = torch.full((6, 6), 1 / 6)


def jacobian(projection: str | None, x: Tensor) -> Tensor:
    """J of one sample."""
    P = torch.eye(6) - ones if projection in ("centre", "standardise") else torch.eye(6)
    if projection in (None, "centre"):
        return P
    z = P @ x / (P @ x).norm()
    return (P - torch.outer(z, z)) / (P @ x).norm()


for projection in PROJECTIONS:
    layer = IdentityTopK(2, projection)
    y = layer(x)
    (gradient,) = torch.autograd.grad(y, x, v)
    by_hand = torch.stack([jacobian(projection, a) @ b for a, b in zip(x.detach(), v, strict=True)])
    torch.testing.assert_close(gradient, by_hand)
    along, across = gradient.sum(1).abs().max().item(), (gradient * x).sum(1).abs().max().item()
    print(f"{projection!s:12} chosen {y[0].int().tolist()}, gradient along 1: {along:.1e}, along x: {across:.1e}")

# %% [markdown]
# The same choices, four gradients. That they are the gradients of the surrogate is a claim that can be checked: the surrogate is a
# declarative node, and `verify` compares it with the dense formula and with finite differences.

# %%
report = verify(IdentityTopK(2).surrogate, x.detach())
print(report)
assert report.ok

# %% [markdown]
# **Ties.** Always exactly $k$ are chosen. Of equal logits the first are taken, or random ones with `ties="random"`. Constant logits have no
# direction, so under `standardise` their gradient is zero; noise, or any initial weights but zeros, gets them moving.

# %%
equal = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0], requires_grad=True)
print("first :", IdentityTopK(2)(equal).int().tolist())
for _ in range(3):
    print("random:", IdentityTopK(2, ties="random")(equal).int().tolist())
constant = torch.zeros(5, requires_grad=True)
for projection in ("centre", "standardise"):
    (gradient,) = torch.autograd.grad(IdentityTopK(2, projection)(constant)[0], constant)
    print(f"gradient of y₁ at constant logits, {projection:12}", gradient.numpy().round(2))

# %% [markdown]
# ## 2. Why project?
#
# A teacher chooses 3 of 10 by the logits $W^\star x$. A pupil with weights $W$ and a bias of its own sees only the choices, and is told how
# many entries differ: the Hamming distance, for zeros and ones $\langle y, 1 - y^\star\rangle + \langle 1 - y, y^\star\rangle$. Its gradient $1 - 2y^\star$
# is the same whether $y$ is right or wrong! With the identity method alone it pushes the logits on and on.

# %%
INPUTS, OUTPUTS, CHOSEN, STEPS = 8, 10, 3, 20 if QUICK else 400
teacher = torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(1))


def taught(projection: str | None) -> Tensor:
    """(steps, 3): mean of the logits, their deviation within a sample, share of samples with the right choice."""
    torch.manual_seed(0)
    pupil, layer = nn.Linear(INPUTS, OUTPUTS), IdentityTopK(CHOSEN, projection)
    adam, seen = torch.optim.Adam(pupil.parameters(), 0.03), []
    for _ in range(STEPS):
        inputs = torch.randn(64, INPUTS)
        target = IdentityTopK(CHOSEN)(inputs @ teacher.T)
        logits = pupil(inputs)
        y = layer(logits)
        loss = (y * (1 - target) + (1 - y) * target).sum(1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        right = (y == target).all(1).double().mean()
        seen.append(torch.stack([logits.mean(), logits.std(1).mean(), right]).detach())
    return torch.stack(seen)


figure, axes = plt.subplots(1, 3, figsize=(13, 3.4))
runs = {projection: taught(projection) for projection in PROJECTIONS}
for projection, run in runs.items():
    smooth = run.unfold(0, min(20, STEPS), 1).mean(2)
    for axis, column in zip(axes, smooth.T, strict=True):
        axis.plot(column, label=str(projection), **PROJECTIONS[projection])
for axis, what in zip(axes, ("mean of the logits", "deviation of the logits", "share of right choices"), strict=True):
    axis.set(xlabel="step", ylabel=what, title=what)
axes[1].legend(title="projection")
figure.tight_layout()
for projection, run in runs.items():
    print(f"{projection!s:12} right at the end {run[-20:, 2].mean().item():.2f}, mean {run[-1, 0].item():8.2f}, deviation {run[-1, 1].item():6.2f}")

# %% [markdown]
# *What to see.* Without a projection the mean of the logits runs away: seven of ten entries are always pushed down, three up. `centre` stops
# that, but the logits still grow, step by step and without end: the loss is linear, every sample pushes all the time, and what is learned is the
# mean of all pushes. On the sphere (`scale`, `standardise`) the same loss is minus a cosine. A sample whose logits point the right way is left in
# peace, since $J$ removes the gradient along $z$, and those that point elsewhere decide where the next step goes. The logits stay where they were.
# In section 6 this is the difference between nothing learned and nearly all.
#
# The squared distance $\|y - y^\star\|^2$ is the same number for zeros and ones, and its gradient $2(y - y^\star)$ ends where the choice is right.
# With it one can nearly do without a projection here: 0.85 are right, and 0.90 with `standardise`. But with a decoder behind the choice, as in
# section 5, nobody picks the gradient.
#
# ## 3. Noise: from a choice to a sampler
#
# For $k = 1$ there is the Gumbel trick: the largest of $x_i + g_i$ with Gumbel noise is a sample of $\mathrm{softmax}(x)$. For $k$-subsets one wants
# noise whose *sum over $k$ entries* is Gumbel distributed. `GumbelK(k)` is that noise, a sum of gamma variables:
#
# $$ \frac{\tau}{k}\Bigl(\sum_{i=1}^{m} \mathrm{Gamma}(1/k,\ \text{scale } k/i) - (H_m - 0.5772\ldots)\Bigr) , \qquad H_m = \sum_{i=1}^m \tfrac{1}{i} . $$
#
# Mind the scale: in $k/i$ the terms shrink. Some published codes have its reciprocal $i/k$, and sums that grow with $m$.

# %%
K, TERMS, DRAWS = 5, 10, 2000 if QUICK else 40_000
sums = GumbelK(K, terms=TERMS).sample(torch.zeros(DRAWS, K)).sum(1)
gamma = torch.distributions.Gamma(1 / K, 1.0).sample((TERMS, DRAWS, K))
wrong = ((gamma * torch.arange(1.0, TERMS + 1)[:, None, None] / K).sum(0) - torch.tensor(TERMS).log()).sum(1) / K

g = torch.linspace(-3, 8, 400)
figure, axis = plt.subplots(figsize=(8, 3.2))
axis.hist(sums.numpy(), bins=120, range=(-3, 8), density=True, color="#56B4E9", label="GumbelK(5), sum of 5 entries")
axis.hist(wrong.numpy(), bins=120, range=(-3, 8), density=True, histtype="step", color="#D55E00", linewidth=1.5, label="with the reciprocal scale")
axis.plot(g, (-g - (-g).exp()).exp(), color="black", linestyle="--", label="Gumbel density")
axis.set(xlabel="sum of five noises", ylabel="density", title="k-sums of the noise")
axis.legend()
figure.tight_layout()
for name, values in (("GumbelK(5)", sums), ("reciprocal", wrong)):
    print(f"{name:11} mean {values.mean().item():6.3f} (Gumbel: 0.577), deviation {values.std().item():.3f} (Gumbel: 1.283)")

# %% [markdown]
# The mean is right for any $m$; ten terms leave out a twentieth of the variance.
#
# A layer with noise is a sampler in training, and deterministic in evaluation. `samples=` draws several at once:

# %%
sampler = IdentityTopK(2, noise=GumbelK(2))
logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
print("three samples  ", sampler(logits, samples=3).int().tolist())
print("how often      ", sampler(logits, samples=DRAWS).mean(0).numpy().round(2))
print("in evaluation  ", sampler.eval()(logits).int().tolist())

# %% [markdown]
# ## 4. Relaxations: top-k made smooth
#
# The other way is to change the forward pass. Relax $y \in \{0,1\}^n$ to $u \in [0,1]^n$ and add a strictly convex term:
#
# $$ u = \operatorname*{argmin}_{u \in [0,1]^n} \; -\langle x, u\rangle + T\,\Omega(u) \quad\text{s.t.}\quad \textstyle\sum_i u_i = k . $$
#
# * `EntropicTopK`: $\Omega = \sum u\log u + (1-u)\log(1-u)$, so $u_i = \sigma((x_i + \tau)/T)$. Every entry counts a little: dense.
# * `EuclideanTopK`: $\Omega = \tfrac12\|u\|^2$, so $u_i$ is $(x_i + \tau)/T$ clipped to $[0, 1]$. Most entries are exactly zero or one: sparse.
#
# In both one multiplier $\tau$ makes the sum $k$. As $T \to 0$ both become hard, and their gradients vanish or explode.

# %%
x = torch.tensor([2.0, 1.6, 1.1, 0.9, 0.3, 0.0, -0.5, -1.2])
temperatures = torch.logspace(-1.5, 1.5, 30 if QUICK else 121)
CYCLE = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#999999", "#0072B2", "#D55E00", "#CC79A7")
figure, axes = plt.subplots(1, 2, figsize=(11, 3.4), sharey=True)
for axis, layer in zip(axes, (EntropicTopK(3), EuclideanTopK(3)), strict=True):
    u = layer(x.expand(len(temperatures), -1), temperatures)
    for i, (path, colour) in enumerate(zip(u.T, CYCLE, strict=True)):
        axis.semilogx(temperatures, path, color=colour, linestyle="-" if i < 3 else "--", label=f"x = {x[i].item():.1f}")
    axis.set(xlabel="temperature T", ylabel="u", title=f"{type(layer).__name__}(3)")
    slopes = torch.autograd.functional.jacobian(layer, x)
    print(f"{type(layer).__name__}, T = 1: u = {layer(x).numpy().round(3)}, {int((slopes.abs() > 1e-12).sum())} of 64 derivatives are not zero")
axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
figure.tight_layout()

# %% [markdown]
# The derivative is exact, from the same implicit function theorem as everything else in this package. With $a = (x + \tau)/T$ and the slopes
# $s_i$ of the sigmoid (or of the clipping) at $a_i$, it is $\partial u/\partial x = \tfrac1T\bigl(\mathrm{diag}(s) - ss^\top/\sum s\bigr)$.
# Its rows and columns sum to zero: **a relaxation centres by itself**.
#
# `StraightThrough(EntropicTopK(k))` joins the two worlds: hard forward, the relaxation's gradient backward. At a high temperature and $k = n/2$ all
# $s$ are $\tfrac14$, so the gradient is that of the identity method with `centre`, over $4T$. The identity method is the simplest member of this family.

# %%
hot, cold = (torch.autograd.functional.jacobian(StraightThrough(EntropicTopK(4, temperature)), x) for temperature in (100.0, 1.0))
P = torch.eye(8) - 1 / 8
print(f"4 T J - P, largest entry: T = 100: {(400 * hot - P).abs().max().item():.4f}, T = 1: {(4 * cold - P).abs().max().item():.4f}")

# %% [markdown]
# ## 5. An autoencoder with a code of k-subsets
#
# An encoder maps an image (an 8×8 digit of scikit-learn, or one from a folder that `DECLARATIVE_IMAGES` names) to ten vectors of ten logits. Each
# is made a 5-subset at random, with the noise of section 3, and the decoder sees nothing but these hundred zeros and ones. Loss: cross-entropy
# of the pixels, plus 0.1 times the divergence of each softmax from the uniform distribution. The hard layers differ in the backward pass only.
#
# Layers with weights (seeds, in, out) train two networks side by side; the choices take any leading dimensions.

# %%
torch.set_default_dtype(torch.float32)
VARIABLES, CATEGORIES, WIDTH, BATCH = 10, 10, 128, 100
SEEDS, EPOCHS = 2, 3 if QUICK else 24

pictures, labels = load_images()
h, w = pictures.shape[1:]
images, pixels = pictures.flatten(1), h * w
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
train, test = order[:1347], order[1347:1797]


class Linear(nn.Module):
    """One linear map for each seed: (seeds, b, inputs) to (seeds, b, outputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter((2 * torch.rand(SEEDS, inputs, outputs) - 1) / inputs**0.5)
        self.bias = nn.Parameter((2 * torch.rand(SEEDS, 1, outputs) - 1) / inputs**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class Noisy(nn.Module):
    """A deterministic layer of perturbed logits."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.noise = layer, GumbelK(K)

    def forward(self, logits: Tensor) -> Tensor:
        return self.layer(logits + self.noise.sample(logits.detach()))


ESTIMATORS = {
    "identity": lambda: IdentityTopK(K, None, GumbelK(K)),
    "identity, standardise": lambda: IdentityTopK(K, "standardise", GumbelK(K)),
    "straight-through": lambda: Noisy(StraightThrough(EntropicTopK(K))),
    "implicit MLE": lambda: ImplicitMLE(TopK(K), noise=GumbelK(K)),
    "soft code": lambda: Noisy(EntropicTopK(K)),
}
LOOKS = {
    "identity": {"color": "#000000", "linestyle": "-"},
    "identity, standardise": {"color": "#D55E00", "linestyle": "-"},
    "straight-through": {"color": "#0072B2", "linestyle": "--", "linewidth": 2.5},
    "implicit MLE": {"color": "#E69F00", "linestyle": "-."},
    "soft code": {"color": "#009E73", "linestyle": ":", "linewidth": 2.5},
}


class Autoencoders(nn.Module):
    """One for each seed."""

    def __init__(self, subsets: nn.Module) -> None:
        super().__init__()
        code = VARIABLES * CATEGORIES
        self.encoder = nn.Sequential(Linear(pixels, WIDTH), nn.ReLU(), Linear(WIDTH, code), nn.Unflatten(2, (VARIABLES, CATEGORIES)))
        self.decoder = nn.Sequential(nn.Flatten(2), Linear(code, WIDTH), nn.ReLU(), Linear(WIDTH, pixels))
        self.subsets = subsets

    def loss(self, images: Tensor) -> Tensor:
        """(seeds, b, pixels) to (seeds, b)"""
        logits = self.encoder(images)
        log_shares = logits.log_softmax(-1)
        divergence = (log_shares.exp() * log_shares).sum((2, 3)) + VARIABLES * torch.tensor(CATEGORIES).log()
        decoded = self.decoder(self.subsets(logits))
        return nn.functional.binary_cross_entropy_with_logits(decoded, images, reduction="none").sum(2) + 0.1 * divergence


RATES = {"identity": 4e-3, "soft code": 4e-3}  # the better of 4e-3 and 8e-3; 8e-3 for the others
unseen = images[test].expand(SEEDS, -1, -1)


def fitted(name: str) -> tuple[Autoencoders, Tensor]:
    """Models, and their test losses after each third epoch (epochs / 3, seeds)."""
    torch.manual_seed(0)
    models = Autoencoders(ESTIMATORS[name]())
    adam, curve = torch.optim.Adam(models.parameters(), RATES.get(name, 8e-3)), []
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, EPOCHS)
    for epoch in range(EPOCHS):
        orders = torch.stack([train[torch.randperm(len(train))] for _ in range(SEEDS)])
        for batch in orders.split(BATCH, 1)[: 2 if QUICK else None]:
            adam.zero_grad()
            models.loss(images[batch]).sum().backward()
            adam.step()
        schedule.step()
        if epoch % 3 == 2:
            with torch.no_grad():
                curve.append(models.loss(unseen).mean(1))
    return models, torch.stack(curve)


def spread(values: Tensor) -> str:
    return f"{values.mean():6.2f} ({values.min():.2f}–{values.max():.2f})"


models, curves = {}, {}
print(f"mean over {SEEDS} seeds (smallest–largest){'test loss':>14}{'with hard samples':>31}")
for name in ESTIMATORS:
    began = time.perf_counter()
    models[name], curves[name] = fitted(name)
    with torch.no_grad():
        hard = Autoencoders(IdentityTopK(K, None, GumbelK(K)))
        hard.encoder, hard.decoder = models[name].encoder, models[name].decoder
        sampled = hard.loss(unseen).mean(1)
    print(f"{name:27}{spread(curves[name][-1]):>26}{spread(sampled):>26}{time.perf_counter() - began:6.1f} s")
if not QUICK:
    assert curves["identity, standardise"][-1].max() < curves["identity"][-1].min() - 1

# %%
figure, axis = plt.subplots(figsize=(9, 3.8))
for name, curve in curves.items():
    axis.plot(range(3, EPOCHS + 1, 3), curve.mean(1), label=name, **LOOKS[name])
    axis.fill_between(range(3, EPOCHS + 1, 3), curve.amin(1), curve.amax(1), color=LOOKS[name]["color"], alpha=0.15, linewidth=0)
axis.set(xlabel="epoch", ylabel="test loss, as trained", title="five estimators (bands: smallest to largest of the seeds)")
if not QUICK:
    axis.set_ylim(17, 27)
axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
figure.tight_layout()

figure, axes = plt.subplots(1 + len(models), 10, figsize=(9.5, 5.4), subplot_kw={"xticks": [], "yticks": []})
some = torch.tensor([next(i for i in test.tolist() if labels[i] == digit) for digit in range(10)])  # of the first seed
with torch.no_grad():
    shown = {"original": images[some]}
    for name, model in models.items():
        shown[name] = model.decoder(IdentityTopK(K)(model.encoder(images[some].expand(SEEDS, -1, -1))))[0].sigmoid()
for row, (name, decoded) in zip(axes, shown.items(), strict=True):
    row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for axis, picture in zip(row, decoded, strict=True):
        axis.imshow(picture.reshape(h, w).numpy(), cmap="gray_r", vmin=0, vmax=1)
        axis.grid(False)
figure.suptitle("reconstructions of unseen digits from hard codes, without noise")
figure.tight_layout()

# %% [markdown]
# *What to see.* Projected, the identity method is level with straight-through, and costs no root to find; without it, it is far behind. Implicit MLE
# compares two solutions in each step; with a good strength it comes near, and the strength has to be found first. The soft code looks good
# as long as it may stay soft. Ask for hard samples, and it loses: the decoder has learned to read the fractions.
#
# The order is the same for all seeds where the spans above do not meet. Each estimator has the better of two learning rates, judged by these test images.
# `python -m benchmarks.learning` compares more estimators.
#
# *A warning.* The gradient of `standardise` is divided by $\|P(x + \text{noise})\|$, that of a relaxation fades far from the boundary. Strong noise makes
# both small, and a divergence with a large weight may then win: all logits become equal and the code says nothing. With a weight of 3 and
# `Gumbel()` noise this happens to the projected identity method and to straight-through alike: the loss is 27, that of the mean digit.
# Then lower the weight or the noise.
#
# ## 6. A matching in the middle of a network
#
# Six images of different digits shall be put in order. A network gives each image a score $s_i$; the weight of image $i$ at position $p$ is
# $s_i\,p$; `Assignment` finds the best matching, with scipy. All that the network is told is how many entries of the matching are wrong.
#
# Three seeds side by side. For a matching, *centring* means removing the means of rows and of columns: each row and each column of every matching sums to one.

# %%
SORTED, MATCH_STEPS = 6, 5 if QUICK else 800
SEEDS = 2 if QUICK else 3
by_class, unseen_by_class = ([members[labels[members] == digit] for digit in range(10)] for members in (train, test))


def sets(members: list[Tensor], count: int) -> tuple[Tensor, Tensor]:
    """(seeds, count, 6, pixels) images, and (seeds, count, 6, 6) their matching with positions."""
    classes = torch.rand(SEEDS, count, 10).argsort(2)[..., :SORTED]
    candidates = torch.stack([one[torch.randint(len(one), classes.shape)] for one in members])  # one image of each class, for each place
    picked = candidates.gather(0, classes.unsqueeze(0))[0]
    return images[picked], nn.functional.one_hot(classes.argsort(2).argsort(2), SORTED).float()


def sorters(projection: str | None) -> Tensor:
    """(seeds,) the share of unseen sets wholly in order."""
    torch.manual_seed(0)
    score = nn.Sequential(Linear(pixels, 256), nn.ReLU(), Linear(256, 256), nn.ReLU(), Linear(256, 1))
    layer = IdentitySolver(Assignment(), projection=projection)
    positions = torch.arange(SORTED) - (SORTED - 1) / 2

    def matched(shown: Tensor) -> Tensor:
        weights = score(shown.flatten(1, 2)).reshape(-1, SORTED, 1) * positions
        return layer(weights).reshape(*shown.shape[:2], SORTED, SORTED)

    adam = torch.optim.Adam(score.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, MATCH_STEPS)
    for _ in range(MATCH_STEPS):
        shown, target = sets(by_class, 32)
        y = matched(shown + 0.15 * torch.randn_like(shown))
        loss = (y * (1 - target) + (1 - y) * target).sum((2, 3)).mean(1).sum()  # the sum of the seeds' losses
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    shown, target = sets(unseen_by_class, 20 if QUICK else 500)
    with torch.no_grad():
        return (matched(shown) == target).flatten(2).all(2).double().mean(1)


print(f"wholly in order, mean over {SEEDS} seeds (smallest–largest)")
in_order = {}
for projection in PROJECTIONS:
    began = time.perf_counter()
    found = in_order[projection] = sorters(projection)
    print(f"{projection!s:12}{found.mean():8.3f} ({found.min():.3f}–{found.max():.3f}){time.perf_counter() - began:6.1f} s")
if not QUICK:
    assert min(in_order[p].min() for p in ("scale", "standardise")) > 0.7 > 0.2 > max(in_order[p].max() for p in (None, "centre"))

# %% [markdown]
# Chance is 1/720. The loss is linear in $y$, so without `scale` the scores grow without end, whatever the matching found, and no order is
# learned. On the sphere the same loss is a cosine between weights and matching, and the network learns to sort.
#
# A projection must not change the solution. Shortest paths differ in length, so a constant added to all costs favours short ones, and centring
# is refused:

# %%
try:
    IdentitySolver(ShortestPath(), "min", projection="centre")
except ValueError as error:
    print(error)

# %% [markdown]
# **In short.** Take `IdentityTopK(k, noise=GumbelK(k))`, whose projection is `standardise`, or `IdentitySolver(solver, projection=...)`, as a first try:
# one solve, nothing to tune. Where the output may be soft, a relaxation has exact gradients. Where it must be hard and you have
# time, compare with straight-through and implicit MLE: they have a temperature or a strength, and what it should be depends on the scale of the loss.
#
# ## To try
#
# * Use the squared loss in section 2. Which projections still matter?
# * Vary the strength of implicit MLE between 0.1 and 10. What does it do at both ends, and why?
# * Replace `GumbelK` by `Gumbel()` in section 5. The noise is stronger: compare the deviations of both.
# * Give the network of section 6 one output for each position. Why does the cosine want probabilities where the matching wants their logarithms?
