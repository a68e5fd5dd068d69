# %% [markdown]
# # Hessians of the Sinkhorn divergence
#
# The Sinkhorn divergence compares two weighted clouds of points. Its gradient is cheap, and most people stop there. But it is a smooth function, so it has
# a Hessian, and the Hessian says what the gradient cannot: whether the problem is convex, which directions are hard to learn, how a solution moves when
# the data do. The question of this notebook is whether such a Hessian can be had exactly, and what it is good for. You will
#
# 1. compute Hessians with respect to weights and locations, by implicit differentiation and through the iterations, and compare the matrices;
# 2. check them against differences of gradients, and see a popular shortcut fail;
# 3. find out which part of the weights' Hessian means anything;
# 4. measure time and memory of the two ways;
# 5. read curvature: convex in the weights, not in the locations, and what $\varepsilon$ does to the conditioning;
# 6. move one cloud onto another with Newton's method;
# 7. use products with the Hessian, without the matrix, to differentiate a barycentre.

# %%
import math
import os
import time
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.func import grad, hessian, jacrev

from declarative import DeclarativeNode
from declarative.layers import OptimalTransport, sinkhorn_divergence

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # problems this small gain nothing from a second thread

QUICK = os.environ.get("DECLARATIVE_QUICK") == "1"  # small sizes, for tests

