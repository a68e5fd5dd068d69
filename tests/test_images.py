"""Images from a folder in the format of MNIST are those that were written there; what is no such folder is refused by name."""

import gzip
import struct

import numpy as np
import pytest
import torch

from demo.__main__ import main
from demo.images import load_images

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 12, 9), dtype=np.uint8)
LABELS = np.arange(40, dtype=np.uint8) % 10


def _idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(_idx(PIXELS))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(_idx(LABELS)))
    return tmp_path


def test_a_folder(folder):
    images, labels = load_images(folder)
    assert images.dtype == torch.float32
    assert np.array_equal((255 * images).round().numpy(), PIXELS)
    assert labels.tolist() == LABELS.tolist()
    assert len(load_images(str(folder), count=7)[1]) == 7


def test_the_variable_of_the_environment(folder, monkeypatch):
    assert load_images()[0].shape == (1797, 8, 8)
    monkeypatch.setenv("DECLARATIVE_IMAGES", str(folder))
    assert load_images()[0].shape == (40, 12, 9)
    assert load_images("digits")[0].shape == (1797, 8, 8)


def test_the_demo_on_a_folder(folder, tmp_path, capsys):
    assert main(["--quick", "--images", str(folder), "--output", str(tmp_path / "figures")]) == 0
    assert "all checks passed" in capsys.readouterr().out


def test_what_is_refused(folder, capsys):
    with pytest.raises(ValueError, match="has 40 images, got count=41"):
        load_images(folder, count=41)
    with pytest.raises(FileNotFoundError, match=r"neither train-images-idx3-ubyte nor train-images-idx3-ubyte\.gz"):
        load_images(folder / "nowhere")
    with pytest.raises(SystemExit):
        main(["--images", str(folder / "nowhere")])
    assert "put the files of MNIST" in capsys.readouterr().err
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(_idx(LABELS[:30])))
    with pytest.raises(ValueError, match="40 images but 30 labels"):
        load_images(folder)
    (folder / "train-images-idx3-ubyte").write_bytes(_idx(PIXELS)[:-1])
    with pytest.raises(ValueError, match="was it cut short"):
        load_images(folder)
    (folder / "train-images-idx3-ubyte").write_bytes(_idx(LABELS))
    with pytest.raises(ValueError, match="not an IDX file"):
        load_images(folder)
