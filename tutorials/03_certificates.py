# %% [markdown]
# # When is a solution regular? Certificates
#
# A layer that returns a minimiser is differentiated by the implicit function theorem. The theorem has conditions. Where they fail, there may be no
# derivative, or two, or one that belongs to a point that is no minimiser; and the formula often returns a number all the same. You will
#
# 1. see what must hold, and read a certificate that measures it;
# 2. meet each way of failing with a picture: no curvature, constraints said twice, a kink, a jump, a vertex, a saddle point;
# 3. see for each what the backward pass does, under every option, and what it reports;
# 4. put all of them into one batch, and watch the neighbours stay exact;
# 5. count how often it happens to a real layer, and decide what to do in training.

# %%
import os
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from declarative import DeclarativeNode, Implicit, IrregularPointError, certify
from declarative.layers import Sparsemax
from declarative.solvers import MultiStart, Newton

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # problems this small gain nothing from a second thread

QUICK = os.environ.get("DECLARATIVE_QUICK") == "1"  # small sizes, for tests

plt.rcParams.update({"figure.dpi": 72, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False})
BLUE, RED, GREY, BLACK = "#0072B2", "#D55E00", "#999999", "#000000"

# %% [markdown]
# ## 1. What must hold
#
# $y(x) = \arg\min_y f(x, y)$ subject to $h = 0$, $g \le 0$. With $L = f + \nu^\top h + \mu^\top g$, $H = \nabla^2_{yy}L$, and $A$ the gradients of
# the constraints that are active ($h$, and those $g_i = 0$ with $\mu_i > 0$), differentiating the optimality conditions gives
#
# $$K \begin{pmatrix} dy \\ d\lambda \end{pmatrix} = -\begin{pmatrix} B \\ C \end{pmatrix} dx, \qquad K = \begin{pmatrix} H & A^\top \\ A & 0 \end{pmatrix}.$$
#
# The step from the conditions to a derivative is allowed where
#
# * **second-order sufficiency**: $d^\top H d > 0$ for every $d \ne 0$ with $Ad = 0$. There is curvature along every direction that is left;
# * **LICQ**: the gradients of the constraints that hold with equality are linearly independent. The multipliers are unique;
# * **strict complementarity**: no inequality holds with equality while its multiplier is zero. The set of active constraints stays what it is nearby.
#
# $K$ is then invertible. `certify` measures all three, sample by sample. A regular case first: the point of a disc that is nearest to $x$.

# %%


class Disc(DeclarativeNode):
    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum()

    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        return y.square().sum() - 1

    def initial_guess(self, x: Tensor) -> Tensor:
        return 0 * x


x = torch.tensor([[0.3, -0.2], [2.0, 1.0], [-0.5, 3.0]])
print(certify(Disc(), x))

# %% [markdown]
# Residuals first: the points satisfy the optimality conditions. Then the margins. `licq margin` is the smallest singular value of $A$, `second order
# margin` the smallest eigenvalue of $H$ where $Ad = 0$; zero would be trouble. `kkt condition` is the condition number of $K$. The worst sample is named.
#
# One function for all that follows: $\partial y/\partial x$ of each sample, and the report of the backward pass.

# %%


def jacobian(node: DeclarativeNode, *inputs: Tensor, **options: Any) -> tuple[Tensor, dict[int, str]]:
    """(∂y/∂x (b, m, n) in the first input, what the report says of irregular samples), under these options of `Implicit`."""
    node.differentiation = Implicit(**options)
    x = inputs[0].clone().requires_grad_()
    s = node.solution(x, *inputs[1:])
    assert isinstance(s.y, Tensor)
    assert s.report is not None
    rows = [torch.autograd.grad(s.y[:, k].sum(), x, retain_graph=True)[0] for k in range(s.y.shape[1])]
    return torch.stack(rows, 1), s.report.irregular


def show(matrix: Tensor) -> str:
    return str([[round(float(value), 4) + 0.0 for value in row] for row in matrix])


# %% [markdown]
# ## 2. No curvature
#
# Least squares with two columns that enclose an angle $t$: $\min_y \frac12\|y_0 a_0 + y_1 a_1(t) - b\|^2$. As $t \to 0$ the columns become one; only the sum
# $y_0 + y_1$ is determined, and the minimum is a valley.

