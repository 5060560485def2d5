"""DPPO: what SB3's tests check of PPO, and that it fine-tunes a clone without breaking it."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tiny import HIGH, LOW, Mirror, mirror_demonstrations, record, same, tiny_model, weights

from sb3_swfp.baselines.chains import (
    clipped_loss,
)
from sb3_swfp.baselines.dppo import DPPO
from sb3_swfp.baselines.dppo_policy import FlowValuePolicy
from sb3_swfp.callbacks import PretrainCallback, SuccessEvalCallback


def tiny_dppo(env: Any = "Pendulum-v1", policy: Any = "FlowPolicy", **kwargs: Any) -> DPPO:
    """DPPO with small networks and short roll-outs; ``policy_kwargs`` are merged."""
    defaults: dict[str, Any] = dict(n_steps=20, batch_size=10, n_epochs=2, critic_warmup_rollouts=1, seed=0)
    policy_kwargs = dict(n_blocks=2, block_net_arch=[16], net_arch=[32]) | kwargs.pop("policy_kwargs", {})
    return DPPO(policy, env, device="cpu", policy_kwargs=policy_kwargs, **(defaults | kwargs))


def test_denoising_discounts() -> None:
    model = tiny_dppo(gamma_denoising=0.5, policy_kwargs={"n_blocks": 3})
    assert model._denoising_discounts().tolist() == [0.25, 0.5, 1.0]


# Running


@pytest.mark.parametrize("kind", ["vector", "image", "dict"])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_trains(kind: str, n_envs: int) -> None:
    model = tiny_dppo(DummyVecEnv([lambda: Mirror(kind)] * n_envs), policy_kwargs={"euler_steps": 2})
    before = weights(model.policy)
    model.learn(3 * 20 * n_envs)
    assert model.num_timesteps == 60 * n_envs and model._n_updates == 6
    after = weights(model.policy)
    assert all(value.isfinite().all() for value in after.values())
    for part in ("actor", "critic"):
        assert any(name.startswith(part) and not th.equal(after[name], before[name]) for name in after)
    logged = {name: value for name, value in model.logger.name_to_value.items() if name.startswith("train/")}
    assert {"train/approx_kl", "train/policy_gradient_loss", "train/value_loss", "train/reward_scale"} <= logged.keys()
    assert all(np.isfinite(value) for value in logged.values())


@pytest.mark.parametrize("alias", ["MlpPolicy", "MultiInputPolicy", "CnnPolicy"])
def test_aliases(alias: str) -> None:
    assert isinstance(tiny_dppo(policy=alias).policy, FlowValuePolicy)


def test_every_block_trains() -> None:
    model = tiny_dppo(policy_kwargs={"n_blocks": 4}, critic_warmup_rollouts=0)
    before = weights(model.actor.cascade)
    model.learn(40)
    for name, value in model.actor.cascade.named_parameters():
        for n in range(4):
            moved = model.actor.cascade.block_slice(value.detach() - before[name], n).abs().max()
            assert moved > 0 or (name == "time_weight" and n == 0), f"{name} of block {n}"


def test_actions_of_any_shape_stay_inside_the_bounds() -> None:
    # Mirror asserts it
    model = tiny_dppo(Mirror(shape=(1, 2)), min_sampling_std=2.0).learn(20)
    assert model.predict(np.zeros(2, np.float32))[0].shape == (1, 2)


@pytest.mark.parametrize("euler_steps", [1, 2])
def test_at_the_old_weights_every_ratio_is_one(euler_steps: int) -> None:
    model = tiny_dppo(Mirror(), policy_kwargs={"euler_steps": euler_steps}).learn(60)
    # The last roll-out's old densities belong to the weights before the last update: take a new one
    callback = model._init_callback(None)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    for batch in model.rollout_buffer.batches(7):
        log_probs = model.policy.log_probs(batch.observations, batch.chains, model.min_logprob_std)
        th.testing.assert_close(log_probs, batch.old_log_probs, atol=1e-5, rtol=0.0)
        _, metrics = clipped_loss(
            log_probs, batch.old_log_probs, batch.advantages, model._clip_ranges(), model._denoising_discounts()
        )
        assert metrics["clip_fraction"] == 0.0 and metrics["approx_kl"].abs() < 1e-6


def test_timeouts_are_bootstrapped() -> None:
    class Rewards(BaseCallback):
        def _on_step(self) -> bool:
            rewards.append(self.locals["rewards"][0])
            return True

    rewards: list[float] = []
    model = tiny_dppo(Mirror(length=4), n_steps=8, reward_scaling=False, gamma=0.5)
    for parameter in model.critic.parameters():
        parameter.data.zero_()
    model.critic.net[-1].bias.data.fill_(3.0)
    assert model.env is not None
    _, callback = model._setup_learn(8, Rewards())
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 8)
    timeouts = np.array([0, 0, 0, 1, 0, 0, 0, 1])
    np.testing.assert_allclose(model.rollout_buffer.rewards[:, 0], rewards + 0.5 * 3.0 * timeouts, rtol=1e-6)


def test_the_critic_learns_first() -> None:
    model = tiny_dppo(critic_warmup_rollouts=2)
    actor, critic = weights(model.actor), weights(model.critic)
    model.learn(40)
    assert same(weights(model.actor), actor) and not same(weights(model.critic), critic)
    model.learn(20, reset_num_timesteps=False)
    assert not same(weights(model.actor), actor)


def test_evaluated_once_it_has_learned_from_a_roll_out() -> None:
    """SB3 calls back while it collects; a point at a roll-out's end belongs to the policy that learned from it."""
    seen = []

    class Noted(SuccessEvalCallback):
        def evaluate(self) -> Any:
            seen.append((self.num_timesteps, weights(self.model.policy)))

    model = tiny_dppo(Mirror(length=4), critic_warmup_rollouts=0)
    model.learn(60, callback=Noted(lambda: Mirror(length=4), eval_freq=20, n_eval_episodes=1, verbose=0))
    assert [steps for steps, _ in seen] == [0, 20, 40, 60]
    assert same(seen[-1][1], weights(model.policy)) and not same(seen[-1][1], seen[-2][1])


