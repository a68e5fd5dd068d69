"""The examples in docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import declarative
from declarative import DeclarativeNode, layers, projections, solvers, structure

pytestmark = pytest.mark.usefixtures("shapes_unchecked")


class Projection(DeclarativeNode):
    """Onto the simplex."""

    def objective(self, x, y):
        return 0.5 * ((y - x) ** 2).sum()

    def equality_constraints(self, x, y):
        return y.sum() - 1

    def inequality_constraints(self, x, y):
        return -y

    def initial_guess(self, x):
        return torch.full_like(x, 1 / x.shape[-1])


def examples():
    finder, found = doctest.DocTestFinder(exclude_empty=True), {}
    for module in pkgutil.walk_packages(declarative.__path__, "declarative."):
        if module.name != "declarative.__main__":
            found |= {
                test.name: test
                for test in finder.find(importlib.import_module(module.name), globs={})
                if any(doctest.SKIP not in example.options for example in test.examples)
            }
    return found


EXAMPLES = examples()
MODULES = sorted((m.name for m in pkgutil.walk_packages(declarative.__path__, "declarative.")), key=len, reverse=True)


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name):
    test = EXAMPLES[name]
    # What a user would import; then what the example's own module calls by the same name.
    owner = importlib.import_module(next(m for m in MODULES if name.startswith(m + ".")))
    modules = (layers, declarative, solvers, structure, projections, owner)
    test.globs = {key: value for module in modules for key, value in vars(module).items() if key[0].isalpha()} | {"torch": torch}
    if not name.startswith("declarative.projections"):
        test.globs["Projection"] = Projection
    torch.manual_seed(0)
    printed = []
    outcome = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=printed.append)
    assert outcome.failed == 0, "".join(printed)


def test_there_are_examples():
    assert len(EXAMPLES) >= 22