# %%


class Columns(DeclarativeNode):
    """b (2,), t () -> y (2,)"""

    def objective(self, b: Tensor, t: Tensor, y: Tensor) -> Tensor:
        column = torch.stack([t.cos(), t.sin()])
        return 0.5 * (torch.stack([y[0], 0 * y[0]]) + y[1] * column - b).square().sum()

    def solve(self, b: Tensor, t: Tensor) -> Tensor:  # the shortest solution
        design = torch.stack([torch.stack([torch.ones_like(t), t.cos()], 1), torch.stack([torch.zeros_like(t), t.sin()], 1)], 1)
        return (torch.linalg.pinv(design) @ b.unsqueeze(2)).squeeze(2)


angles = torch.tensor([0.5, 0.0, 1.0])
b = torch.tensor([[1.0, 0.0]]).expand(3, 2)
print(certify(Columns(), b, angles))
try:
    jacobian(Columns(), b, angles)
except IrregularPointError as error:
    print(f"\nraised: {error}\n")
for policy in ("nan", "zero", "min_norm"):
    found, report = jacobian(Columns(), b, angles, irregular=policy)
    print(f"irregular={policy!r:11} sample 1: {show(found[1])}   report: {report}")
    assert list(report) == [1]
    assert bool(found[[0, 2]].isfinite().all())

# %% [markdown]
# The default refuses: there is no unique derivative, and nobody asked for a particular one. `"min_norm"` moves along the valley as little as
# possible. Here that is right for the *sum* $y_0 + y_1$, which is all that the problem determines; the two rows of one half are a choice.
#
# Trouble is not only at the point. Near it the certificate is green, and yet the derivative is as large as $1/t$:

# %%
near = torch.logspace(0, -6, 25)
many = torch.tensor([[1.0, 0.3]]).expand(25, 2)
certificate = certify(Columns(), many, near)
sizes = jacobian(Columns(), many, near, irregular="min_norm")[0].flatten(1).norm(dim=1)
figure, axis = plt.subplots(figsize=(6, 3.2))
axis.loglog(near, sizes, "o-", color=RED, markersize=4, label="‖∂y/∂b‖, largest change of the solution")
axis.loglog(near, certificate.second_order_margin.clamp_min(1e-18), "s--", color=BLUE, markersize=4, label="second order margin")
axis.plot(near[~certificate.regular], sizes[~certificate.regular], "o", color=BLACK, markersize=8, fillstyle="none", label="not regular, says the certificate")
axis.set(xlabel="angle t between the columns, rad", ylabel="value", title="a valley in the making")
axis.legend(fontsize=8)
figure.tight_layout()
print(f"regular down to an angle of {float(near[certificate.regular].min()):.0e}; ‖∂y/∂b‖ is {float(sizes[certificate.regular].max()):.0e} there")
assert bool(certificate.regular[0])
assert not bool(certificate.regular[-1])

# %% [markdown]
# The margin falls with $t^2$, and from about $10^{-8}$ on it counts as zero, for it cannot be told from rounding. So watch the numbers, not only the
# verdict. The cure is in the statement: add $\frac{\varepsilon}{2}\|y\|^2$, and the problem says what it wants along the valley.
#
# ## 3. Said twice
#
# $\min \frac12\|y - x\|^2$ with $y_0 \le d_0$ and $2y_0 \le 2d_1$. At $d_0 = d_1$ this is one constraint, twice.

# %%


class Twice(DeclarativeNode):
    """x (2,), d (2,) -> y (2,)"""

    def objective(self, x: Tensor, d: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum()

    def inequality_constraints(self, x: Tensor, d: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[0] - d[0], 2 * (y[0] - d[1])])

    def solve(self, x: Tensor, d: Tensor) -> Tensor:
        return torch.cat([torch.minimum(x[:, :1], d.amin(1, keepdim=True)), x[:, 1:]], 1)


