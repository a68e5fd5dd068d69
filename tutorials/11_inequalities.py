# %% [markdown]
# # Inequality constraints and quadratic programs
#
# A factory decides how much of each product to make. Machines have limited hours, nothing can be made in negative amounts, and profits are only predicted.
# The best plan sits where constraints meet, and where it sits decides how it can move: freely, along a face, or not at all. That makes the derivative of a plan
# a subtle thing, and training a predictor through it possible.
#
# You will
#
# 1. see what the derivative of a solution is in the interior, on a face and at a vertex;
# 2. choose what to return at the kinks between them, or smooth them;
# 3. solve quadratic programs in one batch, check them against another solver, and go on when one of them has no solution;
# 4. read multipliers as prices, and get the same numbers as a gradient;
# 5. train a predictor by the decisions that it leads to, and find out when that is better than least squares, and when it is worse.

# %%
import os
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor

from declarative import DeclarativeNode, Implicit, Status, certify, verify
from declarative.layers import QuadraticProgram
from declarative.solvers import InteriorPoint, SciPy

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # problems this small gain nothing from a second thread

QUICK = os.environ.get("DECLARATIVE_QUICK") == "1"  # small sizes, for tests

plt.rcParams.update({"figure.dpi": 72, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## 1. Interior, face, vertex
#
# Two products, amounts $y \in \mathbb R^2$. The first unit of product $j$ earns $x_j$, later ones less, and two machines are shared:
#
# $$ y(x) = \operatorname*{argmax}_y\ x^\top y - \tfrac12\|y\|^2 \qquad\text{subject to}\qquad y_1 + 2y_2 \le 4,\quad 3y_1 + y_2 \le 6,\quad y \ge 0 . $$
#
# (Completing the square, this is the point of the polygon that is nearest to $x$.) As a node, for one instance:


# %%
class Plan(DeclarativeNode):
    def objective(self, x, y):
        return 0.5 * y @ y - x @ y

    def inequality_constraints(self, x, y):  # ≤ 0
        return torch.stack([y[0] + 2 * y[1] - 4, 3 * y[0] + y[1] - 6, -y[0], -y[1]])

    def initial_guess(self, x):  # batch first
        return torch.full_like(x, 0.5)


plan = Plan()
cases = {"interior": [1.0, 1.0], "face": [2.0, 3.0], "vertex": [3.5, 2.8]}
x = torch.tensor(list(cases.values()))
solution: Any = plan.solution(x)
jacobian = torch.func.vmap(torch.func.jacrev(lambda one: plan(one.unsqueeze(0)).squeeze(0)))(x)
for name, point, mu, J in zip(cases, solution.y, solution.inequality_multipliers, jacobian, strict=True):
    numbers = ", ".join(f"{value:.3f}" for value in point.tolist())
    push = ", ".join(f"{value:.3f}" for value in mu.tolist())
    print(f"{name:9} y = ({numbers})   μ = ({push})   rank of ∂y/∂x: {int(torch.linalg.matrix_rank(J))}")
    print(f"{'':9} ∂y/∂x = {J.numpy().round(3).tolist()}")
direction = torch.tensor([1.0, 2.0])  # the normal of the first face
torch.testing.assert_close(jacobian[0], torch.eye(2))
torch.testing.assert_close(jacobian[1], torch.eye(2) - torch.outer(direction, direction) / 5)
torch.testing.assert_close(jacobian[2], torch.zeros(2, 2))

# %% [markdown]
# The optimality conditions say what is going on. With $\mu \ge 0$ for the inequalities $g(y) \le 0$,
#
# $$ \nabla_y f + \nabla g^\top \mu = 0, \qquad \mu_i\, g_i = 0 . $$
#
# A constraint either holds with equality and pushes ($\mu_i > 0$: **active**) or has slack and does not ($\mu_i = 0$). After a small change of $x$ the same
# ones are active, so the solution moves as if they were equations and the others were not there. With $A$ the gradients of the active ones:
#
# $$ \begin{bmatrix} H & A^\top \\ A & 0\end{bmatrix}\begin{bmatrix} dy \\ d\mu\end{bmatrix} = \begin{bmatrix} dx \\ 0 \end{bmatrix} . $$
#
# * *Interior*: no $A$. Here $H = I$, and the plan follows $x$.
# * *Face* with normal $a$: $\partial y/\partial x = I - aa^\top/a^\top a$. What pushes against the face is lost.
# * *Vertex*: as many active constraints as unknowns. Nothing moves, the derivative is **zero**, and it is right.
#
# The figure shows where $x$ goes, for many of them.

# %%
steps = 8 if QUICK else 22
axis_1, axis_2 = torch.linspace(-0.9, 4.3, steps), torch.linspace(-0.9, 3.8, steps)
many = torch.cartesian_prod(axis_1, axis_2)
solved: Any = plan.solution(many)
count = (solved.active | solved.weakly_active).sum(1)
figure, axis = plt.subplots(figsize=(6.6, 4.6))
corners = np.array([[0, 0], [2, 0], [1.6, 1.2], [0, 2], [0, 0]])
axis.fill(corners[:, 0], corners[:, 1], color="#DDDDDD", zorder=0)
axis.plot(corners[:, 0], corners[:, 1], color="#000000", linewidth=1)
for number, (label, colour, marker) in enumerate((("interior, rank 2", "#0072B2", "o"), ("face, rank 1", "#E69F00", "s"), ("vertex, rank 0", "#D55E00", "^"))):
    here = count == number
    start, end = many[here], solved.y[here]
    axis.plot(torch.stack([start[:, 0], end[:, 0]]), torch.stack([start[:, 1], end[:, 1]]), color=colour, alpha=0.25, linewidth=0.8)
    axis.plot(start[:, 0], start[:, 1], marker, color=colour, markersize=3.5, label=label)
axis.set(xlabel="product 1, units", ylabel="product 2, units", title="x (markers) and the plan that it leads to", aspect="equal")
axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
figure.tight_layout()

# %% [markdown]
# ## 2. Kinks
#
# Between two regions a constraint holds with equality but does not push: $g_i = \mu_i = 0$. It is **weakly active**, *strict complementarity* fails, and $y$
# has a kink: the derivative depends on where one goes. The smallest example is one product, $y = \max(x, 0)$, at $x = 0$. The package reports the case and
# takes the side that you choose; `"inactive"` is the default.


# %%
class OneProduct(DeclarativeNode):
    def objective(self, x, y):
        return 0.5 * (y - x).square().sum()

    def inequality_constraints(self, x, y):
        return -y

    def initial_guess(self, x):
        return torch.ones_like(x)


def slope(node: DeclarativeNode, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(node(leaf).sum(), leaf)[0]


kink = torch.zeros(1, 1)
print("weakly active:", bool(OneProduct().solution(kink).weakly_active))
print(certify(OneProduct(), kink))
for side in ("inactive", "active", "zero", "nan"):
    print(f'weakly_active="{side}": {float(slope(OneProduct(differentiation=Implicit(weakly_active=side)), kink)):.0f}')

# %% [markdown]
# For a single kink any side will do: one meets it with probability zero, as with $\max(x, 0)$ in every network. What hurts in training is not the kink but the
# zero beside it, at vertices above all: a gradient of zero does not tell how far away the next region is. `Implicit(smoothing=τ)` keeps the solution and
# differentiates the conditions that an interior point method follows, $-\mu_i g_i = \tau$. For one product these have the solution
# $y_\tau = \tfrac12\bigl(x + \sqrt{x^2 + 4\tau}\bigr)$, whose slope is a sigmoid of width $\sqrt\tau$.

# %%
line = torch.linspace(-2, 2, 81).unsqueeze(1)
figure, axis = plt.subplots(figsize=(6.6, 3.2))
for tau, style, colour in ((0.0, "-", "#000000"), (0.01, "--", "#0072B2"), (0.1, "-.", "#E69F00"), (1.0, ":", "#D55E00")):
    slopes = slope(OneProduct(differentiation=Implicit(smoothing=tau)), line)
    axis.plot(line.squeeze(1), slopes.squeeze(1), style, color=colour, label=f"τ = {tau:g}")
    if tau:
        print(f"τ = {tau:<5} largest difference to ½(1 + x/√(x² + 4τ)): {float((slopes - (1 + line / (line**2 + 4 * tau).sqrt()) / 2).abs().max()):.0e}")
axis.set(xlabel="x", ylabel="dy/dx", title="smoothed derivatives of max(x, 0)")
axis.legend()
figure.tight_layout()

# %% [markdown]
# ## 3. Quadratic programs by the batch
#
# $\min \tfrac12 y^\top Q y + c^\top y$ subject to $Ay = b$, $Gy \le d$ is common enough to have a layer. Eight products, three machines, at most one unit of
# each product; and by contract, a given total of the first four. What all samples share ($Q$, $A$, $G$, $d$) is passed once; profits $-c$ and contracts $b$ are
# each sample's own.

# %%
products, machines = 8, 3
hours_needed = torch.rand(machines, products, generator=torch.Generator().manual_seed(7)) + 0.2
hours = 0.4 * hours_needed.sum(1)
G = torch.cat([hours_needed, torch.eye(products), -torch.eye(products)])
d = torch.cat([hours, torch.ones(products), torch.zeros(products)])
Q, A = 0.5 * torch.eye(products), torch.cat([torch.ones(4), torch.zeros(4)]).unsqueeze(0)
profit, contract = torch.rand(6, products) + 0.3, torch.linspace(0.5, 2.0, 6).unsqueeze(1)

program = QuadraticProgram()
solution = program.solution(Q, -profit, A, contract, G, d)
print("plan of sample 0        ", solution.y[0].numpy().round(3))
print("active constraints each ", solution.active.sum(1).tolist(), "  iterations", solution.iterations.tolist())

# %% [markdown]
# Another solver, one problem at a time, and the two reports: is each point a minimiser at which a derivative exists, and is the derivative right?

# %%
theirs = []
for c_one, b_one in zip(-profit.numpy(), contract.numpy(), strict=True):
    found = minimize(
        lambda y, c: 0.25 * y @ y + c @ y,
        np.full(products, 0.3),
        args=(c_one,),
        jac=lambda y, c: 0.5 * y + c,
        method="SLSQP",
        bounds=[(0, 1)] * products,
        constraints=[
            {"type": "eq", "fun": lambda y, b: A.numpy() @ y - b, "args": (b_one,)},
            {"type": "ineq", "fun": lambda y: hours.numpy() - hours_needed.numpy() @ y},
        ],
        options={"ftol": 1e-14},
    )
    theirs.append(torch.as_tensor(found.x))
apart = float((torch.stack(theirs) - solution.y).abs().max())
print(f"largest difference to SciPy's SLSQP: {apart:.0e}")
assert apart < 1e-5
certificate = certify(program, Q, -profit, A, contract, G, d, in_dims=(None, 0, None, 0, None, None))
print(certificate)
assert bool(certificate.regular.all())
report = verify(program, Q, -profit[:2], A, contract[:2], G, d, in_dims=(None, 0, None, 0, None, None), directions=1)
print(str(report).splitlines()[-1], f"({len(report.rows)} rows)")
assert report.ok

# %% [markdown]
# **When one has no solution.** The third customer now wants five units of four products of which at most one each can be made. By default that is an error
# which names the sample. In training one would rather go on: with `on_failure="nan"` the sample is NaN and marked, and the others are what they were, in their
# gradients as well. A mask is all that a loss needs.

# %%
wanted = contract.clone()
wanted[2] = 5.0
try:
    program(Q, -profit, A, wanted, G, d)
except RuntimeError as error:
    print(f"{type(error).__name__}: {error}\n")
going_on = QuadraticProgram(solver=InteriorPoint(on_failure="nan"))


def gradient_of_valid(layer: QuadraticProgram, b: Tensor) -> tuple[Tensor, Tensor]:
    c = -profit.clone()
    c.requires_grad_()
    found: Any = layer.solution(Q, c, A, b, G, d)
    valid = found.status == Status.CONVERGED
    return found.status, torch.autograd.grad(found.y[valid].square().sum(), c)[0]


status, with_failure = gradient_of_valid(going_on, wanted)
_, without = gradient_of_valid(program, contract)
print("status:", [Status(value).name for value in status.tolist()])
fine = status == Status.CONVERGED
print(f"gradients of the others: difference {float((with_failure - without)[fine].abs().max()):.0e}; of the failed sample: {with_failure[2].tolist()}")
assert Status(int(status[2])) == Status.INFEASIBLE
assert torch.isfinite(with_failure[fine]).all()

# %% [markdown]
# ## 4. Multipliers are prices
#
# What would one more hour on machine 2 be worth? The optimal value $v(d) = f(y(d))$ answers by its derivative, and there is a shortcut. Where the constraint
# is written $g(y) \le d$, the **envelope theorem** says
#
# $$ \frac{\partial v}{\partial d_i} = -\mu_i, \qquad \frac{\partial v}{\partial b} = -\nu : $$
#
# along the face the objective does not change to first order, so only the push against the face counts. ($v$ is a cost here: one more hour lowers it by
# $\mu_i$.) Three ways to the same number: read the multiplier; let autograd go through the solution; solve again with a little more.

# %%
d_each, b_each = d.expand(6, -1).clone().requires_grad_(), contract.clone().requires_grad_()
solution = program.solution(Q, -profit, A, b_each, G, d_each)
value = 0.25 * solution.y.square().sum(1) - (profit * solution.y).sum(1)
by_d, by_b = torch.autograd.grad(value.sum(), (d_each, b_each))
h = 1e-5
with torch.no_grad():
    more, less = (program(Q, -profit, A, contract, G, d + sign * h * torch.eye(len(d))[1]) for sign in (1, -1))
    change = ((0.25 * more.square().sum(1) - (profit * more).sum(1)) - (0.25 * less.square().sum(1) - (profit * less).sum(1))) / (2 * h)
mu, nu = solution.inequality_multipliers.detach(), solution.equality_multipliers.detach()
print("worth of an hour on machine 2, by μ          ", mu[:, 1].numpy().round(4))
print("                               by autograd   ", (-by_d[:, 1]).numpy().round(4))
print("                               by re-solving ", (-change).numpy().round(4))
print("one more unit in the contract: change of v    ", by_b.squeeze(1).numpy().round(4))
torch.testing.assert_close(by_d, -mu, atol=1e-8, rtol=0)
torch.testing.assert_close(by_b, -nu, atol=1e-8, rtol=0)
torch.testing.assert_close(change, -mu[:, 1], atol=1e-6, rtol=0)

# %% [markdown]
# Multipliers are differentiable too. So one can ask how the *price* of an hour moves with the profit of a product:

# %%
earned = profit.clone().requires_grad_()
prices: Any = program.solution(Q, -earned, A, contract, G, d).inequality_multipliers
(moves,) = torch.autograd.grad(prices[:, 1].sum(), earned)
print("∂(price of machine 2)/∂(profit), sample 1:", moves[1].numpy().round(3))

# %% [markdown]
# ## 5. Learning from decisions
#
# Now the profits are not known when the plan is made. They have to be predicted from five features (weather, season, …). Every unit earns the same, so
# given the prediction $\hat c$ the plan is a *linear* program, $\max \hat c^\top y$ over the polytope. What counts is not how far $\hat c$ is from the truth
# $c$, but what the plan loses, its **regret** $\;c^\top y(c) - c^\top y(\hat c)$. Two ways to train the same linear predictor $\hat c = W^\top x$:
#
# * *predict, then optimise*: least squares on $\|\hat c - c\|^2$. It knows nothing of the plan;
# * *through the program*: gradient descent on the regret.
#
# **A linear program has no gradient.** Its solution is a vertex, and section 1 has said what that means:

# %%
hot = profit.clone().requires_grad_()
nothing = torch.zeros(products, products)
linear = QuadraticProgram(solver=SciPy("highs"))  # linear programs by HiGHS
vertices: Any = linear.solution(nothing, -hot, G=G, d=d)
(silent,) = torch.autograd.grad((profit * vertices.y).sum(), hot)
print("active constraints:", vertices.active.sum(1).tolist(), f"of {products} unknowns; largest entry of the gradient: {float(silent.abs().max()):.0e}")
assert float(silent.abs().max()) < 1e-12

# %% [markdown]
# Zero almost everywhere, and at a tie between vertices it does not exist. The gradient is right and useless: an infinitesimal change of $\hat c$ changes no
# decision. Two remedies, both biased, both with a size to choose:
#
# * *smooth the problem*: add $\tfrac\varepsilon2\|y\|^2$. The plan then is the point of the polytope nearest to $\hat c/\varepsilon$; it slides along faces,
#   and has the derivatives of section 1 there. A large $\varepsilon$ gives much gradient for a plan that nobody would carry out, a small one the reverse;
# * *smooth the derivative*: nearly no $\varepsilon$, and `Implicit(smoothing=τ)`. The plan stays at its vertex, and the gradient tells what would move it.
#
# In both cases the plans that are *judged* are those of the linear program.
#
# The world: profits are $c_j = (\text{linear in } x)_+^{k} \times$ noise of 30 %. For $k = 1$ the linear predictor is nearly right. For $k = 4$ and $8$ it
# cannot be: a few days have very large profits, and least squares spends itself on them. (Such data are customary for this question.) Five worlds for each $k$,
# of 100 days to learn from and 200 to judge; all days of all worlds are one batch of quadratic programs.

# %%
seeds, days, judged, rounds = (2, 20, 20, 3) if QUICK else (5, 100, 200, 40)


def world(power: int) -> tuple[Tensor, Tensor]:
    """Features (seeds, days, 6), with a one at the end, and profits (seeds, days, products)."""
    inputs, profits = [], []
    for seed in range(seeds):
        draw = torch.Generator().manual_seed(seed)
        relation = (torch.rand(products, 5, generator=draw) < 0.5).double()
        inputs.append(torch.randn(days + judged, 5, generator=draw))
        c = ((inputs[-1] @ relation.T / 5**0.5 + 3) / 3).clamp_min(0) ** power
        c = c * (1 + 0.3 * (2 * torch.rand(c.shape, generator=draw) - 1))
        profits.append(c / c.mean())
    return torch.cat([torch.stack(inputs), torch.ones(seeds, days + judged, 1)], 2), torch.stack(profits)


def carried_out(c: Tensor) -> Tensor:
    """The plans of the linear program for profits c."""
    rows = c.detach().reshape(-1, products).numpy()
    plans = [linprog(-row, A_ub=hours_needed.numpy(), b_ub=hours.numpy(), bounds=(0, 1)).x for row in rows]
    return torch.as_tensor(np.stack(plans)).reshape(c.shape)


def train(start: Tensor, inputs: Tensor, c: Tensor, epsilon: float, tau: float) -> Tensor:
    """W by descent on what the plans earn; every world has its own."""
    layer, W = QuadraticProgram(differentiation=Implicit(smoothing=tau)), start.clone().requires_grad_()
    adam = torch.optim.Adam([W], lr=0.03)
    for _ in range(rounds):
        plans = layer(epsilon * torch.eye(products), -(inputs @ W), G=G, d=d)
        (W.grad,) = torch.autograd.grad(-(c * plans).sum(2).mean(1).sum(), W)
        adam.step()
    return W.detach()


ways = {"through a QP, ε = 1": (1.0, 0.0), "through a QP, ε = 0.1": (0.1, 0.0), "ε = 0.01, τ = 0.1": (0.01, 0.1)}
table: dict[str, list[Tensor]] = {name: [] for name in ("least squares", *ways)}
distance: dict[str, list[float]] = {name: [] for name in table}
exponents = (1, 4, 8)
for power in exponents:
    inputs, c = world(power)
    fitted = torch.linalg.lstsq(inputs[:, :days], c[:, :days]).solution
    weights = {"least squares": fitted} | {name: train(fitted, inputs[:, :days], c[:, :days], *sizes) for name, sizes in ways.items()}
    c_new, possible = c[:, days:], (c[:, days:] * carried_out(c[:, days:])).sum((1, 2))
    for name, W in weights.items():
        predicted = inputs[:, days:] @ W
        table[name].append(100 * (1 - (c_new * carried_out(predicted)).sum((1, 2)) / possible))
        distance[name].append(float((predicted - c_new).square().mean()))

print(f"regret in % of what was possible: mean ± sd of {seeds} worlds (better than least squares in)\n")
print(f"{'':22}" + "".join(f"{f'k = {power}':>22}" for power in exponents))
for name, regrets in table.items():
    entries = []
    for regret, other in zip(regrets, table["least squares"], strict=True):
        wins = "" if name == "least squares" else f"({int((regret < other).sum())} of {seeds})"
        entries.append(f"{regret.mean():6.2f} ± {regret.std():.2f} {wins:>8}")
    print(f"{name:22}" + "".join(f"{entry:>22}" for entry in entries))
print("\nmean squared error of the predicted profits")
for name, errors in distance.items():
    print(f"{name:22}" + "".join(f"{error:22.2f}" for error in errors))
if not QUICK:
    assert (table["through a QP, ε = 1"][2] < table["least squares"][2]).all()
    assert table["through a QP, ε = 1"][0].mean() > table["least squares"][0].mean()

# %%
figure, axis = plt.subplots(figsize=(8, 3.6))
looks = zip(table.items(), ("#000000", "#0072B2", "#56B4E9", "#D55E00"), "xos^", strict=True)
for shift, ((name, regrets), colour, marker) in enumerate(looks):
    for place, regret in enumerate(regrets):
        at = np.full(len(regret), place + 0.17 * (shift - 1.5))
        axis.semilogy(at, regret, marker, color=colour, markersize=6, label=name if place == 0 else None)
axis.set_xticks(range(len(exponents)), [f"k = {power}" for power in exponents])
axis.set_yticks((1, 2, 4, 8), ("1", "2", "4", "8"))
axis.minorticks_off()
axis.set(xlabel="how far the world is from a linear one", ylabel="regret, %", title="one marker a world")
axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
figure.tight_layout()

# %% [markdown]
# * **$k = 1$: least squares is better**, in every world. The model is nearly right, and squared errors use all the information that the profits hold; a
#   decision says only which vertex was good. Regret is the noisier teacher.
# * **$k = 8$: through the program is better**, in every world, and by a factor of several. No linear prediction is right, so it matters *where* it is wrong.
#   The second table shows the price: as predictions of profit they are worse, since only their order and ratios count for the plan, and not their size.
# * In between the advantage is there, and small. Which remedy is used matters less than that one is; smoothing the derivative came out ahead here, and we have
#   tuned neither.
#
# So: mind the decision where the model is known to be wrong. Where you can afford a better model (features to the right power would do here), do that first.
#
# ## Limits
#
# * A quadratic program with a singular $Q$ may have many solutions. No derivative exists there, and by default that is an error: `Implicit(irregular=...)`.
# * Redundant constraints at a solution leave $y$ its derivative, but not the multipliers; `irregular="min_norm"` differentiates $y$.
# * A gradient knows the active set of today. Training can stop at vertices where it is zero though a better one is next door; that is what the smoothing is
#   for.
# * The five worlds of a table differ in everything, hence the large spread; the wins are counted within a world.
#
# ## To try
#
# * Vary $\varepsilon$ from 0.01 to 10 with $\tau = 0$. Where does the regret of training stop falling, and why at both ends?
# * Give the predictor the squares of the features. How much of the advantage at $k = 4$ is left?
# * Let the *hours* be uncertain as well: learn $d$ through `QuadraticProgram`, and use section 4 to check the gradient.
# * Start `train` from zero in place of the least squares solution. Which of the three ways gets off the ground?
# * In section 1, add the constraint $y_1 + y_2 \le 2.8$, which passes through the vertex $(1.6, 1.2)$. What does `certify` say there, and what is the
#   derivative?
