# %% [markdown]
# # Optimal transport: unrolled, implicit, approximate
#
# Optimal transport moves one distribution onto another at the least cost. With a little entropy the optimal plan is a smooth
# function of the costs, so it can be a layer of a network. The question of this notebook is how to differentiate it:
# *through the iterations* that find the plan, or *through the conditions* that it satisfies?
#
# You will
#
# 1. state the problem in ten lines and get a differentiable layer from that alone;
# 2. meet the ready layer `OptimalTransport`, and have its derivatives proved;
# 3. derive the backward pass: a weighted least squares problem, one linear system;
# 4. compare three ways to differentiate in what they learn, how long they take and how much they remember;
# 5. use what is built on it: the Sinkhorn loss, the Sinkhorn divergence, masks, large $\gamma$.

# %%
import math
import os
import time
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from declarative import DeclarativeNode, verify
from declarative.layers import OptimalTransport, SinkhornLoss, sinkhorn_divergence

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # matrices this small gain nothing from a second thread, and times are steadier

QUICK = os.environ.get("DECLARATIVE_QUICK") == "1"  # small sizes, for tests

plt.rcParams.update({"figure.dpi": 72, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False})
GRADIENTS = ("unrolled", "implicit", "approximate")
STYLES = {  # colours that are told apart by everybody; the dashes show where two curves coincide
    "unrolled": {"color": "#56B4E9", "linewidth": 4},
    "implicit": {"color": "#000000", "linewidth": 1.5, "linestyle": "--"},
    "approximate": {"color": "#D55E00", "linewidth": 1.5},
    "dense": {"color": "#009E73", "linewidth": 1.5, "linestyle": ":"},
}

# %% [markdown]
# ## 1. The problem, in ten lines
#
# There are goods $r_i$ at $m$ places and demands $c_j$ at $n$ places, of the same total. Bringing one unit from $i$ to $j$
# costs $M_{ij}$. The plan $P$ says how much goes where:
#
# $$
# P^\star = \operatorname*{argmin}_P \; \langle P, M\rangle + \frac1\gamma \sum_{ij} P_{ij} \log\frac{P_{ij}}{r_i c_j}
# \qquad\text{subject to}\qquad P\mathbf 1 = r, \quad P^\top \mathbf 1 = c .
# $$
#
# The second term pulls the plan towards the independent one, $rc^\top$; it is the smaller the larger $\gamma$ is. It also keeps
# $P$ positive, so no inequality is needed. Of the $m + n$ equations one follows from the others (both sides have the same
# total), so we leave one out.
#
# A `DeclarativeNode` needs no more than that, for *one* instance. No solver, no gradient:


# %%
class Transport(DeclarativeNode):
    def objective(self, M, r, c, P):
        return (P * M).sum() + (P * (P / torch.outer(r, c)).log()).sum() / 5.0  # γ = 5

    def equality_constraints(self, M, r, c, P):  # = 0
        return torch.cat([P.sum(1) - r, (P.sum(0) - c)[1:]])

    def initial_guess(self, M, r, c):  # batch first
        return r.unsqueeze(2) * c.unsqueeze(1)


# %%
M = torch.rand(2, 3, 4, requires_grad=True)  # two instances with three rows and four columns
r = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
c = torch.full((2, 4), 0.25)

plain = Transport()
P = plain(M, r, c)
V = torch.randn(2, 3, 4)  # the cotangent ∂ℓ/∂P of some loss ℓ
(plain_gradient,) = torch.autograd.grad(P, M, V)
print(P[0].detach())
print("row sums   ", P[0].detach().sum(1))
print("column sums", P[0].detach().sum(0))

# %% [markdown]
# ## 2. The ready layer
#
# `OptimalTransport` has the same statement. It adds what is known about this problem: an iteration made for it, and its
# derivative in closed form. Plan and gradient are the same numbers.

# %%
layer = OptimalTransport(gamma=5.0)
solution = layer.solution(M, r, c)
(gradient,) = torch.autograd.grad(solution.y, M, V)

