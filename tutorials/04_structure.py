# %% [markdown]
# # Structure: from dense to tag to hook, verified
#
# A layer that solves an optimisation problem is differentiated by solving one linear system, and the matrix of that system is often far simpler than it
# looks. You may tell what you know about it. What you tell is then checked, entry by entry, because a wrong claim would make gradients wrong without an
# error. You will
#
# 1. state one layer with nothing declared, and read what its backward pass forms and costs;
# 2. have a structure proposed, declare it in one line, and have the line proved;
# 3. declare wrong things on purpose, see what they do to a gradient, and see them caught;
# 4. write the same knowledge as code: `hessian`, `solve_kkt`, `vjp`;
# 5. measure all of these, from 32 unknowns to 32 000;
# 6. decide which one you need.

# %%
import os
import time
from collections.abc import Callable

import matplotlib.pyplot as plt
import scipy.linalg
import torch
from torch import Tensor
from torch.autograd.functional import hessian

from declarative import ConjugateGradients, DeclarativeNode, Direct, Implicit, Solution, StructureError, detect_structure, verify
from declarative.structure import Banded, BandedOperator, Constant, Diagonal, ScaledIdentityInput, Sparse

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # so that times do not depend on how many cores are free

QUICK = os.environ.get("DECLARATIVE_QUICK") == "1"  # small sizes, for tests

