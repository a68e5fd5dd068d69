# %% [markdown]
# # Robust pooling: a mean that outliers do not move
#
# A network that reads a *set* (the points of a cloud, the patches of an image, the words of a sentence) has to make one vector of many at
# some place. The usual choices are the mean and the maximum. One bad point moves the mean as far as it likes, and the maximum is made of
# extreme points. A robust pooling is defined by an optimisation problem instead, and a point that does not fit loses its influence.
#
# You will
#
# 1. meet the penalties, and the one line that differentiates all of them;
# 2. push outliers away from a set and watch what the pooled point does;
# 3. write a penalty of your own by its formula alone;
# 4. train classifiers of point clouds on clean data and test them on data with outliers;
# 5. learn the scale of a penalty, and see what data teaches it;
# 6. see where this breaks: several minima, ties, points that nothing pulls.

# %%
import os
import time
import warnings

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from declarative import verify
from declarative.errors import SolverWarning
from declarative.layers import Barron, Cauchy, GemanMcClure, Huber, Penalty, PseudoHuber, Quadratic, RobustPooling, TruncatedQuadratic, Welsch
from declarative.solution import Status
from demo.images import load_images

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # problems this small gain nothing from a second thread

QUICK = os.environ.get("DECLARATIVE_QUICK") == "1"  # small sizes, for tests

plt.rcParams.update({"figure.dpi": 64, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False})
PENALTIES = {
    "mean (quadratic)": Quadratic(),
    "pseudo-Huber": PseudoHuber(1.0),
    "Huber": Huber(1.0),
    "Cauchy": Cauchy(1.0),
    "Geman–McClure": GemanMcClure(1.0),
    "Welsch": Welsch(1.0),
    "truncated quadratic": TruncatedQuadratic(1.0),
}
STYLES = {  # colours that are told apart by everybody, and dashes besides: solid for convex penalties
    "mean (quadratic)": {"color": "#000000", "linestyle": "-"},
    "pseudo-Huber": {"color": "#56B4E9", "linestyle": "-", "linewidth": 3.5},
    "Huber": {"color": "#0072B2", "linestyle": "-"},
    "Cauchy": {"color": "#E69F00", "linestyle": "--"},
    "Geman–McClure": {"color": "#CC79A7", "linestyle": "--"},
    "Welsch": {"color": "#D55E00", "linestyle": "--"},
    "truncated quadratic": {"color": "#009E73", "linestyle": ":", "linewidth": 2.5},
}

# %% [markdown]
# ## 1. The problem, its penalties and its derivative
#
# The pooled point of $x_1,\dots,x_n\in\mathbb R^C$ is
#
# $$ u^\star = \operatorname*{argmin}_u \; \sum_i \varphi(\|u - x_i\|) . $$
#
# With $\varphi(z) = z^2/2$ this is the mean. A *robust* penalty is quadratic near zero and grows less from a scale $\alpha$ on, which is in units
# of $x$: what is nearer than $\alpha$ is averaged, what is much farther is doubted.
#
# At the minimum, $\sum_i \kappa_1(z_i)(u - x_i) = 0$ with $\kappa_1(z) = \varphi'(z)/z$. So $u = \sum_i\kappa_1(z_i)\,x_i / \sum_i\kappa_1(z_i)$:
# the pooled point **is a weighted mean**, whose weights $\kappa_1$ depend on where it lies. The right plot below is therefore the one to look at. Three kinds:
#
# * pseudo-Huber and Huber: $\kappa_1 \sim 1/z$. The pull $z\kappa_1$ of a point is bounded, but it never ends. Convex: one minimum.
# * Cauchy, Geman–McClure, Welsch: the pull fades with the distance, slowly ($1/z$), faster ($1/z^3$), at once. Not convex.
# * truncated quadratic: the mean of the points within $\alpha$, and nothing of the others.