def test_target_kl_ends_a_roll_outs_use() -> None:
    counts = []
    for target_kl in (1e-12, None):
        model = tiny_dppo(critic_warmup_rollouts=0, target_kl=target_kl, n_epochs=5).learn(20)
        counts.append(int(model.actor.optimizer.state_dict()["state"][0]["step"]))
    # The first update starts at a divergence of zero
    assert 2 <= counts[0] < counts[1] == 10


def test_schedules_and_gradient_limit() -> None:
    model = tiny_dppo(
        learning_rate=lambda remaining: 1e-3 * remaining,
        critic_learning_rate=lambda remaining: 1e-2 * remaining,
        clip_range=lambda remaining: 0.1 * remaining,
        max_grad_norm=0.5,
    )
    model.learn(40)
    assert model.actor.optimizer.param_groups[0]["lr"] == model.critic.optimizer.param_groups[0]["lr"] == 0.0
    assert model.logger.name_to_value["train/clip_range"] == 0.0


def test_same_seed_same_weights() -> None:
    results = []
    for seed in (0, 0, 1):
        model = tiny_dppo(Mirror(), seed=seed)
        model.pretrain(mirror_demonstrations(3), gradient_steps=20)
        results.append(weights(model.learn(60).policy))
    assert same(results[0], results[1]) and not same(results[0], results[2])


def test_vec_normalize_and_callbacks(tmp_path: pathlib.Path) -> None:
    env = VecNormalize(DummyVecEnv([Mirror, Mirror]))
    model = tiny_dppo(env, tensorboard_log=str(tmp_path))
    callback = PretrainCallback(mirror_demonstrations(4), gradient_steps=100, verbose=0)
    evaluation = EvalCallback(VecNormalize(DummyVecEnv([Mirror]), training=False), eval_freq=10, verbose=0)
    model.learn(80, [callback, evaluation], progress_bar=True)
    assert model.is_pretrained and np.abs(env.obs_rms.mean - 20.0).max() < 3.0
    assert evaluation.n_calls == 40 and len(list(tmp_path.glob("DPPO*"))) == 2
    # A second time there is nothing to clone
    cloned = weights(model.actor)
    model.learn(40, PretrainCallback(gradient_steps=1), reset_num_timesteps=False)
    assert not same(weights(model.actor), cloned)


# Acting, saving, cloning


def test_deterministic_actions_follow_the_flow_from_a_noise_of_the_state() -> None:
    model = tiny_dppo(Mirror())
    model.pretrain(mirror_demonstrations(3), gradient_steps=50)
    observations = np.random.default_rng(0).normal(20.0, 5.0, (5, 2)).astype(np.float32)
    actions, _ = model.predict(observations, deterministic=True)
    for observation, action in zip(observations, actions, strict=True):
        np.testing.assert_allclose(model.predict(observation, deterministic=True)[0], action, rtol=1e-5, atol=1e-6)
    assert not np.allclose(model.predict(observations)[0], model.predict(observations)[0])
    model.policy.sampling_std = 1e6  # of no consequence without noise
    np.testing.assert_array_equal(model.predict(observations, deterministic=True)[0], actions)


