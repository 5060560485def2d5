"""Clone + SAC: behaviour cloning of SAC's own actor, and then SAC. What people try first."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import GymEnv

from sb3_swfp.baselines.gaussian import GaussianAlgorithm, GaussianPolicy
from sb3_swfp.checks import check_arguments
from sb3_swfp.pretraining import Observations, PretrainResult, clone_demonstrations, fit_normaliser

SelfCloneSAC = TypeVar("SelfCloneSAC", bound="CloneSAC")

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


class CloneSAC(GaussianAlgorithm):
    """
    SAC (SB3's defaults) whose actor is first cloned from demonstrations, which then also fill half of each batch.

    No paper: it stands for what users do before they know better, and for the collapse that follows, since the clone is
    handed to an untrained critic at the first update.

    :param policy: ``"MlpPolicy"`` (or SB3's aliases)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param kwargs: As :class:`~sb3_swfp.baselines.gaussian.GaussianAlgorithm`
    :raises ValueError: for impossible arguments
    """

    def __init__(self, policy: str | type[GaussianPolicy], env: GymEnv | str, **kwargs: Any):
        self.is_pretrained = False
        super().__init__(policy, env, **kwargs)

    def pretrain(
        self: SelfCloneSAC,
        demonstrations: Any = None,
        gradient_steps: int = 5000,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        validation_fraction: float = 0.1,
        patience: int = 1000,
        progress_bar: bool = False,
        tb_log_name: str | None = None,
    ) -> PretrainResult:
        """
        Clone demonstrations by maximum likelihood, with early stopping on held-out episodes.

        :param demonstrations: Anything :func:`load_demonstrations` takes; those of the replay buffer when omitted
        :param gradient_steps: Most gradient steps to run
        :param batch_size: Transitions per gradient step
        :param learning_rate: AdamW's learning rate
        :param validation_fraction: Share of the episodes that is held out for early stopping
        :param patience: Stop after so many gradient steps without a better validation loss
        :param progress_bar: Show a progress bar
        :param tb_log_name: Name of the TensorBoard run; by default the class's name and ``_pretrain``
        :return: Losses and the step whose weights were kept
        :raises ValueError: if there are no demonstrations, or they don't fit the environment
        """
        check_arguments(gradient_steps=gradient_steps, batch_size=batch_size, patience=patience)
        data = self._demonstrations_for_pretraining(demonstrations)
        fit_normaliser(self._vec_normalize_env, data, self.gamma)
        result = clone_demonstrations(
            self,
            self.actor,
            data,
            gradient_steps,
            batch_size,
            learning_rate,
            validation_fraction,
            patience,
            progress_bar,
            tb_log_name or f"{type(self).__name__}_pretrain",
            gaussian_cloning_loss,
        )
        self.is_pretrained = True
        self._scale_critics()
        return result

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        # Uniform noise would throw the clone away before SAC could
        return super()._sample_action(0 if self.is_pretrained else learning_starts, action_noise, n_envs)
