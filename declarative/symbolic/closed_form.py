"""The blocks of a statement as functions of tensors, each written, compiled and kept when it is first asked for."""

# sympy annotates most results as Basic.
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportReturnType=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import sympy
from sympy import Expr, Symbol
from torch import Tensor

from declarative.symbolic.arrays import Array
from declarative.symbolic.blocks import Blocks, expression
from declarative.symbolic.complement import Complement, complement, complement_outputs
from declarative.symbolic.functions import Cases
from declarative.symbolic.sizes import evaluate, read_sizes
from declarative.symbolic.source import Code, Output, Wanted, write, write_two
from declarative.symbolic.statement import Statement
from declarative.symbolic.structure import Structure, hessian_structure, pairing
from declarative.symbolic.terms import Term, Terms, collapse, negative, on_diagonal


class ClosedForm:
    """What sympy knows of a statement, as torch code."""

    def __init__(self, statement: Statement, code_name: Callable[[str], str]) -> None:
        self.statement = statement
        self._known: dict[tuple[str, tuple[int, ...]], tuple[Code, Wanted]] = {}
        self._pairs: dict[tuple[str, tuple[int, ...]], tuple[Code, Code]] = {}
        self._sizes: dict[object, dict[Symbol, int]] = {}
        self.blocks = Blocks(statement)
        self._name = code_name
        self.arrays = statement.arrays
        self.directions = tuple(self._like(f"u{k + 1}" if k else "u", v) for k, v in enumerate(statement.variables))
        """u, an array for each variable."""
        self.rows = tuple(self._like(f"w{k + 1}", c.multipliers) for k, c in enumerate(statement.constraints))
        """w, an array for each constraint."""
        self.weights = tuple(self._like(f"W{k + 1}" if k else "W", v) for k, v in enumerate(statement.variables))
        """W, the diagonal of H⁻¹, where H is diagonal."""
        self.tangents = tuple(self._like(f"d{a.label}", a) for a in self.blocks.wanted)
        """dx, for each input and constant."""

    def _like(self, name: str, array: Array) -> Array:
        taken = self.statement.indices.taken
        while name in taken:
            name += "_"
        taken.add(name)
        return Array(Symbol(name), array.axes, self._name(name), array.indices)

    @cached_property
    def structure(self) -> Structure:
        """H's."""
        return hessian_structure(self.blocks)

    @cached_property
    def complement(self) -> Complement | None:
        """That of S = A H⁻¹Aᵀ, where H is diagonal."""
        return complement(self)

    @property
    def dropped(self) -> int | None:
        """The family whose last constraint is left out: the last column's sum, which follows from the other sums."""
        return 1 if self.complement is not None and self.complement.kind == "marginals" else None

    def complement_code(self) -> Code:
        """The blocks of S (upper triangle, family by family), of W."""
        found = self.complement
        if found is None:
            raise RuntimeError("there is no Schur complement of a diagonal H")
        return self._code("complement", lambda: complement_outputs(found, self.statement), "S", found.weights)

    @cached_property
    def inverse(self) -> tuple[Terms, ...] | None:
        """W = H⁻¹ of a diagonal H, where each variable has one simple coefficient: computed instead of it."""
        if not self.structure.is_diagonal:
            return None
        found = []
        for k in range(len(self.statement.variables)):
            terms = [on_diagonal(t, self.blocks.columns[k]) for t in self.blocks.hessian[k, k]]
            if any(t.bound or t.guards for t in terms) or not terms:
                return None
            coefficient = sympy.Add(*(t.coefficient for t in terms))
            if coefficient.has(Cases):
                return None
            found.append([Term(sympy.factor(sympy.together(1 / coefficient)) if len(coefficient.args) < 12 else 1 / coefficient)])
        return tuple(found)

    @cached_property
    def jacobian_labels(self) -> tuple[Symbol, ...]:
        """What the coefficients of A depend on."""
        used = {s for terms in self.blocks.jacobian.values() for t in terms for s in t.coefficient.free_symbols}
        return tuple(label for label in self.arrays if label in used)

    def lengths(self, bound: Sequence[Symbol], values: Mapping[Symbol, Tensor]) -> tuple[int, ...]:
        """How many values each of these indices has."""
        key = tuple((label, tuple(values[label].shape[values[label].ndim - len(a.axes) :])) for label, a in self.arrays.items() if label in values)
        if key not in self._sizes:
            self._sizes[key] = read_sizes(self.statement, [(self.arrays[label], shape) for label, shape in key])
        return tuple(evaluate(self.statement.indices.ranges[s].size, self._sizes[key]) for s in bound)

    def _code(self, name: str, outputs: Callable[[], Sequence[Output]], note: str, extra: Sequence[Array] = (), of: tuple[int, ...] = ()) -> Code:
        if (name, of) not in self._known:
            found = outputs()
            wanted = Wanted(name, found, _explained(note, found, self.blocks), extra)
            self._known[name, of] = write(self.statement, wanted), wanted
        return self._known[name, of][0]

    def named(self, name: str) -> Code:
        """A function that has been asked for."""
        return self._known[name, ()][0]

    def with_input_gradients(self, first: Code, of: tuple[int, ...]) -> tuple[Code, Code]:
        """A function and the gradients of the inputs that follow it, which are handed what both compute."""
        key = first.name, of
        if key not in self._pairs:
            self.input_gradients(of)
            self._pairs[key] = write_two(self.statement, self._known[first.name, ()][1], self._known["input_gradients", of][1])
        return self._pairs[key]

    # Values

    def objective(self) -> Code:
        """f"""
        return self._code("objective", lambda: [(self.statement.objective, ())], "f")

    def constraints(self, equality: bool | None = None) -> Code:
        """h and g, one result for each family; or one of the two."""
        families = [c for c in self.statement.constraints if equality is None or c.equality is equality]
        name = {None: "constraints", True: "equalities", False: "inequalities"}[equality]
        return self._code(name, lambda: [([Term(c.expression)], c.free) for c in families], "a")

    def start(self, terms: Sequence[Terms]) -> Code:
        """Where a solver starts, one result for each variable."""
        return self._code("start", lambda: list(zip(terms, (v.indices for v in self.statement.variables), strict=True)), "y")

    def gradient(self) -> Code:
        """∇_y L, one result for each variable."""
        return self._code("gradient", lambda: list(zip(self.blocks.gradient, self.blocks.rows, strict=True)), "∇L")

    # H

    def hessian(self) -> Code:
        """H, dense: a result (…, *rows, *columns) for each pair of variables that is not zero."""
        b = self.blocks
        pairs = [key for key, terms in b.hessian.items() if terms]
        return self._code("hessian", lambda: [(b.hessian[k, q], (*b.rows[k], *b.columns[q])) for k, q in pairs], "H")

    def hessian_diagonal(self) -> Code:
        """The diagonal part of H, one result for each variable."""
        b = self.blocks

        def outputs() -> list[Output]:
            if len(self.statement.variables) == 1:
                return [(self.structure.diagonal, b.rows[0])]
            return [([on_diagonal(t, b.columns[k]) for t in b.hessian[k, k]], p) for k, p in enumerate(b.rows)]

        return self._code("hessian_diagonal", outputs, "diagonal of H")

    def inverse_diagonal(self) -> Code:
        """W = H⁻¹, one result for each variable."""
        found = self.inverse
        if found is None:
            raise RuntimeError("H is not diagonal")
        return self._code("inverse_diagonal", lambda: list(zip(found, self.blocks.rows, strict=True)), "diagonal of H⁻¹")

    def hessian_factors(self) -> Code:
        """For each low-rank part, left (…, *rows, *bound) and right (…, *columns, *bound)."""
        b = self.blocks

        def outputs() -> list[Output]:
            found: list[Output] = []
            for f in self.structure.factors:
                found += [([Term(f.left)], (*b.rows[0], *f.bound)), ([Term(f.right)], (*b.columns[0], *f.bound))]
            return found

        return self._code("hessian_factors", outputs, "factors of H")

    def hessian_blocks(self) -> Code:
        """The blocks of a block diagonal H: (…, *common, *rows, *columns); of a Kronecker product one block."""
        b, structure = self.blocks, self.structure
        rows, columns = b.rows[0], b.columns[0]
        kept = [k for k in range(len(rows)) if k not in structure.axes]

        def outputs() -> list[Output]:
            terms = [on_diagonal(t, [columns[k] for k in structure.axes]) for t in b.hessian[0, 0]]
            axes = [] if structure.kind == "Kronecker" else [rows[k] for k in structure.axes]
            return [(terms, (*axes, *(rows[k] for k in kept), *(columns[k] for k in kept)))]

        return self._code("hessian_blocks", outputs, "blocks of H")

    def hessian_bands(self) -> Code:
        """For each offset −r … r the band H[p, p + offset], (…, n), zero outside."""
        b, reach, indices = self.blocks, self.structure.offset, self.statement.indices
        rows, columns = b.rows[0], b.columns[0]

        def outputs() -> list[Output]:
            bands: dict[int, Terms] = {offset: [] for offset in range(-reach, reach + 1)}
            for t in b.hessian[0, 0]:
                offsets = pairing(t, rows, columns, indices) or {}
                bands[offsets[0]].append(on_diagonal(t, columns))
            return [(terms, rows) for terms in bands.values()]

        return self._code("hessian_bands", outputs, "bands of H")

    def hessian_product(self) -> Code:
        """H d, one result for each variable."""
        b = self.blocks
        return self._code("hessian_product", lambda: [(b.hessian_product(k, self.directions), p) for k, p in enumerate(b.rows)], "H u", self.directions)

    # A

    def jacobian(self) -> Code:
        """A, dense: (…, *free, *columns) for each pair of a family and a variable that is not zero."""
        b, families = self.blocks, self.statement.constraints
        pairs = [key for key, terms in b.jacobian.items() if terms]
        return self._code("jacobian", lambda: [(b.jacobian[c, v], (*families[c].free, *b.columns[v])) for c, v in pairs], "A")

    def jacobian_product(self) -> Code:
        """A d, one result for each family."""
        b, families = self.blocks, self.statement.constraints
        outputs = lambda: [(b.jacobian_product(k, self.directions), c.free) for k, c in enumerate(families)]  # noqa: E731
        return self._code("jacobian_product", outputs, "A u", self.directions)

    def jacobian_transposed_product(self) -> Code:
        """Aᵀw, one result for each variable."""
        b = self.blocks
        outputs = lambda: [(b.jacobian_transposed_product(k, self.rows), q) for k, q in enumerate(b.columns)]  # noqa: E731
        return self._code("jacobian_transposed_product", outputs, "Aᵀw", self.rows)

    def magnitude_product(self) -> Code:
        """|A| d, one result for each family."""
        b, families = self.blocks, self.statement.constraints
        outputs = lambda: [(b.jacobian_product(k, self.directions, absolute=True), c.free) for k, c in enumerate(families)]  # noqa: E731
        return self._code("magnitude_product", outputs, "|A| u", self.directions)

    def magnitude_transposed_product(self) -> Code:
        """|A|ᵀw, one result for each variable."""
        b = self.blocks
        outputs = lambda: [(b.jacobian_transposed_product(k, self.rows, absolute=True), q) for k, q in enumerate(b.columns)]  # noqa: E731
        return self._code("magnitude_transposed_product", outputs, "|A|ᵀw", self.rows)

    def row_sizes(self) -> Code:
        """Σ_j |A_ij|, one result for each family."""
        b, families, indices = self.blocks, self.statement.constraints, self.statement.indices

        def outputs() -> list[Output]:
            found: list[Output] = []
            for k, c in enumerate(families):
                terms = [collapse(replace(t, bound=(*q, *t.bound)), indices) for v, q in enumerate(b.columns) for t in b.magnitudes(k, v)]
                found.append((terms, c.free))
            return found

        return self._code("row_sizes", outputs, "row sums of |A|")

    # B and C

    def input_gradients(self, wanted: tuple[int, ...]) -> Code:
        """x̄ = −(Bᵀu + Cᵀw) for these inputs and constants."""
        b = self.blocks
        outputs = lambda: [([negative(t) for t in b.pull_back(k, self.directions, self.rows)], b.given[k]) for k in wanted]  # noqa: E731
        return self._code("input_gradients", outputs, "−(Bᵀu + Cᵀw)", (*self.directions, *self.rows), wanted)

    def push_forward(self, moving: tuple[int, ...]) -> Code:
        """B dx for each variable, then C dx for each family."""
        b = self.blocks
        tangents = {k: self.tangents[k] for k in moving}

        def outputs() -> list[Output]:
            found: list[Output] = [(b.push_forward(a, False, tangents), p) for a, p in enumerate(b.rows)]
            return found + [(b.push_forward(c, True, tangents), x.free) for c, x in enumerate(self.statement.constraints)]

        return self._code("push_forward", outputs, "B dx, C dx", tuple(tangents.values()), moving)


def _explained(note: str, outputs: Sequence[Output], blocks: Blocks) -> str:
    """The formulas, one a line."""
    lines = []
    for terms, axes in outputs:
        e: Expr = expression(terms, blocks) if isinstance(terms, list) else terms
        index = f"[{', '.join(s.name for s in axes)}]" if axes else ""
        lines.append(f"{note}{index} = {sympy.sstr(e)}")
    return "\n".join(lines) or note
