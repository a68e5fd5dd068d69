"""What the gallery of worked problems claims, against other libraries and against formulas; tests/conformance holds it to the mathematics."""

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from scipy.spatial.transform import Rotation
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression as SklearnLogistic
from sklearn.svm import SVC

from declarative import certify
from problems import (
    analytic_centre,
    attention,
    cosine,
    equilibrium,
    geometric_median,
    isotonic,
    lens,
    logistic,
    moments,
    perspective_n_point,
    regulator,
    several_equations,
    support_vector,
    total_variation,
    tridiagonal,
)
from tests.conformance.cases import close, finite_difference, gradients, loss, weights

pytestmark = pytest.mark.usefixtures("shapes_unchecked")

F64 = torch.float64


def instances(sample, batch=4, seed=3):
    return sample(batch, torch.Generator().manual_seed(seed), F64)


def own_jacobian(function, x):
    """(b, *y_shape, *x_shape): each sample's block of jacrev over the batch."""
    full = torch.func.jacrev(function)(x)
    return torch.stack([full[i].select(full.ndim - 1 - x.ndim, i) for i in range(len(x))])


def polished(node):
    """Newton steps on the optimality conditions after the solver: for comparisons to many digits."""
    node.polish = 3
    return node


# Total variation.


def test_total_variation_averages_over_fused_segments():
    """The Jacobian is the average over each segment, by both statements; the identity, which a tutorial elsewhere claims, is far off."""
    x, strength = instances(total_variation.sample, batch=6)
    primal, dual = total_variation.TotalVariation(polish=3), total_variation.TotalVariationDual(polish=3)
    expected = total_variation.signal_jacobian(x, strength)
    close(own_jacobian(lambda x: primal(x, strength, in_dims=(0, None))[0], x), expected, 1e-9)
    close(own_jacobian(lambda x: total_variation.denoised(x, dual(x, strength, in_dims=(0, None))), x), expected, 1e-9)
    distance = torch.linalg.matrix_norm(expected - torch.eye(x.shape[1], dtype=F64))
    segments = 1 + (total_variation.signal(x, strength).diff().abs() > 1e-9).sum(1)
    close(distance.square(), (x.shape[1] - segments).to(F64), 1e-12)  # I − averages projects onto what averaging removes
    assert bool((distance[segments <= 3] > 1).all())
    assert int((segments <= 3).sum()) >= 3


def test_total_variation_by_finite_differences():
    """In the signal, entry by entry, and in λ."""
    x, strength = instances(total_variation.sample)
    node = total_variation.TotalVariation(polish=3)

    def signal(x, strength):
        return node(x, strength, in_dims=(0, None))[0]

    J, slope = own_jacobian(lambda x: signal(x, strength), x), torch.func.jacfwd(lambda s: signal(x, s))(strength)
    for i, direction in enumerate(torch.eye(x.shape[1], dtype=F64)):
        close(J[..., i], finite_difference(signal, (x, strength), 0, direction.expand_as(x)), 1e-8)
    close(slope, finite_difference(signal, (x, strength), 1, torch.ones((), dtype=F64)), 1e-8)
    assert float(slope.abs().max()) > 0.1


@pytest.mark.parametrize("strength", [0.1, 0.5, 2.0, 50.0])
def test_taut_string(strength):
    """The exact algorithm of the closed form, on long signals, against a bounded least squares solver on the dual."""
    for seed in range(5):
        x = np.random.default_rng(seed).standard_normal(30)
        D = np.diff(np.eye(30), axis=0)
        z = scipy.optimize.lsq_linear(D.T, x, (-strength, strength), method="bvls", tol=1e-14).x
        y = total_variation.signal(torch.as_tensor(x)[None], torch.tensor(strength, dtype=F64))[0]
        close(y, torch.as_tensor(x - D.T @ z), 1e-8)


# Polyhedra and sequences.


