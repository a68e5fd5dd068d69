# %% [markdown]
# # A jigsaw: permutations learned by transport
#
# Cut a picture into pieces and shuffle them. Which piece belongs where? A network can give each piece a score for each place. But scores are not an answer:
# two pieces may ask for the same place, and some place may get none. The answer is a *permutation*, and permutations cannot be differentiated. Entropic optimal
# transport makes a soft one, in which every piece is used once and every place is filled once, and that can be trained. Does it pay? You will
#
# 1. cut and shuffle handwritten digits, and say what counts as right where pieces look alike;
# 2. turn scores into a soft permutation by one layer, and check it and its gradient;
# 3. train on puzzles of 2 × 2 and of 4 × 4 pieces, with several seeds, beside a softmax without the layer;
# 4. see puzzles that were solved, and puzzles that were not;
# 5. compare the implicit gradient with that of unrolled iterations: accuracy, error, time, memory.

# %%
import os
import time
import warnings

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torch.nn import functional as F

from declarative import SolverWarning, verify
from declarative.layers import Assignment, OptimalTransport
from demo.images import load_images

torch.manual_seed(0)
torch.set_num_threads(1)  # problems this small gain nothing from a second thread

QUICK = os.environ.get("DECLARATIVE_QUICK") == "1"  # small sizes, for tests

