"""`verify`: does a node's derivative hold up? Every path against the dense formula, and that against finite differences."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from declarative.certificate import Certificate, certify
from declarative.checks import Checks, Row
from declarative.errors import IrregularPointError, SolverError, StructureError
from declarative.node import DeclarativeNode, InDims, prepare
from declarative.structure_checks import structure_rows


@dataclass(frozen=True)
class Report:
    """What `verify` found. `print(report)` shows the certificate and a table; `report.ok`; `report.raise_if_failed()`."""

    title: str
    rows: tuple[Row, ...]
    certificate: Certificate

    @property
    def ok(self) -> bool:
        """Whether every row is."""
        return all(row.ok for row in self.rows)

    def raise_if_failed(self) -> None:
        """An AssertionError with the table, unless every row is ok."""
        if not self.ok:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [f"  {'ok  ' if row.ok else 'FAIL'}  {row.name:<{width}}  {row.error:8.1e} ≤ {row.allowed:7.1e}  {row.note}".rstrip() for row in self.rows]
        failed = sum(not row.ok for row in self.rows)
        verdict = "all checks passed" if not failed else f"{failed} of {len(self.rows)} checks FAILED"
        return "\n".join([str(self.certificate), self.title, *lines, verdict])


def verify(node: DeclarativeNode, *inputs: Tensor, in_dims: InDims = 0, directions: int = 2, seed: int = 0) -> Report:
    """Check a node's solutions and derivatives at the given inputs.

    The certificate of the points comes first: a derivative of something that is not a minimiser is of no use. Finite
    differences are taken in float64, of problems solved anew and polished to rounding, whatever the dtype of the inputs; so
    they measure the derivative and not the solver. Their step and what they are trusted to follow from the noise of the solves.
    At a kink (a weakly active constraint) they are taken on the side whose derivative `weakly_active` chose.

    Args:
        inputs, in_dims: as in calling the node. A batch of a few samples is best: each is checked on its own.
        directions: random directions for each input and parameter that requires grad.
        seed: of the directions; global random state is left alone.

    Returns:
        a `Report` with the `Certificate` and rows for the solution (a minimiser, status, stationarity, feasibility), the vector–Jacobian product (against
        the dense formula built one instance at a time, and against finite differences), the Jacobian–vector product,
        second derivatives, the batch against its samples one by one, and side effects.

    Raises:
        ValueError, TypeError: inputs that do not fit the node. Anything that goes wrong numerically is a failed row.

    Example:
        >>> verify(Projection(), torch.randn(8, 5, dtype=torch.float64)).ok  # print it for the table; Projection: see DeclarativeNode
        True
    """
    if not isinstance(node, DeclarativeNode):
        raise TypeError(f"node must be a DeclarativeNode, got {type(node).__name__}")
    if not isinstance(directions, int) or directions < 1:
        raise ValueError(f"directions must be a positive int, got {directions!r}")
    problem, single, _ = prepare(node, inputs, in_dims)
    if problem.batch == 0:
        raise ValueError(f"{problem.name}: cannot verify on an empty batch; pass at least one sample")
    shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
    title = f"verify {problem.name}: {'a single instance' if single else f'{problem.batch} samples'}, inputs {shapes}, {inputs[0].dtype}"
    certificate = certify(node, *(x.detach() for x in inputs), in_dims=in_dims)
    others = [i for i, minimiser in enumerate(certificate.minimiser.reshape(-1).tolist()) if not minimiser]
    rows = [Row("samples that are not minimisers", len(others), 0.0, "" if not others else f"samples {others}: see the certificate")]
    checks = Checks(node, tuple(x.detach().clone() for x in inputs), in_dims, directions, seed)
    for check in (
        partial(structure_rows, checks),
        checks.solution,
        checks.dense,
        checks.finite_differences,
        checks.forward_mode,
        checks.second_order,
        checks.samples_alone,
        checks.side_effects,
    ):
        try:
            rows.extend(check())
        except (SolverError, IrregularPointError, StructureError) as error:
            name = "structure" if isinstance(check, partial) else check.__name__.replace("_", " ")
            rows.append(Row(name, float("nan"), 0.0, str(error)))
            if check == checks.solution:  # nothing else can be measured without a solution
                break
    return Report(title, tuple(rows), certificate)
