"""RLPD: online reinforcement learning with offline data (Ball et al., arXiv 2302.02948)."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.type_aliases import GymEnv

from sb3_swfp.baselines.gaussian import GaussianAlgorithm, GaussianPolicy


class RLPD(GaussianAlgorithm):
    """
    SAC with half of each batch from demonstrations, a LayerNorm ensemble of 10 critics with the minimum over a random
    pair, 20 critic updates per environment step and one of the actor, which follows the ensemble's mean.

    Defaults are the published ones (paper, table 3 and section 5; authors' configuration for Adroit: hidden widths
    256, 256, 256, no entropy in the target, 5,000 steps before the first update). It has no cloning: the first actions
    are uniformly random.

    :param policy: ``"MlpPolicy"`` (or SB3's aliases)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_starts: Steps of uniformly random actions before learning starts
    :param gradient_steps: Critic updates after each step
    :param policy_delay: Critic updates per actor update
    :param ent_coef: Entropy coefficient, learned from 1 by default
    :param target_entropy: ``"auto"`` is minus half the action dimension here
    :param backup_entropy: Whether the target has the entropy bonus; the authors leave it out where rewards are sparse
    :param policy_kwargs: By default three hidden layers of 256 and 10 critics
    :param kwargs: As :class:`~sb3_swfp.baselines.gaussian.GaussianAlgorithm`
    :raises ValueError: for impossible arguments
    """

    def __init__(
        self,
        policy: str | type[GaussianPolicy],
        env: GymEnv | str,
        *,
        learning_starts: int = 5_000,
        gradient_steps: int = 20,
        policy_delay: int = 20,
        ent_coef: str | float = "auto",
        target_entropy: str | float = "auto",
        backup_entropy: bool = False,
        policy_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            policy,
            env,
            learning_starts=learning_starts,
            gradient_steps=gradient_steps,
            policy_delay=policy_delay,
            ent_coef=ent_coef,
            target_entropy=target_entropy,
            backup_entropy=backup_entropy,
            pessimistic_actor=False,
            policy_kwargs=dict(net_arch=[256, 256, 256], n_critics=10) | (policy_kwargs or {}),
            **kwargs,
        )

    def _setup_ent_coef(self) -> None:
        if self.target_entropy == "auto":
            self.target_entropy = -0.5 * float(np.prod(self.action_space.shape))
        super()._setup_ent_coef()
