# %% [markdown]
# # Your first node: a layer that solves a problem
#
# An ordinary layer says *how* to compute its output. A **declarative node** says *what* the output is: the solution of an optimisation problem,
#
# $$y(x) \in \arg\min_u f(x, u) \quad\text{subject to}\quad h(x, u) = 0,\; g(x, u) \le 0 .$$
#
# You write $f$, $h$ and $g$. The solver, the batch and the gradient $\mathrm{d}y/\mathrm{d}x$ are there already. You will
#
# 1. state a layer in ten lines, and look at what it does;
# 2. see what else it tells you, and have its gradient proved;
# 3. state a problem that has no formula: what is a spectrum mixed of?
# 4. train through it: learn the pure materials from mixtures alone;
# 5. make the usual mistakes on purpose, and read the messages.

# %%
import os

import matplotlib.pyplot as plt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from declarative import DeclarativeNode, verify

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
torch.set_printoptions(precision=4, sci_mode=False)
torch.set_num_threads(1)  # problems this small gain nothing from a second thread

QUICK = os.environ.get("DECLARATIVE_QUICK") == "1"  # small sizes, for tests

plt.rcParams.update({"figure.dpi": 72, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## 1. Ten lines
#
# A network gives scores $x$; we want shares: numbers that are not negative and sum to one. Softmax is one way. Another is to take the shares that
# are *nearest* to the scores. As an optimisation problem: $\min_u \tfrac12\|u - x\|^2$ subject to $\sum_i u_i = 1$, $u \ge 0$.
#
# The statement is about **one** instance. There is no batch dimension in it:


# %%
class NearestShares(DeclarativeNode):
    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * ((y - x) ** 2).sum()  # one number

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        return y.sum() - 1  # = 0

    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        return -y  # ≤ 0

    def initial_guess(self, x: Tensor) -> Tensor:
        return torch.full_like(x, 1 / x.shape[-1])  # batch first: (b, n). It says what shape y has, and where to start


shares = NearestShares()
scores = torch.tensor([[0.1, 0.7, 0.9], [2.0, 0.0, -1.0]], requires_grad=True)  # a batch of two
y = shares(scores)
print(y.detach())
(y**2).sum().backward()
print(scores.grad)

# %% [markdown]
# That is all: `shares` is an `nn.Module`. It takes a batch, returns a batch, and gradients pass through it.
#
# The second instance has settled on its first entry alone, and its gradient is zero: small changes of those scores change nothing. A picture says it
# better. Move one score, $x = (t, 0.2, 0)$, and watch the shares:

# %%
t = torch.linspace(-1.5, 2, 141)
paths = torch.stack([t, torch.full_like(t, 0.2), torch.zeros_like(t)], 1)
solved, soft = shares(paths), paths.softmax(1)
assert torch.allclose(solved.sum(1), torch.ones_like(t))
assert bool((solved > -1e-9).all())

figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4), sharey=True)
for axis, values, title in ((left, solved, "the nearest shares (this node)"), (right, soft, "softmax")):
    for k, style in enumerate(("-", "--", ":")):
        axis.plot(t, values[:, k], style, linewidth=2, label=f"$y_{k + 1}$")
    axis.set(title=title, xlabel="score $t$ of the first entry")
left.set_ylabel("share")
left.legend()
figure.tight_layout()

# %% [markdown]
# Piecewise linear, with exact zeros; softmax never gets there. The corners are where a share reaches zero: there the derivative has two sides.
# (This layer is known as sparsemax. It has a formula, and ships as `declarative.layers.Sparsemax`, which is much faster. Here we did not need
# to know.)
#
# ## 2. What else it tells you
#
# `solution` returns the minimiser and what was learned on the way: multipliers, which constraints are active, how the solve ended for each sample.

# %%
s = shares.solution(scores)
print("active constraints:", s.active.tolist())
print("price of the budget:", s.equality_multipliers.detach().flatten())
print("iterations:", s.iterations.tolist(), " status:", s.status.tolist(), "(0: converged)")

# %% [markdown]
# The gradient was not made by differentiating the steps of the solver. It follows from the optimality conditions at the solution (notebook 02 does it by
# hand). You need not take it on trust. `verify` compares each way of computing it with the plain formula, and that one with finite
# differences of problems solved anew. Its first lines, which `certify` gives alone, say whether each point is a minimiser where a derivative exists:

# %%
report = verify(shares, scores.detach())
assert report.ok
print(report)

# %% [markdown]
# ## 3. A problem without a formula
#
# A camera in the air measures, for each patch of ground, how much light comes back in each of 40 colours. A patch shows several materials, each
# with a spectrum of its own; what is measured is their mixture, $x \approx D y$, with the spectra in the columns of $D$ and the shares $y$ on the simplex.
# *Unmixing* asks for the shares:
#
# $$y(x) = \arg\min_u \tfrac12\|D u - x\|^2 \quad\text{subject to}\quad \textstyle\sum_i u_i = 1,\; u \ge 0 .$$
#
# There is no formula for this one. It takes one changed line. $D$ is a parameter of the module, and will receive gradients like any other:


# %%
class Unmix(NearestShares):
    def __init__(self, spectra: Tensor) -> None:
        super().__init__()
        self.spectra = nn.Parameter(spectra.clone())  # D (bands, materials)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * ((self.spectra @ y - x) ** 2).sum()

    def initial_guess(self, x: Tensor) -> Tensor:
        return x.new_full((len(x), self.spectra.shape[1]), 1 / self.spectra.shape[1])


BANDS, MATERIALS = 40, 4
band = torch.linspace(0, 1, BANDS)


def bump(centre: float, width: float) -> Tensor:
    return torch.exp(-0.5 * ((band - centre) / width) ** 2)


true_spectra = torch.stack([
    0.2 + 0.6 * bump(0.30, 0.08) + 0.3 * bump(0.75, 0.10),  # two peaks
    0.2 + 0.7 * bump(0.55, 0.12),
    0.1 + 0.8 * torch.sigmoid(14 * (band - 0.65)),  # bright at one end
    0.3 + 0.5 * torch.sigmoid(14 * (0.25 - band)),
], 1)  # fmt: skip

patches = 60 if QUICK else 300
true_shares = torch.distributions.Dirichlet(torch.full((MATERIALS,), 0.4)).sample((patches,))
measured = true_shares @ true_spectra.mT + 0.01 * torch.randn(patches, BANDS)

unmix = Unmix(true_spectra)
found = unmix(measured).detach()
print(f"with the true spectra: mean error of a share {(found - true_shares).abs().mean():.3f}")
print(f"shares that are exactly zero: {(found < 1e-8).double().mean():.2f} of all")
assert (found - true_shares).abs().mean() < 0.02

# %% [markdown]
# ## 4. Train through it
#
# Now suppose nobody knows the spectra. All we have are mixtures. The node becomes the middle of an autoencoder: find the shares, mix again, compare,
#
# $$\min_D \; \textstyle\sum_k \|D\, y(x_k; D) - x_k\|^2 .$$
#
# $D$ occurs twice, outside and inside of the node; both gradients are added by themselves. Mixtures within a larger simplex fit as well, so a small penalty
# keeps the spectra close together. Start from measured patches picked at random, which are themselves mixtures. Three seeds:


# %%
def learned(seed: int, steps: int) -> tuple[Unmix, list[float]]:
    generator = torch.Generator().manual_seed(seed)
    node = Unmix(measured[torch.randperm(patches, generator=generator)[:MATERIALS]].mT)
    adam, curve = torch.optim.Adam(node.parameters(), 0.05), []
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        mixed = node(measured) @ node.spectra.mT
        spread = ((node.spectra - node.spectra.mean(1, keepdim=True)) ** 2).sum()
        loss = ((mixed - measured) ** 2).sum(1).mean() + 1e-3 * spread
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
        curve.append(loss.item())
    return node, curve


def matched(node: Unmix) -> Tensor:
    """The order in which its materials are the true ones; nobody told it their names."""
    apart = ((node.spectra.detach().mT[:, None] - true_spectra.mT[None]) ** 2).sum(2)
    rows, columns = linear_sum_assignment(apart.numpy())
    return torch.as_tensor(rows[columns.argsort()])


runs = {seed: learned(seed, 5 if QUICK else 400) for seed in (0, 1, 2)}
for seed, (node, curve) in runs.items():
    order = matched(node)
    spectra_error = (node.spectra.detach()[:, order] - true_spectra).abs().mean().item()
    shares_error = (node(measured).detach()[:, order] - true_shares).abs().mean().item()
    print(f"seed {seed}: loss {curve[0]:.4f} → {curve[-1]:.4f}, mean error of a spectrum {spectra_error:.3f}, of a share {shares_error:.3f}")
    assert curve[-1] < curve[0]

