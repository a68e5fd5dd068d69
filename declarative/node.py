"""`DeclarativeNode`: a differentiable layer from its objective and constraints."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from declarative.differentiation.base import Differentiation
from declarative.differentiation.explanation import Explanation, explain
from declarative.differentiation.implicit import Implicit
from declarative.engines.base import ClosedForm
from declarative.problem import Layout, Problem, lift
from declarative.solution import DerivativeReport, Point, Solution
from declarative.solvers.base import Solver, read_layout
from declarative.solvers.forward import Forward
from declarative.solvers.interior_point import InteriorPoint
from declarative.solvers.newton import Newton
from declarative.solvers.user import UserSolve
from declarative.statement import argument_names, check_returns
from declarative.structure.base import Operator
from declarative.structure.constraints import Constant, ScaledIdentityInput, Sparse
from declarative.structure.tags import Tag
from declarative.transforms import current_level, uncompiled
from declarative.typing import Output

InDims = int | None | tuple[int | None, ...]
HALF = (torch.float16, torch.bfloat16)  # computed in float32


class DeclarativeNode(nn.Module):
    """A layer y(x) = argmin_y f(x, y) subject to h(x, y) = 0 and g(x, y) ≤ 0.

    Subclass it and write `objective` (and constraints) for ONE instance, without a batch dimension, in plain torch;
    then either `initial_guess`, from which the default solver starts, or `solve`, which may be anything. Batching,
    multipliers and derivatives of every order come by themselves.

    Parameters, buffers and submodules of the node may be used in the statement and get gradients. Tensors that require
    grad must be inputs or registered; anything else is refused by name.

    Args:
        solver: how y is found, from `declarative.solvers`. None: the node's own `solve` if it has one, else `Newton()`,
            or `InteriorPoint()` where there are inequalities.
        differentiation: how y is differentiated: `Implicit()` (None), `Unrolled(steps)` or `OneStep()`.
        polish: at most this many Newton steps on the optimality conditions after the solver, whichever it is. A solve
            accurate to 1e-3 then gives solutions and gradients at machine precision. Stops by itself when done.

    Shapes:
        Inputs: any number of tensors of one floating dtype on one device. y: a tensor of any shape, or a tuple of
        tensors, as `initial_guess` or `solve` returns it.

    Example:
        >>> class Projection(DeclarativeNode):  # onto the simplex
        ...     def objective(self, x, y): return 0.5 * ((y - x) ** 2).sum()
        ...     def equality_constraints(self, x, y): return y.sum() - 1
        ...     def inequality_constraints(self, x, y): return -y
        ...     def initial_guess(self, x): return torch.full_like(x, 1 / x.shape[-1])
        >>> Projection()(torch.tensor([[0.5, 0.3, 0.6]]))
        tensor([[0.3667, 0.1667, 0.4667]])

    Source: Gould, Hartley & Campbell, "Deep declarative networks", IEEE TPAMI 44(8), 2022.
    """

    def __init__(self, *, solver: Solver | None = None, differentiation: Differentiation | None = None, polish: int = 0) -> None:
        super().__init__()
        if solver is not None and not isinstance(solver, Solver):
            raise TypeError(f"solver must be an object from declarative.solvers, such as Newton(), got {solver!r}")
        if differentiation is not None and not isinstance(differentiation, Differentiation):
            raise TypeError(f"differentiation must be an object such as Implicit(), got {differentiation!r}; choose Implicit(), Unrolled(steps) or OneStep()")
        if not isinstance(polish, int) or polish < 0:
            raise ValueError(f"polish must be a number of steps, 0 or more, got {polish!r}")
        self.solver, self.differentiation, self.polish = solver, differentiation or Implicit(), polish

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        check_returns(cls)

    # The statement: one instance. Typed as attributes, as torch.nn.Module.forward is, so that a node may name its inputs as it
    # likes without a type checker calling the override incompatible.

    def _missing_objective(self, *inputs_and_y: Any) -> Tensor:
        """f(x, y), a scalar (). To be written for ONE instance; the decision variable comes last."""
        raise TypeError(f"{type(self).__name__} must define objective(self, x, y), a scalar for one instance")

    def _no_equalities(self, *inputs_and_y: Any) -> Tensor | None:
        """h(x, y), (p,): the constraints h = 0. None: there are none."""
        return None

    def _no_inequalities(self, *inputs_and_y: Any) -> Tensor | None:
        """g(x, y), (q,): the constraints g ≤ 0. None: there are none."""
        return None

    objective: Callable[..., Tensor] = _missing_objective
    equality_constraints: Callable[..., Tensor | None] = _no_equalities
    inequality_constraints: Callable[..., Tensor | None] = _no_inequalities

    # The algorithm: batch first.

    def _missing_guess(self, *inputs: Any) -> Output:
        """Where the solver starts: (b, *y_shape) or a tuple of such. Inputs come batch first."""
        raise TypeError(
            f"{type(self).__name__} has no initial_guess: define initial_guess(self, x) -> (b, *y_shape), from which the default solver starts "
            "(it also tells the shape of y), or solve(self, x) -> y"
        )

    def _missing_solve(self, *inputs: Any) -> Output | Solution:
        """The node's own algorithm: y (b, *y_shape), or a `Solution` if it knows the multipliers too. Runs under no_grad."""
        raise TypeError(f"{type(self).__name__} defines no solve")

    initial_guess: Callable[..., Output] = _missing_guess
    solve: Callable[..., Output | Solution] = _missing_solve

    # What is known about the derivatives: nothing, a tag, or a hook, batch first. Each is proved by `verify` against the one
    # above it.

    hessian_structure: Tag | None = None
    """A tag for H = ∇²_yy L, such as `Diagonal()`: the engine then forms only what the tag needs."""

    constraint_structure: Constant | Sparse | None = None
    """A tag for A = ∂(h, g)/∂y: `Constant()`, `Sparse(pattern)` or `Constant(Sparse())`."""

    mixed_structure: ScaledIdentityInput | None = None
    """A tag for B = ∇²_yx L: an input for which it is a multiple of the identity."""

    hessian: Callable[..., Operator] | None = None
    """hessian(self, *inputs, solution) -> operator: H in closed form, (b, m, m)."""

    constraint_jacobian: Callable[..., Operator] | None = None
    """constraint_jacobian(self, *inputs, solution) -> operator: A in closed form, (b, p + q, m), equalities first."""

    blocks: ClosedForm | None = None
    """The blocks of the KKT system in formulas, in place of autodiff: `twin.blocks` of a `SymbolicNode` with the same statement."""

    solve_kkt: Callable[..., tuple[Any, Tensor]] | None = None
    """solve_kkt(self, inputs, solution, rhs_y, rhs_multipliers) -> (u, w): H u + Aᵀw = rhs_y, A u = rhs_multipliers. Need not be differentiable."""

    vjp: Callable[..., tuple[Tensor, ...]] | None = None
    """vjp(self, inputs, solution, cotangent) -> one gradient for each input: the whole backward pass by hand, in differentiable torch."""

    input_names: tuple[str, ...] | None = None
    """What messages call the inputs, where the signature of `objective` does not say."""

    def check_shapes(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        """Raise a ValueError unless inputs of these shapes, of one instance, fit together. A node may say what fits; here everything does."""

    # Using it.

    @uncompiled
    def forward(self, *inputs: Tensor, in_dims: InDims = 0) -> Output:  # pyright: ignore[reportIncompatibleMethodOverride]
        """y, (b, *y_shape).

        Args:
            inputs: the arguments of `objective`, batched.
            in_dims: which dimension of each input is the batch, as in torch.vmap: an int, None (shared by the batch), or
                a tuple with one of these for each input. None for all: a single instance, without a batch dimension.

        Raises:
            ValueError, TypeError: shapes, dtypes, devices or in_dims that do not fit.
            SolverError: samples without a solution, unless the solver's `on_failure` says otherwise.
        """
        return self._run(inputs, in_dims, None).y

    @uncompiled
    def solution(self, *inputs: Tensor, in_dims: InDims = 0, init: Solution | Tensor | tuple[Tensor, ...] | None = None) -> Solution:
        """The solution y and all that is known about it: multipliers (differentiable), active set, status, iterations, residuals.

        Args:
            inputs, in_dims: as in calling the node.
            init: a warm start: an earlier `Solution` of the same shapes, or y alone.
        """
        return self._run(inputs, in_dims, init)

    def explain(self, *inputs: Tensor, in_dims: InDims = 0) -> Explanation:
        """What the backward pass at these inputs will form and how it will solve, why, and what that costs. `print` it.

        Args:
            inputs, in_dims: as in calling the node; only their shapes matter.
        """
        problem, _, _ = prepare(self, inputs, in_dims)
        with torch.no_grad():
            y, layout = choose_solver(self, problem).start(problem, ())
            problem = problem.with_layout(layout).with_tensors([t.detach() for t in problem.tensors])
            _, h, g = problem.evaluate(y)
        return explain(self, problem.name, problem.batch, layout.size, h.shape[1] + g.shape[1])

    def _run(self, inputs: tuple[Tensor, ...], in_dims: InDims, init: Any) -> Solution:
        problem, single, dtype = prepare(self, inputs, in_dims)
        start, layout = read_init(problem, init, single)
        if layout is not None:
            problem = problem.with_layout(layout)
        forward = Forward(partial(choose_solver, self), self.polish, torch.is_grad_enabled())
        with torch.autocast(problem.like.device.type, enabled=False):
            point, layout, report = self.differentiation.apply(problem, forward, start)
        return _present(point, layout, report, single, dtype)


def choose_solver(node: DeclarativeNode, problem: Problem) -> Solver:
    """The node's solver, or what `solver=None` means for it."""
    if node.solver is not None:
        return node.solver
    if getattr(node.solve, "__func__", None) is not DeclarativeNode.solve:
        return UserSolve()
    if problem.batch == 0:
        return Newton()
    y, layout = Newton().start(problem, ())
    return InteriorPoint() if problem.with_layout(layout).evaluate(y)[2].shape[1] else Newton()


def prepare(node: DeclarativeNode, inputs: tuple[Any, ...], in_dims: InDims) -> tuple[Problem, bool, torch.dtype | None]:
    """Check the inputs and bring the batch dimension to the front.

    Returns:
        the problem; whether it is a single instance; and the dtype to cast back to, where half precisions are computed
        in float32.
    """
    name = type(node).__name__
    expected = argument_names(node.objective) if node.input_names is None else list(node.input_names)
    if expected is not None and len(inputs) != len(expected):
        last = "" if node.input_names else "; the last argument of objective is the decision variable"
        raise TypeError(f"{name} takes {len(expected)} input{'s' if len(expected) != 1 else ''} ({', '.join(expected)}), got {len(inputs)}{last}")
    if not inputs:
        raise TypeError(f"{name} needs at least one input")
    labels = [f"{name}: input {i} ({label})" if label else f"{name}: input {i}" for i, label in enumerate(expected or [""] * len(inputs))]
    _check_kinds(labels, inputs)
    dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(inputs)
    if len(dims) != len(inputs):
        raise ValueError(f"{name}: in_dims has {len(dims)} entries for {len(inputs)} inputs; give one int or None for each")
    moved = [to_front(label, x, dim) for label, x, dim in zip(labels, inputs, dims, strict=True)]
    single = all(dim is None for dim in dims)
    if single:
        moved, dims = [x.unsqueeze(0) for x in moved], (0,) * len(inputs)
    sizes = {label: x.shape[0] for label, x, dim in zip(labels, moved, dims, strict=True) if dim is not None}
    if len(set(sizes.values())) > 1:
        came = ", ".join(f"{label.removeprefix(name + ': ')} has {size}" for label, size in sizes.items())
        raise ValueError(f"{name}: the batch sizes differ: {came}. Use in_dims=None for an input that the batch shares")
    names, lifted = lift(node)
    _check_lifted(name, names, lifted, moved[0])
    half = moved[0].dtype if moved[0].dtype in HALF else None
    if half is not None:
        moved = [x.float() for x in moved]
        lifted = tuple(t.float() if t.dtype == half else t for t in lifted)
    tensors = (*moved, *lifted)
    in_front = (*(None if dim is None else 0 for dim in dims), *([None] * len(lifted)))
    problem = Problem(node, tensors, in_front, next(iter(sizes.values())), len(inputs), names, depth=current_level())
    node.check_shapes(tuple(tuple(x.shape if d is None else x.shape[1:]) for x, d in zip(moved, dims, strict=True)))
    return problem, single, half


def _check_kinds(labels: list[str], inputs: tuple[Any, ...]) -> None:
    for label, x in zip(labels, inputs, strict=True):
        if not isinstance(x, Tensor):
            raise TypeError(f"{label} must be a tensor, got {type(x).__name__}; wrap it in torch.as_tensor, or store it on the node if it is a constant")
        if not x.is_floating_point():
            raise TypeError(
                f"{label} must have a floating dtype, got {x.dtype}; convert it (x.float()), or register it as a buffer if it is an index or a mask"
            )
        if x.dtype != inputs[0].dtype:
            raise TypeError(f"{label} has dtype {x.dtype}, input 0 has {inputs[0].dtype}; all inputs must have the same")
        if x.device != inputs[0].device:
            raise ValueError(f"{label} is on {x.device}, input 0 on {inputs[0].device}; all inputs must be on the same device")


def _check_lifted(name: str, names: tuple[tuple[str, ...], ...], lifted: tuple[Tensor, ...], like: Tensor) -> None:
    for (label, *_), tensor in zip(names, lifted, strict=True):
        if tensor.device != like.device:
            raise ValueError(
                f"{name}: parameter or buffer {label} is on {tensor.device}, the inputs on {like.device}; move the node with .to({str(like.device)!r})"
            )
        if tensor.is_floating_point() and tensor.dtype != like.dtype:
            raise TypeError(f"{name}: parameter or buffer {label} is {tensor.dtype}, the inputs are {like.dtype}; convert the node with .to({like.dtype})")


def to_front(label: str, x: Tensor, dim: object) -> Tensor:
    """x with this dimension first; None: as it is."""
    if dim is None:
        return x
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise TypeError(f"{label}: in_dims must be an int or None, got {dim!r}")
    if x.ndim == 0:
        raise ValueError(f"{label} is a scalar tensor and has no batch dimension; pass in_dims=None for it if the batch shares it")
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"{label} has shape {tuple(x.shape)}; in_dims asks for dimension {dim}")
    return x.movedim(dim, 0) if dim not in (0, -x.ndim) else x


