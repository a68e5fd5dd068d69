# %% [markdown]
# # Symbolic derivation: the paper's formula from six lines
#
# Papers on differentiable layers share a page of algebra: the Lagrangian, its derivatives, a block matrix, the trick that makes it small. From that page
# somebody then writes the backward pass by hand. Here the page is derived for you, and the backward pass with it, from the objective and the constraints
# in index notation. You will
#
# 1. state entropic optimal transport in six lines, and read the derivation of its gradient;
# 2. check it: against autodiff, against finite differences, against the layer that was written by hand;
# 3. see which structures are found, and what is said where none is;
# 4. measure what the structure is worth;
# 5. make a layer that nobody has written for you, learn its parameter, and take its code along.

# %%
import os
import time

import matplotlib.pyplot as plt
import sympy
import torch
from sympy import Eq, Idx, IndexedBase, Sum, exp, log, sqrt
from torch import Tensor, nn

from declarative import Direct, Implicit, SymbolicNode, verify
from declarative.layers import OptimalTransport

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # problems this small gain nothing from a second thread

QUICK = os.environ.get("DECLARATIVE_QUICK") == "1"  # small sizes, for tests

plt.rcParams.update({"figure.dpi": 72, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## 1. Six lines
#
# A transport plan $P$ moves the masses $r_i$ to the masses $c_j$ at the least cost, with an entropy that keeps it smooth. Sizes are symbols, $i$ and $j$
# say over what they run, `IndexedBase` stands for a tensor:

# %%
m, n = sympy.symbols("m n", integer=True, positive=True)
i, j = Idx("i", m), Idx("j", n)
P, M, r, c = map(IndexedBase, "PMrc")
gamma = sympy.Symbol("gamma")


def transport(strength: float) -> SymbolicNode:
    return SymbolicNode(
        objective=Sum(M[i, j] * P[i, j] + P[i, j] * log(P[i, j] / (r[i] * c[j])) / gamma, (i, 0, m - 1), (j, 0, n - 1)),
        variable=P[i, j], inputs=(M[i, j], r[i], c[j]), constants={gamma: strength}, start=r[i] * c[j],
        equality=[Eq(Sum(P[i, j], (j, 0, n - 1)), r[i]), Eq(Sum(P[i, j], (i, 0, m - 1)), c[j])],
    )  # fmt: skip


node = transport(10.0)
node.derivation()  # formulas in a notebook, text by print

# %% [markdown]
# Nothing of this was told to it. Each second derivative carries a $\delta$ for both indices, so $H$ is diagonal. Each constraint is a sum, so $A$ only
# says which entry belongs to which row. $S = A H^{-1} A^\top$ follows by multiplying these out, and that its blocks are
# $\gamma\,\mathrm{diag}(r)$, $\gamma P$ and $\gamma\,\mathrm{diag}(c)$, by using the constraints once more. And one equation follows from the others: $S$
# would be singular with it, so it is left out.
#
# ## 2. Is it right?
#
# `verify` compares every block with autodiff, the solve by structure with the dense one, and the whole with finite differences of solved problems:

# %%
M_, r_, c_ = torch.rand(2, 3, 4), torch.rand(2, 3).softmax(1), torch.rand(2, 4).softmax(1)
report = verify(node, M_, r_, c_, directions=1)
assert report.ok
print(report)

# %% [markdown]
# The same statement, written by hand over weeks, is `OptimalTransport`. At the same plan the two gradients agree to the last digits:

# %%
size = 20 if QUICK else 100
cost, even = torch.rand(1, size, size), torch.full((1, size), 1 / size)
layer = OptimalTransport(gamma=10.0)


def gradient(pass_through: nn.Module) -> Tensor:
    leaf = cost.clone().requires_grad_()
    plan = pass_through(leaf, even, even)
    return torch.autograd.grad((plan * cost.cos()).sum(), leaf)[0]


apart = float((gradient(node) - gradient(layer)).abs().max() / gradient(layer).abs().max())
print(f"largest difference, relative: {apart:.0e}")
assert apart < 1e-8

# %% [markdown]
# (Both solve to their own tolerance here; handed one and the same plan, they differ by $10^{-15}$.)
#
# ## 3. What is found
#
# The structure of $H$ is read off the deltas that are left over. A few objectives, all in $y$ and $x$:

# %%
k, l = Idx("k", n), Idx("l", m)  # noqa: E741
x, y, A, Y = map(IndexedBase, "xyAY")
near = Sum((y[j] - x[j]) ** 2, (j, 0, n - 1)) / 2
rows_apart = Sum((Y[i, j] - x[i, j]) ** 2, (i, 0, m - 1), (j, 0, n - 1)) + Sum(Sum(exp(Y[i, j]), (j, 0, n - 1)) ** 2, (i, 0, m - 1))
spread = sqrt(1 + Sum((y[j] - A[j, l]) ** 2, (j, 0, n - 1)))
statements = {
    "entropy": (near + Sum(y[j] * log(y[j]), (j, 0, n - 1)), y[j], (x[j],)),
    "smooth in time": (near + Sum((y[j + 1] - y[j]) ** 2, (j, 0, n - 2)), y[j], (x[j],)),
    "log Σ exp": (near + log(Sum(exp(y[j]), (j, 0, n - 1))), y[j], (x[j],)),
    "robust mean": (Sum(spread, (l, 0, m - 1)), y[j], (A[j, l],)),
    "rows apart": (rows_apart, Y[i, j], (x[i, j],)),
    "all pairs": (near + Sum(exp(y[j] * y[k]), (j, 0, n - 1), (k, 0, n - 1)), y[j], (x[j],)),
}
for name, (objective, variable, inputs) in statements.items():
    found = SymbolicNode(objective=objective, variable=variable, inputs=inputs).form.structure
    print(f"{name:15} {found.words}" + (f"\n{'':15} because of {found.obstacle}" if found.obstacle else ""))

# %% [markdown]
# The last one couples every pair: it is told so, with the term that does it, and solved densely. A result is never wrong for want of structure.
#
# ## 4. What it is worth
#
# The backward pass of transport, three ways: derived, written by hand, and by the generic dense path of the same statement, which forms a matrix
# of $mn + m + n - 1$ rows.

# %%


def milliseconds(module: nn.Module, size: int, runs: int) -> float:
    cost, even = torch.rand(1, size, size), torch.full((1, size), 1 / size)
    leaf = cost.requires_grad_()
    plan = module(leaf, even, even)
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        torch.autograd.grad(plan, leaf, torch.ones_like(plan), retain_graph=True)
        times.append(time.perf_counter() - began)
    return 1e3 * sorted(times)[len(times) // 2]


sizes = (4, 8) if QUICK else (5, 10, 20, 50, 100, 200)
hand = OptimalTransport(gamma=2.0)
derived, dense = transport(2.0), transport(2.0)
for module in (derived, dense):
    module.solve = hand  # the same plan for all
dense.blocks, dense.differentiation = None, Implicit(linear_solver=Direct())
measured = {
    "derived": [milliseconds(derived, s, 9) for s in sizes],
    "written by hand": [milliseconds(hand, s, 9) for s in sizes],
    "generic, dense": [milliseconds(dense, s, 3) for s in sizes if s <= 50],
}

figure, axis = plt.subplots(figsize=(7, 3.6))
styles = {"derived": ("#D55E00", "o-"), "written by hand": ("#0072B2", "s--"), "generic, dense": ("#000000", "^:")}
for name, times in measured.items():
    axis.loglog(sizes[: len(times)], times, styles[name][1], color=styles[name][0], label=name)
axis.set(xlabel="n, for plans of n × n", ylabel="backward pass, ms", title="what the structure is worth")
axis.set_xticks(sizes, [str(s) for s in sizes])
axis.set_yticks((0.1, 1, 10, 100, 1000), ("0.1", "1", "10", "100", "1000"))
axis.minorticks_off()
axis.legend()
figure.tight_layout()

# %% [markdown]
# ## 5. A layer of your own
#
# A noisy curve $x$ is smoothed, its jumps kept: squares near zero, like $|\cdot|$ far away, with a weight $\lambda = e^\theta$ that is learned from pairs of
# noisy and clean curves.

# %%
theta = sympy.Symbol("theta")
jumps = Sum(sqrt(sympy.Rational(1, 100) + (y[j + 1] - y[j]) ** 2), (j, 0, n - 2))
smoother = SymbolicNode(objective=near + exp(theta) * jumps, variable=y[j], inputs=(x[j],), constants={theta: nn.Parameter(torch.tensor(-3.0))})
print(smoother)

length, batch = (30, 4) if QUICK else (100, 32)
grid = torch.linspace(0, 1, length)


def curves(count: int) -> tuple[Tensor, Tensor]:
    places, heights = torch.rand(count, 3, 1), torch.randn(count, 3, 1)
    clean = (heights * (grid > places)).sum(1)
    return clean, clean + 0.3 * torch.randn_like(clean)


optimiser = torch.optim.Adam(smoother.parameters(), lr=0.3)
losses = []
for _ in range(3 if QUICK else 25):
    clean, noisy = curves(batch)
    loss = (smoother(noisy) - clean).square().mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    losses.append(loss.item())
clean, noisy = curves(1)
with torch.no_grad():
    smooth = smoother(noisy)

figure, axes = plt.subplots(1, 2, figsize=(10, 3.2))
axes[0].plot(losses, color="#0072B2")
axes[0].set(xlabel="step", ylabel="mean squared error", title="learning the weight")
axes[1].plot(grid, noisy[0], ".", color="#999999", label="noisy")
axes[1].plot(grid, clean[0], color="#000000", linestyle="--", label="clean")
axes[1].plot(grid, smooth[0], color="#D55E00", label="smoothed")
axes[1].set(xlabel="time", title="a curve that was not seen")
axes[1].legend()
figure.tight_layout()
weight = float(next(smoother.parameters()).detach().exp())
print(f"λ = {weight:.2f}; error {losses[0]:.3f} -> {losses[-1]:.3f}, that of the noise {float((noisy - clean).square().mean()):.3f}")
assert QUICK or losses[-1] < 0.5 * losses[0]

# %% [markdown]
# $H$ is tridiagonal, so a step costs as many operations as the curve has points, forward and backward. The code can be taken along: a file that imports
# nothing but torch, with the formula of each function above it.

# %%
source = smoother.to_source()
print(source[source.index("def gradient") : source.index("def hessian")])
print(f"… {len(source.splitlines())} lines in all; `backward` is the last function")

# %% [markdown]
# ## Limits
#
# * Indices are symbols plus a constant: $y_{j+1}$ can be said, $y_{2j}$ cannot. Limits of a sum do not depend on other indices.
# * `|z|` and `max` of the variable are refused where a minimiser may sit on the kink; Huber's function and squared hinges pass.
# * sympy moves a `Piecewise` out of inner sums; inside two sums write `declarative.symbolic.Cases` in its place.
# * Products of two dense Kronecker factors, or a band plus low rank, are treated as dense.
#
# ## To try
#
# * Make $\gamma$ an input: `inputs=(M[i, j], r[i], c[j], gamma)`. What does the derivation say of its gradient?
# * State the projection onto the simplex, with `inequality=[y[j] >= 0]`, and look at its derivation.
# * Take the entropy out of transport and put in $\frac12\sum_{ij} P_{ij}^2$ with $P \ge 0$. What is left of the structure?
