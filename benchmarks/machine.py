"""Where the suites run: the device that their tensors are put on, and what the machine is."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)
_device = torch.device("cpu")


def use(device: str) -> None:
    """Put what `here` is given on this device from now on. Raises ValueError where there is none."""
    global _device
    found = torch.device(device)
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}: this torch ({torch.__version__}) finds no CUDA device")
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")
    _device = found


def kind() -> str:
    """ "cpu" or "cuda"."""
    return _device.type


def on_cpu() -> bool:
    """Whether peers that know arrays of numpy alone can take part."""
    return kind() == "cpu"


def here(tensor: Tensor) -> Tensor:
    """The tensor on the device that is measured. Samples are drawn on the CPU, so that they are the same everywhere."""
    return tensor.to(_device)


def model(module: Module) -> Module:
    """A module with its buffers there."""
    return module.to(_device)


def wait() -> None:
    """Until the device has done what it was asked for."""
    if _device.type == "cuda":
        torch.cuda.synchronize(_device)


def description() -> dict[str, str | int]:
    """What a reader must know to place the figures."""
    facts: dict[str, str | int] = {"torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads()}
    if _device.type == "cuda":
        return facts | {"device": torch.cuda.get_device_name(_device), "CUDA": str(torch.version.cuda)}
    return facts | {"device": _processor(), "processors": os.cpu_count() or 1}


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
