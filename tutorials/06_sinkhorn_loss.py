# %% [markdown]
# # The Sinkhorn loss: a generative model on 2-d data and on digits
#
# A generator turns noise into samples. To train it one needs a number that says how far its samples are from the data, and the derivative of that number.
# Optimal transport gives such a number, entropy makes it smooth, and that leaves choices: *which* number, and *which* derivative? You will
#
# 1. meet two losses of one plan, the sharp cost and the regularised value, and see how far each is from the unregularised cost;
# 2. write the analytic gradient of the sharp cost in ten lines, and compare it with autodiff through the iterations;
# 3. raise $\gamma$ until the textbook iteration breaks, and measure time;
# 4. see a cheap "gradient" run away;
# 5. train generators on eight Gaussians with four losses, and measure on data that were held out;
# 6. do the same for images of digits, and look at the nearest training images.

# %%
import math
import os
import time
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from declarative.layers import OptimalTransport, SinkhornLoss, sinkhorn_divergence
from demo.images import load_images

torch.manual_seed(0)
torch.set_num_threads(1)  # problems this small gain nothing from a second thread

QUICK = os.environ.get("DECLARATIVE_QUICK") == "1"  # small sizes, for tests

plt.rcParams.update({"figure.dpi": 72, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False})
Loss = Callable[[Tensor, Tensor], Tensor]

# %% [markdown]
# ## 1. Two losses of one plan
#
# Samples $x_i$ and data $y_j$, costs $M_{ij} = \|x_i - y_j\|^2$, uniform weights $r$ and $c$. The plan is
#
# $$ P^\star = \operatorname*{argmin}_{P\mathbf 1 = r,\ P^\top\mathbf 1 = c} \langle P, M\rangle + \tfrac1\gamma\,\mathrm{KL}(P \,\|\, r c^\top). $$
#
# The *Sinkhorn loss*, or sharp cost, is what the plan costs, $S_\gamma = \langle P^\star, M\rangle$: the entropy is used to find the plan and then
# forgotten. The *regularised value* $F_\gamma$ keeps it. Both tend to the unregularised cost $W$ (which we get exactly, as an assignment).

# %%


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    return (x.unsqueeze(1) - y).square().sum(2)


def assignment_cost(M: Tensor) -> float:
    rows, columns = linear_sum_assignment(M.numpy())
    return float(M[rows, columns].mean())


n = 12 if QUICK else 50
M = squared_distances(torch.rand(n, 2), torch.rand(n, 2)).double()
exact = assignment_cost(M)
gammas = [1.0, 10.0, 100.0, 1000.0] if QUICK else [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0]
excess = {
    "sharp cost ⟨P, M⟩": [float(SinkhornLoss(g)(M)) - exact for g in gammas],
    "regularised value": [float(SinkhornLoss(g, regularised=True)(M)) - exact for g in gammas],
}
print(f"unregularised cost W = {exact:.5f}; above it:")
print(f"{'γ':>7} {'sharp':>9} {'value':>9}")
for g, sharp, value in zip(gammas, *excess.values(), strict=True):
    print(f"{g:7.0f} {sharp:9.1e} {value:9.1e}")
    assert -1e-9 < sharp <= value + 1e-9

# %% [markdown]
# The sharp cost is the closer of the two, and its excess falls faster than the $1/\gamma$ of the value. That is the case for it. The case against it
# used to be its gradient: the value is a minimum, so its gradient is simply $P^\star$ (the envelope theorem); the sharp cost is not the minimum of
# anything.
#
# ## 2. Its analytic gradient
#
# Differentiate the conditions of the plan, $P_{ij} = r_i c_j e^{\gamma(\varphi_i + \psi_j - M_{ij})}$ with its marginals, and what is left is one
# linear system:
#
# $$ \nabla_M S_\gamma = P^\star + \gamma\,(s\,\mathbf 1^\top + \mathbf 1 t^\top - M)\circ P^\star, \qquad
# \begin{pmatrix} \mathrm{diag}(r) & P^\star \\ P^{\star\top} & \mathrm{diag}(c) \end{pmatrix} \begin{pmatrix} s \\ t \end{pmatrix}
# = \begin{pmatrix} (P^\star\circ M)\mathbf 1 \\ (P^\star\circ M)^\top\mathbf 1 \end{pmatrix} . $$
#
# The system is singular by one constant, which does not matter; we set the last $t$ to zero. It says: $s_i + t_j$ is the best fit to $M_{ij}$ in least
# squares with weights $P^\star$. `SinkhornLoss` does the same, with one factorisation of a matrix half the size.