def test_starts_from_swfps_clone() -> None:
    """The actors' parameters are the same, and while no critic picks, so are the actions."""
    swfp, dppo = tiny_model(Mirror()), tiny_dppo(Mirror())
    swfp.pretrain(mirror_demonstrations(3), gradient_steps=100)
    dppo.actor.load_state_dict(swfp.actor.state_dict())
    observations = np.random.default_rng(0).normal(20.0, 5.0, (50, 2)).astype(np.float32)
    expected, _ = swfp.predict(observations, deterministic=True)
    np.testing.assert_allclose(dppo.predict(observations, deterministic=True)[0], expected, rtol=1e-4, atol=1e-5)


def test_round_trip(tmp_path: pathlib.Path) -> None:
    model = tiny_dppo(Mirror(), min_sampling_std=0.3, demonstrations=mirror_demonstrations(3))
    model.pretrain(gradient_steps=20)
    model.learn(60)
    model.save(tmp_path / "model")
    loaded = DPPO.load(tmp_path / "model.zip", env=Mirror(), device="cpu")
    assert same(weights(loaded.policy), weights(model.policy)) and loaded.is_pretrained
    assert loaded.policy.sampling_std == 0.3 and loaded.demonstrations is None
    assert loaded.reward_scaler.scale == model.reward_scaler.scale
    model.observation_space.seed(0)
    observations = np.array([model.observation_space.sample() for _ in range(7)])
    for deterministic in (True, False):
        actions = []
        for each in (model, loaded, type(model.policy).load(_saved(model.policy, tmp_path))):
            th.manual_seed(0)
            actions.append(each.predict(observations, deterministic=deterministic)[0])
        np.testing.assert_array_equal(actions[0], actions[1])
        np.testing.assert_array_equal(actions[0], actions[2])
    for each in (model, loaded):
        each.set_random_seed(3)
        each.set_env(DummyVecEnv([Mirror]))
        each.env.seed(3)
        each.learn(40, reset_num_timesteps=False)
    # Warm-up, optimisers and reward scale went on as if nothing had happened
    assert same(weights(loaded.policy), weights(model.policy)) and loaded.num_timesteps == 100


def _saved(policy: FlowValuePolicy, folder: pathlib.Path) -> str:
    policy.save(str(folder / "policy"))
    return str(folder / "policy")


def test_parameters() -> None:
    model, other = tiny_dppo(), tiny_dppo(seed=1)
    parameters = model.get_parameters()
    assert set(parameters) == {"policy", "actor.optimizer", "critic.optimizer"}
    other.set_parameters(parameters)
    assert same(weights(other.policy), weights(model.policy))


def test_demonstrations_by_path(tmp_path: pathlib.Path) -> None:
    mirror_demonstrations(5).save(tmp_path / "demonstrations.npz")
    model = tiny_dppo(Mirror(), demonstrations=str(tmp_path / "demonstrations.npz"), n_demonstrations=4)
    model.learn(20, PretrainCallback(gradient_steps=10, verbose=0))
    assert model.is_pretrained and model._demonstrations is not None and len(model._demonstrations) == 4
    model.save(tmp_path / "model")
    loaded = DPPO.load(tmp_path / "model", env=Mirror())
    assert loaded._demonstrations is None
    loaded.pretrain(gradient_steps=10)
    assert loaded._demonstrations is not None and len(loaded._demonstrations) == 4
    # Acts where the demonstrations are not; says what is missing where they are needed
    (tmp_path / "demonstrations.npz").unlink()
    loaded = DPPO.load(tmp_path / "model", env=Mirror())
    loaded.predict(np.zeros(2, np.float32))
    with pytest.raises(FileNotFoundError, match="demonstrations.npz"):
        loaded.pretrain()
    with pytest.raises(FileNotFoundError, match="demonstrations.npz"):
        tiny_dppo(Mirror(), demonstrations=str(tmp_path / "demonstrations.npz"))


# Learning