# %%
z = torch.linspace(0, 5, 501)
figure, axes = plt.subplots(1, 2, figsize=(11, 3.6))
for name, penalty in PENALTIES.items():
    values = penalty.values()
    kappa1, phi = penalty.kappa1(z.square(), *values), penalty.phi(z.square(), *values)
    axes[0].plot(z, phi, label=name, **STYLES[name])
    axes[1].plot(z, kappa1, label=name, **STYLES[name])
axes[0].set(title="penalties, α = 1", xlabel="distance z", ylabel="φ(z)", ylim=(0, 4))
axes[1].set(title="their weights", xlabel="distance z", ylabel="κ₁(z) = φ'(z)/z", ylim=(0, 1.05))
axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
figure.tight_layout()

# %% [markdown]
# The layer takes a set as a matrix of channels and points, $(C, N)$, or a batch of them, $(b, C, N)$, and returns $(b, C)$.

# %%
x = torch.randn(3, 2, 10, requires_grad=True)
layer = RobustPooling(Welsch(1.0))
solution = layer.solution(x)
print(layer)
print("u                    ", solution.y.shape)
print("shares of the points ", solution.workspace.weights[0])
print("their mean           ", (x[0] @ solution.workspace.weights[0]).detach(), "=", solution.y[0].detach())

# %% [markdown]
# **The derivative.** With $d_i = u - x_i$ and $\kappa_2 = (\varphi'' - \kappa_1)/z^2$, the Hessian of one term is $\kappa_1 I + \kappa_2 dd^\top$,
# both in $u$ and (up to sign) mixed with $x_i$. So for a cotangent $v = \partial\ell/\partial u$ the implicit function theorem reads, in one line,
#
# $$
# H = \Bigl(\sum_i\kappa_1\Bigr) I + \sum_i \kappa_2\, d_i d_i^\top, \qquad
# \frac{\partial\ell}{\partial x_i} = \bigl(\kappa_1 I + \kappa_2\, d_i d_i^\top\bigr)\, H^{-1} v .
# $$
#
# One system with $C$ unknowns for each set, whatever the penalty, and however many iterations the forward pass took. In code, against the layer:


# %%
def by_hand(x: Tensor, u: Tensor, v: Tensor, penalty: Penalty) -> Tensor:
    """∂ℓ/∂x (C, N) of one set."""
    d = u.unsqueeze(1) - x
    s = d.square().sum(0)
    kappa1 = penalty.kappa1(s, *penalty.values())
    kappa2 = penalty.kappa2(s, kappa1, *penalty.values())
    H = kappa1.sum() * torch.eye(len(u)) + (d * kappa2) @ d.T
    w = torch.linalg.solve(H, v)
    return kappa1 * w.unsqueeze(1) + kappa2 * d * (d.T @ w)


v = torch.randn(3, 2)
(gradient,) = torch.autograd.grad(solution.y, x, v)
formula = torch.stack([by_hand(*one, layer.penalty) for one in zip(x.detach(), solution.y.detach(), v, strict=True)])
print(f"by hand against the layer: {(formula - gradient).abs().max().item():.1e}")
torch.testing.assert_close(formula, gradient, atol=1e-8, rtol=0)

report = verify(layer, x.detach())
print(report)
assert report.ok

# %% [markdown]
# ## 2. Outliers that move away
#
# Twenty points around the origin. One more, or a cluster of eight more, is moved away step by step. How far does the pooled point go? All
# steps are one batch. (`restarts=8` looks for the lowest minimum from more starts; section 6 is about that.)

# %%
torch.manual_seed(2)
inliers = 0.6 * torch.randn(2, 20)
inliers = inliers - inliers.mean(1, keepdim=True)
distances = torch.linspace(0, 10, 41 if QUICK else 201)
direction = torch.tensor([0.8, 0.6])


def with_outliers(count: int) -> Tensor:
    """(steps, 2, 20 + count)"""
    cluster = 0.3 * torch.randn(2, count) if count > 1 else torch.zeros(2, 1)
    moved = cluster + distances[:, None, None] * direction.unsqueeze(1)
    return torch.cat([inliers.expand(len(distances), -1, -1), moved], 2)


