# %% [markdown]
# # A bilevel problem, by hand and by node
#
# One problem inside another: somebody sets the rules, others do their best under them, and the first one wants to know what better rules would be.
#
# $$\min_x \; F(x, y(x)) \quad\text{where}\quad y(x) = \arg\min_u f(x, u) \;\text{ subject to }\; h(x, u) = 0,\; g(x, u) \le 0 .$$
#
# Here a city sets tolls $x$ on its roads, and drivers choose roads $y$. You will
#
# 1. state the drivers' problem, and derive $\mathrm{d}y/\mathrm{d}x$ with pencil and paper;
# 2. write it as an `autograd.Function`, and see where the pencil was too quick;
# 3. write it as a node instead, and compare;
# 4. look at the city's problem, solve it by gradients and by Newton's method, and check the answer against theory from 1920;
# 5. set one toll for a whole day.

# %%
import os

import matplotlib.pyplot as plt
import torch
from scipy.optimize import minimize
from torch import Tensor

from declarative import DeclarativeNode, verify

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
torch.set_printoptions(precision=4, sci_mode=False)
torch.set_num_threads(1)  # problems this small gain nothing from a second thread

QUICK = os.environ.get("DECLARATIVE_QUICK") == "1"  # small sizes, for tests

plt.rcParams.update({"figure.dpi": 72, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## 1. The drivers
#
# Three roads lead to the city. With $u$ thousand cars on it, road $i$ takes $\ell_i(u) = a_i + b_i u^{p_i}$ minutes: a bridge that is short and narrow, a
# ring road, a motorway that is long and wide. A toll of $x_i$ is as bad as $x_i$ minutes. Each driver takes the best road, until no one gains by
# changing: all roads in use cost the same, the others cost more. These are the optimality conditions of a convex problem (Beckmann, 1956):
#
# $$y(x) = \arg\min_u \sum_i \Big(\int_0^{u_i} \ell_i(t)\,\mathrm{d}t + x_i u_i\Big) \quad\text{subject to}\quad \sum_i u_i = d,\; u \ge 0 .$$
#
# **Pencil and paper.** Suppose all roads are in use. Then with a multiplier $\lambda$, the cost that all drivers pay,
#
# $$\ell_i(y_i) + x_i = \lambda, \qquad \textstyle\sum_i y_i = d .$$
#
# Differentiate both in $x$. With $h_i = \ell_i'(y_i) = p_i b_i y_i^{p_i - 1}$,
#
# $$h_i\,\mathrm{d}y_i + \mathrm{d}x_i = \mathrm{d}\lambda, \qquad \textstyle\sum_i \mathrm{d}y_i = 0 .$$
#
# The first gives $\mathrm{d}y_i = (\mathrm{d}\lambda - \mathrm{d}x_i)/h_i$, and then the second
# $\mathrm{d}\lambda = \sum_j (\mathrm{d}x_j/h_j) \big/ \sum_j (1/h_j)$. So
#
# $$\frac{\partial y_i}{\partial x_j} = -\frac{\delta_{ij}}{h_i} + \frac{1/(h_i h_j)}{\sum_k 1/h_k} .$$
#
# ## 2. By hand
#
# For a solver, take one from scipy. For the gradient, the formula:

# %%
free_time = torch.tensor([6.0, 12.0, 18.0])  # a: minutes on an empty road
slowing = torch.tensor([6.0, 0.02, 0.004])  # b
power = torch.tensor([1.0, 4.0, 4.0])  # p: on the bridge traffic lights keep the cars apart
NAMES = ("bridge", "ring road", "motorway")


def driving_time(y: Tensor) -> Tensor:
    """Minutes on each road with y thousand cars."""
    return free_time + slowing * y**power


class ByHand(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tolls: Tensor, demand: float) -> Tensor:
        def cost(u):
            u = torch.as_tensor(u)
            return float((free_time * u + slowing * u ** (power + 1) / (power + 1) + tolls * u).sum()), (driving_time(u) + tolls).numpy()

        start = torch.full((3,), demand / 3).numpy()
        total = {"type": "eq", "fun": lambda u: u.sum() - demand}
        y = minimize(cost, start, jac=True, method="SLSQP", bounds=[(0, None)] * 3, constraints=total, options={"ftol": 1e-14}).x
        y = torch.as_tensor(y)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        inverse = 1 / (power * slowing * y ** (power - 1))
        return -inverse * cotangent + inverse * (inverse @ cotangent) / inverse.sum(), None


def total_time(y: Tensor) -> Tensor:
    """What the city wants small: thousand minutes that all its drivers spend on the road. Tolls do not count, the city gets them."""
    return (y * driving_time(y)).sum(-1)


DEMAND = 7.0
tolls = torch.zeros(3, requires_grad=True)
flow = ByHand.apply(tolls, DEMAND)
time_now = total_time(flow)
time_now.backward()
for name, cars, minutes, slope in zip(NAMES, flow.detach(), driving_time(flow).detach(), tolls.grad, strict=True):
    print(f"{name:10} {cars:.3f} thousand cars, {minutes:.2f} minutes; a toll of one minute more changes the total by {slope:+.3f}")

# %% [markdown]
# All roads take the same time, as they should, and a toll on the bridge would help: drivers crowd it until it is no faster than the detour.
#
# Is the formula right? Ask finite differences. And ask again where the bridge has a toll of 30 minutes:


# %%
def by_differences(tolls: Tensor, step: float = 1e-3) -> Tensor:
    shifts = step * torch.eye(3)
    return torch.stack([(total_time(ByHand.apply(tolls + e, DEMAND)) - total_time(ByHand.apply(tolls - e, DEMAND))) / (2 * step) for e in shifts])


def by_hand(tolls: Tensor) -> Tensor:
    leaf = tolls.clone().requires_grad_()
    return torch.autograd.grad(total_time(ByHand.apply(leaf, DEMAND)), leaf)[0]


for tolls in (torch.zeros(3), torch.tensor([30.0, 0.0, 0.0])):
    print(f"tolls {tolls.tolist()}: cars {ByHand.apply(tolls, DEMAND).tolist()}")
    print("    by hand           ", by_hand(tolls))
    print("    finite differences", by_differences(tolls))

# %% [markdown]
# The second one is wrong, in every entry, and nothing says so. At 30 minutes nobody takes the bridge any more. "Suppose all roads are in use" was an
# assumption, and no line of the code asks whether it holds. The right way is to find out which roads are in use, to leave the others out of the
# formula, and to notice when one is just about to be used: there the derivative has two sides.
#
# ## 3. By node
#
# The statement, and nothing else:


# %%
class Drivers(DeclarativeNode):
    """tolls (3,), demand () → y (3,)"""

    def objective(self, tolls: Tensor, demand: Tensor, y: Tensor) -> Tensor:
        return (free_time * y + slowing * y ** (power + 1) / (power + 1) + tolls * y).sum()

    def equality_constraints(self, tolls: Tensor, demand: Tensor, y: Tensor) -> Tensor:
        return y.sum() - demand

    def inequality_constraints(self, tolls: Tensor, demand: Tensor, y: Tensor) -> Tensor:
        return -y

    def initial_guess(self, tolls: Tensor, demand: Tensor) -> Tensor:
        return demand.unsqueeze(1).expand(-1, 3) / 3


drivers = Drivers()
demand = torch.tensor(DEMAND)
for tolls in (torch.zeros(3), torch.tensor([30.0, 0.0, 0.0])):
    leaf = tolls.clone().requires_grad_()
    flow = drivers(leaf, demand, in_dims=None)  # in_dims=None: one instance, no batch
    (slope,) = torch.autograd.grad(total_time(flow), leaf)
    print(f"tolls {tolls.tolist()}: cars {flow.tolist()}\n    by node           ", slope)
    torch.testing.assert_close(slope, by_differences(tolls), atol=1e-3, rtol=1e-3)

report = verify(drivers, torch.tensor([[0.0, 0.0, 0.0], [4.0, 1.0, 0.0], [30.0, 0.0, 0.0]]), torch.tensor([7.0, 5.0, 7.0]))
assert report.ok
print(report)

# %% [markdown]
# The same where the pencil was right, and right where it was not. `verify` goes on to compare with the dense formula and with problems solved anew, with
# respect to the demand as well, and to second order.
#
# How does it know? It solves the same two equations, for whatever was stated. With the Lagrangian $L = f + \nu^\top h + \mu^\top g$, the gradients of the
# active constraints in the rows of $A$, and $H = \nabla^2_{yy} L$, the backward pass solves
#
# $$\begin{bmatrix} H & A^\top \\ A & 0 \end{bmatrix} \begin{bmatrix} u \\ w \end{bmatrix} = \begin{bmatrix} \bar y \\ 0 \end{bmatrix},
# \qquad \bar x = -\nabla_x \big[\langle u, \nabla_y L\rangle + \langle w, a\rangle\big] ,$$
#
# where $a$ are the active constraints. Two lines of algebra turn it into the formula of section 1. The solver's steps play no part in it.
#
# ## 4. The city
#
# Only differences of tolls matter, for everybody has to get to the city. Leave the motorway free, and look at the city's objective over the other two.
# A grid of tolls is a batch; the demand is shared by it:

# %%
side = 15 if QUICK else 61
bridge, ring = torch.meshgrid(torch.linspace(0, 30, side), torch.linspace(-5, 25, side), indexing="ij")
grid = torch.stack([bridge.flatten(), ring.flatten(), torch.zeros(side * side)], 1)
flows = drivers(grid, demand, in_dims=(0, None))
times = total_time(flows).reshape(side, side)

# %% [markdown]
# Gradient descent from no tolls, and Newton's method. Newton's method needs the Hessian of $F(x, y(x))$, so second derivatives of a solution. They are there:
# `torch.func.hessian` goes through the node.


# %%
def city(tolls: Tensor) -> Tensor:
    """Total time for tolls (2,) on the bridge and on the ring road."""
    return total_time(drivers(torch.cat([tolls, tolls.new_zeros(1)]), demand, in_dims=None))


def descend(steps: int, rate: float) -> Tensor:
    path = [torch.zeros(2)]
    for _ in range(steps):
        path.append(path[-1] - rate * torch.func.grad(city)(path[-1]))
    return torch.stack(path)


def newton(steps: int) -> Tensor:
    path = [torch.zeros(2)]
    for _ in range(steps):
        slope, curvature = torch.func.grad(city)(path[-1]), torch.func.hessian(city)(path[-1])
        step = torch.linalg.solve(curvature, -slope)
        while city(path[-1] + step) > city(path[-1]) + 1e-12:  # too far: half of it
            step = step / 2
        path.append(path[-1] + step)
    return torch.stack(path)


by_gradients, by_newton = descend(20 if QUICK else 150, 0.3), newton(8)
print(f"gradient descent, {len(by_gradients) - 1} steps: tolls {by_gradients[-1].tolist()}, total {city(by_gradients[-1]):.4f}")
print(f"Newton's method,  {len(by_newton) - 1} steps: tolls {by_newton[-1].tolist()}, total {city(by_newton[-1]):.4f}")
print(f"without tolls: {city(torch.zeros(2)):.4f}")

# %% [markdown]
# **Check with theory.** Pigou (1920): a driver should pay for the time that it costs the *others*, $x_i = y_i\,\ell_i'(y_i) = p_i b_i y_i^{p_i}$. The flow is
# then the one that a dictator would have chosen, the minimum of total time over all flows. That minimum is a node, too (one line is different), and an
# independent answer:


# %%
class Dictator(Drivers):
    def objective(self, tolls: Tensor, demand: Tensor, y: Tensor) -> Tensor:
        return total_time(y)


best_flow = Dictator()(torch.zeros(3), demand, in_dims=None)
pigou = power * slowing * best_flow**power
print("least total time there is  ", total_time(best_flow).item())
print("Pigou's tolls, motorway free", (pigou - pigou[2])[:2].tolist())
torch.testing.assert_close(by_newton[-1], (pigou - pigou[2])[:2], atol=1e-6, rtol=0)
torch.testing.assert_close(city(by_newton[-1]), total_time(best_flow))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.9), width_ratios=(1.25, 1))
filled = left.contourf(bridge, ring, times, 24, cmap="viridis")
figure.colorbar(filled, ax=left, label="total time (thousand minutes)")
empty = (flows.reshape(side, side, 3) < 1e-6).any(2)
left.contour(bridge, ring, empty.double(), [0.5], colors="white", linestyles="--")
left.plot(*by_gradients.T, "o-", color="#E69F00", markersize=3, label="gradient descent")
left.plot(*by_newton.T, "s-", color="white", markersize=5, label="Newton")
left.plot(*(pigou - pigou[2])[:2], "*", color="red", markersize=14, label="Pigou")
left.set(xlabel="toll of the bridge (minutes)", ylabel="toll of the ring road (minutes)", title="the city's problem; beyond the dashed line a road is empty")
left.title.set_fontsize(10)
left.legend(facecolor="0.3", labelcolor="white", fontsize=8)
for path, style, label in ((by_gradients, "o-", "gradient descent"), (by_newton, "s--", "Newton")):
    gaps = torch.stack([city(x) for x in path]) - total_time(best_flow)
    right.semilogy(gaps.clamp(min=1e-15), style, markersize=3, label=label)
