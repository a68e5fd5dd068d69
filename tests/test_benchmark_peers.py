"""Peers of the benchmarks agree with us, so that what is timed is the same answer; and the worker that those in jax run in."""

import gc
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import machine
from benchmarks.contest import difference
from benchmarks.peers import ddn_transport, entmax, jaxopt, loop, optimistix, ott, pot, remote, torchopt
from benchmarks.peers.derivatives import Derivative, reach
from benchmarks.peers.remote import Task, Worker, connect
from benchmarks.plans import WANTED, gradient, marginal_error, points, polished
from benchmarks.quadratic import gradient_error, kkt_residual, sample
from benchmarks.statements import LogSumExp, Quartic, Robust, prepare
from benchmarks.timing import QUICK, measure
from declarative.layers import EuclideanTopK

# Gradients to which the iterative linear solvers of the peers are asked to go.
CLOSE = 1e-9


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def need(*packages):
    """Skip where the environment of jax, or one of these packages in it, is missing."""
    try:
        return connect(*packages)
    except ImportError as error:
        pytest.skip(str(error))


@pytest.fixture
def this_python(monkeypatch):
    """A worker of the interpreter that runs the tests: the tasks of `echo` need no jax."""
    monkeypatch.setenv(remote.VARIABLE, sys.executable)


@pytest.mark.usefixtures("this_python")
class TestWorker:
    def test_task_is_kept_run_timed_and_weighed(self):
        a, b = normal(3, 2).requires_grad_(), torch.arange(4)
        task = Task((), "echo", "echo", (a, b), factor=2.0)
        found = task.tensors()
        assert torch.equal(found[0], 2 * a)
        assert found[1].tolist() == [0, 2, 4, 6]
        assert measure(task, QUICK).median > 0
        assert task.memory() == 8 * 6 + 8 * 4

    def test_error_comes_back_by_name_and_the_worker_goes_on(self):
        with pytest.raises(RuntimeError, match=r"echo\.fail: ValueError: 2 arrays are not what was asked for"):
            Task((), "echo", "fail", (normal(1), normal(1))).result()
        assert Task((), "echo", "echo", (normal(2),)).tensors()[0].shape == (2,)

    def test_missing_function_is_named(self):
        with pytest.raises(RuntimeError, match=r"echo\.nothing: AttributeError: .*nothing"):
            Task((), "echo", "nothing", ()).result()

    def test_task_that_nobody_holds_is_forgotten(self):
        task = Task((), "echo", "echo", (normal(2),))
        task.result()
        before = connect().ask("", "loaded")
        del task
        gc.collect()
        connect().ask("", "loaded")
        assert len(connect().ask("", "loaded")) == len(before) - 1

    def test_one_worker_for_all(self):
        assert connect() is connect()

    def test_missing_package_is_an_import_error(self):
        with pytest.raises(ImportError, match=r"no_such_package.*make peers"):
            connect("no_such_package")

    def test_end_of_the_worker_is_said_with_its_last_words(self):
        worker = Worker(Path(sys.executable))
        with pytest.raises(RuntimeError, match=r"echo\.end: .* has ended; its last words: the last words"):
            worker.ask("echo.end", "load", module="echo", function="end", arrays=[], options={})
        worker.close()


def test_missing_environment_is_an_import_error(monkeypatch, tmp_path):
    monkeypatch.setenv(remote.VARIABLE, str(tmp_path / "python"))
    with pytest.raises(ImportError, match="is no file"):
        connect()
    monkeypatch.delenv(remote.VARIABLE)
    monkeypatch.setattr(remote, "_PYTHON", tmp_path / "python")
    with pytest.raises(ImportError, match="make peers"):
        connect()


def test_jax_peers_stay_on_the_cpu(monkeypatch):
    monkeypatch.setattr(machine, "on_cpu", lambda: False)
    with pytest.raises(ImportError, match="CPU alone"):
        connect()


