"""What the SB3-style tests share: a model that trains in a second, an environment whose best action is known."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.envs import BitFlippingEnv

from sb3_swfp import SWFP, DemonstrationReplayBuffer, Demonstrations, Episode

#: Each dimension lies differently around zero, so that a scaling left out or done twice shows
LOW, HIGH = np.array([-2.0, 1.0], np.float32), np.array([3.0, 1.5], np.float32)


def tiny_model(env: Any = "Pendulum-v1", policy: Any = "FlowPolicy", **kwargs: Any) -> SWFP:
    """
    SWFP with small networks and short epochs, so that 60 steps see several of everything.

    :param env: environment, or its id
    :param policy: policy, or its alias
    :param kwargs: arguments of SWFP in place of these defaults; ``policy_kwargs`` are merged
    """
    defaults: dict[str, Any] = dict(
        learning_starts=20, batch_size=16, buffer_size=500, jko_epoch=5, critic_warmup=10, device="cpu", seed=0
    )
    policy_kwargs = dict(n_blocks=2, block_net_arch=[16], net_arch=[64, 64]) | kwargs.pop("policy_kwargs", {})
    return SWFP(policy, env, policy_kwargs=policy_kwargs, **(defaults | kwargs))


def subprocess_environment() -> dict[str, str]:
    """
    :return: environment in which a subprocess finds this checkout's package, and keeps to one thread
    """
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}


def with_demonstrations(demonstrations: Any, **kwargs: Any) -> dict[str, Any]:
    """
    :param demonstrations: what the buffer's argument of that name takes
    :param kwargs: its further arguments
    :return: SWFP's arguments for a ``DemonstrationReplayBuffer``
    """
    return dict(
        replay_buffer_class=DemonstrationReplayBuffer,
        replay_buffer_kwargs=dict(demonstrations=demonstrations, **kwargs),
    )


class Mirror(gym.Env):
    """
    A new state each step, and the reward is highest for :meth:`best_action` in it.

    :param kind: ``"vector"`` (far from zero mean and unit variance), ``"image"`` or ``"dict"`` (both)
    :param low: lower bounds of the two actions
    :param high: upper bounds of the two actions
    :param length: steps to the time limit
    :param shape: shape of the action
    """

    def __init__(
        self,
        kind: str = "vector",
        low: np.ndarray = LOW,
        high: np.ndarray = HIGH,
        length: int = 10,
        shape: tuple[int, ...] = (2,),
    ) -> None:
        super().__init__()
        vector, image = spaces.Box(-100.0, 100.0, (2,)), spaces.Box(0, 255, (36, 36, 1), np.uint8)
        both = spaces.Dict({"image": image, "vector": vector})
        self.kind, self.length = kind, length
        self.observation_space = {"vector": vector, "image": image, "dict": both}[kind]
        self.action_space = spaces.Box(low.reshape(shape), high.reshape(shape), dtype=low.dtype.type)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self._next(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action} is outside the action space"
        error = (action - self.best_action()) / (self.action_space.high - self.action_space.low)
        self.t += 1
        return self._next(), -float(np.abs(error).mean()), False, self.t >= self.length, {}

    def best_action(self) -> np.ndarray:
        """:return: the best action in the present state: an affine function of it, inside the bounds"""
        low, high = self.action_space.low, self.action_space.high
        scaled = 0.5 + 0.4 * self.state.reshape(low.shape)
        return (low + (high - low) * scaled).astype(low.dtype)

    def _next(self) -> Any:
        self.state = self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32)
        image = np.repeat(127.0 + 120.0 * self.state, 18).astype(np.uint8)
        parts = {"vector": 20.0 + 5.0 * self.state, "image": np.repeat(image[:, None], 36, axis=1)[..., None]}
        return parts if self.kind == "dict" else parts[self.kind]


def record(env: gym.Env, n_episodes: int, act: Callable[[Any], np.ndarray]) -> Demonstrations:
    """
    :param env: environment
    :param n_episodes: episodes to record; the first is seeded with 0, the second with 1, ...
    :param act: the demonstrator: observation in, action out
    :return: the recordings
    """
    episodes = []
    for seed in range(n_episodes):
        observations, actions, rewards, ends = [env.reset(seed=seed)[0]], [], [], [(False, False)]
        while not any(ends[-1]):
            actions.append(act(observations[-1]))
            observation, reward, *end, _ = env.step(actions[-1])
            observations.append(observation)
            rewards.append(float(reward))
            ends.append((bool(end[0]), bool(end[1])))
        first, terminations, truncations = observations[0], *np.array(ends[1:]).T
        stacked: Any = np.array(observations)
        if isinstance(first, dict):
            stacked = {key: np.array([each[key] for each in observations]) for key in first}
        flat = np.array(actions).reshape(len(actions), -1)
        episodes.append(Episode(stacked, flat, np.array(rewards), terminations, truncations))
    return Demonstrations(episodes)


def mirror_demonstrations(n_episodes: int = 5, **kwargs: Any) -> Demonstrations:
    """
    :param n_episodes: episodes to record
    :param kwargs: arguments of :class:`Mirror`
    :return: demonstrations of the best actions
    """
    env = Mirror(**kwargs)
    return record(env, n_episodes, lambda _: env.best_action())


def goal_env(n_bits: int = 4) -> BitFlippingEnv:
    """:return: SB3's goal environment: flip all bits to one by positive actions"""
    return BitFlippingEnv(n_bits=n_bits, continuous=True, max_steps=n_bits)


def goal_demonstrations(n_episodes: int = 6) -> Demonstrations:
    """:return: demonstrations that flip one bit a step"""

    def flip_first_zero(observation: Any) -> np.ndarray:
        action = np.full(4, -0.5, np.float32)
        action[np.argmin(observation["observation"])] = 0.5
        return action

    return record(goal_env(), n_episodes, flip_first_zero)


def weights(module: th.nn.Module) -> dict[str, th.Tensor]:
    """:return: a copy of the module's parameters and buffers"""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(first: dict[str, th.Tensor], second: dict[str, th.Tensor]) -> bool:
    """:return: whether both hold the same values under the same names"""
    return first.keys() == second.keys() and all(th.equal(first[name], second[name]) for name in first)


def metrics(model: SWFP) -> dict[str, Any]:
    """:return: what the model last logged under train/, without that prefix"""
    logged = model.logger.name_to_value.items()
    return {name.removeprefix("train/"): value for name, value in logged if name.startswith("train/")}