print(f"difference of the plans      {(solution.y - P).abs().max().item():.1e}")
print(f"difference of the gradients  {(gradient - plain_gradient).abs().max().item():.1e}")
print(f"relative error of the sums   {solution.violation.tolist()}")
print(f"found by                     {solution.report.method}, {solution.iterations.tolist()} iterations")
torch.testing.assert_close(solution.y, P, atol=1e-8, rtol=0)
torch.testing.assert_close(gradient, plain_gradient, atol=1e-8, rtol=0)

# %% [markdown]
# You need not take the layer's word for its derivative. `verify` derives it again from the objective and the constraints, with
# dense matrices, and once more by finite differences of re-solved problems. It prints every error it has measured.

# %%
report = verify(layer, M.detach(), r, c)
print(report)
assert report.ok

# %% [markdown]
# ## 3. The derivative
#
# **What the solution looks like.** With multipliers for the sums, stationarity of the Lagrangian in $P_{ij}$ reads
# $M_{ij} + \frac1\gamma(\log\frac{P_{ij}}{r_i c_j} + 1) + \nu_i + \nu'_j = 0$. So with *potentials* $\varphi$ and $\psi$, which
# are these multipliers up to sign and a constant,
#
# $$ P_{ij} = r_i \, c_j \, \exp\bigl(\gamma(\varphi_i + \psi_j - M_{ij})\bigr). $$
#
# Sinkhorn's iteration chooses $\varphi$ such that the rows have the right sums, then $\psi$ such that the columns do, and so on.
# Adding a number to all $\varphi_i$ and taking it off all $\psi_j$ changes nothing.
#
# **How it moves.** Take logarithms and differentiate: $dP_{ij} = P_{ij}\,(\alpha_i + \beta_j - \gamma\, dM_{ij})$ with some
# $\alpha = \gamma\, d\varphi$, $\beta = \gamma\, d\psi$. They must be such that no sum changes:
#
# $$
# \underbrace{\begin{bmatrix} \operatorname{diag}(P\mathbf 1) & P \\ P^\top & \operatorname{diag}(P^\top\mathbf 1)\end{bmatrix}}_{K}
# \begin{bmatrix}\alpha\\ \beta\end{bmatrix}
# = \gamma \begin{bmatrix} (P\circ dM)\,\mathbf 1 \\ (P\circ dM)^\top \mathbf 1\end{bmatrix}.
# $$
#
# In the general formula $\;dy/dx = H^{-1}A^\top(AH^{-1}A^\top)^{-1}AH^{-1}B - H^{-1}B\;$ of an equality constrained node, this is
# $H = \operatorname{diag}(1/\gamma P)$, $B = I$, and $A$ the matrix that takes sums: $AH^{-1}A^\top = \gamma K$. Nothing of size
# $mn \times mn$ is ever needed.
#
# **Backwards.** $K$ is symmetric, so for a cotangent $V = \partial\ell/\partial P$ the same system is solved once:
#
# $$
# K \begin{bmatrix} w_r \\ w_c\end{bmatrix} = \begin{bmatrix} (P\circ V)\,\mathbf 1 \\ (P\circ V)^\top\mathbf 1\end{bmatrix},
# \qquad
# \frac{\partial\ell}{\partial M} = -\gamma\, P \circ \bigl(V - w_r\mathbf 1^\top - \mathbf 1 w_c^\top\bigr).
# $$
#
# These are the normal equations of $\min_{a,b} \sum_{ij} P_{ij}(V_{ij} - a_i - b_j)^2$. In words: **from the incoming gradient, take
# away the part that is explained by a number for each row and one for each column** (a least squares fit with weights $P$), for
# such a change of $P$ would break the sums. What is left, times $-\gamma P$, is the gradient.
#
# The solution $w$ is free by the same constant as the potentials; the gradient does not see it. Eliminating one side of $K$ leaves
# a matrix of $\min(m, n)$ rows, and one Cholesky factor of that (or conjugate gradients) is the whole cost. By hand:


