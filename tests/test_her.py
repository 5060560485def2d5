"""Hindsight goals: SB3's buffer by itself, and inside the buffer that keeps demonstrations in play."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv
from tiny import goal_demonstrations, goal_env, metrics, same, tiny_model, weights, with_demonstrations

from sb3_swfp import SWFP, DemonstrationReplayBuffer


def with_her(demonstrated: bool) -> dict[str, Any]:
    """SWFP's arguments for hindsight goals, all of which a YAML file could hold but for the demonstrations."""
    if not demonstrated:
        return dict(replay_buffer_class=HerReplayBuffer, replay_buffer_kwargs={"n_sampled_goal": 2})
    return with_demonstrations(
        goal_demonstrations(),
        online_buffer_class="stable_baselines3.HerReplayBuffer",
        online_buffer_kwargs={"n_sampled_goal": 2},
    )


@pytest.mark.parametrize("demonstrated", [False, True])
@pytest.mark.parametrize("n_envs", [1, 2])
def test_learns(demonstrated: bool, n_envs: int) -> None:
    env = DummyVecEnv([goal_env] * n_envs)
    model = tiny_model(env, "MultiInputPolicy", **with_her(demonstrated)).learn(80)
    assert np.isfinite(list(metrics(model).values())).all()
    assert metrics(model).get("demonstration_share", 0.5) == 0.5
    assert model.replay_buffer is not None and model.replay_buffer.pos == 80 // n_envs
    # Reaching the relabelled goal is rewarded by 0, anything else by -1: both occur
    assert set(model.replay_buffer.sample(200).rewards.unique().tolist()) == {-1.0, 0.0}


@pytest.mark.parametrize("strategy", ["final", "future", "episode"])
def test_goal_selection_strategies(strategy: str) -> None:
    arguments = with_her(False)
    arguments["replay_buffer_kwargs"]["goal_selection_strategy"] = strategy
    model = tiny_model(goal_env(), **arguments).learn(40)
    buffer: Any = model.replay_buffer
    assert buffer.goal_selection_strategy.name == strategy.upper()
    goals = buffer.sample(100).observations["desired_goal"]
    achieved = {tuple(goal) for goal in buffer.next_observations["achieved_goal"][: buffer.pos, 0].tolist()}
    # Two of three goals were reached later on, the rest are those that the environment asked for
    assert np.mean([tuple(goal) in achieved for goal in goals.tolist()]) >= 0.66


@pytest.mark.parametrize("demonstrated", [False, True])
def test_several_processes(demonstrated: bool) -> None:
    env = SubprocVecEnv([goal_env] * 2)
    try:
        model = tiny_model(env, train_freq=4, **with_her(demonstrated)).learn(60)
        assert model.num_timesteps == 64 and model._n_updates > 0
        assert np.isfinite(list(metrics(model).values())).all()
    finally:
        env.close()


def test_pretrain_then_learn() -> None:
    model = tiny_model(goal_env(), **with_her(True))
    model.pretrain(gradient_steps=30, critic_gradient_steps=10)
    model.learn(60)
    assert metrics(model)["demonstration_share"] == 0.5  # without hindsight goals it would be a tenth


@pytest.mark.parametrize("demonstrated", [False, True])
@pytest.mark.parametrize("truncate", [False, True])
def test_save_and_load(tmp_path: pathlib.Path, demonstrated: bool, truncate: bool) -> None:
    env = DummyVecEnv([lambda: goal_env(4)])
    model = tiny_model(env, **with_her(demonstrated)).learn(61)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    loaded = SWFP.load(tmp_path / "model", env=env)
    assert same(weights(loaded.policy), weights(model.policy))
    loaded.load_replay_buffer(tmp_path / "buffer.pkl", truncate_last_traj=truncate)
    old: Any = model.replay_buffer
    new: Any = loaded.replay_buffer
    assert new.pos == old.pos == 61
    for key, value in old.observations.items():
        np.testing.assert_array_equal(new.observations[key], value)
    np.testing.assert_array_equal(new.rewards, old.rewards)
    if isinstance(new, DemonstrationReplayBuffer):
        assert len(new.demonstrations or []) == 6
    loaded.learn(40, reset_num_timesteps=False)
    assert new.pos == 101 and loaded.num_timesteps == 101


def test_a_clone_loaded_without_an_environment_acts(tmp_path: pathlib.Path) -> None:
    """Rewards of new goals come from the environment, acting needs none."""
    model = tiny_model(goal_env(), **with_her(True))
    model.pretrain(gradient_steps=20)
    model.save(tmp_path / "model")
    loaded = SWFP.load(tmp_path / "model")
    observation = goal_env().reset(seed=0)[0]
    actions = [each.predict(observation, deterministic=True)[0] for each in (model, loaded)]  # type: ignore[arg-type]
    np.testing.assert_array_equal(*actions)
    # Given one later, it learns
    loaded.set_env(goal_env())
    loaded.learn(40)
