"""Differentiation through Sinkhorn's iterations: what the implicit derivative replaces, for comparison and teaching."""

from __future__ import annotations

import torch
from torch import Tensor

from declarative.layers.transport.plan import Call, balance
from declarative.layers.transport.statement import Found, Transport, soft_minimum
from declarative.transforms import reject_mapped_and_dual


def unrolled_plan(call: Call, cost: Tensor, rows: Tensor, columns: Tensor, gamma: Tensor) -> tuple[Tensor, ...]:
    """As `transport_plan`, by Sinkhorn's iterations in the log domain from φ = ψ = 0, each recorded by autograd.

    They stop when all samples have converged: the derivative is that of the last iterate.
    """
    reject_mapped_and_dual("gradient='unrolled'", cost, rows, columns, gamma)
    call.prepare(Transport(cost.detach(), rows.detach(), columns.detach(), gamma.detach()))
    r, c = balance(rows, columns)
    problem = Transport(cost.detach(), r.detach(), c.detach(), gamma.detach())
    phi, psi = torch.zeros_like(r), torch.zeros_like(c)
    done = torch.zeros_like(gamma, dtype=torch.bool)
    iterations = done.long()
    while not bool(done.all()) and int(iterations.amax()) < call.max_iterations:
        phi = soft_minimum(cost, c, psi, gamma)
        psi = soft_minimum(cost.mT, r, phi, gamma)
        iterations = iterations + (~done)
        with torch.no_grad():
            done = problem.marginal_error(problem.plan(phi.detach(), psi.detach())) <= call.tolerance
    exponents = torch.where(torch.isinf(cost), -torch.inf, (phi.unsqueeze(2) + psi.unsqueeze(1) - cost) * gamma[:, None, None])
    plan = exponents.exp() * r.unsqueeze(2) * c.unsqueeze(1)
    with torch.no_grad():
        error = problem.marginal_error(plan)
    call.record.report.method = "Sinkhorn's iteration, unrolled"
    found = call.finish(Found(plan, phi, psi, error, iterations, error <= call.tolerance))
    return found.plan, phi, psi, error, iterations, found.converged
