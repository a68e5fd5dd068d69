# %% [markdown]
# # Learning hyper-parameters through a solver
#
# How strongly should a model be regularised? The usual answer is a grid: fit with every value, keep the one with the smallest validation error. That works
# for one number. A penalty *for each coefficient* would say which features to use at all, but a grid of 65 numbers cannot be searched. The validation error
# is a function of the fitted coefficients, these are the solution of an optimisation problem, and the solution has a derivative. So go downhill.
#
# You will
#
# 1. put twenty splits of a data set into one batch, and fit all of them in one call;
# 2. derive the gradient of a validation error in 65 penalties, and hold it against finite differences and unrolled gradient descent;
# 3. learn one penalty, two, and 65, and see that the validation set can be overfitted by its hyper-parameters;
# 4. look at what has been switched off, and at what a gradient saves;
# 5. do the same for logistic regression, with Newton's method on top: second derivatives through the solution.

# %%
import os
import time
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.preprocessing import PolynomialFeatures
from torch import Tensor
from torch.nn.functional import logsigmoid

from declarative import DeclarativeNode, Unrolled, verify
from declarative.layers import LeastSquares

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # problems this small gain nothing from a second thread

QUICK = os.environ.get("DECLARATIVE_QUICK") == "1"  # small sizes, for tests

