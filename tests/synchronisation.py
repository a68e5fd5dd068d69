"""What would make a GPU wait, recorded on the CPU: operations whose result, or whose shape, the host has to know before it can go on."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# The first six hand a number over, the others need one for the shape of their result. LAPACK's routines with a check of `info` show as
# `_linalg_check_errors`; those of `eigh`, `svd` and `lstsq` check inside.
_WAITING = (
    "_local_scalar_dense", "item", "is_nonzero", "equal", "_linalg_check_errors", "_assert_async",
    "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave",
    "_linalg_eigh", "linalg_eig", "_linalg_svd", "linalg_lstsq",
)  # fmt: skip
_INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")
# These read memory without an operation.
_READERS = (Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__)


class HostReads(TorchDispatchMode):
    """Records them, with the line of the package that asked."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._readers = _Readers(self)

    def __enter__(self) -> HostReads:
        self._readers.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._readers.__exit__(*exception)

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _WAITING or (name in _INDEXED and any(i is not None and i.dtype == torch.bool for i in args[1])):
            self.note(name)
        return func(*args, **(kwargs or {}))

    def note(self, name: str) -> None:
        """One more."""
        own = [f for f in traceback.extract_stack() if "/declarative/" in f.filename]
        self.found.append(f"{name} at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else name)


class _Readers(TorchFunctionMode):
    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func in _READERS:
            self._reads.note(func.__name__)
        return func(*args, **(kwargs or {}))


@contextmanager
def host_reads() -> Iterator[list[str]]:
    """The list of what would wait for the device meanwhile."""
    reads = HostReads()
    with reads:
        yield reads.found
