"""Every setting of SWFP trains: what SB3's run and train/eval-mode tests check of SAC, and SWFP's own settings."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv
from tiny import Mirror, metrics, mirror_demonstrations, same, tiny_model, weights, with_demonstrations

from sb3_swfp import DemonstrationReplayBuffer


def assert_trained(model: Any) -> dict[str, Any]:
    """The model moved, and nothing it holds or logged is NaN or infinite; returns what it logged."""
    assert all(value.isfinite().all() for value in model.policy.state_dict().values())
    logged = metrics(model)
    assert all(np.isfinite(value) for value in logged.values()), logged
    assert not same(weights(model.actor), weights(tiny_like(model).actor))
    return logged


def tiny_like(model: Any) -> Any:
    """The model as it was before any training: the same arguments and seed."""
    return tiny_model(model.env, policy_kwargs=model.policy_kwargs, block_training=model.block_training)


@pytest.mark.parametrize("n_blocks", [1, 3, 5, 10])
@pytest.mark.parametrize("block_training", ["parallel", "sequential"])
def test_every_block_trains(n_blocks: int, block_training: str) -> None:
    model = tiny_model(policy_kwargs={"n_blocks": n_blocks}, block_training=block_training, batch_size=128)
    before = weights(model.actor.cascade)
    model.learn(60)
    cascade = model.actor.cascade
    for name, value in cascade.named_parameters():
        for n in range(n_blocks):
            moved = cascade.block_slice(value.detach() - before[name], n).abs().max()
            # The velocity's own layers; time enters the first block's only step at t = 0 and can't move its weight
            assert moved > 0 or (name == "time_weight" and n == 0), f"{name} of block {n}"
    logged = assert_trained(model)
    assert logged["n_updates"] == 40 and f"transport_cost_block_{n_blocks}" in logged
    # Other states and noise (4 x 32 particles, 64 rows), but never far above
    assert logged["w2_exact"] <= logged["w2_paired"] * 1.5
    assert (logged["staleness"] == 0.0) == (n_blocks == 1)


@pytest.mark.parametrize("block_training", ["parallel", "sequential"])
@pytest.mark.parametrize("w2", ["exact", "sinkhorn"])
def test_trust_regions_of_pot(w2: str, block_training: str) -> None:
    model = tiny_model(w2=w2, block_training=block_training, batch_size=32).learn(44)
    assert assert_trained(model)["w2_paired"] > 0


def test_a_batch_smaller_than_a_plan() -> None:
    assert_trained(tiny_model(w2="exact", batch_size=4).learn(44))


@pytest.mark.parametrize("ent_coef", [0.0, 0.01, "auto", "auto_0.1"])
def test_entropy_coefficient(ent_coef: float | str) -> None:
    model = tiny_model(ent_coef=ent_coef).learn(60)
    logged = assert_trained(model)
    initial = {"auto": 1.0, "auto_0.1": 0.1}.get(str(ent_coef))
    if initial is None:
        assert logged["ent_coef"] == pytest.approx(ent_coef) and model.ent_coef_optimizer is None
    else:
        assert logged["ent_coef"] != initial and logged["ent_coef"] == pytest.approx(initial, rel=0.1)
    assert ("entropy" in logged) == (ent_coef != 0.0)


@pytest.mark.parametrize("ent_coef", [0.0, 0.01, "auto_0.1"])
def test_exploration_is_as_soft_as_the_temperature(ent_coef: float | str) -> None:
    """Candidates compete before the blocks move, and are then drawn by exp(Q / alpha) for alpha's own value."""
    model = tiny_model(ent_coef=ent_coef)
    model.policy.critic_is_ripe.fill_(True)
    model.learn(21)  # a single critic update, no block update yet
    assert float(model.policy.temperature) == pytest.approx(model._current_ent_coef(), abs=1e-6)


@pytest.mark.parametrize("target_entropy", ["auto", -3.0])
def test_target_entropy(target_entropy: float | str) -> None:
    model = tiny_model(Mirror(), target_entropy=target_entropy)
    assert model.target_entropy == (-2.0 if target_entropy == "auto" else -3.0)


def test_a_decaying_movement_is_told_the_progress() -> None:
    model = tiny_model(jko_step_size="auto_lin_0.05").learn(60)
    assert model.jko.step_size.progress_remaining == pytest.approx(0.0, abs=0.02)
    model.learn(30)
    assert 0.0 <= model.jko.step_size.progress_remaining < 0.05
    model.learn(100, callback=lambda variables, _: variables["self"].num_timesteps < 50)
    assert model.jko.step_size.progress_remaining == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("is_pretrained", "share"), [(False, 0.5), (True, 0.2)])