class Bandit(gym.Env):
    """One step; the reward is highest for an action of 0.5."""

    observation_space = spaces.Box(-1.0, 1.0, (1,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), -float((action[0] - 0.5) ** 2), True, False, {}


def test_one_step_bandit() -> None:
    """From noise: the mean reward rises from that of N(0, 1) to near the best."""
    model = tiny_dppo(
        DummyVecEnv([Bandit] * 10),
        learning_rate=3e-3,
        n_steps=50,
        batch_size=100,
        clip_range=0.1,
        clip_range_base=0.1,
        min_sampling_std=0.3,
        min_logprob_std=0.3,
        n_epochs=5,
    )

    def mean_reward() -> float:
        actions, _ = model.predict(np.zeros((2000, 1), np.float32))
        return -float(np.square(actions - 0.5).mean())

    before = mean_reward()
    model.learn(12_000)
    assert before < -0.7 and mean_reward() > 0.3 * before


def test_improves_a_clone_steadily() -> None:
    """The paper's claim in small: a clone of a mediocre demonstrator is fine-tuned, and never gets much worse."""
    env = Mirror()

    def mediocre(_: Any) -> np.ndarray:
        return np.clip(env.best_action() + 0.1 * (HIGH - LOW), LOW, HIGH).astype(np.float32)

    model = tiny_dppo(
        DummyVecEnv([Mirror] * 4),
        demonstrations=record(env, 20, mediocre),
        learning_rate=1e-3,
        n_steps=100,
        batch_size=100,
        n_epochs=5,
        gamma=0.0,
        clip_range=0.05,
        clip_range_base=0.01,
        policy_kwargs={"n_blocks": 3, "block_net_arch": [32, 32]},
    )
    model.pretrain(gradient_steps=400, learning_rate=3e-3)
    evaluation, returns = DummyVecEnv([Mirror]), []
    for steps in (2_000, 2_000, 2_000, 0):
        evaluation.seed(100)
        returns.append(float(evaluate_policy(model, evaluation, n_eval_episodes=20, warn=False)[0]))
        model.learn(steps, reset_num_timesteps=False)
    # The demonstrator's error is about 0.1 in each of 10 steps
    assert returns[0] < -1.0
    assert min(returns) > 1.1 * returns[0] and returns[-1] > 0.3 * returns[0]


# Bad input


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 2]), spaces.MultiBinary(2)])
def test_action_spaces_that_are_not_continuous(space: spaces.Space) -> None:
    env = Mirror()
    env.action_space = space  # type: ignore[assignment]
    with pytest.raises(AssertionError, match=re.escape(str(space))):
        tiny_dppo(env)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_steps": 0}, "n_steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 1}, "batch_size must be at least 2 with normalize_advantage"),
        ({"n_epochs": 0}, "n_epochs must be at least 1, got 0"),
        ({"gamma": 1.5}, r"gamma must lie in \[0, 1\], got 1.5"),
        ({"gae_lambda": -0.1}, r"gae_lambda must lie in \[0, 1\], got -0.1"),
        ({"gamma_denoising": 1.1}, r"gamma_denoising must lie in \[0, 1\], got 1.1"),
        ({"clip_range": 0.0}, "clip_range must be a positive number, got 0.0"),
        ({"clip_range_base": -1.0}, "clip_range_base must be a positive number"),
        ({"clip_range_rate": 0.0}, "clip_range_rate must be a positive number"),
        ({"min_sampling_std": 0.0}, "min_sampling_std must be a positive number"),
        ({"min_logprob_std": float("nan")}, "min_logprob_std must be a positive number, got nan"),
        ({"target_kl": 0.0}, "target_kl must be a positive number"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must be a positive number"),
        ({"critic_warmup_rollouts": -1}, "critic_warmup_rollouts must not be negative, got -1"),
        ({"n_demonstrations": 3}, "n_demonstrations=3 was given without demonstrations"),
        ({"demonstrations": 5}, "cannot load demonstrations from a int"),
        ({"demonstrations": "lost"}, "cannot tell what 'lost' is"),
        ({"policy_kwargs": {"n_blocks": 0}}, "n_blocks must be at least 1, got 0"),
        ({"policy_kwargs": {"net_arch": []}}, "net_arch needs at least one hidden layer"),
    ],
    ids=str,
)
def test_impossible_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_dppo(Mirror(), **arguments)


def test_pretraining_without_demonstrations_or_with_others() -> None:
    with pytest.raises(ValueError, match=r"pretrain\(\) needs demonstrations"):
        tiny_dppo(Mirror()).pretrain()
    with pytest.raises(ValueError, match=r"shape \(2,\), the environment's \(1,\)"):
        tiny_dppo("Pendulum-v1").pretrain(mirror_demonstrations(2))
    with pytest.raises(ValueError, match="gradient_steps must be at least 1"):
        tiny_dppo(Mirror()).pretrain(mirror_demonstrations(2), gradient_steps=0)


def test_nan_from_the_environment_is_refused() -> None:
    class Broken(Mirror):
        def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            observation, _, *rest = super().step(action)
            return observation, float("nan"), *rest  # type: ignore[return-value]

    with pytest.raises(ValueError, match="NaN or infinity: reward"):
        tiny_dppo(Broken()).learn(20)


def test_another_algorithms_file(tmp_path: pathlib.Path) -> None:
    PPO("MlpPolicy", "Pendulum-v1").save(tmp_path / "ppo")
    with pytest.raises(ValueError, match="DPPO needs a FlowValuePolicy, not ActorCriticPolicy"):
        DPPO.load(tmp_path / "ppo")