plt.rcParams.update({"figure.dpi": 72, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## 1. Twenty splits, one batch
#
# The diabetes data: 442 patients, ten measurements, the progress of the disease after a year. With all squares and products there are 65 features, and
# least squares without a penalty fits mostly noise. One random split of 442 patients says little, so everything below is done for twenty splits
# at once: a batch of twenty. Each holds out 92 patients for the test, which nothing but the last line of a comparison looks at, and divides the other 350
# into five folds. Each fold is predicted by a model that was fitted to the other four, so that a batch is $20 \times 5$ fits.
#
# A penalty compares coefficients, so features must have one scale: each fit standardises by the mean and the standard deviation *of the patients that
# it sees*. Otherwise the validation patients would have a say in the fit. And since with $A = QR$ we have $\|Ay - b\|^2 = \|Ry - Q^\top b\|^2$ plus a
# constant, 65 rows do for 280 patients, whatever the penalties will be. Divided by $\sqrt m$, they give the mean over the $m$ patients.

# %%
splits, folds, kept = (3, 2, 350) if QUICK else (20, 5, 350)
measured, progress = (torch.as_tensor(array) for array in load_diabetes(return_X_y=True))
names = ("age", "sex", "bmi", "pressure", "s1", "s2", "s3", "s4", "s5", "s6")
polynomial = PolynomialFeatures(2, include_bias=False)
# (The measurements come centred by the means of all 442 patients, so that products are of deviations. No target is used in that.)
features, target = torch.as_tensor(polynomial.fit_transform(measured * len(measured) ** 0.5)), progress
powers = torch.as_tensor(polynomial.powers_)  # (65, 10): feature j is the product of x_i to the power powers[j, i]
n = features.shape[1]

order = torch.stack([torch.randperm(len(target), generator=torch.Generator().manual_seed(seed)) for seed in range(splits)])
known, unseen = order[:, :kept], order[:, kept:]
part = known.reshape(splits, folds, kept // folds)
others = torch.stack([torch.cat([part[:, k] for k in range(folds) if k != fold], 1) for fold in range(folds)], 1)


def standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """R/√m and Qᵀb/√m of the patients of a fit; A and b of those that it is to predict."""
    A, b, A_test, b_test = features[train], target[train], features[test], target[test]
    centre, scale, level, spread = A.mean(-2, keepdim=True), A.std(-2, keepdim=True), b.mean(-1, keepdim=True), b.std(-1, keepdim=True)
    Q, R = torch.linalg.qr((A - centre) / scale)
    m, right = A.shape[-2], Q.mT @ ((b - level) / spread).unsqueeze(-1)
    return R / m**0.5, right.squeeze(-1) / m**0.5, (A_test - centre) / scale, (b_test - level) / spread


whole, folded = standardised(known, unseen), standardised(others, part)
print("fits", tuple(folded[0].shape), "validation", tuple(folded[2].shape), "test", tuple(whole[2].shape))

# %% [markdown]
# ## 2. The gradient of a validation error
#
# The inner problem is ridge regression with a penalty for each coefficient:
#
# $$ y(\lambda) = \operatorname*{argmin}_y\ \tfrac12\|Ay - b\|^2 + \tfrac12\sum_j \lambda_j y_j^2, \qquad
#    \ell(\lambda) = \tfrac1{m'}\|A' y(\lambda) - b'\|^2 . $$
#
# The primes are the validation patients. The optimality condition is $H y = A^\top b$ with $H = A^\top A + \mathrm{diag}\,\lambda$. Differentiate it in
# $\lambda_j$: $H\,\partial y/\partial\lambda_j = -y_j e_j$. So
#
# $$ \frac{\partial\ell}{\partial\lambda_j} = -u_j\,y_j, \qquad H u = \nabla_y\ell . $$
#
# **One** linear system gives the derivatives in all penalties, with the factor that the fit has already made. `LeastSquares` does that by itself. We learn
# $\rho = \log\lambda$, which may be any number.

# %%
fit = LeastSquares()


def error(data: tuple[Tensor, Tensor, Tensor, Tensor], rho: Tensor) -> Tensor:
    """Mean squared error of prediction, in units of the variance of b; rho broadcasts with (…, 65)."""
    A, b, A_test, b_test = data
    y = fit(A, b, ridge=rho.exp())
    return ((A_test @ y.unsqueeze(-1)).squeeze(-1) - b_test).square().mean(-1)


def cross_validation(rho: Tensor) -> Tensor:
    """(splits,) for rho (splits, 65): the same penalties in all folds of a split."""
    return error(folded, rho.unsqueeze(1)).mean(1)


A, b, A_val, b_val = (tensor[0, 0] for tensor in folded)  # one fold of one split
rho = torch.full((n,), -3.0).requires_grad_()
(gradient,) = torch.autograd.grad(error((A, b, A_val, b_val), rho), rho)

with torch.no_grad():
    y = fit(A, b, ridge=rho.exp())
    u = torch.linalg.solve(A.T @ A + rho.exp().diag(), 2 * A_val.T @ (A_val @ y - b_val) / len(b_val))
    by_hand = -rho.exp() * u * y
    h = 1e-4
    moved = rho + h * torch.stack([torch.eye(n), -torch.eye(n)])  # all 130 fits are one batch
    by_differences = -(error((A, b, A_val, b_val), moved)).diff(dim=0)[0] / (2 * h)


def off(other: Tensor) -> float:
    return float((other - gradient).norm() / gradient.norm())


print(f"relative difference: by hand {off(by_hand):.0e}, finite differences {off(by_differences):.0e}")
assert off(by_hand) < 1e-8
assert off(by_differences) < 1e-5
report = verify(fit, A[None, :40, :4], b[None, :40], torch.ones(1, 40), torch.rand(1, 4) + 0.1, directions=1)
print(report)
assert report.ok

# %% [markdown]
# The other way to get a gradient is to differentiate *the algorithm*: run $k$ steps of gradient descent and let autograd walk back through them. That is
# a node with a `solve` of its own and `Unrolled()`. Cut short, it has another target: the validation error of the *iterate*, which stops early
# and is therefore regularised by the stopping, whatever $\lambda$ is.


# %%
class Descent(DeclarativeNode):
    def __init__(self, steps: int) -> None:
        super().__init__(differentiation=Unrolled())
        self.steps = steps

    def objective(self, A, b, penalty, y):
        return 0.5 * (A @ y - b).square().sum() + 0.5 * (penalty * y.square()).sum()

    def solve(self, A, b, penalty):
        H, right, y = A.mT @ A + torch.diag_embed(penalty), (A.mT @ b.unsqueeze(2)).squeeze(2), torch.zeros_like(penalty)
        length = 1 / torch.linalg.matrix_norm(H.detach(), 2)[:, None]
        for _ in range(self.steps):
            y = y - length * ((H @ y.unsqueeze(2)).squeeze(2) - right)
        return y


counts = (3, 10, 30) if QUICK else (3, 10, 30, 100, 300, 1000, 3000)
wrong = []
for count in counts:
    y = Descent(count)(A, b, rho.exp(), in_dims=None)
    (unrolled,) = torch.autograd.grad((A_val @ y - b_val).square().mean(), rho)
    wrong.append(off(unrolled))
    cosine = torch.nn.functional.cosine_similarity(unrolled, gradient, dim=0)
    print(f"{count:5} steps: relative error {wrong[-1]:.1e}, cosine {cosine:5.2f}, of the right sign in {int((unrolled * gradient > 0).sum())} of {n}")
assert wrong[0] > 0.1
assert QUICK or wrong[-1] < 1e-3

# %% [markdown]
# Even a gradient from 30 steps makes an angle of more than 50° with the one that is wanted, and a third of its signs are wrong: directions of small
# curvature, which the penalties are about, have hardly moved yet. It takes a thousand steps to have the error below a percent, and a tape of as many steps.
# The implicit gradient needs the solution and one system, however the solution was found.
#
# ## 3. One penalty, two, 65
#
# **One.** A grid of 33 values is what everybody does; downhill in $\rho$ has to find the same minimum. Every split has its own $\rho$. Since split $s$ only
# depends on row $s$, the gradient of the *sum* of the errors is the gradient of each, and Adam treats every number alone: twenty optimisations run as one.

# %%


def learn(start: Tensor, rho_of: Callable[[Tensor], Tensor], loss: Callable[[Tensor], Tensor], steps: int, rate: float, pull: float = 0.0):
    """Adam from `start` (splits, k) on loss(rho_of(θ)), plus pull · (mean square of what θ has moved); the path of ρ as well."""
    theta, path = start.clone().requires_grad_(), []
    adam = torch.optim.Adam([theta], lr=rate)
    for _ in range(2 if QUICK else steps):
        rho = rho_of(theta)
        objective = loss(rho) + pull * (theta - start).square().mean(1)
        (theta.grad,) = torch.autograd.grad(objective.sum(), theta)
        path.append(rho.detach().clone())
        adam.step()
        with torch.no_grad():
            theta.clamp_(-12, 8)  # e⁸ = 3000 is as good as infinity
    return theta.detach(), torch.stack([*path, rho_of(theta).detach()])


def score(rho: Tensor) -> Tensor:
    """Test R² of each split, refitted to all 350 patients."""
    b_test = whole[3]
    return 1 - error(whole, rho) / (b_test - b_test.mean(1, keepdim=True)).square().mean(1)


grid = torch.linspace(-9.0, 4.0, 33)
with torch.no_grad():
    by_grid = grid[torch.stack([cross_validation(value.expand(splits, 1)) for value in grid]).argmin(0)].unsqueeze(1)
one, _ = learn(torch.full((splits, 1), -2.0), lambda theta: theta, cross_validation, steps=25, rate=0.2)
print(f"log λ: by grid {by_grid.mean():.2f} ± {by_grid.std():.2f}, learned {one.mean():.2f} ± {one.std():.2f}")

# %% [markdown]
# **Sixty-five, naively.** From there we let all 65 go, once against a single set of validation patients (the first fold), as one would with a grid, and once
# against all five folds.
#
# **Two.** One penalty for the ten plain measurements, and one for the 55 squares and products.
#
# **Sixty-five, held back.** From the two, every coefficient may have its own penalty, at a price: $\kappa$ times the mean square of the 65 moves
# $\delta_j$ in $\log\lambda_j = \tau_{\text{group}(j)} + \delta_j$ is added to the validation error. It is a penalty on the penalties. $\kappa$ was not
# tuned: we show three, ten times apart.

# %%
plain = powers.sum(1) == 1
group = torch.where(plain, 0, 1)


def held_out(rho: Tensor) -> Tensor:
    A, b, A_val, b_val = (tensor[:, 0] for tensor in folded)
    return error((A, b, A_val, b_val), rho)


def each(theta: Tensor) -> Tensor:
    return theta


two, _ = learn(one.expand(splits, 2), lambda theta: theta[:, group], cross_validation, steps=30, rate=0.2)
learned, paths = {}, {}
learned["65, one validation set"], paths["65, one validation set"] = learn(one.expand(splits, n), each, held_out, steps=40, rate=0.2)
learned["65, five folds"], paths["65, five folds"] = learn(one.expand(splits, n), each, cross_validation, steps=40, rate=0.2)
for kappa in (0.003, 0.03, 0.3):
    name = f"65, held back, κ = {kappa}"
    learned[name], paths[name] = learn(two[:, group], each, cross_validation, steps=30, rate=0.2, pull=kappa)

# %%
rows = {
    "λ = 0.001/350": torch.full((splits, 1), 0.001 / kept).log(),
    "one, by a grid of 33": by_grid,
    "one": one,
    "two": two[:, group],
    **learned,
}
base, results = score(one), {}
print(f"{'penalties':28} {'cross-validated':>16} {'test R²':>16} {'gain on one':>18} {'better in':>10}")
for name, rho in rows.items():
    result = results[name] = score(rho)
    gain, seen = result - base, 1 - cross_validation(rho.expand(splits, n)).mean()
    pair = f"{gain.mean():+.3f} ± {gain.std() / splits**0.5:.3f}"
    print(f"{name:28} {seen:16.3f} {result.mean():8.3f} ± {result.std() / splits**0.5:.3f} {pair:>18} {int((gain > 0).sum()):4} of {splits}")
best = "65, held back, κ = 0.03"
over_two = results[best] - results["two"]
print(f"\n{best} over two: {over_two.mean():+.4f} ± {over_two.std() / splits**0.5:.4f}, better in {int((over_two > 0).sum())} of {splits}")
assert (results["one"] - results["one, by a grid of 33"]).abs().mean() < 0.02
assert QUICK or (results["two"] - base).mean() > 0.02
assert QUICK or (results["65, one validation set"] - base).mean() < -0.02
assert QUICK or results[best].mean() > 0.439

# %% [markdown]
# (Mean ± standard error over splits. The columns are in the same units, the share of the variance that is explained: first on the folds that the penalties
# were chosen by, then on patients that nobody has looked at. The splits draw on the same 442 patients, so that standard errors are somewhat too small;
# differences within a split are what to look at.)
#
# * The gradient finds what the grid finds. For one number it is no better.
# * **Two beat one** in nearly every split: products deserve a much stronger penalty than measurements. That is the largest gain, for one more number.
# * **65 free penalties are not better than one.** On a single validation set they are clearly worse: 65 numbers are fitted to 70 patients, and the
#   validation error stops being an estimate of anything. With five folds the harm is gone, but so is most of what was promised: the cross-validated
#   score rises far above what the test confirms. An exact gradient is good at minimising the wrong thing, too.
# * **65 held back** are as good as the two that they start from, or a little better, which is within what this data can tell. If $\kappa$ is too small, we are
#   back at overfitting.
#
# In the figure the dashed curves, which are what is climbed (the blue one without its pull), go up as they should; the solid ones are what one gets.

# %%
shown = {"65, one validation set": ("#D55E00", "s"), "65, five folds": ("#E69F00", "^"), best: ("#0072B2", "o")}
figure, axis = plt.subplots(figsize=(8, 3.8))
with torch.no_grad():
    for name, (colour, marker) in shown.items():
        seen_by = held_out if "one" in name else cross_validation
        steps = range(0, len(paths[name]), 1 if QUICK else 3)
        style = {"color": colour, "marker": marker, "markersize": 4}
        axis.plot(steps, [1 - seen_by(paths[name][k].expand(splits, n)).mean() for k in steps], linestyle="--", fillstyle="none", **style)
        axis.plot(steps, [score(paths[name][k]).mean() for k in steps], label=name, **style)
axis.axhline(float(base.mean()), color="#000000", linestyle=":", label="one penalty, test")
axis.set(xlabel="step of Adam", ylabel="share of variance explained", title="dashed: chosen by; solid: test")
axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
figure.tight_layout()

# %% [markdown]
# ## 4. What has been switched off, and what it cost
#
# With standardised features a coefficient alone would be divided by $1 + \lambda_j$. So $\lambda = 0.1$ is next to nothing, and at $\lambda > 10$ less than a
# tenth is left. The map shows the mean of $\log_{10}\lambda_j$ over the splits: left the measurements, right their products.

# %%
levels = learned[best].mean(0) / torch.log(torch.tensor(10.0))
square, alone = torch.full((10, 10), torch.nan), torch.zeros(10, 1)
for power, level in zip(powers, levels, strict=True):
    places = power.nonzero().flatten()
    if power.sum() == 1:
        alone[places[0], 0] = level
    else:
        square[places[-1], places[0]] = level
figure, axes = plt.subplots(1, 2, figsize=(8.5, 4.4), width_ratios=(1, 7))
for axis, values, ticks in ((axes[0], alone, ["alone"]), (axes[1], square, names)):
    image = axis.imshow(values.numpy(), cmap="cividis_r", vmin=-1.8, vmax=1.0, aspect="auto")
    axis.set_xticks(range(len(ticks)), ticks, rotation=45)
    axis.set_yticks(range(10), names)
    axis.grid(visible=False)
axes[1].set_yticklabels([])
figure.colorbar(image, ax=axes[1], label="log₁₀ λ")
figure.suptitle("dark: switched off")
figure.tight_layout()

ranked = levels.argsort()
labels = polynomial.get_feature_names_out(names)
share = (learned[best] > torch.log(torch.tensor(10.0))).double().mean(0)
print("weakest penalties:  ", ", ".join(f"{labels[j]} ({10 ** levels[j]:.2g})" for j in ranked[:6].tolist()))
print("strongest penalties:", ", ".join(f"{labels[j]} ({10 ** levels[j]:.2g})" for j in ranked[-6:].tolist()))
print(f"switched off (λ > 10): {float((learned[best] > 2.303).sum(1).double().mean()):.0f} of 65 in the mean of the splits; "
      f"{int((share > 0.75).sum())} features are so in more than three quarters of the splits")  # fmt: skip

# %% [markdown]
# That sex, body mass index, blood pressure and s5 matter is known from every analysis of these data; here nobody said so. Products are held down as a group,
# least of all those of age and sex and of body mass index and pressure, and the square of s6. Which ones are switched off differs from split to split, and
# none is in more than three quarters of them: do not read a discovery into any single one.
#
# **What a gradient saves.** A grid with only two values for each penalty has $2^{65}$ points. One-sided finite differences need 66 evaluations for a gradient.
# We measure what the exact one costs, and give random search, the usual way out in many dimensions, 80 tries around the same start, against 30 steps
# by gradient:

# %%


def seconds(run: Callable[[], object], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


start = two[:, group]
# The fit needs a QR factorisation anyway; a gradient adds two triangular solves with its factor.
with torch.no_grad():
    value_only = seconds(lambda: cross_validation(start))
leaf = start.clone().requires_grad_()
with_gradient = seconds(lambda: torch.autograd.grad(cross_validation(leaf).sum(), leaf))
print(f"validation error {1e3 * value_only:.0f} ms for all {folds * splits} fits; with its {n} derivatives {with_gradient / value_only:.1f} times that")

tries = 5 if QUICK else 80
with torch.no_grad():
    draws = start + torch.randn(tries, splits, n)
    found = torch.stack([cross_validation(draw) for draw in draws]).amin(0)
    print(f"mean cross-validated score: start {1 - cross_validation(start).mean():.3f}, best of {tries} random draws {1 - found.mean():.3f}, "
          f"30 steps by gradient {1 - cross_validation(learned['65, held back, κ = 0.003']).mean():.3f}")  # fmt: skip

# %% [markdown]
# ## 5. Logistic regression, and Newton's method on top
#
# Nothing above needs a closed form. Logistic regression is fitted by iteration; stated as a node, its solution has derivatives of every order. For *one*
# hyper-parameter the second derivative of the validation error is cheap, so we can take Newton steps in $\rho = \log\lambda$, through the Newton steps that fit
# the model. The data: 569 tumours, thirty measurements. Each split fits the model to 60 of them, of which as good as any 60 can be separated by a plane:
# without a penalty there is no solution at all. Another 200 choose $\lambda$, and the rest is the test.


# %%
class LogisticRegression(DeclarativeNode):
    def objective(self, A, t, rho, y):
        right = t * (A @ y[1:] + y[0])  # t is 1 or −1; the intercept is not penalised
        return -logsigmoid(right).mean() + 0.5 * rho.exp() * y[1:].square().sum()

    def initial_guess(self, A, t, rho):
        return A.new_zeros(A.shape[0], A.shape[2] + 1)


def log_loss(A: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return -logsigmoid(t * ((A @ y[:, 1:, None]).squeeze(2) + y[:, :1])).mean(1)


cells, kind = (torch.as_tensor(array).double() for array in load_breast_cancer(return_X_y=True))
order = torch.stack([torch.randperm(len(kind), generator=torch.Generator().manual_seed(seed)) for seed in range(splits)])
train, valid, test = order[:, :60], order[:, 60:260], order[:, 260:]
centre, scale = cells[train].mean(1, keepdim=True), cells[train].std(1, keepdim=True)
A, A_val, A_test = ((cells[which] - centre) / scale for which in (train, valid, test))
t, t_val, t_test = (2 * kind[which] - 1 for which in (train, valid, test))

logistic = LogisticRegression()
report = verify(logistic, A[:2, :, :3], t[:2], torch.tensor([-2.0, -4.0]), directions=1)
assert report.ok
print(str(report).splitlines()[-1], f"({len(report.rows)} rows)")

rho = torch.full((splits,), -3.0)
print("step   largest |dℓ/dρ|   mean validation loss")
for step in range(4 if QUICK else 9):
    leaf = rho.clone().requires_grad_()
    loss = log_loss(A_val, t_val, logistic(A, t, leaf))
    (slope,) = torch.autograd.grad(loss.sum(), leaf, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), leaf)
    print(f"{step:4}   {slope.abs().max():15.1e}   {loss.mean():.6f}")
    # Uphill curvature, or hardly any: a step downhill of limited length.
    rho = rho - (slope.detach() / curvature.abs().clamp_min(1e-8)).clamp(-1.0, 1.0)

with torch.no_grad():
    values = torch.linspace(-10.0, 1.0, 33)
    losses = torch.stack([log_loss(A_val, t_val, logistic(A, t, value.expand(splits))) for value in values])
    by_grid = values[losses.argmin(0)]
    for name, chosen in (("λ = 1e-4", torch.full((splits,), -9.21)), ("grid of 33", by_grid), ("Newton", rho)):
        y = logistic(A, t, chosen)
        held, final = log_loss(A_val, t_val, y), log_loss(A_test, t_test, y)
        print(f"{name:10} validation loss {held.mean():.5f}   test loss {final.mean():.4f} ± {final.std() / splits**0.5:.4f}")
    y = logistic(A, t, rho)
    assert QUICK or (log_loss(A_val, t_val, y) <= losses.amin(0) + 1e-8).double().mean() > 0.9

# %%
figure, axis = plt.subplots(figsize=(7, 3.4))
for k in range(min(splits, 6)):
    axis.semilogy(values, losses[:, k], color="#0072B2", alpha=0.6, linewidth=1)
with torch.no_grad():
    at = log_loss(A_val, t_val, logistic(A, t, rho))
axis.semilogy(rho[:6], at[:6], "o", color="#D55E00", label="where Newton's method ends")
axis.set(xlabel="log λ", ylabel="validation loss, nats", title="six of the splits")
axis.set_yticks((0.1, 0.2, 0.4), ("0.1", "0.2", "0.4"))
axis.minorticks_off()
axis.legend()
figure.tight_layout()

# %% [markdown]
# The slope goes to rounding within a few steps, its exponent doubling at the end as it should: the second derivative is right. The grid comes as close as its
# spacing allows, which is all the same for the test: a gain in the fourth digit of the validation loss is no gain. The point is not the one number. It is that
# a model with no closed form, fitted by a solver that stops when it is done, behaves like any other differentiable function.
#
# (A statement has to be as smooth as it claims. We wrote $-\log\sigma(t\,z)$; with `softplus(z) - t * z`, which is the same on paper, torch's `softplus`
# turns to the identity at $z = 20$, and Newton's method has to end on a kink wherever a penalty is weak enough for such $z$.)
#
# ## Limits
#
# * Hyper-parameters are parameters. As many of them as of coefficients need as much care, and data, as coefficients do. Two well chosen groups did here what 65
#   numbers did, and cost nothing.
# * The validation error need not be convex in $\rho$. We started every search at the best single penalty; other starts end elsewhere.
# * $\lambda_j \to \infty$ switches a feature off, and its derivative vanishes there: what is off stays off. Hence no start at large values.
# * The gradient is that of the *solution*. For a model that is never fitted to the end, as deep networks are not, the derivative of the iterate may be what
#   you want, and `Unrolled` the right choice.
#
# ## To try
#
# * Give every *measurement* a number, and every product the sum of its parents' numbers: twelve hyper-parameters with the two levels. Where do they come in?
# * Repeat the five folds with other divisions of the same patients. How much of the overfitting of 65 free penalties goes away?
# * Learn *weights of the training patients* through `LeastSquares()(A, b, weights)`: corrupt a fifth of the targets, keep a clean validation set, and see
#   which weights go to zero.
# * Choose $\kappa$ itself. What may you use to judge it?
# * State a support-vector machine as a node (see `problems/support_vector.py`) and learn its $C$ by the validation hinge loss.