def test_the_average_of_a_clone_follows_more_slowly(is_pretrained: bool, share: float) -> None:
    model = tiny_model(tau=0.5, policy_delay=39, critic_warmup=0)
    model.is_pretrained = is_pretrained
    model.policy.critic_is_ripe.fill_(True)
    before = weights(model.actor_average)
    model.learn(59)  # one block update
    actor, average = weights(model.actor), weights(model.actor_average)
    for name, old in before.items():
        th.testing.assert_close(average[name], old + share * (actor[name] - old))


@pytest.mark.parametrize("jko_step_size", [0.05, "auto_0.05", "auto_lin_0.05", "auto"])
def test_jko_step_size(jko_step_size: float | str) -> None:
    model = tiny_model(jko_step_size=jko_step_size).learn(60)
    assert model._step_size is not None
    assert (model._step_size.target is None) == (jko_step_size == 0.05)
    used = assert_trained(model)["jko_step_size"]
    assert used == 0.05 if model._step_size.target is None else used != 0.01


@pytest.mark.parametrize("n_envs", [1, 2])
def test_n_step_returns_in_the_default_buffer(n_envs: int) -> None:
    model = tiny_model(DummyVecEnv([Mirror] * n_envs), n_steps=3, gamma=0.9).learn(60)
    assert isinstance(model.replay_buffer, NStepReplayBuffer)
    assert (model.replay_buffer.n_steps, model.replay_buffer.gamma) == (3, 0.9)
    assert_trained(model)


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_demonstrations_in_the_buffer(n_envs: int, n_steps: int) -> None:
    arguments = with_demonstrations(mirror_demonstrations(3), demonstration_share=0.25)
    model = tiny_model(DummyVecEnv([Mirror] * n_envs), n_steps=n_steps, gamma=0.9, **arguments).learn(60)
    buffer = model.replay_buffer
    assert isinstance(buffer, DemonstrationReplayBuffer)
    assert (buffer.n_steps, buffer.gamma, buffer.pos) == (n_steps, 0.9, 60 // n_envs)
    discounts = buffer.sample(64).discounts
    assert (discounts is None) if n_steps == 1 else float(discounts.min()) == pytest.approx(0.9**3)
    assert assert_trained(model)["demonstration_share"] == 0.25


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {"euler_steps": 2},
        {"n_candidates": 1},
        {"n_critics": 1},
        {"n_critics": 3, "critic_layer_norm": False},
        {"net_arch": {"qf": [24]}, "block_net_arch": [8, 8, 8]},
        {"share_features_extractor": True},
        {"optimizer_class": th.optim.RMSprop, "optimizer_kwargs": {"eps": 1e-5}},
    ],
    ids=str,
)
@pytest.mark.parametrize("block_training", ["parallel", "sequential"])
def test_policy_arguments(policy_kwargs: dict[str, Any], block_training: str) -> None:
    model = tiny_model(policy_kwargs=policy_kwargs, block_training=block_training).learn(44)
    assert_trained(model)
    assert model.env is not None
    observation = model.env.reset()
    model.policy.critic_is_ripe.fill_(True)
    for deterministic in (True, False):
        assert model.predict(observation, deterministic=deterministic)[0].shape == (1, 1)


@pytest.mark.parametrize("train_freq", [4, (4, "step"), (1, "episode")])
@pytest.mark.parametrize("gradient_steps", [2, -1])
def test_train_freq(train_freq: Any, gradient_steps: int) -> None:
    model = tiny_model(Mirror(length=4), train_freq=train_freq, gradient_steps=gradient_steps).learn(40)
    # Updates follow the collections that end after step 20: at 24, 28, 32, 36 and 40
    assert model._n_updates == 5 * (4 if gradient_steps == -1 else 2)


@pytest.mark.parametrize("train_freq", ["4", ("1", "episode"), "nonsense", (1, "close")])
def test_wrong_train_freq(train_freq: Any) -> None:
    with pytest.raises(ValueError, match="train_freq"):
        tiny_model(train_freq=train_freq)


def test_no_gradient_steps() -> None:
    model = tiny_model(gradient_steps=0)
    before = weights(model.policy)
    assert same(weights(model.learn(40).policy), before)


@pytest.mark.parametrize("vec_env_class", [DummyVecEnv, SubprocVecEnv])
def test_several_environments(vec_env_class: Any) -> None:
    env = vec_env_class([Mirror] * 2)
    try:
        model = tiny_model(env, gradient_steps=-1, train_freq=2).learn(60)
        assert model.num_timesteps == 60 and model._n_updates == 40
        assert_trained(model)
        assert model.predict(env.reset())[0].shape == (2, 2)
    finally:
        env.close()


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("noise_class", [NormalActionNoise, OrnsteinUhlenbeckActionNoise])
def test_action_noise(noise_class: Any, n_envs: int) -> None:
    noise = noise_class(np.zeros(2), 0.1 * np.ones(2))
    assert_trained(tiny_model(DummyVecEnv([Mirror] * n_envs), action_noise=noise).learn(40))