@pytest.mark.parametrize("kind", [Robust, LogSumExp, Quartic])
@pytest.mark.parametrize("peer", [jaxopt, optimistix, torchopt])
def test_implicit_differentiation(peer, kind):
    if peer is torchopt:
        pytest.importorskip("torchopt")
    else:
        need(*peer.PACKAGES)
    node, x = prepare(kind, 4, 3)
    v, y = normal(3, 4), node.solution(x.detach()).y
    exact = loop.backward(node, loop.Solved(x, y, y.new_zeros(3, 0)), v)
    # A compilation takes seconds: one way tells whether an objective is the same there, and one objective whether all ways are right.
    for way in peer.ways(kind.__name__, x.detach(), y, v)[: None if kind is Quartic else 1]:
        assert difference(way.result(), exact) < CLOSE, way.name
        assert measure(way.side, QUICK).median > 0


@pytest.mark.parametrize("peer", [jaxopt, optimistix])
def test_forward_and_backward(peer):
    need(*peer.PACKAGES)
    node, x = prepare(Quartic, 4, 3)
    v = normal(3, 4)
    (exact,) = torch.autograd.grad(node(x), x, v)
    for way in peer.both_ways("Quartic", x, v, 1e-9):
        assert difference(way.result(), exact) < 10 * CLOSE, way.name


def test_quadratic_programs_of_jaxopt():
    need(*jaxopt.PACKAGES)
    inputs, v = sample(4, 2)
    program = jaxopt.quadratic_programs(inputs, v)
    assert kkt_residual(inputs, program.answer()) < 1e-8
    assert gradient_error(inputs, v, program.gradients(), 2) < 1e-8


def simplex_gradient(k):
    x, v = 2 * normal(3, 8), normal(3, 8).flip(0)
    x.requires_grad_()
    u = EuclideanTopK(k)(x)
    return x, v, u, torch.autograd.grad(u, x, v)[0]


@pytest.mark.parametrize(("k", "layer"), [(1, entmax.sparsemax), (1, lambda: entmax.sparsemax(None)), (3, lambda: entmax.budget(3))])
def test_entmax(k, layer):
    pytest.importorskip("entmax")
    x, v, u, exact = simplex_gradient(k)
    found = layer()(x)
    torch.testing.assert_close(found, u, rtol=0, atol=1e-12)
    assert difference(torch.autograd.grad(found, x, v)[0], exact) < 1e-12


@pytest.mark.parametrize("k", [1, 3])
def test_projections_of_jaxopt(k):
    need(*jaxopt.PACKAGES)
    x, v, _, exact = simplex_gradient(k)
    assert difference(jaxopt.top_k(x, v, k).result(), exact) < 1e-12


def plan_and_gradient(n, gamma):
    problem, V = points(n, gamma), normal(n, n)
    (way,) = ddn_transport.ways(problem, 20_000)
    return problem, V, gradient(polished(way.solve(1e-9).P, problem), V, gamma)


def test_plans_of_ott():
    need(*ott.PACKAGES)
    problem = points(6, 10.0)
    for way in ott.ways(problem, 500):
        found = way.solve(way.settings[-1])
        assert marginal_error(found.P, problem) <= WANTED, way.name
        assert found.seconds > 0
        assert measure(way.at(way.settings[-1]), QUICK).median > 0


@pytest.mark.parametrize("peer", [ott, pot])
def test_gradients_of_plans(peer):
    need(*ott.PACKAGES) if peer is ott else pytest.importorskip("ot")
    problem, V, exact = plan_and_gradient(6, 10.0)
    for way in peer.both_ways(problem, V, 1e-11):
        assert difference(way.result(), exact) < CLOSE, way.name


class TestReach:
    def judge(self, result):
        return float(result)

    def ways(self, tried):
        def at(tolerance):
            def way(name, factor):
                def prepare():
                    return lambda: tried.append((name, tolerance)) or torch.tensor(factor * tolerance)

                return Derivative.here(name, prepare)

            return way("near", 1.0), way("far", 100.0)

        return at

    def test_loosest_tolerance_of_each_way(self):
        tried = []
        near, far = reach(self.ways(tried), (1e-6, 1e-8, 1e-10, 1e-12), self.judge, 1e-8)
        assert (near.tolerance, far.tolerance) == (1e-8, 1e-10)
        assert tried == [("near", 1e-6), ("far", 1e-6), ("near", 1e-8), ("far", 1e-8), ("far", 1e-10)]

    def test_who_does_not_arrive_is_given_with_its_error(self):
        near, far = reach(self.ways([]), (1e-6, 1e-7), self.judge, 1e-6)
        assert near.error <= 1e-6
        assert (far.tolerance, far.error) == (1e-7, pytest.approx(1e-5))