# %%
def by_hand(M: Tensor, gamma: float) -> Tensor:
    P = OptimalTransport(gamma, tolerance=1e-13)(M)
    spent = P * M
    system = torch.cat([torch.cat([P.sum(1).diag(), P], 1), torch.cat([P.T, P.sum(0).diag()], 1)])
    right = torch.cat([spent.sum(1), spent.sum(0)])
    fit = torch.linalg.solve(system[:-1, :-1], right[:-1])
    s, t = fit[: len(M)], torch.cat([fit[len(M) :], fit.new_zeros(1)])
    return P + gamma * (s.unsqueeze(1) + t - M) * P


def unrolled(M: Tensor, gamma: float, iterations: int) -> Tensor:
    """∇⟨P, M⟩ by autodiff through Sinkhorn's iterations on logarithms."""
    leaf = M.clone().requires_grad_()
    scores, phi, psi = -gamma * leaf, leaf.new_zeros(leaf.shape[0]), leaf.new_zeros(leaf.shape[1])
    for _ in range(iterations):
        phi = -math.log(len(phi)) - (scores + psi).logsumexp(1)
        psi = -math.log(len(psi)) - (scores + phi.unsqueeze(1)).logsumexp(0)
    plan = (scores + phi.unsqueeze(1) + psi).exp()
    return torch.autograd.grad((plan * leaf).sum(), leaf)[0]


def layer_gradient(M: Tensor, loss: nn.Module) -> Tensor:
    leaf = M.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0]


counts = (1, 3, 10, 30) if QUICK else (1, 2, 5, 10, 20, 50, 100, 200, 500)
errors = {}
for g in (10.0, 100.0):
    truth = by_hand(M, g)
    of_layer = float((layer_gradient(M, SinkhornLoss(g)) - truth).norm() / truth.norm())
    errors[g] = [float((unrolled(M, g, k) - truth).norm() / truth.norm()) for k in counts]
    plan = layer_gradient(M, SinkhornLoss(g, regularised=True))
    cosine = float((plan * truth).sum() / plan.norm() / truth.norm())
    print(f"γ = {g:3.0f}: layer − formula {of_layer:.0e}; {counts[-1]} iterations, unrolled − formula {errors[g][-1]:.0e}; ", end="")
    print(f"cosine with the gradient of the value {cosine:.3f}")
    assert of_layer < 1e-5

figure, axes = plt.subplots(1, 2, figsize=(10, 3.4))
for (label, above), style in zip(excess.items(), (("#D55E00", "o-"), ("#0072B2", "s--")), strict=True):
    axes[0].loglog(gammas, [max(e, 1e-12) for e in above], style[1], color=style[0], label=label)
axes[0].set(xlabel="γ", ylabel="above W (squared length)", title="two losses", ylim=(1e-8, 1))
for (g, error), style in zip(errors.items(), (("#D55E00", "o-"), ("#0072B2", "s--")), strict=True):
    axes[1].loglog(counts, error, style[1], color=style[0], label=f"unrolled, γ = {g:.0f}")
axes[1].set(xlabel="iterations", ylabel="relative error of the gradient", title="autodiff through the iterations")
for axis in axes:
    axis.legend()
figure.tight_layout()

# %% [markdown]
# Unrolling tends to the same gradient, but at the pace of the iteration, and the iteration is slow just where the sharp cost is sharp. The two losses pull
# in similar directions in the space of costs, but not in the same. What is left of the difference in trained samples, section 5 will show.
#
# ## 3. Large $\gamma$, and time
#
# As usually written, the iteration multiplies by $e^{-\gamma M}$, which underflows. Here is float32, with costs up to one; the last columns are forward
# and backward of the layer and of `gradient="unrolled"` to the same tolerance.

