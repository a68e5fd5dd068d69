"""Robust pooling beside ordinary pooling: `python -m demo` (what `make demo` runs)."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from declarative import verify
from demo.data import Digits, add_outliers, load, sample_points
from demo.figures import draw_accuracies, draw_influences
from demo.model import POOLINGS, Classifier, RobustMean
from demo.train import accuracy, train

SHARES = (0.0, 0.1, 0.2, 0.4, 0.6)
SHOWN_SHARE = 0.2  # in the figure of one cloud


def main(arguments: list[str] | None = None) -> int:
    """Train, test, check the gradient, draw. The exit status is 1 if the gradient check fails, 2 if there are no such images."""
    parser = argparse.ArgumentParser(prog="declarative demo", description="Digits with outliers: a pooling layer defined by its objective beside mean and max.")
    parser.add_argument("--quick", action="store_true", help="two epochs instead of 60: shows that all runs, not who wins")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the clouds (default: 0)")
    parser.add_argument("--images", metavar="FOLDER", help="with the files of MNIST or Fashion-MNIST, in place of scikit-learn's digits")
    parser.add_argument("--count", type=int, help="how many of the images (default: all)")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder for the figures (default: outputs)")
    options = parser.parse_args(arguments)
    try:
        digits = load(torch.Generator().manual_seed(options.seed), source=options.images, count=options.count)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # batches this small gain little from a second thread, and lose much by it on a busy machine
    try:
        return _run(options, digits)
    finally:
        torch.set_num_threads(threads)


def _run(options: argparse.Namespace, digits: Digits) -> int:
    console, began = Console(), time.perf_counter()
    models = {pooling: train(pooling, digits, 2 if options.quick else 60, options.seed) for pooling in POOLINGS}
    accuracies = {pooling: [accuracy(model, digits, share, options.seed) for share in SHARES] for pooling, model in models.items()}
    console.print(_table(accuracies))

    report = verify(*_instances(models["robust"], digits, options.seed))
    console.print("\nThe gradient of the robust pooling node, on features of test clouds with outliers:")
    print(report)

    options.output.mkdir(parents=True, exist_ok=True)
    draw_accuracies(accuracies, SHARES, options.output / "accuracy.png")
    cloud, outliers = _corrupted(digits, 1, options.seed)
    draw_influences(models, cloud[0], outliers[0], options.output / "influence.png")
    console.print(f"\nFigures: {options.output / 'accuracy.png'}, {options.output / 'influence.png'}. {time.perf_counter() - began:.0f} s.")
    return 0 if report.ok else 1


def _corrupted(digits: Digits, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed + 3)
    return add_outliers(sample_points(digits.test_images[:count], generator), SHOWN_SHARE, generator)


def _instances(model: Classifier, digits: Digits, seed: int) -> tuple[RobustMean, torch.Tensor]:
    """The trained node and four instances of what it meets, in float64."""
    clouds, _ = _corrupted(digits, 4, seed)
    features = model.points(clouds).detach()[:, :, 0]
    return model.pooling.node, features.double()


def _table(accuracies: dict[str, list[float]]) -> Table:
    table = Table(title="Test accuracy (%), trained on clouds without outliers")
    table.add_column("outliers among the points")
    for share in SHARES:
        table.add_column(f"{100 * share:.0f} %", justify="right")
    best = [max(values) for values in zip(*accuracies.values(), strict=True)]
    names = {"robust": "robust pooling (declarative node)"}
    for pooling, values in accuracies.items():
        cells = [f"[bold]{100 * v:.1f}[/bold]" if v == b else f"{100 * v:.1f}" for v, b in zip(values, best, strict=True)]
        table.add_row(names.get(pooling, f"{pooling} pooling"), *cells)
    return table


if __name__ == "__main__":
    raise SystemExit(main())