# %%
def by_hand(P: Tensor, V: Tensor, gamma: float) -> Tensor:
    """∂ℓ/∂M of one instance, by the formula above."""
    rows, columns = P.sum(1), P.sum(0)
    K = torch.cat([torch.cat([rows.diag(), P], 1), torch.cat([P.T, columns.diag()], 1)])
    sums = torch.cat([(P * V).sum(1), (P * V).sum(0)])
    w = torch.linalg.lstsq(K, sums.unsqueeze(1), driver="gelsd").solution.squeeze(1)  # K is singular: the shortest solution
    return -gamma * P * (V - w[: len(rows), None] - w[len(rows) :])


by_formula = torch.stack([by_hand(p, v, 5.0) for p, v in zip(P.detach(), V, strict=True)])
print(f"by hand against the layer: {(by_formula - gradient).abs().max().item():.1e}")
torch.testing.assert_close(by_formula, gradient, atol=1e-8, rtol=0)

# %% [markdown]
# The marginals and $\gamma$ have gradients from the same $w$: $\;\partial\ell/\partial r = w_r$, $\;\partial\ell/\partial c = w_c$ and
# $\partial\ell/\partial\gamma = \langle \partial\ell/\partial M, M\rangle/\gamma$. Only matching masses make a problem, so those of $r$ and
# $c$ are defined up to a constant each; pass them as tensors that require grad, or give the layer `gamma=torch.nn.Parameter(...)`.
#
# ### Three ways
#
# | `gradient=` | what it differentiates | exact | keeps |
# |---|---|---|---|
# | `"unrolled"` | every step of Sinkhorn's iteration, by autograd | for the iterate | every step |
# | `"implicit"` | the conditions of the solution, as above | yes | $M$ and $P$ |
# | `"approximate"` | the formula with $w = 0$: as if the sums were free to change | no | $M$ and $P$ |
#
# How far off is the third? We compare directions for a random problem.

# %%
costs, cotangent = torch.randn(50, 50), torch.randn(50, 50)


def gradient_of(way: str, M: Tensor, V: Tensor, gamma: float = 1.0) -> Tensor:
    """∂⟨P, V⟩/∂M."""
    M = M.detach().requires_grad_()
    return torch.autograd.grad(OptimalTransport(gamma, gradient=way)(M), M, V)[0]


for name, cotangents in (("a random cotangent", cotangent), ("one with row effects", cotangent + 3 * torch.randn(50, 1))):
    exact, unrolled, approximate = (gradient_of(way, costs, cotangents) for way in ("implicit", "unrolled", "approximate"))
    cosine = torch.nn.functional.cosine_similarity(exact.flatten(), approximate.flatten(), dim=0)
    error = (unrolled - exact).abs().max() / exact.abs().max()
    print(f"{name:21}  unrolled: relative difference {error.item():.0e}   approximate: cosine {cosine.item():.3f}")
    assert error < 1e-6

# %% [markdown]
# For a random cotangent there is little to take away, and the approximation is good. Where the loss cares about whole rows it
# points elsewhere: most of it pushes $M$ in directions that do not change $P$ at all (a number added to a row of $M$ is absorbed by a
# potential).
#
# ## 4. First experiment: learning costs
#
# Let a plan $P_\text{true}$ be given. We look for costs $M$ whose plan comes close to it, by Adam on
# $\|P(M) - P_\text{true}\| / \|P_\text{true}\|$, with each of the three gradients from the same start.
#
# * *Calibrated*: $P_\text{true}$ has uniform marginals, and so has the layer. Some $M$ fits perfectly (many do).
# * *Mis-calibrated*: $P_\text{true}$ was made with other marginals, which the layer does not know. No $M$ fits. How close a plan with
#   uniform marginals can come at all is the distance of $P_\text{true}$ to the set of such plans. We project onto it, to have a bound.

# %%
size, steps = (10, 40) if QUICK else (50, 300)


def learn(way: str, start: Tensor, target: Tensor) -> Tensor:
    """The relative distance to the target, step by step."""
    node, M = OptimalTransport(gradient=way, tolerance=1e-12), start.clone().requires_grad_()
    adam, distances = torch.optim.Adam([M], lr=1e-2), []
    for _ in range(steps):
        distance = (node(M) - target).norm() / target.norm()
        (M.grad,) = torch.autograd.grad(distance, M)
        adam.step()
        distances.append(distance.detach())
    return torch.stack(distances)


