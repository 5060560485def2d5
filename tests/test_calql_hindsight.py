"""Cal-QL with hindsight goals: returns of the goals that are sampled, and what holds for every baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tiny import goal_demonstrations, goal_env, same, weights

from sb3_swfp.baselines import HindsightCalQL
from sb3_swfp.baselines.calql import CalibratedSamples
from sb3_swfp.baselines.calql_hindsight import HindsightMonteCarloReplayBuffer

GAMMA = 0.9


def make(n_envs: int = 1, n_bits: int = 4, env: Any = None, **kwargs: Any) -> HindsightCalQL:
    arguments: dict[str, Any] = dict(
        learning_starts=20,
        batch_size=16,
        buffer_size=500,
        gradient_steps=1,
        cql_n_actions=3,
        gamma=GAMMA,
        seed=0,
        device="cpu",
        policy_kwargs=dict(net_arch=[32, 32]),
        replay_buffer_kwargs=dict(demonstrations=goal_demonstrations()) if n_bits == 4 else None,
    )
    env = DummyVecEnv([lambda: goal_env(n_bits)] * n_envs) if env is None else env
    return HindsightCalQL("MultiInputPolicy", env, **(arguments | kwargs))


def by_hand(buffer: HindsightMonteCarloReplayBuffer, row: int, env: int, goal: np.ndarray | None) -> float:
    """The return from a row on, step by step."""
    start, length = int(buffer.ep_start[row, env]), int(buffer.ep_length[row, env])
    rewards = []
    for step in range(length):
        at = (start + step) % buffer.buffer_size
        reached = buffer.next_observations["achieved_goal"][at, env]
        rewards.append(float(buffer.rewards[at, env]) if goal is None else 0.0 if (reached == goal).all() else -1.0)
    value = 0.0
    if buffer.timeouts[(start + length - 1) % buffer.buffer_size, env] > 0 and buffer.gamma < 1.0:
        value = float(np.mean(rewards[-10:])) / (1.0 - buffer.gamma)
    for reward in reversed(rewards[(row - start) % buffer.buffer_size :]):
        value = reward + buffer.gamma * value
    return value


@pytest.mark.parametrize("gamma", [GAMMA, 1.0])
@pytest.mark.parametrize("n_bits", [4, 13])
def test_returns_of_any_goal(n_bits: int, gamma: float) -> None:
    """Short episodes and long ones, in a buffer that has wrapped around, from two environments."""
    model = make(2, n_bits, gamma=gamma, buffer_size=200, learning_starts=10_000)
    model.learn(340)
    buffer: Any = model.replay_buffer
    rows, envs = np.nonzero(buffer._online.ep_length > 0)
    assert buffer.full and len(rows) > 100 and (buffer.timeouts > 0).any()
    assert buffer.dones.sum() > buffer.timeouts.sum() or n_bits > 4  # some of the short ones reach the goal
    part: HindsightMonteCarloReplayBuffer = buffer._online
    goals = np.random.default_rng(0).integers(0, 2, (len(rows), n_bits)).astype(np.float32)
    goals[::2] = part.next_observations["achieved_goal"][rows[::2], envs[::2]]
    pursued = part.monte_carlo_returns(rows, envs)
    others = part.monte_carlo_returns(rows, envs, goals)
    pairs = list(zip(rows, envs, strict=True))
    np.testing.assert_allclose(pursued, [by_hand(part, r, e, None) for r, e in pairs], rtol=1e-6)
    expected = [by_hand(part, r, e, goal) for (r, e), goal in zip(pairs, goals, strict=True)]
    np.testing.assert_allclose(others, expected, rtol=1e-6)
    assert not np.allclose(pursued, others)


@pytest.mark.parametrize("strategy", ["future", "final", "episode"])
@pytest.mark.parametrize("copy_info_dict", [False, True])
def test_each_sample_has_the_return_of_its_own_goal(copy_info_dict: bool, strategy: str) -> None:
    """Demonstrated or not, real or virtual: found again by its action, which no other transition has."""
    of_part = dict(copy_info_dict=copy_info_dict, goal_selection_strategy=strategy)
    kwargs = dict(demonstrations=goal_demonstrations(), online_buffer_kwargs=of_part)
    model = make(2, learning_starts=10_000, replay_buffer_kwargs=kwargs)
    model.learn(100)
    buffer: Any = model.replay_buffer
    relabelled = 0
    for part in (buffer._online, buffer._expert):
        batch = part.sample(100)
        assert isinstance(batch, CalibratedSamples) and batch.monte_carlo_returns.shape == (100, 1)
        for i, action in enumerate(batch.actions.numpy()):
            found = np.argwhere((part.actions == action).all(axis=-1))
            goal = batch.observations["desired_goal"][i].numpy()  # type: ignore[call-overload]
            value = float(batch.monte_carlo_returns[i])
            assert any(abs(by_hand(part, row, env, goal) - value) < 1e-3 for row, env in found)
            relabelled += not goal.all()
    assert relabelled > 50


def test_returns_are_scaled_as_rewards_are() -> None:
    env = VecNormalize(DummyVecEnv([goal_env]), norm_obs=False, gamma=GAMMA)
    model = make(env=env, learning_starts=10_000)
    model.learn(60)
    part: Any = model.replay_buffer._online  # type: ignore[union-attr]
    rng = np.random.get_state()
    raw = part.sample(50).monte_carlo_returns.numpy()
    np.random.set_state(rng)
    scaled = part.sample(50, env).monte_carlo_returns.numpy()
    np.testing.assert_allclose(scaled, raw / np.sqrt(env.ret_rms.var + env.epsilon), rtol=1e-5)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_offline_then_online_saved_and_loaded(n_envs: int, tmp_path: Path) -> None:
    models = []
    for _ in range(2):
        model = make(n_envs)
        models.append(model)
        before = weights(model.policy)
        model.pretrain(gradient_steps=12)
        offline = weights(model.policy)
        assert not same(before, offline) and model.is_pretrained and model.policy_delay == 1
        model.learn(60)
        assert not same(offline, weights(model.policy)) and 0.0 < model._metrics["calibrated_share"] <= 1.0
    assert same(weights(models[0].policy), weights(models[1].policy))
    models[0].save(tmp_path / "model")
    models[0].save_replay_buffer(tmp_path / "buffer.pkl")
    loaded = HindsightCalQL.load(tmp_path / "model", env=models[0].get_env())
    loaded.load_replay_buffer(tmp_path / "buffer.pkl")
    assert same(weights(loaded.policy), weights(models[0].policy))
    part, again = (model.replay_buffer._online for model in (models[0], loaded))  # type: ignore[union-attr]
    rows, envs = np.nonzero(part.ep_length > 0)
    np.testing.assert_array_equal(again.monte_carlo_returns(rows, envs), part.monte_carlo_returns(rows, envs))
    loaded.learn(40, reset_num_timesteps=False)
    assert loaded.predict(loaded.get_env().reset())[0].shape == (n_envs, 4)  # type: ignore[union-attr]


def test_hindsight_of_sb3_is_its_own() -> None:
    """So that the arguments that other algorithms have fit; gamma follows the algorithm's."""
    for name in ("stable_baselines3.HerReplayBuffer", "stable_baselines3.her.HerReplayBuffer", HerReplayBuffer, None):
        arguments = dict(online_buffer_class=name, online_buffer_kwargs=dict(n_sampled_goal=2))
        buffer: Any = make(replay_buffer_kwargs=arguments).replay_buffer
        assert isinstance(buffer._online, HindsightMonteCarloReplayBuffer)
        assert buffer._online.n_sampled_goal == 2 and buffer._online.gamma == GAMMA


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="has no n-step returns: set n_steps=1"):
        make(n_steps=3)
    with pytest.raises(ValueError, match="needs demonstrations"):
        make(replay_buffer_kwargs={}).pretrain(gradient_steps=1)
    for wrong in (DictReplayBuffer, "stable_baselines3.common.buffers.DictReplayBuffer", 3):
        with pytest.raises(
            ValueError, match="must be HindsightMonteCarloReplayBuffer or a subclass of it, not .*(DictReplayBuffer|3)"
        ):
            make(replay_buffer_kwargs=dict(online_buffer_class=wrong))
    with pytest.raises(ValueError, match="there is no class 'no.such.Buffer'"):
        make(replay_buffer_kwargs=dict(online_buffer_class="no.such.Buffer"))
    model = make(learning_starts=0, replay_buffer_kwargs={})
    model.learn(3)
    assert model._n_updates == 0  # no episode has ended


def test_a_file_without_its_environment_or_with_another_discount(tmp_path: Path) -> None:
    model = make().learn(40)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    with pytest.raises(ValueError, match="hindsight needs the environment's rewards"):
        HindsightCalQL.load(tmp_path / "model").pretrain(goal_demonstrations(), gradient_steps=1)
    loaded = HindsightCalQL.load(tmp_path / "model", env=model.get_env(), gamma=0.5)
    loaded.load_replay_buffer(tmp_path / "buffer.pkl")
    buffer: Any = loaded.replay_buffer
    assert buffer._online.gamma == buffer._expert.gamma == 0.5
