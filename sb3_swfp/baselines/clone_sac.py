"""Clone + SAC: behaviour cloning of SAC's own actor, and then SAC. What people try first."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.sac.policies import Actor

from sb3_swfp.baselines.gaussian import GaussianAlgorithm
from sb3_swfp.cloning import CloningAlgorithm
from sb3_swfp.demonstrations import Demonstrations
from sb3_swfp.pretraining import Observations

#: Demonstrated actions are pulled inside the tanh's range by so much, and a clone's deviations are held above this log:
#: a likelihood has no maximum where a demonstrated action is a function of the state
_MARGIN, _MIN_LOG_STD = 1e-3, -4.0


def gaussian_cloning_loss(
    actor: Any, observations: Observations, actions: th.Tensor, generator: th.Generator | None = None
) -> th.Tensor:
    """
    Negative log-likelihood of demonstrated actions, per action dimension, in the Gaussian's own space (before the
    tanh, whose Jacobian does not depend on the weights).

    :param actor: SB3's tanh-Gaussian actor
    :param observations: Observations
    :param actions: Scaled actions, ``[B, d]``
    :param generator: Not needed: nothing is drawn
    :return: Scalar
    """
    mean, log_std, _ = actor.get_action_dist_params(observations)
    log_std = log_std.clamp_min(_MIN_LOG_STD)
    error = (th.atanh(actions.clamp(_MARGIN - 1.0, 1.0 - _MARGIN)) - mean) / log_std.exp()
    return (0.5 * error.square() + log_std).mean()


class CloneSAC(CloningAlgorithm, GaussianAlgorithm):
    """
    SAC (SB3's defaults) whose actor is first cloned from demonstrations, which then also fill half of each batch.

    No paper: it stands for what users do before they know better. The clone is handed to an untrained critic at the
    first update.

    :param policy: ``"MlpPolicy"`` (or SB3's aliases)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param kwargs: As :class:`~sb3_swfp.baselines.gaussian.GaussianAlgorithm`
    :raises ValueError: for impossible arguments
    """

    _cloning_loss = staticmethod(gaussian_cloning_loss)

    def _network_to_clone(self) -> Actor:
        return self.actor

    def _after_cloning(self, data: Demonstrations) -> None:
        self._scale_critics()

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        # Uniform noise would throw the clone away before SAC could
        return super()._sample_action(0 if self.is_pretrained else learning_starts, action_noise, n_envs)