def read_init(problem: Problem, init: Any, single: bool) -> tuple[tuple[Tensor, ...], Layout | None]:
    """A warm start as flat (y, ν, μ) and the layout that it shows."""
    if init is None:
        return (), None
    y = init.y if isinstance(init, Solution) else init
    parts = tuple(y) if isinstance(y, tuple | list) else (y,)
    if not parts:
        raise ValueError(f"{problem.name}: init must be a Solution, a tensor or a tuple of tensors, got an empty tuple")
    if not all(isinstance(part, Tensor) for part in parts):
        raise TypeError(f"{problem.name}: init must be a Solution, a tensor or a tuple of tensors, got {type(init).__name__}")
    if single:
        parts = tuple(part.unsqueeze(0) for part in parts)
    for part in parts:
        if part.ndim == 0 or part.shape[0] != problem.batch:
            raise ValueError(f"{problem.name}: init must have the leading batch dimension {problem.batch}, got shape {tuple(part.shape)}")
        if part.dtype != problem.like.dtype and part.dtype not in HALF:
            raise TypeError(f"{problem.name}: init must have the dtype of the inputs, {problem.like.dtype}, got {part.dtype}; convert it")
    layout = Layout(tuple(tuple(part.shape[1:]) for part in parts), isinstance(y, tuple | list))
    _check_start(problem, parts, layout)
    flat = layout.pack(parts).to(problem.like)
    _, h, g = problem.with_layout(layout).evaluate(flat.detach())
    multipliers: list[Tensor] = []
    for field, like in (("equality_multipliers", h), ("inequality_multipliers", g)):
        value = getattr(init, field, None)
        value = torch.zeros_like(like) if value is None else value.unsqueeze(0) if single else value
        if value.shape != like.shape:
            raise ValueError(f"{problem.name}: init.{field} has shape {tuple(value.shape)}, expected {tuple(like.shape)}")
        multipliers.append(value.to(like))
    return (flat, *multipliers), layout


