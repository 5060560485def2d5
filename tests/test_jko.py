"""The JKO step: its gradients against back-propagation through time, its minimiser against the closed form."""

from __future__ import annotations

import functools

import pytest
import torch as th
from descent import jko_descent, minimise

from sb3_swfp.bounds import bound_action, bound_log_det, unbound_action
from sb3_swfp.flows import FlowCascade
from sb3_swfp.jko import MEASURE_EVERY, PLAN_PARTICLES, JKOStep, drift_along_noise, entropy_stride
from sb3_swfp.transport import JKOStepSize

pytestmark = pytest.mark.usefixtures("double_precision")


def cascades(dim: int, n_blocks: int = 5, euler_steps: int = 1) -> tuple[FlowCascade, FlowCascade]:
    """Two cascades with the same random weights, the second one frozen."""
    cascade, reference = (FlowCascade(3, dim, n_blocks, [16, 16], euler_steps) for _ in range(2))
    for parameter in cascade.parameters():
        parameter.data = 0.3 * th.randn_like(parameter)
    reference.load_state_dict(cascade.state_dict())
    reference.requires_grad_(False)
    return cascade, reference


def energy_q(action: th.Tensor) -> th.Tensor:
    return 2.0 * action.sin().sum(dim=-1)


def quadratic_loss(jko: JKOStep, mean: th.Tensor, variance: float, ent_coef: float) -> th.Tensor:
    """The JKO loss of Q = -|x - mean|^2 / (2 variance), which acts on the particles, not on the bounded actions."""
    features = th.ones(512, 1)
    stale = jko.stale_particles(features, energy_q, 0.0)
    return jko.parallel_loss(features, stale._replace(drift=-(stale.outputs - mean) / variance), ent_coef)


def gradients(loss: th.Tensor, cascade: FlowCascade) -> list[th.Tensor]:
    found = th.autograd.grad(loss, list(cascade.parameters()), allow_unused=True)
    return [th.zeros_like(p) if g is None else g for p, g in zip(cascade.parameters(), found, strict=True)]


