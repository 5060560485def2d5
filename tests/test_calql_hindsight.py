"""Cal-QL with hindsight goals: returns of the goals that are sampled, and what holds for every baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny import goal_demonstrations, goal_env, same, weights

from sb3_swfp.baselines import HindsightCalQL
from sb3_swfp.baselines.calql import CalibratedSamples
from sb3_swfp.baselines.calql_hindsight import HindsightMonteCarloBuffer

GAMMA = 0.9


def make(n_envs: int = 1, n_bits: int = 4, **kwargs: Any) -> HindsightCalQL:
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
    env = DummyVecEnv([lambda: goal_env(n_bits)] * n_envs)
    return HindsightCalQL("MultiInputPolicy", env, **(arguments | kwargs))


def by_hand(buffer: HindsightMonteCarloBuffer, row: int, env: int, goal: np.ndarray | None) -> float:
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
    part: HindsightMonteCarloBuffer = buffer._online
    goals = np.random.default_rng(0).integers(0, 2, (len(rows), n_bits)).astype(np.float32)
    goals[::2] = part.next_observations["achieved_goal"][rows[::2], envs[::2]]
    pursued = part.monte_carlo_returns(rows, envs)
    others = part.monte_carlo_returns(rows, envs, goals)
    pairs = list(zip(rows, envs, strict=True))
    np.testing.assert_allclose(pursued, [by_hand(part, r, e, None) for r, e in pairs], rtol=1e-6)
    expected = [by_hand(part, r, e, goal) for (r, e), goal in zip(pairs, goals, strict=True)]
    np.testing.assert_allclose(others, expected, rtol=1e-6)
    assert not np.allclose(pursued, others)


def test_each_sample_has_the_return_of_its_own_goal() -> None:
    model = make(learning_starts=10_000)
    model.learn(60)
    buffer: Any = model.replay_buffer
    part: HindsightMonteCarloBuffer = buffer._online
    batch = buffer.sample(200)
    assert isinstance(batch, CalibratedSamples) and batch.monte_carlo_returns.shape == (200, 1)
    # One step before the end of an episode that ends by success the return is the reward
    ended = batch.dones[:, 0] > 0
    assert bool(ended.any())
    assert same({"": batch.monte_carlo_returns[ended]}, {"": batch.rewards[ended]})
    # The lowest return is that of never reaching the goal, and no sample of hindsight's last step has it
    assert float(batch.monte_carlo_returns.min()) >= -1.0 / (1.0 - GAMMA) - 1e-4
    assert float(batch.monte_carlo_returns.max()) <= 0.0
    assert len(part._returns) == 2


@pytest.mark.parametrize("n_envs", [1, 2])
def test_offline_then_online_saved_and_loaded(n_envs: int, tmp_path: Path) -> None:
    models = []
    for _ in range(2):
        model = make(n_envs)
        models.append(model)
        before = {name: value.clone() for name, value in weights(model.policy).items()}
        model.pretrain(gradient_steps=12)
        offline = {name: value.clone() for name, value in weights(model.policy).items()}
        assert not same(before, offline) and model.is_pretrained and model.policy_delay == 1
        model.learn(60)
        assert not same(offline, weights(model.policy)) and model._metrics["calibrated_share"] >= 0.0
    assert same(weights(models[0].policy), weights(models[1].policy))
    models[0].save(tmp_path / "model")
    models[0].save_replay_buffer(tmp_path / "buffer.pkl")
    loaded = HindsightCalQL.load(tmp_path / "model", env=models[0].get_env())
    loaded.load_replay_buffer(tmp_path / "buffer.pkl")
    assert same(weights(loaded.policy), weights(models[0].policy))
    loaded.learn(40, reset_num_timesteps=False)
    assert loaded.predict(loaded.get_env().reset())[0].shape == (n_envs, 4)  # type: ignore[union-attr]


def test_hindsight_of_sb3_is_its_own() -> None:
    """So that the arguments that other algorithms have fit; gamma follows the algorithm's."""
    for name in ("stable_baselines3.HerReplayBuffer", None):
        arguments = dict(online_buffer_class=name, online_buffer_kwargs=dict(n_sampled_goal=2))
        buffer: Any = make(replay_buffer_kwargs=arguments).replay_buffer
        assert isinstance(buffer._online, HindsightMonteCarloBuffer)
        assert buffer._online.n_sampled_goal == 2 and buffer._online.gamma == GAMMA


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="has no n-step returns: set n_steps=1"):
        make(n_steps=3)
    with pytest.raises(ValueError, match="needs demonstrations"):
        make(replay_buffer_kwargs={}).pretrain(gradient_steps=1)
    model = make(learning_starts=0, replay_buffer_kwargs={})
    model.learn(3)
    assert model._n_updates == 0  # no episode has ended