x, d = torch.tensor([[2.0, 0.5]]), torch.tensor([[1.0, 1.0]])
print(*certify(Twice(), x, d).causes[0], sep="\n")
found, report = jacobian(Twice(), x, d, irregular="min_norm")
print(f"∂y/∂x = {show(found[0])}   report: {report}")
assert torch.allclose(found[0], torch.tensor([[0.0, 0.0], [0.0, 1.0]]), atol=1e-12)
multipliers = Twice().solution(x, d).inequality_multipliers
print(f"multipliers (one of many with μ₀ + 2μ₁ = 1): {multipliers}")

# %% [markdown]
# The multipliers are not unique, so $K$ is singular. Yet $y$ does not care: whichever of the two rows holds it, $y_0$ stays at $1$. `"min_norm"` returns this
# derivative in $x$ exactly.
#
# Is it always right for redundant constraints? Only for inputs that move them *together*. Push one of the two alone, and they are not redundant any
# more: $y_0 = \min(d_0, d_1)$ has a kink, which min_norm smooths over without a word.

# %%
d_leaf = d.clone().requires_grad_()
y = Twice(differentiation=Implicit(irregular="min_norm"))(x, d_leaf)
assert isinstance(y, Tensor)
(split,) = torch.autograd.grad(y[:, 0].sum(), d_leaf)
step = 1e-4


def pushed(amount: float) -> float:
    y = Twice()(x, d + torch.tensor([[amount, 0.0]]))
    assert isinstance(y, Tensor)
    return float(y[0, 0])


left, right = (pushed(0) - pushed(-step)) / step, (pushed(step) - pushed(0)) / step
print(f"∂y₀/∂d₀: by min_norm {float(split[0, 0]):.2f}; from the left {left:.2f}, from the right {right:.2f}")
print(f"∂y₀/∂d₀ + ∂y₀/∂d₁, both together: {float(split.sum()):.2f}, which is right")
assert abs(float(split.sum()) - 1) < 1e-9

# %% [markdown]
# ## 4. A kink
#
# $\min \frac12(y - x)^2$ subject to $y \ge 0$ is $\max(x, 0)$. At $x = 0$ the constraint holds with equality and does not push: it is *weakly active*. The
# solution is continuous, its derivative has two candidates, one for each side. `weakly_active=` chooses. `smoothing=τ` differentiates the relaxed conditions
# $-\mu g = \tau$ of an interior point method instead; it changes derivatives at regular points too, those near the kink most.

# %%


class Positive(DeclarativeNode):
    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum()

    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        return -y

    def solve(self, x: Tensor) -> Tensor:
        return x.clamp_min(0)


kink = torch.tensor([[-1.0], [0.0], [2.0]])
print(*certify(Positive(), kink).causes, sep="\n")
for side in ("inactive", "active", "nan", "zero"):
    found, report = jacobian(Positive(), kink, weakly_active=side)
    print(f"weakly_active={side!r:10}  {[float(v) for v in found.flatten()]}   report: {report}")
try:
    jacobian(Positive(), kink, weakly_active="raise")
except IrregularPointError as error:
    print(f"weakly_active='raise': {error}")
weak = Positive().solution(kink).weakly_active
assert weak is not None
print(f"Solution.weakly_active: {weak.flatten().tolist()}")

grid = torch.linspace(-1, 1, 81).unsqueeze(1)
figure, axes = plt.subplots(1, 2, figsize=(10, 3.2))
axes[0].plot(grid, grid.clamp_min(0), color=BLACK, label="y(x)")
axes[0].plot([0, 0.7], [0, 0.7], color=RED, linewidth=5, alpha=0.4, label="side where it is inactive: slope 1")
axes[0].plot([-0.7, 0], [0, 0], color=BLUE, linewidth=5, alpha=0.4, label="side where it is active: slope 0")
axes[0].set(xlabel="x", ylabel="y", title="the solution has a kink")
axes[0].legend(fontsize=8)
for tau, style, colour in ((0.0, "-", BLACK), (1e-3, "--", BLUE), (1e-2, "-.", RED), (1e-1, ":", "#009E73")):
    axes[1].plot(grid, jacobian(Positive(), grid, smoothing=tau)[0].flatten(), style, color=colour, label=f"smoothing={tau:g}")