clouds = {count: with_outliers(count) for count in (1, 8)}
pooled = {count: {name: RobustPooling(penalty, restarts=8)(cloud) for name, penalty in PENALTIES.items()} for count, cloud in clouds.items()}
alone = {name: RobustPooling(penalty, restarts=8)(inliers.unsqueeze(0))[0] for name, penalty in PENALTIES.items()}

figure, axes = plt.subplots(1, 3, figsize=(13, 4.2))
shown = int((distances - 5).abs().argmin())
axes[0].scatter(*inliers, s=14, color="#999999", label="inliers")
axes[0].scatter(*clouds[8][shown, :, 20:], s=22, color="#999999", marker="x", label="outliers")
for (name, style), marker in zip(STYLES.items(), "os^DPv*", strict=True):
    axes[0].scatter(*pooled[8][name][shown], s=60, color=style["color"], marker=marker, edgecolor="white", linewidth=0.6, zorder=3, label=name)
axes[0].set(title="eight outliers at distance 5", xlabel="$x_1$", ylabel="$x_2$", xlim=(-1.8, 5.2), ylim=(-1.8, 4.5), aspect="equal")
axes[0].legend(fontsize=7, loc="upper left", labelspacing=0.3)
for axis, count in zip(axes[1:], clouds, strict=True):
    for name, path in pooled[count].items():
        axis.plot(distances, (path - alone[name]).norm(dim=1), label=name, **STYLES[name])
    axis.set(title="one outlier" if count == 1 else "eight outliers", xlabel="distance of the outliers", ylabel="displacement of u")
axes[1].set(ylim=(0, 0.32))
axes[2].set(ylim=(0, 1.9))
axes[1].legend(fontsize=8)
figure.tight_layout()

print(f"{'displacement at distance 10':27} {'one outlier':>12} {'eight':>8}")
for name in PENALTIES:
    one, eight = ((pooled[count][name][-1] - alone[name]).norm().item() for count in (1, 8))
    print(f"{name:27} {one:12.4f} {eight:8.4f}")

# %% [markdown]
# The mean follows without end. For the convex penalties the displacement levels off: far outliers all pull alike, and eight
# against twenty pull enough to be felt. For the others it rises, while the outliers are near enough to be taken for part of the set, and
# falls again. The truncated quadratic follows a cluster near by even farther than the mean does, for it takes it for the set and drops
# inliers. Then it lets go suddenly: $u$ **jumps** when points leave the ball of radius $\alpha$. So it is robust, and of little use for
# learning what happens at the border; its gradient sees only the points within.
#
# ## 3. A penalty of your own
#
# Write $\varphi$ as a function of $s = z^2$. Its $\kappa_1$ and $\kappa_2$ come from automatic differentiation, and so do derivatives in its parameters.
# Here is Tukey's biweight, which is flat from $z = c$ on. If it is concave in $s$, as nearly all robust penalties are, say so: then reweighted means
# need no line search.


# %%
class Tukey(Penalty):
    concave = True

    def phi(self, s: Tensor, c: Tensor | float) -> Tensor:
        return c**2 / 6 * (1 - (1 - s / c**2).clamp_min(0) ** 3)


tukey = RobustPooling(Tukey(c=nn.Parameter(torch.tensor(2.5))))
report = verify(tukey, x.detach())
print(*[line for line in str(report).splitlines() if "finite differences" in line or "passed" in line], sep="\n")
assert report.ok

c = tukey.penalty.c
(slope,) = torch.autograd.grad(tukey(x)[0, 0], c)
step = 1e-4
with torch.no_grad():
    high, low = (RobustPooling(Tukey(c=float(c) + h))(x)[0, 0] for h in (step, -step))
print(f"du₁/dc = {slope.item():.6f}, by differences {(high - low).item() / (2 * step):.6f}")
torch.testing.assert_close(slope, (high - low) / (2 * step), atol=1e-5, rtol=1e-4)

print(RobustPooling(lambda s: s.log1p())(x).detach()[0], "from a plain function of s")