plt.rcParams.update({"figure.dpi": 72, "axes.grid": False, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## 1. Puzzles
#
# The 1797 digits that come with scikit-learn have 8 × 8 pixels: a puzzle of 2 × 2 has four pieces of 4 × 4 pixels, one of 4 × 4 has sixteen pieces of 2 × 2
# pixels. (Set the environment's `DECLARATIVE_IMAGES` to a folder with MNIST's files to use those.) Three quarters are for training, a quarter for testing.

# %%
images, _ = load_images()
images = images[:4000, : images.shape[1] // 4 * 4, : images.shape[2] // 4 * 4]  # sides that can be cut in four


def cut(pictures: Tensor, k: int) -> Tensor:
    """(b, h, w) → (b, k², pixels of a piece), place by place."""
    b, h, w = pictures.shape
    return pictures.reshape(b, k, h // k, k, w // k).transpose(2, 3).reshape(b, k * k, -1)


def join(pieces: Tensor, k: int) -> Tensor:
    """The inverse of `cut`."""
    h, w = images.shape[1:]
    return pieces.reshape(-1, k, k, h // k, w // k).transpose(2, 3).reshape(-1, h, w)


def pick(pieces: Tensor, which: Tensor) -> Tensor:
    """Pieces in the order that `which` (b, n) says."""
    return pieces.gather(1, which.unsqueeze(2).expand(-1, -1, pieces.shape[2]))


def shuffle(pieces: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Shuffled pieces, and the place (b, n) from which each was taken."""
    place = torch.rand(pieces.shape[:2], generator=generator).argsort(1)
    return pick(pieces, place), place


assert torch.equal(join(cut(images, 4), 4), images)
for k in (2, 4):
    pieces = cut(images, k)
    alike = (pieces.unsqueeze(1) == pieces.unsqueeze(2)).all(3).sum(2) > 1
    print(f"{k} × {k}: {100 * alike.float().mean().item():4.1f} % of the pieces look exactly like another one of their picture")

# %% [markdown]
# At 4 × 4 many pieces are blank paper, and nobody can say which blank piece belongs to which blank place. So we report two scores: *strict*, the share of
# pieces that lie where they were cut out, and *by looks*, which also accepts a place where an identical piece belongs. And the share of whole pictures that
# are right.
#
# ## 2. From scores to a soft permutation
#
# Let $s_{ij}$ be the score of piece $i$ at place $j$, of $n$ each. The layer solves
#
# $$ P = \operatorname*{argmin}_{P \ge 0} \; -\langle P, s\rangle + \frac1\gamma\sum_{ij} P_{ij}\log\frac{P_{ij}}{1/n^2}
# \qquad\text{subject to}\qquad P\mathbf 1 = P^\top\mathbf 1 = \tfrac1n\mathbf 1 . $$
#
# Rows and columns of $nP$ sum to one: it is *doubly stochastic*, a weighted mean of permutations (Birkhoff's theorem). Without the constraint on the columns
# the solution would be the softmax of each row. So the layer is **a softmax that also knows that each place is taken once**.

# %%
layer = OptimalTransport(gamma=1.0)  # the network scales its scores itself, so γ may stay 1
scores = torch.tensor([[3.0, 2.5, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
soft = 3 * layer(-scores)
print("softmax of each row", *scores.softmax(1).tolist(), sep="\n  ")
print("soft permutation", *soft.tolist(), sep="\n  ")
assert torch.allclose(soft.sum(0), torch.ones(3).double(), atol=1e-9)
assert torch.allclose(soft.sum(1), torch.ones(3).double(), atol=1e-9)
assert scores.softmax(1)[0].argmax() == 0
assert soft[0].argmax() == 1

report = verify(layer, -scores.expand(2, 3, 3), directions=1)
print(report)
assert report.ok

# %% [markdown]
# By softmax, pieces 0 and 1 both ask for place 0. In the soft permutation piece 0 gives way, for place 1 suits it nearly as well.
#
# **The loss** is the negative logarithm of the mass with which a piece goes where it may go: $-\log\sum_{j \in J_i} n P_{ij}$, with $J_i$ the places at
# which a piece that looks like piece $i$ belongs. Blank pieces are so not asked for what nobody can know.
#
# **At test time** a soft permutation is rounded to the nearest hard one, the permutation with the largest $\langle P, Y\rangle$, by the Hungarian method
# (`Assignment`). We round the softmax in this way as well, so that the baseline is a strong one; in addition we tell what it does *without*, each piece going
# to its best place whatever the others do.
#
# ## 3. Training
#
# The network sees all pieces at once, for what a piece is depends on the others: one or two blocks of self-attention, without positions, so that the order
# of the pieces cannot matter.


# %%
class Block(nn.Module):
    def __init__(self, width: int, heads: int = 4):
        super().__init__()
        self.first, self.second, self.heads = nn.LayerNorm(width), nn.LayerNorm(width), heads
        self.read, self.write = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.each = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, x):
        b, n, width = x.shape
        query, key, value = self.read(self.first(x)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.write(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(b, n, width))
        return x + self.each(self.second(x))


class Scorer(nn.Module):
    """(b, n, pixels) → scores (b, n, n) of pieces at places."""

    def __init__(self, k: int, pixels: int, width: int, blocks: int):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(pixels, width), *(Block(width) for _ in range(blocks)), nn.Linear(width, k * k))

    def forward(self, pieces):
        return self.net(pieces)


METHODS = ("softmax", "implicit", "unrolled")
UNROLLED_STEPS = 10


def soft_permutation(method: str, scores: Tensor) -> Tensor:
    """Rows that sum to one; columns too, but for the softmax."""
    if method == "softmax":
        return scores.softmax(2)
    if method == "implicit":
        return scores.shape[2] * layer(-scores)
    with warnings.catch_warnings():  # that ten iterations do not always suffice is known
        warnings.simplefilter("ignore", SolverWarning)
        return scores.shape[2] * OptimalTransport(1.0, gradient="unrolled", max_iterations=UNROLLED_STEPS)(-scores)


# %% [markdown]
# `unrolled` stops after ten of Sinkhorn's iterations; why is told in section 5.

# %%
SIZES = {2: {"width": 32, "blocks": 1, "batch": 64, "steps": 400}, 4: {"width": 48, "blocks": 2, "batch": 32, "steps": 500}}
SEEDS = range(2 if QUICK else 3)
if QUICK:
    SIZES = {k: {**size, "steps": 8} for k, size in SIZES.items()}


def split(seed: int) -> tuple[Tensor, Tensor]:
    """Pictures to train on and to test on."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    train, test = order.split([len(order) * 3 // 4, len(order) - len(order) * 3 // 4])
    return images[train], images[test]


def train(method: str, k: int, seed: int) -> Scorer:
    torch.manual_seed(seed)
    size, pieces = SIZES[k], cut(split(seed)[0], k)
    net = Scorer(k, pieces.shape[2], size["width"], size["blocks"])
    adam = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, max_lr=5e-3, total_steps=size["steps"])
    for _ in range(size["steps"]):
        chosen = pieces[torch.randint(len(pieces), (size["batch"],))]
        shuffled, _ = shuffle(chosen)
        may_go = (shuffled.unsqueeze(2) == chosen.unsqueeze(1)).all(3)
        mass = (soft_permutation(method, net(shuffled)) * may_go).sum(2)
        loss = -(mass + 1e-9).log().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    return net


@torch.no_grad()
def solve(net: Scorer, method: str, k: int, seed: int) -> dict[str, Tensor]:
    """The puzzles of the test pictures, as the network solves them."""
    original = cut(split(seed)[1], k)
    shuffled, truth = shuffle(original, torch.Generator().manual_seed(seed))
    soft = soft_permutation(method, net(shuffled))
    place = Assignment().solve(soft, "max").argmax(2)
    assert (place.sort(1).values == torch.arange(k * k)).all()  # each place once
    looks = (pick(original, place) == shuffled).all(2)
    return {"original": original, "shuffled": shuffled, "soft": soft, "place": place, "truth": truth, "looks": looks}


def scores_of(net: Scorer, method: str, k: int, seed: int) -> Tensor:
    """Strict, by looks, whole pictures, and strict without rounding: shares."""
    found = solve(net, method, k, seed)
    strict, greedy = found["place"] == found["truth"], found["soft"].argmax(2) == found["truth"]
    return torch.stack([strict.float().mean(), found["looks"].float().mean(), found["looks"].all(1).float().mean(), greedy.float().mean()])


nets, results = {}, {}
for k in SIZES:
    print(f"\n{k} × {k} pieces: mean ± standard deviation over {len(SEEDS)} seeds, test pictures; {1 / k**2:.3f} strict would be chance")
    print(f"{'':9} {'strict':>13} {'by looks':>15} {'whole picture':>15} {'each on its own':>17}")
    for method in METHODS:
        nets[method, k] = [train(method, k, seed) for seed in SEEDS]
        results[method, k] = torch.stack([scores_of(net, method, k, seed) for seed, net in enumerate(nets[method, k])])
        cells = [f"{mean:.3f} ± {std:.3f}" for mean, std in zip(results[method, k].mean(0), results[method, k].std(0), strict=True)]
        print(f"{method:9} {cells[0]} {cells[1]:>15} {cells[2]:>15} {cells[3]:>17}")
for k, least in ((2, 0.945), (4, 0.454)):
    assert QUICK or results["implicit", k][:, 0].mean() >= least

print("\nwhat the layer adds to the softmax, seed by seed, in percentage points (same test pictures):")
for k in SIZES:
    added = 100 * (results["implicit", k] - results["softmax", k])
    for column, name in ((0, "strict"), (1, "by looks"), (2, "whole picture")):
        print(f"{k} × {k} {name:14}" + "".join(f"{points:+6.1f}" for points in added[:, column]))

# %% [markdown]
# ("Each on its own" is strict too, but without rounding: each piece goes to its best place whatever the others do. That is no permutation: places may be taken
# twice.)
#
# What does the layer give?
#
# * **At 2 × 2 next to nothing**, once both are rounded: four large pieces are easy, and what differs is within the spread between seeds. Without rounding the
#   softmax falls a little behind.
# * **At 4 × 4 it gives a few points** in every column and for every seed: a piece need not find its place alone, it may take the one that the others leave.
# * **The gradient makes no difference** to the accuracy: implicit and unrolled agree to within the spread. Section 5 tells what it does make a difference to.
#
# ## 4. Solved and unsolved
#
# From top to bottom: the shuffled pieces, the soft solution (each place shows the mean of the pieces, with the weights $nP$), the rounded one, and the
# picture. Pieces that look wrong are framed. All are test pictures; four are chosen at random among the solved ones, four among those that failed.


# %%
def draw(axis: Axes, picture: Tensor, k: int, wrong: Tensor | None = None) -> None:
    h, w = picture.shape
    axis.imshow(picture.numpy(), cmap="gray_r", vmin=0, vmax=1, extent=(0, w, h, 0))
    axis.set(xticks=[], yticks=[])
    for cut_at in range(1, k):
        axis.axhline(cut_at * h / k, color="#56B4E9", linewidth=0.6)
        axis.axvline(cut_at * w / k, color="#56B4E9", linewidth=0.6)
    for j in [] if wrong is None else wrong.nonzero().flatten().tolist():
        axis.add_patch(Rectangle((j % k * w / k, j // k * h / k), w / k, h / k, fill=False, edgecolor="#D55E00", linewidth=2))


def show(k: int) -> None:
    found = solve(nets["implicit", k][0], "implicit", k, 0)
    solved = found["looks"].all(1)
    generator = torch.Generator().manual_seed(5)
    some = torch.randperm(len(solved), generator=generator)
    some = torch.cat([some[solved[some]][:4], some[~solved[some]][:4]])
    back = found["place"].argsort(1)  # which piece lies at each place
    rows = {
        "shuffled": found["shuffled"],
        "soft": found["soft"].mT @ found["shuffled"],
        "rounded": pick(found["shuffled"], back),
        "picture": found["original"],
    }
    wrong = ~found["looks"].gather(1, back)
    figure, axes = plt.subplots(4, len(some), figsize=(1.15 * len(some), 4.9))
    for line, (name, pieces) in zip(axes, rows.items(), strict=True):
        for axis, which in zip(line, some, strict=True):
            draw(axis, join(pieces[which : which + 1], k)[0], k, wrong[which] if name == "rounded" else None)
        line[0].set_ylabel(name)
    figure.suptitle(f"{k} × {k} pieces: four of the {int(solved.sum())} that were solved, four of the {int((~solved).sum())} that failed")
    figure.tight_layout()
    counts = wrong.sum(1)[~solved]
    print(f"{k} × {k}: of the failures {100 * (counts == 2).float().mean():.0f} % exchange just two pieces; half of them have {counts.median()} wrong or fewer")


for k in SIZES:
    show(k)

# %% [markdown]
# The soft solution is sharp where the network is sure, and grey where pieces compete. Look at the failures: at 2 × 2 mostly two pieces have changed places,
# and the result often looks like a digit as well, though not the one that was cut. At 4 × 4 a piece has four pixels, and several are wrong at once; in the
# worst cases the network took the heap for another digit, or for none. That is no matter of rounding, and no layer can mend it; a larger network and more
# pictures might.
#
# One of the 4 × 4 puzzles as matrices. Softmax leaves columns that get far more or far less than one piece:

# %%
with torch.no_grad():
    shuffled, truth = shuffle(cut(split(0)[1], 4), torch.Generator().manual_seed(0))
    by_row, by_both = (soft_permutation(method, nets[method, 4][0](shuffled))[0] for method in ("softmax", "implicit"))
order = truth[0].argsort()
figure, axes = plt.subplots(1, 2, figsize=(8, 3.9), layout="constrained")
for axis, (name, matrix) in zip(axes, {"softmax of each row": by_row, "soft permutation": by_both}.items(), strict=True):
    axis.imshow(matrix[order].numpy(), cmap="viridis", vmin=0, vmax=1)
    axis.set(title=f"{name}\ncolumn sums {matrix.sum(0).min():.2f} to {matrix.sum(0).max():.2f}", xlabel="place", ylabel="piece, in the true order")
figure.colorbar(axes[0].images[0], ax=axes, label="share of the piece")

# %% [markdown]
# ## 5. Implicit or unrolled
#
# Sinkhorn's iteration scales rows and columns in turn. For vague scores it converges in a few steps. But a network that learns becomes sure of itself, its
# scores grow, and then the iteration needs thousands. Unrolled, each step is stored and differentiated, so one has to stop early and take the derivative of a
# plan whose columns do not sum to one yet. The layer solves to its tolerance (by Newton's method where Sinkhorn is slow) and then solves one linear system.
#
# For scores of an untrained and of a trained network, 32 puzzles of 4 × 4, float32: the error of the plan's sums; the error of the gradient, relative to the
# implicit one in float64 at a tolerance of $10^{-12}$; the time of a forward and a backward pass; and the memory kept between them.

# %%
sample, _ = shuffle(cut(images[:32], 4), torch.Generator().manual_seed(0))
cotangent = torch.randn(32, 16, 16, generator=torch.Generator().manual_seed(1))


def gradient(node: OptimalTransport, scores: Tensor) -> tuple[Tensor, Tensor]:
    leaf = scores.clone().requires_grad_()
    plan = 16 * node(-leaf)
    return plan.detach(), torch.autograd.grad(plan, leaf, cotangent.to(leaf.dtype))[0]


def kept(node: OptimalTransport, scores: Tensor) -> float:
    """KiB of the distinct tensors that autograd puts aside, and of the factor that Newton's method keeps besides."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        plan = node(-scores.clone().requires_grad_())
    total = sum(storages.values())
    del plan  # alive until here, so that no address was counted for two tensors
    report = node.solution(-scores).report
    if report is not None and "Newton" in report.method:
        total += scores.numel() * scores.element_size()
    return total / 1024


nodes = {"implicit": OptimalTransport()}
for count in (5, 10, 100) if QUICK else (5, 10, 100, 1000):
    nodes[f"unrolled, ≤ {count}"] = OptimalTransport(gradient="unrolled", max_iterations=count)
untrained = Scorer(4, sample.shape[2], 48, 2)
errors: dict[tuple[str, str], float] = {}
memory: dict[tuple[str, str], float] = {}
print(f"{'':26} {'sums':>8} {'gradient':>9} {'ms':>7} {'KiB':>8}")
for stage, net in (("untrained", untrained), ("trained", nets["implicit", 4][0])):
    with torch.no_grad():
        scores = net(sample)
    _, exact = gradient(OptimalTransport(tolerance=1e-12), scores.double())
    for name, node in nodes.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SolverWarning)
            (plan, found), times = gradient(node, scores), []
            for _ in range(1 if QUICK else 5):
                began = time.perf_counter()
                gradient(node, scores)
                times.append(time.perf_counter() - began)
            memory[stage, name] = kept(node, scores)
        errors[stage, name] = float((found - exact).norm() / exact.norm())
        sums = torch.cat([plan.sum(1) - 1, plan.sum(2) - 1]).abs().max()
        print(f"{stage:9} {name:16} {sums.item():8.0e} {errors[stage, name]:9.0e} {1e3 * min(times):7.1f} {memory[stage, name]:8.0f}")
assert errors["untrained", "implicit"] < 1e-3
assert errors["trained", "implicit"] < 1e-2
assert memory["trained", "implicit"] < 2 * memory["untrained", "implicit"]
assert memory["trained", "unrolled, ≤ 100"] > 5 * memory["trained", "implicit"]
assert QUICK or errors["trained", "unrolled, ≤ 10"] > errors["trained", "implicit"]

# %% [markdown]
# Before training the two agree, for a few iterations are enough. After it, ten iterations leave sums that are off by a tenth or more, and a gradient with an
# error of that size too; a thousand come close, in dozens of times the time and hundreds of times the memory. Yet section 3 has trained with ten and lost
# nothing. There is no contradiction: such an error in a stochastic gradient rarely matters, and what it pushes towards, scores that give a better plan *after
# ten iterations*, is nearly what we want. So for accuracy on such a task the choice is free. What the implicit gradient buys is that nobody has to choose a
# number of iterations, that the output *is* doubly stochastic, and memory that hardly depends on how hard the problem is.
#
# ## What to take along
#
# * The layer is a softmax under a second constraint: worth a few points where pieces compete, nothing where they do not.
# * Rounding by the Hungarian method is needed to have a permutation at all, and gives the softmax back some of what it lacks.
# * Say what counts as right. Of the 4 × 4 pieces placed "wrongly", many lie where an identical one belongs.
# * These are small images and a small network, three seeds each: differences of one point mean nothing here.
#
# ## To try
#
# * Compare pictures instead of places: `(soft.mT @ shuffled - chosen).square()` as the loss. It needs no `may_go`. Is it as good?
# * Put `IdentitySolver(Assignment(), sense="max", projection="centre")` in place of the soft permutation, so that training sees hard ones too.
# * Take the attention away (`blocks=0`), so that each piece is scored without seeing the others. How much does the layer give now?
# * Give $\gamma$ a schedule, or make it a parameter. Why does that hardly matter here? (What could the network do instead?)
# * Leave out one piece of each puzzle: rows with mass $\frac1n$ each, one of them a dummy with equal scores. What should the loss of the dummy be?
