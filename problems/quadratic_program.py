"""A strictly convex quadratic program whose matrices are shared by the batch.

    min ½ yᵀQy + cᵀy   s.t.   Ay = b,   Gy ≤ d                   y ∈ R⁴, one equality, three inequalities

Q, A and G are the same for every sample (in_dims None); c, b and d are each sample's own. For the right active set 𝒜 the
solution is that of one linear system,

    [Q  Aᵀ G_𝒜ᵀ] [y  ]   [−c ]
    [A          ] [ν  ] = [ b ]
    [G_𝒜        ] [μ_𝒜]   [d_𝒜]

and with three inequalities there are eight sets to try: the right one has μ_𝒜 ≥ 0 and Gy ≤ d.

Source: Amos & Kolter, "OptNet: Differentiable optimization as a layer in neural networks", ICML 2017.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from declarative import DeclarativeNode
from problems.base import Inputs, Problem, cast, normal, uniform

SIZE, EQUALITIES, INEQUALITIES = 4, 1, 3


class QuadraticProgram(DeclarativeNode):
    """Q (m, m), c (m,), A (p, m), b (p,), G (q, m), d (q,) -> y (m,)."""

    def objective(self, Q: Tensor, c: Tensor, A: Tensor, b: Tensor, G: Tensor, d: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return 0.5 * y @ Q @ y + c @ y

    def equality_constraints(self, Q: Tensor, c: Tensor, A: Tensor, b: Tensor, G: Tensor, d: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return A @ y - b

    def inequality_constraints(self, Q: Tensor, c: Tensor, A: Tensor, b: Tensor, G: Tensor, d: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return G @ y - d

    def initial_guess(self, Q: Tensor, c: Tensor, A: Tensor, b: Tensor, G: Tensor, d: Tensor) -> Tensor:  # noqa: ARG002
        return torch.zeros_like(c)


def sample(batch: int, generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    """Drawn from the answer: y, ν and μ first, with none, one or two inequalities active by turns; then c, b and d."""
    root = normal(generator, SIZE, SIZE)
    Q = root @ root.T / SIZE + torch.eye(SIZE, dtype=torch.float64)
    A, G = normal(generator, EQUALITIES, SIZE), normal(generator, INEQUALITIES, SIZE)
    y, nu = normal(generator, batch, SIZE), normal(generator, batch, EQUALITIES)
    place = (torch.arange(INEQUALITIES) + torch.arange(batch).unsqueeze(1)) % INEQUALITIES
    active = place < (torch.arange(batch) % INEQUALITIES).unsqueeze(1)
    amount = uniform(generator, 0.5, 1.5, batch, INEQUALITIES)
    c = -(y @ Q + nu @ A + torch.where(active, amount, 0.0) @ G)
    return cast(dtype, Q, c, A, y @ A.T, G, y @ G.T + torch.where(active, 0.0, amount))


def closed_form(Q: Tensor, c: Tensor, A: Tensor, b: Tensor, G: Tensor, d: Tensor) -> Tensor:
    """By trying every active set."""
    Q = 0.5 * (Q + Q.mT)  # all that yᵀQy sees
    m, p, q = Q.shape[0], A.shape[0], G.shape[0]
    allowed = 1e3 * torch.finfo(c.dtype).eps
    found = torch.full_like(c, torch.nan)
    for chosen in product((False, True), repeat=q):
        rows = torch.tensor(chosen)
        border = torch.cat([A, G[rows]])
        kkt = torch.cat([torch.cat([Q, border.mT], 1), torch.cat([border, border.new_zeros(len(border), len(border))], 1)])
        z = torch.linalg.solve(kkt, torch.cat([-c, b, d[:, rows]], 1).mT).mT
        y, mu = z[:, :m], z[:, m + p :]
        optimal = (mu >= -allowed).all(1) & (y @ G.mT <= d + allowed).all(1)
        found = torch.where(optimal.unsqueeze(1), y, found)
    return found


PROBLEM = Problem(
    "quadratic_program",
    QuadraticProgram,
    sample,
    (None, 0, None, 0, None, 0),
    closed_form,
    None,
    "six inputs, half of them shared by the batch; mixed constraints",
)
