# %% [markdown]
# # Bring your own solver
#
# For many problems a good solver was written long ago: by somebody else, in C or Fortran, for numpy, without gradients. Keep it. A declarative node needs two
# things that have nothing to do with each other: a *statement*, from which the gradient follows, and *some way* to find the solution. You will
#
# 1. take isotonic regression from scikit-learn, and get its gradient;
# 2. make ranks differentiable with it, and train a model to rank;
# 3. take a model of cvxpy, with its multipliers, and let one sample fail;
# 4. use a solver that is in a hurry, and see what that does to gradients;
# 5. use a simulation as a solver: weigh a chain by looking at it;
# 6. bring a solver that is wrong.

# %%
import os
import time

import cvxpy
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_diabetes
from sklearn.isotonic import isotonic_regression
from torch import Tensor

from declarative import DeclarativeNode, Status, verify
from declarative.solvers import External, InteriorPoint
from declarative.structure import Constant, Diagonal

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
torch.set_printoptions(precision=4, sci_mode=False)
torch.set_num_threads(1)  # problems this small gain nothing from a second thread

QUICK = os.environ.get("DECLARATIVE_QUICK") == "1"  # small sizes, for tests

plt.rcParams.update({"figure.dpi": 72, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## 1. Isotonic regression, from scikit-learn
#
# The sequence that never rises and is nearest to $x$:
#
# $$y(x) = \arg\min_u \tfrac12\|u - x\|^2 \quad\text{subject to}\quad u_1 \ge u_2 \ge \dots \ge u_n .$$
#
# "Pool adjacent violators" solves it in one sweep, and scikit-learn has it compiled. `External` takes a function of *one* instance in numpy and maps it over
# the batch. The statement is the one above, with two remarks for speed (notebook 04): $H$ is diagonal, the constraints' Jacobian never changes.


# %%
class Isotonic(DeclarativeNode):
    hessian_structure = Diagonal()
    constraint_structure = Constant()

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * ((y - x) ** 2).sum()

    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        return y[1:] - y[:-1]  # ≤ 0

    def initial_guess(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def pool_adjacent_violators(x: np.ndarray) -> np.ndarray:
    return isotonic_regression(x, increasing=False)


isotonic = Isotonic(solver=External(pool_adjacent_violators))
x = torch.randn(3, 8) - torch.linspace(0, 2, 8)
print(x[0])
print(isotonic(x)[0])
report = verify(isotonic, x)
assert report.ok
print(report)

# %% [markdown]
# Nothing of scikit-learn was differentiated. Its result was looked at: which neighbours are equal? That is the active set, and from there on the gradient is
# the same linear algebra as for any other node (here: the average over each group of equal values). The built-in solver finds the same, later:

# %%
n = 50 if QUICK else 300
x = torch.randn(4, n) - torch.linspace(0, 2, n)
for name, node in (("scikit-learn", isotonic), ("interior point", Isotonic(solver=InteriorPoint()))):
    began = time.perf_counter()
    y = node(x)
    print(f"{name:15} {1e3 * (time.perf_counter() - began):7.1f} ms for 4 instances of n = {n}, objective {0.5 * (y - x).square().sum():.12f}")

# %% [markdown]
# ## 2. Ranks with a gradient
#
# The ranks of $n$ scores are piecewise constant: no gradient. Blondel et al. (2020) replace them by the *projection onto the permutahedron*, the convex hull of
# all rankings; it comes down to sorting and one isotonic regression. With scores sorted in falling order, $s_1 \ge \dots \ge s_n$, divided by a softness
# $\varepsilon$, and $w = (n, \dots, 1)$, the soft ranks are $s/\varepsilon - y(s/\varepsilon - w)$. The largest score has rank $n$, and so on:


# %%
def soft_ranks(scores: Tensor, softness: float) -> Tensor:
    """scores (n,) → (n,), the larger the score the larger the rank."""
    ordered, order = (scores / softness).sort(descending=True)
    w = torch.arange(len(scores), 0, -1, dtype=scores.dtype)
    ranks = ordered - isotonic(ordered - w, in_dims=None)
    return torch.zeros_like(scores).scatter(0, order, ranks)


scores = torch.tensor([0.3, -1.2, 2.0, 0.4])
for softness in (0.01, 0.5, 5.0):
    print(f"softness {softness:4}: {soft_ranks(scores, softness)}")

# %% [markdown]
# With a small softness these are the ranks; with a large one they fade into one another, and each has a gradient.
#
# **What for?** Suppose the target is only meaningful up to order: a doctor's scale, or here the progression of diabetes, through a distortion that nobody knows
# ($t \mapsto e^{t/25}$, so that a few patients dominate everything). Least squares chases these few. Spearman's correlation, the correlation of *ranks*, does
# not see the distortion. Now we can train for it, and compare on patients not seen, over several splits:

# %%
features, target = (torch.as_tensor(a) for a in load_diabetes(return_X_y=True))
features = (features - features.mean(0)) / features.std(0)
distorted = torch.exp(target / 25)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / (a.norm() * b.norm())


def compared(seed: int, steps: int) -> tuple[float, float, float]:
    """Spearman's correlation on unseen patients: least squares, Pearson's correlation, soft ranks."""
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(seed))
    train, test = order[:250], order[250:]
    ranks = distorted[train].argsort().argsort().double()
    design = torch.cat([features, torch.ones(len(features), 1)], 1)
    least_squares = torch.linalg.lstsq(design[train], distorted[train, None]).solution[:-1, 0]
    weights = [least_squares]
    for goal in (lambda s: correlation(s, distorted[train]), lambda s: correlation(soft_ranks(s, 0.1), ranks)):
        w = (0.1 * torch.ones(features.shape[1])).requires_grad_()
        adam = torch.optim.Adam([w], 0.08)
        for _ in range(steps):
            adam.zero_grad()
            s = features[train] @ w
            (-goal(s / s.detach().std())).backward()
            adam.step()
        weights.append(w.detach())
    return tuple(spearmanr(features[test] @ w, target[test]).statistic for w in weights)


results = torch.tensor([compared(seed, 3 if QUICK else 60) for seed in range(1 if QUICK else 5)])
for name, column in zip(("least squares", "Pearson's correlation", "soft ranks"), results.T, strict=True):
    print(f"{name:22} Spearman on unseen patients {column.mean():.3f} ({column.min():.3f}–{column.max():.3f})")
print(f"soft ranks ahead of least squares in {int((results[:, 2] > results[:, 0]).sum())} of {len(results)} splits")

# %% [markdown]
# Each step calls scikit-learn for the solution, and the node for its gradient.
#
# ## 3. A model in cvxpy
#
# A portfolio: returns $x$ are expected, $\Sigma$ is the risk, no share above 40 %, and at least a given return. State it twice, once for cvxpy and once for
# the gradient. cvxpy knows the multipliers as well; with `multipliers=True` they are used and not recovered.

# %%
ASSETS = 6
factors = torch.randn(ASSETS, 3)
risk = factors @ factors.mT + 0.1 * torch.eye(ASSETS)


class Portfolio(DeclarativeNode):
    """returns (6,), floor () → shares (6,)"""

    def objective(self, returns: Tensor, floor: Tensor, y: Tensor) -> Tensor:
        return 0.5 * y @ risk @ y

    def equality_constraints(self, returns: Tensor, floor: Tensor, y: Tensor) -> Tensor:
        return y.sum() - 1

    def inequality_constraints(self, returns: Tensor, floor: Tensor, y: Tensor) -> Tensor:
        return torch.cat([-y, y - 0.4, (floor - returns @ y).reshape(1)])

    def initial_guess(self, returns: Tensor, floor: Tensor) -> Tensor:
        return torch.full_like(returns, 1 / ASSETS)


u, r, least = cvxpy.Variable(ASSETS), cvxpy.Parameter(ASSETS), cvxpy.Parameter()
constraints = [cvxpy.sum(u) == 1, -u <= 0, u - 0.4 <= 0, least - r @ u <= 0]
program = cvxpy.Problem(cvxpy.Minimize(0.5 * cvxpy.quad_form(u, cvxpy.psd_wrap(risk.numpy()))), constraints)


def by_cvxpy(returns: np.ndarray, floor: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | Status:
    r.value, least.value = returns, float(floor)
    program.solve(solver=cvxpy.CLARABEL)
    if program.status != "optimal":
        return Status.INFEASIBLE
    duals = [np.atleast_1d(constraint.dual_value) for constraint in constraints]
    return u.value, duals[0], np.concatenate(duals[1:])


returns = 0.05 + 0.02 * torch.randn(4, ASSETS)
floor = torch.tensor([0.045, 0.055, 0.20, 0.06])  # the third is out of reach
node = Portfolio(solver=External(by_cvxpy, multipliers=True, on_failure="nan"), polish=3)
s = node.solution(returns, floor)
for i in range(4):
    print(f"floor {100 * floor[i]:4.1f} %: {Status(int(s.status[i])).meaning:42} {[round(v, 3) for v in s.y[i].tolist()]}")

# %% [markdown]
# One portfolio is impossible. It is NaN, it is named, and the other three have not noticed; with `on_failure="raise"`, the default, it would have been an
# error that says which sample it was. `polish=3` takes the digits that cvxpy left open.
#
# The multiplier of the floor is a price: what a little more return costs in risk. It is differentiable, and it agrees with the derivative of the least risk:

# %%
good = torch.tensor([0, 1, 3])
leaf = floor[good].clone().requires_grad_()
s = node.solution(returns[good], leaf)
least_risk = 0.5 * (s.y @ risk * s.y).sum(1)
(slope,) = torch.autograd.grad(least_risk.sum(), leaf)
price = s.inequality_multipliers[:, -1].detach()
print("d(least risk)/d(floor):", slope, " multiplier:", price)
torch.testing.assert_close(slope, price, atol=1e-7, rtol=1e-6)

# %% [markdown]
# ## 4. A solver in a hurry
#
# How good must a solution be? The gradient formula is right *at* the solution. At a point that is $\delta$ away its error is about as large as $\delta$
# (times the problem's curvature). Stop mirror descent early, on purpose, and see:


# %%
class LogShares(DeclarativeNode):
    """min Σ y log y − xᵀy + ½ (aᵀy)² over the simplex, by a few steps of mirror descent"""

    def __init__(self, steps: int, **options: object) -> None:
        super().__init__(solver=None, **options)
        self.steps = steps

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return (y * y.log()).sum() - x @ y + 0.5 * (torch.linspace(-1, 2, len(x)) @ y) ** 2

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        return y.sum() - 1

    def solve(self, x: Tensor) -> Tensor:  # batch first; whatever runs here is not recorded
        a, y = torch.linspace(-1, 2, x.shape[1]), x.softmax(1)
        for _ in range(self.steps):
            y = (0.7 * y.log() + 0.3 * (x - a * (y @ a).unsqueeze(1))).softmax(1)
        return y


x = torch.randn(5, 6)


def gradient(node: DeclarativeNode) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad((node(leaf) ** 3).sum(), leaf)[0]


exact = gradient(LogShares(400))
table = {name: [] for name in ("as it comes", "polish=1", "polish=2")}
counts = (15, 20, 25, 30, 40, 50)
for steps in counts:
    for polish, errors in enumerate(table.values()):
        errors.append(float((gradient(LogShares(steps, polish=polish)) - exact).abs().max() / exact.abs().max()))
    print(f"{steps:3} steps: error of the gradient " + ", ".join(f"{name} {errors[-1]:.0e}" for name, errors in table.items()))

figure, axis = plt.subplots(figsize=(6.5, 3.4))
for (name, errors), style in zip(table.items(), ("o-", "s--", "^:"), strict=True):
    axis.semilogy(counts, errors, style, label=name)
axis.set(xlabel="steps of the solver", ylabel="relative error of the gradient", title="a solver in a hurry, polished")
axis.legend()
figure.tight_layout()

# %% [markdown]
# Each Newton step on the optimality conditions about doubles the number of right digits. One step of polishing costs about as much as one backward pass,
# so it is nearly always worth it. With fewer steps than these the point is refused:

# %%
try:
    LogShares(8)(x)
except Exception as error:
    print(f"{type(error).__name__}: {error}")

# %% [markdown]
# ## 5. A simulation as a solver
#
# A chain hangs between two nails. Its links are springs, its joints carry unknown weights $x$. It swings, friction slows it down, it comes to rest:
# nature solves
#
# $$y(x) = \arg\min_u \sum_i x_i\, u_{i,2} + \tfrac{k}{2} \sum_i \big(\|u_{i+1} - u_i\| - \ell\big)_+^2 \quad \text{(height times weight, plus stretch)} .$$
#
# So a simulator of the motion is a solver. It takes thousands of steps, and none of them is recorded. What is known is where the chain hangs, measured
# with an error. What are the weights?

# %%
JOINTS, STIFFNESS, REST = 9, 300.0, 0.1
nails = torch.tensor([[0.0, 0.0], [0.8, 0.0]])


def energy(weights: Tensor, y: Tensor) -> Tensor:
    """weights (…, 9), y (…, 9, 2) → (…)"""
    ends = nails.expand(*y.shape[:-2], 2, 2)
    points = torch.cat([ends[..., :1, :], y, ends[..., 1:, :]], -2)
    stretch = ((points[..., 1:, :] - points[..., :-1, :]).square().sum(-1) + 1e-12).sqrt() - REST
    return (weights * y[..., 1]).sum(-1) + 0.5 * STIFFNESS * stretch.relu().square().sum(-1)


class Chain(DeclarativeNode):
    def objective(self, weights: Tensor, y: Tensor) -> Tensor:
        return energy(weights, y)

    def solve(self, weights: Tensor) -> Tensor:
        """Let it swing until it hangs still."""
        across = torch.linspace(0, 0.8, JOINTS + 2)[1:-1]
        y = torch.stack([across, -0.4 * (1 - ((across - 0.4) / 0.4) ** 2)], 1).repeat(len(weights), 1, 1)
        speed, force = torch.zeros_like(y), torch.func.grad(lambda y: energy(weights, y).sum())
        for _ in range(1000):
            speed = 0.97 * speed - 1e-3 * force(y)  # mass and time step in one number
            y = y + speed
        return y


chain = Chain(polish=4)
true_weights = torch.tensor([[1.0, 1, 1, 4, 1, 1, 1, 2, 1]])
hanging = chain(true_weights).detach()
seen = hanging + 0.002 * torch.randn(5 if QUICK else 20, *hanging.shape[1:])  # photographs, with an error of 2 mm
report = verify(chain, true_weights)
print("the gradient through the simulation is right:", report.ok)
assert report.ok

logs = torch.zeros(1, JOINTS, requires_grad=True)  # logarithms of the weights, from equal ones
adam = torch.optim.Adam([logs], 0.1)
for _ in range(3 if QUICK else 60):
    adam.zero_grad()
    loss = ((chain(logs.exp()) - seen) ** 2).sum((1, 2)).mean()
    loss.backward()
    adam.step()
guess = chain(logs.exp()).detach()
print("true weights   ", true_weights[0])
print("found by looking", logs.detach().exp()[0])

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
for shape, style, label in ((chain(torch.ones(1, JOINTS)), "k:o", "equal weights (start)"), (hanging, "C0-o", "true"), (guess, "C1--s", "found")):
    points = torch.cat([nails[:1], shape[0].detach(), nails[1:]])
    left.plot(*points.T, style, markersize=4, label=label)
left.set(xlabel="metres", ylabel="height (metres)", title="the chain", aspect="equal")
left.legend(fontsize=8)
place = torch.arange(1, JOINTS + 1)
right.bar((place - 0.2).tolist(), true_weights[0].tolist(), 0.4, label="true")
right.bar((place + 0.2).tolist(), logs.detach().exp()[0].tolist(), 0.4, label="found", hatch="//")
right.set(xlabel="joint", ylabel="weight (newtons)", title="the weights", xticks=place.tolist())
right.legend()
figure.tight_layout()

# %% [markdown]
# The memory of the backward pass does not depend on how long the chain swings. (A chain that never stretches would only tell the weights up to a
# factor; it is the stretch that tells their sum. And neighbours are hard to tell apart: a little more here, a little less there hang nearly the same.)
#
# ## 6. A solver that is wrong
#
# The result of a solver is never believed, only judged by the statement. A sorted sequence is *not* the isotonic regression, and not knowing that is easy:

# %%
wrong = Isotonic(solver=External(lambda x: np.sort(x)[::-1]))
try:
    wrong(torch.randn(3, 8))
except Exception as error:
    print(f"{type(error).__name__}: {error}")

# %% [markdown]
# ## Which way?
#
# | you have | write |
# |---|---|
# | a function of one instance, in numpy or cvxpy | `solver=External(function)` |
# | a batched algorithm in torch, or one that needs the node's parameters | the method `solve(self, x)`, batch first |
# | … that knows its multipliers | return a `Solution`, or `External(function, multipliers=True)` |
# | a solver that stops early | add `polish=1`, or 2 |
# | any method of `scipy.optimize.minimize` | `solver=SciPy("trust-constr")` |
# | a linear program | `solver=SciPy("highs")` |
#
# ## To try
#
# * Give the isotonic regression weights: `isotonic_regression(x, sample_weight=w)`, and another input. `verify` it.
# * Train the ranking with the undistorted target. Who is ahead then?
# * In section 4, write a solver that diverges. What is said?
# * Hang a second chain from the first one, or learn the stiffness, too: a parameter of the node.
