"""The best action is the observation itself: does anything learn at all?"""

from __future__ import annotations

import pytest
from stable_baselines3.common.envs import IdentityEnvBox
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny import tiny_model


@pytest.mark.parametrize("block_training", ["parallel", "sequential"])
def test_identity(block_training: str) -> None:
    env = DummyVecEnv([lambda: IdentityEnvBox(eps=0.5)])
    model = tiny_model(
        env,
        learning_rate=3e-3,
        learning_starts=100,
        batch_size=64,
        gamma=0.5,
        critic_warmup=200,
        block_training=block_training,
        policy_delay=1,
    )
    model.learn(700)
    mean, _ = evaluate_policy(model, env, n_eval_episodes=5, warn=False)
    assert mean > 90  # of 100; always acting by 0 earns 50
