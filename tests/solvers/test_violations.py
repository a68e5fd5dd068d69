"""What is said of a violated constraint: that no point satisfies it, or that the solver found none; and whose word counts."""

import pytest
import torch

from declarative import Solution, SolverError, Status
from declarative.solvers import External, UserSolve
from tests.conformance.cases import close
from tests.solvers.statements import F64, Free


class Kept(Free):
    """The nearest point with 0 ≤ y ≤ 1."""

    def objective(self, x, y):
        return 0.5 * (y - x).square().sum()

    def inequality_constraints(self, x, y):
        return torch.cat([y - 1, -y])


class Contradictory(Kept):
    """2 ≤ y ≤ 1."""

    def inequality_constraints(self, x, y):
        return torch.cat([y - 1, 2 - y])


X = torch.tensor([[0.5, 0.7], [2.0, 0.1], [0.2, 3.0]], dtype=F64)
CLIPPED = X.clamp(0, 1)


def test_a_solver_from_elsewhere_is_believed():
    """It says that the second sample has no feasible point; nobody looks for one."""
    node = Kept(solver=External(lambda x: Status.INFEASIBLE if x[0] > 1 else x.clip(0, 1), on_failure="nan"))
    s = node.solution(X)
    assert s.status.tolist() == [Status.CONVERGED, Status.INFEASIBLE, Status.CONVERGED]
    close(s.y[[0, 2]], CLIPPED[[0, 2]], 1e-12)


def solved(base, y, status=None, **options):
    """A node whose own solve returns these numbers."""

    def solve(self, x):
        return Solution(torch.as_tensor(y).to(x), status=None if status is None else torch.tensor(status))

    return type("Own", (base,), {"solve": solve})(solver=UserSolve(**options))


def test_a_solve_that_brings_a_point_with_its_word_is_believed():
    said = [Status.CONVERGED, Status.INFEASIBLE, Status.CONVERGED]
    assert solved(Kept, torch.where(X == 2.0, 5.0, CLIPPED), said, on_failure="nan").solution(X).status.tolist() == said


def test_an_infeasible_result_of_a_feasible_problem():
    """The point is wrong, not the problem; its neighbours are right."""
    wrong = torch.where(X == 2.0, 5.0, CLIPPED)
    s = solved(Kept, wrong, on_failure="nan").solution(X)
    assert s.status.tolist() == [Status.CONVERGED, Status.NOT_STATIONARY, Status.CONVERGED]
    close(s.y[[0, 2]], CLIPPED[[0, 2]], 1e-12)
    with pytest.raises(SolverError, match=r"1 of 3 samples \(1\): the point is not a minimiser"):
        solved(Kept, wrong)(X)


def test_an_infeasible_result_of_an_infeasible_problem():
    assert solved(Contradictory, X, on_failure="nan").solution(X).status.tolist() == [Status.INFEASIBLE] * 3


def test_an_infeasible_result_of_a_function():
    """External's word of success is worth no more than a solve's."""
    assert Kept(solver=External(lambda x: x + 4, on_failure="nan")).solution(X).status.tolist() == [Status.NOT_STATIONARY] * 3
    assert Contradictory(solver=External(lambda x: x, on_failure="nan")).solution(X).status.tolist() == [Status.INFEASIBLE] * 3
