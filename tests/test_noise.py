"""Correlated exploration: every action is a sample of the policy, and follows from the one before."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny import Mirror, same, tiny_model, weights

from sb3_swfp import SWFP
from sb3_swfp.noise import CorrelatedNoise


@pytest.mark.parametrize("correlation", [0.3, 0.9])
def test_standard_normal_at_every_step_and_correlated_as_asked(correlation: float) -> None:
    th.manual_seed(0)
    source = CorrelatedNoise(correlation, n_envs=4000, action_dim=2)
    steps = th.stack([source() for _ in range(12)]).flatten(1).double()
    for lag in (0, 1, 5):
        products = (steps[lag:] * steps[: len(steps) - lag]).mean(dim=1)
        np.testing.assert_allclose(products, correlation**lag, atol=0.06)
    np.testing.assert_allclose(steps.mean(dim=1), 0.0, atol=0.05)
    # Not only its variance: the fourth moment is the normal distribution's
    np.testing.assert_allclose(steps.pow(4).mean(dim=1), 3.0, atol=0.4)


def test_an_episode_begins_with_noise_of_its_own() -> None:
    source = CorrelatedNoise(0.99, n_envs=1000, action_dim=1)
    before = source()
    ended = np.arange(1000) < 500
    source.end_episodes(ended)
    after = source()
    assert abs(np.corrcoef(before[:500, 0], after[:500, 0])[0, 1]) < 0.15
    assert np.corrcoef(before[500:, 0], after[500:, 0])[0, 1] > 0.9
    assert np.corrcoef(after[:, 0], source()[:, 0])[0, 1] > 0.9  # once only


@pytest.mark.parametrize("fast", [True, False])
def test_learning_explores_with_it(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new flow is the identity, and its actions are the noise itself, up to the bound."""
    env = DummyVecEnv([lambda: Mirror(length=50)] * 2)
    model = tiny_model(env, noise_correlation=0.95, learning_starts=0, policy_delay=10_000, critic_warmup=10_000)
    if not fast:
        monkeypatch.setattr(model.policy._numpy_acting, "act", lambda *_: None)
    model.learn(160)
    assert model.replay_buffer is not None
    actions = model.replay_buffer.actions[:80, :, 0]
    steps = np.abs(np.diff(actions, axis=0))
    assert np.median(steps) < 0.3  # of independent ones it would be 0.9
    assert steps[49].max() > np.quantile(steps, 0.9)  # where both episodes ended
    assert model.policy.exploration_noise is None  # outside of learn() noise is fresh


def test_deterministic_actions_and_saved_models_know_nothing_of_it(tmp_path: pathlib.Path) -> None:
    model = tiny_model(Mirror(), noise_correlation=0.9).learn(60)
    observations = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    before = model.predict(observations, deterministic=True)[0]
    model.save(tmp_path / "model")
    loaded = SWFP.load(tmp_path / "model", env=Mirror())
    assert loaded.noise_correlation == 0.9
    np.testing.assert_array_equal(loaded.predict(observations, deterministic=True)[0], before)
    loaded.learn(20, reset_num_timesteps=False)


def test_the_same_seed_explores_the_same() -> None:
    runs = [weights(tiny_model(Mirror(), noise_correlation=0.9, seed=3).learn(60).policy) for _ in range(2)]
    assert same(*runs)


@pytest.mark.parametrize("wrong", [-0.1, 1.0])
def test_wrong_correlations(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"noise_correlation must lie in \[0, 1\), got"):
        tiny_model(noise_correlation=wrong)