true_costs, start = torch.randn(2, size, size), torch.randn(2, size, size)
uneven_rows, uneven_columns = (weights / weights.sum(1, keepdim=True) for weights in torch.rand(2, 1, size))
targets = {
    "calibrated": OptimalTransport()(true_costs),
    "mis-calibrated": OptimalTransport()(true_costs, uneven_rows, uneven_columns),
}
curves = {case: {way: learn(way, start, target) for way in GRADIENTS} for case, target in targets.items()}


def nearest_plan(target: Tensor, rounds: int = 1000) -> Tensor:
    """The nonnegative matrices with uniform marginals that are closest, by Dykstra's alternating projections."""
    P, left_over = target, torch.zeros_like(target)
    for _ in range(rounds):
        rows, columns = P.sum(2, keepdim=True) - 1 / size, P.sum(1, keepdim=True) - 1 / size
        P = P - rows / size - columns / size + rows.sum(1, keepdim=True) / size**2 + left_over
        left_over = P.clamp(max=0)
        P = P - left_over
    return P


target = targets["mis-calibrated"]
bound = (nearest_plan(target) - target).norm() / target.norm()

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
for axis, (case, ways) in zip(axes, curves.items(), strict=True):
    for way, curve in ways.items():
        axis.semilogy(curve, label=way, **STYLES[way])
    axis.set(title=case, xlabel="step", ylabel="relative distance to the target")
axes[1].set(ylim=(0.35, 1.2), yticks=[0.4, 0.6, 0.8, 1.0], yticklabels=["0.4", "0.6", "0.8", "1"])
axes[1].minorticks_off()
axes[1].axhline(bound.item(), color="gray", linestyle=":", label="no plan comes closer")
axes[1].legend(loc="upper right")
figure.tight_layout()

# %%
print(f"{'':15} {'unrolled':>12} {'implicit':>12} {'approximate':>12}   unrolled and implicit differ by")
for case, ways in curves.items():
    gap = ((ways["unrolled"] - ways["implicit"]).abs() / ways["implicit"]).max()
    print(f"{case:15} {ways['unrolled'][-1]:12.6f} {ways['implicit'][-1]:12.6f} {ways['approximate'][-1]:12.6f}   {gap.item():.1e}")
    assert gap < 1e-5, "the same gradients make the same curves"
    assert ((ways["approximate"] - ways["implicit"]).abs() / ways["implicit"]).max() > 0.01
print(f"no plan with uniform marginals comes closer than {bound.item():.6f}")

# %% [markdown]
# The curves of `"unrolled"` and `"implicit"` lie on each other, step for step: the two gradients are the same up to the accuracy of
# the solve, so one may choose by cost alone. (Close to a perfect fit Adam makes the smallest differences grow, whatever they come
# from. We stop before that.)
#
# `"approximate"` takes another way. Where a perfect fit exists it arrives as well, here even a little earlier: Adam scales every
# entry of the gradient anyway. Where none exists it fails. The exact gradients come close to the bound and stop there, since at the best
# plan what is left of $P - P_\text{true}$ where $P > 0$ are row and column effects, which section 3 takes away. The approximation does not take them
# away. It is zero only for $P = P_\text{true}$, which cannot be, so it goes on pushing rows and columns of $M$ up and down; $P$ does not
# notice, and the steps are spent.
#
# ## 5. Second experiment: time
#
# Forward and backward together, for random $n \times n$ costs and $\gamma = 10$, solved to a relative error of the marginals of $10^{-10}$. The
# fourth curve is the plain node of section 1: it works for every statement, and pays for that with a dense matrix of
# $n^2$ rows. It is there to be checked against, not to be used at size.


# %%
class Plain(Transport):
    def objective(self, M, r, c, P):
        return (P * M).sum() + (P * (P / torch.outer(r, c)).log()).sum() / 10.0


