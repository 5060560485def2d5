"""VecNormalize treats demonstrations and online data alike."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tiny import Mirror, metrics, mirror_demonstrations, tiny_model, with_demonstrations

from sb3_swfp import SWFP
from sb3_swfp.callbacks import PretrainCallback


def normalised(kind: str = "vector", n_envs: int = 1, **kwargs: Any) -> VecNormalize:
    return VecNormalize(DummyVecEnv([lambda: Mirror(kind)] * n_envs), **kwargs)


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("demonstrated", [False, True])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_stored_raw_and_sampled_normalised(n_envs: int, demonstrated: bool, n_steps: int) -> None:
    env = normalised(n_envs=n_envs)
    arguments = with_demonstrations(mirror_demonstrations(3)) if demonstrated else {}
    model = tiny_model(env, n_steps=n_steps, **arguments).learn(60)
    assert np.isfinite(list(metrics(model).values())).all()
    buffer: Any = model.replay_buffer
    assert model._vec_normalize_env is env
    raw, seen = buffer.sample(400).observations.numpy(), buffer.sample(400, env=env).observations.numpy()
    np.testing.assert_allclose(raw.mean(axis=0), 20, atol=1.5)
    np.testing.assert_allclose(seen.mean(axis=0), 0, atol=0.3)
    np.testing.assert_allclose(seen.std(axis=0), 1, atol=0.3)
    assert buffer.next_observations[: buffer.pos - 1].min() > 14  # final observations of episodes too


@pytest.mark.parametrize("kind", ["vector", "dict"])
def test_pretraining_fits_fresh_statistics_to_the_demonstrations(kind: str) -> None:
    demonstrations = mirror_demonstrations(10, kind=kind)
    env = normalised(kind, norm_obs_keys=["vector"] if kind == "dict" else None)
    model = tiny_model(env)
    model.pretrain(demonstrations, gradient_steps=5)
    observations: Any = demonstrations.observations()
    vectors = observations["vector"] if kind == "dict" else observations
    statistics: Any = env.obs_rms["vector"] if isinstance(env.obs_rms, dict) else env.obs_rms
    np.testing.assert_allclose(statistics.mean, vectors.mean(axis=0), rtol=1e-4)
    assert env.ret_rms.var > 0 and env.ret_rms.count > 99


def test_cloning_by_the_callback_fits_them_too() -> None:
    """``learn()`` has reset the environment by then, and a ``VecNormalize`` has counted the first observations."""
    demonstrations = mirror_demonstrations(10)
    env = normalised()
    model = tiny_model(env, learning_starts=1_000)
    model.learn(1, callback=PretrainCallback(demonstrations, gradient_steps=5, verbose=0))
    observations: Any = demonstrations.observations()
    statistics: Any = env.obs_rms
    assert len(observations) + 1 <= statistics.count < len(observations) + 3
    np.testing.assert_allclose(statistics.mean, observations.mean(axis=0), rtol=0.1)
    np.testing.assert_allclose(statistics.var, observations.var(axis=0), rtol=0.1)


def test_pretraining_leaves_statistics_that_have_seen_data() -> None:
    env = normalised()
    env.reset()
    for _ in range(20):
        env.step(np.array([env.action_space.sample()]))
    mean, count = env.obs_rms.mean.copy(), env.obs_rms.count  # type: ignore[union-attr]
    tiny_model(env).pretrain(mirror_demonstrations(3), gradient_steps=5)
    np.testing.assert_array_equal(env.obs_rms.mean, mean)  # type: ignore[union-attr]
    assert env.obs_rms.count == count  # type: ignore[union-attr]


@pytest.mark.parametrize("kwargs", [{"norm_obs": False}, {"norm_reward": False}, {"training": False}], ids=str)
def test_switched_off_in_part(kwargs: dict[str, Any]) -> None:
    model = tiny_model(normalised(**kwargs), **with_demonstrations(mirror_demonstrations(3)))
    model.pretrain(gradient_steps=5, critic_gradient_steps=5)
    model.learn(40)
    assert np.isfinite(list(metrics(model).values())).all()


def test_save_load_and_go_on(tmp_path: pathlib.Path) -> None:
    env = normalised()
    model = tiny_model(env, **with_demonstrations(mirror_demonstrations(3))).learn(40)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    env.save(str(tmp_path / "statistics.pkl"))
    restored = VecNormalize.load(str(tmp_path / "statistics.pkl"), DummyVecEnv([Mirror]))
    loaded = SWFP.load(tmp_path / "model", env=restored)
    loaded.load_replay_buffer(tmp_path / "buffer.pkl")
    assert loaded.get_vec_normalize_env() is restored
    raw = np.full((1, 2), 21.0, np.float32)
    actions = [
        each.predict(each.get_vec_normalize_env().normalize_obs(raw), deterministic=True)[0]  # type: ignore[union-attr]
        for each in (model, loaded)
    ]
    np.testing.assert_array_equal(*actions)
    loaded.learn(30, reset_num_timesteps=False)
    assert restored.obs_rms.count > env.obs_rms.count  # type: ignore[union-attr]