plt.rcParams.update({"figure.dpi": 72, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## 1. Two sensors, nothing declared
#
# A fast sensor gives $m$ noisy readings $x_i$. A slow, exact one gives the averages $c_k$ of $8$ windows of the same signal. Put together:
#
# $$y(x, c, \theta) = \arg\min_y\; \tfrac12\|y - x\|^2 + e^\theta \sum_{i=1}^{m-1} \varphi(y_{i+1} - y_i) \quad\text{subject to}\quad
# \text{mean of } y \text{ over window } k = c_k, \qquad \varphi(z) = \sqrt{\delta^2 + z^2}.$$
#
# $\varphi$ is a smooth $|z|$: small differences are pressed together, jumps cost little more than their size. The statement is for one instance:

# %%
WINDOWS, DELTA = 8, 0.1


def jump_cost(z: Tensor) -> Tensor:
    return (DELTA**2 + z.square()).sqrt()


class Fusion(DeclarativeNode):
    """x (m,), c (8,), θ () -> y (m,)."""

    def objective(self, x: Tensor, c: Tensor, theta: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum() + theta.exp() * jump_cost(y[1:] - y[:-1]).sum()

    def equality_constraints(self, x: Tensor, c: Tensor, theta: Tensor, y: Tensor) -> Tensor:
        return y.reshape(WINDOWS, -1).mean(1) - c

    def initial_guess(self, x: Tensor, c: Tensor, theta: Tensor) -> Tensor:
        return x


def signals(batch: int, m: int, theta: float = -1.0) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The clean signals, three jumps each, and the inputs of the layer."""
    grid = torch.linspace(0, 1, m)
    clean = (torch.randn(batch, 3, 1) * (grid > torch.rand(batch, 3, 1))).sum(1)
    return clean, (clean + 0.3 * torch.randn(batch, m), clean.reshape(batch, WINDOWS, -1).mean(2), torch.full((batch,), theta))


def minimiser(solution: Solution) -> Tensor:
    assert isinstance(solution.y, Tensor)  # one tensor here; y may also be a tuple of them
    return solution.y


clean, inputs = signals(1, 96 if QUICK else 320, theta=1.0)
y = minimiser(Fusion().solution(*inputs))
figure, axis = plt.subplots(figsize=(9, 2.8))
axis.plot(inputs[0][0], ".", color="#999999", markersize=4, label="fast sensor, x")
axis.plot(inputs[1][0].repeat_interleave(clean.shape[1] // WINDOWS), color="#0072B2", linestyle=":", label="slow sensor, c")
axis.plot(y[0], color="#D55E00", label="solution, y")
axis.plot(clean[0], color="#000000", linestyle="--", linewidth=1, label="the truth")
axis.set(xlabel="time, in readings", ylabel="signal")
axis.legend(ncols=4, fontsize=8)
figure.tight_layout()
print(f"root mean square error: x {float((inputs[0] - clean).square().mean().sqrt()):.3f}, y {float((y - clean).square().mean().sqrt()):.3f}")

# %% [markdown]
# The backward pass solves
#
# $$\begin{pmatrix} H & A^\top \\ A & 0 \end{pmatrix} \begin{pmatrix} u \\ w \end{pmatrix} = \begin{pmatrix} v \\ 0 \end{pmatrix},
# \qquad H = \nabla^2_{yy} L, \quad A = \partial h / \partial y, \quad v = \text{the loss's gradient in } y,$$
#
# and every gradient follows from $u$ and $w$. What does that take? `explain` answers before anything is run; only the shapes matter:

# %%
dense = Fusion(differentiation=Implicit(linear_solver=Direct()))
_, large = signals(4, 1000)
print(dense.explain(*large))

# %% [markdown]
# "Products" are products of $H$ with a vector, which autodiff computes without having $H$. To *form* a dense $H$ takes one for each column. To
# factorise the matrix then costs $\frac23(m+8)^3$ operations a sample.
#
# `Direct()` asked for that. Without it, the package chooses by size, and at this size it does not form $H$ at all: conjugate gradients need a product a
# step, and stop when the residual is small.

# %%
print(Fusion().explain(*large))

# %% [markdown]
# ## 2. A line, proposed and proved
#
# Each term of the objective sees one entry of $y$, or two neighbours. So $H$ is tridiagonal:
# $H_{ii} = 1 + e^\theta(\varphi''_{i-1} + \varphi''_i)$ and $H_{i,i+1} = -e^\theta\varphi''_i$ with $\varphi''_i = \varphi''(y_{i+1} - y_i)$.
# `detect_structure` finds this by looking: it forms the dense blocks at the solution and at random points beside it, so give it a *small* instance. It
# proposes, and applies nothing.

# %%
_, small = signals(1, 16, theta=-6.0) if QUICK else signals(3, 24, theta=-3.0)
found = detect_structure(Fusion(), *small)
print(found)
assert found.hessian_structure == Banded(1)

# %% [markdown]
# Three lines: for $H$; for $A$, which never changes and has few entries; and for the mixed derivative $\nabla^2_{yx}L = -I$, with which the gradient in $x$ is
# just $u$. What was seen at a few points need not hold everywhere. You know why it does: read the formula. Then let `verify` test the lines.

# %%


class Tagged(Fusion):
    hessian_structure = Banded(1)
    constraint_structure = Constant(Sparse())
    mixed_structure = ScaledIdentityInput(input=0, scale=-1.0)


print(Tagged().explain(*large))
report = verify(Tagged(), *small, directions=1)
print(report)
assert report.ok

# %% [markdown]
# Read the rows from the top. The certificate: these points are minimisers, so there is something to differentiate. Then each declaration against the dense
# blocks of autodiff, *entry by entry*, at the solution and at points beside it. Then the solve by structure against the dense solve. Then the whole
# gradient, against a formula written a second time and against finite differences of problems solved anew.
#
# How can three products give a matrix of a thousand columns? Columns that share no row can be summed and probed together. In a tridiagonal matrix
# columns $0, 3, 6, \dots$ share no row, and so on for $1, 4, \dots$ and $2, 5, \dots$:

# %%
y = minimiser(Fusion().solution(*small))
H = hessian(lambda y: Fusion().objective(small[0][0], small[1][0], small[2][0], y), y[0])
probes = Banded(1).directions(len(H), y)  # three vectors of zeros and ones
rebuilt = Banded(1).operator((probes @ H).unsqueeze(0)).to_dense()[0]
print(f"H is {len(H)} × {len(H)}, and from {len(probes)} products it is rebuilt to {float((rebuilt - H).abs().max()):.0e}")
assert torch.allclose(rebuilt, H)

# %% [markdown]
# ## 3. Wrong lines
#
# The tag decides what is formed. What it denies is never looked at. So what if it is wrong? Let us declare $H$ diagonal, which this $H$ is not:

# %%


class WrongTag(Tagged):
    hessian_structure = Diagonal()

    def solve(self, *inputs: Tensor) -> Solution:
        return Tagged().solution(*inputs)  # the right one: only the backward pass is at stake


clean, larger = signals(4, 96)


def gradients(node: DeclarativeNode, inputs: tuple[Tensor, Tensor, Tensor], target: Tensor) -> tuple[Tensor, ...]:
    leaves = [t.clone().requires_grad_() for t in inputs]
    return torch.autograd.grad((node(*leaves) - target).square().sum(), leaves)


def errors(mine: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> str:
    relative = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(mine, theirs, strict=True)]
    return "   ".join(f"{name} {error:.0e}" for name, error in zip(("x", "c", "θ"), relative, strict=True))


true = gradients(dense, larger, clean)
print("relative error of each gradient, beside the dense way:")
print(f"  Banded(1), right   {errors(gradients(Tagged(), larger, clean), true)}")
print(f"  Diagonal(), wrong  {errors(gradients(WrongTag(), larger, clean), true)}")

# %% [markdown]
# No error, no warning, and nothing left of the gradients in $x$ and $c$ that is right. This is why there is `verify`:

# %%


def failures(node: DeclarativeNode, *inputs: Tensor) -> str:
    report = verify(node, *inputs, directions=1)
    assert not report.ok
    return "\n".join(line for line in str(report).splitlines() if line.startswith("  FAIL"))


print(failures(WrongTag(), *small))

# %% [markdown]
# The first line names the entry: which row and column, at which sample, what was declared and what it is. The declared number is the sum of a row:
# the tag took *one* product, with a vector of ones.
#
# A subtler case. Let the signal be periodic, so that the last reading is the neighbour of the first. One term more, and the band is no longer all there is:

# %%


class Periodic(Tagged):
    def objective(self, x: Tensor, c: Tensor, theta: Tensor, y: Tensor) -> Tensor:
        return super().objective(x, c, theta, y) + theta.exp() * jump_cost(y[0] - y[-1])


print(failures(Periodic(), *small).splitlines()[0])

# %% [markdown]
# A corner of the matrix. There are two ways out. One is a matter of order: number the readings $0, m-1, 1, m-2, \dots$ and periodic neighbours are two
# places apart, `Banded(2)`. The other is to compute the block yourself: a hook.
#
# ## 4. Hooks: the same knowledge as code
#
# `hessian` returns $H$ in closed form, as an operator that knows how to multiply and to solve. Its bands have the layout
# `bands[:, d, i]` $= H_{i,\,i+d-1}$:

# %%


def bands(theta: Tensor, y: Tensor) -> Tensor:
    """(b, 3, m), from θ (b,) and y (b, m)."""
    z = y[:, 1:] - y[:, :-1]
    coupling = theta.exp().unsqueeze(1) * DELTA**2 / (DELTA**2 + z.square()) ** 1.5  # eᶿ φ''
    before, after = torch.nn.functional.pad(coupling, (1, 0)), torch.nn.functional.pad(coupling, (0, 1))
    return torch.stack([-before, 1 + before + after, -after], 1)


class HessianHook(Fusion):
    constraint_structure = Constant(Sparse())
    mixed_structure = ScaledIdentityInput(input=0, scale=-1.0)

    def hessian(self, x: Tensor, c: Tensor, theta: Tensor, solution: Solution) -> BandedOperator:
        return BandedOperator(bands(theta, minimiser(solution)), 1, 1)


assert QUICK or verify(HessianHook(), *small, directions=1).ok
print(HessianHook().explain(*large))

# %% [markdown]
# `solve_kkt` goes one step further: you get the right-hand side and return $(u, w)$, by any means. Here scipy's banded Cholesky, with the Schur complement
# $S = AH^{-1}A^\top$ of size 8. It need not be differentiable, for second derivatives use the rule for $K^{-1}$ and come back here with other right-hand sides:

# %%


def windows(v: Tensor) -> Tensor:
    """A v"""
    return v.reshape(len(v), WINDOWS, -1).mean(2)


def spread(w: Tensor, m: int) -> Tensor:
    """Aᵀ w"""
    return (w * (WINDOWS / m)).repeat_interleave(m // WINDOWS, -1)


class KKTHook(Fusion):
    def solve_kkt(self, inputs: tuple[Tensor, ...], solution: Solution, v: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        stored, m = bands(inputs[2], minimiser(solution)).detach(), v.shape[1]
        rows = spread(torch.eye(WINDOWS), m)  # A, (8, m)
        sides = torch.cat([v.detach().unsqueeze(1), rows.expand(len(v), -1, -1)], 1).mT
        through = [scipy.linalg.solveh_banded(b[1:].numpy(), side.numpy(), lower=True) for b, side in zip(stored, sides, strict=True)]
        inverse = torch.stack([torch.as_tensor(t) for t in through])  # H⁻¹ (v, Aᵀ)
        plain, columns = inverse[:, :, 0], inverse[:, :, 1:]
        w = torch.linalg.solve(rows @ columns, windows(plain) - r.detach())
        return plain - (columns @ w.unsqueeze(2)).squeeze(2), w


report = verify(KKTHook(), *small, directions=1)
assert report.ok
print(*[line for line in str(report).splitlines() if "hook" in line or "second order =" in line], sep="\n")

# %% [markdown]
# And `vjp` is the whole backward pass, in differentiable torch, inputs to gradients. On paper: with $(u, w)$ from above,
#
# $$\bar x = u, \qquad \bar c = w, \qquad \bar\theta = -\sum_i (u_{i+1} - u_i)\, e^\theta \varphi'(y_{i+1} - y_i).$$

# %%


class ByHand(Fusion):
    def vjp(self, inputs: tuple[Tensor, ...], solution: Solution, cotangent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        theta, y, m = inputs[2], minimiser(solution), cotangent.shape[1]
        rows = spread(torch.eye(WINDOWS, dtype=y.dtype), m)
        inverse = BandedOperator(bands(theta, y), 1, 1).solve(torch.cat([cotangent.unsqueeze(1), rows.expand(len(y), -1, -1)], 1).mT)
        plain, columns = inverse[:, :, 0], inverse[:, :, 1:]
        w = torch.linalg.solve(rows @ columns, windows(plain))
        u = plain - (columns @ w.unsqueeze(2)).squeeze(2)
        z = y[:, 1:] - y[:, :-1]
        slope = theta.exp().unsqueeze(1) * z / jump_cost(z)
        return u, w, -((u[:, 1:] - u[:, :-1]) * slope).sum(1)


report = verify(ByHand(), *small, directions=1)
assert report.ok
print(*[line for line in str(report).splitlines() if "hook" in line or "second order =" in line], sep="\n")

# %% [markdown]
# By hand means mistakes by hand. Three that are easily made: the ends of the signal have one neighbour, not two; a sign; a forgotten correction by $A^\top w$.

# %%


class WrongEnds(HessianHook):
    def hessian(self, x: Tensor, c: Tensor, theta: Tensor, solution: Solution) -> BandedOperator:
        right = bands(theta, minimiser(solution))
        every = right[:, 1] + torch.nn.functional.pad(-right[:, 0, 1:2], (0, right.shape[2] - 1))  # a neighbour that reading 0 does not have
        return BandedOperator(torch.stack([right[:, 0], every, right[:, 2]], 1), 1, 1)


class WrongSign(ByHand):
    def vjp(self, inputs: tuple[Tensor, ...], solution: Solution, cotangent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, c, theta = super().vjp(inputs, solution, cotangent)
        return x, -c, theta


class NoCorrection(KKTHook):
    def solve_kkt(self, inputs: tuple[Tensor, ...], solution: Solution, v: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        u, w = super().solve_kkt(inputs, solution, v, r)
        return u + 0.01 * v, w


for wrong in (WrongEnds,) if QUICK else (WrongEnds, WrongSign):
    print(f"{wrong.__name__}\n{failures(wrong(), *small).splitlines()[0]}")
try:
    gradients(NoCorrection(), larger, clean)
except StructureError as error:
    print(f"{NoCorrection.__name__}, without any verify, in the backward pass itself:\n  {error}")

# %% [markdown]
# The wrong block is named by its entry, the wrong gradient by its input. A wrong `solve_kkt` does not get through even without `verify`: its residual is
# measured at every call, with one product. A wrong `vjp`, or a wrong tag, is measured by nobody but `verify`. Call it in your tests.
#
# ## 5. What each is worth
#
# The same solutions for all, so that only the backward pass is timed: medians of runs that take turns, four signals at a time, one thread. The dense way
# is not run above $m = 1000$. Conjugate gradients never form $H$, and need nothing declared.

# %%
ways: dict[str, DeclarativeNode] = {
    "dense": dense,
    "conjugate gradients": Fusion(differentiation=Implicit(linear_solver=ConjugateGradients())),
    "tags": Tagged(),
    "hessian hook": HessianHook(),
    "solve_kkt hook": KKTHook(),
    "vjp hook": ByHand(),
}


def backward_pass(node: DeclarativeNode, inputs: tuple[Tensor, Tensor, Tensor], target: Tensor) -> tuple[float, tuple[Tensor, ...]]:
    """(milliseconds, the gradients)"""
    leaves = [t.clone().requires_grad_() for t in inputs]
    loss = (minimiser(node.solution(*leaves)) - target).square().sum()
    began = time.perf_counter()
    found = torch.autograd.grad(loss, leaves)
    return 1e3 * (time.perf_counter() - began), found


sizes = (32, 64) if QUICK else (32, 104, 320, 1000, 3200, 10_000, 32_000)
measured: dict[str, list[float]] = {name: [] for name in ways}
for m in sizes:
    target, instance = signals(4, m)
    with torch.no_grad():
        solved = Tagged().solution(*instance)
    running = {name: node for name, node in ways.items() if name != "dense" or m <= 1000}
    times: dict[str, list[float]] = {name: [] for name in running}
    for run in range(3 if QUICK else 6 if m > 10_000 else 12):
        found = {}
        for name, node in running.items():
            node.solve = lambda *_, solved=solved: solved
            spent, found[name] = backward_pass(node, instance, target)
            if run:  # the first one warms up
                times[name].append(spent)
        for name, mine in found.items():
            assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6 * float(b.abs().max())) for a, b in zip(mine, found["tags"], strict=True)), name
    for name in running:
        measured[name].append(sorted(times[name])[len(times[name]) // 2])
print(f"{'m =':20}" + "".join(f"{m:>9}" for m in sizes))
for name, medians in measured.items():
    print(f"{name:20}" + "".join(f"{median:9.2f}" for median in medians) + " ms")

# %%
figure, axis = plt.subplots(figsize=(7.5, 4))
colours, styles = ("#000000", "#999999", "#D55E00", "#0072B2", "#009E73", "#CC79A7"), ("^:", "v--", "o-", "s-", "D-.", "x-")
for (name, medians), colour, style in zip(measured.items(), colours, styles, strict=True):
    axis.loglog(sizes[: len(medians)], medians, style, color=colour, label=name, markersize=5)
axis.set(xlabel="m, unknowns of one signal", ylabel="backward pass, four signals, ms", title="the same gradient, six ways")
axis.legend(fontsize=9)
figure.tight_layout()

# %%
if not QUICK:
    place = sizes.index(1000)
    for name, medians in measured.items():
        print(f"m = 1000: {name:20} {measured['dense'][place] / medians[place]:6.1f} times as fast as dense")

# %% [markdown]
# Read from left to right. Below a hundred unknowns there is nothing to gain from a tag: a small dense matrix is formed in one sweep and factorised in no
# time, and what you see is the cost of calls. From a few hundred on the dense way grows with $m^2$ and then $m^3$, and every kind of structure with $m$. At a
# thousand unknowns three lines make it tens of times as fast. Hooks gain another factor of two or so: less autodiff, and a Cholesky
# factorisation in place of LU in `solve_kkt`.
#
# Conjugate gradients know nothing and still grow with $m$ only, because this $H$ is well conditioned: its eigenvalues lie between $1$ and
# $1 + 4e^\theta/\delta \approx 16$. With a larger $e^\theta$ they need more steps, which the report after a backward pass tells:

# %%
for theta in (-3.0, -1.0, 1.0, 3.0):
    _, (x, c, strength) = signals(4, 64 if QUICK else 1000, theta)
    s = Fusion(differentiation=ways["conjugate gradients"].differentiation).solution(x.requires_grad_(), c, strength)
    minimiser(s).square().sum().backward()
    print(f"eᶿ = {torch.tensor(theta).exp():6.2f}: {s.report.method if s.report else ''}")

# %% [markdown]
# ## 6. Which one do I need?
#
# Other statements, other lines. What `detect_structure` says of some, each without constraints:

# %%


class Free(DeclarativeNode):
    """½‖y − x‖² + coupling(y)"""

    def __init__(self, coupling: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.coupling = coupling

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum() + self.coupling(y)

    def initial_guess(self, x: Tensor) -> Tensor:
        return x


ramp = torch.linspace(0, 1, 12)
couplings: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda y: 0 * y.sum(),
    "each entry, Σ y⁴": lambda y: (y**4).sum(),
    "groups of three": lambda y: (1 + y.reshape(-1, 3).square().sum(1)).sqrt().sum(),
    "second differences": lambda y: (y[2:] - 2 * y[1:-1] + y[:-2]).square().sum(),
    "a total and a trend": lambda y: y.sum().cosh() + (ramp * y).sum() ** 2,
    "a ring": lambda y: jump_cost(y - y.roll(1)).sum(),
    "all pairs": lambda y: jump_cost(y.unsqueeze(0) - y.unsqueeze(1)).sum(),
}
x = torch.randn(2, 12)
for name, coupling in couplings.items():
    print(f"{name:20} {detect_structure(Free(coupling), x).hessian_structure or 'nothing to declare'}")

# %% [markdown]
# The ring is sparse, and yet no tag fits it as it is numbered: renumber, or write a hook. All pairs are dense.
#
# | you have | take |
# |---|---|
# | up to a hundred unknowns | nothing. Declare nothing |
# | more, and structure that has a name | tags: what `detect_structure` proposes and you can justify, proved by `verify` |
# | more, and structure without a name (sparse, periodic, Kronecker) | a `hessian` hook with an operator of `declarative.structure`, or your own |
# | more, and no structure | nothing: `Auto()` takes conjugate gradients; a preconditioner where they are slow |
# | a solver for exactly this linear system, or its factor left over from `solve` | `solve_kkt`: its residual is measured at every call |
# | a layer that is called all the time | `vjp`, last: most to write, and nothing but `verify` watches over it |
# | the formula, but no wish to derive it | `SymbolicNode` derives blocks, structure and backward pass |
#
# ## Limits
#
# * A tag speaks of $H$, the Hessian of the *Lagrangian*: nonlinear constraints add their curvature, and the tag must hold for the sum.
# * `verify` tests at the inputs that you give it, and beside them. A structure that breaks elsewhere (a penalty that couples only beyond a threshold) passes.
# * Times are from one machine and one thread. What moves the least are the slopes.
#
# ## To try
#
# * Number the ring $0, m-1, 1, m-2, \dots$ inside `objective` and declare `Banded(2)`. What does `verify` say, and what `explain`?
# * Make the slow sensor's averages weighted, with weights that are an input. Which of the three tags is now wrong, and what does its line say?
# * Give `ConjugateGradients(preconditioner=...)` the operator of `HessianHook`. How many steps are left at $e^\theta = 20$?
# * Let `solve` keep the factor of its last Newton step as `Solution(y, workspace=...)` and use it in `solve_kkt`.
# * Drop `mixed_structure` from `Tagged` and measure again. At which $m$ is it worth most?