# %%


def textbook(M: Tensor, gamma: float, iterations: int = 500) -> Tensor:
    kernel = torch.exp(-gamma * M)
    u, v = torch.ones_like(M[:, 0]), torch.ones_like(M[0])
    for _ in range(iterations):
        u = 1 / len(M) / (kernel @ v)
        v = 1 / len(M) / (kernel.T @ u)
    return (u.unsqueeze(1) * kernel * v * M).sum()


def milliseconds(work: Callable[[], object], runs: int = 3) -> float:
    work()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return 1e3 * min(times)


single = (M / M.max()).float()
best = assignment_cost(single)
print(f"{'γ':>7} {'textbook':>9} {'layer':>9} {'exact':>9} {'|gradient|':>11} {'layer, ms':>10} {'unrolled, ms':>13}")
for g in (10.0, 100.0, 1000.0, 10000.0):
    loss = SinkhornLoss(g)
    slope = layer_gradient(single, loss)
    assert slope.isfinite().all()
    took = milliseconds(lambda loss=loss: layer_gradient(single, loss))
    through = "" if g > 100 else f"{milliseconds(lambda g=g: layer_gradient(single, SinkhornLoss(g, gradient='unrolled')), 1):.1f}"
    print(f"{g:7.0f} {float(textbook(single, g)):9.5f} {float(loss(single)):9.5f} {best:9.5f} {float(slope.abs().max()):11.1e} {took:10.1f} {through:>13}")
assert textbook(single, 10000.0).isnan()

# %% [markdown]
# ## 4. A gradient that runs away
#
# Could one save the linear system and hold the potentials fixed (`gradient="approximate"`)? Then $\nabla_M S \approx P - \gamma P\circ M$. Where
# $M_{ij} > 1/\gamma$ its sign is wrong: to make a long way cheaper, make it *longer*, for then less mass goes there. The marginals, which forbid that,
# are forgotten. Points that follow it:

# %%
cloud, target = 0.3 * torch.randn(12 if QUICK else 40, 2), 0.3 * torch.randn(12 if QUICK else 40, 2) + torch.tensor([1.0, 0.0])
walks = {"analytic": "implicit", "potentials held fixed": "approximate"}
for label, way in walks.items():
    z = cloud.double()
    distances = []
    for _ in range(4):
        distances.append(assignment_cost(squared_distances(z, target.double())) ** 0.5)
        leaf = z.clone().requires_grad_()
        (slope,) = torch.autograd.grad(SinkhornLoss(2.0, gradient=way)(squared_distances(leaf, target.double())), leaf)
        z = z - 0.1 * len(z) * slope
    print(f"{label:22} distance to the target after 0, 1, 2, 3 steps: " + ", ".join(f"{d:.3f}" for d in distances))
    assert (distances[-1] < distances[0]) == (way == "implicit")

# %% [markdown]
# That approximation is for other losses. From here on the gradients are exact, and the question is which loss.
#
# ## 5. Eight Gaussians
#
# The data are eight narrow Gaussians on the unit circle. The generator has two hidden layers; a step takes 128 fresh samples of each. Four losses: the
# sharp cost, the regularised value, the Sinkhorn divergence (the value, less what each cloud costs against itself), and as a baseline without transport
# the energy distance $2\,\mathbb E\|x - y\| - \mathbb E\|x - x'\| - \mathbb E\|y - y'\|$. None of the four is the measure: that is $W_2$, exact, by
# assignment to samples that were held out. Three seeds.


# %%
def eight_gaussians(count: int) -> Tensor:
    angle = torch.randint(8, (count,)) * math.pi / 4
    return torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(count, 2)


def energy(x: Tensor, y: Tensor) -> Tensor:
    within = [torch.cdist(z, z).sum() / (len(z) * (len(z) - 1)) for z in (x, y)]
    return 2 * torch.cdist(x, y).mean() - within[0] - within[1]


