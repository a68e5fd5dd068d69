"""Peers in jax, which live in an environment of their own: one worker process, spoken to through a pipe.

The worker (the folder `jax_side`) compiles a task, keeps it, and times it by its own clock. It runs on the CPU, with as many threads as XLA likes,
which is one a core, as torch's are. Its Python is that of `.venv-jax`, or the one that the environment variable names.
"""

from __future__ import annotations

import atexit
import os
import pickle
import subprocess
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.timing import Effort

VARIABLE = "DECLARATIVE_JAX_PYTHON"
_PYTHON = Path(__file__).parents[2] / ".venv-jax" / "bin" / "python"
_SCRIPT = Path(__file__).parent / "jax_side" / "__main__.py"
_PATIENCE = 10.0  # seconds that the worker has to end


class Worker:
    """The other process."""

    def __init__(self, python: Path) -> None:
        self.unwanted: list[int] = []
        """Ids of tasks that nobody holds any more, for the next request to tell."""
        self._log = TemporaryFile()  # noqa: SIM115
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([str(python), str(_SCRIPT)], stdin=pipe, stdout=pipe, stderr=self._log, env=environment)
        atexit.register(self.close)

    def ask(self, about: str, do: str, **arguments: Any) -> Any:
        """The reply to one request. Raises RuntimeError, which names what it was about, where the worker fails."""
        requests, replies = self._process.stdin, self._process.stdout
        if requests is None or replies is None:
            raise RuntimeError("the worker has no pipes")
        # One by one: a task may be collected in between, and its id join the list.
        forget = [self.unwanted.pop() for _ in range(len(self.unwanted))]
        try:
            pickle.dump({"do": do, "forget": forget, **arguments}, requests)
            requests.flush()
            well, result = pickle.load(replies)
        except (EOFError, OSError, ValueError) as error:
            raise RuntimeError(f"{about}: the worker of the jax peers has ended; its last words: {self._last_words()}") from error
        if not well:
            raise RuntimeError(f"{about}: {result}")
        return result

    def _last_words(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()[-500:] or "none"

    def close(self) -> None:
        """End the process, and wait for its end."""
        atexit.unregister(self.close)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):  # of what was not flushed to a worker that has ended
                    stream.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def connect(*packages: str) -> Worker:
    """The worker, which lives as long as this process. Raises ImportError where it cannot be, or where one of these packages is not there."""
    if not machine.on_cpu():
        raise ImportError("the jax peers run on the CPU alone")
    named = os.environ.get(VARIABLE)
    python = Path(named) if named else _PYTHON
    if not python.is_file():
        raise ImportError(f"{VARIABLE}={named} is no file" if named else f"no Python with jax: `make peers` sets up .venv-jax, or set {VARIABLE}")
    worker = _worker(python)
    for package in packages:
        _require(worker, package)
    return worker


_worker = cache(Worker)


@cache
def _require(worker: Worker, package: str) -> None:
    try:
        worker.ask(package, "require", package=package)
    except RuntimeError as error:
        raise ImportError(f"{error}, in the environment of jax (`make peers` sets it up)") from error


class Task:
    """A function of `jax_side` with its arrays, a `Side` of a comparison. It is loaded, and compiled, when it is first used.

    Args:
        packages: what it imports. Raises ImportError, at once, where one of them is missing.
        module, function: which.
        inputs: its arrays.
        options: further arguments, plain values.
    """

    def __init__(self, packages: Sequence[str], module: str, function: str, inputs: Sequence[Tensor], **options: Any) -> None:
        self.name = f"{module}.{function}"
        self._worker = connect(*packages)
        self._request = {"module": module, "function": function, "arrays": [t.detach().cpu().numpy() for t in inputs], "options": options}

    @cached_property
    def _id(self) -> int:
        found = self._worker.ask(self.name, "load", **self._request)
        weakref.finalize(self, self._worker.unwanted.append, found)
        return found

    def _ask(self, do: str, **arguments: Any) -> Any:
        return self._worker.ask(self.name, do, task=self._id, **arguments)

    def warm_up(self, effort: Effort) -> None:
        """The untimed runs."""
        if effort.warm_up:
            self._ask("block", runs=effort.warm_up * effort.runs, seconds=0.0)

    def block(self, effort: Effort) -> float:
        """The median milliseconds of one block's runs, by the worker's clock."""
        return self._ask("block", runs=effort.runs, seconds=effort.seconds)

    def result(self) -> tuple[np.ndarray[Any, Any], ...]:
        """What one run returns."""
        return self._ask("run")

    def tensors(self) -> tuple[Tensor, ...]:
        """The same, in float64."""
        return tuple(torch.from_numpy(np.array(part, dtype=np.float64)) for part in self.result())

    def memory(self) -> int | None:
        """Bytes that XLA says the compiled program needs for what it computes in between and returns."""
        return self._ask("memory")
