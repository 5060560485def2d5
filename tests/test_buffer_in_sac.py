"""The demonstration replay buffer in another algorithm: SB3's SAC takes it as it takes any replay buffer class."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tiny import record

from sb3_swfp.demonstrations import DemonstrationReplayBuffer


def pendulum_demonstrations(tmp_path: Path) -> str:
    env, rng = gym.make("Pendulum-v1", max_episode_steps=30), np.random.default_rng(0)
    path = tmp_path / "pendulum.npz"
    record(env, 1, lambda _: rng.uniform(-2, 2, 1).astype(np.float32)).save(path)
    return str(path)


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("n_envs", [1, 2])
def test_in_sac(tmp_path: Path, n_steps: int, n_envs: int) -> None:
    """Settings that a YAML file can hold, normalised environments, save and load."""
    env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")] * n_envs))
    model = SAC(
        "MlpPolicy",
        env,
        buffer_size=300,
        learning_starts=20,
        batch_size=32,
        policy_kwargs={"net_arch": [8]},
        replay_buffer_class=DemonstrationReplayBuffer,
        replay_buffer_kwargs={"demonstrations": pendulum_demonstrations(tmp_path), "n_steps": n_steps},
        device="cpu",
        seed=0,
    )
    model.learn(60)
    buffer = model.replay_buffer
    assert isinstance(buffer, DemonstrationReplayBuffer)
    assert buffer.last_demonstration_share == 0.5 and buffer.pos == 60 // n_envs
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    model.save(tmp_path / "model")
    loaded = SAC.load(tmp_path / "model", env=env, device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer.pkl")
    assert isinstance(loaded.replay_buffer, DemonstrationReplayBuffer)
    assert loaded.replay_buffer.pos == buffer.pos
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.replay_buffer.pos == 80 // n_envs


def test_in_sac_with_little_memory(tmp_path: Path) -> None:
    model = SAC(
        "MlpPolicy",
        "Pendulum-v1",
        learning_starts=10,
        batch_size=16,
        buffer_size=100,
        optimize_memory_usage=True,
        policy_kwargs={"net_arch": [8]},
        replay_buffer_class=DemonstrationReplayBuffer,
        replay_buffer_kwargs={
            "demonstrations": pendulum_demonstrations(tmp_path),
            "handle_timeout_termination": False,
        },
        device="cpu",
    )
    model.learn(30)
    with pytest.warns(UserWarning, match="will be truncated"):
        model.learn(30)
    assert model.replay_buffer is not None and model.replay_buffer.dones[29, 0] == 1
