"""A clone's metric: whitened particles, the JKO step in it against its closed form, and what a model keeps of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch as th
from descent import cascades, jko_descent, minimise
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from tiny import Mirror, mirror_demonstrations, same, tiny_model, weights

from sb3_swfp import SWFP
from sb3_swfp.flows import FlowCascade
from sb3_swfp.jko import JKOStep
from sb3_swfp.transport import JKOStepSize, jko_objective
from sb3_swfp.whitening import block_whitening


@pytest.fixture
def double_precision() -> Iterator[None]:
    th.set_default_dtype(th.float64)
    th.manual_seed(0)
    yield
    th.set_default_dtype(th.float32)


def test_whitened_particles_of_a_state_vary_equally_in_every_direction(double_precision: None) -> None:
    cascade, _ = cascades(3)
    features = th.randn(1, 3)
    whitening = block_whitening(cascade, features, n_particles=20_000)
    path = cascade.integrate(features.expand(20_000, 3), th.randn(20_000, 3)).particles
    end_variance = path[-1].var(dim=0).mean()
    for particles, matrix in zip(path[1:], whitening, strict=True):
        found = th.cov((particles @ matrix).T)
        th.testing.assert_close(found, end_variance * th.eye(3), rtol=0.0, atol=0.05 * end_variance.item())


def test_means_that_differ_between_states_are_no_spread(double_precision: None) -> None:
    cascade, _ = cascades(2)
    features, n = 20.0 * th.randn(3, 3), 10_000
    whitening = block_whitening(cascade, features, n)
    end = cascade.integrate(features.repeat_interleave(n, dim=0), th.randn(3 * n, 2)).particles[-1]
    within = th.stack([th.cov(cloud.T) for cloud in (end @ whitening[-1]).view(3, n, 2)]).mean(dim=0)
    scale = end.view(3, n, 2).var(dim=1).mean().item()
    assert end.var(dim=0).mean().item() > 1.2 * scale  # the states' means do differ
    th.testing.assert_close(within, scale * th.eye(2), rtol=0.0, atol=0.05 * scale)


@pytest.mark.parametrize("w2", ["paired", "exact"])
def test_the_minimiser_is_a_step_along_the_whitened_adjoint(w2: str, double_precision: None) -> None:
    """x + eta Sigma lambda / s^2 makes the objective's gradient vanish."""
    whitening = th.linalg.inv(th.tensor([[[0.5, 0.0], [0.3, 0.8]], [[1.5, 0.2], [0.0, 0.4]]])).mT
    jko = JKOStep(*cascades(2, n_blocks=2), JKOStepSize(0.02), w2=w2, whitening=whitening)
    old, adjoint = th.randn(2, 16, 2), 0.1 * th.randn(2, 16, 2)
    metric = whitening @ whitening.mT
    step = jko.block_step_size * adjoint @ th.linalg.inv(metric)
    moved = (old + step).requires_grad_(True)
    loss = jko_objective(adjoint, moved, old, jko.block_step_size, jko.trust_region(moved, old)).sum()
    (gradient,) = th.autograd.grad(loss, moved)
    th.testing.assert_close(gradient, th.zeros_like(gradient), rtol=0.0, atol=1e-12)
    alone = [jko.trust_region(moved[n], old[n], n) for n in range(2)]
    th.testing.assert_close(th.stack(alone), jko.trust_region(moved, old))


@pytest.mark.parametrize("w2", ["paired", "exact", "sinkhorn"])
def test_blocks_in_order_have_their_own_metric(w2: str, double_precision: None) -> None:
    """With Q = 0 what is left of a block's loss is half its whitened movement."""
    cascade, reference = cascades(2, n_blocks=2)
    whitening = th.stack([2.0 * th.eye(2), 3.0 * th.eye(2)])
    with th.no_grad():
        for parameter in cascade.parameters():
            parameter.add_(0.1 * th.randn_like(parameter))
    features, x = th.randn(1, 3).expand(16, 3), th.randn(16, 2)
    for n, factor in enumerate((4.0, 9.0)):
        losses = []
        for metric in (whitening, None):
            jko = JKOStep(cascade, reference, JKOStepSize(0.5), block_training="sequential", w2=w2, whitening=metric)
            losses.append(jko.sequential_loss(n, features, x, lambda actions: 0.0 * actions.sum(dim=-1), 0.0))
        assert losses[1].item() > 1e-6 and losses[0].item() == pytest.approx(factor * losses[1].item(), rel=1e-3)


def narrow_flow() -> FlowCascade:
    """From N(0, I) to N(0, diag(0.3, 0.1)^2) along straight lines."""
    cascade = FlowCascade(1, 2, 4, [32, 32])
    scale = th.tensor([0.3, 0.1])

    def loss() -> th.Tensor:
        x_0 = th.randn(256, 2)
        path = th.stack(cascade.integrate(th.ones(256, 1), x_0).particles)
        t = th.linspace(0.0, 1.0, 5).view(-1, 1, 1)
        return (path - (1.0 - t) * x_0 - t * scale * x_0).square().mean()

    minimise(loss, cascade, steps=1_500, lr=3e-3)
    return cascade