@pytest.mark.parametrize("ent_coef", [0.0, 0.3])
@pytest.mark.parametrize("euler_steps", [1, 2])
@pytest.mark.parametrize("dim", [1, 2, 4])
def test_parallel_gradient_is_that_of_back_propagation_through_time(
    dim: int, euler_steps: int, ent_coef: float
) -> None:
    cascade, reference = cascades(dim, euler_steps=euler_steps)
    features, x_0 = th.randn(7, 3), th.randn(7, dim)
    path = cascade.integrate(features, x_0).particles
    every = entropy_stride(dim)
    _, log_dets = cascade.apply_blocks_with_log_dets(features, th.stack(path[:-1]), every)
    entropy = log_dets.sum(dim=0).mean() + bound_log_det(path[-1]).mean()  # and that of the noise, which is constant
    energy = -energy_q(bound_action(path[-1])).mean() - ent_coef * entropy
    jko = JKOStep(cascade, reference, JKOStepSize(0.5))
    stale = jko.stale_particles(features, energy_q, ent_coef, noise=x_0)
    loss = jko.parallel_loss(features, stale, ent_coef)
    for expected, found in zip(gradients(energy, cascade), gradients(loss, cascade), strict=True):
        th.testing.assert_close(found, jko.block_step_size * expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("ent_coef", [0.0, 0.3])
@pytest.mark.parametrize("dim", [2, 4])
def test_sequential_gradient_is_the_block_s_share_of_it(dim: int, ent_coef: float) -> None:
    cascade, reference = cascades(dim)
    features, x_0 = th.randn(7, 3), th.randn(7, dim)
    sweep = cascade.integrate(features, x_0)
    _, log_dets = cascade.apply_blocks_with_log_dets(features, th.stack(sweep.particles[:-1]), entropy_stride(dim))
    entropy = log_dets.sum(dim=0).mean() + bound_log_det(sweep.particles[-1]).mean()
    expected = gradients(-energy_q(bound_action(sweep.particles[-1])).mean() - ent_coef * entropy, cascade)
    jko = JKOStep(cascade, reference, JKOStepSize(0.5), block_training="sequential")
    for n in range(5):
        loss = jko.sequential_loss(n, features, x_0, sweep.particles[n].detach(), energy_q, ent_coef)
        for whole, part in zip(expected, gradients(loss, cascade), strict=True):
            share = jko.block_step_size * cascade.block_slice(whole, n)
            th.testing.assert_close(cascade.block_slice(part, n), share, rtol=1e-9, atol=1e-14)


def test_a_gaussian_moves_as_the_closed_form_says() -> None:
    """
    Quadratic energy, one block, identity at first: the minimiser is x + eta * lambda(x), with lambda = -(x - m) / s^2,
    so a Gaussian N(0, I) becomes N(eta m / s^2, (1 - eta / s^2)^2 I).
    """
    cascade, reference = FlowCascade(1, 2, 1, [32, 32]), FlowCascade(1, 2, 1, [32, 32])
    reference.load_state_dict(cascade.state_dict())
    reference.requires_grad_(False)
    mean, variance, eta = th.tensor([0.5, -1.0]), 4.0, 1.2
    jko = JKOStep(cascade, reference, JKOStepSize(eta))
    minimise(lambda: quadratic_loss(jko, mean, variance, 0.0), cascade, steps=800, lr=3e-3)
    with th.no_grad():
        moved = cascade.integrate(th.ones(20_000, 1), th.randn(20_000, 2)).particles[-1]
    th.testing.assert_close(moved.mean(dim=0), eta * mean / variance, rtol=0.0, atol=0.03)
    expected = (1.0 - eta / variance) ** 2 * th.eye(2)
    th.testing.assert_close(th.cov(moved.T), expected, rtol=0.0, atol=0.03)


def test_a_gaussian_moves_as_the_closed_form_with_entropy_says() -> None:
    """
    One dimension, one block, identity at first. With the map T(x) = a x + b on N(0, 1) the objective
    -eta E[lambda T] - eta alpha E[log T'] + E[(T - x)^2] / 2, lambda = -(x - m) / s^2, is least (Euler-Lagrange) where
    a^2 - (1 - eta / s^2) a - eta alpha = 0 and b = eta m / s^2.
    """
    cascade, reference = FlowCascade(1, 1, 1, [32, 32]), FlowCascade(1, 1, 1, [32, 32])
    reference.load_state_dict(cascade.state_dict())
    reference.requires_grad_(False)
    mean, variance, eta, ent_coef = 0.5, 2.0, 0.8, 0.7
    jko = JKOStep(cascade, reference, JKOStepSize(eta))
    minimise(lambda: quadratic_loss(jko, th.tensor(mean), variance, ent_coef), cascade, steps=800, lr=3e-3)
    with th.no_grad():
        moved = cascade.integrate(th.ones(50_000, 1), th.randn(50_000, 1)).particles[-1]
    shrink = 1.0 - eta / variance
    scale = (shrink + (shrink**2 + 4.0 * eta * ent_coef) ** 0.5) / 2.0
    assert moved.mean().item() == pytest.approx(eta * mean / variance, abs=0.03)
    assert moved.std().item() == pytest.approx(scale, abs=0.03)


@pytest.mark.parametrize("ent_coef", [0.0, 0.3])
@pytest.mark.parametrize("dim", [2, 4])
def test_the_confined_drift_is_the_gradient_s_share_in_the_direction_of_the_noise_s(dim: int, ent_coef: float) -> None:
    """J_n the Jacobian of blocks 1 to n, e the gradient, u_n = J_n J^T e: u_N <u_N, e> / |u_N|^2, others as far."""
    cascade, reference = cascades(dim)
    features, x_0 = th.randn(1, 3), th.randn(1, dim)  # one row, so that the entropy is all of this particle
    jko = JKOStep(cascade, reference, JKOStepSize(0.5), confined=True)
    drift = jko.stale_particles(features, energy_q, ent_coef, noise=x_0).drift

    def end(noise: th.Tensor) -> th.Tensor:
        return reference.integrate(features, noise).particles[-1]

    def objective(noise: th.Tensor) -> th.Tensor:
        log_det = th.linalg.slogdet(th.func.jacrev(lambda x: end(x)[0])(noise)[:, 0])[1]
        log_density = -0.5 * noise.square().sum() - log_det - bound_log_det(end(noise)).sum()
        return energy_q(bound_action(end(noise))).sum() - ent_coef * log_density

    of_noise = th.func.grad(objective)(x_0)[0]
    jacobians = th.func.jacrev(lambda x: th.stack(reference.integrate(features, x).particles[1:])[:, 0])(x_0)[:, :, 0]
    at_end = th.linalg.solve(jacobians[-1].T, of_noise)
    directions = jacobians @ of_noise
    length = directions[-1] @ at_end / directions[-1].norm()
    expected = length * directions / directions.norm(dim=-1, keepdim=True)
    th.testing.assert_close(drift[:, 0], expected, rtol=1e-8, atol=1e-12)


def test_at_the_boltzmann_density_nothing_drifts_when_confined() -> None:
    """The policy of an identity cascade is a Gaussian through the bound; with Q = alpha log of its density it stays."""
    cascade, reference = (FlowCascade(3, 2, 5, [16, 16]) for _ in range(2))
    reference.load_state_dict(cascade.state_dict())

    def q(action: th.Tensor) -> th.Tensor:
        x = unbound_action(action)
        return 0.3 * (-0.5 * x.square().sum(dim=-1) - bound_log_det(x))

    x_0 = 0.3 * th.randn(64, 2)  # not so near to the bounds that an action's preimage is cut
    jko = JKOStep(cascade, reference, JKOStepSize(0.5), confined=True)
    stale = jko.stale_particles(th.randn(64, 3), q, 0.3, noise=x_0)
    th.testing.assert_close(stale.drift, th.zeros(5, 64, 2), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("ent_coef", [0.0, 0.3])
@pytest.mark.parametrize("dim", [2, 4])
def test_confined_blocks_in_order_begin_as_all_at_once(dim: int, ent_coef: float) -> None:
    cascade, reference = cascades(dim)
    features, x_0 = th.randn(8, 3), th.randn(8, dim)
    jko = JKOStep(cascade, reference, JKOStepSize(0.5), confined=True)
    stale = jko.stale_particles(features, energy_q, ent_coef, scale=2.0, noise=x_0)
    expected = gradients(jko.parallel_loss(features, stale, ent_coef, scale=2.0), cascade)
    for n in range(5):
        loss = jko.sequential_loss(n, features, x_0, stale.inputs[n], energy_q, ent_coef, scale=2.0)
        found = gradients(loss, cascade)
        for whole, part in zip(expected, found, strict=True):
            th.testing.assert_close(cascade.block_slice(part, n), cascade.block_slice(whole, n), rtol=1e-9, atol=1e-14)


def test_a_thin_policy_stays_thin_when_confined() -> None:
    """
    Deviations 0.2 and 0.01, an energy with the same slope along both axes: the confined drift is along J J^T g, so its
    share across the policy is (0.01 / 0.2)^2 of that along it, where the gradient's is all of it.
    """
    scales, slope = th.tensor([0.2, 0.01]), th.tensor([1.0, 1.0])
    x_0 = th.randn(16, 2)
    drift = drift_along_noise(lambda x: [x, scales * x], x_0, (scales * slope).expand(16, 2))[1]
    th.testing.assert_close(drift[:, 1] / drift[:, 0], th.full((16,), 0.0025))
    # As far as the gradient goes in that direction, and no farther
    th.testing.assert_close(drift @ slope, drift.square().sum(dim=-1))
    assert not drift_along_noise(lambda x: [x, scales * x], x_0, th.zeros(16, 2)).any()  # a flat energy is no 0 / 0
    for shrunk in (1e-3, 1e-6):  # a flow that has all but folded: no farther than at a thousandth
        drift = drift_along_noise(lambda x, shrunk=shrunk: [shrunk * x], x_0, slope.expand(16, 2))  # type: ignore[misc]
        assert drift.norm(dim=-1).amax().item() <= 1e3 * slope.norm().item() * (1.0 + 1e-9)


def test_a_sequential_sweep_is_one_implicit_step_per_block() -> None:
    """
    Quadratic energy, three blocks, identity at first: block after block solves
    min (eta / N) |y - m|^2 / (2 s^2) + |y - x|^2 / 2, so x - m shrinks by 1 / (1 + eta / (N s^2)) three times.
    """
    cascade, reference = FlowCascade(1, 2, 3, [16, 16]), FlowCascade(1, 2, 3, [16, 16])
    reference.load_state_dict(cascade.state_dict())
    reference.requires_grad_(False)
    mean, variance, eta = th.tensor([0.2, -0.1]), 0.5, 1.5

    def q(action: th.Tensor) -> th.Tensor:
        return -(action - mean).square().sum(dim=-1) / (2.0 * variance)

    jko = JKOStep(cascade, reference, JKOStepSize(eta), block_training="sequential")
    features, x_0 = th.ones(256, 1), 0.15 * th.randn(256, 2)  # so near to 0 that the bound is the identity
    x, energies = x_0, [-q(x_0).mean()]
    for n in range(3):
        before = [cascade.block_slice(p.detach().clone(), m) for m in range(3) if m != n for p in cascade.parameters()]
        minimise(functools.partial(jko.sequential_loss, n, features, x_0, x, q, 0.0), cascade, steps=400, lr=1e-2)
        after = [cascade.block_slice(p.detach(), m) for m in range(3) if m != n for p in cascade.parameters()]
        assert all(th.equal(a, b) for a, b in zip(before, after, strict=True))  # no other block moved
        with th.no_grad():
            x = cascade.apply_block(n, features, x)
        energies.append(-q(x).mean())
    shrink = (1.0 + eta / (3 * variance)) ** -3
    th.testing.assert_close(x, mean + shrink * (x_0 - mean), rtol=0.0, atol=0.01)
    assert energies == sorted(energies, reverse=True)


@pytest.mark.parametrize("w2", ["exact", "sinkhorn"])
def test_planned_trust_regions_vanish_at_the_reference(w2: str) -> None:
    jko = JKOStep(*cascades(2), JKOStepSize(0.5), w2=w2)
    outputs = th.randn(5, 2 * PLAN_PARTICLES, 2)
    th.testing.assert_close(jko.trust_region(outputs, outputs), th.zeros(5), rtol=0.0, atol=1e-8)
    moved = outputs + 0.1 * th.randn_like(outputs)
    paired = JKOStep(*cascades(2), JKOStepSize(0.5)).trust_region(moved, outputs)
    slack = 1.0 if w2 == "exact" else 1.2
    assert (jko.trust_region(moved, outputs) <= slack * paired + 1e-12).all()


def test_the_bound_holds_and_the_step_size_follows_its_target() -> None:
    cascade, reference = cascades(2)
    jko = JKOStep(cascade, reference, JKOStepSize("auto_0.02"), epoch_length=10)
    features = th.randn(64, 3)
    epochs = jko_descent(jko, energy_q, features, 0.2, steps=600, lr=1e-3, annealed=False)
    measured = [metrics for metrics in epochs if "w2_bound" in metrics]
    assert "w2_bound" in epochs[0] and len(measured) == len(epochs) * 10 // MEASURE_EVERY
    for metrics in measured:
        assert metrics["w2_paired"] <= metrics["w2_bound"] * (1.0 + 1e-9)
        assert metrics["w2_exact"] > 0.0 and metrics["staleness"] >= 0.0
    moved = [metrics["w2_paired"] / 2**0.5 for metrics in epochs]
    assert sum(moved[-20:]) / 20 == pytest.approx(0.02, rel=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_training": "both"}, "block_training"),
        ({"w2": "approximate"}, "w2 must be"),
        ({"epoch_length": 1}, "jko_epoch"),
    ],
)
def test_impossible_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JKOStep(*cascades(2), JKOStepSize(0.5), **arguments)  # type: ignore[arg-type]
