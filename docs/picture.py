"""The picture of the README: `python docs/picture.py` writes docs/picture.png."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

from declarative.layers import OptimalTransport, RobustPooling, SimplexProjection, Welsch

BLUE, ORANGE, GREEN, BLACK = "#0072B2", "#D55E00", "#009E73", "#000000"


def draw_projection(axes: Axes) -> None:
    """Shares on the simplex as one score grows."""
    t = torch.linspace(-1.2, 1.8, 121)
    shares = SimplexProjection()(torch.stack([t, torch.full_like(t, 0.2), torch.zeros_like(t)], 1))
    for k, (colour, style) in enumerate(((BLUE, "-"), (ORANGE, "--"), (GREEN, ":"))):
        axes.plot(t, shares[:, k], style, color=colour, linewidth=2.5, label=f"$y_{k + 1}$")
    axes.set(xlabel="score $x_1$", ylabel="share", title="$\\min_u\\;\\|u - x\\|^2$  on the simplex")
    axes.legend(frameon=False)


def draw_location(axes: Axes) -> None:
    """Points with outliers, their mean, and their robust mean."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(40, 2, generator=generator)
    points[:10] = torch.tensor([5.0, 3.5]) + 1.2 * torch.randn(10, 2, generator=generator)
    robust = RobustPooling(Welsch(1.0), restarts=4)(points.T.unsqueeze(0))[0]
    axes.scatter(*points[10:].T, s=14, color=BLUE)
    axes.scatter(*points[:10].T, s=14, color=ORANGE, marker="^", label="outliers")
    axes.plot(*points.mean(0), "X", color=BLACK, markersize=11, markerfacecolor="white", label="mean")
    axes.plot(*robust, "o", color=BLACK, markersize=10, label="$y$")
    axes.set(title="$\\min_u\\;\\sum_i \\varphi(\\|u - x_i\\|)$", xticks=[], yticks=[], aspect="equal")
    axes.legend(frameon=False, loc="lower right")


def draw_transport(axes: Axes) -> None:
    """Where each point of one shape goes on another."""
    angle = torch.arange(18) / 18 * 2 * torch.pi
    source = torch.stack([angle.cos(), angle.sin()], 1)
    target = torch.stack([3.4 + 0.9 * angle.sin() ** 3, 0.9 * (0.8125 * angle.cos() - 0.3125 * (2 * angle).cos() - 0.125 * (3 * angle).cos())], 1)
    plan = OptimalTransport(gamma=40.0)((source[:, None] - target[None]).square().sum(2) / 10)
    for i in range(18):
        for j in range(18):
            axes.plot(*torch.stack([source[i], target[j]]).T, color="0.4", alpha=float((18 * plan[i, j]).clamp(max=1)), linewidth=0.9)
    axes.scatter(*source.T, s=22, color=BLUE, zorder=3)
    axes.scatter(*target.T, s=22, color=ORANGE, marker="s", zorder=3)
    axes.set(
        title="$\\min_P\\;\\langle P, M\\rangle + \\frac{1}{\\gamma}$ KL,  $P\\mathbf{1} = r,\\; P^\\top\\mathbf{1} = c$", xticks=[], yticks=[], aspect="equal"
    )


def main() -> None:
    """Three panels."""
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}):
        figure, panels = plt.subplots(1, 3, figsize=(12, 3.3), layout="constrained", width_ratios=(1, 1, 1.3))
        for draw, axes in zip((draw_projection, draw_location, draw_transport), panels, strict=True):
            draw(axes)
        figure.savefig(Path(__file__).with_suffix(".png"), dpi=90)


if __name__ == "__main__":
    main()
