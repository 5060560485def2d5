"""Observation and action spaces of every kind that SB3's SAC takes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny import Mirror, goal_env, record, tiny_model, with_demonstrations

BOX = spaces.Box(-1.0, 1.0, (2,))


class Sampler(gym.Env):
    """Observations drawn from any space; acting changes nothing."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space = BOX) -> None:
        self.observation_space, self.action_space, self.t = observation_space, action_space, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.t += 1
        return self.observation_space.sample(), 0.0, False, self.t == 8, {}


@pytest.mark.parametrize("kind", ["vector", "image", "dict"])
def test_the_tests_own_environment_is_sound(kind: str) -> None:
    check_env(Mirror(kind), warn=False)
    check_env(goal_env(), warn=False)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(4),
        spaces.MultiDiscrete([4, 3]),
        spaces.MultiBinary(5),
        spaces.Box(-1.0, 1.0, (2, 3)),
        spaces.Box(-1.0, 1.0, (3,), np.float64),
        spaces.Box(0, 9, (3,), np.int64),
        spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(-1.0, 1.0, (2,), np.float64)}),
    ],
    ids=str,
)
def test_observation_spaces(space: spaces.Space) -> None:
    env = Sampler(space)
    demonstrations = record(env, 3, lambda _: BOX.sample())
    model = tiny_model(DummyVecEnv([lambda: env]), **with_demonstrations(demonstrations))
    model.pretrain(gradient_steps=5)
    model.learn(40)
    action, _ = model.predict(space.sample(), deterministic=True)
    assert action.shape == (2,)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1.0, 1.0, (1,)),
        spaces.Box(np.array([-2.0, 0.0, 5.0], np.float32), np.array([1.0, 0.1, 6.0], np.float32)),
        spaces.Box(0.0, 1.0, (2, 3)),
        spaces.Box(-3.0, 1.0, (3,), np.float64),
        spaces.Box(-1.0, 1.0, (17,)),
    ],
    ids=str,
)
def test_action_spaces(space: spaces.Box) -> None:
    """Shape, bounds and type of actions are the space's own, and demonstrations are scaled by its bounds."""
    env = Sampler(spaces.Box(-1.0, 1.0, (3,)), space)
    demonstrations = record(env, 3, lambda _: space.sample())
    model = tiny_model(env, **with_demonstrations(demonstrations))
    model.pretrain(gradient_steps=5)
    model.learn(40)
    observation = env.observation_space.sample()
    for deterministic in (True, False):
        action, _ = model.predict(observation, deterministic=deterministic)
        assert action.dtype == space.dtype and space.contains(action)
    assert model.replay_buffer is not None
    stored = model.replay_buffer.sample(200).actions
    assert stored.abs().max() <= 1.0 + 1e-6 and (stored.min() < -0.7) and (stored.max() > 0.7)


def test_a_non_default_action_space_reaches_its_bounds() -> None:
    """Random exploration and the policy's actions are in the environment's own units, not in [-1, 1]."""
    model = tiny_model(Mirror(), learning_starts=200, buffer_size=200).learn(200)
    assert model.replay_buffer is not None
    unscaled = model.policy.unscale_action(model.replay_buffer.actions[:, 0])
    np.testing.assert_allclose(unscaled.min(axis=0), model.action_space.low, atol=0.1)
    np.testing.assert_allclose(unscaled.max(axis=0), model.action_space.high, atol=0.1)
