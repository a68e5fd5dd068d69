# %% [markdown]
# # Composition: nodes in a row, nodes in a node, learned energies, several processes
#
# A node is a module: its inputs are tensors, its output is a tensor, and gradients pass through. So nodes can be put together like other layers. How far does
# that carry? In this notebook you will
#
# 1. put three optimisation problems in a row, check the gradient through all of them, and train a parameter of the first by an error behind the last;
# 2. put one node *inside* the objective of another, to choose a penalty by validation;
# 3. learn an objective: an energy of 15 parameters, beside networks of 15 and of 4000;
# 4. let the energy be non-convex, see when its minimiser may be differentiated, and look for better minima;
# 5. save, load and convert a trained node, and add a constraint to it after training;
# 6. train with `DistributedDataParallel` in two processes, with a sample that fails in one of them.

# %%
import io
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import declarative
from declarative import DeclarativeNode, certify
from declarative.layers import LeastSquares, PseudoHuber, RobustPooling, SimplexProjection
from declarative.solvers import MultiStart, Newton
from declarative.structure import Banded

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # problems this small gain nothing from a second thread

QUICK = os.environ.get("DECLARATIVE_QUICK") == "1"  # small sizes, for tests

plt.rcParams.update({"figure.dpi": 72, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## 1. Three problems in a row
#
# A spectrum is a mixture of three known ones, with shares $w \ge 0$ that sum to one. It is recorded nine times, with noise, and with spikes in a fifth of
# the readings. To find the shares we solve three problems, each with the solution of the one before as its input:
#
# $$ u = \operatorname*{argmin}_u \sum_i \phi_\alpha(u - x_i), \qquad
# v = \operatorname*{argmin}_v \|Tv - u\|^2 + \lambda\|v\|^2, \qquad
# w = \operatorname*{argmin}_{w \ge 0,\, \mathbf 1^\top w = 1} \tfrac12\|w - v\|^2 , $$
#
# with the pseudo-Huber penalty $\phi_\alpha$ in each channel. In torch that is `nn.Sequential` in spirit:

# %%
CHANNELS = 40
axis_of_spectrum = torch.linspace(0, 1, CHANNELS)
templates = torch.exp(-((axis_of_spectrum.unsqueeze(1) - torch.tensor([0.35, 0.5, 0.65])) ** 2) / 0.02)


def spectra(count: int) -> tuple[Tensor, Tensor]:
    """Recordings (count, channels, 9) and the shares (count, 3)."""
    shares = torch.rand(count, 3).pow(3)
    shares = shares / shares.sum(1, keepdim=True)
    recordings = (shares @ templates.T).unsqueeze(2) + 0.1 * torch.randn(count, CHANNELS, 9)
    return recordings + 3 * torch.rand_like(recordings) * (torch.rand_like(recordings) < 0.2), shares


class Unmix(nn.Module):
    def __init__(self, alpha: float):
        super().__init__()
        self.log_alpha = nn.Parameter(torch.tensor(alpha).log())
        self.log_ridge = nn.Parameter(torch.tensor(-5.0))
        self.fit, self.project = LeastSquares(), SimplexProjection()

    def forward(self, recordings):
        pooled = RobustPooling(PseudoHuber(self.log_alpha.exp()), scalar=True)(recordings)
        raw = self.fit(templates, pooled, ridge=self.log_ridge.exp())
        return self.project(raw)


def finite_difference(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, float]:
    """A directional derivative of f, a number, by autograd and by central differences."""
    leaf, direction = x.detach().clone().requires_grad_(), torch.randn_like(x)
    slope = (torch.autograd.grad(f(leaf), leaf)[0] * direction).sum()
    with torch.no_grad():
        step = 1e-5
        numeric = (f(x + step * direction) - f(x - step * direction)) / (2 * step)
    return slope.item(), numeric.item()


chain = Unmix(1.0)
recordings, shares = spectra(6)


def error_with(name: str, value: Tensor) -> Tensor:
    """The squared error as a function of one parameter."""
    return (torch.func.functional_call(chain, {name: value}, (recordings,)) - shares).square().sum()


cases = {
    "recordings": (lambda x: (chain(x) - shares).square().sum(), recordings),
    "α of the pooling": (lambda value: error_with("log_alpha", value), chain.log_alpha),
    "λ of the fit": (lambda value: error_with("log_ridge", value), chain.log_ridge),
}
print(f"{'derivative in':18} {'autograd':>12} {'differences':>12}")
for name, (f, at) in cases.items():
    slope, numeric = finite_difference(f, at)
    print(f"{name:18} {slope:12.8f} {numeric:12.8f}")
    assert abs(slope - numeric) < 1e-6 * (1 + abs(numeric))

# %% [markdown]
# Three solvers, one chain rule. The first problem is solved by reweighting, the second by a QR factorisation, the third by sorting; nothing of that is
# differentiated, only the conditions that each solution fulfils. What does each of the three contribute? And is a chain the best one can do? The
# last two problems can be stated as *one*, least squares over the simplex, in a few lines:


# %%
class FitOnSimplex(DeclarativeNode):
    def objective(self, spectrum, w):
        return 0.5 * (self.templates @ w - spectrum).square().sum()

    def equality_constraints(self, spectrum, w):
        return w.sum() - 1

    def inequality_constraints(self, spectrum, w):
        return -w

    def initial_guess(self, spectrum):
        return torch.full((len(spectrum), 3), 1 / 3)

    def __init__(self):
        super().__init__()
        self.register_buffer("templates", templates)


recordings, shares = spectra(50 if QUICK else 300)
together = FitOnSimplex()
robust = RobustPooling(PseudoHuber(0.1), scalar=True)
fit, project = LeastSquares(ridge=1e-3), SimplexProjection()
ways = {
    "mean → fit": lambda x: fit(templates, x.mean(2)),
    "mean → fit → simplex": lambda x: project(fit(templates, x.mean(2))),
    "robust → fit": lambda x: fit(templates, robust(x)),
    "robust → fit → simplex": lambda x: project(fit(templates, robust(x))),
    "robust → fit on the simplex": lambda x: together(robust(x)),
}
found = {name: (way(recordings) - shares).abs().mean().item() for name, way in ways.items()}
print("mean error of a share")
for name, error in found.items():
    print(f"  {name:28} {error:.4f}")
assert found["robust → fit → simplex"] < found["robust → fit"] < found["mean → fit"]

# %% [markdown]
# Most of the gain is due to the pooling, and the constraint helps. A chain of optima is not the optimum of the whole, though: projecting after the fit
# measures distance by $\|w - v\|$, fitting on the simplex by $\|T(w - v)\|$, which is what the noise is measured in. Where they differ, the joint problem is
# the right statement. Composition is for steps that *are* separate.
#
# Now we train $\alpha$ and $\lambda$ of the chain by the error of the shares, behind all three problems, from a start that is far off ($\alpha = 3$: nearly a
# mean).

# %%
chain, history = Unmix(3.0), []
adam = torch.optim.Adam(chain.parameters(), lr=0.2)
for _ in range(3 if QUICK else 40):
    x, truth = spectra(32)
    loss = (chain(x) - truth).square().mean()
    adam.zero_grad()
    loss.backward()
    adam.step()
    history.append(loss.item())
with torch.no_grad():
    trained_error = (chain(recordings) - shares).abs().mean().item()
print(f"α: 3 -> {chain.log_alpha.exp().item():.3f}, λ: {chain.log_ridge.exp().item():.1e}, mean error of a share {trained_error:.4f}")
assert QUICK or chain.log_alpha.exp() < 1

# %% [markdown]
# ## 2. A node inside a node
#
# How strong should a ridge penalty be? The usual answer is a grid and a validation set. As a statement it is an optimisation problem whose objective
# contains the solution of another (*bilevel* optimisation):
#
# $$ \rho^\star = \operatorname*{argmin}_\rho \; \tfrac1n\|C\,w(\rho) - d\|^2 + \tfrac1{100}\rho^2, \qquad
# w(\rho) = \operatorname*{argmin}_w \|Aw - b\|^2 + e^\rho\|w\|^2 . $$
#
# The second term keeps $\rho$ finite where the data would have none or an infinite penalty. Written down as it stands:


# %%
class Ridge(DeclarativeNode):
    def objective(self, A, b, rho, w):
        return (A @ w - b).square().sum() + rho.exp().sum() * w.square().sum()

    def initial_guess(self, A, b, rho):
        return torch.zeros_like(A[:, 0])


class ByValidation(DeclarativeNode):
    def __init__(self):
        super().__init__()
        self.ridge = Ridge()

    def objective(self, A, b, C, d, rho):
        w = self.ridge(A, b, rho, in_dims=None)  # one instance
        return (C @ w - d).square().mean() + 0.01 * rho.square().sum()

    def initial_guess(self, A, b, C, d):
        return torch.zeros(len(A), 1)


weights = torch.randn(5, 8, 1)
A, C = torch.randn(2, 5, 12, 8)
b, d = ((matrix @ weights).squeeze(2) + 2 * torch.randn(5, 12) for matrix in (A, C))
choose = ByValidation()
chosen = choose(A, b, C, d)
grid = torch.linspace(-2, 5, 15 if QUICK else 71)
with torch.no_grad():
    over_grid = torch.stack([torch.stack([choose.objective(*one, rho.reshape(1)) for rho in grid]) for one in zip(A, b, C, d, strict=True)])
print("ρ by Newton's method", chosen.squeeze(1).numpy().round(3))
print("ρ of a grid         ", grid[over_grid.argmin(1)].numpy().round(3))
slope, numeric = finite_difference(lambda x: choose(A, x, C, d).sum(), b)
print(f"how ρ moves with the training data: {slope:.8f} by autograd, {numeric:.8f} by differences")
assert abs(slope - numeric) < 1e-5 * (1 + abs(numeric))

# %% [markdown]
# The outer Newton step needs second derivatives of the inner solution, and the outer backward pass third ones of its objective: derivatives of every order
# are what makes nesting work. It finds a *local* minimum in $\rho$, as Newton's method does; compare the two lines. Mind the cost: each outer evaluation
# solves the inner problem.
#
# ## 3. A learned energy
#
# Until now we knew the objective. Now it is learned. Signals with a few jumps are to be found from noisy ones, $x$, by
#
# $$ y(x) = \operatorname*{argmin}_y \; \tfrac12\|y - x\|^2 + \sum_{k=1}^{3} e^{a_k} \sum_i \phi\!\left(\frac{(f_k * y)_i}{e^{s_k}}\right), $$
#
# with three filters $f_k$ of width three, their weights $a_k$ and scales $s_k$: 15 parameters. With $\phi(z) = \sqrt{1 + z^2}$ the energy is convex, whatever
# the filters are, and strongly so by its first term: there is one minimiser, and it has a derivative everywhere. $H$ has two bands on either side.


# %%
class Energy(DeclarativeNode):
    hessian_structure = Banded(2)

    def __init__(self, convex: bool = True, **options):
        super().__init__(**options)
        self.convex = convex
        self.filters = nn.Parameter(0.5 * torch.randn(3, 3))
        self.log_weights, self.log_scales = nn.Parameter(torch.full((3, 1), -2.0)), nn.Parameter(torch.full((3, 1), -2.0))

    def objective(self, x, y):
        z = (self.filters @ torch.stack([y[:-2], y[1:-1], y[2:]])) / self.log_scales.exp()
        penalty = (1 + z.square()).sqrt() if self.convex else (1 + z.square()).log()
        return 0.5 * (y - x).square().sum() + (self.log_weights.exp() * penalty).sum()

    def initial_guess(self, x):
        return x


class Convolutions(nn.Module):
    """x + a network of convolutions, to compare with."""

    def __init__(self, hidden: int, layers: int, width: int):
        super().__init__()
        channels = [1, *[hidden] * (layers - 1), 1]
        parts = [(nn.Conv1d(a, b, width, padding="same"), nn.ReLU()) for a, b in itertools.pairwise(channels)]
        self.net = nn.Sequential(*[module for pair in parts for module in pair][:-1])

    def forward(self, x):
        return x + self.net(x.unsqueeze(1)).squeeze(1)


LENGTH = 40


def signals(count: int, generator: torch.Generator, length: int = LENGTH) -> tuple[Tensor, Tensor]:
    """Clean and noisy ones."""
    places, heights = torch.rand(count, 4, 1, generator=generator), torch.randn(count, 4, 1, generator=generator)
    clean = (heights * (torch.linspace(0, 1, length) > places)).sum(1)
    return clean, clean + 0.3 * torch.randn(clean.shape, generator=generator)


def train(build: Callable[[], nn.Module], steps: int, rate: float, batch: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    generator, model = torch.Generator().manual_seed(seed), build()
    adam = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, rate, total_steps=steps)
    for _ in range(steps):
        clean, noisy = signals(batch, generator)
        loss = (model(noisy) - clean).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    return model


candidates = {  # how to build it, steps, rate, signals in a step
    "2 convolutions": (lambda: Convolutions(2, 2, 3), 600, 2e-2, 32),
    "5 convolutions": (lambda: Convolutions(16, 5, 5), 120, 2e-2, 16),
    "5, more signals": (lambda: Convolutions(16, 5, 5), 400, 1e-2, 32),
    "convex energy": (lambda: Energy(convex=True), 120, 1e-1, 16),
    "non-convex energy": (lambda: Energy(convex=False), 120, 1e-1, 16),
}
seeds = range(2 if QUICK else 3)
clean, noisy = signals(30 if QUICK else 300, torch.Generator().manual_seed(99))
models, errors = {}, {}
noise = (noisy - clean).square().mean().item()
print(f"mean squared error of {len(clean)} unseen signals, mean ± standard deviation over {len(seeds)} seeds; of the noisy ones {noise:.4f}")
for name, (build, steps, rate, batch) in candidates.items():
    models[name] = [train(build, 4 if QUICK else steps, rate, batch, seed) for seed in seeds]
    with torch.no_grad():
        errors[name] = torch.stack([(model(noisy) - clean).square().mean() for model in models[name]])
    parameters = sum(p.numel() for p in models[name][0].parameters())
    seen = steps * batch
    print(f"  {name:18} {parameters:5} parameters, {seen:6} signals   {errors[name].mean():.4f} ± {errors[name].std():.4f}")
assert QUICK or errors["convex energy"].mean() < errors["2 convolutions"].mean()
assert QUICK or errors["non-convex energy"].mean() < errors["convex energy"].mean()

# %%
STYLES = {
    "noisy": ("#999999", "."),
    "clean": ("#000000", "--"),
    "2 convolutions": ("#56B4E9", "-"),
    "convex energy": ("#0072B2", "-"),
    "non-convex energy": ("#D55E00", "-"),
}
with torch.no_grad():
    drawn = {"noisy": noisy[3], "clean": clean[3]} | {name: models[name][0](noisy[3:4])[0] for name in STYLES if name in models}
figure, axes = plt.subplots(1, 2, figsize=(10, 3.2), sharey=True)
for axis, last in zip(axes, ("2 convolutions", "non-convex energy"), strict=True):
    for name in ("noisy", "clean", last) if last == "2 convolutions" else ("noisy", "clean", "convex energy", last):
        color, style = STYLES[name]
        axis.plot(drawn[name], style, color=color, label=name)
    axis.set(xlabel="position in the signal", title=f"{sum(p.numel() for p in models[last][0].parameters())} parameters")
    axis.legend(fontsize=8, loc="lower left")
axes[0].set_ylabel("value")
figure.tight_layout()

# %% [markdown]
# With 15 parameters both energies are ahead of the network of that size: its output at a place depends on five readings, a minimiser on all of them, however
# short the filters are. Solving is what computes. Five layers of convolutions have 270 times the parameters; trained on the same signals they come out
# between the two energies, with more signals they beat both, and they are many times faster to train and to run. So a learned energy is a choice where data
# are few, where parameters are to be read (the filters are close to differences: the energy has found that jumps are rare), or where constraints are to hold.
# It is no shortcut to the best fit.
#
# ## 4. When the energy is not convex
#
# With $\phi(z) = \log(1 + z^2)$ a jump costs hardly more when it is higher. That blurs edges less, and the errors above say so. The price: several minima,
# and points without a derivative. One dimension shows both. For $E(x, y) = \tfrac14(y^2 - 1)^2 - xy$ the branch $y < 0$ ends where $E'' = 3y^2 - 1$ reaches
# zero, at $x = 2/\sqrt{27} \approx 0.385$; on the way there the derivative $dy/dx = 1/(3y^2 - 1)$ grows without bound.


# %%
class Well(DeclarativeNode):
    def objective(self, x, y):
        return 0.25 * ((y**2 - 1) ** 2).sum() - (x * y).sum()

    def initial_guess(self, x):
        return torch.full_like(x, -1.0)


x = torch.linspace(-1, 1, 61).unsqueeze(1).requires_grad_()
followed, best = Well()(x), Well(solver=MultiStart(Newton(), starts=8))(x)
(steep,) = torch.autograd.grad(followed.sum(), x)
figure, axes = plt.subplots(1, 2, figsize=(10, 3))
axes[0].plot(x.detach(), followed.detach(), "o", color="#0072B2", markersize=5, label="Newton from y = −1")
axes[0].plot(x.detach(), best.detach(), ".", color="#D55E00", markersize=5, label="MultiStart")
axes[0].set(xlabel="x", ylabel="y", title="which minimum")
axes[0].legend()
axes[1].plot(x.detach(), steep, "o", color="#0072B2", markersize=4)
axes[1].axvline(2 / 27**0.5, color="#000000", linestyle=":")
axes[1].set(xlabel="x", ylabel="dy/dx", title="derivative along the blue branch (dotted: the fold)")
figure.tight_layout()
assert (best[x > 0.05] > 0).all()  # the global minimum has the sign of x

middle = torch.zeros(2, 1)
print(certify(Well(), middle, y=torch.tensor([[-1.0], [0.0]])))
print("\nbefore the fold: distance, least curvature, derivative")
for distance in (1e-1, 1e-3, 1e-5):
    near = torch.tensor([[2 / 27**0.5 - distance]], requires_grad=True)
    (slope,) = torch.autograd.grad(Well()(near).sum(), near)
    print(f"  {distance:.0e}  {certify(Well(), near).second_order_margin.item():8.4f}  {slope.item():8.1f}")

# %% [markdown]
# Of two stationary points for $x = 0$ `certify` says which is a regular minimiser and which is none, and its `second_order_margin` is the curvature that a
# derivative divides by: on the way to the fold it goes to zero as the root of the distance. The trained energies, on unseen signals, as they are and with
# their weights times six:

# %%
unseen = noisy[:20] if QUICK else noisy[:100]
cases = [("convex", models["convex energy"][0], 1.0)] + [("non-convex", model, factor) for factor in (1.0, 6.0) for model in models["non-convex energy"]]
for name, model, factor in cases:
    energy = Energy(convex=name == "convex")
    searching = Energy(convex=name == "convex", solver=MultiStart(Newton(), starts=6, spread=0.5))
    for twin in (energy, searching):
        twin.load_state_dict(model.state_dict())
        with torch.no_grad():
            twin.log_weights.add_(torch.tensor(factor).log())
    certificate = certify(energy, unseen)
    with torch.no_grad():
        plain, searched = energy(unseen), searching(unseen)
        gain = torch.vmap(energy.objective)(unseen, plain) - torch.vmap(energy.objective)(unseen, searched)
    change = [(y - clean[: len(unseen)]).square().mean().item() for y in (plain, searched)]
    print(
        f"{name:10} weights × {factor:.0f}: regular {int(certificate.regular.sum())} of {len(unseen)}, least curvature"
        f" {certificate.second_order_margin.min():.3f}; lower minima found for {int((gain > 1e-8).sum())}, error {change[0]:.4f} -> {change[1]:.4f}"
    )
    assert gain.min() > -1e-8
    if name == "convex":
        assert bool(certificate.regular.all())
        assert certificate.second_order_margin.min() > 1 - 1e-9
        assert gain.max() < 1e-8

# %% [markdown]
# The convex energy has curvature of at least one, from its first term, and one minimum; a certificate could have been spared. The learned non-convex ones have
# less curvature, and yet a search from six starts finds next to nothing better: training has shaped the energy where the solver goes. Use one for what it was
# not trained for, as with its weights times six, and for a few signals the minimum that is reached from $x$ is not the lowest. Note that the lower one does not
# have the smaller error: a good energy of a bad model is no good signal. So train with the solver and the start that you will use, and let `certify` and a
# `MultiStart` on a sample tell whether it matters. Derivatives are those of the minimum in which the solver ends; they know nothing of a jump to another.
#
# ## 5. A trained node is a module
#
# Parameters of the objective are parameters of the module: `state_dict`, `load_state_dict`, `.to(dtype)`, `deepcopy` work as ever.

# %%
model = models["convex energy"][0]
file = io.BytesIO()
torch.save(model.state_dict(), file)
file.seek(0)
restored = Energy(convex=True)
restored.load_state_dict(torch.load(file))
print({name: tuple(value.shape) for name, value in restored.state_dict().items()})
with torch.no_grad():
    assert torch.equal(restored(unseen), model(unseen))
    single = restored.to(torch.float32)(unseen.float())
    print(f"float32 against float64: largest difference {(single - model(unseen)).abs().max().item():.0e}")
    assert single.dtype == torch.float32

# %% [markdown]
# And it is still a statement. Say we learn afterwards that the signal starts and ends at known values. A network would have to be trained anew. Here we take
# the trained objective into a new node and add the constraint:


# %%
class Pinned(DeclarativeNode):
    hessian_structure = Banded(2)

    def __init__(self, energy):
        super().__init__()
        self.energy = energy

    def objective(self, x, ends, y):
        return self.energy.objective(x, y)

    def equality_constraints(self, x, ends, y):
        return torch.stack([y[0], y[-1]]) - ends

    def initial_guess(self, x, ends):
        return x


pinned = Pinned(model)
with torch.no_grad():
    ends = clean[:, [0, -1]]
    free, known = model(noisy), pinned(noisy, ends)
    first_five = [(y - clean)[:, :5].square().mean().item() for y in (free, known)]
print(f"error of the first five places: {first_five[0]:.4f} free, {first_five[1]:.4f} with known ends")
assert (known[:, [0, -1]] - ends).abs().max() < 1e-8
assert first_five[1] < first_five[0]

# %% [markdown]
# ## 6. Several processes
#
# `DistributedDataParallel` gives each process a share of the batch and averages the gradients while the backward pass runs. Two questions: are the gradients
# of a node's parameters the same as in one process? And when a sample fails in one process, does the other wait for ever? An exception in one would leave the
# others waiting in their exchange of gradients. With `on_failure="nan"` the sample becomes NaN, and nothing is raised; the loss leaves it out, and counts
# over all processes.
#
# The worker is a file, started by `torch.distributed.run` as one would start it on a cluster (there without `--standalone`):

# %%
WORKER = """
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from declarative import DeclarativeNode
from declarative.solvers import Newton


class Smoother(DeclarativeNode):
    def __init__(self):
        super().__init__(solver=Newton(on_failure="nan"))
        self.log_weight = nn.Parameter(torch.tensor(-1.0))
        self.filter = nn.Parameter(torch.tensor([-1.0, 0.0, 1.0]))

    def objective(self, x, y):
        bends = self.filter @ torch.stack([y[:-2], y[1:-1], y[2:]])
        return 0.5 * (y - x).square().sum() + self.log_weight.exp() * (0.01 + bends.square()).sqrt().sum()

    def initial_guess(self, x):
        return torch.zeros_like(x)


def loss_of(module, x, target):  # summed over the samples that are solved, and how many these are
    y = module(x)
    solved = y.isfinite().all(1)  # a process without a single one takes part all the same, with gradients of zero
    return (y[solved] - target[solved]).square().sum(), solved.sum()


def compare(bad):
    x, target = torch.randn(2, 8, 20, generator=torch.Generator().manual_seed(0))
    x[bad] = torch.nan
    mine = slice(4 * rank, 4 * rank + 4)  # of eight samples, in two processes
    parallel, alone = DistributedDataParallel(Smoother()), Smoother()
    descents = [torch.optim.SGD(module.parameters(), lr=0.05) for module in (parallel, alone)]
    apart = []
    for _ in range(3):
        for descent in descents:
            descent.zero_grad()
        total, count = loss_of(parallel, x[mine], target[mine])
        dist.all_reduce(count)
        (world * total / count).backward()  # times world: DDP takes the mean over the processes
        whole, every = loss_of(alone, x, target)
        (whole / every).backward()
        pairs = zip(parallel.module.parameters(), alone.parameters(), strict=True)
        apart.append(max(float((p.grad - q.grad).abs().max() / q.grad.abs().max()) for p, q in pairs))
        for descent in descents:
            descent.step()
    if rank == 0:
        print(f"failed samples {bad}: {int(count)} solved; gradients differ by {max(apart):.0e} in three steps", flush=True)
    assert max(apart) < 1e-12


dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.set_default_dtype(torch.float64)
for bad in ([], [5], [4, 5, 6, 7]):  # samples 4 to 7 are those of the second process
    compare(bad)
dist.destroy_process_group()
"""

# %%
with tempfile.TemporaryDirectory() as folder:
    worker = Path(folder) / "worker.py"
    worker.write_text(WORKER, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(worker)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(declarative.__file__).parents[1])}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
print(run.stdout.strip() or run.stderr)
assert run.returncode == 0, run.stderr
assert run.stdout.count("gradients differ") == 3

# %% [markdown]
# Equal to rounding, and nobody waits: neither for a failed sample, nor for a process in which all have failed. The solver runs in each process on its own, so
# a process whose samples take more steps keeps the others waiting for that long, no longer; `max_iterations` bounds it.
#
# ## Limits
#
# * A chain differentiates each link at its solution. If one link is irregular (a kink of a projection, a fold of an energy), so is the chain there.
# * The cost of nesting multiplies: Newton's method outside needs two derivatives of the inner solution in every step.
# * The error tables are about one family of synthetic signals. On it the larger network catches up with data; on others the order may change.
# * Multiply the loss by the number of processes *and* divide by the global count of solved samples; the mean of each process's own mean is another loss when
#   counts differ.
#
# ## To try
#
# * Train the chain of section 1 with `FitOnSimplex` as its last link. Does $\alpha$ change?
# * Give each coefficient of the inner problem of section 2 a penalty of its own: $\rho$ with eight entries.
# * Learn the penalty too: $\phi$ as a small network of $z^2$, made convex by nonnegative weights and softplus.
# * Start the non-convex energy from zero instead of $x$, at the test only, then in training as well. What changes?
# * Set `on_failure="raise"` in the worker, with a `timeout=` in `init_process_group`, and see what the launcher does.