def test_analytic_centre_in_the_matrix():
    """Every entry of A against finite differences, and against the formula; without its second term, the formula is another."""
    A, b = instances(analytic_centre.sample)
    node = analytic_centre.AnalyticCentre(polish=3)
    J, known = own_jacobian(lambda A: node(A, b), A), analytic_centre.jacobian(A, b)
    close(J, known, 1e-9)
    entries = torch.eye(A[0].numel(), dtype=F64).reshape(-1, 1, *A.shape[1:])  # one instance for each, so that all are solved together
    copies = [z.expand(len(entries), *z.shape).flatten(0, 1) for z in (A, b)]
    moved = finite_difference(node, copies, 0, entries.expand(-1, *A.shape).flatten(0, 1)).reshape(len(entries), len(A), -1)
    close(J.flatten(2).movedim(2, 0), moved, 1e-7)
    y = node(A, b)
    d = 1 / (b - (A @ y.unsqueeze(2)).squeeze(2))
    inverse = torch.linalg.inv(A.mT @ (d.square().unsqueeze(2) * A))
    assert float((J + torch.einsum("bjl,bk->bjkl", inverse, d)).abs().max()) > 1e-2


def test_analytic_centre_balances_the_sides():
    A, b = instances(analytic_centre.sample)
    y = analytic_centre.AnalyticCentre()(A, b)
    slack = b - (A @ y.unsqueeze(2)).squeeze(2)
    assert bool((slack > 0).all())
    close((A / slack.unsqueeze(2)).sum(1), torch.zeros_like(y), 1e-9)


def test_isotonic_against_scikit_learn():
    rng = np.random.default_rng(0)
    for _ in range(3):
        x, w = rng.standard_normal(25) + 0.05 * np.arange(25), rng.uniform(0.5, 2, 25)
        expected = torch.as_tensor(IsotonicRegression().fit_transform(np.arange(25), x, sample_weight=w))
        x, w = torch.as_tensor(x), torch.as_tensor(w)
        close(isotonic.WeightedIsotonic(polish=3)(x, w, in_dims=None), expected, 1e-9)
        close(isotonic.weighted_closed_form(x[None], w)[0], expected, 1e-12)


def test_isotonic_jacobian_averages_over_blocks():
    x, w = instances(isotonic.weighted_sample, batch=5)
    node = isotonic.WeightedIsotonic(polish=3)
    J = own_jacobian(lambda x: node(x, w, in_dims=(0, None)), x)
    close(J.sum(2), torch.ones_like(x), 1e-9)  # averages
    close(J @ J, J, 1e-9)  # once averaged is averaged
    close(J.diagonal(dim1=1, dim2=2).sum(1).round(), (1 + (node(x, w, in_dims=(0, None)).diff() > 1e-9).sum(1)).to(F64), 1e-9)  # the rank: blocks


def test_tridiagonal_gradients():
    """x̄ = T⁻¹v, ā = −x̄y, c̄ = −(x̄₊y + x̄y₊)."""
    x, a, c = instances(tridiagonal.sample)
    node = tridiagonal.Tridiagonal()
    y, v = node(x, a, c), weights(x.shape)
    found = gradients(lambda *z: (v * node(*z)).sum(), (x, a, c))
    adjoint = torch.linalg.solve(tridiagonal.matrix(a, c), v)
    close(found, (adjoint, -adjoint * y, -adjoint[:, 1:] * y[:, :-1] - adjoint[:, :-1] * y[:, 1:]), 1e-10)


# Learning machines.


def test_support_vector_machine_against_scikit_learn():
    a, t, strength = instances(support_vector.sample)
    w, s, slack = support_vector.SupportVectorMachine(polish=3)(a, t, strength, in_dims=(0, None, None))
    for i in range(len(a)):
        machine = SVC(C=float(strength), kernel="linear", tol=1e-10).fit(a[i].numpy(), t.numpy())
        close(w[i], torch.tensor(machine.coef_[0]), 1e-6)
        close(s[i], torch.tensor(machine.intercept_[0]), 1e-6)
        score = torch.tensor(machine.decision_function(a[i].numpy()))
        close(slack[i], (1 - t * score).clamp_min(0), 1e-6)


