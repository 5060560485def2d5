"""Same seed, same result; a deterministic action is a function of the state and lands on a mode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny import Mirror, metrics, mirror_demonstrations, record, tiny_model, with_demonstrations


def outcome(seed: int, n_envs: int = 1, pretrain: bool = False, **arguments: Any) -> tuple[Any, ...]:
    """Logged numbers and actions of one short training run."""
    env = DummyVecEnv([Mirror] * n_envs)
    if pretrain:
        arguments |= with_demonstrations(mirror_demonstrations(3))
    model = tiny_model(env, seed=seed, **arguments)
    if pretrain:
        model.pretrain(gradient_steps=20, critic_gradient_steps=20)
    model.learn(50)
    model.policy.critic_is_ripe.fill_(True)
    rewards, _ = evaluate_policy(model, env, 3, deterministic=True, return_episode_rewards=True, warn=False)
    observation = np.linspace(10, 30, 20, dtype=np.float32).reshape(10, 2)
    actions = [model.predict(observation, deterministic=flag)[0].tolist() for flag in (True, False)]
    return metrics(model), rewards, actions


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"block_training": "sequential", "w2": "sinkhorn"},
        {"n_envs": 2, "n_steps": 3},
        {"pretrain": True, "n_steps": 3},
    ],
    ids=["parallel", "sequential", "two environments", "pretrained"],
)
def test_same_seed_same_result(arguments: dict[str, Any]) -> None:
    first, second, other = outcome(3, **arguments), outcome(3, **arguments), outcome(4, **arguments)
    assert first == second
    assert first[0] != other[0] and first[2] != other[2]


@pytest.mark.parametrize("ripe", [False, True])
@pytest.mark.parametrize("n_candidates", [1, 8])
def test_deterministic_actions_depend_on_the_state_alone(ripe: bool, n_candidates: int) -> None:
    model = tiny_model(Mirror(), policy_kwargs={"n_candidates": n_candidates}).learn(40)
    model.policy.critic_is_ripe.fill_(ripe)
    observations = np.random.default_rng(0).normal(20, 5, (30, 2)).astype(np.float32)
    actions = model.predict(observations, deterministic=True)[0]
    th.manual_seed(123)
    np.testing.assert_array_equal(model.predict(observations, deterministic=True)[0], actions)
    backwards = model.predict(observations[::-1], deterministic=True)[0][::-1]
    np.testing.assert_allclose(backwards, actions, atol=1e-5)
    alone = [model.predict(observation, deterministic=True)[0] for observation in observations]
    np.testing.assert_allclose(alone, actions, atol=1e-5)
    # States differ, so do their actions; and exploring differs from call to call
    assert len(np.unique(actions, axis=0)) == 30
    explored = [model.predict(observations)[0] for _ in range(2)]
    assert not np.array_equal(*explored)


def test_deterministic_actions_leave_the_random_state_alone() -> None:
    """Or an evaluation in the middle of training would change the training."""
    model = tiny_model(Mirror()).learn(30)
    for ripe in (False, True):
        model.policy.critic_is_ripe.fill_(ripe)
        before = th.get_rng_state()
        model.predict(np.zeros((5, 2), np.float32), deterministic=True)
        assert th.equal(th.get_rng_state(), before)


def test_a_deterministic_action_lands_on_a_mode() -> None:
    """Half of the demonstrators go left, half go right; the mean of both would go nowhere."""
    rng = np.random.default_rng(0)
    env = Mirror(low=-np.ones(2, np.float32), high=np.ones(2, np.float32))
    demonstrations = record(env, 20, lambda _: np.full(2, 0.6 * rng.choice([-1, 1]), np.float32))
    model = tiny_model(
        DummyVecEnv([lambda: env]), policy_kwargs={"block_net_arch": [64, 64], "n_blocks": 5, "n_candidates": 16}
    )
    model.pretrain(demonstrations, gradient_steps=1200, batch_size=64, learning_rate=3e-3, validation_fraction=0.0)
    observations = 20 + 5 * np.random.default_rng(1).uniform(-1, 1, (200, 2)).astype(np.float32)
    actions = model.predict(observations, deterministic=True)[0]
    distance = np.minimum(np.abs(actions - 0.6), np.abs(actions + 0.6)).max(axis=1)
    assert np.median(distance) < 0.1 and (distance < 0.3).mean() > 0.9
    explored = model.predict(observations)[0]
    assert 0.25 < (explored > 0).mean() < 0.75  # both modes stay alive when exploring