# %% [markdown]
# ## 4. Digits with outliers
#
# Images become clouds: 96 points drawn where the ink is, in $[-1, 1]^2$. (They are the 8×8 digits of scikit-learn, or those of a folder that the
# variable `DECLARATIVE_IMAGES` names, MNIST for one.) An outlier is a point thrown anywhere into $[-2, 2]^2$. The classifier is a small PointNet: a
# network on each point, a pooling of the feature vectors, a network on the result. **It is trained on clean clouds and tested with outliers it
# has never seen.**
#
# *Three seeds at once.* Layers with weights (seeds, in, out) train three networks side by side, each with its own initial weights and its own
# batches, the same for every pooling. The robust pooling takes the clouds of all seeds as one batch: it solves each on its own anyway.
#
# *Two details make training short.* The weights of the first layer are three times as large as usual, so that kinks of the ReLUs lie all over the
# cloud. And the pooled vectors are batch-normalised: the pooled points of different digits are close together, and the last network would
# have to learn first to tell them apart.
#
# *Which $\alpha$?* It is in units of the features. With these initial weights the features of a cloud are about half a unit from their mean, so
# $\alpha = 0.5$ for Welsch doubts the outer ones from the first step on. ($\alpha = 0.3$ for pseudo-Huber, which is convex and has nothing to fear from a small
# one.) A much larger $\alpha$ begins as a mean, and learns to be robust only if training happens to spread the features; a much smaller one starts with
# many minima.
#
# `"mean, normalised"` is a baseline that is often forgotten: a `LayerNorm` without weights puts every feature vector on a sphere, so no
# point can be far away in the first place.

# %%
torch.set_default_dtype(torch.float32)
CHANNELS, WIDTH, BATCH, POINTS = 32, 32, 64, 96
SHARES = (0.0, 0.1, 0.2, 0.4, 0.6)
SEEDS = 2 if QUICK else 3

images, labels = load_images()
h, w = images.shape[1:]
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
train, test = order[:1347], order[1347:1797]