def test_support_vectors_alone_get_gradients():
    """A point that is clearly right does not move the machine; its multiplier is zero."""
    a, t, strength = instances(support_vector.sample)
    node = support_vector.SupportVectorMachine(polish=3)
    s = node.solution(a, t, strength, in_dims=(0, None, None))
    alpha = s.inequality_multipliers[:, : a.shape[1]]
    close(alpha @ t, torch.zeros(len(a), dtype=F64), 1e-10)
    close((alpha * t).unsqueeze(1) @ a, s.y[0].unsqueeze(1), 1e-10)
    (g,) = gradients(lambda a: sum(loss(part) for part in node(a, t, strength, in_dims=(0, None, None))[:2]), (a,))
    idle = alpha < 1e-9
    assert idle.sum(1).tolist() == [1] * len(a)
    close(g[idle], torch.zeros_like(g[idle]), 1e-12)
    assert float(g[~idle].abs().amax(1).min()) > 1e-3


def test_logistic_regression_against_scikit_learn():
    t, A = instances(logistic.sample)
    t[:, :2] = torch.tensor([0.0, 1.0])  # both classes in every sample
    y = logistic.LogisticRegression()(t, A)
    penalty = float(np.exp(logistic.LOG_PENALTY))
    for i in range(len(A)):
        fitted = SklearnLogistic(C=1 / penalty, fit_intercept=False, tol=1e-12, solver="newton-cholesky").fit(A[i].numpy(), t[i].numpy())
        close(y[i].detach(), torch.tensor(fitted.coef_[0]), 1e-8)


def test_logistic_penalty():
    """∂y/∂ρ = −e^ρ H⁻¹y."""
    t, A = instances(logistic.sample)
    node = logistic.LogisticRegression()
    y, v = node(t, A), weights((len(A), A.shape[2]))
    (v * y).sum().backward()
    y, penalty = y.detach(), node.log_penalty.detach().exp()
    p = (A @ y.unsqueeze(2)).sigmoid()
    H = A.mT @ (p * (1 - p) * A) + penalty * torch.eye(A.shape[2], dtype=F64)
    close(node.log_penalty.grad, -penalty * (v * torch.linalg.solve(H, y)).sum(), 1e-9)


def test_geometric_median_against_scipy():
    x, w = instances(geometric_median.sample)
    y = geometric_median.GeometricMedian()(x, w)
    for i in range(len(x)):
        points, masses = x[i].numpy(), w[i].numpy()

        def total(y, points=points, masses=masses):
            return (masses * np.linalg.norm(y - points, axis=1)).sum()

        close(y[i], torch.as_tensor(scipy.optimize.minimize(total, points.mean(0), method="BFGS", options={"gtol": 1e-10}).x), 1e-5)


def test_geometric_median_withstands():
    """A point that runs off pulls no harder: its Jacobian falls like 1/distance, whereas a mean's stays."""
    x, w = instances(geometric_median.sample)
    far = x.clone()
    far[:, 0] = x[:, 0] + 1e3 * torch.nn.functional.normalize(x[:, 0] - x.mean(1), dim=1)
    node = geometric_median.GeometricMedian(polish=3)
    assert float((node(far, w) - node(x, w)).abs().max()) < 1.0
    assert float(own_jacobian(lambda x: node(x, w), far)[:, :, 0].abs().max()) < 5e-3


def test_pose_is_recovered():
    """Exact images: the pose they were made with, and weights that do not matter."""
    generator = torch.Generator().manual_seed(3)
    truth, X = perspective_n_point.poses(5, generator), perspective_n_point.model()
    p = torch.func.vmap(perspective_n_point.project, in_dims=(0, None))(truth, X)
    w = torch.rand(len(X), generator=generator, dtype=F64) + 0.5
    node = perspective_n_point.PerspectiveNPoint()
    close(node(p, X, w, in_dims=(0, None, None)), truth, 1e-7)
    for r in truth[:, :3]:
        close(perspective_n_point.rotated(X, r), torch.tensor(Rotation.from_rotvec(r.numpy()).apply(X.numpy())), 1e-12)
    (g,) = gradients(lambda w: loss(node(p, X, w, in_dims=(0, None, None))), (w,))
    assert float(g.abs().max()) < 1e-6


