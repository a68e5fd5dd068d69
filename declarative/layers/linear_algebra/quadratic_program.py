"""`QuadraticProgram`: the convex quadratic program as a layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from declarative.differentiation.base import Differentiation
from declarative.layers.natural import matrix, read
from declarative.layers.natural_layer import Call, NaturalLayer
from declarative.solvers.base import Solver


class QuadraticProgram(NaturalLayer):
    """y = argmin ½ yᵀQy + cᵀy  s.t.  A y = b, G y ≤ d, with Q positive semidefinite.

    Solved by `InteriorPoint` in one batch (without inequalities by one Newton step), and differentiated through the optimality conditions, in all six
    arguments and in the multipliers. Of Q only the symmetric part counts.

    Args:
        solver: another one from `declarative.solvers`; `InteriorPoint(on_failure="nan")` goes on without samples that are infeasible or unbounded.
        differentiation: where Q is singular and constraints do not make y unique, as at any solution that is not a vertex of a linear program, there is no
            derivative: `Implicit(irregular=...)` says what to return. `weakly_active=...` chooses the side at kinks, `smoothing=...` smooths them.
        polish: Newton steps after the solver, as in every node.

    Shapes:
        Q (…, n, n), c (…, n), A (…, p, n), b (…, p), G (…, q, n), d (…, q) -> y (…, n); leading dimensions broadcast, and what all samples share is
        formed once. A and b, or G and d, are left out where there are no such constraints.
        `.solution(...)`: equality_multipliers ν (…, p), inequality_multipliers μ (…, q).

    Raises:
        ValueError, TypeError: shapes that do not fit, A without b, G without d.
        SolverError: samples that are infeasible or unbounded.

    Example:
        >>> Q, c = torch.eye(2), torch.tensor([-1.0, -1.0])
        >>> QuadraticProgram()(Q, c, G=torch.tensor([[1.0, 0.0]]), d=torch.tensor([0.25]))
        tensor([0.2500, 1.0000])

    Source: Amos & Kolter, "OptNet: Differentiable optimization as a layer in neural networks", ICML 2017.
    """

    arguments = ("Q", "c", "A", "b", "G", "d")
    ranks = (2, 1, 2, 1, 2, 1)

    def __init__(self, *, solver: Solver | None = None, differentiation: Differentiation | None = None, polish: int = 0) -> None:
        super().__init__(differentiation=differentiation, solver=solver, polish=polish)

    def _read(self, inputs: tuple[Any, ...]) -> Call:
        owner, (Q, c, A, b, G, d) = type(self).__name__, inputs
        n = matrix(owner, "Q", Q, "n", "n").shape[-1]
        named: dict[str, tuple[Any, int]] = {"Q": (Q, 2), "c": (c, 1)}
        for (first, rows), (second, side) in ((("A", A), ("b", b)), (("G", G), ("d", d))):
            if (rows is None) != (side is None):
                raise TypeError(f"{owner}: {first} and {second} belong together; got {second if rows is None else first} alone")
            named[first] = (Q.new_zeros(0, n) if rows is None else rows, 2)
            named[second] = (Q.new_zeros(0) if side is None else side, 1)
        lead, tensors = read(owner, named)
        sizes = {"c": (n,), "A": (tensors[3].shape[1], n), "b": tensors[2].shape[1:2], "G": (tensors[5].shape[1], n), "d": tensors[4].shape[1:2]}
        for (name, wanted), tensor in zip(sizes.items(), tensors[1:], strict=True):
            if tuple(tensor.shape[1:]) != tuple(wanted):
                came = f"{tuple(tensor.shape[1:])}, of shape {tuple(named[name][0].shape)}"
                raise ValueError(f"{owner}: {name} must have instances {tuple(wanted)}, for Q (…, {n}, {n}) and the arguments beside it, got {came}")
        return Call(lead, tuple(tensors))

    def _objective(self, Q: Tensor, c: Tensor, A: Tensor, b: Tensor, G: Tensor, d: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return 0.5 * (y * (Q @ y.unsqueeze(2)).squeeze(2)).sum(1) + (c * y).sum(1)

    def _equalities(self, Q: Tensor, c: Tensor, A: Tensor, b: Tensor, G: Tensor, d: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return (A @ y.unsqueeze(2)).squeeze(2) - b

    def _inequalities(self, Q: Tensor, c: Tensor, A: Tensor, b: Tensor, G: Tensor, d: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return (G @ y.unsqueeze(2)).squeeze(2) - d

    def initial_guess(self, *inputs: Tensor) -> Tensor:
        """Zero."""
        call = self._read(self._arranged(inputs, {}))
        c = call.tensors[1]
        return call.shaped(c.new_zeros(call.lead.batch, c.shape[1]))