def test_schedule_reaches_every_optimiser() -> None:
    model = tiny_model(learning_rate=lambda remaining: 1e-3 * remaining, block_training="sequential").learn(60)
    rates = [group["lr"] for optimiser in model._optimizers() for group in optimiser.param_groups]
    assert len(model._optimizers()) == 4 and rates == pytest.approx([0.0] * len(rates))


def test_target_update_interval() -> None:
    model = tiny_model(target_update_interval=100)
    before = weights(model.critic_target)
    model.learn(60)
    assert same(weights(model.critic_target), before) and not same(weights(model.critic), before)


def test_policy_delay() -> None:
    model = tiny_model(policy_delay=40)
    before = weights(model.actor)
    model.learn(59)
    assert same(weights(model.actor), before)
    model.learn(1, reset_num_timesteps=False)
    assert model._n_updates == 40 and not same(weights(model.actor), before)


def test_the_reference_holds_still_within_an_epoch() -> None:
    model = tiny_model(policy_delay=1, jko_epoch=5)
    before = weights(model.actor_reference)
    model.learn(24)
    assert same(weights(model.actor_reference), before)
    model.learn(1, reset_num_timesteps=False)
    assert same(weights(model.actor_reference), weights(model.actor)) and not same(weights(model.actor), before)


def test_time_steps_may_be_a_float() -> None:
    model = tiny_model(learning_starts=990).learn(1e3)
    assert model.num_timesteps == 1000 and type(model._total_timesteps) is int


def test_environment_given_by_object_or_id() -> None:
    for env in ("Pendulum-v1", gym.make("Pendulum-v1"), DummyVecEnv([lambda: gym.make("Pendulum-v1")])):
        model = tiny_model(env).learn(22)
        assert model.env is not None and model.env.num_envs == 1
        assert model.num_timesteps == 22 and model._n_updates > 0


class BatchNormExtractor(BaseFeaturesExtractor):
    """Features whose values differ between training and evaluation mode."""

    def __init__(self, observation_space: gym.Space) -> None:
        super().__init__(observation_space, 2)
        self.norm, self.dropout = th.nn.BatchNorm1d(2, momentum=0.5), th.nn.Dropout(0.5)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.dropout(self.norm(observations))


def test_batch_norm_statistics_reach_the_copies() -> None:
    """As SB3 has it: the copies that act and that give a new model's targets take over running statistics."""
    model = tiny_model(Mirror(), policy_kwargs={"features_extractor_class": BatchNormExtractor}).learn(60)
    pairs = ((model.actor, model.actor_average), (model.critic, model.critic_target))
    for trained, copied in pairs:
        mean = trained.features_extractor.norm.running_mean  # type: ignore[union-attr]
        assert (mean.abs() > 5).all()  # the observations' own mean is 20
        th.testing.assert_close(copied.features_extractor.norm.running_mean, mean, rtol=0.3, atol=1.0)  # type: ignore[union-attr]


def test_batch_norm_in_a_clone() -> None:
    demonstrations = mirror_demonstrations(20)
    model = tiny_model(Mirror(), policy_kwargs={"features_extractor_class": BatchNormExtractor})
    model.pretrain(demonstrations, gradient_steps=50, batch_size=64)
    norm = model.actor_average.features_extractor.norm
    np.testing.assert_allclose(norm.running_mean, [20, 20], atol=1.5)  # type: ignore[arg-type]


def test_giving_targets_leaves_a_clone_s_batch_norm_statistics_alone() -> None:
    """Its target values the trained flow, which waits until the critic is ripe."""
    model = tiny_model(
        Mirror(),
        policy_kwargs={"features_extractor_class": BatchNormExtractor},
        policy_delay=10_000,
        critic_warmup=10_000,
    )
    model.pretrain(mirror_demonstrations(20), gradient_steps=20, batch_size=64, critic_gradient_steps=5)
    before = weights(model.actor)
    model.learn(40)
    assert same(weights(model.actor), before)


def test_collecting_and_predicting_change_nothing() -> None:
    model = tiny_model(Mirror(), gradient_steps=0, policy_kwargs={"features_extractor_class": BatchNormExtractor})
    before = weights(model.policy)
    model.learn(40)
    assert model.env is not None
    observation = model.env.reset()
    first = model.predict(observation, deterministic=True)[0]
    for _ in range(3):
        np.testing.assert_array_equal(model.predict(observation, deterministic=True)[0], first)
    assert same(weights(model.policy), before)


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("block_training", ["parallel", "sequential"])
@pytest.mark.parametrize("w2", ["paired", "exact", "sinkhorn"])
def test_cuda(block_training: str, w2: str) -> None:
    arguments = with_demonstrations(mirror_demonstrations(3))
    model = tiny_model(Mirror(), block_training=block_training, w2=w2, device="cuda", **arguments)
    model.pretrain(gradient_steps=10, critic_gradient_steps=10)
    model.learn(60)
    assert model.policy.device.type == "cuda"
    assert np.isfinite(list(metrics(model).values())).all()