def test_pose_by_finite_differences():
    """Every image, point and weight, entry by entry."""
    inputs = instances(perspective_n_point.sample, batch=1)
    node = polished(perspective_n_point.PerspectiveNPoint())
    found = gradients(lambda *z: loss(node(*z, in_dims=(0, None, None))[0]), inputs)
    p, X, w = inputs[0][0], *inputs[1:]
    for k, (x, g) in enumerate(zip((p, X, w), found, strict=True)):
        entries = torch.eye(x.numel(), dtype=F64).reshape(-1, *x.shape)  # one instance for each, so that all are solved together
        copies = [z.expand(len(entries), *z.shape) for z in (p, X, w)]
        expected = finite_difference(lambda *z: torch.stack([loss(row) for row in node(*z)]), copies, k, entries)
        close(g.reshape(-1), expected, 1e-7)
        assert float(g.abs().max()) > 1e-3


# Networks' layers.


def test_attention_with_values():
    """What a transformer computes from the weights is that of torch, and so are the gradients."""
    Q, K = instances(attention.sample)
    V = weights((len(Q), K.shape[1], 2))
    node = attention.Attention(polish=3)
    by_torch = torch.nn.functional.scaled_dot_product_attention
    close(node(Q, K) @ V, by_torch(Q, K, V), 1e-10)
    mine, theirs = gradients(lambda Q, K: loss(node(Q, K) @ V), (Q, K)), gradients(lambda Q, K: loss(by_torch(Q, K, V)), (Q, K))
    close(mine, theirs, 1e-9)


def test_coupled_attention_is_a_fixed_point():
    """Y = softmax(S − e^κ 1cᵀ) with c what all rows give; keys in demand are used less evenly than without the price."""
    Q, K = instances(attention.sample)
    node = attention.CoupledAttention()
    Y = node(Q, K).detach()
    demand = Y.sum(1, keepdim=True)
    close(Y, (attention.scores(Q, K) - node.log_price.exp() * demand).softmax(2).detach(), 1e-9)
    plain = attention.closed_form(Q, K).sum(1)
    assert bool((demand.squeeze(1).var(1) < plain.var(1)).all())


@pytest.mark.parametrize("kind", [equilibrium.Equilibrium, equilibrium.EquilibriumEnergy])
def test_equilibrium_is_an_endless_network(kind):
    """Value and gradients, of input and parameters, are those of three hundred layers with shared weights."""
    (x,) = instances(equilibrium.sample)
    node = kind()
    leaves = (x, *(p.detach() for p in (node.W, node.U, node.b)))

    def value(x, W, U, b):
        return loss(torch.func.functional_call(node, {"W": W, "U": U, "b": b}, (x,)))

    close(node(x).detach(), equilibrium.unrolled(*leaves, steps=300), 1e-9)
    close(gradients(value, leaves), gradients(lambda *z: loss(equilibrium.unrolled(*z, steps=300)), leaves), 1e-8)


# Control.


def test_regulator_against_the_infinite_horizon():
    """With forty steps left, the first control is that of the algebraic Riccati equation."""
    (start, A, B), horizon = instances(regulator.sample), 40
    states, controls = regulator.Regulator(horizon)(start, A, B, in_dims=(0, None, None))
    Q, R = np.diag(np.exp(regulator.LOG_STATE_COST)), np.array([[np.exp(regulator.LOG_CONTROL_COST)]])
    column = B.numpy()[:, None]
    P = scipy.linalg.solve_discrete_are(A.numpy(), column, Q, R)
    gain = np.linalg.solve(R + column.T @ P @ column, column.T @ P @ A.numpy())
    close(controls[:, 0].detach(), -start @ torch.as_tensor(gain[0]), 1e-8)
    close(states.detach(), regulator.roll_out(start, A, B, controls.detach()), 1e-9)
    assert float(states[:, -1].detach().abs().max()) < 1e-3