def losses_at(gamma: float) -> dict[str, Loss]:
    sharp, value = SinkhornLoss(gamma), SinkhornLoss(gamma, regularised=True)
    return {
        "sharp cost": lambda x, y: sharp(squared_distances(x, y)),
        "regularised value": lambda x, y: value(squared_distances(x, y)),
        "divergence": lambda x, y: sinkhorn_divergence(x, y, epsilon=1 / gamma),
        "energy distance": energy,
    }


def train(net: nn.Module, noise: int, draw: Callable[[], Tensor], loss: Loss, steps: int) -> nn.Module:
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, steps)
    for _ in range(steps):
        data = draw()
        value = loss(net(torch.randn(len(data), noise)), data)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        schedule.step()
    return net.eval()


def mean_spread(values: list[float], digits: int = 3) -> str:
    result = torch.tensor(values)
    return f"{float(result.mean()):.{digits}f} ± {float(result.std()):.{digits}f}"


seeds, steps, held_count, batch = (2, 10, 60, 32) if QUICK else (3, 500, 500, 128)
torch.manual_seed(100)
held, others = eight_gaussians(held_count), [eight_gaussians(held_count) for _ in range(3)]


def distance(x: Tensor, y: Tensor) -> float:
    return assignment_cost(squared_distances(x, y)) ** 0.5


print(f"{'':>6} {'loss':18} {'W₂ to held out':>15} {'mean radius':>15} {'s per run':>10}")
shown: dict[str, Tensor] = {}
for gamma in (2.0, 20.0):
    for name, loss in losses_at(gamma).items():
        if name == "energy distance" and gamma > 2:
            continue  # it knows no γ
        found, radii, samples, began = [], [], held, time.perf_counter()
        for seed in range(seeds):
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
            train(net, 2, lambda: eight_gaussians(batch), loss, steps)
            with torch.no_grad():
                samples = net(torch.randn(held_count, 2))
            found.append(distance(samples, held))
            radii.append(float(samples.norm(dim=1).mean()))
        if gamma == 2:
            shown[name] = samples
        label = "γ = " + f"{gamma:.0f}" if name != "energy distance" else ""
        print(f"{label:>6} {name:18} {mean_spread(found):>15} {mean_spread(radii):>15} {(time.perf_counter() - began) / seeds:10.1f}")
label = "other samples"
print(f"{'':>6} {label:18} {mean_spread([distance(o, held) for o in others]):>15} {mean_spread([float(o.norm(dim=1).mean()) for o in others]):>15}")

# %%
figure, axes = plt.subplots(1, 4, figsize=(12, 3.3), sharex=True, sharey=True)
for axis, (name, samples) in zip(axes, shown.items(), strict=True):
    axis.scatter(*held.T, s=4, color="#999999", label="held out")
    axis.scatter(*samples.T, s=5, color="#D55E00", marker="^", label="generated")
    axis.set(title=name + (", γ = 2" if name != "energy distance" else ""), aspect="equal", xlabel="first coordinate")
axes[0].set_ylabel("second coordinate")
axes[0].legend(loc="center", fontsize=9)
figure.tight_layout()

# %% [markdown]
# With a blurred plan ($\gamma = 2$) the regularised value pulls every sample to an average of data, and the ring shrinks: its mean radius is far below
# one. The divergence takes that bias off. The sharp cost is hardly shrunk, either, and is as near to the held-out data or nearer. With $\gamma = 20$
# the three are much alike: less blur leaves less to repair. No generator reaches the last row: with a blurred plan they find the circle rather than its
# eight places, and a continuous map of connected noise has to join the modes anyway.
#
# ## 6. Digits
#
# Images of digits as points in pixel space (another set by the variable `DECLARATIVE_IMAGES`). A third of the images is held out. Costs are scaled by
# the median squared distance of two images, so that $\gamma = 10$ means a tenth of it. Measures on held-out images, neither of them a loss: $W_2$ in
# the same unit, and the accuracy of a leave-one-out nearest neighbour in telling generated from real: 0.5 is ideal, 1 means that they are told apart
# always.

