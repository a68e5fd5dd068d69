"""`verify` and `certify` agree with this suite."""

import pytest
import torch

from declarative import Status, certify, verify
from tests.conformance.cases import case, every_problem

pytestmark = pytest.mark.usefixtures("shapes_unchecked")


@every_problem
def test_verify_passes(name):
    example = case(name, batch=2, polish=0)
    report = verify(example.node, *example.inputs, in_dims=example.in_dims, directions=1)
    assert report.ok, str(report)
    names = {row.name for row in report.rows}
    assert {"vjp = dense formula", "jvp = vjp", "second order = finite differences"} <= names
    assert sum("finite differences, " in row for row in names) == len(example.leaves)


@pytest.mark.parametrize("name", ["simplex", "learned_energy", "affine_fit"])
def test_verify_passes_in_float32_and_on_one_instance(name):
    single = case(name, batch=3, dtype=torch.float32, polish=0)
    report = verify(single.node, *single.inputs, in_dims=single.in_dims, directions=1)
    assert report.ok, str(report)
    example = case(name, polish=0)
    report = verify(example.node, *example.single(1), in_dims=None, directions=1)
    assert report.ok, str(report)


def test_verify_sees_what_is_wrong():
    """A suite that nothing fails says nothing: a statement that hides an input from the gradient."""
    hyperplane = case("hyperplane")

    class Detached(type(hyperplane.node)):
        def objective(self, x, y):
            return super().objective(x.detach(), y)

    report = verify(Detached(), *hyperplane.inputs)
    assert not report.ok


@every_problem
def test_certificate(name):
    example = case(name)
    certificate = certify(example.node, *example.inputs, in_dims=example.in_dims)
    s = example.node.solution(*example.inputs, in_dims=example.in_dims)
    assert torch.equal(certificate.active, s.active)
    assert bool((certificate.stationarity <= 1e-8).all())
    assert bool((certificate.second_order_margin > 1e-6).all())
    if name == "redundant":
        assert not bool(certificate.regular.any())
        assert all(any("redundant" in cause for cause in causes) for causes in certificate.causes)
        assert bool((certificate.licq_margin < 1e-9).all())
        return
    assert bool(certificate.regular.all()), str(certificate)
    assert not any(certificate.causes)
    assert bool((certificate.licq_margin > 1e-3).all())


@every_problem
def test_certificate_of_another_point(name):
    """A point beside the solution is not certified."""
    example = case(name)
    y = example.node(*example.inputs, in_dims=example.in_dims)
    beside = tuple(part.detach() + 0.01 for part in y) if isinstance(y, tuple) else y.detach() + 0.01
    certificate = certify(example.node, *example.inputs, in_dims=example.in_dims, y=beside)
    assert not bool(certificate.regular.any())


def test_certificate_names_a_kink():
    example = case("ball")
    x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 2.0]], dtype=torch.float64)
    certificate = certify(example.node, x)
    assert certificate.weakly_active.tolist() == [[True], [False], [False]]
    assert certificate.regular.tolist() == [False, True, True]
    assert example.node.solution(x).status.tolist() == [Status.CONVERGED] * 3