axes[1].set(xlabel="x", ylabel="∂y/∂x", title="its derivative, exact and smoothed")
axes[1].legend(fontsize=8)
figure.tight_layout()
assert abs(float(jacobian(Positive(), kink, smoothing=1e-2)[0][1]) - 0.5) < 1e-9

# %% [markdown]
# A kink is not an error, so the default takes a side, as ReLU does in every network, and marks the sample in `Solution.weakly_active`. The report is
# empty: it lists singular matrices, and this one is regular.
#
# ## 5. A jump
#
# $f = (y^2 - 1)^2 + xy$ has two valleys. The lower one is on the left for $x > 0$, on the right for $x < 0$. At $x = 0$ they tie.

# %%


class Well(DeclarativeNode):
    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return ((y.square() - 1).square() + x * y).sum()

    def initial_guess(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


path = torch.linspace(-1.6, 1.6, 41 if QUICK else 161).unsqueeze(1)
lowest, following = Well(solver=MultiStart(Newton(), starts=6)), Well()
branches = {"lowest minimum (six starts)": lowest(path), "nearest minimum, from y = 1": following(path)}
slopes = {"lowest minimum (six starts)": jacobian(lowest, path)[0].flatten(), "nearest minimum, from y = 1": jacobian(following, path)[0].flatten()}
figure, axes = plt.subplots(1, 3, figsize=(12, 3.2))
line = torch.linspace(-1.5, 1.5, 200)
for value, style in ((-0.4, "--"), (0.0, "-"), (0.4, ":")):
    axes[0].plot(line, (line.square() - 1).square() + value * line, style, color=BLACK, label=f"x = {value:g}")
axes[0].set(xlabel="y", ylabel="f(x, y)", title="two valleys", ylim=(-0.6, 1.8))
for (name, y), style, colour in zip(branches.items(), ("o", "."), (RED, BLUE), strict=True):
    assert isinstance(y, Tensor)
    axes[1].plot(path, y, style, color=colour, markersize=4 if style == "o" else 3, label=name)
    axes[2].semilogy(path, slopes[name].abs(), style, color=colour, markersize=4 if style == "o" else 3)
axes[1].set(xlabel="x", ylabel="y(x)", title="the solution jumps")
axes[2].set(xlabel="x", ylabel="|∂y/∂x|", title="and its derivative does not say so")
for axis in axes[:2]:
    axis.legend(fontsize=8)
figure.tight_layout()
print(f"regular by the certificate: {int(certify(lowest, path).regular.sum())} of {len(path)} points of the lowest minimum, the tie at x = 0 among them")
assert bool(certify(lowest, path).regular.all())

# %% [markdown]
# Every point is a regular minimiser, at the tie as well, and the derivative is right on either side. The jump is not in it, and cannot be: the
# conditions are local, and so is the certificate. Gradient descent will not cross a jump knowingly. The solver that follows the nearest minimum
# jumps too, but later, where its valley ends: at $x^* = 8/(3\sqrt 3) \approx 1.54$ the curvature vanishes and the slope grows without bound.
#
# ## 6. A vertex
#
# A linear program, $\min x^\top y$ over the simplex. Its solution sits in a corner and stays there while $x$ moves a little.

# %%


class Cheapest(DeclarativeNode):
    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return x @ y

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        return y.sum() - 1

    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        return -y

    def solve(self, x: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(x.argmin(1), x.shape[1]).to(x.dtype)


costs = torch.tensor([[0.2, 1.0, 2.0], [1.0, 1.0, 2.0]])
print(certify(Cheapest(), costs))
print(f"sample 0, exact:           {show(jacobian(Cheapest(), costs[:1])[0][0])}")
for tau in (1e-2, 1e-1):
    print(f"sample 0, smoothing={tau:<5g}: {show(jacobian(Cheapest(), costs[:1], smoothing=tau)[0][0])}")
for side in ("inactive", "active"):
    found, report = jacobian(Cheapest(), costs, irregular="nan", weakly_active=side)
    print(f"sample 1, weakly_active={side!r:10}: {show(found[1])}   report: {report}")

# %% [markdown]
# Sample 0 is regular although $H = 0$: three constraints in three dimensions leave no direction that would need curvature. The zero is *correct*, and
# useless for learning. Smoothing gives a direction: a lower cost attracts mass. It is the derivative of another problem, and you asked for it.
#
# Sample 1 has two cheapest corners. There a bound is weakly active. Counted as active it holds $y$ in its corner; as inactive, nothing does, and $K$ is
# singular: two options, one for each question.
#
# ## 7. Not a minimiser at all
#
# A `solve` of your own may return a stationary point of the wrong kind. Every first-order condition holds and $K$ is regular, so the backward pass
# has no reason to complain. Here is the farthest point of a sphere in place of the nearest, and a saddle.

# %%


class Sphere(DeclarativeNode):
    """The nearest point of the unit sphere; `solve` returns the farthest where x₀ > 0."""

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (y - x).square().sum()

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        return y.square().sum() - 1

    def solve(self, x: Tensor) -> Tensor:
        return torch.where(x[:, :1] > 0, -1.0, 1.0) * torch.nn.functional.normalize(x)


x = torch.tensor([[-3.0, 4.0], [0.6, 0.8]])
found, report = jacobian(Sphere(), x)
status = Sphere().solution(x).status
assert status is not None
print(f"status {status.tolist()} (0 is converged), report {report}, ∂y/∂x of sample 1: {show(found[1])}")
certificate = certify(Sphere(), x)
print(certificate.causes)
assert certificate.minimiser.tolist() == [True, False]

# %% [markdown]
# A step against this gradient moves a *maximiser*. Only `certify` looks at the sign of the curvature, and `verify` begins with it. (The built-in
# Newton and interior point methods leave such points by themselves.)
#
# ## 8. All in one batch
#
# One statement, seven samples: $\min \frac12\sum_i q_i y_i^2 - x^\top y$ with $Gy \le d$. The numbers decide what each one is.

# %%


class Small(DeclarativeNode):
    """x (2,), q (2,), G (2, 2), d (2,), and the point itself, which `solve` returns."""

    def objective(self, x: Tensor, q: Tensor, G: Tensor, d: Tensor, point: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (q * y.square()).sum() - x @ y

    def inequality_constraints(self, x: Tensor, q: Tensor, G: Tensor, d: Tensor, point: Tensor, y: Tensor) -> Tensor:
        return G @ y - d

    def solve(self, x: Tensor, q: Tensor, G: Tensor, d: Tensor, point: Tensor) -> Tensor:
        return point


box = [[1, 0], [0, 1]]
kinds = {  # x, q, G, d, y
    "free": ([0.5, 0.2], [1, 1], box, [2, 2], [0.5, 0.2]),
    "flat": ([0.5, 0.0], [1, 0], box, [2, 2], [0.5, 0.3]),
    "said twice": ([2.0, 0.2], [1, 1], [[1, 0], [2, 0]], [1, 2], [1.0, 0.2]),
    "weakly active": ([1.0, 0.2], [1, 1], box, [1, 2], [1.0, 0.2]),
    "vertex": ([1.0, 2.0], [0, 0], box, [1, 1], [1.0, 1.0]),
    "saddle": ([0.5, 0.0], [1, -1], box, [2, 2], [0.5, 0.0]),
    "held by a bound": ([2.0, 0.2], [1, 1], box, [1, 2], [1.0, 0.2]),
}
batch = tuple(torch.tensor([kind[k] for kind in kinds.values()], dtype=torch.float64) for k in range(5))
certificate = certify(Small(), *batch)
for name, causes in zip(kinds, certificate.causes, strict=True):
    print(f"{name:16} {'; '.join(causes) or 'regular'}")
assert certificate.regular.tolist() == [True, False, False, False, True, False, True]

columns: dict[str, dict[str, Any]] = {
    "nan": {"irregular": "nan", "weakly_active": "nan"},
    "zero": {"irregular": "zero", "weakly_active": "zero"},
    "min_norm, inactive": {"irregular": "min_norm"},
    "min_norm, active": {"irregular": "min_norm", "weakly_active": "active"},
    "smoothing 1e-2": {"irregular": "min_norm", "smoothing": 1e-2},
}


def diagonal(matrix: Tensor) -> str:
    return ", ".join(f"{float(value) + 0.0:.2f}" for value in matrix.diagonal().round(decimals=4))


answers = {name: jacobian(Small(), *batch, **options) for name, options in columns.items()}
print(f"\nthe diagonal of ∂y/∂x\n{'':16}" + "".join(f"{name:>20}" for name in columns))
for i, name in enumerate(kinds):
    print(f"{name:16}" + "".join(f"{diagonal(found[i]):>20}" for found, _ in answers.values()))
print("\nthe report:", *[f"sample {i}: {cause}" for i, cause in answers["nan"][1].items()], sep="\n  ")

regular = certificate.regular
alone = torch.cat([jacobian(Small(), *(t[i : i + 1] for t in batch))[0] for i in regular.nonzero().flatten()])
for name, (found, _) in answers.items():
    assert name.startswith("smoothing") or torch.equal(found[regular], alone)

# %% [markdown]
# Whatever becomes of the irregular samples, the regular ones are what they are alone, to the last digit. (`smoothing` is the exception: it is meant for
# all. On a valley it returns a very large number.) And the saddle passes under every option.
#
# A NaN stays where it is: a loss that does not use such a sample gets no NaN from it.
#
# ## 9. How often does it happen?
#
# Sparsemax is the projection of logits onto the simplex. Each time an entry enters or leaves the support, there is a kink. Along a random straight path:

# %%
count = 101 if QUICK else 401
ends = 0.8 * torch.randn(2, 6)
times = torch.linspace(0, 1, count).unsqueeze(1)
walk = Sparsemax().solution(torch.lerp(ends[0], ends[1], times))
assert isinstance(walk.y, Tensor)
assert walk.active is not None
assert walk.weakly_active is not None
changed = (walk.active[1:] != walk.active[:-1]).any(1)
changes = int(changed.sum())
figure, axis = plt.subplots(figsize=(7, 3))
for k, style in enumerate(("-", "--", "-.", ":", "-", "--")):
    axis.plot(times, walk.y[:, k], style, label=f"entry {k}")
for place in times[1:][changed]:
    axis.axvline(float(place), color=GREY, linewidth=0.8)
axis.set(xlabel="position on the path", ylabel="sparsemax", title="kinks (grey lines), and regular points between them")
axis.legend(fontsize=8, ncols=2)
figure.tight_layout()
print(f"{changes} changes of the support, {int(walk.weakly_active.any(1).sum())} of {count} points weakly active")
assert changes > 0

# %% [markdown]
# The path crosses kinks, but to *land* on one is an event of probability zero. So one may think that it does not happen. It does, where inputs are
# counts, pixels, ratings, ranks, anything rounded. Logits on a grid:

# %%
logits = torch.randn(1000 if QUICK else 20_000, 10)
shares = {}
for spacing in (1.0, 0.5, 0.25, 0.125, 1 / 64, 0.0):
    rounded = logits if spacing == 0 else (logits / spacing).round() * spacing
    weak = Sparsemax().solution(rounded).weakly_active
    assert weak is not None
    shares[spacing] = float(weak.any(1).double().mean())
    print(f"{'multiples of ' + str(spacing) if spacing else 'not rounded':22} {100 * shares[spacing]:5.1f} % of samples weakly active")
assert shares[1.0] > 0.3
assert shares[0.0] == 0

# %% [markdown]
# With whole numbers it is about two samples in five: $\mathrm{sparsemax}(1, 0) = (1, 0)$, exactly at the edge. Does it matter in training? A linear map
# in front of sparsemax starts at a quarter of the identity, or at the identity, and sees whole numbers; a teacher says what should come out. Five seeds:

# %%


def train(seed: int, side: str, start: float, steps: int) -> tuple[list[float], list[float], float]:
    """(share of weakly active samples at each step, loss at each step, share of samples at a vertex in the first one)"""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randint(0, 4, (256, 6), generator=generator).double()
    target = Sparsemax()(features @ (0.4 * torch.randn(6, 6, generator=generator)))
    weight = (start * torch.eye(6)).requires_grad_()
    layer = Sparsemax(differentiation=Implicit(weakly_active=side))
    optimiser = torch.optim.Adam([weight], lr=0.03)
    shares, losses, vertices = [], [], 0.0
    for _ in range(steps):
        s = layer.solution(features @ weight)
        assert isinstance(s.y, Tensor)
        assert s.weakly_active is not None
        loss = (s.y - target).square().sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        shares.append(float(s.weakly_active.any(1).double().mean()))
        vertices = vertices if losses else float((s.y.amax(1) == 1).double().mean())
        losses.append(loss.item())
    return shares, losses, vertices


steps, seeds = (5, 1) if QUICK else (200, 5)
for start in (0.25, 1.0):
    for side in ("inactive", "active", "zero"):
        runs = [train(seed, side, start, steps) for seed in range(seeds)]
        final = torch.tensor([losses[-1] for _, losses, _ in runs])
        weak = [100 * sum(shares[k] for shares, _, _ in runs) / seeds for k in range(3)]
        print(f"start {start:<4} {side:9} loss after {steps} steps: {', '.join(f'{float(loss):.4f}' for loss in final)}; mean {float(final.mean()):.4f}")
        assert weak[0] > 10
        assert weak[2] < 5
    print(f"{'':21}weakly active in steps 1 to 3: {', '.join(f'{share:.1f}' for share in weak)} % of samples")
    print(f"{'':21}at a vertex in step 1: {100 * sum(vertices for _, _, vertices in runs) / seeds:.1f} %")
try:
    train(0, "nan", 0.25, 2)
except ValueError as error:
    print(f"nan       {error}")

# %% [markdown]
# Three lessons.
#
# * From the smaller start a fifth of the first batch sits on kinks, and it makes no difference in the end which side is taken: after one step of Adam the
#   weights are no round numbers any more, and kinks are gone. Take the default.
# * From the larger start the losses end about ten times as high on average, under every option. (In one seed of five the side decides where it ends.) Two
#   outputs in five begin at a vertex, where the derivative is zero or, at its edge, zero on one side. More is lost by saturation than by kinks: keep
#   logits small at the start, or smooth.
# * `"nan"` in a few samples reaches the weights that all samples share, and the next step is refused. It is for finding such samples, not for training.
#
# ## 10. What to do
#
# | the certificate says | is it harmful? | do |
# |---|---|---|
# | not an isolated minimiser | the derivative is large nearby, undefined there | regularise; `"min_norm"` if the loss only sees what is determined |
# | redundant constraints | not for inputs that move them together | `"min_norm"`, or state the constraint once |
# | weakly active | hardly ever | the default; `weakly_active="raise"` while you look for the reason |
# | regular, but zero (a vertex) | nothing is learned | `smoothing=`, or a curved statement such as a projection or an entropy |
# | a saddle point, a maximiser | always | another start or solver; `polish` does not help |
# | nothing, yet the solution jumps | the loss has steps | `MultiStart`, several seeds; no derivative can help |
#
# In tests: `assert certify(node, x).regular.all()` on inputs like the real ones. In training: the default raises at what has no answer, and says which
# sample and why. Choose another option when you have read the reason.
#
# ## Limits
#
# * `certify` is local. It says nothing of lower minima elsewhere, and nothing of kinks nearby.
# * What counts as zero is relative, about $10^{-8}$ in float64 and $10^{-4}$ in float32: in float32 more points look weakly active.
# * It forms $H$ and $A$ densely for each sample. Certify a few samples, not a whole data set.
#
# ## To try
#
# * Certify the disc of section 1 for $x$ on the unit circle. Which two derivatives meet there?
# * Add $10^{-3}\|y\|^2$ to `Columns` and draw the picture of section 2 again.
# * Follow the nearest minimum of the double well from $x = -1.6$ to $1.6$ and back with warm starts, `solution(x, init=earlier)`. Where does it jump each way?
# * Round the logits in section 9 in float32. Is the share of weakly active samples the same? And with spacing $0.1$, which binary numbers do not have?
# * Train from the larger start with sparsemax of $s$ times the logits, $s$ learned from $0.25$ on. Do the bad seeds recover?
