"""Images with labels: scikit-learn's digits, or MNIST, Fashion-MNIST and the like from a folder. Nothing is downloaded."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

VARIABLE = "DECLARATIVE_IMAGES"  # of the environment: a folder, in place of scikit-learn's digits
_UNSIGNED_BYTES = 8  # the third byte of an IDX file says what its numbers are; images and labels are bytes


def load_images(source: str | Path | None = None, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Images (n, h, w), float32 in [0, 1], and labels (n,), int64.

    Args:
        source: "digits", the 1797 images of 8 × 8 pixels that come with scikit-learn; or a folder with the training files of MNIST, Fashion-MNIST or
            another set in their format: `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, as they are or with `.gz`. None: the folder that
            the variable DECLARATIVE_IMAGES of the environment names, the digits where it is not set.
        count: the first so many of them; None for all.

    Raises:
        FileNotFoundError: there are no such files in the folder.
        ValueError: a file is not in IDX format, is cut short, or images and labels differ in number; there are fewer than `count`.

    Example:
        >>> images, labels = load_images("digits", count=100)
        >>> images.shape, labels[:3].tolist()
        (torch.Size([100, 8, 8]), [0, 1, 2])
    """
    source = os.environ.get(VARIABLE, "digits") if source is None else source
    images, labels = _digits() if source == "digits" else _from_folder(Path(source))
    if count is not None and not 1 <= count <= len(labels):
        raise ValueError(f"count: {source} has {len(labels)} images, got count={count}")
    return images[:count], labels[:count]


def _digits() -> tuple[Tensor, Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    return torch.as_tensor(pixels, dtype=torch.float32).reshape(-1, 8, 8) / 16, torch.as_tensor(labels)


def _from_folder(folder: Path) -> tuple[Tensor, Tensor]:
    images, labels = _read_idx(folder, "train-images-idx3-ubyte", 3), _read_idx(folder, "train-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise ValueError(f"{folder}: {len(images)} images but {len(labels)} labels; the files are not of one set")
    return images.float() / 255, labels.long()


def _read_idx(folder: Path, name: str, dims: int) -> Tensor:
    """An IDX file: two zero bytes, the type, the number of dims, each size as a big-endian integer, then the numbers."""
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder}: there is neither {name} nor {name}.gz; put the files of MNIST or Fashion-MNIST there, or use 'digits'")
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    header = 4 + 4 * dims
    if len(data) < header or data[:4] != bytes([0, 0, _UNSIGNED_BYTES, dims]):
        raise ValueError(f"{path}: not an IDX file of bytes with {dims} dims; it begins with {data[:4]!r}")
    shape = struct.unpack(f">{dims}I", data[4:header])
    numbers = np.frombuffer(data, np.uint8, offset=header)
    if numbers.size != np.prod(shape):
        raise ValueError(f"{path}: its header says {shape}, {np.prod(shape)} numbers, but it has {numbers.size}; was it cut short?")
    return torch.from_numpy(numbers.reshape(shape).copy())
