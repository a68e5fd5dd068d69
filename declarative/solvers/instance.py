"""One instance as numpy functions, in the form that scipy.optimize.minimize asks for."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from declarative.engines.autodiff import linearise
from declarative.engines.base import Linearisation
from declarative.problem import Problem


class Instance:
    """One instance as numpy functions of y (m,). scipy asks for value, gradient and constraints at one point in turn: they share a graph.

    Args:
        start: (1, m)
        values_only: the method never asks for a derivative, so that no graph is built.
    """

    def __init__(self, problem: Problem, start: Tensor, p: int, q: int, *, values_only: bool) -> None:
        self._problem, self._like, self._p, self._q = problem, start, p, q
        self.start = start[0].double().cpu().numpy()
        self.finite = True
        """Whether every value so far was finite."""
        self._last: tuple[bytes, Linearisation] | None = None
        self._last_values: tuple[bytes, tuple[Tensor, Tensor]] | None = None
        self._values_only = values_only

    def _tensor(self, y: np.ndarray) -> Tensor:
        return torch.as_tensor(np.asarray(y), dtype=self._like.dtype, device=self._like.device).reshape(1, -1)

    def _at(self, y: np.ndarray) -> Linearisation:
        key = np.asarray(y).tobytes()
        if self._last is None or self._last[0] != key:
            self._last = key, linearise(self._problem, self._tensor(y))
        return self._last[1]

    def _values(self, y: np.ndarray) -> tuple[Tensor, Tensor]:
        """(f (1,), a (1, p + q))"""
        if not self._values_only:
            at = self._at(y)
            return at.objective, at.constraints
        key = np.asarray(y).tobytes()
        if self._last_values is None or self._last_values[0] != key:
            f, h, g = self._problem.evaluate(self._tensor(y))
            self._last_values = key, (f, torch.cat([h, g], 1))
        return self._last_values[1]

    def _numbers(self, value: Tensor) -> np.ndarray:
        numbers = value[0].double().cpu().numpy()
        self.finite = self.finite and bool(np.isfinite(numbers).all())
        return numbers

    def objective(self, y: np.ndarray) -> float:
        return float(self._numbers(self._values(y)[0]))

    def gradient(self, y: np.ndarray) -> np.ndarray:
        return self._numbers(self._at(y).gradient)

    def hessian(self, y: np.ndarray) -> np.ndarray:
        return self._numbers(self._at(y).hessian())

    def _value(self, y: np.ndarray, rows: slice) -> np.ndarray:
        return self._numbers(self._values(y)[1])[rows]

    def _jacobian(self, y: np.ndarray, rows: slice) -> np.ndarray:
        return self._numbers(self._at(y).jacobian())[rows]

    def _weighted_hessian(self, y: np.ndarray, weights: np.ndarray, rows: slice) -> np.ndarray:
        """Σ w_i ∇²a_i: the Hessian of L with multipliers w, less that of f."""
        full = torch.zeros(1, self._p + self._q, dtype=self._like.dtype, device=self._like.device)
        full[0, rows] = torch.as_tensor(np.asarray(weights), dtype=self._like.dtype, device=self._like.device)
        point = self._tensor(y)
        with_weights = linearise(self._problem, point, full[:, : self._p], full[:, self._p :]).hessian()
        return self._numbers(with_weights - self._at(y).hessian())

    def constraints(self, method: str) -> list[Any]:
        """In scipy's terms; its inequalities are ≥ 0 in the dictionaries, ours are ≤ 0."""
        blocks = [("eq", 1.0, slice(0, self._p)), ("ineq", -1.0, slice(self._p, self._p + self._q))]
        blocks = [block for block in blocks if block[2].stop > block[2].start]
        if method == "trust-constr":
            return [
                scipy.optimize.NonlinearConstraint(
                    lambda y, rows=rows: self._value(y, rows),
                    0.0 if kind == "eq" else -np.inf,
                    0.0,
                    jac=lambda y, rows=rows: self._jacobian(y, rows),  # pyright: ignore[reportArgumentType]
                    hess=lambda y, w, rows=rows: self._weighted_hessian(y, w, rows),  # pyright: ignore[reportArgumentType]
                )
                for kind, _, rows in blocks
            ]
        return [
            {
                "type": kind,
                "fun": lambda y, sign=sign, rows=rows: sign * self._value(y, rows),
                "jac": lambda y, sign=sign, rows=rows: sign * self._jacobian(y, rows),
            }
            for kind, sign, rows in blocks
        ]