def milliseconds(run: Callable[[], object], repeats: int = 7) -> float:
    """The shortest of some runs: what else the machine does can only add to it."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return 1e3 * min(times)


def forward_and_backward(node: torch.nn.Module, *inputs: Tensor) -> Callable[[], object]:
    M = inputs[0].clone().requires_grad_()
    V = torch.randn_like(M)
    return lambda: torch.autograd.grad(node(M, *inputs[1:]), M, V)


sizes = [5, 10, 20] if QUICK else [5, 10, 15, 20, 25, 50, 100, 200, 300, 500]
largest_dense = 5 if QUICK else 20
times = {way: [] for way in (*GRADIENTS, "dense")}
print(f"{'n':>4} " + " ".join(f"{way:>12}" for way in times) + "   (ms)")
for n in sizes:
    costs, uniform = torch.rand(1, n, n), torch.full((1, n), 1 / n)
    for way in GRADIENTS:
        times[way].append(milliseconds(forward_and_backward(OptimalTransport(10.0, gradient=way), costs)))
    if n <= largest_dense:
        times["dense"].append(milliseconds(forward_and_backward(Plain(), costs, uniform, uniform), repeats=2))
    print(f"{n:4} " + " ".join(f"{times[way][-1]:12.2f}" for way in times if len(times[way]) == len(times["unrolled"])))

# %%
figure, axis = plt.subplots(figsize=(8, 3.6))
for way, taken in times.items():
    axis.loglog(sizes[: len(taken)], taken, marker="o", markersize=3, label="plain node, dense" if way == "dense" else way, **STYLES[way])
axis.set(title="forward and backward", xlabel="n", ylabel="milliseconds")
axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
figure.tight_layout()

# %% [markdown]
# `"implicit"` costs one linear system more than `"approximate"`, about as much as a few iterations. `"unrolled"` has to record every
# iteration and to walk back through all of them; small problems of this kind need more iterations than large ones, hence its bump on the
# left.
#
# ## 6. Third experiment: memory
#
# What must be kept between the forward and the backward pass? Autograd will tell: `saved_tensors_hooks` shows every tensor that is put
# aside. We count the bytes of the distinct ones. Where the layer finds the plan by Newton's method, it keeps a Cholesky factor
# besides, to save time in the backward pass; autograd does not see that one, so we add it.
#
# On the left the problem stays the same and is solved to more and more digits, which takes more and more iterations.


# %%
def kept(node: OptimalTransport, M: Tensor) -> float:
    """MiB that stay between forward and backward."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        plan = node(M)
    total = sum(storages.values())
    del plan  # alive until here, so that no address was counted for two tensors
    if "Newton" in node.solution(M).report.method:
        total += M.numel() * M.element_size()
    return total / 2**20


n = 30 if QUICK else 200
costs = torch.rand(n, n, requires_grad=True)
by_iterations, counts = {"unrolled": [], "implicit": []}, []
for digits in range(1, 11):
    nodes = {way: OptimalTransport(50.0, gradient=way, tolerance=10.0**-digits) for way in by_iterations}
    counts.append(int(nodes["unrolled"].solution(costs).iterations))
    for way, node in nodes.items():
        by_iterations[way].append(kept(node, costs))

by_size = {"unrolled": [], "implicit": []}
for size in sizes:
    square = torch.rand(size, size, requires_grad=True)
    for way, memory in by_size.items():
        memory.append(kept(OptimalTransport(10.0, gradient=way), square))

matrix = costs.numel() * costs.element_size() / 2**20
print(f"{'iterations':>10} {'unrolled':>9} {'implicit':>9}   (MiB; one matrix has {matrix:.2f})")
for count, unrolled, implicit in zip(counts, by_iterations["unrolled"], by_iterations["implicit"], strict=True):
    print(f"{count:10} {unrolled:9.2f} {implicit:9.2f}")
assert max(by_iterations["implicit"]) < 3.3 * matrix
assert by_iterations["unrolled"][-1] > 10 * matrix

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
for way in by_size:
    axes[0].plot(counts, by_iterations[way], marker="o", markersize=3, label=way, **STYLES[way])
    axes[1].loglog(sizes, by_size[way], marker="o", markersize=3, label=way, **STYLES[way])
axes[0].set(title=f"n = {n}", xlabel="Sinkhorn iterations to the tolerance", ylabel="kept (MiB)", ylim=(0, None))
axes[1].set(title="tolerance $10^{-10}$", xlabel="n", ylabel="kept (MiB)")
axes[0].legend()
figure.tight_layout()

