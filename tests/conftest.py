"""Set up before the package is imported: its inside is checked for shapes and types at run time, and tests repeat exactly."""

import os

import hypothesis
import jaxtyping
import pytest

import tests.shapes  # noqa: F401 - the hook looks it up by name

jaxtyping.install_import_hook(
    ["declarative.engines", "declarative.kkt", "declarative.solvers", "declarative.problem", "declarative.solution"],
    "tests.shapes.check",
)

import torch  # noqa: E402

# Workers of one run share the cores.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)

hypothesis.settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    max_examples=10,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def shapes_unchecked():
    """For tests that solve the same statements very often: the checks take most of the time then, and other tests make them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
