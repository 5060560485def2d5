"""Acting: shapes, types and bounds, from every kind of observation that SB3's predict takes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, VecTransposeImage
from tiny import Mirror, goal_env, tiny_model

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not th.cuda.is_available(), reason="needs CUDA"))]


@pytest.mark.parametrize("device", [*DEVICES, "auto"])
@pytest.mark.parametrize("ripe", [False, True])
@pytest.mark.parametrize("kind", ["vector", "image", "dict"])
def test_single_and_batched_observations(kind: str, ripe: bool, device: str) -> None:
    model = tiny_model(DummyVecEnv([lambda: Mirror(kind)] * 3), device=device)
    model.policy.critic_is_ripe.fill_(ripe)
    env, space = Mirror(kind), model.action_space
    observation, _ = env.reset(seed=0)
    assert model.env is not None
    for deterministic in (True, False):
        action, state = model.predict(observation, deterministic=deterministic)
        assert isinstance(action, np.ndarray) and action.dtype == space.dtype and state is None
        assert space.contains(action)
        env.step(action)
        actions, _ = model.predict(model.env.reset(), deterministic=deterministic)  # type: ignore[arg-type]
        assert actions.shape == (3, 2) and all(space.contains(each) for each in actions)


def test_the_environment_is_wrapped() -> None:
    model = tiny_model(Mirror("image"))
    assert isinstance(model.get_env(), VecTransposeImage)
    assert isinstance(tiny_model("Pendulum-v1").get_env(), DummyVecEnv)


def test_a_state_of_gyms_api_in_the_place_of_an_observation() -> None:
    model, env = tiny_model(Mirror()), Mirror()
    with pytest.raises(ValueError, match="mixing Gym API"):
        model.predict(env.reset())  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 2, 2)])
def test_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        tiny_model(Mirror()).predict(np.zeros(shape, np.float32))


def test_recurrent_arguments_are_ignored() -> None:
    model = tiny_model(Mirror())
    observation = np.full((2, 2), 20.0, np.float32)
    plain, _ = model.predict(observation, deterministic=True)
    given, state = model.predict(observation, state=None, episode_start=np.ones(2, bool), deterministic=True)
    np.testing.assert_array_equal(plain, given)
    assert state is None


def test_the_critic_picks_only_once_it_is_ripe() -> None:
    model = tiny_model(Mirror(), policy_kwargs={"n_candidates": 32}).learn(30)
    policy = model.policy
    observations = th.full((64, 2), 20.0) + th.randn(64, 2)
    values = []
    with th.no_grad():
        for ripe in (False, True):
            policy.critic_is_ripe.fill_(ripe)
            policy.temperature.fill_(1e-6)
            for deterministic in (True, False):
                actions = policy(observations, deterministic=deterministic)
                values.append(policy.critic(observations, actions).mean().item())
    unripe, ripened = values[:2], values[2:]
    assert min(ripened) > max(unripe)


def test_a_hot_temperature_explores_evenly_and_a_cold_one_exploits() -> None:
    model = tiny_model(Mirror(), policy_kwargs={"n_candidates": 16}).learn(30)
    policy = model.policy
    policy.critic_is_ripe.fill_(True)
    observations = th.full((400, 2), 20.0)
    with th.no_grad():
        means = []
        for temperature in (1e-6, 1e6):
            policy.temperature.fill_(temperature)
            means.append(policy.critic(observations, policy(observations)).mean().item())
        policy.critic_is_ripe.fill_(False)
        one = policy.critic(observations, policy(observations)).mean().item()
    spread = abs(means[0] - one)
    assert means[0] > means[1] and abs(means[1] - one) < 0.3 * spread


def test_goal_dictionaries() -> None:
    model = tiny_model(goal_env())
    observation, _ = goal_env().reset(seed=0)
    assert model.predict(observation)[0].shape == (4,)  # type: ignore[arg-type]


def test_spaces_of_a_subclass() -> None:
    class Bounded(gym.spaces.Box):
        """A space of one's own."""

    class Own(Mirror):
        def __init__(self) -> None:
            super().__init__()
            self.action_space: Any = Bounded(-1.0, 1.0, (2,))
            self.observation_space = Bounded(-100.0, 100.0, (2,))

    env = Own()
    model = tiny_model(env).learn(22)
    assert env.action_space.contains(model.predict(env.reset()[0])[0])