# %%
best = min(runs, key=lambda seed: runs[seed][1][-1])
order = matched(runs[best][0])
figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4))
for seed, (_, curve) in runs.items():
    left.semilogy(curve, ("-", "--", ":")[seed], label=f"seed {seed}")
left.set(xlabel="step", ylabel="loss", title="training through the solutions")
left.legend()
for k, colour in enumerate(("#0072B2", "#D55E00", "#009E73", "#000000")):
    right.plot(band, true_spectra[:, k], color=colour, linewidth=5, alpha=0.25)
    right.plot(band, runs[best][0].spectra.detach()[:, order[k]], "--", color=colour, linewidth=1.5)
right.set(xlabel="colour of the light (0: short waves, 1: long)", ylabel="brightness", title="spectra: true (wide), learned (dashed)")
figure.tight_layout()

# %% [markdown]
# The pure materials come out of mixtures alone. This works because some patches are nearly pure; with well-mixed patches only, the answer is not unique,
# and no method could know. And the outer problem is not convex: some
# starts end with two materials mixed up. Try a few, and take the lowest loss.
#
# ## 5. Mistakes
#
# Everybody makes these. Each is refused with what was expected and what to do. First, the sum was forgotten:


# %%
def message(node: DeclarativeNode, *inputs: Tensor) -> str:
    """What the call says as it fails."""
    try:
        node(*inputs)
    except Exception as error:  # whatever it is, we want to read it
        return f"{type(error).__name__}: {error}"
    raise RuntimeError("no error?")


class NoSum(NearestShares):
    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x) ** 2


print(message(NoSum(), scores))

# %% [markdown]
# The start is for one instance, where a batch was asked for:


# %%
class NoBatch(NearestShares):
    def initial_guess(self, x: Tensor) -> Tensor:
        return torch.ones(x.shape[-1])


print(message(NoBatch(), scores))

# %% [markdown]
# A tensor that needs a gradient is used from outside. It would stay without its gradient in silence; here it is named:

# %%
temperature = torch.tensor(0.5, requires_grad=True)


class Outside(NearestShares):
    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * ((y - x / temperature) ** 2).sum()


print(message(Outside(), scores))

# %% [markdown]
# A sign is wrong: shares below zero that shall sum to one. There is no such thing, and that is what it says (and for which samples):


# %%
class WrongSign(NearestShares):
    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        return y


print(message(WrongSign(), scores))

# %% [markdown]
# An input is shared by the batch. Say so with `in_dims`, as in `torch.vmap`:


# %%
class Weighted(NearestShares):
    def objective(self, x: Tensor, weight: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (weight * (y - x) ** 2).sum()

    def equality_constraints(self, x: Tensor, weight: Tensor, y: Tensor) -> Tensor:
        return y.sum() - 1

    def inequality_constraints(self, x: Tensor, weight: Tensor, y: Tensor) -> Tensor:
        return -y

    def initial_guess(self, x: Tensor, weight: Tensor) -> Tensor:
        return torch.full_like(x, 1 / x.shape[-1])


weight = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
print(message(Weighted(), scores, weight))
Weighted()(scores, weight, in_dims=(0, None)).square().sum().backward()
print("with in_dims=(0, None) the gradient of the shared input is the sum over the batch:", weight.grad)

# %% [markdown]
# ## Where to go
#
# | you want to | notebook |
# |---|---|
# | understand the gradient | 02, a bilevel problem by hand and by node |
# | know when there is one | 03, certificates |
# | make it fast | 04, structure; 10, formulas derived for you |
# | ready layers | 05–07 optimal transport, 08 robust pooling, 09 top-k, 11 quadratic programs |
# | learn hyper-parameters | 12 |
# | use your own solver | 13 |
# | put nodes together, train on several processes | 14, 15 |
#
# ## To try
#
# * Give `NearestShares` a temperature: a parameter that divides $x$. Learn it so that on average three of ten shares are not zero.
# * No share shall be above 0.4: add a constraint (`torch.cat` puts both kinds into one tensor). Draw the picture of section 1 again.
# * Replace the squared error in `Unmix` by $\sum_i \sqrt{1 + r_i^2/s^2}$ and spoil a few bands of each measurement. What do the shares say?
# * Take the penalty in section 4 away, or make it a hundred times as strong. What happens to the spectra, and why?