right.set(xlabel="step", ylabel="total time above the least (thousand minutes)", title="convergence")
right.legend()
figure.tight_layout()

# %% [markdown]
# The surface is flat where a road is empty (a higher toll on an empty road changes nothing, and the gradient says so), and not convex. Newton's method
# needs a handful of steps.
#
# ## 5. One toll for the whole day
#
# Demand changes over the day. If tolls may change with it, the hours do not depend on each other, and Pigou has the answer. A sign with *one* price for the
# whole day has no formula; it is the same bilevel problem with 24 inner problems. The tolls are shared by the batch, their gradient is the sum over the hours:

# %%
hours = torch.arange(24.0)
day = 2.5 + 5 * torch.exp(-0.5 * ((hours - 8) / 1.3) ** 2) + 4 * torch.exp(-0.5 * ((hours - 17.5) / 1.8) ** 2)  # thousand cars in each hour


def whole_day(tolls: Tensor) -> Tensor:
    """(24,) the total times of the hours, for tolls (2,) all day long."""
    return total_time(drivers(torch.cat([tolls, tolls.new_zeros(1)]), day, in_dims=(None, 0)))


fixed = torch.zeros(2, requires_grad=True)
adam = torch.optim.Adam([fixed], 1.0)
for _ in range(5 if QUICK else 120):
    adam.zero_grad()
    whole_day(fixed).sum().backward()
    adam.step()