# %%
images, _ = load_images(count=300 if QUICK else 1797)
height, width = images.shape[1:]
flat = images.flatten(1)
flat = flat[torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))]
cut = 2 * len(flat) // 3
training, testing = flat[:cut], flat[cut : cut + (50 if QUICK else 500)]
unit = float(squared_distances(testing[:200], training[:200]).median()) ** 0.5


def told_apart(x: Tensor, y: Tensor) -> float:
    both = torch.cat([x, y])
    mine = torch.arange(len(both)) < len(x)
    nearest = squared_distances(both, both).fill_diagonal_(math.inf).argmin(1)
    return float((mine[nearest] == mine).float().mean())


def generator(noise: int) -> nn.Module:
    return nn.Sequential(nn.Linear(noise, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, height * width), nn.Sigmoid())


steps, batch, noise = (5, 32, 8) if QUICK else (400, 100, 8)
digits: dict[str, Tensor] = {}
print(f"{'loss':18} {'W₂ to held out':>15} {'told apart':>15} {'variance':>15} {'s per run':>10}")
for name, loss in losses_at(10.0).items():
    table: list[list[float]] = [[], [], []]
    samples, began = testing, time.perf_counter()
    for seed in range(seeds):
        torch.manual_seed(seed)
        net = train(generator(noise), noise, lambda: training[torch.randint(cut, (batch,))], lambda x, y, loss=loss: loss(x / unit, y / unit), steps)
        with torch.no_grad():
            samples = net(torch.randn(len(testing), noise))
        for column, figure_of in zip(
            table,
            (distance(samples / unit, testing / unit), told_apart(samples, testing), float(samples.var(0).sum() / testing.var(0).sum())),
            strict=True,
        ):
            column.append(figure_of)
    digits[name] = samples
    print(f"{name:18} {mean_spread(table[0]):>15} {mean_spread(table[1]):>15} {mean_spread(table[2]):>15} {(time.perf_counter() - began) / seeds:10.1f}")
real = training[: len(testing)]
name, ratio = "training images", float(real.var(0).sum() / testing.var(0).sum())
print(f"{name:18} {distance(real / unit, testing / unit):15.3f} {told_apart(real, testing):15.3f} {ratio:15.3f}")

# %%
columns = 12
figure, axes = plt.subplots(5, 1, figsize=(8, 4.4))
nearest = training[squared_distances(digits["sharp cost"][:columns], training).argmin(1)]
for axis, (name, rows) in zip(axes, (*list(digits.items())[:1], ("its nearest training images", nearest), *list(digits.items())[1:]), strict=True):
    strip = rows[:columns].reshape(columns, height, width).permute(1, 0, 2).reshape(height, columns * width)
    axis.imshow(strip.numpy(), cmap="gray_r", vmin=0, vmax=1)
    axis.set_title(name, fontsize=10, pad=2)
    axis.axis("off")
figure.tight_layout()

# %% [markdown]
# Rows are samples of the last seed, not chosen. The regularised value has nearly collapsed to the mean image: with this much entropy, and in 64
# dimensions, an average is its optimum. The sharp cost and the divergence make digits, with similar figures. Neither is as varied as the data, and a
# nearest neighbour still tells most of them apart. The samples resemble their nearest training images, though not pixel by pixel. The energy distance
# has the variance right and the images wrong: matching variance is not matching digits.
#
# ## Limits
#
# * One $\gamma$, one small network and one budget of steps: the order of the losses may change with each. Three seeds show the spread of training, not
#   of the data.
# * $W_2$ between finite samples is never zero, and it forgives blur. The told-apart measure does not forgive it. Report more than one.
# * A batch of 100 stands for all the data in each step. That biases every loss of transport, and the blur of the samples is in part its doing.
#
# ## To try
#
# * Draw batches of 32 and of 512 in section 5. Which losses need the large ones?
# * Lower $\gamma$ from 10 to 2 in section 6. Which loss suffers first?
# * Start each solve of section 5 from the last potentials, `init=`. Fresh samples come each step: does it help at all?
# * Train with squared distances of features, say of an autoencoder, in place of pixels, and let the told-apart measure judge.