def test_regulator_learns_its_costs():
    """From the controls of another regulator: the ratio of costs is found, by gradients through the plan."""
    start, A, B = instances(regulator.sample, batch=8)
    expert, node = regulator.Regulator(), regulator.Regulator()
    with torch.no_grad():
        expert.log_state_cost.copy_(torch.tensor([1.0, -0.8]))
    target = expert(start, A, B, in_dims=(0, None, None))[1].detach()
    node.log_control_cost.requires_grad_(False)  # only ratios matter
    optimiser = torch.optim.LBFGS(node.parameters(), max_iter=60, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        value = (node(start, A, B, in_dims=(0, None, None))[1] - target).square().mean()
        value.backward()
        return value

    optimiser.step(closure)
    close(node.log_state_cost.detach(), expert.log_state_cost.detach(), 1e-3)


def test_bounded_regulator_against_scipy():
    start, A, B = instances(regulator.bounded_sample, batch=6)
    node = polished(regulator.BoundedRegulator())
    controls = node(start, A, B, in_dims=(0, None, None))[1].detach()
    H, F = (t.numpy() for t in regulator.condensed(A, B))
    root = np.linalg.cholesky(H).T
    at_bound = []
    for x, u in zip(start.numpy(), controls, strict=True):
        expected = scipy.optimize.lsq_linear(root, -np.linalg.solve(root.T, F @ x), (-regulator.BOUND, regulator.BOUND), method="bvls", tol=1e-14).x
        close(u, torch.as_tensor(expected), 1e-8)
        at_bound.append(int((u.abs() > regulator.BOUND - 1e-9).sum()))
    assert set(at_bound) == {0, 1, 2}


# Several equations, singular H, discs that touch.


def test_moments_by_tilting():
    """The moments are as asked for, and log(y/x) is a quadratic polynomial."""
    x, m = instances(moments.sample)
    y = moments.MomentMatching()(x, m)
    close(y @ moments.statistics(y).T, m, 1e-10)
    close((y / x).log().diff(n=3), torch.zeros(len(x), x.shape[1] - 3, dtype=F64), 1e-8)


def test_curvature_of_constraint_and_objective():
    """1 + 2ν = √(cᵀMc) on the ellipse."""
    c, Q, a = instances(several_equations.ellipsoid_sample)
    s = several_equations.Ellipsoid(polish=3).solution(c, Q, a, in_dims=(0, None, 0))
    close(1 + 2 * s.equality_multipliers[:, 0], -(c * s.y).sum(1), 1e-9)


def test_cosine_distance_has_a_singular_hessian():
    """H y = 0 at the solution, and the derivative exists all the same."""
    (x,) = instances(cosine.sample)
    node = cosine.CosineDistance()
    s = node.solution(x)
    close(s.equality_multipliers, torch.zeros_like(s.equality_multipliers), 1e-9)
    for i in range(len(x)):
        H = torch.func.hessian(lambda y, i=i: node.objective(x[i], y))(s.y[i])
        assert float(torch.linalg.eigvalsh(H).abs().min()) < 1e-9
    close(own_jacobian(node, x), cosine.jacobian(x), 1e-8)


def test_discs_that_touch_are_not_regular():
    """ρ = ‖p‖: one feasible point, and there the constraints' gradients are parallel. ρ a little larger is regular."""
    x = torch.tensor([[0.4, 0.3], [-0.2, 0.8]], dtype=F64)
    node, point = lens.Lens(), torch.zeros(2, 2, dtype=F64)
    touching = certify(node, x, torch.tensor(0.5, dtype=F64), in_dims=(0, None), y=point)
    assert touching.regular.tolist() == [False, False]
    assert bool((touching.licq_margin < 1e-9).all())
    wider = certify(node, x, torch.tensor(0.6, dtype=F64), in_dims=(0, None))
    assert wider.regular.tolist() == [True, True]