# %% [markdown]
# The implicit backward pass needs $M$, $P$ and the potentials, however long the forward pass took: two matrices, or three with the
# factor. Unrolling keeps two matrices for *each* iteration. So implicit differentiation lets you solve as accurately as you like.
#
# ## 7. The Sinkhorn loss
#
# Often the plan itself is not wanted, only what it costs. `SinkhornLoss` has both versions:
#
# * $S = \langle P, M\rangle$. Its derivative goes through $P$: the formula of section 3 with $V = M$, plus the direct term,
#   $\;\partial S/\partial M = P - \gamma P\circ(M - w_r\mathbf 1^\top - \mathbf 1 w_c^\top)$.
# * `regularised=True`: the optimal value $F = \langle P, M\rangle + \frac1\gamma \mathrm{KL}(P \,\|\, rc^\top)$. It is a minimum, so how $P$ moves
#   does not matter to first order (the *envelope theorem*), and the derivative is the plan: $\;\partial F/\partial M = P$. No system is
#   solved. For the marginals it is the potentials, up to constants.

# %%
costs = torch.rand(40, 40, requires_grad=True)
plan = OptimalTransport(20.0)(costs).detach()
(of_value,) = torch.autograd.grad(SinkhornLoss(20.0, regularised=True)(costs), costs)
(of_cost,) = torch.autograd.grad(SinkhornLoss(20.0)(costs), costs)
analytic = plan + by_hand(plan, costs.detach(), 20.0)

print(f"regularised value: gradient − P            {(of_value - plan).abs().max().item():.1e}")
print(f"⟨P, M⟩:            gradient − the formula  {(of_cost - analytic).abs().max().item():.1e}")
print(f"⟨P, M⟩:            gradient − P            {(of_cost - plan).abs().max().item():.1e}   (not the same thing)")
torch.testing.assert_close(of_value, plan, atol=1e-9, rtol=0)
torch.testing.assert_close(of_cost, analytic, atol=1e-9, rtol=0)

# %% [markdown]
# ## 8. The Sinkhorn divergence, and points that flow
#
# As a distance between two clouds the regularised value has a flaw: it is not smallest where they agree. Entropy blurs the plan, each point
# is drawn to an *average* of targets, and the cloud shrinks. The Sinkhorn divergence takes off what each cloud costs against itself,
#
# $$ S_\varepsilon(x, y) = F_\varepsilon(x, y) - \tfrac12 F_\varepsilon(x, x) - \tfrac12 F_\varepsilon(y, y), \qquad \varepsilon = 1/\gamma, $$
#
# and is zero for equal clouds and positive otherwise. We let points follow the negative gradient of either.

# %%
count, flow_steps, epsilon = (20, 10, 0.5) if QUICK else (100, 40, 0.5)
angle = 2 * math.pi * torch.rand(count)
ring = torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(count, 2)
blob = torch.tensor([-0.8, -0.8]) + 0.2 * torch.randn(count, 2)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    return (x.unsqueeze(1) - y).square().sum(2)


def flow(loss: Callable[[Tensor], Tensor]) -> Tensor:
    """A point weighs 1/count: with the value alone, a step takes it halfway to the mean of where it is sent."""
    x = blob.clone().requires_grad_()
    for _ in range(flow_steps):
        (slope,) = torch.autograd.grad(loss(x), x)
        x = (x - 0.25 * count * slope).detach().requires_grad_()
    return x.detach()


value = SinkhornLoss(1 / epsilon, regularised=True)
ends = {
    "start": blob,
    "after the regularised value": flow(lambda x: value(squared_distances(x, ring))),
    "after the divergence": flow(lambda x: sinkhorn_divergence(x, ring, epsilon=epsilon)),
}

figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), sharex=True, sharey=True)
for axis, (name, x) in zip(axes, ends.items(), strict=True):
    axis.scatter(*ring.T, s=12, color="#999999", label="target")
    axis.scatter(*x.T, s=12, color="#D55E00", label="points")
    axis.set(title=name, aspect="equal")
    distance = sinkhorn_divergence(x, ring, epsilon=epsilon).item()
    print(f"{name:28} mean radius {x.norm(dim=1).mean().item():.3f}, divergence {distance:.1e}")