def _check_start(problem: Problem, parts: tuple[Tensor, ...], layout: Layout) -> None:
    """A warm start has the shape of the node's own start, where it has one."""
    if getattr(problem.node.initial_guess, "__func__", None) is DeclarativeNode.initial_guess:
        return
    expected = read_layout(problem, "initial_guess", problem.call_batched("initial_guess"))
    if layout != expected:
        shapes = [(problem.batch, *shape) for shape in expected.shapes]
        wanted = f"a tuple of shapes {shapes}" if expected.is_tuple else f"a tensor {shapes[0]}"
        came = f"a tuple of shapes {[tuple(p.shape) for p in parts]}" if layout.is_tuple else f"a tensor {tuple(parts[0].shape)}"
        raise ValueError(f"{problem.name}: init must be shaped like initial_guess, {wanted}, got {came}")


def _present(point: Point, layout: Layout, report: DerivativeReport, single: bool, dtype: torch.dtype | None) -> Solution:
    def shown(tensor: Tensor) -> Tensor:
        tensor = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        return tensor[0] if single else tensor

    names = ("equality", "inequality", "active", "weakly_active", "status", "iterations", "stationarity", "violation")
    return Solution(layout.unpack(shown(point.y)), *(shown(getattr(point, name)) for name in names), report=report)