plt.rcParams.update({"figure.dpi": 72, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## 1. Two clouds, two Hessians
#
# Points $x_i$ with weights $a_i$, points $y_j$ with weights $b_j$. With $F_\varepsilon(a, x; b, y)$ the least value of $\sum_{ij} P_{ij}\|x_i - y_j\|^2
# + \varepsilon\,\mathrm{KL}(P \,\|\, a b^\top)$ over plans $P \ge 0$ with $P\mathbf 1 = a$ and $P^\top\mathbf 1 = b$, the divergence is
#
# $$ S_\varepsilon = F_\varepsilon(a, x; b, y) - \tfrac12 F_\varepsilon(a, x; a, x) - \tfrac12 F_\varepsilon(b, y; b, y) . $$
#
# We take 15 and 17 random points of the unit cube and $\varepsilon = 0.1$. The switch `gradient=` says how derivatives are found. `"implicit"`: from
# the conditions that the plan satisfies. `"unrolled"`: back through Sinkhorn's iterations.

# %%
n, m, dimension = (5, 6, 3) if QUICK else (15, 17, 3)
x, y = torch.rand(n, dimension), torch.rand(m, dimension)
a, b = torch.rand(n) + 0.1, torch.rand(m) + 0.1
a, b = a / a.sum(), b / b.sum()


def loss(a: Tensor, x: Tensor, gradient: str = "implicit") -> Tensor:
    return sinkhorn_divergence(x, y, a, b, epsilon=0.1, gradient=gradient, tolerance=1e-12, max_iterations=5000)


print(f"divergence {loss(a, x).item():.6f}, through the iterations {loss(a, x, 'unrolled').item():.6f}")

# %% [markdown]
# The Hessian in $a$ is an $n \times n$ matrix. That in $x$ has the shape $n \times 3 \times n \times 3$; as a matrix it has $3n$ rows.
# `torch.func.hessian` is forward over reverse mode. Forward mode cannot pass through recorded iterations, so for the comparison we take reverse over
# reverse for both:


# %%
def seconds(work: Callable[[], object], runs: int = 3) -> float:
    work()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


NAMES = ("weights a", "points x")
hessians: dict[tuple[str, int], Tensor] = {}
for argument, name in enumerate(NAMES):
    print(f"Hessian w.r.t. {name}")
    for way in ("implicit", "unrolled"):
        reverse = jacrev(grad(loss, argument), argument)
        hessians[way, argument] = reverse(a, x, way)
        taken = seconds(lambda reverse=reverse, way=way: reverse(a, x, way), 1 if way == "unrolled" else 5)
        print(f"  {way}, reverse over reverse   {1e3 * taken:8.1f} ms")
    forward = hessian(loss, argument)
    classic = torch.autograd.functional.hessian((lambda a: loss(a, x)) if argument == 0 else (lambda x: loss(a, x)), (a, x)[argument])
    apart = {
        "unrolled": hessians["unrolled", argument],
        "torch.func.hessian": forward(a, x),
        "torch.autograd.functional.hessian": classic,
    }
    print(f"  implicit, torch.func.hessian     {1e3 * seconds(lambda forward=forward: forward(a, x), 5):8.1f} ms")
    for label, other in apart.items():
        difference = float((other - hessians["implicit", argument]).abs().max() / other.abs().max())
        print(f"  {label}: differs by {difference:.0e}")
        assert difference < 1e-8

# %%
figure, axes = plt.subplots(2, 2, figsize=(8.4, 7.2))
for argument in (0, 1):
    shown = {way: hessians[way, argument] if argument == 0 else hessians[way, argument][0, 0] for way in ("implicit", "unrolled")}
    largest = max(float(h.abs().max()) for h in shown.values())
    for axis, (way, matrix) in zip(axes[argument], shown.items(), strict=True):
        extent = (0.5, matrix.shape[1] + 0.5, matrix.shape[0] + 0.5, 0.5)  # points are counted from 1
        picture = axis.imshow(matrix.numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto", extent=extent)
        axis.set_title(f"{way}, w.r.t. " + ("a" if argument == 0 else r"x, slice $\partial^2 S/\partial x_{1,1}\,\partial x_{jk}$"), fontsize=10)
        axis.set(xlabel="point j" if argument == 0 else "coordinate k", ylabel="point i" if argument == 0 else "point j")
        axis.grid(visible=False)
        axis.set_xticks(range(1, matrix.shape[1] + 1, 2 if argument == 0 else 1))
        figure.colorbar(picture, ax=axis)
figure.tight_layout()

# %% [markdown]
# The pictures are the same, to about twelve digits, whichever way and whichever function of torch. The slice shows how the pull on the first coordinate
# of point 1 changes when any point moves: most by its own move, and by those of the few that share its targets.
#
# ## 2. Are they right? And a shortcut that is not
#
# Two methods of one package could be wrong together. So we difference gradients, $(\nabla S(z + h e_k) - \nabla S(z - h e_k))/2h$, for every coordinate.
#
# The shortcut: by the envelope theorem the gradient of $F_\varepsilon$ is right with the dual potentials held fixed; nothing has to be solved
# (`gradient="approximate"`). To freeze them in a *second* derivative is an error. What freezes them stays silent about it.

# %%


def differences(argument: int, h: float = 1e-5) -> Tensor:
    slope, point = grad(loss, argument), (a, x)[argument]
    columns = []
    for unit in torch.eye(point.numel()):
        step = h * unit.reshape(point.shape)
        ends = [slope(*((point + s * step, x) if argument == 0 else (a, point + s * step))) for s in (1, -1)]
        columns.append(((ends[0] - ends[1]) / (2 * h)).flatten())
    return torch.stack(columns, 1)


print(f"{'':10} {'implicit − differences':>23} {'frozen: gradient off by':>24} {'frozen: Hessian off by':>23}   (relative)")
for argument, name in enumerate(NAMES):
    size = (a, x)[argument].numel()
    exact = hessians["implicit", argument].reshape(size, size)
    check = float((exact - differences(argument)).norm() / exact.norm())
    frozen = jacrev(grad(loss, argument), argument)(a, x, "approximate").reshape(size, size)
    slopes = [grad(loss, argument)(a, x, way) for way in ("approximate", "implicit")]
    first = float((slopes[0] - slopes[1]).norm() / slopes[1].norm())
    second = float((frozen - exact).norm() / exact.norm())
    print(f"{name:10} {check:23.0e} {first:24.0e} {second:23.2f}")
    assert check < 1e-6
    assert first < 1e-10
    assert second > 0.1

# %% [markdown]
# The frozen gradient is exact and the frozen Hessian is off by about its own size. Use the shortcut for descent, never for curvature.
#
# ## 3. What the weights' Hessian means
#
# Weights sum to one. Off that plane there is no transport between clouds of different mass, and a program needs *some* rule there: this one scales both
# to a common mass. Another rule, $S(a / \sum a)$, is as good, and equal on the plane. Two rules differ by $g(a)(\sum_i a_i - 1)$, and their Hessians on
# the plane by $\nabla g\,\mathbf 1^\top + \mathbf 1\,\nabla g^\top$. So only $v^\top H w$ for tangent $v, w$ (entries that sum to zero) means anything:
# $CHC$ with $C = I - \mathbf 1\mathbf 1^\top/n$. Taking the mean off each row, $HC$, removes one of the two terms; that is enough to compare ways with
# one rule, not to compare rules.

# %%
own, scaled = hessian(loss)(a, x), hessian(lambda a: loss(a / a.sum(), x))(a)
centre = torch.eye(n) - 1 / n
for label, one, other in (("H", own, scaled), ("H C", own @ centre, scaled @ centre), ("C H C", centre @ own @ centre, centre @ scaled @ centre)):
    print(f"{label:6} the two rules differ by {float((one - other).abs().max()):.1e}")
tangent = centre @ own @ centre
torch.testing.assert_close(tangent, centre @ scaled @ centre, atol=1e-8, rtol=0)
print(f"C H C times the constant vector: {float((tangent @ torch.ones(n)).abs().max()):.0e}")

# %% [markdown]
# ## 4. What it costs
#
# A smaller $\varepsilon$ takes more iterations. We measure a gradient that can be differentiated again, one product of the Hessian with a vector, and
# the bytes that autograd keeps for it (a factor of $n \times n$ numbers, which the implicit way may keep besides, is not seen by this count).

# %%


def cost(epsilon: float, way: str) -> tuple[float, float, float]:
    storages: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor  # kept alive, so that no address is used twice
        return tensor

    z = x.clone().requires_grad_()
    began = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        value = sinkhorn_divergence(z, y, a, b, epsilon=epsilon, gradient=way, tolerance=1e-10, max_iterations=20000)
        (slope,) = torch.autograd.grad(value, z, create_graph=True)
    middle = time.perf_counter()
    torch.autograd.grad(slope, z, torch.ones_like(z))
    end = time.perf_counter()
    return 1e3 * (middle - began), 1e3 * (end - middle), sum(t.untyped_storage().nbytes() for t in storages.values()) / 2**20


print(f"{'':6} {'iterations':>17} {'implicit':>27} {'unrolled':>27}")
print(f"{'ε':>6} {'x on y':>8} {'x on x':>8}" + f" {'ms':>8} {'Hv: ms':>8} {'MiB':>9}" * 2)
for epsilon in (1.0, 0.3, 0.1) if QUICK else (1.0, 0.3, 0.1, 0.07):
    steps = []
    for other, masses in ((y, b), (x, a)):
        layer = OptimalTransport(1 / epsilon, gradient="unrolled", max_iterations=20000)
        iterations = layer.solution((x.unsqueeze(1) - other).square().sum(2), a, masses).iterations
        steps.append(0 if iterations is None else int(iterations))
    for way in ("implicit", "unrolled"):
        cost(epsilon, way) if epsilon == 1.0 else None  # the first call is slower
    figures = [cost(epsilon, way) for way in ("implicit", "unrolled")]
    print(f"{epsilon:6} {steps[0]:8} {steps[1]:8}" + "".join(f" {s:8.1f} {h:8.1f} {k:9.2f}" for s, h, k in figures))
    assert figures[0][2] < figures[1][2]

# %% [markdown]
# A cloud against itself becomes the slow one: its plan is nearly diagonal, and plain iterations crawl. Unrolling pays for each of them in time and memory.
# The implicit way finds the plan by whatever is fastest, and the product with the Hessian is one linear system, whatever $\varepsilon$.
#
# ## 5. Reading curvature
#
# Between two given clouds:

# %%
in_weights = torch.linalg.eigvalsh(tangent)
at_random = torch.linalg.eigvalsh(hessians["implicit", 1].reshape(x.numel(), -1))
print(f"weights, on the tangent space: {float(in_weights[1]):.4f} to {float(in_weights[-1]):.4f} (and one zero, the constant vector)")
print(f"points: {float(at_random[0]):.4f} to {float(at_random[-1]):.4f}; {int((at_random < 0).sum())} of {len(at_random)} are negative")
assert in_weights[0] > -1e-9
assert at_random[0] < 0

# %% [markdown]
# In the weights no eigenvalue is negative: the divergence is convex there, a theorem. In the points it is not: there are saddles, and Newton's method
# must be safeguarded. Where the clouds agree, $y = x$, the divergence is at its minimum, and the Hessian is positive semidefinite. We follow its
# spectrum over $\varepsilon$, scaled so that 1 is the curvature of $\sum_i a_i \|x_i - y_i\|^2$:

# %%
together = torch.rand(8 if QUICK else 40, 2)
epsilons = torch.logspace(-4, 1, 6 if QUICK else 26)
spectra = []
for epsilon in epsilons.tolist():
    curvature = hessian(lambda p, epsilon=epsilon: sinkhorn_divergence(p, together, epsilon=epsilon))(together)
    spectra.append(torch.linalg.eigvalsh(curvature.reshape(together.numel(), -1)) * len(together) / 2)
spectra = torch.stack(spectra)
assert spectra.min() > -1e-6

figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
axes[0].plot(range(1, len(at_random) + 1), at_random, "o", color="#D55E00", markersize=4, label="points")
axes[0].plot(range(1, len(in_weights) + 1), in_weights / in_weights[-1] * at_random[-1], "s", color="#0072B2", markersize=4, label="weights (scaled)")
axes[0].axhline(0, color="#000000", linewidth=0.8)
axes[0].set(xlabel="index", ylabel="eigenvalue", title="two different clouds")
axes[0].legend()
for k in range(0, spectra.shape[1], 1 if QUICK else 4):
    axes[1].loglog(epsilons, spectra[:, k].clamp_min(1e-9), color=plt.get_cmap("viridis")(k / spectra.shape[1]))
axes[1].loglog(epsilons, spectra[:, -1], color="#000000", linestyle="--", label="largest")
axes[1].axvline(float((together.unsqueeze(1) - together).square().sum(2).mean()), color="#999999", linestyle=":", label="mean squared distance")
axes[1].set(xlabel="ε (squared length)", ylabel="eigenvalue × n / 2", title="a cloud at its target", ylim=(3e-10, 5))
axes[1].legend(loc="lower left")
figure.tight_layout()
for k in (0, len(epsilons) // 2, len(epsilons) - 1):
    row, curved = spectra[k], int((spectra[k] > 0.1).sum())
    print(f"ε = {epsilons[k]:.0e}: smallest {float(row[0]):.0e}, largest {float(row[-1]):.2f}; above 0.1: {curved} of {len(row)}")

# %% [markdown]
# With a tiny $\varepsilon$ all directions are curved alike: each point sees its own partner. As $\varepsilon$ grows, detail goes flat and only coarse
# directions are left; with a large one just the two of the cloud's mean. That is what descent feels: details finer than $\sqrt\varepsilon$ are learned
# at the rate of the smallest eigenvalues. (Values near $10^{-9}$ in the plot are rounding.)
#
# ## 6. Newton's method
#
# We move $x$ so that it stands for $y$ as well as 15 points with these weights can. The Hessian is small, so we decompose it and take $|\lambda|$ in
# place of $\lambda$: saddles repel. Against it: gradient descent with the step $x_i - \nabla_{x_i}S / 2a_i$ (to where the point is sent, on average)
# and torch's L-BFGS.

# %%


def objective(z: Tensor) -> Tensor:
    return sinkhorn_divergence(z, y, a, b, epsilon=0.1, tolerance=1e-13)


def pull(slope: Tensor) -> float:
    """The largest ‖∇_i S‖ / a_i."""
    return float((slope / a.unsqueeze(1)).norm(dim=1).max())


def newton(z: Tensor, steps: int = 60) -> tuple[Tensor, list[float]]:
    trace = []
    for _ in range(steps):
        value, slope = objective(z), grad(objective)(z)
        trace.append(pull(slope))
        if trace[-1] < 1e-10:
            break
        values, vectors = torch.linalg.eigh(hessian(objective)(z).reshape(z.numel(), -1))
        size = values.abs().clamp_min(1e-3 * float(values.abs().max()))
        step = -(vectors @ ((vectors.T @ slope.flatten()) / size)).reshape(z.shape)
        length = 1.0
        while objective(z + length * step) > value + 1e-4 * length * (slope * step).sum() + 1e-15:
            length /= 2
        z = z + length * step
    return z, trace


def descent(z: Tensor, steps: int) -> tuple[Tensor, list[float]]:
    trace = []
    for _ in range(steps):
        slope = grad(objective)(z)
        trace.append(pull(slope))
        z = z - slope / (2 * a.unsqueeze(1))
    return z, trace


def quasi_newton(z: Tensor, steps: int) -> tuple[Tensor, list[float]]:
    z, trace = z.clone().requires_grad_(), []
    optimiser = torch.optim.LBFGS([z], max_iter=steps, max_eval=steps, history_size=20, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimiser.zero_grad()
        value = objective(z)
        value.backward()
        trace.append(pull(z.grad if z.grad is not None else torch.zeros_like(z)))
        return value.item()

    optimiser.step(closure)
    return z.detach(), trace


budget = 20 if QUICK else 400
traces = {}
print(f"{'':18} {'steps':>6} {'seconds':>8} {'‖gradient‖':>11} {'divergence':>11} {'smallest eigenvalue':>20}")
for label, method in (("Newton", newton), ("L-BFGS", lambda z: quasi_newton(z, budget)), ("gradient descent", lambda z: descent(z, budget))):
    began = time.perf_counter()
    end, traces[label] = method(x)
    taken = time.perf_counter() - began
    smallest = torch.linalg.eigvalsh(hessian(objective)(end).reshape(x.numel(), -1))[0]
    print(f"{label:18} {len(traces[label]):6} {taken:8.2f} {pull(grad(objective)(end)):11.0e} {objective(end).item():11.7f} {float(smallest):20.1e}")
    if label == "Newton":
        assert traces[label][-1] < 1e-8
        assert smallest > -1e-6

figure, axis = plt.subplots(figsize=(7, 3.4))
for (label, trace), style in zip(traces.items(), (("#D55E00", "o-"), ("#0072B2", "--"), ("#000000", ":")), strict=True):
    axis.loglog(range(1, len(trace) + 1), trace, style[1], color=style[0], markersize=4, label=label)
axis.set(xlabel="evaluations of the gradient (Newton: steps)", ylabel="largest $\\|\\nabla_i S\\| / a_i$", title="the last digits")
axis.legend()
figure.tight_layout()

# %% [markdown]
# Newton ends quadratically, within few steps, each of which costs a Hessian. The last column is the second-order condition: a minimum, not a saddle.
# But a *local* one, and the three may stop in different ones: curvature does not make a method global, and descent sometimes finds the better one. When
# a rough answer is enough, L-BFGS is.
#
# ## 7. Products without the matrix
#
# A thousand points in the plane have a Hessian of four million numbers. A product $Hv$ costs about one more gradient: differentiate $\langle\nabla S,
# v\rangle$. Conjugate gradients need no more. Here they answer a *bilevel* question. The barycentre of two shapes $y^{(1)}, y^{(2)}$ with weights $w$
# is
#
# $$ x^\star(w) = \operatorname*{argmin}_x \; w_1 S_\varepsilon(x, y^{(1)}) + w_2 S_\varepsilon(x, y^{(2)}) . $$
#
# How does it move with $w$? From $\nabla_x(\dots) = 0$: $\;\mathrm dx^\star = -H^{-1}\big(\nabla S(x^\star, y^{(1)})\,\mathrm dw_1 + \nabla S(x^\star,
# y^{(2)})\,\mathrm dw_2\big)$.

# %%
corners = 8 if QUICK else 24
angle = 2 * math.pi * torch.arange(corners) / corners
ring = torch.stack([angle.cos(), angle.sin()], 1)
square = ring / ring.abs().amax(1, keepdim=True)  # the same angles on a square
shapes = (ring, torch.stack([square[:, 0] * 1.3, square[:, 1] * 0.5], 1))


def divergences(z: Tensor) -> Tensor:
    return torch.stack([sinkhorn_divergence(z, shape, epsilon=0.1, tolerance=1e-13) for shape in shapes])


class Barycentre(DeclarativeNode):
    def objective(self, w: Tensor, z: Tensor) -> Tensor:
        return (w * divergences(z)).sum()

    def initial_guess(self, w: Tensor) -> Tensor:  # batch first
        return torch.einsum("bk,kid->bid", w, torch.stack(shapes))


node, w = Barycentre(), torch.tensor([0.6, 0.4])
found = node.solution(w.unsqueeze(0))
star, toward = found.y[0].detach(), torch.tensor([1.0, -1.0])


def conjugate_gradients(product: Callable[[Tensor], Tensor], right: Tensor, tolerance: float = 1e-10) -> tuple[Tensor, int]:
    solution, residual = torch.zeros_like(right), right.clone()
    direction, square_norm, count = residual.clone(), residual.square().sum(), 0
    while square_norm.sqrt() > tolerance * right.norm() and count < 10 * right.numel():
        image = product(direction)
        length = square_norm / (direction * image).sum()
        solution, residual = solution + length * direction, residual - length * image
        before, square_norm = square_norm, residual.square().sum()
        direction, count = residual + square_norm / before * direction, count + 1
    return solution, count


leaf = star.clone().requires_grad_()
(slope,) = torch.autograd.grad((w * divergences(leaf)).sum(), leaf, create_graph=True)  # one graph serves all products
right = grad(lambda z: (toward * divergences(z)).sum())(star)
moved, products = conjugate_gradients(lambda v: torch.autograd.grad(slope, leaf, v, retain_graph=True)[0], -right)

weights = w.clone().requires_grad_()
cotangent = torch.randn_like(star)
(by_node,) = torch.autograd.grad(node(weights.unsqueeze(0))[0], weights, cotangent)
h = 1e-4
with torch.no_grad():
    ends = node(torch.stack([w + h * toward, w - h * toward]))
by_differences = (ends[0] - ends[1]) / (2 * h)

print(f"conjugate gradients: {products} products for {star.numel()} unknowns")
print(f"⟨v, dx*⟩ by conjugate gradients  {float((cotangent * moved).sum()):.6f}")
print(f"         by the node             {float((by_node * toward).sum()):.6f}")
print(f"         by solving again        {float((cotangent * by_differences).sum()):.6f}")
assert (moved - by_differences).norm() < 1e-3 * moved.norm()
assert abs(float((by_node * toward).sum() - (cotangent * moved).sum())) < 1e-5 * float(moved.norm() * cotangent.norm())

# %%
figure, axis = plt.subplots(figsize=(6, 3.8))
for shape, (label, colour, marker) in zip(shapes, (("shape 1", "#999999", "^"), ("shape 2", "#0072B2", "s")), strict=True):
    axis.scatter(*shape.T, color=colour, marker=marker, s=18, label=label)
axis.scatter(*star.T, color="#D55E00", s=22, label="barycentre")
axis.quiver(*star.T, *(0.3 * moved).T, angles="xy", scale_units="xy", scale=1, color="#D55E00", width=0.004)
axis.set(xlabel="first coordinate", ylabel="second coordinate", title="where 0.3 more of shape 1 would move it", aspect="equal")
axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
figure.tight_layout()

# %% [markdown]
# Three answers agree. The third solved the problem twice more; the second is what the package does with any node: here the objective of the node has,
# inside it, six transport problems of its own, and second derivatives pass through all of them. Now $w$ can be learned by any loss on the barycentre.
#
# ## Limits
#
# * The Hessian in the points is nearly singular when $\varepsilon$ is large beside the spacing of the points (section 5): conjugate gradients then need
#   many products, and the digits of a Newton step mean little. Choose $\varepsilon$ for the detail that you want to see.
# * Newton on $3n$ unknowns with the matrix is for hundreds of points at most. Beyond, use products.
#
# ## To try
#
# * In section 6, start from ten other clouds. How often do the three methods end in the same minimum?
# * Replace $|\lambda|$ by $\max(\lambda, \delta)$. Where does Newton's method lose time?
# * Learn weights in place of points: minimise over $a = \mathrm{softmax}(\theta)$. Is the problem still convex in $\theta$?
# * Compute the largest eigenvalue for 500 points by power iteration with products. How far is it from 2 / 500?
# * Learn $w$ so that the barycentre touches a given point.
