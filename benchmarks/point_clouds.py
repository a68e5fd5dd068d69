"""Large clouds in tiles: seconds and peak memory of 20 000 points in 3-d, each in a process of its own; and tiles against stored matrices.

Points are uniform in the unit cube, and their squares in the other cloud. Memory is the most that the process ever had resident, torch
itself included; the marginal error is the default tolerance of the dtype, 1e-5 in float32 and 1e-10 in float64.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.contest import contest, figure_row, gradient_error
from benchmarks.report import Row, Target
from benchmarks.timing import QUICK, Effort
from declarative.layers import sinkhorn_divergence
from declarative.layers.transport.point_cloud import cloud_loss

SUITE = "point_clouds"
POINTS = 20_000
# What is computed, at which ε, in which dtype.
CASES = (
    ("divergence", 0.1, "float32"),
    ("divergence", 0.01, "float32"),
    ("divergence", 0.001, "float32"),
    ("divergence", 0.1, "float64"),
    ("loss", 0.1, "float32"),
    ("Hessian-vector product", 0.1, "float32"),
)
GIGABYTES = 4.0
SLOW = Effort(blocks=3, seconds=0.0, runs=1, warm_up=1)


def rows(quick: bool) -> Iterator[Row]:
    """The suite."""
    for what, epsilon, dtype in (CASES[-1:] if quick else CASES) if machine.on_cpu() else ():
        yield from large_rows(what, 300 if quick else POINTS, epsilon, dtype)
    yield from stored_rows(60 if quick else 3000, 0.1, QUICK if quick else SLOW)


def large_rows(what: str, n: int, epsilon: float, dtype: str) -> Iterator[Row]:
    """One case in a new process."""
    arguments = ["-m", "benchmarks.point_clouds", what, str(n), str(epsilon), dtype, str(torch.get_num_threads())]
    done = subprocess.run([sys.executable, *arguments], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} failed:\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    case = f"{what}, {n} and {n} points in 3-d, ε = {epsilon:g}, {dtype}"
    yield figure_row(SUITE, f"forward, {case}", "s", found["forward"])
    yield figure_row(SUITE, f"backward, {case}", "s", found["backward"])
    note = f"{found['imported']:.2f} of them before the first point"
    yield figure_row(SUITE, f"peak memory, {case}", "GB", found["peak"], target=Target(ours=GIGABYTES), note=note)


def stored_rows(n: int, epsilon: float, effort: Effort) -> Iterator[Row]:
    """The gradient of the divergence, beside the same from stored matrices."""
    x, y = clouds(n, torch.float64)
    ours, stored = (_gradient(x, y, epsilon, tiled) for tiled in (True, False))
    what = f"gradient of the divergence in tiles, {n} and {n} points, ε = {epsilon:g}, float64"
    judge = gradient_error(stored())
    yield contest(SUITE, what, lambda: ours, "stored matrices", lambda: stored, effort, judge=judge, errors="gradient")


def clouds(n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x, y (n, 3)"""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(n, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    return machine.here(x.to(dtype)), machine.here(y.square().to(dtype))


def _gradient(x: Tensor, y: Tensor, epsilon: float, tiled: bool) -> Callable[[], Tensor]:
    leaf = x.clone().requires_grad_()
    return lambda: torch.autograd.grad(sinkhorn_divergence(leaf, y, epsilon=epsilon, tiled=tiled), leaf)[0]


def _measure(what: str, n: int, epsilon: float, dtype: str) -> dict[str, float]:
    """Seconds and gigabytes, in this process. The backward pass of a Hessian-vector product is the second one."""
    imported = _resident()
    x, y = clouds(n, getattr(torch, dtype))
    x.requires_grad_()
    start = time.perf_counter()
    value = cloud_loss(x, y, None, None, epsilon) if what == "loss" else sinkhorn_divergence(x, y, epsilon=epsilon, tiled=True)
    if what == "Hessian-vector product":
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        value = (gradient * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)).sum()
    middle = time.perf_counter()
    torch.autograd.grad(value, x)
    return {"forward": middle - start, "backward": time.perf_counter() - middle, "peak": _resident(), "imported": imported}


def _resident() -> float:
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One case of the suite, for a process of its own.")
    for name, kind in (("what", str), ("n", int), ("epsilon", float), ("dtype", str), ("threads", int)):
        parser.add_argument(name, type=kind)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(json.dumps(_measure(given.what, given.n, given.epsilon, given.dtype)))