fixed = fixed.detach()
free = whole_day(torch.zeros(2))
least = total_time(Dictator()(torch.zeros(3), day, in_dims=(None, 0)))
with_sign = whole_day(fixed)
print(f"one price all day: bridge {fixed[0]:.1f}, ring road {fixed[1]:.1f} minutes")
for name, hourly in (("no tolls", free), ("one price", with_sign), ("a price for each hour (Pigou)", least)):
    print(f"{name:30} total {hourly.sum():8.2f} thousand minutes")
assert least.sum() <= with_sign.sum() + 1e-6
assert with_sign.sum() < free.sum()

hourly_tolls = power * slowing * Dictator()(torch.zeros(3), day, in_dims=(None, 0)) ** power
figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 3.4))
left.plot(hours, day, "k-o", markersize=3)
left.set(xlabel="hour of the day", ylabel="demand (thousand cars)", title="demand")
for k, colour in ((0, "#0072B2"), (1, "#D55E00")):
    right.plot(hours, hourly_tolls[:, k] - hourly_tolls[:, 2], "o-", color=colour, markersize=3, label=f"{NAMES[k]}, by the hour")
    right.axhline(fixed[k].item(), linestyle="--", color=colour, label=f"{NAMES[k]}, one price")
right.set(xlabel="hour of the day", ylabel="toll (minutes)", title="the best tolls")
right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
figure.tight_layout()
kept = (free - with_sign).sum() / (free - least).sum()
print(f"the one price keeps {100 * kept:.0f} % of what prices by the hour would save")

# %% [markdown]
# The one price for the bridge lies *above* all the prices by the hour. That is no mistake: at night no one takes the motorway, so only the difference of the
# two tolls counts then, and a compromise between differences is not a compromise between tolls. The two numbers keep nearly all of the gain, so better
# signs are hardly worth their price here. That is what a bilevel problem is good for: it answers *what if the rules were these*, and its gradient
# says which rules to try next.
#
# ## To try
#
# * Add a fourth road whose $b$ is unknown. Given counts of cars at a few tolls, learn it: same node, another outer loss.
# * Let the demand answer to the price: people stay at home. Give $u$ a fourth entry, with a cost of its own.
# * Two cities, one road in common: roads become paths that share edges. Different path flows may give the same edge flows, and $H$ is singular. What does
#   `certify` say? (Notebook 03.) State the problem in edge flows, or use `Implicit(irregular="min_norm")`.
# * At a toll where the bridge is just about to be empty, compare one-sided finite differences with `Implicit(weakly_active="active")` and `"inactive"`.