def sample_clouds(index: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """(b, 96, 2) points of these images, a share of them outliers."""
    pixels = torch.multinomial(images[index].flatten(1), POINTS, replacement=True, generator=generator)
    jitter = 0.5 * torch.rand(len(index), POINTS, 2, generator=generator) - 0.25
    points = (2 * (torch.stack([pixels // w, pixels % w], 2) + jitter) - torch.tensor([h - 1, w - 1])) / torch.tensor([h, w])
    outliers = 4 * torch.rand(points.shape, generator=generator) - 2
    return torch.where(torch.rand(points.shape[:2], generator=generator).unsqueeze(2) < share, outliers, points)


class Linear(nn.Module):
    """One linear map for each seed: (seeds, b, inputs) to (seeds, b, outputs)."""

    def __init__(self, inputs: int, outputs: int, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(gain * (2 * torch.rand(SEEDS, inputs, outputs) - 1) / inputs**0.5)
        self.bias = nn.Parameter(gain * (2 * torch.rand(SEEDS, 1, outputs) - 1) / inputs**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(2)


class Max(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.amax(2)


class Classifiers(nn.Module):
    """One classifier for each seed."""

    def __init__(self, pooling: nn.Module, normalised: bool) -> None:
        super().__init__()
        self.points = nn.Sequential(Linear(2, WIDTH, 3.0), nn.ReLU(), Linear(WIDTH, WIDTH), nn.ReLU(), Linear(WIDTH, CHANNELS))
        self.normal = nn.LayerNorm(CHANNELS, elementwise_affine=False) if normalised else nn.Identity()
        self.pooling = pooling
        self.batch_normal = nn.BatchNorm1d(SEEDS * CHANNELS)
        self.cloud = nn.Sequential(Linear(CHANNELS, WIDTH), nn.ReLU(), Linear(WIDTH, 10))

    def forward(self, clouds: Tensor) -> Tensor:
        """(seeds, b, 96, 2) to (seeds, b, 10)"""
        count = clouds.shape[1]
        features = self.normal(self.points(clouds.flatten(1, 2)))
        pooled = self.pooling(features.reshape(SEEDS * count, POINTS, CHANNELS).mT)  # (seeds b, C)
        side_by_side = pooled.reshape(SEEDS, count, CHANNELS).transpose(0, 1).flatten(1)
        normal = self.batch_normal(side_by_side).reshape(count, SEEDS, CHANNELS).transpose(0, 1)
        return self.cloud(normal)


POOLINGS = {
    "mean": Mean,
    "mean, normalised": Mean,
    "max": Max,
    "pseudo-Huber": lambda: RobustPooling(PseudoHuber(0.3), tolerance=1e-2),  # accurate to two digits is accurate enough here
    "Welsch": lambda: RobustPooling(Welsch(0.5), tolerance=1e-2),
}


def trained(name: str, share: float, steps: int) -> Classifiers:
    torch.manual_seed(0)
    models = Classifiers(POOLINGS[name](), "normalised" in name)
    generators = [torch.Generator().manual_seed(seed) for seed in range(SEEDS)]
    adam = torch.optim.Adam(models.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 1e-2, total_steps=steps)
    for _ in range(steps):
        batches = [train[torch.randint(len(train), (BATCH,), generator=generator)] for generator in generators]
        clouds = torch.stack([sample_clouds(batch, share, generator) for batch, generator in zip(batches, generators, strict=True)])
        scores = models(clouds)
        loss = SEEDS * nn.functional.cross_entropy(scores.flatten(0, 1), labels[torch.cat(batches)])  # the sum of their losses
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    return models.eval()


@torch.no_grad()
def accuracies(models: Classifiers, share: float) -> Tensor:
    """(seeds,)"""
    clouds = torch.stack([sample_clouds(test, share, torch.Generator().manual_seed(100 + seed)) for seed in range(SEEDS)])
    return (models(clouds).argmax(2) == labels[test]).double().mean(1)


def compared(names: tuple[str, ...], share: float, steps: int) -> dict[str, Tensor]:
    """(seeds, shares) the accuracies of each pooling; printed, with the time that it took."""
    table = {}
    print(f"{'outliers in testing':18}" + "".join(f"{share:>19.1f}" for share in SHARES))
    for name in names:
        began = time.perf_counter()
        models = trained(name, share, steps)
        table[name] = torch.stack([accuracies(models, tested) for tested in SHARES], 1)
        cells = [f"{column.mean():.3f} ({column.min():.2f}–{column.max():.2f})" for column in table[name].T]
        print(f"{name:18}" + "".join(f"{cell:>19}" for cell in cells) + f"{time.perf_counter() - began:6.0f} s")
    return table


with warnings.catch_warnings():
    warnings.simplefilter("ignore", SolverWarning)
    print(f"mean over {SEEDS} seeds (smallest–largest); trained on clean clouds")
    results = compared(tuple(POOLINGS), 0.0, 4 if QUICK else 400)
if not QUICK:  # under outliers: forgetting beats bounding beats nothing
    few, many = ({name: table[:, share].mean() for name, table in results.items()} for share in (1, 3))
    assert few["Welsch"] > few["mean"] > few["max"]
    assert many["Welsch"] > many["pseudo-Huber"] > many["mean"]

# %%
LINES = {
    "mean": {"color": "#000000", "marker": "o"},
    "mean, normalised": {"color": "#000000", "marker": "o", "linestyle": ":", "markerfacecolor": "white"},
    "max": {"color": "#009E73", "marker": "s"},
    "pseudo-Huber": {"color": "#56B4E9", "marker": "^"},
    "Welsch": {"color": "#D55E00", "marker": "D"},
}
figure, axis = plt.subplots(figsize=(8.5, 3.8))
for name, table in results.items():
    axis.plot(SHARES, table.mean(0), label=name, **LINES[name])
    axis.fill_between(SHARES, table.amin(0), table.amax(0), color=LINES[name]["color"], alpha=0.15, linewidth=0)
axis.axhline(0.1, color="gray", linestyle="--", linewidth=1, label="chance")
axis.set(title="trained on clean clouds (bands: smallest to largest of the seeds)", xlabel="share of outliers in testing", ylabel="accuracy", ylim=(0, 1))
axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
figure.tight_layout()

# %% [markdown]
# *What it shows.* On clean clouds the maximum is best. It is also the first to break: with a tenth of outliers there is nothing left of it.
# The mean goes the same way, more slowly: outside of the digit the features of a ReLU network grow with the distance, so an outlier is far away in
# feature space too. Welsch loses least, for it can leave points out altogether: with four outliers among ten points it is right in about
# two cases of three, where the mean is right in one of five. Pseudo-Huber lies between: each outlier pulls with bounded force, but many of
# them pull a lot. On clean clouds neither costs much against the mean.
#
# *What it also shows.* The mean of normalised features costs one line and is far ahead of the plain mean. Bounding the features bounds what
# an outlier can do. Try that first. And the robust poolings take a few times as long, for every forward pass is a small optimisation.
#
# *What to be careful with.* Steps, rates and $\alpha$ were chosen with these test digits in sight, for all rows alike. Read the order and the gaps, not
# the last digit.
#
# **If outliers are there in training**, the network can learn by itself to map them to where they do no harm. Trained with 30 % outliers:

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore", SolverWarning)
    print(f"mean over {SEEDS} seeds (smallest–largest); trained on clouds with 30 % outliers")
    compared(("mean, normalised", "max", "Welsch"), 0.3, 4 if QUICK else 300)
torch.set_default_dtype(torch.float64)

# %% [markdown]
# The distances between them have shrunk: the network has learned what an outlier looks like. The maximum, which was lost before, keeps most of its
# accuracy, and it is the one that learns slowly here: with eight times as many steps, more than a notebook has time for, it comes to about
# .84 without outliers and .58 at a share of .6. The mean of normalised features is level with Welsch while outliers are few, and behind when they are
# the majority. Robust pooling gains most from outliers that training has *not* seen.
#
# ## 5. Learning the scale
#
# The layer is differentiable in $\alpha$ as well. Let sets of 32 points be drawn around an unknown location $t$ with standard deviation 0.5, and let a
# quarter of the points come from a wide blob far away, *on one side*. The pooled point shall be close to $t$: the loss is $\|u - t\|^2$, and the only
# thing to be learned is $\alpha$.
#
# $\alpha$ must stay positive, so we learn its logarithm and hand $e^{\log\alpha}$ to the layer in the call. (A penalty may also hold
# `alpha=nn.Parameter(...)` itself, as Tukey's did above.)

# %%
sets, learning_steps = (16, 5) if QUICK else (96, 110)
contaminations = (0.0, 0.25)


def contaminated(share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sets (b, 2, 32) and their locations (b, 2)."""
    t = torch.randn(sets, 2, generator=generator)
    near = t.unsqueeze(2) + 0.5 * torch.randn(sets, 2, 32, generator=generator)
    far = 5 + 3 * torch.randn(sets, 2, 32, generator=generator)
    return torch.where(torch.arange(32) < 32 * share, far, near), t


def learn(penalty: Penalty, free: float, to_alpha, share: float) -> tuple[list[float], float]:
    """α, step by step, and the mean loss of the last quarter; `free` is what is learned, without bounds."""
    layer, generator = RobustPooling(penalty, tolerance=1e-6), torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.tensor(free))
    adam, path, losses = torch.optim.Adam([parameter], lr=0.07), [], []
    for _ in range(learning_steps):
        points, t = contaminated(share, generator)
        alpha = to_alpha(parameter)
        loss = (layer(points, alpha=alpha) - t).square().sum(1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        path.append(alpha.item())
        losses.append(loss.item())
    return path, sum(losses[-learning_steps // 4 :]) / len(losses[-learning_steps // 4 :])


def shape(free: Tensor) -> Tensor:
    """Barron's α < 2."""
    return 2 - free.exp()


cases = {  # what to learn: the penalty, from which starts, and how α is written in a number without bounds
    "Welsch: scale α": (Welsch(), (0.5, 1.0, 4.0), torch.exp, torch.log),
    "pseudo-Huber: scale α": (PseudoHuber(), (0.5, 1.0, 4.0), torch.exp, torch.log),
    "Barron: shape α, σ = 0.5": (Barron(1.0, 0.5), (1.9, 0.0), shape, lambda alpha: (2 - alpha).log()),
}
with warnings.catch_warnings():
    warnings.simplefilter("ignore", SolverWarning)
    learned = {}
    print(f"{'':26}{'outliers':>9}{'start':>7}{'end':>8}{'loss':>9}")
    for case, (penalty, starts, to_alpha, to_free) in cases.items():
        for share in contaminations:
            for start in starts:
                path, loss = learn(penalty, to_free(torch.tensor(start)).item(), to_alpha, share)
                learned[case, share, start] = path
                print(f"{case:26}{share:9.2f}{start:7.1f}{path[-1]:8.2f}{loss:9.4f}")

# %%
figure, axes = plt.subplots(1, 3, figsize=(13, 3.8))
for axis, case in zip(axes, cases, strict=True):
    for (of, share, start), path in learned.items():
        if of == case:
            color, line = ("#0072B2", "-") if share == 0 else ("#D55E00", "--")
            label = ("clean" if share == 0 else "25 % outliers") if start == cases[case][1][0] else None
            axis.plot(path, color=color, linestyle=line, label=label)
    axis.set(title=case, xlabel="step", ylabel="α")
    if "scale" in case:
        axis.set_yscale("log")
axes[0].legend()
figure.tight_layout()

# %% [markdown]
# * **Clean data: $\alpha$ grows** from wherever it starts, and more and more slowly. The best estimate for Gaussian noise is the mean, which is
#   $\alpha = \infty$. There is no finite value to be found, and the loss is hardly better for the last factor of two.
# * **Outliers: Welsch's $\alpha$ comes together** at a few times the inliers' standard deviation, from all starts. Larger, and it would lose
#   robustness; smaller, and it would throw away good points.
# * **Pseudo-Huber's goes to zero**, towards the spatial median, $\varphi = z$, the most robust of its family. Its loss stays far above Welsch's: no
#   scale can make it forget points that all lie on one side. *That a parameter drifts to the end of its range tells you that the family is the wrong one.*
# * **Barron's shape** at a fixed scale tells the same story in one family: towards 2 (the mean) for clean data, to the non-convex side of 1 for
#   contaminated ones. It is noisy there: the loss hardly changes with the shape, and its minima jump.
#
# ## 6. Limits: more than one minimum
#
# Penalties that are not convex can leave out a group of points. So they can also leave out the wrong one. Below is the objective for
# three groups of numbers on a line; the middle one is the largest.

# %%
torch.manual_seed(9)
line = torch.cat([0.25 * torch.randn(9) - 3, 0.25 * torch.randn(11), 0.25 * torch.randn(5) + 2]).reshape(1, 1, -1)
grid = torch.linspace(-4.5, 3.5, 801)
scales = (3.0, 0.5, 0.05)
figure, axes = plt.subplots(1, 3, figsize=(13, 3.6))
for axis, alpha in zip(axes, scales, strict=True):
    penalty = Welsch(alpha)
    axis.plot(grid, penalty.phi((grid.unsqueeze(1) - line[0]) ** 2, alpha).sum(1), color="#0072B2", linewidth=1.2)
    plain, many = RobustPooling(penalty).solution(line), RobustPooling(penalty, restarts=8).solution(line)
    axis.scatter(plain.y[0], plain.workspace.objective, s=90, facecolor="none", edgecolor="#000000", linewidth=1.8, zorder=3, label="layer")
    axis.scatter(many.y[0], many.workspace.objective, s=50, marker="x", color="#D55E00", zorder=3, label="restarts=8")
    axis.plot(line[0, 0], torch.full_like(line[0, 0], axis.get_ylim()[0]), "|", color="#666666", markersize=10, clip_on=False)
    axis.set(title=f"Welsch, α = {alpha:g}", xlabel="u", ylabel="Σφ(|u − x|)")
axes[0].legend()
figure.tight_layout()

# %% [markdown]
# A large $\alpha$ sees one group, a good one three, and a small one each number. On the right, restarts find a lower minimum, and in the
# smaller group. The layer starts from the mean, the spatial median and graduated
# non-convexity (a large $\alpha$ that shrinks), and `restarts=8` adds the eight most promising points of the data. How often does that help? 200
# sets of 40 points in the plane, 12 of them around a location with standard deviation 0.3, the others anywhere in a square of side 10:

# %%
torch.manual_seed(0)
count = 20 if QUICK else 200
location = 4 * torch.rand(count, 2) - 2
scattered = torch.cat([location.unsqueeze(2) + 0.3 * torch.randn(count, 2, 12), 10 * torch.rand(count, 2, 28) - 5], 2)

print(f"{'':8}{'median distance to the location':>36}{'restarts=8':>26}")
print(f"{'α':>8}{'without':>24}{'restarts=8':>12}{'finds a lower minimum':>26}{'finds a tie':>13}")
for alpha in (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01):
    once, many = (RobustPooling(Welsch(alpha), restarts=k).solution(scattered) for k in (0, 8))
    errors = [(s.y - location).norm(dim=1).median().item() for s in (once, many)]
    lower = (many.workspace.objective < once.workspace.objective - 1e-6).double().mean().item()
    print(f"{alpha:8.2f}{errors[0]:24.3f}{errors[1]:12.3f}{lower:26.1%}{many.workspace.tied.double().mean().item():13.1%}")
    assert (many.workspace.objective <= once.workspace.objective + 1e-9).all()

# %% [markdown]
# As long as $\alpha$ is near the inliers' spread or above, the usual starts find the same minimum and restarts change nothing. Below it there are many
# minima, and restarts find lower ones; but *the lowest minimum of a bad objective is no better estimate*. The second column of distances is
# the larger one there: at such a scale the best fit is any few points that happen to lie close together. Choose $\alpha$ well before you ask for restarts.
#
# **Ties.** Where two minima are equally low, the pooled point jumps when the data moves a little, and no derivative tells. The layer takes
# one and says `tied`, if it has found both; only restarts look widely enough.
#
# **Nothing near.** With $\alpha$ far below all distances the objective is flat where one starts: every weight is zero, and so is the gradient. That
# is `Status.NO_INLIERS`, with a warning, so that a training that stands still has an explanation. In a network it means that $\alpha$ is
# too small for the features.

# %%
two = torch.tensor([[[-1.0, 1.0]]], requires_grad=True)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", SolverWarning)
    for alpha, restarts in ((3.0, 0), (0.5, 8), (0.02, 0), (0.02, 8)):
        found = RobustPooling(Welsch(alpha), restarts=restarts).solution(two)
        (slope,) = torch.autograd.grad(found.y.sum(), two)
        status = Status(int(found.status)).name
        tied, slopes = str(found.workspace.tied.item()), slope.flatten().numpy().round(3)
        print(f"α = {alpha:4}, restarts={restarts}: u = {found.y.item():6.3f}, {status:10} tied={tied:6} du/dx = {slopes}")
print(caught[0].message)

# %% [markdown]
# **In short.** Penalties that never forget (pseudo-Huber, Huber) have one minimum, and are safe and mild. Those that do forget (Welsch,
# Geman–McClure) resist many more outliers, and ask for an $\alpha$ that fits the spread of what is to be pooled. Normalise features first, and
# train with outliers where you know what they look like.
#
# ## To try
#
# * Pool each channel on its own: `scalar=True` in section 4. What becomes of Welsch, and of the time?
# * Pass `weights=` to the layer, computed by a small network from each point. Does it learn to leave outliers out?
# * Start section 4 with Welsch and $\alpha = 3$. How far do the features of a cloud spread in training, and how robust is the result?
# * Give section 4 a Welsch layer of *normalised* features. Which $\alpha$ does it need now?
# * Replace the penalty by a network: `RobustPooling(nn.Sequential(...))` of $s$, trained in section 5. Which $\kappa_1$ does it find?
