"""The demonstration: its pieces in small, and that it runs."""

import pytest
import torch

from demo.__main__ import main
from demo.data import REACH, add_outliers, load, sample_points
from demo.figures import influence
from demo.model import POOLINGS, Classifier, RobustMean


def test_it_runs(tmp_path, capsys):
    assert main(["--quick", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "all checks passed" in printed
    assert "robust pooling" in printed
    for name in ("accuracy.png", "influence.png"):
        assert (tmp_path / name).stat().st_size > 5_000


def test_same_seed_same_data():
    one, two = (load(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.train_images, two.train_images)
    assert len(one.train_labels) + len(one.test_labels) == 1797
    clouds = [sample_points(one.test_images[:5], torch.Generator().manual_seed(4)) for _ in range(2)]
    assert torch.equal(*clouds)


def test_points_lie_where_the_ink_is():
    digits = load(torch.Generator().manual_seed(0))
    image = digits.test_images[:1]
    points = sample_points(image, torch.Generator().manual_seed(0), count=2000)[0]
    pixels = (points * 4 + 3.5).round().long()
    drawn = torch.zeros(8, 8).index_put((pixels[:, 0], pixels[:, 1]), torch.tensor(1.0), accumulate=True)
    assert float(drawn[image[0] == 0].sum()) == 0
    torch.testing.assert_close(drawn / drawn.sum(), image[0] / image.sum(), atol=0.02, rtol=0)


def test_outliers():
    generator = torch.Generator().manual_seed(0)
    points = torch.zeros(50, 64, 2)
    moved, which = add_outliers(points, 0.3, generator)
    assert torch.equal(moved[~which], points[~which])
    assert 0.25 < float(which.float().mean()) < 0.35
    assert float(moved[which].abs().max()) <= REACH


def test_robust_mean_shrugs_at_an_outlier():
    """Near the mean of what is close together, and moved by an outlier no further for its distance."""
    x = torch.tensor([[0.0, 0.1, -0.1, 0.05, -0.05]], dtype=torch.float64)
    node = RobustMean()
    torch.testing.assert_close(node(x), torch.zeros(1, dtype=torch.float64), atol=1e-12, rtol=0)
    near, far = (node(torch.cat([x, torch.tensor([[d]], dtype=torch.float64)], 1)) for d in (10.0, 1000.0))
    assert 0 < float(near) < 0.1
    torch.testing.assert_close(near, far, atol=1e-3, rtol=0)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_does_not_care_for_the_order_of_points(pooling):
    torch.manual_seed(0)
    model = Classifier(pooling)
    points = torch.randn(3, 20, 2)
    torch.testing.assert_close(model(points), model(points[:, torch.randperm(20)]), atol=1e-4, rtol=1e-4)


def test_influence():
    """Shares of one, equal for the mean, and small for an outlier under the robust pooling."""
    torch.manual_seed(0)
    cloud = torch.cat([0.1 * torch.randn(15, 2), torch.tensor([[30.0, 30.0]])])
    shares = {pooling: influence(Classifier(pooling), cloud) for pooling in POOLINGS}
    for share in shares.values():
        torch.testing.assert_close(share.sum(), torch.tensor(1.0))
    torch.testing.assert_close(shares["mean"], torch.full((16,), 1 / 16))
    assert float(shares["robust"][-1]) < 0.01