def test_a_narrow_flow_moves_where_it_is_wide_and_all_blocks_move_it(double_precision: None) -> None:
    """
    Q = a x on a straight flow to N(0, D^2): block n's step (eta / N) Sigma_n lambda_n / s^2 moves the end by
    (eta / N) D^2 a / s^2, the same for each n, since its particles are a linear map of the end's.
    """
    cascade, features, eta = narrow_flow(), th.ones(512, 1), 0.02
    reference = FlowCascade(1, 2, 4, [32, 32])
    reference.load_state_dict(cascade.state_dict())
    reference.requires_grad_(False)
    whitening = block_whitening(reference, features)
    jko = JKOStep(cascade, reference, JKOStepSize(eta), epoch_length=10**6, whitening=whitening)
    jko_descent(jko, lambda actions: actions.sum(dim=-1), features, 0.0, steps=800, lr=1e-3)
    expected = eta * th.tensor([0.09, 0.01]) / 0.05
    x_0 = th.randn(2_000, 2)
    old = reference.integrate(th.ones(2_000, 1), x_0).particles
    moved = cascade.integrate(th.ones(2_000, 1), x_0).particles[-1] - old[-1]
    th.testing.assert_close(moved.mean(dim=0), expected, rtol=0.1, atol=3e-4)
    for n in range(4):
        x = cascade.apply_block(n, th.ones(2_000, 1), old[n])
        for later in range(n + 1, 4):
            x = reference.apply_block(later, th.ones(2_000, 1), x)
        assert (x - old[-1])[:, 0].mean().item() == pytest.approx(expected[0].item() / 4, rel=0.15)


def test_only_a_clone_has_a_metric_and_its_file_keeps_it(tmp_path: Path) -> None:
    model = tiny_model(Mirror(), learning_starts=5)
    assert model.jko.whitening is None
    model.pretrain(mirror_demonstrations(), gradient_steps=30)
    whitening = model.jko.whitening
    assert whitening is not None and whitening.shape == (2, 2, 2) and bool(whitening.isfinite().all())
    assert model.jko.step_size.value == pytest.approx(0.2 * JKOStepSize("auto_0.1").value)
    model.save(tmp_path / "model")
    loaded = SWFP.load(tmp_path / "model", env=Mirror())
    assert loaded.jko.whitening is not None
    th.testing.assert_close(loaded.jko.whitening, whitening)


def test_a_clone_s_file_of_before_keeps_plain_w2(tmp_path: Path) -> None:
    model = tiny_model(Mirror(), learning_starts=5)
    model.pretrain(mirror_demonstrations(), gradient_steps=30)
    model.save(tmp_path / "model", exclude=["clone_whitening"])
    loaded = SWFP.load(tmp_path / "model", env=Mirror())
    assert loaded.is_pretrained and loaded.jko.whitening is None
    loaded.pretrain(mirror_demonstrations(), gradient_steps=30)
    assert loaded.jko.whitening is not None


def test_the_metric_is_that_of_normalised_observations() -> None:
    model = tiny_model(VecNormalize(make_vec_env(Mirror)), learning_starts=5)
    demonstrations = mirror_demonstrations()
    model.pretrain(demonstrations, gradient_steps=200)
    normaliser = model.get_vec_normalize_env()
    assert normaliser is not None
    observations = th.as_tensor(normaliser.normalize_obs(demonstrations.observations())).float()
    expected = block_whitening(model.actor.cascade, model.actor.features(observations), n_particles=256)
    raw = th.as_tensor(demonstrations.observations()).float()
    otherwise = block_whitening(model.actor.cascade, model.actor.features(raw), n_particles=256)
    found = model.jko.whitening
    assert found is not None
    assert (found - expected).norm() < 0.3 * (otherwise - expected).norm()


@pytest.mark.parametrize("block_training", ["parallel", "sequential"])
def test_a_clone_s_blocks_train_in_their_metric(block_training: str) -> None:
    model = tiny_model(Mirror(), learning_starts=5, block_training=block_training, ent_coef=0.0)
    model.pretrain(mirror_demonstrations(), gradient_steps=30)
    model.learn(20)
    assert model.replay_buffer is not None
    before = weights(model.actor)
    metrics = model._train_actor(model.replay_buffer.sample(16), 0.0)
    assert bool(metrics["actor_loss"].isfinite()) and not same(before, weights(model.actor))


def vanishing_flow(vanishing: list[int]) -> FlowCascade:
    """Two dimensions, one block, which takes these to 0: the velocity is -x there, on ELU's positive branch."""
    cascade = FlowCascade(1, 2, 1, [8])
    with th.no_grad():
        for parameter in cascade.parameters():
            parameter.zero_()
        cascade.weights[0][0, :2, :2] = th.eye(2)
        cascade.state_bias[:2] = 100.0
        for i in vanishing:
            cascade.weights[1][0, i, i] = -1.0
            cascade.biases[0][0, 0, i] = 100.0
    return cascade


def test_a_direction_that_never_varies_has_a_metric_too(double_precision: None) -> None:
    cascade = vanishing_flow([1])
    end = cascade.integrate(th.ones(5, 1), th.randn(5, 2)).particles[-1]
    th.testing.assert_close(end[:, 1], th.zeros(5), rtol=0.0, atol=1e-9)
    whitening = block_whitening(cascade, th.ones(20, 1), n_particles=2_000)[0]
    # Variances 1 and 0, and a hundredth of their mean: s^2 = 0.505, Sigma = diag(1.005, 0.005)
    expected = th.diag(th.tensor([0.505 / 1.005, 0.505 / 0.005]))
    th.testing.assert_close(whitening @ whitening.mT, expected, rtol=0.03, atol=1e-3)


def test_a_clone_without_any_spread_has_plain_w2(double_precision: None) -> None:
    whitening = block_whitening(vanishing_flow([0, 1]), th.ones(4, 1))[0]
    th.testing.assert_close(whitening @ whitening.mT, th.eye(2), rtol=1e-4, atol=1e-4)


def test_a_clone_that_is_not_finite_is_said() -> None:
    cascade = FlowCascade(1, 2, 1, [8])
    with pytest.raises(ValueError, match="cloning diverged"):
        block_whitening(cascade, th.full((4, 1), th.nan))
