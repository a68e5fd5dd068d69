"""The KKT system at a solution, for the two passes: what is excluded, how it is solved, what is pulled back or pushed forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from declarative.differentiation.call import Call
from declarative.differentiation.linear_solvers import ConjugateGradients, Direct, choose
from declarative.differentiation.methods import CGMethod, HookMethod, Method, MINRESMethod, matrix_free
from declarative.engines.autodiff import linearise
from declarative.engines.base import Linearisation
from declarative.engines.blocks import check_mixed, hessian_operator, hook_vjp, is_structured, jacobian_operator, mixed_identity, read_solution
from declarative.errors import IrregularPointError, name_samples
from declarative.kkt.bordered import IrregularPolicy, solve_bordered
from declarative.kkt.matrix_free import MatrixFreeKKT
from declarative.kkt.schur import solve_structured
from declarative.solution import DerivativeReport, Solution
from declarative.structure.constraints import Constant
from declarative.transforms import transforms_active
from declarative.vectors import joined


class System:
    """The KKT system at a solution, for the two passes."""

    def __init__(self, call: Call, saved: tuple[Tensor, ...]) -> None:
        *tensors, self._y, self._equality, self._inequality, active, weakly_active = saved
        self._call, self.count = call, len(tensors)
        self._problem = replace(call.problem, tensors=tuple(tensors), layout=call.record.layout)
        self._failed = ~torch.isfinite(self._y).all(1) if call.record.any_failed else None
        self._excluded = [] if self._failed is None else [self._failed]
        self._undefined = list(self._excluded)
        self._active = active
        if call.record.weakly_active:
            self._treat_weakly_active(weakly_active, call.options.weakly_active)
        if self._failed is not None:
            self._substitute(self._failed)

    def _treat_weakly_active(self, weakly_active: Tensor, choice: str) -> None:
        if choice == "raise":
            raise IrregularPointError(
                f"{self._problem.name}: constraints are weakly active at {name_samples(self._call.record.weakly_active, self._problem.batch)}; the "
                'derivative is one-sided there. Choose a side with Implicit(weakly_active="inactive") or "active", or pass "nan" or "zero"'
            )
        if choice == "active":
            self._active = self._active | weakly_active
        if choice in ("nan", "zero"):
            self._excluded.append(weakly_active.any(1))
        if choice == "nan":
            self._undefined.append(weakly_active.any(1))

    def _substitute(self, failed: Tensor) -> None:
        """Evaluate failed samples at a converged neighbour's data, so that their NaN cannot reach what the batch shares.

        Their own results are set in `_solve` afterwards. Gathered by index, not selected: shapes stay fixed under vmap.
        """
        positions = torch.arange(failed.shape[0], device=failed.device)
        index = torch.where(failed, (~failed).to(torch.int8).argmax(), positions)
        dims = self._problem.in_dims
        self._problem = self._problem.with_tensors([t[index] if d == 0 else t for t, d in zip(self._problem.tensors, dims, strict=True)])
        self._y, self._equality, self._inequality, self._active = (t[index] for t in (self._y, self._equality, self._inequality, self._active))

    def _weights(self, at: Linearisation) -> Tensor | None:
        """ρ of each row: 1 where it counts as an equation, 0 where not, between with smoothing. None: all are 1."""
        if not self._active.shape[1]:
            return None
        ones = torch.ones_like(self._equality)
        weights = self._active.to(ones.dtype)
        tau = self._call.options.smoothing
        if tau > 0:
            # The pair (s̃, μ̃) with s̃ μ̃ = τ and the same μ − s; ρ² = μ̃ / (s̃ + μ̃).
            difference = self._inequality + at.constraints[:, ones.shape[1] :]
            root = (difference * difference + 4 * tau).sqrt()
            weights = (0.5 + 0.5 * difference / root).clamp_min(0).sqrt()
        return joined(ones, weights)

    def _solve(self, at: Linearisation, side_y: Tensor, side_rows: Tensor, used: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """(u, w), by the policies. `used()` (b,) says which samples anything is asked of: 0 · undefined counts as 0."""
        solve = self._solver(at, self._policy())
        if not self._excluded:
            return solve(side_y, side_rows)
        # Samples without a derivative: their right-hand side is zero, and NaN is put in place of their result unless "zero" was chosen.
        column = torch.stack(self._excluded).any(0).unsqueeze(1)
        side_y, side_rows = torch.where(column, 0.0, side_y), torch.where(column, 0.0, side_rows)
        u, w = solve(side_y, side_rows)
        for undefined in self._undefined:
            marked = (undefined & used()).unsqueeze(1)
            u, w = torch.where(marked, torch.nan, u), torch.where(marked, torch.nan, w)
        return u, w

    def _solver(self, at: Linearisation, policy: IrregularPolicy) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(v, v_λ) ↦ (u, w), with what the node says of its structure, by what was chosen or fits its size."""
        weights, problem, node, options = self._weights(at), self._problem, self._problem.node, self._call.options
        if node.solve_kkt is not None:
            return partial(self._matrix_free, policy, at, weights, HookMethod(hook=self._ask_hook))
        choice, _ = choose(
            options.linear_solver,
            node,
            problem.batch,
            self._y.shape[1],
            self._equality.shape[1] + self._inequality.shape[1],
            not (options.smoothing or options.damping),
        )
        if not isinstance(choice, Direct):
            automatic = not isinstance(options.linear_solver, ConjugateGradients)
            if isinstance(choice, ConjugateGradients):
                method: Method = CGMethod(options=choice, give_up=automatic)
            else:
                method = MINRESMethod(options=choice)
            return partial(self._matrix_free, policy, at, weights, method)
        if not is_structured(node):
            return partial(solve_bordered, policy, at.hessian(), at.jacobian(), weights)
        solution = self._solution()
        return partial(solve_structured, policy, hessian_operator(problem, at, solution), jacobian_operator(problem, at, solution), weights)

    def _solution(self) -> Solution:
        """What hooks see."""
        return read_solution(self._problem, self._y, self._equality, self._inequality, self._active)

    def _matrix_free(
        self, policy: IrregularPolicy, at: Linearisation, weights: Tensor | None, method: Method, side_y: Tensor, side_rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        kkt = matrix_free(policy, self._problem, at, (self._y, self._equality, self._inequality), weights, method)
        rows = side_rows if weights is None else side_rows * weights
        u, w = kkt.solve(torch.cat([side_y, rows], 1)).split([side_y.shape[1], rows.shape[1]], 1)
        return u, w if weights is None else w * weights

    def _ask_hook(self, kkt: MatrixFreeKKT, v: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """The node's `solve_kkt` at the point of `kkt`, in the user's shapes."""
        problem, p = self._problem, self._equality.shape[1]
        batch = kkt.y.shape[0]
        here = kkt.at is not None  # the very point of this system: parameters are shared by the batch, the workspace fits
        if here:
            problem = problem.with_tensors([*kkt.arguments[: problem.inputs], *problem.tensors[problem.inputs :]])
            problem = replace(problem, in_dims=(*(0 for _ in range(problem.inputs)), *problem.in_dims[problem.inputs :]))
        else:
            problem = replace(problem.with_tensors(kkt.arguments), in_dims=tuple(0 for _ in kkt.arguments), batch=batch)
        solution = read_solution(problem, kkt.y, kkt.multipliers[:, :p], kkt.multipliers[:, p:], kkt.weights[:, p:] > 0)
        if here and self._failed is None:
            solution = replace(solution, workspace=self._call.record.workspace)
        layout = problem.layout
        if layout is None:
            raise RuntimeError("the shape of y is known after a solve")
        outcome = problem.call_batched("solve_kkt", solution, layout.unpack(v), r, packed=True)
        if not isinstance(outcome, tuple) or len(outcome) != 2:
            raise TypeError(f"{problem.name}.solve_kkt must return a pair (u, w), got {type(outcome).__name__}")
        u, w = outcome
        parts = tuple(u) if isinstance(u, tuple | list) else (u,)
        if tuple(tuple(part.shape[1:]) for part in parts) != layout.shapes or w.shape != r.shape:
            came = f"u {[tuple(part.shape) for part in parts]}, w {tuple(w.shape)}"
            raise ValueError(f"{problem.name}.solve_kkt must return u shaped like y, {layout.shapes} after the batch, and w {tuple(r.shape)}; got {came}")
        return layout.pack(parts), w

    def _policy(self) -> IrregularPolicy:
        options, record = self._call.options, self._call.record
        most = None if options.smoothing else self._equality.shape[1] + record.most_active
        return IrregularPolicy(options.irregular, self._y.shape[1], self._y.shape[0], self._problem.name, options.damping, record.report, most_rows=most)

    def _undefined_where_singular(self, at: Linearisation, used: Tensor) -> Tensor:
        """(b, 1): NaN in singular samples whose inputs move, zero elsewhere.

        A right-hand side (B; C) dx that happens to vanish does not make the derivative zero there, as it does where the
        cotangent vanishes; a solve with a right-hand side that does not vanish shows which samples these are.
        """
        shown = used.to(self._y.dtype).unsqueeze(1)
        policy = replace(self._policy(), report=DerivativeReport())
        u, _ = self._solver(at, policy)(shown.expand(self._y.shape), torch.zeros_like(at.constraints))
        return 0 * u.sum(1, keepdim=True)

    def _linearisation_kept(self, wanted: list[int]) -> Linearisation | None:
        """The graph that the forward pass measured its residuals on: good for one backward pass that is not recorded."""
        kept, self._call.record.linearisation = self._call.record.linearisation, None
        if kept is None or self._failed is not None or torch.is_grad_enabled() or transforms_active():
            return None
        if isinstance(self._problem.node.constraint_structure, Constant) and all(k < self._problem.inputs for k in wanted):
            return kept  # the multipliers of gradients that only parameters change add nothing to H, nor to B or C of the inputs
        return kept.with_multipliers(self._equality, self._inequality)

    def pull_back(self, cotangents: tuple[Tensor | None, ...], wanted: list[int]) -> list[Tensor]:
        """x̄ for the wanted tensors."""
        if self._problem.batch == 0 or not wanted:
            return [torch.zeros_like(self._problem.tensors[k]) for k in wanted]
        v, v_equality, v_inequality = (
            torch.zeros_like(output) if c is None and output.shape[1] else output if c is None else c
            for c, output in zip(cotangents, (self._y, self._equality, self._inequality), strict=True)
        )
        if self._call.record.all_failed:
            return self._undefined_gradients(self._asked(v, joined(v_equality, v_inequality)), wanted)
        if self._problem.node.vjp is not None and cotangents[0] is not None and cotangents[1] is None and cotangents[2] is None and not self._excluded:
            own = [k for k in wanted if k < self._problem.inputs]
            rest = [k for k in wanted if k >= self._problem.inputs]
            found = dict(zip(own, hook_vjp(self._problem, self._solution(), v, own), strict=True)) if own else {}
            found |= dict(zip(rest, self._by_formula(v, v_equality, v_inequality, rest), strict=True)) if rest else {}
            return [found[k] for k in wanted]
        return self._by_formula(v, v_equality, v_inequality, wanted)

    def _undefined_gradients(self, asked: Tensor, wanted: list[int]) -> list[Tensor]:
        """Where every sample has failed: NaN for what is asked of one, zero otherwise. There is no point at which to evaluate anything."""
        mark = self._mark(asked)
        tensors, dims = self._problem.tensors, self._problem.in_dims
        return [torch.zeros_like(tensors[k]) + (mark.reshape(-1, *[1] * (tensors[k].ndim - 1)) if dims[k] == 0 else mark.sum()) for k in wanted]

    def _mark(self, asked: Tensor) -> Tensor:
        """(b,) NaN where something is asked of a sample, zero elsewhere."""
        return torch.where(asked, torch.nan, 0.0).to(self._y.dtype)

    @staticmethod
    def _asked(side_y: Tensor, side_rows: Tensor) -> Tensor:
        """(b,) whether a cotangent is other than zero."""
        return (torch.cat([side_y, side_rows], 1) != 0).any(1)

    def _by_formula(self, v: Tensor, v_equality: Tensor, v_inequality: Tensor, wanted: list[int]) -> list[Tensor]:
        identity = self._problem.node.mixed_structure
        if identity is not None:
            check_mixed(self._problem, identity)
        through = wanted if identity is None else [k for k in wanted if k != identity.input]
        at = self._linearisation_kept(through) or linearise(self._problem, self._y, self._equality, self._inequality, through)
        side_rows = joined(v_equality, v_inequality)
        u, w = self._solve(at, v, side_rows, lambda: self._asked(v, side_rows))
        gradients = dict(zip(through, at.input_gradients(u, w, through), strict=True)) if through else {}
        if identity is not None and identity.input in wanted:
            gradients[identity.input] = mixed_identity(self._problem, identity, u)
        return [gradients[k] for k in wanted]

    def push_forward(self, tangents: dict[int, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """(dy, dν, dμ) for tangents of the problem's tensors."""
        p = self._equality.shape[1]
        if self._problem.batch == 0 or not tangents:
            return torch.zeros_like(self._y), torch.zeros_like(self._equality), torch.zeros_like(self._inequality)
        if self._call.record.all_failed:
            mark = self._mark(self._moving(tangents)).unsqueeze(1)
            dy, d_equality, d_inequality = (torch.zeros_like(output) + mark for output in (self._y, self._equality, self._inequality))
            return dy, d_equality, d_inequality
        at = linearise(self._problem, self._y, self._equality, self._inequality, list(tangents))
        side_y, side_rows = at.push_forward(tangents)
        dy, rows = self._solve(at, -side_y, -side_rows, lambda: self._moving(tangents))
        if self._call.options.irregular == "nan":
            undefined = self._undefined_where_singular(at, self._moving(tangents))
            dy, rows = dy + undefined, rows + undefined
        return dy, rows[:, :p], rows[:, p:]

    def _moving(self, tangents: dict[int, Tensor]) -> Tensor:
        """(b,) whether any input of the sample has a tangent other than zero."""
        batch = self._problem.batch
        moving = [(t != 0).reshape(batch, -1).any(1) if self._problem.in_dims[k] == 0 else (t != 0).any().expand(batch) for k, t in tangents.items()]
        return torch.stack(moving).any(0)
