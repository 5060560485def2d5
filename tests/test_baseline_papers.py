"""Each baseline's own mechanism, as its paper has it."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from test_baselines import make
from tiny import Mirror, mirror_demonstrations

from sb3_swfp.baselines.calql import CalibratedSamples, CalQL, MonteCarloReplayBuffer
from sb3_swfp.baselines.ibrl import PreloadedReplayBuffer
from sb3_swfp.baselines.swfp_kl import kl_of_weights, temperature_of_kl, velocity_change
from sb3_swfp.demonstrations.buffers import DemonstrationReplayBuffer


def test_rlpd_updates_often_and_takes_half_of_each_batch_from_demonstrations() -> None:
    model = make("RLPD", gradient_steps=4, policy_delay=4)
    updates = []
    original = model._train_actor
    model._train_actor = lambda *args: updates.append(model._n_updates) or original(*args)  # type: ignore[method-assign, func-returns-value]
    model.learn(40)
    assert model._n_updates == 4 * 20 and updates == list(range(4, 81, 4))
    assert model.replay_buffer.last_demonstration_share == 0.5
    assert model.target_entropy == -0.5 * 2  # half the action dimension


def test_rlpd_leaves_entropy_out_of_the_target() -> None:
    values = []
    for backup in (False, True):
        model = make("RLPD", backup_entropy=backup)
        observations = th.zeros(64, 2)
        th.manual_seed(0)
        values.append(model._next_values(observations, ent_coef=5.0).detach())
    th.manual_seed(0)
    _, log_prob = model.actor.action_log_prob(observations)
    assert th.allclose(values[0] - values[1], 5.0 * log_prob, atol=1e-4)


def test_calql_knows_monte_carlo_returns() -> None:
    env = Mirror()
    buffer = MonteCarloReplayBuffer(8, env.observation_space, env.action_space, n_envs=2, n_steps=1, gamma=0.5)
    state, action = np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32)
    for rewards, dones in (((1, 1), (0, 0)), ((2, 2), (0, 1)), ((4, 4), (1, 0))):
        buffer.add(state, state, action, np.array(rewards, np.float32), np.array(dones, bool), [{}, {}])
    known = buffer.monte_carlo_returns[:3]
    assert known[:, 0].tolist() == [1 + 0.5 * 2 + 0.25 * 4, 2 + 0.5 * 4, 4.0]
    assert known[:2, 1].tolist() == [1 + 0.5 * 2, 2.0] and known[2, 1] == -np.inf
    samples = buffer.sample(200)
    assert isinstance(samples, CalibratedSamples)
    # Every return stands beside its own reward; the last row has none yet in one of the environments
    rows = {(float(r), float(m)) for r, m in zip(samples.rewards, samples.monte_carlo_returns, strict=True)}
    assert rows == {(1.0, 3.0), (2.0, 4.0), (1.0, 2.0), (2.0, 2.0)}


def test_calql_lets_the_last_rewards_go_on_beyond_a_time_limit() -> None:
    env = Mirror()
    buffer = MonteCarloReplayBuffer(40, env.observation_space, env.action_space, n_steps=1, gamma=0.5)
    zero = np.zeros((1, 2), np.float32)
    for step in range(12):  # the mean of the last ten rewards is 0.4
        reward, last = np.array([4.0 * (step == 11)], np.float32), step == 11
        buffer.add(zero, zero, zero, reward, np.array([last]), [{"TimeLimit.truncated": last}])
    np.testing.assert_allclose(buffer.monte_carlo_returns[10:12, 0], [(4 + 0.5 * 0.8) / 2, 4 + 0.5 * 0.8], rtol=1e-6)


def test_calql_adds_no_rewards_across_a_cut() -> None:
    """``learn()`` closes the episode that was open, without adding anything."""
    env = Mirror()
    buffer = DemonstrationReplayBuffer(
        20, env.observation_space, env.action_space, online_buffer_class=MonteCarloReplayBuffer, n_steps=1, gamma=0.5
    )
    zero = np.zeros((1, 2), np.float32)
    for reward in (1.0, 1.0):
        buffer.add(zero, zero, zero, np.array([reward], np.float32), np.array([False]), [{}])
    buffer.truncate_last_trajectory()
    buffer.add(zero, zero, zero, np.array([8.0], np.float32), np.array([True]), [{}])
    online = buffer._online
    assert isinstance(online, MonteCarloReplayBuffer)
    np.testing.assert_allclose(online.monte_carlo_returns[:3, 0], [2.0, 2.0, 8.0])


def test_calql_returns_are_scaled_like_rewards_and_not_clipped() -> None:
    env = VecNormalize(DummyVecEnv([Mirror]), clip_reward=10.0)
    env.ret_rms.var = np.array(4.0)
    buffer = MonteCarloReplayBuffer(8, env.observation_space, env.action_space, n_steps=1, gamma=1.0)
    zero = np.zeros((1, 2), np.float32)
    for done in (True, False):
        buffer.add(zero, zero, zero, np.array([100.0], np.float32), np.array([done]), [{}])
    seen = {round(float(m), 2) for m in buffer.sample(50, env=env).monte_carlo_returns}
    assert seen == {50.0}


def test_calql_buffer_wraps_around() -> None:
    env = Mirror()
    buffer = MonteCarloReplayBuffer(4, env.observation_space, env.action_space, n_steps=1, gamma=1.0)
    zero = np.zeros((1, 2), np.float32)
    for step in range(6):  # one episode of six steps in four rows
        buffer.add(zero, zero, zero, np.ones(1, np.float32), np.array([step == 5]), [{}])
    assert sorted(buffer.monte_carlo_returns[:, 0]) == [1.0, 2.0, 3.0, 4.0]
    buffer.add(zero, zero, zero, np.ones(1, np.float32), np.array([False]), [{}])
    assert np.isinf(buffer.monte_carlo_returns).sum() == 1
    assert set(buffer.sample(50).monte_carlo_returns.flatten().tolist()) == {1.0, 2.0, 3.0}


def test_calql_waits_for_an_episode_to_end_and_trains_its_actor_at_each_offline_step() -> None:
    env = Mirror()
    buffer = MonteCarloReplayBuffer(8, env.observation_space, env.action_space, n_steps=1)
    zero = np.zeros((1, 2), np.float32)
    buffer.add(zero, zero, zero, np.ones(1, np.float32), np.array([False]), [{}])
    with pytest.raises(ValueError, match="no episode has ended yet"):
        buffer.sample(1)
    model = make("CalQL", policy_delay=4, learning_starts=0)
    actor_updates = []
    train_actor = model._train_actor
    model._train_actor = lambda *args: actor_updates.append(1) or train_actor(*args)  # type: ignore[method-assign]
    model.pretrain(gradient_steps=12)
    assert len(actor_updates) == 12 and model.policy_delay == 4
    length = model.replay_buffer.demonstrations[0].rewards.size  # of an episode of Mirror
    model.learn(length - 1)
    assert model._n_updates == 12
    model.learn(20, reset_num_timesteps=False)
    assert model._n_updates > 12
    with pytest.raises(ValueError, match="must be MonteCarloReplayBuffer"):
        arguments = dict(online_buffer_class="stable_baselines3.common.buffers.NStepReplayBuffer")
        make("CalQL", replay_buffer_kwargs=arguments)
    short = make("CalQL", buffer_size=length - 1, learning_starts=0)
    with pytest.raises(ValueError, match="a time limit or the model a larger buffer_size"):
        short.learn(length - 1)


def test_calql_keeps_its_kind_of_buffer_when_it_is_loaded_with_other_arguments(tmp_path: Path) -> None:
    make("CalQL").save(tmp_path / "model")
    arguments = dict(demonstrations=mirror_demonstrations(), demonstration_share=0.25)
    loaded = CalQL.load(tmp_path / "model", env=Monitor(Mirror()), replay_buffer_kwargs=arguments)
    loaded.learn(40)
    assert isinstance(loaded.replay_buffer.sample(8), CalibratedSamples)


def test_calql_pushes_other_actions_down_but_not_below_the_returns() -> None:
    """Conservatism (CQL) puts the data's actions above others; calibration keeps values at the data's returns."""
    gaps, levels = [], []
    for weight in (0.0, 5.0):
        model = make("CalQL", cql_weight=weight, batch_size=64)
        model.pretrain(gradient_steps=400, batch_size=64)
        batch = model.replay_buffer.sample(256)
        with th.no_grad():
            features = model.critic.features(batch.observations)
            data = model.critic.q_values(features, batch.actions).mean()
            others = model.critic.q_values(features, 2.0 * th.rand_like(batch.actions) - 1.0).mean()
        gaps.append(float(data - others))
        levels.append(float(data))
    assert gaps[1] > gaps[0] + 0.05
    assert model._metrics["calibrated_share"] > 0.0
    # All demonstrated returns are 0: without calibration the policy's values would sink without a floor
    assert abs(levels[1]) < 2.0


def test_ibrl_takes_the_proposal_that_the_critics_prefer() -> None:
    model = make("IBRL", policy_kwargs=dict(net_arch=[32, 32], proposal="argmax"))
    policy, observations = model.policy, th.zeros(6, 2)
    low, high = -0.5 * th.ones(6, 2), 0.5 * th.ones(6, 2)
    policy.critic_target.q_values = lambda features, actions, members=None: actions.sum(dim=1).expand(2, -1)  # type: ignore[method-assign]
    assert th.equal(policy.choose(observations, low, high), high)
    assert th.equal(policy.choose(observations, high, low), high)
    soft = make("IBRL", policy_kwargs=dict(net_arch=[32, 32], proposal="soft", beta=1.0), critic_scale=1.0).policy
    soft.critic_target.q_values = policy.critic_target.q_values  # type: ignore[method-assign]
    many = th.zeros(20_000, 2)
    picked = soft.choose(many, many - 0.25, many + 0.25)  # values differ by 1: the softmax takes the better with 0.731
    assert float((picked > 0).float().mean()) == pytest.approx(1.0 / (1.0 + math.exp(-1.0)), abs=0.015)
    assert bool((soft.choose(many, many - 0.25, many + 0.25, greedy=True) > 0).all())


def test_ibrl_never_changes_its_clone_and_uses_it_from_the_first_step() -> None:
    model = make("IBRL")
    model.pretrain(gradient_steps=50)
    before = {name: value.clone() for name, value in model.policy.clone.state_dict().items()}
    model.learn(80)
    assert all(th.equal(before[name], value) for name, value in model.policy.clone.state_dict().items())
    # The first learning_starts steps are the clone's own
    fresh = make("IBRL", learning_starts=1000)
    fresh.pretrain(gradient_steps=50)
    assert not fresh.policy.can_judge and model.policy.can_judge
    fresh.policy.actor.forward = lambda *args: pytest.fail("the actor acted during the clone's steps")  # type: ignore[method-assign]
    fresh.learn(10)
    # ... and so are its deterministic actions, until the critics have learned something to judge by
    observations = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    tensors = th.as_tensor(observations)
    cloned = model.policy.unscale_action(model.policy.cloned_actions(tensors, True).detach().numpy())
    judged = model.predict(observations, deterministic=True)[0]
    model.policy.can_judge.fill_(False)
    np.testing.assert_allclose(model.predict(observations, deterministic=True)[0], cloned, atol=1e-6)
    assert not np.allclose(judged, cloned)


def test_preloaded_demonstrations_are_as_likely_as_online_data() -> None:
    env = Mirror()
    data = mirror_demonstrations(3)
    buffer = PreloadedReplayBuffer(100, env.observation_space, env.action_space, demonstrations=data, n_steps=1)
    assert buffer.demonstration_share == 1.0
    zero = np.zeros((1, 2), np.float32)
    for _ in range(10):
        buffer.add(zero, zero, zero, np.zeros(1, np.float32), np.zeros(1, bool), [{}])
    assert buffer.demonstration_share == 30 / 40
    buffer.sample(40)
    assert buffer.last_demonstration_share == 0.75


def test_kl_of_weights_closed_forms() -> None:
    values = th.tensor([[0.0, math.log(3.0)]])
    # Weights 1/4 and 3/4 of two particles: KL to the uniform is log 2 minus their entropy
    entropy = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert kl_of_weights(values, 1.0).item() == pytest.approx(math.log(2.0) - entropy, abs=1e-6)
    assert kl_of_weights(values, 1e6).item() == pytest.approx(0.0, abs=1e-6)
    assert kl_of_weights(values, 1e-3).item() == pytest.approx(math.log(2.0), abs=1e-6)


@pytest.mark.parametrize("target", [0.01, 0.1, 1.0])
def test_the_temperature_has_the_kl_asked_for(target: float) -> None:
    values = 1000.0 * th.randn(64, 8, generator=th.Generator().manual_seed(0))
    assert kl_of_weights(values, temperature_of_kl(values, target)).item() == pytest.approx(target, rel=1e-3)
    # Where all particles are worth the same no weights are far from uniform
    assert bool(th.isfinite(temperature_of_kl(th.zeros(4, 8), target)))


def test_a_kl_step_stays_on_the_particles_and_raises_their_value() -> None:
    model = make("SWFPKL")
    model.pretrain(gradient_steps=300)
    model.policy.critic_is_ripe.fill_(True)
    batch = model.replay_buffer.sample(128)
    # A critic that prefers large actions: the first coordinate's mean must rise, its support must not
    model.critic.q_values = lambda features, actions, members=None: (100.0 * actions[:, 0]).expand(2, -1)  # type: ignore[method-assign]

    def particles() -> th.Tensor:
        with th.no_grad():
            return model._particles(batch.observations, 0.0)[0][..., 0]

    th.manual_seed(0)
    before = particles()
    for _ in range(40):
        model._train_actor(batch, 0.0)
    after = particles()
    assert float(after.mean()) > float(before.mean()) + 0.01
    assert float(after.max()) < float(before.max()) + 0.3


@pytest.mark.parametrize(
    ("kl_step", "first", "last"),
    [("auto", 0.1, 0.001), (0.1, 0.1, 0.1), ("lin_0.05", 0.05, 0.0005), ("0.05", 0.05, 0.05)],
)
def test_a_clones_kl_step_falls_unless_it_is_a_number(kl_step: float | str, first: float, last: float) -> None:
    model = make("SWFPKL", kl_step=kl_step)
    model.pretrain(gradient_steps=2)
    batch = model.replay_buffer.sample(16)
    model.critic.q_values = lambda features, actions, members=None: actions[:, 0].expand(2, -1)  # type: ignore[method-assign]
    for progress, nats in ((1.0, first), (0.0, last)):
        model._current_progress_remaining = progress
        assert float(model._train_actor(batch, 0.0)["kl"]) == pytest.approx(nats, rel=1e-2)
        # The movement goes with the root of the step, and the rate with the movement
        assert model._actor_learning_rate() == pytest.approx(model.learning_rate * math.sqrt(nats / first))


@pytest.mark.parametrize("kl_step", [0.0, -0.1, 10.0, "lin_0", "lin", "fast", "lin_nan"])
def test_an_impossible_kl_step_is_refused(kl_step: float | str) -> None:
    with pytest.raises(ValueError, match=r"kl_step must .*" + re.escape(repr(kl_step))):
        make("SWFPKL", kl_step=kl_step)


def test_a_kl_epoch_begins_anew_after_loading(tmp_path: Path) -> None:
    model = make("SWFPKL", kl_epoch=4)
    model.pretrain(gradient_steps=2)
    batch = model.replay_buffer.sample(16)
    for _ in range(3):
        model._train_actor(batch, 0.0)
    model.save(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", kl_epoch=4)
    assert ["w2_paired" in loaded._train_actor(batch, 0.0) for _ in range(4)] == [False, False, False, True]


def test_clone_sac_keeps_a_floor_under_the_clones_spread() -> None:
    model = make("CloneSAC", Monitor(Mirror()))
    model.pretrain(gradient_steps=300)
    assert model.is_pretrained
    observations = th.as_tensor(model.replay_buffer.demonstrations.observations())
    mean, log_std, _ = model.actor.get_action_dist_params(observations)
    assert bool(th.isfinite(mean).all()) and log_std.min().item() > -6.0


def test_a_kl_step_of_nothing_moves_nothing() -> None:
    model = make("SWFPKL", kl_epoch=3)
    model.pretrain(gradient_steps=50)
    batch = model.replay_buffer.sample(64)
    model.critic.q_values = lambda features, actions, members=None: th.zeros(2, len(actions))  # type: ignore[method-assign]
    before = [each.detach().clone() for each in model.actor.parameters()]
    for _ in range(7):  # more than two epochs
        model._train_actor(batch, 0.0)
    for old, new in zip(before, model.actor.parameters(), strict=True):
        np.testing.assert_allclose(new.detach(), old, atol=1e-6)


def test_weights_change_a_gaussians_velocity_as_known() -> None:
    std, m = 0.4, 10_000
    # Two states and two dimensions, each with a mean and a shift of its own
    mean, shift = th.tensor([[0.1, -0.1], [0.3, 0.0]]), th.tensor([[0.2, 0.0], [0.0, -0.1]])
    particles = mean.unsqueeze(1) + std * th.randn(2, m, 2, generator=th.Generator().manual_seed(0))
    # exp(shift . a / std^2) times N(mean, std^2) is N(mean + shift, std^2), up to its normalisation
    log_weights = (particles @ (shift / std**2).unsqueeze(-1)).squeeze(-1)
    t = th.tensor([0.0, 0.2, 0.5, 0.8]).view(4, 1, 1, 1).expand(4, 2, 3, 1)
    x_t = th.linspace(-0.2, 0.4, 6).view(1, 1, 3, 2).expand(4, 2, 3, 2)
    change = velocity_change(x_t, t, particles, log_weights)
    # The velocity of N(m, s^2) is m + slope (x - t m), hence linear in m
    slope = (t * std**2 - (1.0 - t)) / ((1.0 - t) ** 2 + t**2 * std**2)
    np.testing.assert_allclose(change, shift.view(1, 2, 1, 2) * (1.0 - t * slope), atol=0.04)
    assert float(velocity_change(x_t, t, particles, th.full((2, m), -3.0)).abs().max()) == 0.0


def test_a_kl_step_on_noise_does_not_run_away() -> None:
    model = make("SWFPKL", kl_epoch=10, kl_step=0.01)
    model.pretrain(gradient_steps=300)
    batch = model.replay_buffer.sample(64)
    model.critic.q_values = lambda features, actions, members=None: th.randn(2, len(actions))  # type: ignore[method-assign]
    th.manual_seed(0)
    with th.no_grad():
        before = model._particles(batch.observations, 0.0)[0]
    for _ in range(100):
        model._train_actor(batch, 0.0)
    with th.no_grad():
        after = model._particles(batch.observations, 0.0)[0]
    assert float((after.mean() - before.mean()).abs()) < 0.1
    assert float(after.std(dim=1).mean() / before.std(dim=1).mean()) == pytest.approx(1.0, abs=0.25)
