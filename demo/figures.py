"""The two figures of the demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from demo.data import REACH
from demo.model import POOLINGS, Classifier

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def influence(model: Classifier, cloud: Tensor) -> Tensor:
    """(n,): how far the pooled features move when a point's own features do, as a share of what all points do."""
    features = model.points(cloud.unsqueeze(0)).detach()
    slopes = torch.func.jacrev(model.pooling)(features)  # (1, c, 1, n, c)
    sizes = slopes[0, :, 0].abs().sum((0, 2))
    return sizes / sizes.sum()


def draw_accuracies(accuracies: dict[str, list[float]], shares: tuple[float, ...], path: Path) -> None:
    """Accuracy against the share of outliers, one line for each pooling."""
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
        for pooling, values in accuracies.items():
            axes.plot([100 * s for s in shares], [100 * v for v in values], marker="o", label=f"{pooling} pooling")
        axes.axhline(10, color="0.7", linewidth=0.8, linestyle=":")
        axes.text(0, 9, "guessing", color="0.5", va="top")
        axes.set(xlabel="outliers among the test points (%)", ylabel="test accuracy (%)", title="Trained without outliers", ylim=(0, 100))
        axes.legend(frameon=False)
        figure.savefig(path, dpi=150)
        plt.close(figure)


def draw_influences(models: dict[str, Classifier], cloud: Tensor, outliers: Tensor, path: Path) -> None:
    """One cloud with outliers, each point as large as its influence on the pooled features."""
    figure, panels = plt.subplots(1, len(POOLINGS), figsize=(9, 3.6), layout="constrained", sharex=True, sharey=True)
    for axes, (pooling, model) in zip(panels, models.items(), strict=True):
        share = influence(model, cloud)
        _draw_cloud(axes, cloud, outliers, share)
        axes.set_title(f"{pooling} pooling\noutliers have {100 * float(share[outliers].sum()):.0f} % of the influence", fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_cloud(axes: Axes, cloud: Tensor, outliers: Tensor, share: Tensor) -> None:
    for which, colour, label in ((~outliers, "C0", "digit"), (outliers, "C3", "outliers")):
        rows, columns = cloud[which].unbind(1)
        axes.scatter(columns.numpy(), -rows.numpy(), s=(4 + 1500 * share[which]).numpy(), color=colour, alpha=0.6, linewidth=0, label=label)
    axes.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), xticks=[], yticks=[], aspect="equal")
