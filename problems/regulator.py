"""Linear quadratic control: one plan of a regulator, without and with bounds on the controls.

    min ½ Σ_t x_{t+1}ᵀ diag(e^q) x_{t+1} + ½ Σ_t e^r u_t²   s.t.   x_{t+1} = A x_t + B u_t,  t = 0, 1            x_t ∈ R², u_t ∈ R, y = (x, u)

    regulator           as above; q and r are parameters of the node, so that the costs can be learned from plans
    regulator_bounded   with −1 ≤ u ≤ 1: one step of model predictive control, a piecewise linear function of x_0

Without bounds u_t = −K_t x_t, and Riccati's recursion runs backwards from P_T = Q: K = (R + BᵀPB)⁻¹BᵀPA, P ← Q + AᵀP(A − BK). With bounds and
strict complementarity, the same holds for what is left when the controls at a bound are put in: for two controls there are nine cases.

Source: Kalman, "Contributions to the theory of optimal control", Boletín de la Sociedad Matemática Mexicana 5, 1960; Amos, Jimenez, Sacks, Boots &
Kolter, "Differentiable MPC for end-to-end planning and control", NeurIPS 2018.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor, nn

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal, uniform

HORIZON, STATES = 2, 2
DYNAMICS, ACTUATOR = ((1.0, 0.6), (-0.2, 0.9)), (0.4, 1.0)
LOG_STATE_COST, LOG_CONTROL_COST, BOUND = (0.2, -0.3), -0.5, 1.0
Plan = tuple[Tensor, Tensor]


class Regulator(DeclarativeNode):
    """x₀ (n,), A (n, n), B (n,) -> (states x₁ … x_T (T, n), controls u₀ … u_{T−1} (T,))."""

    def __init__(self, horizon: int = HORIZON) -> None:
        super().__init__()
        self.horizon = horizon
        self.log_state_cost = nn.Parameter(torch.tensor(LOG_STATE_COST, dtype=torch.float64))
        self.log_control_cost = nn.Parameter(torch.tensor(LOG_CONTROL_COST, dtype=torch.float64))

    def objective(self, start: Tensor, A: Tensor, B: Tensor, y: Plan) -> Tensor:  # noqa: ARG002
        states, controls = y
        return 0.5 * (self.log_state_cost.exp() * states.square()).sum() + 0.5 * self.log_control_cost.exp() * controls.square().sum()

    def equality_constraints(self, start: Tensor, A: Tensor, B: Tensor, y: Plan) -> Tensor:
        states, controls = y
        before = torch.cat([start.unsqueeze(0), states[:-1]])
        return (states - before @ A.mT - controls.unsqueeze(1) * B).reshape(-1)

    def initial_guess(self, start: Tensor, A: Tensor, B: Tensor) -> Plan:  # noqa: ARG002
        return start.new_zeros(start.shape[0], self.horizon, start.shape[1]), start.new_zeros(start.shape[0], self.horizon)


class BoundedRegulator(Regulator):
    """The same, |u| ≤ 1."""

    def inequality_constraints(self, start: Tensor, A: Tensor, B: Tensor, y: Plan) -> Tensor:  # noqa: ARG002
        _, controls = y
        return torch.cat([controls - BOUND, -controls - BOUND])


def _system(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.tensor(DYNAMICS, dtype=dtype), torch.tensor(ACTUATOR, dtype=dtype)


def _costs(like: Tensor) -> tuple[Tensor, Tensor]:
    """Q (n, n) and R ()."""
    return torch.diag(torch.tensor(LOG_STATE_COST, dtype=like.dtype).exp()), torch.tensor(LOG_CONTROL_COST, dtype=like.dtype).exp()


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """One system, started anywhere."""
    return cast(dtype, normal(generator, batch, STATES), *_system(torch.float64))


def bounded_sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Drawn from the answer: controls clearly on or off a bound, with clear multipliers. H u + F x₀ + μ = 0 then says where the plan starts."""
    A, B = _system(torch.float64)
    H, F = condensed(A, B)
    at_bound = torch.arange(HORIZON) < (torch.arange(batch) % (HORIZON + 1)).unsqueeze(1)
    sign = normal(generator, batch, HORIZON).sign()
    u = torch.where(at_bound, sign * BOUND, uniform(generator, -0.8, 0.8, batch, HORIZON))
    mu = torch.where(at_bound, sign * uniform(generator, 0.3, 1.0, batch, HORIZON), 0.0)
    return cast(dtype, torch.linalg.solve(F, -(u @ H + mu).T).T, A, B)


def roll_out(start: Tensor, A: Tensor, B: Tensor, controls: Tensor) -> Tensor:
    """The states (b, T, n) that controls (b, T) lead to from (b, n)."""
    states = [start]
    for control in controls.unbind(1):
        states.append(states[-1] @ A.mT + control.unsqueeze(1) * B)
    return torch.stack(states[1:], 1)


def closed_form(start: Tensor, A: Tensor, B: Tensor) -> Plan:
    """Riccati's recursion, backwards, then the plan, forwards."""
    Q, R = _costs(A)
    gains, P = [], Q
    for _ in range(HORIZON):
        gains.append(B @ P @ A / (R + B @ P @ B))
        P = Q + A.mT @ P @ (A - torch.outer(B, gains[-1]))
    state, controls = start, []
    for gain in gains[::-1]:
        controls.append(-state @ gain)
        state = state @ A.mT + controls[-1].unsqueeze(1) * B
    plan = torch.stack(controls, 1)
    return roll_out(start, A, B, plan), plan


def condensed(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """H (T, T) and F (T, n) of the cost ½uᵀHu + uᵀF x₀ + … that is left when the states are put in."""
    Q, R = _costs(A)
    n = A.shape[0]
    effect = roll_out(A.new_zeros(HORIZON, n), A, B, torch.eye(HORIZON, dtype=A.dtype))  # of each control, (T, T, n)
    free = roll_out(torch.eye(n, dtype=A.dtype), A, B, A.new_zeros(n, HORIZON))  # of each number of the start, (n, T, n)
    return torch.einsum("itn,nm,jtm->ij", effect, Q, effect) + R * torch.eye(HORIZON, dtype=A.dtype), torch.einsum("itn,nm,jtm->ij", effect, Q, free)


def bounded_closed_form(start: Tensor, A: Tensor, B: Tensor) -> Plan:
    """By trying, for every control, whether it is at a bound."""
    H, F = condensed(A, B)
    linear = start @ F.mT
    found = torch.full_like(linear, torch.nan)
    for sides in product((-1.0, 0.0, 1.0), repeat=HORIZON):
        side = torch.tensor(sides, dtype=A.dtype)
        free = (side == 0).to(A.dtype)
        matrix = free.unsqueeze(1) * H + torch.diag(1 - free)
        u = torch.linalg.solve(matrix, (-free * linear + side * BOUND).T).T
        mu = -(u @ H + linear)
        optimal = torch.where(side == 0, u.abs() < BOUND, mu * side > 0).all(1, keepdim=True)
        found = torch.where(optimal, u, found)
    return roll_out(start, A, B, found), found


PROBLEMS = (
    Problem("regulator", Regulator, sample, (0, None, None), closed_form, None, "states and controls as two tensors; costs that are learned; shared dynamics"),
    Problem("regulator_bounded", BoundedRegulator, bounded_sample, (0, None, None), bounded_closed_form, None, "the same with bounds: mixed constraints"),
)