print(f"{'target':28} mean radius {ring.norm(dim=1).mean().item():.3f}")
axes[0].legend()
figure.tight_layout()

# %% [markdown]
# ## 9. Masks and padding
#
# Problems of different sizes go into one batch: pad them, and say by `mask` where something may be sent. Rows and columns that the
# mask empties get no mass, and their entries no gradient. A pair can also be forbidden by a cost of $+\infty$.

# %%
small, large = torch.rand(2, 3), torch.rand(4, 4)
padded, mask = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool)
for k, costs in enumerate((small, large)):
    rows, columns = costs.shape
    padded[k, :rows, :columns] = costs
    mask[k, :rows, :columns] = True
padded.requires_grad_()

node = OptimalTransport(gamma=5.0)
P = node(padded, mask=mask)
(gradient,) = torch.autograd.grad(P.square().sum(), padded)
print(P[0].detach())
torch.testing.assert_close(P[0, :2, :3], node(small), atol=1e-9, rtol=0)
torch.testing.assert_close(P[1], node(large), atol=1e-9, rtol=0)
assert not gradient[~mask].any()

diagonal_forbidden = node(small.new_ones(3, 3).fill_diagonal_(torch.inf))
print(diagonal_forbidden)

# %% [markdown]
# ## 10. Large $\gamma$
#
# As $\gamma$ grows, the plan tends to one of the unregularised problem: for two uniform clouds of equal size, to a matching. The textbook
# iteration multiplies by $e^{-\gamma M}$, which underflows: from some $\gamma$ on it returns NaN. The layer absorbs large numbers into the
# potentials, and where Sinkhorn's iteration would take too long goes over to Newton's method on the dual problem. The
# table is in float32, with SciPy's exact matching to compare. Its last number is the largest entry of $\partial\langle P, V\rangle/\partial M$ for
# a random $V$.

# %%
n = 16 if QUICK else 64
costs = squared_distances(torch.rand(n, 2), torch.rand(n, 2)).float()
costs = costs / costs.max()
best = costs[linear_sum_assignment(costs.numpy())].mean()
cotangent = torch.randn(n, n).float()


def textbook(M: Tensor, gamma: float, iterations: int = 500) -> Tensor:
    """Sinkhorn's iteration as it is usually written, for uniform marginals."""
    kernel, v = torch.exp(-gamma * M), M.new_ones(len(M))
    for _ in range(iterations):
        u = 1 / len(M) / (kernel @ v)
        v = 1 / len(M) / (kernel.T @ u)
    return u[:, None] * kernel * v


print(f"{'γ':>7} {'textbook: error':>16} {'layer: error':>13} {'cost above the matching':>24} {'gradient':>9}   found by")
for gamma in (1e1, 1e2, 1e3, 1e4, 1e5):
    naive = (textbook(costs, gamma).sum(1) - 1 / n).abs().sum()
    found = OptimalTransport(gamma).solution(costs)
    excess = (found.y * costs).sum() / best - 1
    largest = gradient_of("implicit", costs, cotangent, gamma).abs().max()
    assert largest.isfinite()
    print(f"{gamma:7.0e} {naive.item():16.1e} {found.violation.item():13.1e} {excess.item():24.1e} {largest.item():9.1e}   {found.report.method}")

# %% [markdown]
# Large $\gamma$ is not free: between two matchings the plan jumps, so its gradient is large where two of them are nearly as cheap and nearly
# zero elsewhere. For learning, take the smallest $\gamma$ that is sharp enough.
#
# ## To try
#
# * Make $\gamma$ a `torch.nn.Parameter` in the first experiment. Which value does the mis-calibrated problem choose?
# * Give the first experiment the marginals as inputs, `node(M, r.softmax(-1), c.softmax(-1))`, and learn them too. Where does the
#   bound go?
# * Start each solve from the last one, `node.solution(M, init=previous)`. How many iterations does a training step take then?
# * Change the objective of section 1, say to a quadratic penalty in place of the entropy with $-P \le 0$ as
#   `inequality_constraints`, and let `verify` look at it.
